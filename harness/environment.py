"""The environment everything runs in: pinned packages and a pinned host, made once per user and reused.

Standard library only, because it runs before anything is installed.
"""
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .cache import SetupError, cache_key, cache_root, is_complete, made, say
from .hosts import ARCHIVES, PINNED, fetch, is_host
from .pip import clean_environ, pip

ROOT = Path(__file__).absolute().parent.parent      # the pack; not resolved, a linked pack stands where its link stands

PACKAGES = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0", "torchmetrics==1.9.0",
            "torch-fidelity==0.4.0", "pytest==9.2.0", "ruff==0.17.5")

GIGABYTES = 9 if sys.platform.startswith("linux") else 4    # on Linux torch brings the CUDA libraries along
# Modules whose presence says that this Python can already run the host and the tests.
NEEDED = ("torch", "torchvision", "torchaudio", "torchmetrics", "torch_fidelity", "torchsde", "aiohttp", "av",
          "comfy_aimdo", "comfy_kitchen", "einops", "kornia", "numpy", "PIL", "psutil", "pytest", "ruff", "safetensors",
          "scipy", "spandrel", "sqlalchemy", "transformers", "yaml")
LACKING = "import sys; from importlib.util import find_spec; print(*(n for n in sys.argv[1:] if not find_spec(n)))"


@dataclass(frozen=True)
class Environment:
    """A Python that can run the host, and the host's folder."""
    python: Path
    host: Path


def prepare() -> Environment:
    """Find or make the environment; takes minutes and gigabytes the first time and a fraction of a second after.

    The host is the one in COMFYUI_PATH, else the ComfyUI in whose custom_nodes the pack stands, else the pinned one.
    A host of the user's own runs in the Python at hand if that has all that is needed, else in the cached environment.
    """
    own = find_host()
    if own and all(importlib.util.find_spec(name) for name in NEEDED):
        return Environment(Path(sys.executable), own)
    folder = made(environment_folder(), make_environment, "environment", usable_environment)
    return Environment(venv_python(folder / "venv"), own or folder / "ComfyUI")


def find_host() -> Path | None:
    """The ComfyUI the user has: COMFYUI_PATH, else the one in whose custom_nodes the pack stands, else None."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        host = Path(named).expanduser().absolute()
        if not is_host(host):
            raise SetupError(f"COMFYUI_PATH is {named}, but there is no ComfyUI (main.py, nodes.py, comfy) in that "
                             "folder. Correct it, or unset it to use the pinned host.")
        return host
    parent = ROOT.parent.parent
    return parent if ROOT.parent.name == "custom_nodes" and is_host(parent) else None


def available_host() -> Path:
    """The host to use without making anything: the user's own, else the cached one; SetupError if there is none."""
    cached = environment_folder()
    host = find_host() or (cached / "ComfyUI" if is_complete(cached) else None)
    if host is None:
        raise SetupError("There is no ComfyUI here yet. `python run.py test` makes one and runs the tests in it; "
                         "or set COMFYUI_PATH to a ComfyUI that you have.")
    return host


def environment_folder() -> Path:
    return cache_root() / f"env-{environment_key()}"


def environment_key() -> str:
    """Changes with any pin, the Python and the machine."""
    version = ".".join(map(str, sys.version_info[:2]))
    return cache_key(PACKAGES, *ARCHIVES[PINNED], version, sys.platform, platform.machine())


def venv_python(venv: Path) -> Path:
    return venv / "Scripts" / "python.exe" if sys.platform == "win32" else venv / "bin" / "python"


def make_environment(folder: Path) -> None:
    """A venv and the pinned host beside it. Raises SetupError."""
    check_disk(folder)
    say(f"making the environment in {folder}: packages and ComfyUI, about {GIGABYTES * 2 // 3} GB, only this once")
    python = make_venv(folder / "venv")
    fetch(PINNED, folder, python)
    say("installing packages")
    pip(python, "install", *PACKAGES, "-r", folder / "ComfyUI" / "requirements.txt", log=folder / "install.log")


def usable_environment(folder: Path) -> bool:
    """Whether the venv's Python starts: it stops doing so when the Python that it was made of is removed.

    Raises SetupError for one that starts but lacks something: it may be in use, so nobody removes it but the user.
    """
    try:
        done = subprocess.run([venv_python(folder / "venv"), "-c", LACKING, *NEEDED], capture_output=True, text=True,
                              env=clean_environ())
    except OSError:
        return False
    lacking = done.stdout.split() + ["ComfyUI"] * (not is_host(folder / "ComfyUI"))
    if done.returncode == 0 and lacking:
        raise SetupError(f"The environment in {folder} lacks {', '.join(lacking)}. Remove that folder and run this "
                         "again: it is then made anew.")
    return done.returncode == 0


def check_disk(folder: Path, gigabytes: float = GIGABYTES) -> None:
    """Raises SetupError before anything is fetched, where pip would find out after many minutes."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise SetupError(f"Making the environment needs about {gigabytes} GB of disk; {folder} has {free:.1f} GB left. "
                         "Make room, or set MIRROR_CACHE to a folder on another disk.")


def make_venv(folder: Path) -> Path:
    """The Python of a venv with pip, also where Python comes without ensurepip (as Debian's does)."""
    try:
        import venv
    except ImportError as error:
        raise SetupError("This Python has no venv module. Install it (on Debian and Ubuntu: "
                         "apt install python3-venv) or use another Python.") from error
    venv.create(folder, symlinks=sys.platform != "win32")
    python = venv_python(folder)
    if subprocess.run([python, "-m", "ensurepip"], capture_output=True, env=clean_environ()).returncode:
        packages = next(folder.rglob("site-packages"))
        pip(Path(sys.executable), "install", "--target", packages, "pip", log=folder / "pip.log")
    return python
