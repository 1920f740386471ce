"""A picture as the noises of a stochastic sampler, as a value that can be kept: on wires and in files."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..walks.trajectory import read_safetensors
from .dpm_encoder import Code

FORMAT, VERSION = "mirror-noise-code", 1


@dataclass(frozen=True, eq=False)
class NoiseCode:
    """A `Code` with all that its replay needs. Tensors on the CPU; latents and noises float64, in model space.

    meta is plain JSON: "eta", "flow", "sigma_max" (the model's highest level), "network" (the dtype in which the
    network was called), "latent_format", "encoder", "cfg", "seed".
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
    """Writes one safetensors file; `load_code` gives back an equal code."""
    tensors = {name: getattr(code, name).contiguous() for name in ("sigmas", "latents", "noises")}
    save_file(tensors, str(path), {"format": FORMAT, "version": str(VERSION), "meta": json.dumps(code.meta)})


def load_code(path: str | Path) -> NoiseCode:
    """Reads a file of `save_code`. Raises ValueError if it is something else, or one of a later version."""
    header, tensors = read_safetensors(path, FORMAT, VERSION, "code")
    return NoiseCode(**tensors, meta=json.loads(header["meta"]))
