"""BDIA: exact inversion by bidirectional integration (Zhang, Lewis & Kleijn, ECCV 2024, arXiv 2307.10829, eq. 18).

One slope e_i, read at x_i, serves two moves: down to the next level and, as a correction of the last one, back up:

    x_{i+1} = x_i + (s_{i+1} - s_i) e_i + g_i (x_{i-1} - x_i - (s_{i-1} - s_i) e_i)          s_0 > s_1 > ... > s_T

This is linear in x_{i-1}, so given two neighbours the walk can be run either way, at one evaluation a move. The paper
weighs in variance-preserving latents; on variance-exploding ones its gamma becomes
g_i = gamma c(s_{i-1}) / c(s_{i+1}) with c the input scale, on flow latents g_i = gamma. The state is carried in float64
whatever the network's dtype (`precision`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..guidance.classifier_free import Denoiser
from ..walks.ddim import InputScale, to_d, variance_preserving
from ..walks.precision import seen_in
from ..walks.schedules import check_grid
from .invert import to_d_below

OnStep = Callable[[int, Tensor], None]


def bdia_encode(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    cond: object,
    gamma: float = 0.96,
    *,
    input_scale: InputScale = variance_preserving,
    network: torch.dtype = torch.float32,
    on_step: OnStep | None = None,
) -> Tensor:
    """The trajectory [T+1, B, C, H, W] in float64, in sampling order, that ends in the picture x [B, C, H, W].

    The first move up is plain DDIM inversion; all others are exact inverses of sampling's. Sampling starts from two
    latents: keep both of latents[:2], in float64. `gamma` in (0, 1]: each move up divides by it. `denoise` is called
    once a move, in the dtype `network`. `on_step(i, x)` is called after each move. Raises ValueError for another gamma
    or a grid that does not fall.
    """
    check_grid(sigmas)
    _check_gamma(gamma)
    denoise, x, sigmas = seen_in(network, denoise), x.double(), sigmas.double()
    bottom = sigmas[-2]
    up = to_d_below(denoise, x, sigmas[-1], bottom, cond, input_scale)
    latents = [x, x + (bottom - sigmas[-1]) * up]
    if on_step is not None:
        on_step(len(sigmas) - 2, latents[-1])
    for i in reversed(range(1, len(sigmas) - 1)):
        below, here = latents[-2:]
        level = sigmas[i]
        e = to_d(here, denoise(here, level, cond), level)
        weight = _weight(gamma, sigmas, i, input_scale)
        missed = below - here - (sigmas[i + 1] - level) * e
        latents.append(here + (sigmas[i - 1] - level) * e + missed / weight)
        if on_step is not None:
            on_step(i - 1, latents[-1])
    return torch.stack(latents[::-1])


def bdia_decode(
    denoise: Denoiser,
    start: Tensor,
    sigmas: Tensor,
    cond: object,
    gamma: float = 0.96,
    *,
    input_scale: InputScale = variance_preserving,
    network: torch.dtype = torch.float32,
    on_step: OnStep | None = None,
) -> Tensor:
    """The trajectory [T+1, B, C, H, W] in float64 from `start`, the latents [2, B, C, H, W] at sigmas[0] and sigmas[1].

    Gives `bdia_encode` back up to rounding when started from its latents[:2] with the same arguments; with another
    `cond` the picture is edited. Errors as there.
    """
    check_grid(sigmas)
    _check_gamma(gamma)
    denoise, sigmas = seen_in(network, denoise), sigmas.double()
    latents = list(start.double())
    for i in range(1, len(sigmas) - 1):
        above, here = latents[-2:]
        level = sigmas[i]
        e = to_d(here, denoise(here, level, cond), level)
        weight = _weight(gamma, sigmas, i, input_scale)
        missed = above - here - (sigmas[i - 1] - level) * e
        latents.append(here + (sigmas[i + 1] - level) * e + weight * missed)
        if on_step is not None:
            on_step(i, latents[-1])
    return torch.stack(latents)


def _weight(gamma: float, sigmas: Tensor, i: int, input_scale: InputScale) -> Tensor | float:
    return gamma * input_scale(sigmas[i - 1]) / input_scale(sigmas[i + 1])


def _check_gamma(gamma: float) -> None:
    if not 0 < gamma <= 1:
        raise ValueError(f"BDIA's gamma lies above 0 and at most at 1 (0.96 to 1 in practice), not {gamma}.")
