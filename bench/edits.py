"""Edits against the exact answer: every method, on scenes whose edited picture is known pixel by pixel.

Figures are means over scenes. inside/outside: PSNR (dB) and SSIM against the exact answer within the region where it
differs from the picture (widened by 3 pixels), and outside it; the standard error of inside beside it. success: share
of pictures in which the attribute classifier sees what was asked for, all of it. kept: share of the other attributes
that it sees unchanged. leak: how much of the old thing is left inside, 0 none, 1 all. sharpness: energy of the finest
band inside, relative to the answer's. region: IoU of the region that a method found with the true one. structure:
self-similarity distance to the picture (x 1000) on the classifier's features. displacement: relative rms error of the
latent where the way back without the edit arrives. forwards, backwards: rows through the network, passes: forwards and
twice the backwards, and seconds: these four for the first scene with as many changes, by itself. Read `floor` (no edit)
and `ceiling` (the autoencoder alone) first: what the picture does not determine can't be right (`run.py bench
edits-bound`).

Methods stand at their published settings; rows that end in -tuned at the best of four on training scenes of the tasks
`tuned` (--tune), their own region among what is tried. Nothing is chosen on the tasks `other` and `several`.
Writes table.txt, table.md, table.csv, a sheet of pictures for each task, one with a scene of each, and plots beside
the JSON, or to output/edits.
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
from .edits_measure import Book, alone, embedded, measure
from .edits_tasks import GROUPS, TASKS, Case, cases_of, group_of
from .fingerprint import fingerprint
from .table import markdown, show, write

MEANS = ("inside_psnr", "outside_psnr", "inside_ssim", "outside_ssim", "success", "kept", "leak", "sharpness",
         "region_iou", "structure", "displacement", "forwards", "backwards", "passes", "seconds")
ERROR = "inside_psnr_error"     # the standard error of its mean
SHOWN = {"inside_psnr": ("inside dB", "{:.2f}"), ERROR: ("+-", "{:.2f}"), "outside_psnr": ("outside dB", "{:.2f}"),
         "inside_ssim": ("in ssim", "{:.3f}"), "outside_ssim": ("out ssim", "{:.3f}"), "success": ("hit", "{:.0%}"),
         "kept": ("kept", "{:.1%}"), "leak": ("leak", "{:.3f}"), "sharpness": ("sharp", "{:.2f}"),
         "region_iou": ("region", "{:.2f}"), "structure": ("structure", "{:.1f}"),
         "displacement": ("displaced", "{:.4f}"), "forwards": ("F", "{:.0f}"), "backwards": ("B", "{:.0f}"),
         "passes": ("passes", "{:.0f}"), "seconds": ("s", "{:.2f}")}
TUNED = Path(__file__).with_name("edits_tuned.json")
BEST = "-tuned"
BATCH = 16
UNKNOWN = dict.fromkeys(("forwards", "backwards", "passes", "seconds"))


def main(argv: list[str]) -> int:
    args = parse(argv)
    problem = unknown(args)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    out = args.json.parent if args.json else Path("output", "edits")
    state = fingerprint(("edits_measure", "edit_methods", "edits_tasks"), ("model", "classifier"))
    book = Book(out, [state, args.steps], args.fresh)
    with torch.inference_mode():
        if args.tune:
            tune(args, book)
            return 0
        entries = list(listed(args.methods))
        records = measure_all(args, book, entries, args.tasks, held_out=args.scenes_of == "held-out")
        rows, average = summary(records), averages(summary(records))
        attributes = by_attribute(records)
        report(rows, average, attributes, out)
        write(args.json or out / "edits.json", {"rows": rows, "average": average, "attributes": attributes,
                                                "about": about(args, entries)})
        pictures.draw(out, book, rows, average, args, [name for name, _, _ in entries])
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py bench edits", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", metavar="NAME", help=f"of: {', '.join(METHODS)}; or one with {BEST}")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", default=["tuned"],
                        help=f"groups ({', '.join(GROUPS)}; default tuned) or tasks: {', '.join(TASKS)}")
    parser.add_argument("--scenes", type=int, default=16, help="scenes of each task (default 16)")
    parser.add_argument("--scenes-of", choices=("held-out", "training"), default="held-out")
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer steps for a quick look (default 50)")
    parser.add_argument("--tune", action="store_true", help="compare settings on training scenes, keep the best")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs measured")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    args.tasks = [task for name in args.tasks for task in named(name)]
    return args


def named(name: str) -> list[str]:
    """The tasks of a group, or the one task of this name."""
    return [task.name for task in GROUPS[name]] if name in GROUPS else [name]


def unknown(args: argparse.Namespace) -> str:
    """What is wrong with the names asked for; empty if nothing is."""
    for kind, wanted, known in (("method", args.methods or (), METHODS), ("task", args.tasks, TASKS)):
        for name in wanted:
            if name.removesuffix(BEST) not in known:
                return f"There is no {kind} `{name}`. There are: {', '.join(known)}."
    if args.scenes < 1:
        return "--scenes must be 1 or more."
    if args.tune and any(group_of(task) != "tuned" for task in args.tasks):
        return "Settings are chosen on the tasks `tuned` only: leave --tasks out."
    return ""


def listed(names: list[str] | None):
    """(name of the row, method, settings): floor and ceiling first; without names all, published and tuned."""
    tuned = json.loads(TUNED.read_text()) if TUNED.exists() else {}
    for name in names or [row for base in METHODS for row in (base, base + BEST)]:
        base = name.removesuffix(BEST)
        method, settings = METHODS[base], METHODS[base].published
        if name != base:
            chosen = tuned.get(method.tuned_as or base, {}).get("settings")
            if chosen in (None, method.published):
                continue
            settings = {**method.published, **chosen}
        yield name, method, settings


def measure_all(args, book: Book, entries: list, tasks: list[str], held_out: bool) -> list[dict]:
    """All records, from the book or measured now, with a line of progress."""
    cases = [case for task in tasks for case in cases_of(TASKS[task], args.scenes, held_out)]
    batches = [cases[k:k + BATCH] for k in range(0, len(cases), BATCH)]
    jobs = [(entry, batch) for batch in batches for entry in entries]       # so that methods share inversions
    left = [(entry, batch) for entry, batch in jobs if book.find(entry[0], entry[2], batch) is None]
    if len(left) < len(jobs):
        print(f"{len(jobs) - len(left)} of {len(jobs)} batches were measured before, by the same sources and weights")
    stage, started = embedded(args.steps), time.time()
    for k, ((name, method, settings), batch) in enumerate(left):
        so_far = time.time() - started
        rest = f", {so_far / k * (len(left) - k) / 60:.1f} min left" if k else ""
        print(f"\r\033[K{k}/{len(left)} batches{rest}   {name}", end="", flush=True)
        stage.share(batch)
        records, edited = measure(stage, name, method, settings, batch)
        if not args.tune:
            book.keep(name, batch, edited)
            records = [{**record, **cost(book, stage, name, method, settings, like(case, cases))}
                       for record, case in zip(records, batch, strict=True)]
        book.add(name, settings, batch, [{**UNKNOWN, **record} for record in records])
    print("\r\033[K", end="")
    return [record for entry in entries for batch in batches for record in book.find(entry[0], entry[2], batch)]


def like(case: Case, cases: list[Case]) -> Case:
    """The first of these cases with as many changes: it costs as much."""
    return next(other for other in cases if len(other.task.attributes) == len(case.task.attributes))


def cost(book: Book, stage, name: str, method, settings: dict, case) -> dict:
    """What a method takes for one scene by itself; measured once."""
    by = {"alone": settings}
    if book.find(name, by, [case]) is None:
        book.add(name, by, [case], [alone(stage, method, settings, case)[1]])
    return book.find(name, by, [case])[0]


def summary(records: list[dict]) -> list[dict]:
    """One row a task and method: means over scenes."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault((record["method"], record["task"]), []).append(record)
    return [{"method": method, "task": task, "scenes": len(group), **{name: mean(group, name) for name in MEANS},
             ERROR: standard_error([record["inside_psnr"] for record in group])}
            for (method, task), group in groups.items()]


def averages(rows: list[dict]) -> list[dict]:
    """One row a method and group of tasks: means over tasks."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["method"], group_of(row["task"])), []).append(row)
    return [{"method": method, "group": group, "tasks": len(own), **{name: mean(own, name) for name in MEANS},
             ERROR: error_of_mean([row[ERROR] for row in own])} for (method, group), own in groups.items()]


def mean(records: list[dict], name: str) -> float | None:
    values = [record[name] for record in records if record[name] is not None]
    return float(np.mean(values)) if values else None


def standard_error(values: list[float]) -> float | None:
    """Of the mean of a sample; None of a single value."""
    return float(np.std(values, ddof=1) / len(values) ** .5) if len(values) > 1 else None


def error_of_mean(errors: list[float | None]) -> float | None:
    """The standard error of the mean of independent means; None if one of theirs is unknown."""
    return None if None in errors else float(np.square(errors).sum() ** .5 / len(errors))


def by_attribute(records: list[dict]) -> list[dict]:
    """Of tasks that change several attributes: one row a task, method and attribute."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        for name, figures in (record["each"] or {}).items():
            groups.setdefault((record["method"], record["task"], name), []).append(figures)
    return [{"method": method, "task": task, "attribute": attribute,
             **{name: mean(group, name) for name in ("success", "inside_psnr", "leak")}}
            for (method, task, attribute), group in groups.items()]


def report(rows: list[dict], average: list[dict], attributes: list[dict], out: Path) -> None:
    """Print the tables; write them as text and CSV."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        for task in dict.fromkeys(row["task"] for row in rows):
            group = [row for row in rows if row["task"] == task]
            show([shown(row) for row in group], f"{task}, {group[0]['scenes']} scenes")
        if attributes:
            show(attributes, "each attribute of tasks that change several, in its own area")
        for name in dict.fromkeys(row["group"] for row in average):
            show([shown(row) for row in average if row["group"] == name], f"mean over the tasks `{name}`")
    print(text.getvalue())
    (out / "table.txt").write_text(text.getvalue())
    (out / "table.md").write_text("\n".join(
        f"mean over the tasks `{name}`\n\n" + markdown([documented(row) for row in average if row["group"] == name])
        for name in dict.fromkeys(row["group"] for row in average)))
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def shown(row: dict) -> dict:
    """A row as the printed table has it."""
    scale = {"structure": 1000}
    return {"method": row["method"], **{short: "-" if row[name] is None else form.format(row[name] * scale.get(name, 1))
                                        for name, (short, form) in SHOWN.items()}}


def documented(row: dict) -> dict:
    """A row as docs/benchmarks.md has it."""
    short = shown(row)
    inside, error, structure = (short.pop(SHOWN[name][0]) for name in ("inside_psnr", ERROR, "structure"))
    keys = ("outside_psnr", "success", "kept", "leak", "sharpness", "region_iou", "passes")
    return {"method": f"`{row['method']}`", "inside dB": inside if error == "-" else f"{inside} ± {error}",
            **{SHOWN[name][0]: short[SHOWN[name][0]] for name in keys}, "structure": structure}


def about(args, entries: list) -> dict:
    """How the figures came about."""
    return {"steps": args.steps, "scenes_of": args.scenes_of, "batch": BATCH, "threads": torch.get_num_threads(),
            "settings": {name: settings for name, _, settings in entries},
            "methods": {name: METHODS[name].about for name in METHODS}}


# ---- tuning ----

def tune(args, book: Book) -> None:
    """Compare each method's settings on training scenes; the best go to bench/edits_tuned.json."""
    best = json.loads(TUNED.read_text()) if TUNED.exists() else {}
    chosen = [name for name in args.methods or METHODS if METHODS[name].tries]
    entries = {name: [(f"{name} {json.dumps(settings)}", METHODS[name], settings)
                      for settings in settings_of(METHODS[name])] for name in chosen}
    for name in chosen:
        records = measure_all(args, book, entries[name], args.tasks, held_out=False)
        figures = {row["method"]: row for row in averages(summary(records))}
        trials = [(settings, figures[entry]) for entry, _, settings in entries[name]]
        show([shown({**row, "method": json.dumps(settings)}) for settings, row in trials], f"{name}, training scenes")
        settings, row = max(trials, key=lambda trial: worth(trial[1]))
        best[name] = {"settings": settings, "training_scenes": args.scenes, "steps": args.steps, "tried": len(trials),
                      **{k: round(row[k], 3) for k in ("success", "kept", "inside_psnr", "outside_psnr", "leak")}}
        TUNED.write_text(json.dumps(best, indent=1) + "\n")
    print(f"wrote {TUNED}")


def settings_of(method) -> list[dict]:
    """The published setting, and it with each try's changes."""
    return [{**method.published, **changes} for changes in ({}, *method.tries)]


def worth(row: dict) -> tuple[float, float]:
    """The rule by which a setting is best: enough success first, then the mean of inside and outside PSNR."""
    return min(row["success"], pictures.ENOUGH), row["inside_psnr"] + row["outside_psnr"]
