"""Folder jobs: what the command costs beside its graph, what a second worker gains, and what faults do to a job.

Pictures of the embedded world. `overhead` is the time that the command takes beside the graph, in parts of the graph's
(a real edit). `speedup_2` is the pictures a second of two Ray workers over those of one, from when both run until the
first has nothing left: boots are left out. `machine_allows` is the same of two serial commands that know nothing of
each other. All three take turns, and the figures are medians over the rounds of what each round gives, because
machines get slower and quicker. `ray_cores` is how much of a core Ray's own processes take meanwhile. `lost`,
`doubled`, `differing`, `unlisted` count pictures of a job on two Ray nodes of which workers, a node and the driver are
killed (bench/folders_faults.py), against a serial run. `scale` simulates the scheduler of a large cluster with times
measured here (bench/folders_scale.py).
"""
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from folders import runner
from folders.graph import prepare
from folders.ledger import Ledger
from folders.pictures import found
from folders.settings import parts_of
from folders.worker import Job, Worker
from harness.environment import ROOT
from harness.extras import RAY, ensure

from .folders_faults import faults
from .folders_graphs import BROKEN, draw, edit, tiny
from .folders_scale import scale
from .table import show, write


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench folders", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000, help="of the tiny graph")
    parser.add_argument("--edits", type=int, default=200, help="pictures that are really edited")
    parser.add_argument("--steps", type=int, default=25, help="of an edit")
    parser.add_argument("--rounds", type=int, default=3, help="in which one worker and two take turns at the edits")
    parser.add_argument("--faulty", type=int, default=500, help="pictures of the job with faults")
    parser.add_argument("--only", choices=("cost", "speedup", "faults", "scale"), help="one part alone")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    ensure(RAY)
    figures, rows = {}, {}
    with tempfile.TemporaryDirectory(prefix="bench-folders-") as folder:
        folder = Path(folder)
        if args.only in (None, "faults"):       # first: while this process has no host, the machine holds one less
            figures |= (counted := faults(folder / "faults", args.faulty))["figures"]
            rows["faults"] = counted["rows"]
            show([figures], f"{args.faulty} pictures, every {BROKEN}th broken, under faults")
            show(counted["rows"])
        if args.only in (None, "speedup"):
            rounds = [[speed(folder / f"speedup{turn}", args.edits // args.rounds, args.steps, *kind)
                       for kind in ((1, True), (2, True), (2, False))] for turn in range(args.rounds)]
            rows["speedup"] = [row for turn in rounds for row in turn]
            show(rows["speedup"], f"{args.rounds} rounds of {args.edits // args.rounds} edits of {args.steps} steps")
            figures |= speedups(rounds)
        if args.only in (None, "cost"):
            rows["cost"] = costs(folder / "cost", args)
            show(rows["cost"], "one process, in order")
            figures["overhead"] = rows["cost"][-1]["overhead"]
        if args.only in (None, "scale"):
            rows["scale"] = scale()
            show(rows["scale"]["measured"], "measured here")
            show(rows["scale"]["simulated"], "simulated with it: one driver, so many GPUs")
    if figures:
        show([figures])
    write(args.json, {"figures": figures, "rows": rows, "settings": vars(args) | {"json": str(args.json)}})
    return 0


def costs(folder: Path, args) -> list[dict]:
    """A row for the tiny graph and one for the edit."""
    host = runner.start(True, ())
    return [cost(host, folder / name, name, graph, count)
            for name, graph, count in (("tiny graph", tiny(), args.pictures), ("edit", edit(args.steps), args.edits))]


def cost(host, folder: Path, name: str, nodes: dict, count: int) -> dict:
    """Time a picture inside the host's executor and beside it, ms; and how memory grew after the first tenth, MB."""
    draw(folder / "in", count)
    graph = prepare(nodes, runner.classes_of(nodes, host))
    worker = Worker(Job(folder / "in", folder / "out", graph, 0, parts_of(graph, 0, host, (), True)), host)
    timed = Timed(host.run_graph)
    worker.runner.host = Timing(host, timed)
    names, memory = found(folder / "in"), []
    worker.do(names[0])                         # loads the model
    timed.reset()
    started, cpu = time.perf_counter(), time.process_time()
    for picture in names[1:]:
        worker.do(picture)
        memory.append(psutil.Process().memory_info().rss / 1e6)
    wall, used = time.perf_counter() - started, time.process_time() - cpu
    done = len(names) - 1
    return {"graph of": name, "pictures": done, "graph ms": 1000 * timed.wall / done,
            "beside it ms": 1000 * (wall - timed.wall) / done, "graph CPU ms": 1000 * timed.cpu / done,
            "beside it CPU ms": 1000 * (used - timed.cpu) / done, "overhead": (wall - timed.wall) / timed.wall,
            "memory MB": memory[-1], "grown MB": memory[-1] - memory[len(memory) // 10]}


class Timed:
    """A function that adds up the time spent in it."""

    def __init__(self, function):
        self.function = function
        self.reset()

    def reset(self) -> None:
        self.wall = self.cpu = 0.

    def __call__(self, *arguments, **options):
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return self.function(*arguments, **options)
        finally:
            self.wall += time.perf_counter() - wall
            self.cpu += time.process_time() - cpu


class Timing:
    """The host, its run_graph timed."""

    def __init__(self, host, run_graph: Timed):
        self.host, self.run_graph = host, run_graph

    def __getattr__(self, name):
        return getattr(self.host, name)


def speed(folder: Path, count: int, steps: int, workers: int, ray: bool = True) -> dict:
    """The command with so many workers, read off its ledgers; without Ray: so many commands, each on its part.

    Commands that know nothing of each other share only the machine: what they gain is what it allows.
    """
    parts = 1 if ray else workers
    place = folder / f"{'ray' if ray else 'alone'}{workers}"
    for part in range(parts):
        draw(place / f"in{part}", count // parts)
    (place / "edit.json").write_text(json.dumps(edit(steps)))
    options = ["--ray", "--workers", str(workers)] if ray else []
    command = [sys.executable, ROOT / "run.py", "translate"]
    running = [subprocess.Popen([*command, place / f"in{part}", place / f"out{part}", "--workflow", place / "edit.json",
                                 "--cpu", *options]) for part in range(parts)]
    seen = watched(running)
    if any(process.returncode for process in running):
        sys.exit("A folder job failed; it says above why.")
    each = [rows for ledger in place.glob("out*/.translate/*/") for rows in by_worker(Ledger(ledger))]
    start = max(rows[0]["at"] - rows[0]["seconds"] for rows in each)
    end = min(rows[-1]["at"] for rows in each)
    done = [row for rows in each for row in rows if row["at"] - row["seconds"] >= start and row["at"] <= end]
    return {"workers": f"{workers} over Ray" if ray else f"{workers} apart", "pictures": len(done),
            "pictures/s": len(done) / (end - start),
            "CPU s a picture": statistics.mean(row["cpu_seconds"] for row in done),
            "cores of Ray": cores(seen, start, end) if ray else 0.}


def speedups(rounds: list[list[dict]]) -> dict[str, float]:
    """The medians over rounds of (one worker over Ray, two over Ray, two apart)."""
    rates = [[row["pictures/s"] for row in turn] for turn in rounds]
    return {"speedup_2": statistics.median(two / one for one, two, _ in rates),
            "machine_allows": statistics.median(apart / one for one, _, apart in rates),
            "ray_cores": statistics.median(two["cores of Ray"] for _, two, _ in rounds)}


def watched(running: list[subprocess.Popen]) -> list[tuple[float, dict[int, float]]]:
    """[(time, {process: CPU seconds})] of the commands and all that they started, but Ray's workers, until all end."""
    seen = []
    while any(process.poll() is None for process in running):
        used = {}
        for process in [child for one in running for child in family(one.pid)]:
            with suppress(psutil.Error):
                if "MapWorker" not in "".join(process.cmdline()):
                    used[process.pid] = sum(process.cpu_times()[:2])
        seen.append((time.time(), used))
        time.sleep(1)
    return seen


def family(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return []


def cores(seen: list[tuple[float, dict[int, float]]], start: float, end: float) -> float:
    """CPU seconds a second that were used between two times."""
    inside = [(at, used) for at, used in seen if start <= at <= end]
    (first, before), (last, after) = inside[0], inside[-1]
    return sum(after[pid] - before.get(pid, 0.) for pid in after) / (last - first)


def by_worker(ledger: Ledger) -> list[list[dict]]:
    """The rows of each worker that did more than one picture, in order; its first, which loads the model, left out."""
    files = [[json.loads(line) for line in file.read_text().splitlines()] for file in ledger.folder.glob("*.jsonl")]
    return [rows[1:] for rows in files if len(rows) > 1]
