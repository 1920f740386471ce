"""Writes the trained towers as one float16 safetensors file in SD1's key layout, and the classifier as another."""
from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file


def export(vae: Path, diffusion: Path, classifier: Path, checkpoint: Path, attributes: Path) -> None:
    """Read the training outputs and write the two files the pack ships."""
    towers = torch.load(diffusion, weights_only=True)
    parts = {"model.diffusion_model.": towers["unet"], "cond_stage_model.transformer.": towers["text"],
             "first_stage_model.": torch.load(vae, weights_only=True)}
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    _save({prefix + k: v for prefix, state in parts.items() for k, v in state.items()}, checkpoint)
    _save(torch.load(classifier, weights_only=True), attributes)


def _save(state, path):
    save_file({k: v.detach().half().contiguous().clone() for k, v in state.items()}, str(path))
