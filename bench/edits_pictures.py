"""What a person wants to look at: for each task a sheet of pictures, and plots of all methods."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mirror_ops.measure.image_grid import draw_sheet

from .edits_measure import Book
from .edits_tasks import SHOWN, TASKS, Case, cases_of
from .plots import Point, bars, scatter

HIT, MISSED = (30, 150, 70), (205, 50, 50)
BOUNDS = {"floor", "ceiling"}
ENOUGH = .8                     # success below which a method counts as not having edited


def draw(out: Path, book: Book, rows: list[dict], average: list[dict], args, names: list[str]) -> None:
    """Write sheet-TASK.png for every task, overview.png with a scene of each, and plots of the means over tasks."""
    held_out, mixed = args.scenes_of == "held-out", []
    average = [row for row in average if row["group"] == average[0]["group"]]
    for task in args.tasks:
        cases = cases_of(TASKS[task], args.scenes, held_out)[:SHOWN]
        mixed.append(cases[len(mixed) % len(cases)])
        titles = [" to ".join(case.change.values) if len(TASKS[task].changes) > 1 else str(case.seed) for case in cases]
        own = [row for row in rows if row["task"] == task]
        save(out / f"sheet-{task.replace(' ', '-')}.png", sheet(book, cases, titles, names, own))
    save(out / "overview.png", sheet(book, mixed, args.tasks, names, average))
    locality(out / "plot-locality.png", average)
    cost(out / "plot-cost.png", average)
    attributes(out / "plot-attributes.png", average)
    print(f"sheets and plots: {out}")


def save(path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(path)


def sheet(book: Book, cases: list[Case], titles: list[str], names: list[str], rows: list[dict]) -> np.ndarray:
    """The picture, the exact answer, and each method's edit, a column a case. Frames: green hit, red missed.

    `rows` hold the figures beside the methods' names.
    """
    drawn = [[as_bytes(picture) for picture in case.pictures()[:2]] for case in cases]
    pictures = [[before for before, _ in drawn], [answer for _, answer in drawn]]
    labels, marks = ["the picture", "exact answer"], [[None] * len(cases)] * 2
    of = {row["method"]: row for row in rows}
    hits = {(r["method"], r["task"], r["seed"]): r["success"] for r in book.current() if "success" in r}
    for name in names:
        row = of[name]
        pictures.append([load(book, name, case) for case in cases])
        labels.append(f"{name}\nin {row['inside_psnr']:.1f} dB\nout {row['outside_psnr']:.1f} dB")
        marks.append([None if name in BOUNDS else HIT if hits[name, case.task.name, case.seed] else MISSED
                      for case in cases])
    return draw_sheet(pictures, titles, labels, marks)


def load(book: Book, name: str, case: Case) -> np.ndarray:
    return np.asarray(Image.open(book.picture(name, case)).convert("RGB"))


def as_bytes(picture) -> np.ndarray:
    """[H, W, 3] uint8 of a picture [1, H, W, 3] in [0, 1]."""
    return (picture[0] * 255).round().byte().numpy()


def locality(path: Path, average: list[dict]) -> None:
    """Outside against inside, methods that edited filled."""
    points = [Point(row["method"], row["outside_psnr"], row["inside_psnr"], edited(row)) for row in average]
    scatter(path, points, "nearness to the exact answer (filled: success of 80 % or more)",
            "outside the edited region, PSNR in dB", "inside, PSNR in dB")


def cost(path: Path, average: list[dict]) -> None:
    """What nearness costs. A backward pass counts as two forward passes."""
    points = [Point(row["method"], row["passes"], (row["inside_psnr"] + row["outside_psnr"]) / 2, edited(row))
              for row in average if row["method"] not in BOUNDS]
    scatter(path, points, "cost (filled: success of 80 % or more)", "forward + 2 x backward passes a picture",
            "mean of inside and outside, PSNR in dB")


def edited(row: dict) -> bool:
    return row["success"] >= ENOUGH


def attributes(path: Path, average: list[dict]) -> None:
    """Success and the others kept, a pair of bars a method."""
    rows = [row for row in average if row["method"] != "floor"]
    bars(path, [row["method"] for row in rows], {"asked for": [row["success"] for row in rows],
                                                 "others kept": [row["kept"] for row in rows]}, "attributes right")
