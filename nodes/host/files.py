"""Files in ComfyUI's output and input folders: found by name, named anew, and noticed when they change."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import folder_paths
from comfy_execution.utils import get_executing_context

READABLE = (".safetensors", ".pt")
NAMED, LOOKED_AT = 20, 5000  # file names in a message, and how many files are looked at to find them
LEAST_FREE = 2**20  # bytes
REMEMBERED = 64  # files of one node
Stamp = tuple[int, int, int, int] | None
State = Callable[[str], object]  # of what a name stands for

_read: dict[str | None, dict[str, object]] = {}  # node id -> what it read by a wired name, as that was then
_changes: Counter = Counter()  # node id -> how often one of them was found changed


def find_file(name: str) -> Path | None:
    """The file of that name in the output or input folder, and below nothing else; None if there is none."""
    for tried in dict.fromkeys((name, name.strip())):
        for root in _roots():
            path = _inside(root, tried)
            if path is not None and path.is_file():
                return path
    return None


def existing_file(name: str, kinds: tuple[str, ...] = READABLE) -> Path:
    """`find_file`; ValueError, listing files that end in `kinds`, if there is none."""
    path = find_file(name)
    if path is None:
        known = sorted(islice(_files(kinds), NAMED))
        shown = name if len(name) <= 100 else f"{name[:100]}..."
        raise ValueError(
            f"There is no file {shown!r} in ComfyUI's output or input folder. There are: {', '.join(known) or 'none'}."
        )
    return path


def new_file(prefix: str) -> tuple[Path, str]:
    """(a path in the output folder that does not exist yet, its name relative to that folder).

    Raises ValueError for a prefix that is no name, leads out of the folder, or where nothing can be written.
    """
    check_prefix(prefix)
    output = folder_paths.get_output_directory()
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, output)
    except OSError as error:
        raise ValueError(f"Nothing can be saved as {prefix!r}: {error}. Give another name.") from error
    path = Path(folder) / f"{name}_{counter:05}_.safetensors"
    return path, os.path.relpath(path, output)


def check_prefix(prefix: str) -> None:
    """Raises ValueError unless files can be saved under that name in the output folder."""
    root = Path(folder_paths.get_output_directory()).resolve()
    path = _inside(root, prefix) if prefix.strip() and len(Path(prefix).name) <= 200 else None
    if path is None or path == root:
        raise ValueError(
            f"{prefix[:100]!r} is no name in the output folder: it is empty, too long, or leads out of it. Give a "
            "plain name such as mirror/walk."
        )
    check_writable(path.parent)


def check_writable(folder: Path) -> None:
    """Raises ValueError if nothing can be written in this folder, or in that in which it is to be made."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"Nothing can be written in {there}. Make it writable, or start ComfyUI with another folder.")
    if shutil.disk_usage(there).free < LEAST_FREE:
        raise ValueError(f"The disk of {there} is full. Free some space.")


def own_file(name: str) -> Path:
    """The safetensors file of that very name in the output folder, be it there or not. Raises as `check_prefix`."""
    name = name.strip().removesuffix(".safetensors")
    check_prefix(name)
    path = Path(folder_paths.get_output_directory()).resolve() / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def problem(check, *args) -> bool | str:
    """For `validate_inputs`: True, or what `check(*args)` has against its arguments; None is for a wired input."""
    try:
        if None not in args:
            check(*args)
    except ValueError as error:
        return str(error)
    return True


def stamps(*names: str | None, state: State | None = None) -> list:
    """For `fingerprint_inputs`: a value that changes whenever one of these files does, or `state` of a name, if that is
    given. None: the name comes by wire, and stands for what the running node last read by `noted`."""
    look = state or stamp
    found: list = [look(name) for name in names if name is not None]
    if None not in names:
        return found
    node = _running()
    then = _read.get(node, {})
    now = {name: look(name) for name in then}
    if now != then:
        _read[node] = now
        _changes[node] += 1
    return [*found, _changes[node]]


def noted(name: str, kinds: tuple[str, ...] = READABLE) -> Path:
    """`existing_file`, whose state the running node's `stamps` is then compared with."""
    path = existing_file(name, kinds)
    note(name, stamp(name))
    return path


def note(name: str, state: object) -> None:
    """Keeps in what state the running node has read what is named so."""
    node = _running()
    seen = _read.setdefault(node, {})
    seen.pop(name, None)
    seen[name] = state
    if len(seen) > REMEMBERED:  # what is no longer watched counts as changed
        seen.pop(next(iter(seen)))
        _changes[node] += 1


def stamp(name: str) -> Stamp:
    """What changes when a file is written, replaced or removed, even within one tick of the clock."""
    path = find_file(name) if name.strip() else None
    if path is None:
        return None
    state = path.stat()
    return state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino


def _running() -> str | None:
    context = get_executing_context()
    return None if context is None else context.node_id


def _roots() -> list[Path]:
    return [Path(root).resolve() for root in (folder_paths.get_output_directory(), folder_paths.get_input_directory())]


def _inside(root: Path, name: str) -> Path | None:
    """The path of that name below root; None for what no path can be, and for what leads elsewhere."""
    try:
        path = (root / name).resolve()
        path.is_file()  # raises for names that are too long
    except (OSError, RuntimeError, ValueError):  # of link loops, names that are too long, NUL
        return None
    return path if path.is_relative_to(root) else None


def _files(kinds: tuple[str, ...]) -> Iterator[str]:
    """Names of files with these endings, from a look at a limited number of files."""
    looked = 0
    for root in _roots():
        for folder, _, names in os.walk(root):
            yield from (os.path.relpath(os.path.join(folder, name), root) for name in names if name.endswith(kinds))
            looked += len(names) + 1
            if looked > LOOKED_AT:
                return
