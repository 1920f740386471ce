"""What can be known to be wrong with the folders before any work."""
from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path

from PIL import Image

from . import JobError, pictures, results
from .ledger import FOLDER
from .worker import Job

SAMPLE, BYTES_A_PIXEL = 32, 3      # pictures whose size is looked at; a PNG is no larger than its raw pixels


def check_folders(source: Path, target: Path) -> None:
    """Raises JobError if one holds the other, the first is no folder, or one lies where we may not look."""
    try:
        is_folder, is_file = source.is_dir(), target.exists() and not target.is_dir()
    except OSError as error:
        raise JobError(f"{error.filename} can't be looked at: {error.strerror}. Give permission to the folders above "
                       "it, or name another.") from error
    if not is_folder:
        raise JobError(f"There is no folder {source}.")
    one, other = source.resolve(), target.resolve()
    if one == other or one.is_relative_to(other) or other.is_relative_to(one):
        raise JobError(f"{target} and {source} lie in each other: results would be taken for pictures. "
                       "Name a folder for the results outside that of the pictures.")
    if is_file:
        raise JobError(f"{target} is a file; name a folder for the results.")


def check_target(source: Path, target: Path, names: list[str], keep: bool = True) -> None:
    """Raises JobError if OUT can't be written to, or the results of these pictures would not fit.

    OUT is there afterwards; without `keep` only if it was before. Two commands may do this at once in one OUT, so what
    one keeps the other must not take away: only empty folders go that this call has made.
    """
    probe, new = target / FOLDER / f"probe-{uuid.uuid4().hex}", []
    try:
        new = [] if keep else missing(probe.parent)
        probe.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target).free
        with open(probe, "wb") as file:
            file.write(b"0" * (1 << 20))
            os.fsync(file.fileno())
    except OSError as error:
        raise JobError(f"{target} can't be written to: {error.strerror}. Make room or give permission, or name "
                       "another folder.") from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
        with contextlib.suppress(OSError):
            for folder in new:
                folder.rmdir()
    needed = space_needed(source, names)
    if needed > free:
        raise JobError(f"The results need up to {needed / 1e9:.1f} GB and {target} has {free / 1e9:.1f} GB left. "
                       "Make room, or name a folder on another disk.")


def missing(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, the deepest first."""
    return [at for at in (folder, *folder.parents) if not at.exists()]


def space_needed(source: Path, names: list[str]) -> float:
    """Bytes of so many results, judged by a few pictures from all over the folder."""
    sizes = [pixels(source / names[i * len(names) // SAMPLE]) for i in range(SAMPLE)] if names else [0]
    return BYTES_A_PIXEL * len(names) * sum(sizes) / len(sizes)


def pixels(file: Path) -> int:
    try:
        with Image.open(file) as picture:
            return picture.width * picture.height
    except Exception:       # a broken picture needs no room; it is listed when its turn comes
        return 0


def check_results(job: Job, names: list[str], there: set[str]) -> None:
    """Raises JobError if a file that is not this job's stands where a result would be written."""
    for name in () if job.replace else names:
        result = pictures.result_name(name, job.keep_suffix)
        if result in there and (results.record_of(job.target / result) or {}).get("settings") != job.settings:
            raise JobError(f"{job.target / result} is there already and no result of this job. Name another folder, "
                           "or give --replace to write over such files.")


def readable_example(source: Path, names: list[str]) -> tuple[bytes, str]:
    """(content, suffix) of the first picture that can be read, to try the graph on. Raises JobError if none can."""
    for name in names:
        try:
            return pictures.loadable((source / name).read_bytes(), Path(name).suffix)
        except Exception:       # Pillow's readers raise all sorts of things
            continue
    raise JobError(f"None of the {len(names)} pictures in {source} can be read.")
