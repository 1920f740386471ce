"""Training pictures, rendered once into a file that all processes map."""
from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from mirror_ops.storage.whole_file import whole_file

from ..render import SIZE, render_array
from ..scene import ATTRIBUTES, HELD_OUT, Scene, scene

PICTURES, EDITS = "pictures", "edits"       # scenes, and the same with one attribute changed


def pictures(folder: Path, count: int, first: int = 0, kind: str = PICTURES) -> np.ndarray:
    """Scenes `first`..`first + count`, uint8 [count, H, W, 3], mapped read-only; rendered on all cores if absent."""
    if first < HELD_OUT < first + count:
        raise ValueError(f"scenes {first} to {first + count} would mix training and held-out scenes (from {HELD_OUT})")
    path = folder / f"{kind}-{first}-{count}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        seeds = [range(first + a, first + min(a + 250, count)) for a in range(0, count, 250)]
        with whole_file(path) as part, ProcessPoolExecutor(os.cpu_count()) as pool:
            array = np.lib.format.open_memmap(part, "w+", np.uint8, (count, SIZE, SIZE, 3))
            for i, chunk in enumerate(pool.map(partial(_draw, kind), seeds)):
                array[i * 250:i * 250 + len(chunk)] = chunk
                print(f"\rrendering {min((i + 1) * 250, count)}/{count}", end="", flush=True)
            print()
            array.flush()
    return np.load(path, mmap_mode="r")


def _draw(kind, seeds) -> np.ndarray:
    return np.stack([render_array(SCENE[kind](s)) for s in seeds])


def edit_of(seed: int) -> Scene:
    """The scene of a seed with one of its attributes changed."""
    before, rng = scene(seed), np.random.default_rng([seed, 3])
    name = list(ATTRIBUTES)[rng.integers(len(ATTRIBUTES))]
    others = [value for value in ATTRIBUTES[name] if value != getattr(before, name)]
    return before.with_(**{name: others[rng.integers(len(others))]})


SCENE = {PICTURES: scene, EDITS: edit_of}
