"""Which rule finds best where an edit acted: IoU with the true masks, and what the picture is with its region pasted.

Every rule gets the same two pictures, decoded by the same autoencoder, and has its region widened and softened alike
(the true masks are widened by 3 pixels). Rules are those of Edited Region: Otsu's, and those of UniEdit-Flow (min-max),
SteerFlow (quantile sigmoid) and VeloEdit (similarity), as their codes have them; Otsu's also on the logarithm of the
change and on the change itself. `in the walk` is the region that Edit Picture found among its latents. iou, of the
answer: what the rule finds between the picture and the exact answer. inside, outside, leak: as in `bench edits`, of our
edit with the original put back outside the rule's region.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mirror_ops.measure.within import intersection_over_union, leak_within, psnr_within
from mirror_ops.regions.finders import otsu_region
from mirror_ops.regions.found import RULES, pasted, region_by

from .edit_methods import METHODS, STEPS
from .edits_measure import Stage, embedded
from .edits_tasks import GROUPS, Case, cases_of
from .table import show, write

SCALES = {"otsu, logarithm": 0.0, "otsu, the change itself": 1.0}
MOST = 60.0     # dB that a picture equal to the original counts as


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench edits-regions", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=2, help="scenes of each task (default 2)")
    parser.add_argument("--scenes-of", choices=("held-out", "training"), default="held-out")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=["tuned"])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    tasks = [task for group in args.groups for task in GROUPS[group]]
    held_out = args.scenes_of == "held-out"
    with torch.inference_mode():
        stage = embedded(args.steps)
        found = {task.name: measured(stage, cases_of(task, args.scenes, held_out)) for task in tasks}
    rows = [{"rule": rule, **{figure: float(np.mean([task[rule][figure] for task in found.values()]))
                              for figure in figures}} for rule, figures in next(iter(found.values())).items()]
    show([{name: value if name == "rule" else f"{value:.3f}" for name, value in row.items()} for row in rows],
         f"regions of {args.scenes} {args.scenes_of} scenes a task, means over {len(tasks)} tasks")
    write(args.json, {"rows": rows, "tasks": found})
    return 0


def measured(stage: Stage, cases: list[Case]) -> dict[str, dict[str, float]]:
    """{rule: figures} of a task."""
    original, answer, mask = (torch.cat(parts) for parts in zip(*(case.pictures() for case in cases), strict=True))
    original, answer = planes(original), planes(answer)
    stage.share(cases)
    edit = stage.run(METHODS["ours-decoded"], METHODS["ours-decoded"].published, cases)
    before, decoded = (planes(stage.run(METHODS[name], {}, cases).pictures) for name in ("floor", "ceiling"))
    ours = planes(edit.pictures)
    found = {"in the walk": figures(edit.region, ours, original, answer, mask)}
    for name, rule in rules().items():
        found[name] = figures(rule(before, ours), ours, original, answer, mask)
        found[name]["iou, of the answer"] = float(intersection_over_union(rule(before, decoded), mask).mean())
    found["in the walk"]["iou, of the answer"] = float("nan")
    return found


def rules() -> dict:
    """{name: function of two pictures}"""
    scales = {name: lambda change, kept, power=power: otsu_region(change, spread=0.0, power=power)
              for name, power in SCALES.items()}
    return {name: partial(region_by, rule) for name, rule in {**RULES, **scales}.items()}


def figures(region: Tensor, ours: Tensor, original: Tensor, answer: Tensor, mask: Tensor) -> dict[str, float]:
    picture = pasted(ours, original, region)
    return {"iou": float(intersection_over_union(region, mask).mean()),
            "inside": float(psnr_within(picture, answer, mask).mean()),
            "outside": float(psnr_within(picture, original, 1 - mask).clamp(max=MOST).mean()),
            "leak": float(leak_within(picture, original, answer, mask).mean())}


def planes(image: Tensor) -> Tensor:
    return image.movedim(-1, 1).float()
