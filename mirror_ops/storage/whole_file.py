"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write under; at the end the file moves there. After an error nothing is left of it, and
    what was at `path` before stays. No two processes write under the same name."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Raises OSError, whose text names the file and the reason."""
    try:
        with whole_file(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror or error}") from error
