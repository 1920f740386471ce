"""What bounds `inside`: how far apart answers lie that a picture leaves equally open.

A picture does not show everything that its exact answer holds: not the frame of glasses that are yet to be put on, not
the phase of stripes that a plain coat has not. Each uncaptioned detail of a scene is drawn anew, and kept where the
picture stays the same to the last pixel; what answers then look like is all that the picture says. open: the details
that matter. PSNR inside (dB) of the mean squared error, against the exact answer, of: any such answer (an editor that
guesses like the world), their mean (which no editor can pass on average, and nobody would keep), and any of them after
the autoencoder's round trip; leak: of any such answer, coded, whose guess counts as something left. `--seeds` measures
the same of our own edit: under several noises, of their mean, and of one noise against another, which says how much of
its error is chance.

`--decoded` measures what bounds the decoded picture outside (PSNR there, against the picture): the latent of the exact
answer put into the picture's, in the cells that the true region touches; our own edit kept to those cells; and our own
edit as it comes. A decoder draws each pixel from the cells around it, so an error inside is seen outside.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from harness.graph import node
from mirror_ops.measure.within import leak_within, psnr_within

from .edits_tasks import GROUPS, TASKS, Case, cases_of
from .table import show, write
from .world import world

DRAWS = 8
ROUNDING = 1e-12    # of a mean of equal pictures


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench edits-bound", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=8, help="scenes of each task (default 8)")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--seeds", type=int, default=0, help="noises under which our own edit is made as well")
    parser.add_argument("--decoded", action="store_true", help="also what bounds the decoded picture outside")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    with torch.inference_mode():
        rows = [row for group in args.groups for task in GROUPS[group] for row in [bound(task.name, args)]]
    show([{name: f"{value:.2f}" if isinstance(value, float) else value or "-" for name, value in row.items()}
          for row in [*rows, mean(rows)]], f"what {args.scenes} pictures a task leave open, PSNR inside in dB")
    write(args.json, {"rows": rows})
    return 0


def bound(task: str, args) -> dict:
    """One row: of all scenes together."""
    cases = cases_of(TASKS[task], args.scenes, held_out=True)
    found = [spread(case) for case in cases]
    errors = {name: decibels(np.mean([one[name] for one in found])) for name in ("any", "mean", "coded")}
    left = sorted({name for one in found for name in one["open"]})
    leak = float(np.mean([one["leak"] for one in found]))
    return {"task": task, "open": ", ".join(left), **errors, "leak": leak,
            **(of_seeds(cases, args) if args.seeds else {}), **(of_decoding(cases, args) if args.decoded else {})}


def mean(rows: list[dict]) -> dict:
    """The row of their means; nothing where a task has no figure."""
    return {name: float(np.mean(values)) if None not in (values := [row[name] for row in rows]) else None
            for name in rows[0] if name not in ("task", "open")} | {"task": "mean", "open": ""}


def spread(case: Case) -> dict:
    """Mean squared errors inside of equally good answers against the exact one, and in which details they differ."""
    before, after, mask = case.pictures()
    source, truth, left = planes(before), planes(after), open_details(case)
    others = [planes(drawn(redrawn(case.scenes[1], left, case, draw))) for draw in range(DRAWS)]
    coded = [planes(world().vae.decode(world().vae.encode(other.movedim(1, -1)))) for other in others]
    seen = [name for name in left if any(error(planes(drawn(redrawn(case.scenes[1], [name], case, draw))), truth, mask)
                                         for draw in range(DRAWS))]
    return {"open": seen, "any": np.mean([error(other, truth, mask) for other in others]),
            "mean": error(torch.stack(others).mean(0), truth, mask),
            "coded": np.mean([error(other, truth, mask) for other in coded]),
            "leak": np.mean([float(leak_within(other, source, truth, mask)) for other in coded])}


def open_details(case: Case) -> list[str]:
    """The uncaptioned details that can be drawn anew without a change of the picture, each alone."""
    start = case.scenes[0]
    picture, names = drawn(start), [field.name for field in fields(start.nuisance)]
    return [name for name in names
            if all(torch.equal(drawn(redrawn(start, [name], case, draw)), picture) for draw in range(DRAWS))]


def redrawn(scene, names: list[str], case: Case, draw: int):
    """The scene with these details of another, which no bench looks at."""
    other = world().scene.scene(9_000_000 + DRAWS * (case.seed % world().scene.HELD_OUT) + draw).nuisance
    return replace(scene, nuisance=replace(scene.nuisance, **{name: getattr(other, name) for name in names}))


def drawn(scene) -> Tensor:
    """[1, H, W, 3] in [0, 1]."""
    return world().image(scene)


def planes(image: Tensor) -> Tensor:
    return image.movedim(-1, 1).float()


def error(x: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Mean squared error inside; 0 for equal pictures."""
    return float((10 ** (-psnr_within(x, truth, mask) / 10)).mean().detach())


def decibels(mse: float) -> float | None:
    """PSNR; None where there is no error but rounding."""
    return float(-10 * np.log10(mse)) if mse > ROUNDING else None


def of_seeds(cases: list[Case], args) -> dict:
    """Our own edit under several noises: any one, their mean, and one against another."""
    from .edit_methods import METHODS
    from .edits_measure import embedded
    stage, method = embedded(args.steps), METHODS["ours"]
    stage.share(cases)
    made = [planes(stage.run(method, {**method.published, "seed": 1000 * seed}, cases).pictures)
            for seed in range(args.seeds)]
    _, truth, mask = (torch.cat(parts) for parts in zip(*(case.pictures() for case in cases), strict=True))
    truth = planes(truth)
    return {"ours": decibels(np.mean([error(x, truth, mask) for x in made])),
            "mean of noises": decibels(error(torch.stack(made).mean(0), truth, mask)),
            "noise to noise": decibels(error(made[0], made[-1], mask))}


def of_decoding(cases: list[Case], args) -> dict:
    """PSNR outside of decoded pictures, mean of the scenes: the answer's cells put in, ours kept to them, and ours."""
    from .edit_methods import METHODS
    from .edits_measure import embedded
    stage, method, vae = embedded(args.steps), METHODS["ours-decoded"], world().vae
    stage.share(cases)
    before, after, mask = (torch.cat(parts) for parts in zip(*(case.pictures() for case in cases), strict=True))
    source, answer = vae.encode(before), vae.encode(after)
    cells = max_pool2d(mask, before.shape[1] // source.shape[2])
    allowed = interpolate(cells, size=before.shape[1:3])[:, 0]

    def kept_to(g, w, **settings):
        return method.build(g, w, mask=g.add(node(lambda: allowed, ("MASK",)))(), **settings)

    made = {"answer's cells": vae.decode(torch.lerp(source, answer, cells)),
            "ours in them": stage.run(replace(method, build=kept_to), method.published, cases).pictures,
            "ours decoded": stage.run(method, method.published, cases).pictures}
    return {name: float(psnr_within(planes(x), planes(before), 1 - mask).mean()) for name, x in made.items()}
