"""The autoencoder: trained on crops, then on whole pictures, for squared and absolute error. Then its latents are
scaled to zero mean and unit variance a channel; the scaling is folded into the 1x1 convolutions beside them."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..model import LATENT_CHANNELS, VAE_CONFIG
from .data import pictures
from .loop import bfloat16, fit, parallel

STEPS, CROPS, CROP = 5600, 16, 64           # a step takes CROPS crops; in the last 40 % CROPS/4 whole pictures
VALIDATION = 900_000                         # scenes that progress is measured on: neither trained on nor held out
NOISE, SPREAD = .05, 1e-4                    # latents are blurred a little and kept small, which diffusion needs


def train(folder: Path, out: Path, workers: int, scenes: int, steps: int = STEPS) -> None:
    """Train on the first `scenes` scenes and write the moving average, normalised, to `out`."""
    pictures(folder, scenes)                                        # rendered before the processes share them
    pictures(folder, 32, VALIDATION)
    parallel(_task, workers, folder, out, scenes, steps)


def build() -> torch.nn.Module:
    """AutoencoderKL of the host with fresh weights (its layers come uninitialised)."""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    model = AutoencoderKL(**VAE_CONFIG)
    initialise(model)
    return model


def initialise(model: torch.nn.Module) -> None:
    """Unit gains, zero biases, weights of variance 1 / fan-in; residual branches' last layers are scaled down."""
    for name, p in model.named_parameters():
        if p.ndim > 1:
            last = any(s in name for s in ("conv2.", "proj_out.", "out_layers.3.", "to_out.", "ff.net.2."))
            scale = .1 if last else 1.
            torch.nn.init.normal_(p, std=scale * p[0].numel() ** -.5)
        else:
            torch.nn.init.constant_(p, float(name.endswith("weight")))


def encode(model, x: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, H, W] in [-1, 1] to latent means [B, C, H/8, W/8]."""
    return model.quant_conv(model.encoder(x))[:, :LATENT_CHANNELS]


def decode(model, z: torch.Tensor) -> torch.Tensor:
    return model.decoder(model.post_quant_conv(z))


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1], contiguous."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float() / 127.5 - 1


def _task(rank, workers, folder, out, scenes, steps):
    torch.manual_seed(0)
    data = pictures(folder, scenes)
    check = to_tensor(pictures(folder, 32, VALIDATION))
    model = build()
    share = CROPS // workers

    def loss(step):
        rng = np.random.default_rng([step, rank])
        x = to_tensor(_batch(data, rng, share, whole=step > .6 * steps))
        with bfloat16():
            z = encode(model, x)
            y = decode(model, z + NOISE * torch.randn_like(z))
        error = y.float() - x
        return 4 * error.square().mean() + .5 * error.abs().mean() + SPREAD * z.float().square().mean()

    def report(step):
        with torch.no_grad():
            return f"psnr {psnr(decode(model, encode(model, check[:8])), check[:8]):.2f} dB"

    average = fit({"vae": model}, loss, steps=steps, lr=1.5e-3, name="vae", checkpoint=folder / "vae.pt", rank=rank,
                  workers=workers, origin=str(scenes), report=report)
    if rank == 0:
        model.load_state_dict(average["vae"])
        model.eval()
        with torch.no_grad():
            print(f"vae: moving average {psnr(decode(model, encode(model, check)), check):.2f} dB on validation scenes")
            normalise(model, data[:1024])
        torch.save(model.state_dict(), out)


def _batch(data, rng, count, whole):
    if whole:
        return data[np.sort(rng.integers(len(data), size=max(1, count // 4)))]
    rows = rng.integers(len(data), size=count)
    corner = rng.integers(data.shape[1] - CROP + 1, size=(count, 2))
    return np.stack([data[i, y:y + CROP, x:x + CROP] for i, (y, x) in zip(rows, corner, strict=True)])


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over the batch of the peak signal-to-noise ratio in dB, pictures in [-1, 1]."""
    mse = ((a.clamp(-1, 1) - b) / 2).square().flatten(1).mean(1)
    return float((-10 * mse.log10()).mean())


def normalise(model, pixels: np.ndarray) -> None:
    """Scale the latents to zero mean and unit variance a channel, in place: quant_conv divides, post_quant_conv
    multiplies."""
    z = torch.cat([encode(model, to_tensor(pixels[i:i + 32])) for i in range(0, len(pixels), 32)])
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    c = LATENT_CHANNELS
    model.quant_conv.weight[:c] /= std[:, None, None, None]
    model.quant_conv.bias[:c] = (model.quant_conv.bias[:c] - mean) / std
    model.post_quant_conv.bias += torch.einsum("oi,i->o", model.post_quant_conv.weight[..., 0, 0], mean)
    model.post_quant_conv.weight *= std[None, :, None, None]
