"""Two LoRAs of the embedded model, one draws only cats and one only dogs: two models of two domains, for translation
from the one to the other. Captions name everything but the species, so that only the weights can tell it."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from ..domains import DOMAINS, neutral_caption, weights_of
from ..model import HEADS, TOKENIZER, UNET, text_config, vocabulary_size
from ..render import render_array
from ..scene import scene
from .diffusion import DROPOUT, PHASES, TrainableText, alpha_bar
from .export import TEXT_PART, UNET_PART, VAE_PART, part
from .loop import bfloat16, digest, fit
from .tokenizer import Encoder
from .vae import build as build_vae
from .vae import encode, to_tensor

STEPS, BATCH, RANK, LR, SCENES = 240, 16, 8, 3e-3, 256


def train(folder: Path, weights: Path, out: Path, steps: int = STEPS) -> None:
    """Train one LoRA of the checkpoint `weights` for each of DOMAINS, on the first scenes with that species, and write
    them to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for species in DOMAINS:
        z, context = _examples(species, weights)
        unet, layers = _unet(weights)

        def loss(step, z=z, context=context, unet=unet):
            return _loss(step, z, context, unet)

        fit({"lora": layers}, loss, steps=steps, lr=LR, name=species, checkpoint=folder / f"lora-{species}.pt", rank=0,
            workers=1, origin=digest(part(weights, UNET_PART)), weight_decay=0.)
        save_file(_file(layers), str(out / weights_of(species).name))


class Low(torch.nn.Module):
    """What a LoRA adds to one linear layer: up(down(x)) (Hu et al. 2022); nothing at the beginning."""

    def __init__(self, layer: torch.nn.Linear):
        super().__init__()
        self.down = torch.nn.Parameter(torch.randn(RANK, layer.in_features) * layer.in_features ** -.5)
        self.up = torch.nn.Parameter(torch.zeros(layer.out_features, RANK))
        layer.register_forward_hook(self._add)

    def _add(self, layer, args, out):
        return out + args[0] @ self.down.to(args[0].dtype).T @ self.up.to(args[0].dtype).T


def _unet(weights: Path) -> tuple[torch.nn.Module, torch.nn.ModuleDict]:
    """The UNet, frozen, and what is added to each linear layer of its transformers, by the layer's name."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    torch.manual_seed(0)
    unet = UNetModel(**UNET, **HEADS, device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    unet.load_state_dict(part(weights, UNET_PART))
    unet.requires_grad_(False)
    linear = {name: m for name, m in unet.named_modules() if isinstance(m, torch.nn.Linear) and "transformer" in name}
    return unet, torch.nn.ModuleDict({name.replace(".", "/"): Low(layer) for name, layer in linear.items()})


@torch.no_grad()
def _examples(species: str, weights: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents [SCENES, 2, C, h, w], as drawn and mirrored; texts [SCENES + 1, 77, width], the last of no words)."""
    vae, text = build_vae(), TrainableText(text_config(vocabulary_size()))
    vae.load_state_dict(part(weights, VAE_PART))
    text.load_state_dict(part(weights, TEXT_PART))
    scenes = [scene(seed).with_(species=species) for seed in range(SCENES)]
    tokens = torch.from_numpy(Encoder(TOKENIZER)([*map(neutral_caption, scenes), ""]))
    z = []
    for i in range(0, SCENES, 32):
        x = to_tensor(np.stack([render_array(s) for s in scenes[i:i + 32]]))
        z.append(torch.stack([encode(vae, x), encode(vae, x.flip(-1))], 1))
    return torch.cat(z), torch.cat([text(some)[0] for some in tokens.split(64)])


def _loss(step, z, context, unet):
    rng = np.random.default_rng([17, step])
    rows = rng.integers(SCENES, size=BATCH)
    clean = z[rows, rng.integers(2, size=BATCH)]
    texts = context[np.where(rng.random(BATCH) < DROPOUT, SCENES, rows)]
    t = torch.from_numpy((np.arange(BATCH) + rng.random(BATCH)) / BATCH * 1000).long()
    noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32))
    a = alpha_bar()[t].view(-1, 1, 1, 1)
    with bfloat16():
        eps = unet(a.sqrt() * clean + (1 - a).sqrt() * noise, t.float(), texts)
    error = (eps.float() - noise).square().mean((1, 2, 3))
    return (error * PHASES[1].weight(a / (1 - a)).flatten()).mean()


def _file(layers: torch.nn.ModuleDict) -> dict[str, torch.Tensor]:
    """The LoRA in the key layout that ComfyUI's loaders read for any model."""
    made = {}
    for name, low in layers.items():
        key = "diffusion_model." + name.replace("/", ".")
        made |= {f"{key}.lora_down.weight": low.down, f"{key}.lora_up.weight": low.up}
    return {key: value.detach().half().contiguous() for key, value in made.items()}
