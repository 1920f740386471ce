"""Edits against the exact answer: every method, on scenes whose edited picture is known pixel by pixel.

Figures are means over scenes. inside/outside: PSNR (dB) and SSIM against the exact answer within the region where it
differs from the picture (widened by 3 pixels), and outside it. success: share of pictures in which the attribute
classifier sees what was asked for. kept: share of the five other attributes that it sees unchanged. structure:
self-similarity distance to the picture (x 1000) on the classifier's features. displacement: relative rms error of the
latent where the way back without the edit arrives. forwards, backwards: rows through the network, and seconds: these
three for the first scene by itself. Read `floor` (no edit) and `ceiling` (the autoencoder alone) first: what
the picture does not determine, such as the shape of new ears, can't be right.

Methods stand at their published settings; rows that end in -tuned at the best of seven on training scenes (--tune).
Writes table.txt, table.csv, a sheet of pictures for each task, one with a scene of each, and plots beside the JSON, or
to output/edits.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from . import edits_pictures as pictures
from .edit_methods import METHODS, STEPS
from .edits_measure import Book, alone, embedded, fingerprint, measure
from .edits_tasks import TASKS, cases_of
from .table import show, write
from .world import world

MEANS = ("inside_psnr", "outside_psnr", "inside_ssim", "outside_ssim", "success", "kept", "structure", "displacement",
         "forwards", "backwards", "seconds")
TUNED = Path(__file__).with_name("edits_tuned.json")
BEST = "-tuned"
BATCH = 16
UNKNOWN = {"forwards": None, "backwards": None, "seconds": None}


def main(argv: list[str]) -> int:
    args = parse(argv)
    problem = unknown(args)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    out = args.json.parent if args.json else Path("output", "edits")
    parts = ("edits_measure", "edit_methods", "edits_tasks")
    weights = [world().host.pack_module(f"demo.{name}").WEIGHTS for name in ("model", "classifier")]
    book = Book(out, [fingerprint(parts, weights), args.steps], args.fresh)
    with torch.inference_mode():
        if args.tune:
            tune(args, book)
            return 0
        entries = list(listed(args.methods))
        records = measure_all(args, book, entries, args.tasks, held_out=args.scenes_of == "held-out")
        rows, average = summary(records), averages(summary(records))
        report(rows, average, out)
        write(args.json or out / "edits.json", {"rows": rows, "average": average, "about": about(args, entries)})
        pictures.draw(out, book, rows, average, args, [name for name, _, _ in entries])
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py bench edits", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", metavar="NAME", help=f"of: {', '.join(METHODS)}; or one with {BEST}")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", default=list(TASKS), help=f"of: {', '.join(TASKS)}")
    parser.add_argument("--scenes", type=int, default=16, help="scenes of each task (default 16)")
    parser.add_argument("--scenes-of", choices=("held-out", "training"), default="held-out")
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer steps for a quick look (default 50)")
    parser.add_argument("--tune", action="store_true", help="compare settings on training scenes, keep the best")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs measured")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


def unknown(args: argparse.Namespace) -> str:
    """What is wrong with the names asked for; empty if nothing is."""
    for kind, wanted, known in (("method", args.methods or (), METHODS), ("task", args.tasks, TASKS)):
        for name in wanted:
            if name.removesuffix(BEST) not in known:
                return f"There is no {kind} `{name}`. There are: {', '.join(known)}."
    if args.scenes < 1:
        return "--scenes must be 1 or more."
    return ""


def listed(names: list[str] | None):
    """(name of the row, method, settings): floor and ceiling first; without names all, published and tuned."""
    tuned = json.loads(TUNED.read_text()) if TUNED.exists() else {}
    for name in names or [row for base in METHODS for row in (base, base + BEST)]:
        base = name.removesuffix(BEST)
        method, settings = METHODS[base], METHODS[base].published
        if name != base:
            settings = tuned.get(base, {}).get("settings")
            if settings in (None, method.published):
                continue
        yield name, method, settings


def measure_all(args, book: Book, entries: list, tasks: list[str], held_out: bool) -> list[dict]:
    """All records, from the book or measured now, with a line of progress."""
    cases = [case for task in tasks for case in cases_of(TASKS[task], args.scenes, held_out)]
    jobs = [(name, method, settings, cases[k:k + BATCH]) for name, method, settings in entries
            for k in range(0, len(cases), BATCH)]
    left = [job for job in jobs if book.find(job[0], job[2], job[3]) is None]
    if len(left) < len(jobs):
        print(f"{len(jobs) - len(left)} of {len(jobs)} batches were measured before, by the same sources and weights")
    stage, started, costs = embedded(args.steps), time.time(), {}
    for k, (name, method, settings, batch) in enumerate(left):
        so_far = time.time() - started
        rest = f", {so_far / k * (len(left) - k) / 60:.1f} min left" if k else ""
        print(f"\r\033[K{k}/{len(left)} batches{rest}   {name}", end="", flush=True)
        records, edited = measure(stage, name, method, settings, batch)
        if not args.tune and name not in costs:
            _, costs[name] = alone(stage, method, settings, cases[0])
        records = [{**record, **costs.get(name, UNKNOWN)} for record in records]
        if not args.tune:
            book.keep(name, batch, edited)
        book.add(name, settings, batch, records)
    print("\r\033[K", end="")
    return [record for name, _, settings, batch in jobs for record in book.find(name, settings, batch)]


def summary(records: list[dict]) -> list[dict]:
    """One row a task and method: means over scenes."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault((record["method"], record["task"]), []).append(record)
    return [{"method": method, "task": task, "scenes": len(group), **{name: mean(group, name) for name in MEANS}}
            for (method, task), group in groups.items()]


def averages(rows: list[dict]) -> list[dict]:
    """One row a method: means over tasks."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return [{"method": method, "tasks": len(group), **{name: mean(group, name) for name in MEANS}}
            for method in methods for group in [[row for row in rows if row["method"] == method]]]


def mean(records: list[dict], name: str) -> float | None:
    values = [record[name] for record in records if record[name] is not None]
    return float(np.mean(values)) if values else None


def report(rows: list[dict], average: list[dict], out: Path) -> None:
    """Print the tables; write them as text and CSV."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        for task in dict.fromkeys(row["task"] for row in rows):
            group = [row for row in rows if row["task"] == task]
            show([shown(row) for row in group], f"{task}, {group[0]['scenes']} scenes")
        show([shown(row) for row in average], "mean over tasks")
    print(text.getvalue())
    (out / "table.txt").write_text(text.getvalue())
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def shown(row: dict) -> dict:
    """A row as the printed table has it."""
    short = {"inside_psnr": "inside dB", "outside_psnr": "outside dB", "inside_ssim": "in ssim",
             "outside_ssim": "out ssim", "displacement": "displaced", "forwards": "F", "backwards": "B", "seconds": "s"}
    form = {"inside_psnr": "{:.2f}", "outside_psnr": "{:.2f}", "inside_ssim": "{:.3f}", "outside_ssim": "{:.3f}",
            "success": "{:.0%}", "kept": "{:.1%}", "structure": "{:.2f}", "displacement": "{:.4f}",
            "forwards": "{:.0f}", "backwards": "{:.0f}", "seconds": "{:.2f}"}
    scale = {"structure": 1000}
    return {"method": row["method"], **{short.get(name, name): "-" if row[name] is None else
            form[name].format(row[name] * scale.get(name, 1)) for name in MEANS}}


def about(args, entries: list) -> dict:
    """How the figures came about."""
    return {"steps": args.steps, "scenes_of": args.scenes_of, "batch": BATCH, "threads": torch.get_num_threads(),
            "settings": {name: settings for name, _, settings in entries},
            "methods": {name: METHODS[name].about for name in METHODS}}


# ---- tuning ----

def tune(args, book: Book) -> None:
    """Compare each method's settings on training scenes; the best go to bench/edits_tuned.json."""
    best = json.loads(TUNED.read_text()) if TUNED.exists() else {}
    for name in args.methods or METHODS:
        method = METHODS[name]
        if not method.tries:
            continue
        trials = []
        for settings in (method.published, *method.tries):
            entry = (name + " " + json.dumps(settings), method, settings)
            [row] = averages(summary(measure_all(args, book, [entry], args.tasks, held_out=False)))
            trials.append({"settings": settings, "figures": row})
        show([shown({**t["figures"], "method": json.dumps(t["settings"])}) for t in trials], f"{name}, training scenes")
        chosen = max(trials, key=lambda trial: worth(trial["figures"]))
        best[name] = {"settings": chosen["settings"], "training_scenes": args.scenes, "tried": len(trials),
                      **{k: round(chosen["figures"][k], 3) for k in ("success", "kept", "inside_psnr", "outside_psnr")}}
        TUNED.write_text(json.dumps(best, indent=1) + "\n")
    print(f"wrote {TUNED}")


def worth(row: dict) -> tuple[float, float]:
    """The rule by which a setting is best: enough success first, then the mean of inside and outside PSNR."""
    return min(row["success"], pictures.ENOUGH), row["inside_psnr"] + row["outside_psnr"]
