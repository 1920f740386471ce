"""Inversions that their own sampler undoes, exactly, as values with two directions.

    state = solver.encode(denoise, picture, on)           # [B, C, H, W] to whatever the way back needs
    picture = solver.decode(denoise, state, on, on_step)

`denoise` is the network's guided prediction at the guidance of the walk. The state is float64 (see `walks.precision`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..guidance.classifier_free import Denoiser
from ..stochastic.dpm_encoder import Code, dpm_decode
from ..stochastic.edit_friendly import edit_friendly_encode
from ..walks.ddim import InputScale
from ..walks.noise import picture_generators
from ..walks.precision import seen_in
from .bdia import bdia_decode, bdia_encode
from .edict import edict_decode, edict_encode


class SolverContext(NamedTuple):
    """What both directions share."""

    sigmas: Tensor  # [T+1] on the CPU
    scale: InputScale
    flow: bool
    network: torch.dtype  # in which the network is called; the state itself is float64


@dataclass(frozen=True)
class Edict:
    """The state is the pair of latents at the noisiest level, [2, B, C, H, W]."""

    p: float
    calls: int = 2

    def encode(self, denoise: Denoiser, picture: Tensor, on: SolverContext) -> Tensor:
        """[2, B, C, H, W] the pair at the noisiest level."""
        pairs = edict_encode(denoise, picture, on.sigmas, None, self.p, input_scale=on.scale, network=on.network)
        return pairs[0].clone()  # not a view, which would keep the pairs of all levels in memory

    def decode(self, denoise: Denoiser, state: Tensor, on: SolverContext, on_step: Callable) -> Tensor:
        """[B, C, H, W] the picture; `on_step(i, latent)` after each step."""
        how = {"input_scale": on.scale, "network": on.network, "on_step": lambda i, pair: on_step(i, pair[0])}
        return edict_decode(denoise, state, on.sigmas, None, self.p, **how)[-1, 0]

    def start(self, state: Tensor) -> Tensor:
        """[B, C, H, W] the noisiest latent, which the sampler is given."""
        return state[0]


@dataclass(frozen=True)
class Bdia:
    """The state is the latents of the two noisiest levels, [2, B, C, H, W]."""

    gamma: float
    calls: int = 1

    def encode(self, denoise: Denoiser, picture: Tensor, on: SolverContext) -> Tensor:
        """[2, B, C, H, W] the latents of the two noisiest levels."""
        how = {"input_scale": on.scale, "network": on.network}
        return bdia_encode(denoise, picture, on.sigmas, None, self.gamma, **how)[:2].clone()

    def decode(self, denoise: Denoiser, state: Tensor, on: SolverContext, on_step: Callable) -> Tensor:
        """[B, C, H, W] the picture; `on_step(i, latent)` after each step."""
        how = {"input_scale": on.scale, "network": on.network, "on_step": on_step}
        return bdia_decode(denoise, state, on.sigmas, None, self.gamma, **how)[-1]

    def start(self, state: Tensor) -> Tensor:
        """[B, C, H, W] the noisiest latent, which the sampler is given."""
        return state[0]


@dataclass(frozen=True)
class EditFriendly:
    """The state is the noisiest latent and the noise of each step."""

    seed: int
    eta: float
    places: Sequence[int] = (0,)  # of the pictures in the batch they came from, as in `picture_generators`
    calls: int = 1

    def encode(self, denoise: Denoiser, picture: Tensor, on: SolverContext) -> Code:
        """The noisiest latent [1, B, C, H, W] and the noise of each step."""
        generators = picture_generators(self.seed, self.places)
        denoise = seen_in(on.network, denoise)
        code = edit_friendly_encode(denoise, picture.double(), on.sigmas.double(), None, generators, self.eta, on.flow)
        return Code(code.latents[:1].clone(), code.noises)

    def decode(self, denoise: Denoiser, state: Code, on: SolverContext, on_step: Callable) -> Tensor:
        """[B, C, H, W] the picture; `on_step(i, latent)` after each step."""
        denoise, sigmas = seen_in(on.network, denoise), on.sigmas.double()
        return dpm_decode(denoise, state.latents[0], state.noises, sigmas, None, self.eta, on.flow, on_step)

    def start(self, state: Code) -> Tensor:
        """[B, C, H, W] the noisiest latent, which the sampler is given."""
        return state.latents[0]
