"""How good the embedded model is: autoencoder, caption following, the classifier itself, and whether it copies.

All on held-out scenes. Writes grids of pictures beside the JSON, or to output/demo-model.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from mirror_ops.measure.metrics import psnr

from .table import show, write
from .world import grid, save, world


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench demo-model", description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--samples", type=int, default=96, help="captions to sample")
    parser.add_argument("--scenes", type=int, default=512, help="held-out scenes for autoencoder and classifier")
    parser.add_argument("--training", type=int, default=20_000, help="training pictures to search for copies")
    args = parser.parse_args(argv)
    out = args.json.parent if args.json else Path("output", "demo-model")
    with torch.inference_mode():
        result = {**autoencoder(args.scenes, out), **sampling(args.samples, args.training, out)}
    write(args.json, result)
    return 0


def held_out(count: int, first: int = 0):
    scenes = world().scene
    return [scenes.scene(scenes.HELD_OUT + first + i) for i in range(count)]


def autoencoder(count: int, out: Path) -> dict:
    """PSNR of the round trip, and the classifier's accuracy on drawn and on decoded pictures."""
    w, scenes = world(), held_out(count)
    values, drawn, decoded, shown = [], [], [], []
    for i in range(0, count, 32):
        images = torch.cat([w.image(s) for s in scenes[i:i + 32]])
        back = w.vae.decode(w.vae.encode(images))
        values.append(psnr(back, images))
        drawn += w.attributes(images)
        decoded += w.attributes(back)
        shown += [images[:8], back[:8]] if i < 64 else []
    save(grid([list(row) for row in shown]), out / "autoencoder.png")
    values = torch.cat(values)
    print(f"\nautoencoder round trip, {count} held-out scenes: {values.mean():.2f} dB "
          f"(least {values.min():.2f}, most {values.max():.2f})")
    truth = [w.scene.describe(s) for s in scenes]
    right = [{"pictures": name, **accuracy(found, truth)} for name, found in (("drawn", drawn), ("decoded", decoded))]
    show(right, f"classifier, % right of {count} held-out scenes")
    return {"vae_psnr": float(values.mean()), "classifier": right}


def accuracy(found: list[dict], truth: list[dict]) -> dict[str, float]:
    """% right of each attribute."""
    return {k: 100 * float(np.mean([f[k] == t[k] for f, t in zip(found, truth, strict=True)])) for k in truth[0]}


def sampling(count: int, training: int, out: Path) -> dict:
    """Pictures from captions alone: 50 steps of DDIM at cfg 4. Attributes right, and distance to training pictures."""
    w, scenes = world(), held_out(count, first=50_000)
    images = []
    for i in range(0, count, 16):
        images.append(sample([w.scene.caption(s) for s in scenes[i:i + 16]], seed=i))
        print(f"\rsampling {min(i + 16, count)}/{count}", end="", flush=True)
    images = torch.cat(images)
    save(grid([list(images[i:i + 12]) for i in range(0, min(count, 96), 12)]), out / "samples.png")
    truth, found = [w.scene.describe(s) for s in scenes], w.attributes(images)
    each = accuracy(found, truth)
    every = 100 * float(np.mean([f == t for f, t in zip(found, truth, strict=True)]))
    show([{**each, "all six": every}], f"captions followed, % right of {count} samples (50 steps, cfg 4)")
    near = nearest(images, torch.cat([w.image(s) for s in scenes]), training, out)
    return {"samples": count, "attributes": each, "all_attributes": every, **near}


def sample(captions: list[str], seed: int) -> torch.Tensor:
    """[B, H, W, 3] one picture a caption, through the host's own sampling."""
    w = world()
    positive = [[torch.cat([w.prompt(c)[0][0] for c in captions]), {}]]
    latent = {"samples": torch.zeros(len(captions), w.vae.latent_channels, 16, 16)}
    settings = (seed, 50, 4.0, "ddim", "ddim_uniform")
    walked, = w.host.nodes.common_ksampler(w.model, *settings, positive, w.prompt(""), latent)
    return w.vae.decode(walked["samples"])


def nearest(samples: torch.Tensor, unseen: torch.Tensor, training: int, out: Path) -> dict:
    """Are samples copies? Distance (rms, 32 x 32 pixels) to the nearest training picture, for samples and, as the
    yardstick, for held-out pictures, which can't be copies."""
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        known = np.concatenate(list(pool.map(_thumbnails, [range(i, min(i + 500, training))
                                                           for i in range(0, training, 500)])))
    known = torch.from_numpy(known).float() / 255
    known = torch.cat([known, known.flip(2)]).flatten(1)                       # the model saw them mirrored as well

    def search(images):
        small = torch.nn.functional.interpolate(images.movedim(-1, 1), size=32, mode="area").movedim(1, -1).flatten(1)
        distance, index = torch.cdist(small, known).min(1)
        return distance / small.shape[1] ** .5, index

    (of_samples, index), (of_unseen, _) = search(samples), search(unseen)
    w = world()
    twins = [w.image(w.scene.scene(int(i) % training))[0] for i in index[:12]]
    twins = [t.flip(1) if i >= training else t for t, i in zip(twins, index[:12], strict=True)]
    save(grid([list(samples[:12]), twins]), out / "nearest.png")
    row = {"samples": float(of_samples.median()), "samples, least": float(of_samples.min()),
           "held-out": float(of_unseen.median()), "held-out, least": float(of_unseen.min())}
    show([row], f"distance to the nearest of {training} training pictures, mirrored too (median, least)")
    return {"nearest": row}


def _thumbnails(seeds) -> np.ndarray:
    from PIL import Image

    from demo.render import render
    from demo.scene import scene
    return np.stack([np.asarray(render(scene(s)).resize((32, 32), Image.Resampling.BOX)) for s in seeds])
