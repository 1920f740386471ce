"""The pictures spread over a Ray cluster: names -> a pool of actors, each with a host that it boots once -> rows.

Every actor writes results and ledger itself, so rows are in the ledger before Ray hears of them, whatever becomes of
the actor, its node or the driver. Ray starts lost actors and repeats lost tasks; what of a repeated task was done
before is known by its results. That is why Ray's own `CheckpointConfig` is not used: it checkpoints a block when the
block is written, not a picture when it is done, keeps no failures, and a serial run could not go on from it.
"""
from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator

from harness.environment import ROOT
from harness.extras import RAY, ensure

from . import JobError
from .worker import Job

LARGEST_BLOCK, BLOCKS_EACH = 8, 16      # pictures a task: few enough that no worker is left with many at the end
# Ray's statistics are not sent; its core would warn of every restart of an actor, which Ray Data then manages; and it
# would run the workers, who do all the work here, at the lowest priority but four.
MANNERS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_worker_niceness": "0"}


def rows(job: Job, names: list[str], address: str, workers: int | None) -> Iterator[dict]:
    """The row of each picture, in the order in which they are done. address: of a cluster, or "local"."""
    ray = connect(address, workers)
    try:
        yield from run(ray, job, names, workers)
    finally:
        ray.shutdown()


def run(ray, job: Job, names: list[str], workers: int | None) -> Iterator[dict]:
    """The same in a cluster that is connected."""
    from ray.data import ActorPoolStrategy, DataContext, from_items
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    there = ray.cluster_resources()
    gpus = 0 if job.cpu else int(there.get("GPU", 0))
    places = gpus or int(there.get("CPU", 1))
    workers = count_of(workers, places, "GPUs" if gpus else "cores", len(names))
    size = max(1, min(LARGEST_BLOCK, len(names) // (workers * BLOCKS_EACH)))
    data = from_items([{"name": name} for name in names], override_num_blocks=-(-len(names) // size))
    done = data.map_batches(Actor, fn_constructor_args=(job,), batch_size=size, num_cpus=1, num_gpus=1 if gpus else 0,
                            compute=ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers))
    for batch in done.iter_batches(batch_size=None):
        for text in batch["row"]:
            row = json.loads(text)
            if "stop" in row:
                raise JobError(row["stop"])
            yield row


def count_of(asked: int | None, places: int, kind: str, pictures: int) -> int:
    """How many workers there will be: as many as asked for, or as there are places, and then says so."""
    if asked and asked > places:
        print(f"--workers {asked}: of {places} {kind} each takes one, so {places} work.", flush=True)
    return max(1, min(asked or places, places, pictures))


class Actor:
    """A worker of the pool; its faults travel as rows, because an exception would end in a traceback of Ray's."""

    def __init__(self, job: Job):
        from .outputs import save_in
        from .runner import start
        from .settings import check_same
        from .worker import Worker
        self.stop = None
        try:
            host = start(job.cpu, job.packs)
            check_same(job, host)
            self.worker = Worker(job, host)
            save_in(job.target, host)
        except JobError as error:
            self.stop = str(error)

    def __call__(self, batch: dict) -> dict:
        return {"row": [json.dumps(self.do(str(name))) for name in batch["name"]]}

    def do(self, name: str) -> dict:
        if self.stop is None:
            try:
                return self.worker.do(name)
            except JobError as error:
                self.stop = str(error)
        return {"stop": self.stop}


def connect(address: str, workers: int | None):
    """Ray, connected to the cluster at `address`, or to one started here ("local"). Raises JobError."""
    ensure(RAY)
    mannered()
    import ray
    check_reachable(address)
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    local = address == "local"
    try:
        ray.init(address=address, num_cpus=workers if local else None, include_dashboard=False if local else None,
                 log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": variables})
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise no_cluster(address, error) from error
    return ray


def mannered() -> None:
    """Set MANNERS for what Ray starts from here, unless the user has set others."""
    for name, value in MANNERS.items():
        os.environ.setdefault(name, value)


def check_reachable(address: str) -> None:
    """Raises JobError if nothing listens at HOST:PORT: Ray itself would go on trying for many minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise no_cluster(address, error) from error


def no_cluster(address: str, error: Exception) -> JobError:
    return JobError(f"There is no Ray cluster at {address}: {str(error).splitlines()[0]}. "
                    "`python run.py ray start --head` starts one.")


def main(argv: list[str]) -> int:
    """`python run.py ray ...`: Ray's own command of the environment, to start and stop the nodes of a cluster."""
    ensure(RAY)
    mannered()
    from ray.scripts.scripts import cli
    return cli(argv, standalone_mode=True)
