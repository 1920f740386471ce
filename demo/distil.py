"""Distils an edit of the embedded world into a small network: python run.py distil.

Scenes are drawn to a folder, edited there by a shipped graph (the folder job of `run.py translate`: stopped, it goes
on), the good edits are kept as pairs, and a network is trained on them. The file says how it was made.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .classifier import attributes
from .classifier import load as load_classifier
from .graphs import FILES
from .render import render
from .scene import Scene, scene

EDITS = Path(__file__).parent / "edits"
WORKFLOW = Path(__file__).parents[1] / "workflows" / f"{FILES['edit_own_picture']}.json"
WORDS = {"source": "a photo of a {}", "target": "a photo of a {}"}
ATTRIBUTE = "species"
LOSSES = {"adversarial": 0.01, "pixels": 0.0}


def main(argv: list[str]) -> int:
    args = parse(argv)
    edits, minutes = list(zip(args.source, args.target, strict=True)), {}
    name = " and ".join(f"{source} to {target}" for source, target in edits)
    folder = args.folder / name
    made = [taught(args, edit, minutes) if not args.exact else exact_pairs(range(args.pictures), *edit)
            for edit in edits]
    pairs, share = [pair for kept in made for pair in kept], sum(map(len, made)) / (args.pictures * len(edits))
    print(f"{len(pairs)} pairs, {share:.0%} of the pictures", flush=True)
    edit, minutes["training"] = trained(args, pairs, folder)
    file = args.out or EDITS / f"{name.replace(' ', '_')}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save(edit, file, args, {"edit": name, "pairs": len(pairs), "share_kept": round(share, 3), "minutes": minutes})
    print(f"wrote {file}: {file.stat().st_size / 1e6:.2f} MB; minutes of processor time: {json.dumps(minutes)}")
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    from harness.environment import cache_root
    parser = argparse.ArgumentParser(prog="run.py distil", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="+", default=["fox"], help="species in the pictures (default fox)")
    parser.add_argument("--target", nargs="+", default=["dog"], help="species instead, one for each (default dog)")
    parser.add_argument("--pictures", type=int, default=400, help="pictures of each edit (default 400)")
    parser.add_argument("--steps", type=int, default=3000, help="of training (default 3000)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=8, help="of the network at full size, in channels (default 8)")
    parser.add_argument("--loss", choices=LOSSES, default="adversarial")
    parser.add_argument("--base", type=Path, metavar="FILE", help="another edit's file, to start from its weights")
    parser.add_argument("--part", action="store_true", help="change only a small part of the base's weights")
    parser.add_argument("--exact", action="store_true", help="learn from the renderer's exact answers: the bound")
    parser.add_argument("--folder", type=Path, default=cache_root() / "distil", help="for pictures and unfinished work")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: demo/edits/SOURCE_to_TARGET.safetensors")
    args = parser.parse_args(argv)
    if len(args.source) != len(args.target):
        parser.error(f"{len(args.source)} --source and {len(args.target)} --target: give one for each edit")
    if args.part and not args.base:
        parser.error("--part needs a --base")
    return args


def before_and_after(seed: int, source: str, target: str) -> tuple[Scene, Scene]:
    start = scene(seed).with_(**{ATTRIBUTE: source})
    return start, start.with_(**{ATTRIBUTE: target})


def pixels(image: Image.Image) -> Tensor:
    """uint8 [C, H, W]."""
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).contiguous()


def exact_pairs(seeds: range, source: str, target: str) -> list:
    """Pairs whose second picture is the renderer's own answer."""
    from mirror_ops.distillation.pairs import Pair

    from .render import difference_mask
    made = []
    for seed in seeds:
        one, other = (render(s) for s in before_and_after(seed, source, target))
        region = torch.from_numpy(difference_mask(one, other)).byte()[None] * 255
        made.append(Pair(pixels(one), pixels(other), region))
    return made


def taught(args, edit: tuple[str, str], minutes: dict) -> list:
    """Pairs by the shipped graph that the rule keeps."""
    folder = args.folder / "{} to {}".format(*edit)
    draw(folder / "pictures", args.pictures, *edit)
    started = time.process_time()
    translate(folder / "pictures", folder / "edits", *edit)
    minutes["pairs"] = round(minutes.get("pairs", 0) + (time.process_time() - started) / 60, 1)
    return kept_pairs(folder / "pictures", folder / "edits", range(args.pictures), edit[1])


def draw(folder: Path, count: int, source: str, target: str) -> None:
    """The scenes as PNG files, which `translate` then finds; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        file = folder / f"{seed:06}.png"
        if not file.exists():
            render(before_and_after(seed, source, target)[0]).save(file)


def settings(source: str, target: str) -> list[str]:
    """What the graph is told: the same words for every picture."""
    words = {"what is in the picture": WORDS["source"].format(source),
             "what should be there": WORDS["target"].format(target)}
    told = [f"{title}.text={text}" for title, text in words.items()]
    return [*told, "MirrorEdit.polish=0"]  # polish decides what is open; a network learns the mean of it anyway


def teacher(host, source: str, target: str):
    """The graph whose edit is distilled, ready for a folder's pictures."""
    from folders.graph import prepare, read
    from folders.runner import classes_of
    nodes = read(WORKFLOW, host)
    return prepare(nodes, classes_of(nodes, host), settings(source, target))


def translate(pictures: Path, edits: Path, source: str, target: str) -> None:
    """The folder job; raises SystemExit with its own words if it can't be done."""
    from folders.command import main as job
    given = [f"--set={setting}" for setting in settings(source, target)]
    if job([str(pictures), str(edits), "--workflow", str(WORKFLOW), "--cpu", *given]):
        sys.exit(1)


def kept_pairs(pictures: Path, edits: Path, seeds: range, target: str) -> list:
    """The pairs that the rule keeps: the region is where the graph changed the picture; the score is 1
    where the classifier sees what was asked for, and must be."""
    from mirror_ops.distillation.pairs import Pair, Rule, figures_of
    from mirror_ops.regions.found import picture_region
    classifier, rule, made = load_classifier(), Rule(least_score=1.0), []
    for seed in seeds:
        before, after = (pixels(Image.open(place / f"{seed:06}.png").convert("RGB")) for place in (pictures, edits))
        one, other = (part[None].float() / 255 for part in (before, after))
        region = picture_region(one, other)
        [seen] = attributes(classifier, other.movedim(1, -1))
        if not rule.why_not(figures_of(one, other, region, float(seen[ATTRIBUTE] == target))):
            made.append(Pair(before, after, (region[0] * 255).round().byte()))
    return made


def trained(args, pairs: list, folder: Path) -> tuple:
    """(network, minutes of processor time): resumable; a line of progress and a sheet of pictures on the way."""
    from mirror_ops.distillation import network
    from mirror_ops.distillation.training import Plan, State, train
    base = None if args.base is None else network.load(args.base)
    shape = network.Shape(args.width) if base is None else network.shape_of(base)
    plan = Plan(steps=args.steps, batch=args.batch, adversarial=LOSSES[args.loss], shape=shape,
                base="" if base is None else network.digest(base), part=args.part)
    kind = "-".join(["exact" if args.exact else "taught", args.loss, *["part"] * args.part, plan.base or "alone"])
    unfinished = folder / f"training-{kind}-{len(pairs)}-{shape.width}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    state = State.load(unfinished, plan) or State(plan, base=base)
    begun, first, spent = time.process_time(), state.step, 0.0

    def on_step(state, losses: dict) -> None:
        nonlocal spent
        spent = time.process_time() - begun
        if state.step % 25 == 0 or state.step == plan.steps:
            left = spent / (state.step - first) * (plan.steps - state.step) / 60
            words = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
            print(f"\rstep {state.step} of {plan.steps}: {words}; {left:.1f} minutes of processor time left   ", end="",
                  flush=True)
        if state.step % 200 == 0:
            state.save(unfinished)

    try:
        train(state, pairs, on_step)
    finally:
        state.save(unfinished)
        print()
    return state.averaged(), round(spent / 60 * plan.steps / max(1, plan.steps - first), 1)


def save(edit, file: Path, args, about: dict) -> None:
    from mirror_ops.distillation import network
    network.save(edit, file, {
        **about, "steps": args.steps, "batch": args.batch, "loss": args.loss, "exact_pairs": args.exact,
        "shape": network.shape_fields(network.shape_of(edit)), "base": str(args.base.name if args.base else ""),
        "part": args.part, "made_by": "python run.py distil",
    })
