"""The attribute classifier: pictures blurred, tinted and noised at random, so that it can also read decoded ones."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ..classifier import SIZE, Classifier
from ..scene import scene
from .data import pictures
from .loop import bfloat16, fit, parallel
from .vae import to_tensor

STEPS, BATCH, LR = 1500, 64, 2e-3


def train(folder: Path, out: Path, workers: int, scenes: int, steps: int = STEPS) -> None:
    """Train on the first `scenes` training scenes and write the moving average to `out`."""
    pictures(folder, scenes)
    parallel(_task, workers, folder, out, scenes, steps)


def _task(rank, workers, folder, out, scenes, steps):
    torch.manual_seed(0)
    data, model, share = pictures(folder, scenes), Classifier(), BATCH // workers

    def loss(step):
        rng = np.random.default_rng([step, rank])
        rows = np.sort(rng.integers(scenes, size=share))
        x = _spoil(F.interpolate(to_tensor(data[rows]), size=(SIZE, SIZE), mode="area"), rng)
        labels = [scene(int(i)).labels() for i in rows]
        with bfloat16():
            logits = model(x)
        return sum(F.cross_entropy(v.float(), torch.tensor([y[k] for y in labels]), label_smoothing=.02)
                   for k, v in logits.items())

    average = fit({"classifier": model}, loss, steps=steps, lr=LR, name="classifier", rank=rank, workers=workers,
                  checkpoint=folder / "classifier.pt", origin=str(scenes), ema=.995)
    if rank == 0:
        torch.save(average["classifier"], out)


def _spoil(x, rng):
    if rng.random() < .5:
        small = int(rng.integers(28, 56))
        x = F.interpolate(F.interpolate(x, size=small, mode="area"), size=SIZE, mode="bilinear")
    if rng.random() < .5:
        x = x.flip(-1)
    x = x * float(rng.uniform(.92, 1.08)) + float(rng.uniform(-.06, .06))
    return x + float(rng.uniform(0, .08)) * torch.from_numpy(rng.standard_normal(x.shape, np.float32))
