"""A folder job on two Ray nodes whose workers, node and driver are killed, against the same job in one process."""
from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

from folders.ledger import FOLDER, Ledger
from folders.pictures import found, result_name
from folders.ray_job import mannered
from harness.environment import ROOT

from .folders_graphs import BROKEN, draw, tiny


def faults(folder: Path, count: int) -> dict:
    """{"figures": lost, doubled, differing, unlisted; "rows": what was done to the job, and when}."""
    broken = draw(folder / "in", count, min(BROKEN, count))
    (folder / "tiny.json").write_text(json.dumps(tiny()))
    command = [sys.executable, str(ROOT / "run.py"), "translate", str(folder / "in")]
    options = ["--workflow", str(folder / "tiny.json"), "--cpu"]
    subprocess.run([*command, str(folder / "serial"), *options])
    events = torment([*command, str(folder / "ray"), *options], folder / "ray", count)
    return {"figures": compared(folder, broken), "rows": events}


def torment(command: list[str], out: Path, count: int) -> list[dict]:
    """Run the command on a cluster of two nodes through all its faults, each at its share of the pictures."""
    mannered()
    from ray.cluster_utils import Cluster
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    command = [*command, "--ray", cluster.address, "--workers", "2"]
    driver, events, started = subprocess.Popen(command), [], time.monotonic()

    def at(share: float, what: str) -> None:
        while rows(out) < share * count and driver.poll() is None:
            time.sleep(.2)
        events.append({"what": what, "rows then": rows(out), "s": round(time.monotonic() - started)})

    try:
        for share in (.1, .25, .4):
            at(share, "a worker killed -9")
            kill_worker(out)
        at(.55, "the second node removed")
        cluster.remove_node(second, allow_graceful=False)
        at(.7, "the driver killed -9, and started again")
        driver.kill()
        driver.wait()
        driver = subprocess.Popen(command)
        driver.wait()
        events.append({"what": "the end", "rows then": rows(out), "s": round(time.monotonic() - started)})
    finally:
        driver.kill()
        cluster.shutdown()
    return events


def rows(out: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in out.glob(f"{FOLDER}/*/*.jsonl"))


def kill_worker(out: Path) -> None:
    """kill -9 the worker that wrote last; its ledger file names the process."""
    files = sorted(out.glob(f"{FOLDER}/*/*.jsonl"), key=lambda file: file.stat().st_mtime, reverse=True)
    pids = [int(file.name.split("-")[-2]) for file in files]
    alive = next(pid for pid in pids if psutil.pid_exists(pid))
    os.kill(alive, signal.SIGKILL)


def compared(folder: Path, broken: list[str]) -> dict[str, int]:
    """Good pictures without a result, and those on which the graph ran to the end more than once; results that are not
    the serial run's, bit for bit; broken pictures that are not listed."""
    good = set(found(folder / "in")) - set(broken)
    (ledger,) = (file for file in (folder / "ray" / FOLDER).iterdir() if file.is_dir())
    times = Counter(row["name"] for row in Ledger(ledger).rows() if not {"error", "found"} & set(row))
    listed = {row["name"] for row in csv.DictReader(open(folder / "ray" / "failed.csv", encoding="utf-8"))}
    there = {name for name in good if (folder / "ray" / result_name(name)).is_file()}
    return {"lost": len(good - there), "doubled": sum(times[name] > 1 for name in good),
            "differing": sum(len({(folder / job / result_name(name)).read_bytes() for job in ("serial", "ray")}) > 1
                             for name in there),
            "unlisted": len(set(broken) - listed)}
