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
    """Raises JobError if one holds the other, or the first is no folder."""
    if not source.is_dir():
        raise JobError(f"There is no folder {source}.")
    one, other = source.resolve(), target.resolve()
    if one == other or one.is_relative_to(other) or other.is_relative_to(one):
        raise JobError(f"{target} and {source} lie in each other: results would be taken for pictures. "
                       "Name a folder for the results outside that of the pictures.")
    if target.exists() and not target.is_dir():
        raise JobError(f"{target} is a file; name a folder for the results.")


def check_target(source: Path, target: Path, names: list[str]) -> None:
    """Raises JobError if OUT can't be written to, or the results of these pictures would not fit."""
    probe = target / FOLDER / f"probe-{uuid.uuid4().hex}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        with open(probe, "wb") as file:
            file.write(b"0" * (1 << 20))
            os.fsync(file.fileno())
    except OSError as error:
        raise JobError(f"{target} can't be written to: {error.strerror}. Make room or give permission, or name "
                       "another folder.") from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    needed, free = space_needed(source, names), shutil.disk_usage(target).free
    if needed > free:
        raise JobError(f"The results need up to {needed / 1e9:.1f} GB and {target} has {free / 1e9:.1f} GB left. "
                       "Make room, or name a folder on another disk.")


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
