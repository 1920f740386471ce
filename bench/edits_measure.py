"""Running one method on a batch of scenes, and its figures against the exact answer. Results are kept on disk."""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.boot import Host
from harness.graph import Graph, node
from mirror_ops.measure.metrics import relative_displacement
from mirror_ops.measure.perceptual import structure_distance
from mirror_ops.measure.within import intersection_over_union, leak_within, psnr_within, sharpness_within, ssim_within

from .edit_methods import STEPS, Made, Method, Wires
from .edits_tasks import Case
from .world import save, world

TYPES = ("MODEL", "CLIP", "VAE", "IMAGE", "IMAGE", *("CONDITIONING",) * 5, "MIRROR_DIRECTION", *("STRING",) * 3)
KEPT = 600      # outputs of nodes that serve several methods: most share an inversion


class Edited(NamedTuple):
    """What a method made of some pictures."""
    pictures: Tensor                    # [B, H, W, 3]
    displacement: Tensor | None         # [B] relative, of the reconstruction; None without one
    region: Tensor | None               # [B, 1, H, W] in [0, 1], at the pictures' size; None where it finds none


class Stage:
    """Hands scenes to graphs, and counts what the network does for them. `kind`: what `Wires` says of the model."""

    def __init__(self, host: Host, model, clip, vae, steps: int = STEPS, **kind: int):
        self.host, self.clip, self.vae, self.steps, self.kind = host, clip, vae, steps, kind
        self.model, self.count = model.clone(), host.pack_module("nodes.host.denoiser").Count()
        self.count.attach(self.model)
        self.values: tuple = ()
        self.given = node(lambda: self.values, TYPES)
        host.nodes.NODE_CLASS_MAPPINGS[self.given].IS_CHANGED = lambda: str(self.serving)
        self.serving: list = []                 # the places of the cases that the values are of
        self.directions: dict = {}
        self.shared, self.sharing = None, []    # the executor that keeps outputs, and the places of its cases
        importlib.import_module("comfy.utils").PROGRESS_BAR_ENABLED = False     # of stock samplers; benches have one

    def share(self, cases: Sequence) -> None:
        """While these cases are served, nodes that several graphs have in common run once."""
        places = [case.place for case in cases]
        if self.shared is None or places != self.sharing:
            self.shared, self.sharing = self.host.executor(keep=KEPT), places

    def run(self, method: Method, settings: dict, cases: Sequence) -> Edited:
        """The edits of some cases, together unless the graph reads words."""
        g = Graph()
        links = map(g.add(self.given), range(len(TYPES)))
        changes = max(len(case.in_turn) for case in cases) - 1
        wires = Wires(*links, host=self.host, changes=changes, steps=self.steps, **self.kind)
        made = method.build(g, wires, **settings)
        words = (wires.words_before, wires.words_after, wires.words_blend)
        reads_words = any(link in words for entry in g.values() for link in entry["inputs"].values())
        picture = made.picture or g.add("VAEDecode", samples=made.edited, vae=wires.vae)()
        groups = [[case] for case in cases] if reads_words else [cases]
        done = [self._run(g, made, picture, group) for group in groups]
        return Edited(*(None if part[0] is None else torch.cat(part) for part in zip(*done, strict=True)))

    def _run(self, g: Graph, made: Made, picture: list, cases: Sequence) -> Edited:
        places = [case.place for case in cases]
        if self.serving != places:
            self.values, self.serving = self._values(cases), places
        run = self.host.run_graph({key: dict(entry) for key, entry in g.items()}, executor=self.shared)

        def at(link):
            return run.outputs[link[0]][link[1]]

        moved = None
        if made.mirror is not None:
            mirror = at(made.mirror)
            moved = relative_displacement(mirror.reconstruction[-1], mirror.latents[-1])
        pictures, region = at(picture), None
        if made.region is not None:
            mask = at(made.region).reshape(len(pictures), 1, *at(made.region).shape[-2:]).float()
            region = torch.nn.functional.interpolate(mask, size=pictures.shape[1:3], mode="bilinear")
        return Edited(pictures, moved, region)

    def _values(self, cases: list) -> tuple:
        before, after, _ = (torch.cat(parts) for parts in zip(*(c.pictures() for c in cases), strict=True))
        said = [[*c.captions, *((*c.in_turn[1:], c.captions[1])[k] for k in (0, 1))] for c in cases]
        texts = [self._prompts(list(of_all)) for of_all in zip(*said, strict=True)]
        return (self.model, self.clip, self.vae, before, after, *texts, self._prompts([""]), self._directions(cases),
                *cases[0].captions, cases[0].blend_words)

    def _prompts(self, captions: list[str]) -> list:
        """CONDITIONING that holds a caption for each picture of a batch."""
        entries = [self.clip.encode_from_tokens_scheduled(self.clip.tokenize(caption))[0] for caption in captions]
        options = dict(entries[0][1])
        if options.get("pooled_output") is not None:
            options["pooled_output"] = torch.cat([options["pooled_output"] for _, options in entries])
        return [[torch.cat([text for text, _ in entries]), options]]

    def _directions(self, cases: list):
        """MIRROR_DIRECTION that holds one for each picture, from the pack's own node; made once, so that no method's
        seconds hold it."""
        execute = self.host.pack_module("nodes.edit.direction").CLIPDomainDirection.execute
        for case in cases:
            if case.sentences not in self.directions:
                source, target = case.sentences
                given = {"clip": self.clip, "source": source, "target": target, "sentences": "as given"}
                self.directions[case.sentences] = execute(**given).args[0]
        each = [self.directions[case.sentences] for case in cases]
        pooled = None if each[0].pooled is None else torch.cat([one.pooled for one in each])
        return type(each[0])(torch.cat([one.delta for one in each]), pooled, each[0].meta)


@cache
def embedded(steps: int = STEPS) -> Stage:
    """The embedded world's stage."""
    w = world()
    return Stage(w.host, w.model, w.clip, w.vae, steps)


def measure(stage: Stage, name: str, method: Method, settings: dict, cases: list[Case]) -> tuple[list[dict], Tensor]:
    """(one record a scene, the edited pictures [B, H, W, 3])."""
    made = stage.run(method, settings, cases)
    found = figures(made.pictures, cases, made.region)
    return [{"method": name, "task": case.task.name, "seed": case.seed, **found[i],
             "displacement": None if made.displacement is None else float(made.displacement[i])}
            for i, case in enumerate(cases)], made.pictures


def alone(stage: Stage, method: Method, settings: dict, case) -> tuple[Tensor, dict[str, float]]:
    """(edited picture [1, H, W, 3], what it takes by itself). In a batch rewriting stops when its slowest picture does,
    so costs are measured here."""
    stage._values([case])                   # the direction, which serves all methods
    shared, stage.shared = stage.shared, None
    stage.count.forwards = stage.count.backwards = 0
    started = time.perf_counter()
    edited = stage.run(method, settings, [case]).pictures
    seconds, stage.shared = time.perf_counter() - started, shared
    forwards, backwards = stage.count.forwards, stage.count.backwards
    return edited, {"forwards": forwards, "backwards": backwards, "passes": forwards + 2 * backwards,
                    "seconds": seconds}


def figures(edited: Tensor, cases: list[Case], region: Tensor | None = None) -> list[dict]:
    """How near edited pictures [B, H, W, 3] are to the exact answers, and what the classifier sees in them."""
    before, after, mask = (torch.cat(parts) for parts in zip(*(c.pictures() for c in cases), strict=True))
    x, answer, source = (p.movedim(-1, 1).float() for p in (edited, after, before))
    values = {"inside_psnr": psnr_within(x, answer, mask), "outside_psnr": psnr_within(x, answer, 1 - mask),
              "inside_ssim": ssim_within(x, answer, mask), "outside_ssim": ssim_within(x, answer, 1 - mask),
              "leak": leak_within(x, source, answer, mask), "sharpness": sharpness_within(x, answer, mask),
              "structure": structure_distance(features(x), features(source))}
    iou = None if region is None else intersection_over_union(region, mask)
    seen = world().attributes(edited)
    return [{**{name: float(value[i]) for name, value in values.items()},
             "region_iou": None if iou is None else float(iou[i]), **judged(case, seen[i]),
             "each": each_attribute(case, seen[i], *(p[i:i + 1] for p in (x, answer, source)))}
            for i, case in enumerate(cases)]


def judged(case: Case, seen: dict[str, str]) -> dict[str, float]:
    """`success`: every edited attribute is seen; `kept`: the share of the others that are seen as they were."""
    right = {name: float(seen[name] == value) for name, value in case.wanted.items()}
    success = min(right.pop(name) for name in case.task.attributes)
    return {"success": success, "kept": float(np.mean(list(right.values())))}


def each_attribute(case: Case, seen: dict[str, str], x: Tensor, answer: Tensor, source: Tensor) -> dict | None:
    """Of tasks that change several attributes: success, inside_psnr and leak of each in its own area."""
    if len(case.task.attributes) == 1:
        return None
    return {name: {"success": float(seen[name] == case.wanted[name]),
                   "inside_psnr": float(psnr_within(x, answer, area)),
                   "leak": float(leak_within(x, source, answer, area))} for name, area in case.areas().items()}


def features(x: Tensor) -> Tensor:
    """[B, 16 * 16, 64] what the attribute classifier's second stage sees in pictures [B, 3, 128, 128] in [0, 1]."""
    small = torch.nn.functional.interpolate(2 * x - 1, size=64, mode="area")
    return world().classifier.body[:12](small).flatten(2).mT


class Book:
    """Records on disk, so that a run that was stopped goes on where it was. `state`: what else figures depend on."""

    def __init__(self, folder: Path, state: list, fresh: bool = False):
        self.folder, self.state = folder, state
        self.path = folder / "measured.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            self.path.unlink(missing_ok=True)
        text = self.path.read_text() if self.path.exists() else ""
        self.records = {entry["key"]: entry["record"] for entry in map(parsed, text.splitlines()) if entry}
        if text and not text.endswith("\n"):
            self.path.write_text(text + "\n")       # the run was stopped in the middle of a line

    def key(self, name: str, settings: dict, case) -> str:
        return json.dumps([self.state, name, settings, case.place])

    def find(self, name: str, settings: dict, cases: list) -> list[dict] | None:
        """The records of all these cases, or None if one is missing."""
        found = [self.records.get(self.key(name, settings, case)) for case in cases]
        return None if None in found else found

    def add(self, name: str, settings: dict, cases: list, records: list[dict]) -> None:
        with self.path.open("a") as file:
            for case, record in zip(cases, records, strict=True):
                key = self.key(name, settings, case)
                self.records[key] = record
                file.write(json.dumps({"key": key, "record": record}) + "\n")

    def picture(self, name: str, case) -> Path:
        """Where the edited picture of a case is kept, apart from those of other sources, weights and steps."""
        *above, last = case.place
        state = hashlib.sha256(json.dumps(self.state).encode()).hexdigest()[:8]
        return self.folder.joinpath("pictures", state, *above, name, f"{last}.png")

    def current(self) -> list[dict]:
        """The records of this state."""
        return [record for key, record in self.records.items() if json.loads(key)[0] == self.state]

    def keep(self, name: str, cases: list, pictures: Tensor) -> None:
        """Save the edited pictures that sheets show."""
        for case, picture in zip(cases, pictures, strict=True):
            if case.shown:
                save(picture, self.picture(name, case))


def parsed(line: str) -> dict | None:
    """A line of the book; None for one that was cut short when the run was stopped."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
