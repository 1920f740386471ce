"""Which rule finds best where an edit acted: IoU with the true masks, of our own edit and of the exact answer.

Every rule gets the same two pictures, decoded by the same autoencoder, and has its region widened alike (the true masks
are, by 3 pixels). Rules are those of Edited Region: Otsu's, and those of UniEdit-Flow (min-max), SteerFlow (quantile
sigmoid) and VeloEdit (similarity); `in the walk` is the region that Edit Picture found among its latents.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from mirror_ops.measure.within import intersection_over_union
from mirror_ops.regions.found import RULES, picture_region

from .edit_methods import METHODS, STEPS
from .edits_measure import Stage, embedded
from .edits_tasks import GROUPS, Case, cases_of
from .table import show, write


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench edits-regions", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=2, help="scenes of each task (default 2)")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=["tuned"])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    tasks = [task for group in args.groups for task in GROUPS[group]]
    with torch.inference_mode():
        stage = embedded(args.steps)
        found = {task.name: regions(stage, cases_of(task, args.scenes, held_out=True)) for task in tasks}
    rows = [{"task": name, **row} for name, row in found.items()]
    rows.append({"task": "mean", **{name: float(np.mean([row[name] for row in found.values()])) for name in rows[0]
                                    if name != "task"}})
    show([{name: value if name == "task" else f"{value:.2f}" for name, value in row.items()} for row in rows],
         f"IoU with the true region, {args.scenes} scenes a task")
    write(args.json, {"rows": rows})
    return 0


def regions(stage: Stage, cases: list[Case]) -> dict[str, float]:
    """Mean IoU of each rule."""
    mask = torch.cat([case.pictures()[2] for case in cases])
    stage.share(cases)
    edit = stage.run(METHODS["ours-decoded"], METHODS["ours-decoded"].published, cases)
    before, answer = (stage.run(METHODS[name], {}, cases).pictures for name in ("floor", "ceiling"))
    before, ours, answer = (picture.movedim(-1, 1).float() for picture in (before, edit.pictures, answer))
    found = {"in the walk": edit.region}
    found |= {rule: picture_region(before, ours, rule=rule) for rule in RULES}
    found |= {f"{rule}, of the answer": picture_region(before, answer, rule=rule) for rule in RULES}
    return {name: float(intersection_over_union(region, mask).mean()) for name, region in found.items()}
