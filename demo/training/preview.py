"""Fits what the host's live previews need: colours of a picture as a linear function of its latent."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from .. import model, render, scene

SCENES = 200


def fit(path: Path, weights: Path, scenes: int = SCENES) -> float:
    """Writes {"factors": [channels][3], "bias": [3]} to `path`: the least-squares fit, over the cells of the latents of
    `scenes` training pictures, of the mean colour in [-1, 1] that the VAE of the checkpoint `weights` decodes there.
    Returns the share of the colours' variance that it explains."""
    _, _, vae = model.load(weights)
    latents, colours = [], []
    with torch.inference_mode():
        for i in range(scenes):
            picture = torch.from_numpy(render.render_array(scene.scene(i)).astype(np.float32) / 255)[None]
            latent = vae.encode(picture)
            decoded = 2 * vae.decode(latent).movedim(-1, 1) - 1
            colours.append(torch.nn.functional.adaptive_avg_pool2d(decoded, latent.shape[-2:])[0].flatten(1).T)
            latents.append(latent[0].flatten(1).T)
    x, y = torch.cat(latents).double().clone(), torch.cat(colours).double().clone()
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    found = torch.linalg.lstsq(x, y).solution
    explained = 1 - float((x @ found - y).square().mean() / y.var(dim=0, correction=0).mean())
    table = [[round(v, 4) for v in line] for line in found.tolist()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"factors": table[:-1], "bias": table[-1]}) + "\n", encoding="utf-8")
    return explained
