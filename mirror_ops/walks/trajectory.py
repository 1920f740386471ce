"""The mirror as a value: an inversion, the prompts that retrace it, and how it was made. Saved as safetensors."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..measure.metrics import relative_displacement
from .schedules import check_grid

FORMAT, VERSION = "mirror-trajectory", 1


@dataclass(frozen=True, eq=False)
class Mirror:
    """A trajectory and its rewritten prompts. All tensors float32 on the CPU, latents in model space.

    meta is plain JSON: "model" {class, prediction, latent_format, channels}, "method", "side" (the prompt that was
    rewritten), "cfg" (the guidance it was rewritten at), "scheduler", "label", "forwards", "backwards" (network rows
    per picture), "evaluations" [T], "losses" [T][B].
    """

    sigmas: Tensor  # [T+1] in sampling order
    latents: Tensor  # [T+1, B, C, H, W] the inversion; latents[T] is the picture
    reconstruction: Tensor  # [T+1, B, C, H, W] the way back with the rewritten prompts
    source: Tensor  # [B or 1, tokens, width] the prompt that describes the picture
    embeddings: Tensor  # [T, B or 1, tokens, width] the rewritten prompt of each step
    pooled: Tensor | None = None  # [entries, B or 1, pooled width]
    mask: Tensor | None = None  # [B or 1, 1, H, W] where an edit may change the picture
    meta: dict = field(default_factory=dict)

    def __post_init__(self):
        check_grid(self.sigmas)
        steps, shape = len(self.sigmas) - 1, self.latents.shape
        if self.latents.ndim != 5 or len(self.latents) != steps + 1 or self.reconstruction.shape != shape:
            raise ValueError(f"A mirror of {steps} steps cannot hold latents of shape {list(shape)}.")
        if self.embeddings.ndim != 4 or len(self.embeddings) != steps:
            raise ValueError(f"A mirror of {steps} steps cannot hold prompts of shape {list(self.embeddings.shape)}.")

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def displacement(self) -> Tensor:
        """[T+1, B] relative rms distance of the reconstruction from the inversion at each level."""
        return relative_displacement(self.reconstruction, self.latents)

    def require_model(self, model: dict) -> None:
        """Raises ValueError unless the description `model` is that of the model the mirror was made with."""
        for key, made_with in self.meta["model"].items():
            if model.get(key) != made_with:
                raise ValueError(
                    f"This mirror was made with a model whose {key.replace('_', ' ')} is {made_with}; the connected "
                    f"model's is {model.get(key)}. Connect the model that made it, or invert again."
                )


def save_mirror(mirror: Mirror, path: str | Path) -> None:
    """Writes one safetensors file; `load_mirror` gives back an equal mirror."""
    tensors = {name: value.contiguous() for name, value in vars(mirror).items() if isinstance(value, Tensor)}
    header = {"format": FORMAT, "version": str(VERSION), "meta": json.dumps(mirror.meta)}
    save_file(tensors, str(path), header)


def load_mirror(path: str | Path) -> Mirror:
    """Reads a file of `save_mirror`. Raises ValueError if it is no mirror, or one of a later version."""
    header, tensors = read_safetensors(path, FORMAT, VERSION, "mirror")
    return Mirror(**tensors, meta=json.loads(header["meta"]))


def read_safetensors(path: str | Path, kind: str, version: int, noun: str) -> tuple[dict, dict[str, Tensor]]:
    """(metadata, tensors) of a file of this format and at most this version; ValueError otherwise."""
    try:
        opened = safe_open(str(path), framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{Path(path).name} is damaged or no safetensors file: {error}") from error
    with opened as file:
        header = file.metadata() or {}
        if header.get("format") != kind:
            raise ValueError(f"{Path(path).name} is not a saved {noun}.")
        if int(header["version"]) > version:
            raise ValueError(
                f"{Path(path).name} is a {noun} of version {header['version']}; this pack reads up to {version}. "
                "Update the pack."
            )
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def cpu(x: Tensor | None) -> Tensor | None:
    """A float32 copy on the CPU that shares nothing with the computation it came from."""
    return None if x is None else x.detach().to("cpu", torch.float32, copy=True)
