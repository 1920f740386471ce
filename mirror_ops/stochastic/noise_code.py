"""A picture as the noises of a stochastic sampler, as a value that can be kept: on wires and in files."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict

from ..storage.tensor_file import FileKind
from .dpm_encoder import Code

FLOATS = (torch.float64, torch.float32)
FILE = FileKind(
    "mirror-noise-code", 1, "code", {"sigmas": (1, FLOATS), "latents": (5, FLOATS), "noises": (5, FLOATS)}
)


class Facts(TypedDict):
    """What a replay needs to know beside the tensors."""

    encoder: str
    seed: int
    eta: float
    cfg: float
    flow: bool
    sigma_max: float  # the model's highest level
    network: Literal["float32", "float64"]  # the dtype in which the network was called
    latent_format: str



@dataclass(frozen=True, eq=False)
class NoiseCode:
    """A `Code` with all that its replay needs. Tensors on the CPU; latents and noises float64, in model space.

    meta is plain JSON, see `Facts`.
    """

    sigmas: Tensor  # [T+1] in sampling order
    latents: Tensor  # [T+1, B, C, H, W] the noisy path; the last one is the picture
    noises: Tensor  # [T, B, C, H, W] as in `Code`
    meta: dict = field(default_factory=dict)

    def __post_init__(self):
        steps = len(self.sigmas) - 1
        if len(self.latents) != steps + 1 or self.noises.shape != (steps, *self.latents.shape[1:]):
            raise ValueError(f"A code of {steps} steps cannot hold noises of shape {list(self.noises.shape)}.")

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def code(self) -> Code:
        return Code(self.latents, self.noises)

    def skip(self, steps: int) -> "NoiseCode":
        """The code without its first `steps` steps: decoding begins that much nearer to the picture.

        Raises ValueError unless at least one step is left.
        """
        if not 0 <= steps < self.steps:
            raise ValueError(f"Of {self.steps} steps at most {self.steps - 1} can be skipped, not {steps}.")
        return NoiseCode(self.sigmas[steps:], self.latents[steps:], self.noises[steps:], self.meta)


def save_code(code: NoiseCode, path: str | Path) -> None:
    """Writes one safetensors file; `load_code` gives back an equal code. Raises ValueError if it cannot."""
    FILE.write(path, {name: getattr(code, name) for name in FILE.tensors}, json.dumps(code.meta))


def load_code(path: str | Path) -> NoiseCode:
    """Reads a file of `save_code`. Raises ValueError if it is something else, damaged, or of another version."""
    facts, tensors = FILE.read(path)
    try:
        TypeAdapter(Facts).validate_python(facts)
        return NoiseCode(**tensors, meta=facts)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
        raise ValueError(f"{Path(path).name} is damaged: {what}.") from error
    except ValueError as error:
        raise ValueError(f"{Path(path).name} is damaged: {error}") from error
