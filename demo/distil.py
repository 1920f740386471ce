"""Distils an edit of the embedded world into a small network: python run.py distil.

Scenes are drawn to a folder, edited there by a shipped graph (the folder job of `run.py translate`: stopped, it goes
on), the good edits are kept as pairs, and a network is trained on them. The file says how it was made.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .classifier import attributes
from .classifier import load as load_classifier
from .graphs import FILES
from .render import render
from .scene import ATTRIBUTES, Scene, scene

EDITS = Path(__file__).parent / "edits"
WORKFLOW = Path(__file__).parents[1] / "workflows" / f"{FILES['edit_own_picture']}.json"
WORDS = {"source": "a photo of a {}", "target": "a photo of a {}"}
ATTRIBUTE = "species"
LOSSES = {"adversarial": 0.01, "pixels": 0.0}


def main(argv: list[str]) -> int:
    try:
        return distilled(parse(argv))
    except (OSError, ValueError) as error:  # an unreadable base, too few pairs, a full disk: each has its sentence
        print(f"run.py distil: {error}", file=sys.stderr)
        return 1


def distilled(args: argparse.Namespace) -> int:
    """Raises OSError or ValueError, with a sentence."""
    from mirror_ops.distillation import network
    from mirror_ops.distillation.pairs import LEAST
    edits, minutes = list(zip(args.source, args.target, strict=True)), {}
    base = None if args.base is None else network.load(args.base)
    name = " and ".join(f"{source} to {target}" for source, target in edits)
    folder = args.folder / name
    made = [taught(args, edit, minutes) if not args.exact else exact_pairs(range(args.pictures), *edit)
            for edit in edits]
    pairs, share = [pair for kept in made for pair in kept], sum(map(len, made)) / (args.pictures * len(edits))
    print(f"{len(pairs)} pairs, {share:.0%} of the pictures", flush=True)
    if len(pairs) < LEAST:
        raise ValueError(f"of {args.pictures} pictures {len(pairs)} edits were good enough to learn from, and training "
                         f"takes {LEAST} or more: give more --pictures")
    edit, minutes["training"] = trained(args, pairs, folder, base)
    file = args.out or EDITS / f"{name.replace(' ', '_')}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save(edit, file, args, {"edit": name, "pairs": len(pairs), "share_kept": round(share, 3), "minutes": minutes})
    print(f"wrote {file}: {file.stat().st_size / 1e6:.2f} MB; minutes of processor time: {json.dumps(minutes)}")
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    from harness.environment import cache_root
    from mirror_ops.distillation.pairs import LEAST
    parser = argparse.ArgumentParser(prog="run.py distil", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_species = partial(parser.add_argument, nargs="+", choices=ATTRIBUTES[ATTRIBUTE], metavar="SPECIES")
    add_species("--source", default=["fox"], help="species in the pictures (default fox)")
    add_species("--target", default=["dog"], help="species instead, one for each (default dog)")
    add_number = partial(parser.add_argument, type=one_or_more, metavar="N")
    add_number("--pictures", default=400, help="pictures of each edit (default 400)")
    add_number("--steps", default=3000, help="of training (default 3000)")
    add_number("--batch", default=8, help="crops at each step (default 8)")
    add_number("--width", default=8, help="of the network at full size, in channels (default 8)")
    parser.add_argument("--loss", choices=LOSSES, default="adversarial")
    parser.add_argument("--base", type=Path, metavar="FILE", help="another edit's file, to start from its weights")
    parser.add_argument("--part", action="store_true", help="change only a small part of the base's weights")
    parser.add_argument("--exact", action="store_true", help="learn from the renderer's exact answers: the bound")
    parser.add_argument("--replace", action="store_true", help="make edits again that an earlier version has made")
    parser.add_argument("--folder", type=Path, default=cache_root() / "distil", help="for pictures and unfinished work")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: demo/edits/SOURCE_to_TARGET.safetensors")
    args = parser.parse_args(argv)
    if len(args.source) != len(args.target):
        parser.error(f"{len(args.source)} --source and {len(args.target)} --target: give one for each edit")
    if args.pictures * len(args.source) < LEAST:
        parser.error(f"--pictures {args.pictures}: training takes {LEAST} pairs or more")
    if args.part and not args.base:
        parser.error("--part needs a --base")
    return args


def one_or_more(text: str) -> int:
    """Raises argparse.ArgumentTypeError for what is no such number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of 1 or more")
    return int(text)


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
    translate(folder / "pictures", folder / "edits", *edit, args.replace)
    minutes["pairs"] = round(minutes.get("pairs", 0) + seconds_of(folder / "edits", args.pictures) / 60, 1)
    return kept_pairs(folder / "pictures", folder / "edits", range(args.pictures), edit[1])


def draw(folder: Path, count: int, source: str, target: str) -> None:
    """The scenes as PNG files, which `translate` then finds; what is there already stays."""
    from mirror_ops.storage.whole_file import whole_file
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        file = folder / f"{seed:06}.png"
        if not file.exists():
            with whole_file(file) as part:          # a kill must leave no half of a picture
                render(before_and_after(seed, source, target)[0]).save(part, "PNG")


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


def translate(pictures: Path, edits: Path, source: str, target: str, replace: bool = False) -> None:
    """The folder job, which tries again what failed before, and goes on without what fails. Raises ValueError with its
    own words if it can't be done."""
    from folders import JobError, command
    given = [f"--set={setting}" for setting in settings(source, target)]
    options = [str(pictures), str(edits), "--workflow", str(WORKFLOW), "--cpu", "--retry-failed", *given]
    try:
        command.translate(command.parser().parse_args([*options, *["--replace"] * replace]))
    except JobError as error:
        raise ValueError(str(error)) from error


def seconds_of(edits: Path, pictures: int) -> float:
    """Processor time that the folder job has taken for the first so many pictures, in all its runs."""
    from folders.ledger import FOLDER, Ledger
    names = {f"{seed:06}.png" for seed in range(pictures)}
    rows = [row for ledger in sorted((edits / FOLDER).iterdir()) for row in Ledger(ledger).rows()]
    return sum(row["cpu_seconds"] for row in rows if row["name"] in names)


def kept_pairs(pictures: Path, edits: Path, seeds: range, target: str) -> list:
    """The pairs that the rule keeps: the region is where the graph changed the picture; the score is 1
    where the classifier sees what was asked for, and must be."""
    from mirror_ops.distillation.pairs import Pair, Rule, figures_of
    from mirror_ops.regions.found import picture_region
    classifier, rule, made = load_classifier(), Rule(least_score=1.0), []
    for seed in (seed for seed in seeds if (edits / f"{seed:06}.png").is_file()):
        before, after = (pixels(Image.open(place / f"{seed:06}.png").convert("RGB")) for place in (pictures, edits))
        one, other = (part[None].float() / 255 for part in (before, after))
        region = picture_region(one, other)
        [seen] = attributes(classifier, other.movedim(1, -1))
        if not rule.why_not(figures_of(one, other, region, float(seen[ATTRIBUTE] == target))):
            made.append(Pair(before, after, (region[0] * 255).round().byte()))
    return made


def trained(args, pairs: list, folder: Path, base=None) -> tuple:
    """(network, minutes of processor time in all runs): resumable, with a line of progress. Raises OSError."""
    from mirror_ops.distillation import network
    from mirror_ops.distillation.pairs import digest
    from mirror_ops.distillation.training import Plan, begun, seconds_left, train
    shape = network.Shape(args.width) if base is None else network.shape_of(base)
    plan = Plan(steps=args.steps, batch=args.batch, adversarial=LOSSES[args.loss], shape=shape,
                base="" if base is None else network.digest(base), part=args.part, pairs=digest(pairs))
    unfinished = folder / f"training-{plan.digest}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    state, found = begun(unfinished, plan, base=base)
    print(f"{found} Training takes about {seconds_left(state, pairs) / 60:.0f} minutes.".strip(), flush=True)

    def on_step(state, losses: dict) -> None:
        if stops:
            raise KeyboardInterrupt
        if state.step % 25 == 0 or state.step == plan.steps:
            left = state.spent / state.step * (plan.steps - state.step) / 60
            words = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
            print(f"\rstep {state.step} of {plan.steps}: {words}; {left:.1f} minutes of processor time left   ", end="",
                  flush=True)
        if state.step % 200 == 0:
            keep(state, unfinished)

    with between_steps() as stops:
        try:
            train(state, pairs, on_step)
        finally:
            print()
            keep(state, unfinished)
    return state.averaged(), round(state.spent / 60, 1)


@contextlib.contextmanager
def between_steps():
    """A list in which Ctrl-C leaves a mark, instead of an end in the middle of a step."""
    stops: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: stops.append(number))
    try:
        yield stops
    finally:
        signal.signal(signal.SIGINT, before)


def keep(state, unfinished: Path) -> None:
    """The training goes on where this fails, and an end of another kind is not hidden by it."""
    try:
        state.save(unfinished)
    except OSError as error:
        print(f"\n{error}; the training goes on, but a stop loses what was learnt since it was last kept", flush=True)


def save(edit, file: Path, args, about: dict) -> None:
    from mirror_ops.distillation import network
    network.save(edit, file, {
        **about, "steps": args.steps, "batch": args.batch, "loss": args.loss, "exact_pairs": args.exact,
        "shape": network.shape_fields(network.shape_of(edit)), "base": str(args.base.name if args.base else ""),
        "part": args.part, "made_by": "python run.py distil",
    })
