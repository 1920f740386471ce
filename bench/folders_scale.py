"""A folder job beyond this machine: its scheduler simulated with times measured here."""
from __future__ import annotations

import heapq
import random
import tempfile
import time
from pathlib import Path

from folders.ledger import Ledger
from folders.ray_job import LARGEST_BLOCK, mannered

PICTURES, GPUS = 10**7, 1000
SECONDS = (1., 5., 30.)         # of a GPU a picture: a distilled edit of a large picture, 50 steps of SD1.5, of SDXL
SPREAD, BOOT = .1, 60.          # of a picture's time; seconds until a worker begins
ROW = {"name": "000/00000.png", "source": "0" * 64, "size": 20000, "changed": 1, "seed": 1, "result": "000/00000.png",
       "region": .1, "outside": 0., "psnr": 30., "seconds": 1., "cpu_seconds": 1.}


def scale(cpus: int = 2) -> dict:
    """{"measured": seconds of each step of the scheduler, "simulated": a row for each time a picture takes}."""
    measured = {"dispatch of a task": dispatch(cpus), **ledger_times()}
    return {"measured": [{"what": what, "ms": 1000 * seconds} for what, seconds in measured.items()],
            "simulated": [simulate(PICTURES, GPUS, seconds, measured) for seconds in SECONDS]}


def dispatch(cpus: int, tasks: int = 2000) -> float:
    """Seconds that Ray Data takes for a task that does nothing."""
    mannered()
    import ray
    from ray.data import ActorPoolStrategy, DataContext, from_items
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    DataContext.get_current().enable_progress_bars = False

    class Nothing:
        def __call__(self, batch):
            return batch

    data = from_items([{"name": str(i)} for i in range(tasks)], override_num_blocks=tasks)
    done = data.map_batches(Nothing, batch_size=1, num_cpus=1, compute=ActorPoolStrategy(size=cpus))
    try:
        # From the first answer on: what comes before it is the start of the actors.
        seen = [time.perf_counter() for _ in done.iter_batches(batch_size=None, prefetch_batches=0)]
        assert len(seen) == tasks
        return (seen[-1] - seen[0]) / (tasks - 1)
    finally:
        ray.shutdown()


def ledger_times(count: int = 1000, rows: int = 100_000) -> dict[str, float]:
    """Seconds to append a row to the disk, and to read one when a job goes on."""
    with tempfile.TemporaryDirectory(prefix="bench-ledger-") as folder:
        ledger = Ledger(Path(folder))
        writer = ledger.writer()
        started = time.perf_counter()
        for i in range(count):
            writer.append({**ROW, "name": f"{i}.png", "at": float(i)})
        append = (time.perf_counter() - started) / count
        (file,) = Path(folder).iterdir()
        line = file.read_bytes().splitlines(keepends=True)[0]
        file.write_bytes(b"".join(line.replace(b'"0.png"', b'"%d.png"' % i) for i in range(rows)))
        started = time.perf_counter()
        assert len(ledger.merged()) == rows
        return {"append of a row": append, "reading of a row": (time.perf_counter() - started) / rows}


def simulate(pictures: int, workers: int, seconds: float, measured: dict[str, float], block: int = LARGEST_BLOCK,
             seed: int = 0) -> dict:
    """One driver hands out tasks of `block` pictures, one after the other, to whichever worker is free first.

    busy: the workers' share of the time; driver: the share of the time in which the driver hands out.
    """
    rng = random.Random(seed)
    free = [BOOT * rng.uniform(1, 2) for _ in range(workers)]
    heapq.heapify(free)
    driver, end, each = 0., 0., seconds + measured["append of a row"]
    for _ in range(pictures // block):
        worker = heapq.heappop(free)
        driver = max(driver, worker) + measured["dispatch of a task"]       # a busy driver lets the worker wait
        done = driver + block * each * max(.2, rng.gauss(1, SPREAD / block**.5))
        end = max(end, done)
        heapq.heappush(free, done)
    tasks = pictures / block
    return {"pictures": pictures, "GPUs": workers, "s a picture": seconds, "hours": end / 3600,
            "busy": pictures * seconds / (workers * end), "driver": tasks * measured["dispatch of a task"] / end,
            "files a s": pictures / end, "ledger GB": pictures * 400 / 1e9,
            "going on, minutes": pictures * measured["reading of a row"] / 60}
