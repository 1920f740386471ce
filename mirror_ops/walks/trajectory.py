"""The mirror as a value: an inversion, the prompts that retrace it, and how it was made. Saved as safetensors."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..measure.metrics import relative_displacement
from ..storage.tensor_file import FileKind
from .provenance import Provenance
from .schedules import check_grid

SINGLE = (torch.float32,)
FILE = FileKind(
    "mirror-trajectory", 1, "mirror",
    {"sigmas": (1, SINGLE), "latents": (5, SINGLE), "reconstruction": (5, SINGLE), "source": (3, SINGLE),
     "embeddings": (4, SINGLE), "pooled": (3, SINGLE), "mask": (4, SINGLE)},
    optional=frozenset({"pooled", "mask"}),
)


@dataclass(frozen=True, eq=False)
class Mirror:
    """A trajectory and its rewritten prompts. All tensors float32 on the CPU, latents in model space."""

    sigmas: Tensor  # [T+1] in sampling order
    latents: Tensor  # [T+1, B, C, H, W] the inversion; latents[T] is the picture
    reconstruction: Tensor  # [T+1, B, C, H, W] the way back with the rewritten prompts
    source: Tensor  # [B or 1, tokens, width] the prompt that describes the picture
    embeddings: Tensor  # [T, B or 1, tokens, width] the rewritten prompt of each step
    provenance: Provenance
    pooled: Tensor | None = None  # [entries, B or 1, pooled width]
    mask: Tensor | None = None  # [B or 1, 1, H, W] where an edit may change the picture

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

    def same_as(self, other: "Mirror") -> bool:
        """Whether both are one trajectory, be it read from a file twice."""
        if self is other:
            return True
        pairs = [(getattr(self, name), getattr(other, name)) for name in FILE.tensors]
        return self.provenance == other.provenance and all(
            a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs
        )


def save_mirror(mirror: Mirror, path: str | Path) -> None:
    """Writes one safetensors file; `load_mirror` gives back an equal mirror. Raises ValueError if it cannot."""
    FILE.write(path, {name: getattr(mirror, name) for name in FILE.tensors}, mirror.provenance.to_json())


def load_mirror(path: str | Path) -> Mirror:
    """Reads a file of `save_mirror`. Raises ValueError if it is no mirror, a damaged one, or of another version."""
    facts, tensors = FILE.read(path)
    try:
        return Mirror(**tensors, provenance=Provenance.from_facts(facts))
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{Path(path).name} is damaged ({reason}). Copy it anew, or make it again.") from error


def cpu(x: Tensor | None) -> Tensor | None:
    """A float32 copy on the CPU that shares nothing with the computation it came from."""
    return None if x is None else x.detach().to("cpu", torch.float32, copy=True)
