"""Folders in a per-user cache: complete, or not there. Standard library only.

A folder is named by a hash of what it is made from, so that a second clone starts at once and a change of pins makes a
new one. It counts only once its marker is written, which is the last thing done: whatever was cut short before is
thrown away and made anew.
"""
import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PACK_NAME = "mirrordiffusion"
MARKER = "complete.json"


class SetupError(Exception):
    """Something can't be made or used; the message says why and what to do."""


def say(text: str) -> None:
    """Print one line of progress at once, also into a pipe."""
    print(f"[set-up] {text}", flush=True)


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


def is_complete(folder: Path) -> bool:
    """Whether `made` made it to the end."""
    return (folder / MARKER).is_file()


def made(folder: Path, make: Callable[[Path], None], what: str, usable: Callable[[Path], bool] = is_complete) -> Path:
    """Return `folder`, calling make(folder) first unless it is complete and usable(folder); one process at a time.

    Raises SetupError for what the file system refuses, and what `make` and `usable` raise.
    """
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
        (folder / MARKER).write_text(json.dumps({"made": time.strftime("%F %T")}))
        say(f"the {what} is ready after {time.monotonic() - start:.0f} s, in {folder}")
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
        if not _locks(file):
            say(f"another process is making the {what}: waiting for it")
            while not _locks(file):
                time.sleep(0.5)
        yield


def _locks(file) -> bool:
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
