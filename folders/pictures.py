"""The pictures of a folder, the names of their results, and the seed that each name stands for."""
from __future__ import annotations

import hashlib
import io
import os
import unicodedata
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from . import JobError

SEED_BITS = 31              # what every node's seed can hold
READ_BY_HOST = (".png", ".jpg", ".jpeg", ".webp")    # loaded by the host as they are; the others become PNG first


@cache
def suffixes() -> frozenset[str]:
    """Of the formats that Pillow reads."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN)


def found(folder: Path) -> list[str]:
    """The pictures' paths relative to the folder, with slashes, in order; hidden files and folders are left out."""
    names = []
    for at, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(at).relative_to(folder)
        names += [(below / name).as_posix() for name in files
                  if not name.startswith(".") and Path(name).suffix.lower() in suffixes()]
    strange = next((name for name in names if not is_text(name)), None)
    if strange is not None:
        raise JobError(f"The file name {ascii(strange)} is not text (UTF-8): no ledger could hold it. Rename it.")
    return sorted(names)


def is_text(name: str) -> bool:
    """Whether a file name is text in the system's encoding; Python keeps other bytes as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def refuse(error: OSError) -> None:
    raise JobError(f"The folder {error.filename} can't be read: {error.strerror}.")


def result_name(name: str, keep_suffix: bool = False) -> str:
    """Where the result of a picture lies: the same place, as PNG."""
    return name + ".png" if keep_suffix else str(Path(name).with_suffix(".png").as_posix())


def check_names(names: list[str], keep_suffix: bool) -> None:
    """Raises JobError if two pictures would have one result, also on a disk that takes A.png and a.png for one."""
    by_result = defaultdict(list)
    for name in names:
        by_result[result_name(name, keep_suffix).casefold()].append(name)
    clash = next((names for names in by_result.values() if len(names) > 1), None)
    if clash:
        raise JobError(f"{' and '.join(clash)} would both become {result_name(clash[0], keep_suffix)}. "
                       + ("Rename one." if keep_suffix else "Rename one, or give --keep-suffix to write a.jpg.png."))


def seed_of(name: str, base: int) -> int:
    """A picture's own seed: of its path and the job's seed, the same on every machine and in every order."""
    words = f"{base}/{unicodedata.normalize('NFC', name)}"
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") % 2**SEED_BITS


def loadable(content: bytes, suffix: str) -> tuple[bytes, str]:
    """(content, suffix) that the host's loader takes. Raises OSError and the like if it isn't a whole picture.

    The host reads on over a file that was cut short and makes up the rest, so each is read through by Pillow first.
    Greys of 16 bits become 8; numbers without a known white are refused.
    """
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        if suffix.lower() in READ_BY_HOST:
            return content, suffix.lower()
        out, exif = io.BytesIO(), picture.getexif()
        picture = eight_bits(picture)
        picture.convert("RGBA" if "A" in picture.getbands() or "transparency" in picture.info else "RGB").save(
            out, "PNG", compress_level=1, exif=exif)
    return out.getvalue(), ".png"


def eight_bits(picture: Image.Image) -> Image.Image:
    """The picture, whose greys of 16 bits Pillow would cut off at 255 where it converts. Raises ValueError for numbers
    that say nothing of what is white."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    grey = np.asarray(picture)
    if picture.mode == "F" or grey.min() < 0 or grey.max() >= 2**16:
        raise ValueError("its numbers are not those of 8 or 16 bits; save it as one of these")
    return Image.fromarray((grey // 257).astype(np.uint8))
