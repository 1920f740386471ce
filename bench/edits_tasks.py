"""The edits that are measured: scenes of the embedded world, what each is changed to, and the exact answer.

Settings are chosen on TUNED, on training scenes, and nowhere else. OTHER has changes that no setting was chosen on, and
SEVERAL changes of two and three attributes at once; like TUNED they are reported on held-out scenes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from .world import world

SENTENCES = 64                  # captions on each side of an edit direction
SHOWN = 8                       # scenes of each task on its sheet


@dataclass(frozen=True)
class Change:
    """Attributes that are changed together: {name: value} before, and after."""
    before: dict[str, str]
    after: dict[str, str]

    @property
    def values(self) -> tuple[str, str]:
        """(before, after) in words."""
        return tuple(", ".join(side.values()) for side in (self.before, self.after))


@dataclass(frozen=True)
class Task:
    """One kind of edit. `changes` are taken in turn by the scenes."""
    name: str
    changes: tuple[Change, ...]

    @property
    def attributes(self) -> tuple[str, ...]:
        return tuple(self.changes[0].before)


@dataclass(frozen=True)
class Case:
    """One scene and its edit."""
    task: Task
    seed: int
    change: Change

    @property
    def place(self) -> list[str]:
        """Where it stands among all cases: the task, and the scene's number."""
        return [self.task.name.replace(" ", "-").replace(",", ""), str(self.seed)]

    @property
    def shown(self) -> bool:
        """Whether it has a column on its task's sheet."""
        return self.seed % world().scene.HELD_OUT < SHOWN

    @property
    def scenes(self) -> tuple:
        """(before, after)."""
        start = world().scene.scene(self.seed)
        return start.with_(**self.change.before), start.with_(**self.change.after)

    @property
    def captions(self) -> tuple[str, str]:
        """(before, after) in the world's standard wording, equally long."""
        return tuple(world().scene.caption(s) for s in self.scenes)

    @property
    def in_turn(self) -> tuple[str, ...]:
        """Captions of the picture with none of the changes, with the first, with the first two, ... with all."""
        start = self.scenes[0]
        done = [dict(list(self.change.after.items())[:k]) for k in range(len(self.task.attributes) + 1)]
        return tuple(world().scene.caption(start.with_(**changed)) for changed in done)

    @property
    def sentences(self) -> tuple[str, str]:
        """(source, target) captions for an edit direction, one a line."""
        return sentences(*(tuple(side.items()) for side in (self.change.before, self.change.after)))

    @property
    def blend_words(self) -> str:
        """The words of the captions that stand where the picture changes, for a local blend."""
        before, after = self.scenes
        words = {"coat": [before.species], "pattern": [before.species], "species": [before.species, after.species]}
        return ", ".join(dict.fromkeys(w for name in self.task.attributes for w in words.get(name, [name])))

    @property
    def wanted(self) -> dict[str, str]:
        """All attributes after the edit."""
        return world().scene.describe(self.scenes[1])

    def pictures(self) -> tuple[Tensor, Tensor, Tensor]:
        """(the picture [1, H, W, 3], the exact answer [1, H, W, 3], where they differ [1, 1, H, W])."""
        drawn = [world().render.render(s) for s in self.scenes]
        before, after = (torch.from_numpy(np.asarray(p, np.float32) / 255)[None] for p in drawn)
        return before, after, _difference(*drawn)

    def areas(self) -> dict[str, Tensor]:
        """{attribute: where the answer would differ without its change [1, 1, H, W]}."""
        after, draw = self.scenes[1], world().render.render
        without = {name: draw(after.with_(**{name: self.change.before[name]})) for name in self.task.attributes}
        return {name: _difference(draw(after), other) for name, other in without.items()}


def _difference(one, other) -> Tensor:
    return torch.from_numpy(world().render.difference_mask(one, other)).float()[None, None]


def single(name: str, attribute: str, *changes: tuple[str, str]) -> Task:
    """A task that changes one attribute."""
    return Task(name, tuple(Change({attribute: before}, {attribute: after}) for before, after in changes))


def several(name: str, attributes: tuple[str, ...], *changes: tuple[tuple[str, ...], tuple[str, ...]]) -> Task:
    """A task that changes several."""
    return Task(name, tuple(Change(*(dict(zip(attributes, side, strict=True)) for side in change))
                            for change in changes))


TUNED = (
    single("cat to dog", "species", ("cat", "dog")),
    single("fox to dog", "species", ("fox", "dog")),
    single("plain to striped", "pattern", ("plain", "striped")),
    single("no glasses to glasses", "glasses", ("no", "yes")),
    single("hat added", "hat", ("none", "red"), ("none", "blue"), ("none", "green"), ("none", "yellow")),
    single("hat removed", "hat", ("red", "none"), ("blue", "none"), ("green", "none"), ("yellow", "none")),
    single("coat colour", "coat", ("orange", "gray"), ("white", "brown"), ("black", "orange"), ("gray", "pink")),
    single("background", "background", ("blue", "green"), ("pink", "blue"), ("yellow", "purple"), ("gray", "yellow")),
)
OTHER = (
    single("rabbit to bear", "species", ("rabbit", "bear")),
    single("bear to cat", "species", ("bear", "cat")),
    single("plain to spotted", "pattern", ("plain", "spotted")),
    single("striped to plain", "pattern", ("striped", "plain")),
    single("glasses removed", "glasses", ("yes", "no")),
    single("hat recoloured", "hat", ("red", "blue"), ("blue", "yellow"), ("green", "red"), ("yellow", "green")),
    single("other coats", "coat", ("brown", "white"), ("pink", "black"), ("orange", "pink"), ("gray", "white")),
    single("other backgrounds", "background", ("green", "pink"), ("purple", "gray"), ("blue", "yellow"),
           ("gray", "green")),
)
SEVERAL = (
    several("species and hat", ("species", "hat"), (("cat", "red"), ("rabbit", "green")),
            (("dog", "blue"), ("fox", "red"))),
    several("coat and glasses", ("coat", "glasses"), (("brown", "yes"), ("white", "no")),
            (("gray", "yes"), ("orange", "no"))),
    several("species, hat and background", ("species", "hat", "background"),
            (("bear", "green", "yellow"), ("dog", "yellow", "pink")),
            (("fox", "yellow", "gray"), ("cat", "red", "blue"))),
)
GROUPS = {"tuned": TUNED, "other": OTHER, "several": SEVERAL}
TASKS = {task.name: task for group in GROUPS.values() for task in group}


def group_of(task: str) -> str:
    """The group in which a task is."""
    return next(name for name, group in GROUPS.items() if TASKS[task] in group)


def cases_of(task: Task, scenes: int, held_out: bool) -> list[Case]:
    """The first `scenes` scenes of a task, held-out or of the training set; its changes in turn."""
    first = world().scene.HELD_OUT if held_out else 0
    return [Case(task, first + i, task.changes[i % len(task.changes)]) for i in range(scenes)]


@cache
def sentences(before: tuple, after: tuple) -> tuple[str, str]:
    """(source, target): one caption a line, of the same training scenes with the one set of values and the other."""
    w = world()
    scenes = [w.scene.scene(seed) for seed in range(SENTENCES)]
    return tuple("\n".join(w.scene.caption(s.with_(**dict(side))) for s in scenes) for side in (before, after))
