"""All pictures in this process, in order."""
from collections.abc import Iterator

from harness.boot import Host

from .outputs import save_in
from .worker import Job, Worker


def rows(job: Job, names: list[str], host: Host) -> Iterator[dict]:
    """The row of each picture as it is done."""
    worker, before = Worker(job, host), save_in(job.target, host)
    try:
        for name in names:
            yield worker.do(name)
    finally:
        save_in(before, host)
        worker.close()
