"""The UNet and the text tower, trained together on encoded pictures and freshly worded captions.

eps-prediction on SD's scaled-linear schedule, squared error weighted by min-SNR (Hang et al. 2023, gamma 5), a tenth
of the captions empty for classifier-free guidance. In three phases: varied captions first; then mostly full ones, with
more weight on noisy levels, where composition and background are decided, and a hint to the text tower (`_reading`);
then the same for long without the hint: the finer a mark, the later it is learnt.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from mirror_ops.storage.whole_file import whole_file

from ..model import CONTEXT, HEADS, TOKENIZER, UNET, TextModel, text_config, vocabulary_size
from ..scene import ATTRIBUTES, Scene, caption, random_caption, scene
from .data import PICTURES, pictures
from .loop import bfloat16, digest, fit, parallel
from .tokenizer import Encoder, fillers
from .vae import build as build_vae
from .vae import encode, initialise, to_tensor

BATCH, DROPOUT, GAMMA = 32, .1, 5.
ENCODED = 8         # pictures at once: larger maps than theirs are fetched from the system anew for every layer


@dataclass(frozen=True)
class Phase:
    """name, steps, peak learning rate, rate of the moving average; `full`: part of captions in full standard wording;
    `reading`: weight of reading attributes off the text; `composition`: weight of noisy levels beside min-SNR's."""
    name: str
    steps: int
    lr: float
    ema: float
    full: float
    reading: float
    composition: float
    seed: int

    def weight(self, snr: torch.Tensor) -> torch.Tensor:
        return snr.clamp(max=GAMMA) / snr + self.composition / (snr + .1)


PHASES = (Phase("diffusion", 4600, 1e-3, .9993, full=0., reading=0., composition=0., seed=0),
          Phase("binding", 1700, 1e-3, .998, full=.7, reading=.1, composition=.5, seed=1),
          Phase("marks", 9600, 8e-4, .999, full=.7, reading=0., composition=.5, seed=3))


@cache
def alpha_bar() -> torch.Tensor:
    """Cumulative signal level of SD's scaled-linear schedule, float32 [1000]."""
    betas = torch.linspace(.00085 ** .5, .012 ** .5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def train(folder: Path, out: Path, vae: Path, workers: int, scenes: int, steps: int | None = None,
          start: Path | None = None) -> None:
    """Encode `scenes` training scenes with the autoencoder at `vae`, train, and write both towers to `out`.

    start: both towers as an earlier training left them; only the last phase is then run.
    """
    latents(folder, vae, workers, scenes)
    parallel(_task, workers, folder, out, vae, scenes, steps, start)


def latents(folder: Path, vae: Path, workers: int, scenes: int, kind: str = PICTURES) -> np.ndarray:
    """Latent means of all scenes, as drawn and mirrored left to right (no caption speaks of sides), encoded once;
    float16 [scenes, 2, C, h, w]."""
    path = folder / f"latents-{kind}-{scenes}-{_encoder(vae)}.npy"
    if not path.exists():
        side = pictures(folder, scenes, kind=kind).shape[1] // 8
        with whole_file(path) as part:
            np.lib.format.open_memmap(part, "w+", np.float16, (scenes, 2, UNET["in_channels"], side, side)).flush()
            parallel(_encode, workers, folder, part, vae, scenes, kind)
    return np.load(path, mmap_mode="r")


def _encoder(vae: Path) -> str:
    """A word for the encoder of the autoencoder at `vae`: its decoder may change, the latents stay."""
    state = torch.load(vae, weights_only=True)
    return digest({name: w for name, w in state.items() if name.startswith(("encoder.", "quant_conv."))})


def _encode(rank, workers, folder, part, vae, scenes, kind):
    model = build_vae()
    model.load_state_dict(torch.load(vae, weights_only=True))
    model.eval()
    array, data = np.load(part, mmap_mode="r+"), pictures(folder, scenes, kind=kind)
    for i in range(rank * ENCODED, scenes, workers * ENCODED):
        x = to_tensor(data[i:i + ENCODED])
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


def _task(rank, workers, folder, out, vae, scenes, steps, start):
    torch.manual_seed(0)
    data, encoder, origin = latents(folder, vae, workers, scenes), Encoder(TOKENIZER), f"{_encoder(vae)} {scenes}"
    unet, text = build()
    heads = torch.nn.ModuleDict({k: torch.nn.Linear(CONTEXT, len(v)) for k, v in ATTRIBUTES.items()})
    modules = {"unet": unet, "text": text, "heads": heads}
    if start:
        for name, state in torch.load(start, weights_only=True).items():
            modules[name].load_state_dict(state)
            origin += f" {digest(state)}"
    average = None
    for phase in PHASES[-1:] if start else PHASES:
        def loss(step, phase=phase):
            return _loss(phase, step, rank, BATCH // workers, data, encoder, **modules)

        average = fit(modules, loss, steps=steps or phase.steps, lr=phase.lr, name=phase.name, ema=phase.ema, rank=rank,
                      workers=workers, checkpoint=folder / f"{phase.name}.pt", origin=origin)
        for name, module in modules.items():
            module.load_state_dict(average[name])
        origin = f"{origin} {phase.name} {steps or phase.steps}"
    if rank == 0:
        torch.save({k: average[k] for k in ("unet", "text")}, out)


def _loss(phase, step, rank, share, data, encoder, unet, text, heads):
    rng = np.random.default_rng([phase.seed, step, rank])
    rows = np.sort(rng.integers(len(data), size=share))
    z = torch.from_numpy(data[rows, rng.integers(2, size=share)].astype(np.float32))
    scenes = [scene(int(i)) for i in rows]
    full = rng.random(share) < phase.full
    words = [caption(s) if f else random_caption(s, rng, fillers()) for s, f in zip(scenes, full, strict=True)]
    empty = rng.random(share) < DROPOUT
    tokens = torch.from_numpy(encoder(["" if e else w for e, w in zip(empty, words, strict=True)]))
    t = torch.from_numpy((np.arange(share) + rng.random(share)) / share * 1000).long()              # stratified
    t = t[torch.from_numpy(rng.permutation(share))]
    noise = torch.from_numpy(rng.standard_normal(z.shape, np.float32))
    a = alpha_bar()[t].view(-1, 1, 1, 1)
    x = a.sqrt() * z + (1 - a).sqrt() * noise
    with bfloat16():
        context = text(tokens)[0]
        eps = unet(x, t.float(), context.to(x.dtype))
    error = (eps.float() - noise).square().mean((1, 2, 3))
    value = (error * phase.weight(a / (1 - a)).flatten()).mean()
    if phase.reading:
        told = torch.from_numpy(full & ~empty).float()
        value = value + phase.reading * (told * _reading(heads, context[:, -1].float(), scenes)).mean()
    return value


def _reading(heads, summary: torch.Tensor, scenes: list[Scene]) -> torch.Tensor:
    """[B] cross-entropy of reading the attributes off the text's last position [B, width], which sees all of it.

    It makes the text tower bind colours to the things that have them long before the pictures would."""
    labels = [s.labels() for s in scenes]
    return sum(torch.nn.functional.cross_entropy(head(summary), torch.tensor([y[k] for y in labels]), reduction="none")
               for k, head in heads.items()) / len(heads)
