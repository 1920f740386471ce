"""What the registry and the host read off pyproject.toml, by the host's own parser."""
import ast
import json
import re
from pathlib import Path

from PIL import Image

from demo.graphs import parts
from harness.environment import ROOT


def test_the_hosts_parser_reads_every_mark(host):
    from comfy_config.config_parser import extract_node_configuration
    read = extract_node_configuration(str(ROOT))
    assert read.project.name == "mirrordiffusion" and read.project.urls.repository and read.project.urls.issues
    assert read.project.supported_os == ["OS Independent"], "an unknown classifier empties the list"
    assert read.project.supported_accelerators == ["GPU :: NVIDIA CUDA"]
    assert read.project.supported_comfyui_version == ">=0.16.3"
    assert read.tool_comfy.publisher_id and read.tool_comfy.display_name
    assert read.tool_comfy.icon.endswith("docs/icon.png")


def test_no_file_of_the_package_imports_one_that_is_left_out():
    left_out = [line for line in (ROOT / ".comfyignore").read_text().splitlines() if line and line[0] != "#"]
    files = [file.relative_to(ROOT) for file in ROOT.rglob("*.py")]
    shipped = [file for file in files if file.parts[0][0] != "." and not inside(file.as_posix(), left_out)]
    assert {"__init__.py", "nodes/edit/picture.py", "demo/model.py"} <= {file.as_posix() for file in shipped}
    missed = {(file.as_posix(), module) for file in shipped for module in imported(file) if inside(module, left_out)}
    assert not missed


def inside(path: str, entries: list[str]) -> bool:
    """Whether a file, or a module with slashes, is one of these or lies in one."""
    return any(f"{path}/".startswith(f"{entry.rstrip('/')}/") or f"{path}.py" == entry for entry in entries)


def imported(file: Path) -> set[str]:
    """The modules that a file imports, also inside functions, as paths from the root without their suffix."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.replace(".", "/") for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            above = file.parts[:-node.level] if node.level else ()
            parts = (*above, *(node.module.split(".") if node.module else ()))
            found |= {"/".join((*parts, *name)) for name in ((), *((alias.name,) for alias in node.names))}
    return found


def test_icon_and_banner_have_the_registrys_shapes():
    with Image.open(ROOT / "docs" / "icon.png") as icon, Image.open(ROOT / "docs" / "banner.png") as banner:
        assert icon.width == icon.height <= 400
        assert banner.width * 9 == banner.height * 21
    published = (ROOT / "pyproject.toml").read_text()
    assert "/docs/icon.png" in published and "/docs/banner.png" in published


def test_icon_and_banner_are_what_the_command_draws(host):
    marks = host.pack_module("demo.marks")
    for name, drawn in (("icon", marks.icon()), ("banner", marks.banner())):
        with Image.open(ROOT / "docs" / f"{name}.png") as kept:
            assert kept.tobytes() == drawn.tobytes(), f"run: python run.py marks ({name})"


def test_other_platforms_run_every_template_that_needs_no_file_of_the_user():
    listed = re.findall(r'^    "(.+)",$', (ROOT / "comfy-test.toml").read_text(), re.MULTILINE)
    placeholders = (parts.CHECKPOINT, parts.EXAMPLE)
    free = [file.name for file in sorted((ROOT / "workflows").glob("*.json"))
            if not any(json.dumps(name) in file.read_text(encoding="utf-8") for name in placeholders)]
    assert listed == free and 10 < len(free) < 20
