"""The edits that are measured: scenes of the embedded world, what each is changed to, and the exact answer."""

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
class Task:
    """One attribute changed. `changes`: (before, after), taken in turn by the scenes."""
    name: str
    attribute: str
    changes: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Case:
    """One scene and its edit."""
    task: Task
    seed: int
    change: tuple[str, str]

    @property
    def place(self) -> list[str]:
        """Where it stands among all cases: the task, and the scene's number."""
        return [self.task.name.replace(" ", "-"), str(self.seed)]

    @property
    def shown(self) -> bool:
        """Whether it has a column on its task's sheet."""
        return self.seed % world().scene.HELD_OUT < SHOWN

    @property
    def scenes(self) -> tuple:
        """(before, after)."""
        start = world().scene.scene(self.seed)
        return tuple(start.with_(**{self.task.attribute: value}) for value in self.change)

    @property
    def captions(self) -> tuple[str, str]:
        """(before, after) in the world's standard wording, equally long."""
        return tuple(world().scene.caption(s) for s in self.scenes)

    @property
    def sentences(self) -> tuple[str, str]:
        """(source, target) captions for an edit direction, one a line."""
        return sentences(self.task.attribute, self.change)

    @property
    def wanted(self) -> dict[str, str]:
        """All attributes after the edit."""
        return world().scene.describe(self.scenes[1])

    def pictures(self) -> tuple[Tensor, Tensor, Tensor]:
        """(the picture [1, H, W, 3], the exact answer [1, H, W, 3], where they differ [1, 1, H, W])."""
        render = world().render
        drawn = [render.render(s) for s in self.scenes]
        mask = torch.from_numpy(render.difference_mask(*drawn)).float()[None, None]
        before, after = (torch.from_numpy(np.asarray(p, np.float32) / 255)[None] for p in drawn)
        return before, after, mask


TASKS = {task.name: task for task in (
    Task("cat to dog", "species", (("cat", "dog"),)),
    Task("fox to dog", "species", (("fox", "dog"),)),
    Task("plain to striped", "pattern", (("plain", "striped"),)),
    Task("no glasses to glasses", "glasses", (("no", "yes"),)),
    Task("hat added", "hat", (("none", "red"), ("none", "blue"), ("none", "green"), ("none", "yellow"))),
    Task("hat removed", "hat", (("red", "none"), ("blue", "none"), ("green", "none"), ("yellow", "none"))),
    Task("coat colour", "coat", (("orange", "gray"), ("white", "brown"), ("black", "orange"), ("gray", "pink"))),
    Task("background", "background", (("blue", "green"), ("pink", "blue"), ("yellow", "purple"), ("gray", "yellow"))),
)}


def cases_of(task: Task, scenes: int, held_out: bool) -> list[Case]:
    """The first `scenes` scenes of a task, held-out or of the training set; its changes in turn."""
    first = world().scene.HELD_OUT if held_out else 0
    return [Case(task, first + i, task.changes[i % len(task.changes)]) for i in range(scenes)]


@cache
def sentences(attribute: str, change: tuple[str, str]) -> tuple[str, str]:
    """(source, target): one caption a line, of the same training scenes with the one value and with the other."""
    w = world()
    scenes = [w.scene.scene(seed) for seed in range(SENTENCES)]
    return tuple("\n".join(w.scene.caption(s.with_(**{attribute: value})) for s in scenes) for value in change)
