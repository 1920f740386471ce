"""The decoder trained on by itself, on the latents as they stay: no other part has to learn anything anew.

Half of the pictures are edits: the cells of the edited scene stand among those of the scene, a little off, as an
editor that keeps the rest leaves them, and the answer is the edited picture. So the decoder learns to let no cell, and
no error of one, be seen further than it must.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import max_pool2d

from .data import EDITS, pictures
from .diffusion import latents
from .loop import bfloat16, digest, fit, parallel
from .vae import NOISE, VALIDATION, build, decode, encode, psnr, to_tensor

STEPS, BATCH, LR = 1600, 16, 8e-4
EDITED = 5000       # scenes that also have an edit
WIDER = 1           # cells by which what is put in reaches beyond what differs, at most
OFF = .3            # noise on what is put in, at most


def train(folder: Path, vae: Path, out: Path, workers: int, scenes: int, steps: int = STEPS) -> None:
    """Train the decoder of the autoencoder at `vae` on the first `scenes` scenes; write the moving average to `out`."""
    latents(folder, vae, workers, scenes)
    latents(folder, vae, workers, min(EDITED, scenes), EDITS)
    pictures(folder, 32, VALIDATION)
    parallel(_task, workers, folder, vae, out, scenes, steps)


def _task(rank, workers, folder, vae, out, scenes, steps):
    torch.manual_seed(0)
    edited = min(EDITED, scenes)
    drawn, kept = pictures(folder, scenes), latents(folder, vae, workers, scenes)
    edits, changed = pictures(folder, edited, kind=EDITS), latents(folder, vae, workers, edited, EDITS)
    check = to_tensor(pictures(folder, 32, VALIDATION))
    model, share = build(), BATCH // workers // 2
    model.load_state_dict(torch.load(vae, weights_only=True))
    origin = f"{digest(model.state_dict())} {scenes}"
    model.requires_grad_(False)
    learning = torch.nn.ModuleDict({"decoder": model.decoder, "post_quant_conv": model.post_quant_conv})
    learning.requires_grad_(True)
    with torch.no_grad():
        told = encode(model, check)

    def loss(step):
        rng = np.random.default_rng([step, rank])
        x, z = _drawn(rng, share, drawn, kept)
        x_edit, z_edit = _edited(rng, share, (drawn, kept), (edits, changed))
        x, z = torch.cat([x, x_edit]), torch.cat([z, z_edit])
        with bfloat16():
            y = decode(model, z + NOISE * torch.from_numpy(rng.standard_normal(z.shape, np.float32)))
        error = y.float() - x
        return 4 * error.square().mean() + .5 * error.abs().mean()

    def report(step):
        with torch.no_grad():
            return f"psnr {psnr(decode(model, told[:8]), check[:8]):.2f} dB"

    average = fit({"learning": learning}, loss, steps=steps, lr=LR, name="decoder", checkpoint=folder / "decoder.pt",
                  rank=rank, workers=workers, origin=origin, report=report)
    if rank == 0:
        learning.load_state_dict(average["learning"])
        with torch.no_grad():
            print(f"decoder: moving average {psnr(decode(model, told), check):.2f} dB on validation scenes")
        torch.save(model.state_dict(), out)


def _drawn(rng, count, pixels, cells) -> tuple[torch.Tensor, torch.Tensor]:
    """(pictures [B, 3, H, W], their latents [B, C, h, w]), some mirrored."""
    return _pick(pixels, cells, np.sort(rng.integers(len(cells), size=count)), rng.integers(2, size=count))


def _edited(rng, count, before, after) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of edits, whose cells reach so far as anything differs, or a little further."""
    rows, mirrored = np.sort(rng.integers(len(after[1]), size=count)), rng.integers(2, size=count)
    (x, z), (x_edit, z_edit) = (_pick(*side, rows, mirrored) for side in (before, after))
    cell = x.shape[-1] // z.shape[-1]
    differs = max_pool2d((x != x_edit).any(1, keepdim=True).float(), cell)
    by = int(rng.integers(WIDER + 1))
    off = rng.uniform(0, OFF, (count, 1, 1, 1)) * rng.standard_normal(z.shape)
    z_edit = z_edit + torch.from_numpy(off.astype(np.float32))
    return x_edit, torch.lerp(z, z_edit, max_pool2d(differs, 2 * by + 1, stride=1, padding=by))


def _pick(pixels, cells, rows, mirrored) -> tuple[torch.Tensor, torch.Tensor]:
    x = to_tensor(pixels[rows])
    flipped = torch.from_numpy(mirrored).view(-1, 1, 1, 1) > 0
    return torch.where(flipped, x.flip(-1), x), torch.from_numpy(cells[rows, mirrored].astype(np.float32))
