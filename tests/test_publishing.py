"""What the registry and the host read off pyproject.toml, by the host's own parser."""
from PIL import Image

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
