"""Writing where a failure is no single picture's fault."""
from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import JobError

NO_USE_GOING_ON = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Raises JobError for what would meet every other picture too: a full disk, no permission."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_USE_GOING_ON:
            raise JobError(f"Writing to {folder} failed: {os.strerror(error.errno)}. What was done is kept; make room "
                           "or give permission, and the same command goes on.") from error
        raise
