"""Writes the trained towers as one float16 safetensors file in SD1's key layout, and the classifier as another; takes
such files apart again, to train on."""
from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

UNET_PART, TEXT_PART, VAE_PART = "model.diffusion_model.", "cond_stage_model.transformer.", "first_stage_model."


def export(vae: Path, diffusion: Path, classifier: Path, checkpoint: Path, attributes: Path) -> None:
    """Read the training outputs and write the two files the pack ships."""
    towers = torch.load(diffusion, weights_only=True)
    parts = {UNET_PART: towers["unet"], TEXT_PART: towers["text"], VAE_PART: torch.load(vae, weights_only=True)}
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    _save({prefix + k: v for prefix, state in parts.items() for k, v in state.items()}, checkpoint)
    _save(torch.load(classifier, weights_only=True), attributes)


def take_apart(checkpoint: Path, attributes: Path, vae: Path, diffusion: Path, classifier: Path) -> None:
    """The reverse of `export`: write what the stages of training write, from the two files."""
    torch.save(part(checkpoint, VAE_PART), vae)
    torch.save({"unet": part(checkpoint, UNET_PART), "text": part(checkpoint, TEXT_PART)}, diffusion)
    torch.save({k: v.float() for k, v in load_file(str(attributes)).items()}, classifier)


def part(checkpoint: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The float32 weights of one part of a checkpoint."""
    return {k.removeprefix(prefix): v.float() for k, v in load_file(str(checkpoint)).items() if k.startswith(prefix)}


def _save(state, path):
    save_file({k: v.detach().half().contiguous().clone() for k, v in state.items()}, str(path))
