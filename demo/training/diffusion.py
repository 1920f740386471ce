"""The UNet and the text tower, trained together on encoded pictures and freshly worded captions.

eps-prediction on SD's scaled-linear schedule, squared error weighted by min-SNR (Hang et al. 2023, gamma 5), a tenth of
the captions empty for classifier-free guidance.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..model import HEADS, TOKENIZER, UNET, TextModel, text_config, vocabulary_size
from ..scene import random_caption, scene
from .data import pictures
from .loop import bfloat16, fit, parallel
from .tokenizer import Encoder, fillers
from .vae import build as build_vae
from .vae import encode, initialise, to_tensor

STEPS, BATCH, LR = 5400, 32, 1e-3
DROPOUT, GAMMA = .1, 5.


def alpha_bar() -> torch.Tensor:
    """Cumulative signal level of SD's scaled-linear schedule, float32 [1000]."""
    betas = torch.linspace(.00085 ** .5, .012 ** .5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def train(folder: Path, out: Path, vae: Path, workers: int, scenes: int, steps: int = STEPS) -> None:
    """Encode `scenes` training scenes with the autoencoder at `vae`, train, and write both towers to `out`."""
    latents(folder, vae, workers, scenes)
    parallel(_task, workers, folder, out, scenes, steps)


def latents(folder: Path, vae: Path, workers: int, scenes: int) -> np.ndarray:
    """Latent means of all scenes, as drawn and mirrored left to right (no caption speaks of sides), encoded once;
    float16 [scenes, 2, C, h, w]."""
    path = folder / f"latents-{scenes}.npy"
    if not path.exists():
        side = pictures(folder, scenes).shape[1] // 8
        part = path.with_suffix(".part.npy")
        np.lib.format.open_memmap(part, "w+", np.float16, (scenes, 2, UNET["in_channels"], side, side)).flush()
        parallel(_encode, workers, folder, part, vae, scenes)
        part.replace(path)
    return np.load(path, mmap_mode="r")


def _encode(rank, workers, folder, part, vae, scenes):
    model = build_vae()
    model.load_state_dict(torch.load(vae, weights_only=True))
    model.eval()
    array, data = np.load(part, mmap_mode="r+"), pictures(folder, scenes)
    for i in range(rank * 50, scenes, workers * 50):
        x = to_tensor(data[i:i + 50])
        for mirrored in (0, 1):
            with torch.no_grad(), bfloat16():
                z = encode(model, x.flip(-1) if mirrored else x)
            array[i:i + len(z), mirrored] = z.float().numpy()
        if rank == 0 and i % 2000 == 0:
            print(f"encoding {i}/{scenes}", flush=True)
    array.flush()


class TrainableText(TextModel):
    """The host's layers add in place; autograd needs them not to."""

    def __init__(self, config):
        import comfy.ops
        super().__init__(config, torch.float32, "cpu", comfy.ops.disable_weight_init)
        for layer in self.text_model.encoder.layers:
            layer.forward = _layer.__get__(layer)


def _layer(self, x, mask=None, optimized_attention=None):
    x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
    return x + self.mlp(self.layer_norm2(x))


def build() -> tuple[torch.nn.Module, torch.nn.Module]:
    """UNet and text tower of the host with fresh weights."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    unet = UNetModel(**UNET, **HEADS, device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    text = TrainableText(text_config(vocabulary_size()))
    for model in (unet, text):
        initialise(model)
        model.requires_grad_(True)
    torch.nn.init.zeros_(unet.out[2].weight)
    torch.nn.init.normal_(text.get_input_embeddings().weight, std=.05)
    torch.nn.init.normal_(text.text_model.embeddings.position_embedding.weight, std=.02)
    text.text_projection.requires_grad_(False)
    torch.nn.init.eye_(text.text_projection.weight)
    return unet, text


def _task(rank, workers, folder, out, scenes, steps):
    torch.manual_seed(0)
    data, acp, encoder = latents(folder, None, workers, scenes), alpha_bar(), Encoder(TOKENIZER)
    snr = acp / (1 - acp)
    weight = snr.clamp(max=GAMMA) / snr
    unet, text = build()
    share, around = BATCH // workers, fillers()

    def loss(step):
        rng = np.random.default_rng([step, rank])
        rows = np.sort(rng.integers(scenes, size=share))
        z = torch.from_numpy(data[rows, rng.integers(2, size=share)].astype(np.float32))
        words = ["" if rng.random() < DROPOUT else random_caption(scene(int(i)), rng, around) for i in rows]
        tokens = torch.from_numpy(encoder(words))
        t = torch.from_numpy((np.arange(share) + rng.random(share)) / share * 1000).long()       # stratified
        t = t[torch.from_numpy(rng.permutation(share))]
        noise = torch.from_numpy(rng.standard_normal(z.shape, np.float32))
        a = acp[t].view(-1, 1, 1, 1)
        x = a.sqrt() * z + (1 - a).sqrt() * noise
        with bfloat16():
            context = text(tokens)[0]
            eps = unet(x, t.float(), context.to(x.dtype))
        error = (eps.float() - noise).square().mean((1, 2, 3))
        return (error * weight[t]).mean()

    average = fit({"unet": unet, "text": text}, loss, steps=steps, lr=LR, name="diffusion", ema=.9993,
                  checkpoint=folder / "diffusion.pt", rank=rank, workers=workers)
    if rank == 0:
        torch.save(average, out)


