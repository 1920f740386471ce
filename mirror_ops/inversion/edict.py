"""EDICT: exact inversion with two coupled latents (Wallace et al., "EDICT", CVPR 2023, eqs. 12 to 15).

The pair (x, y) starts as two copies of the picture. Each latent moves by the slope read at the other one, so a move can
be undone by subtracting what was added; a mixing with weight p then keeps the two from drifting apart. On
variance-exploding and flow latents the move is Euler's and the mixing, being linear, is the paper's. The one that moves
second reads the first when that has moved already: the network is told the upper level and shown a latent of the lower
one, rescaled as in DDIM inversion. As in the official code the two take turns in moving first.

Decoding undoes encoding up to rounding, so the state is carried in float64 whatever the network's dtype (`precision`).
Encoding spreads the pair by 1/p^2 a move and decoding draws it together again: decode what was encoded. Encoding what
was decoded from one noise amplifies rounding. Guidance is just another denoiser.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..guidance.classifier_free import Denoiser
from ..walks.ddim import InputScale, moves, variance_preserving
from ..walks.precision import seen_in
from ..walks.schedules import check_grid
from .invert import to_d_below

OnStep = Callable[[int, Tensor], None]


def edict_encode(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    cond: object,
    p: float = 0.93,
    *,
    input_scale: InputScale = variance_preserving,
    network: torch.dtype = torch.float32,
    on_step: OnStep | None = None,
) -> Tensor:
    """The pairs [T+1, 2, B, C, H, W] in float64, sampling order, that end in two copies of the picture x [B, C, H, W].

    `sigmas` [T+1] in sampling order; `p` in (0, 1]; `network` the dtype in which `denoise` is called, twice a move and
    always at the upper level, so that sigmas[T] may be 0. All of these as they will be in `edict_decode`. Keep the
    first pair in float64: rounded to float32 it decodes to 1e-3 under strong guidance. `on_step(i, pair)` is called
    after each move. Raises ValueError for another p or a grid that does not fall.
    """
    check_grid(sigmas)
    _check_mixing(p)
    denoise = seen_in(network, denoise)
    pair = torch.stack([x, x]).double()
    pairs = [pair]
    for i, sigma, sigma_next in reversed(list(moves(sigmas.double()))):
        first, second = _turn(i)
        pair = _unmix(pair, p)
        pair[second] -= (sigma_next - sigma) * to_d_below(denoise, pair[first], sigma_next, sigma, cond, input_scale)
        pair[first] -= (sigma_next - sigma) * to_d_below(denoise, pair[second], sigma, sigma, cond, input_scale)
        pairs.append(pair)
        if on_step is not None:
            on_step(i, pair)
    return torch.stack(pairs[::-1])


def edict_decode(
    denoise: Denoiser,
    pair: Tensor,
    sigmas: Tensor,
    cond: object,
    p: float = 0.93,
    *,
    input_scale: InputScale = variance_preserving,
    network: torch.dtype = torch.float32,
    on_step: OnStep | None = None,
) -> Tensor:
    """The pairs [T+1, 2, B, C, H, W] in float64 from `pair` [2, B, C, H, W] at sigmas[0] down to sigmas[T].

    The picture is either of the last two. Arguments and errors as in `edict_encode`, whose first pair goes in here;
    with another `cond` the picture is edited.
    """
    check_grid(sigmas)
    _check_mixing(p)
    denoise = seen_in(network, denoise)
    pairs = [pair.double()]
    for i, sigma, sigma_next in moves(sigmas.double()):
        first, second = _turn(i)
        pair = pairs[-1].clone()
        pair[first] += (sigma_next - sigma) * to_d_below(denoise, pair[second], sigma, sigma, cond, input_scale)
        pair[second] += (sigma_next - sigma) * to_d_below(denoise, pair[first], sigma_next, sigma, cond, input_scale)
        pair = _mix(pair, p)
        pairs.append(pair)
        if on_step is not None:
            on_step(i, pair)
    return torch.stack(pairs)


def _turn(i: int) -> tuple[int, int]:
    """Which latent moves first and which second at move i."""
    return (0, 1) if i % 2 == 0 else (1, 0)


def _mix(pair: Tensor, p: float) -> Tensor:
    """x <- p x + (1-p) y, then y <- p y + (1-p) x with the new x (eq. 14)."""
    x, y = pair
    x = p * x + (1 - p) * y
    return torch.stack([x, p * y + (1 - p) * x])


def _unmix(pair: Tensor, p: float) -> Tensor:
    """The inverse of `_mix` (eq. 15)."""
    x, y = pair
    y = (y - (1 - p) * x) / p
    return torch.stack([(x - (1 - p) * y) / p, y])


def _check_mixing(p: float) -> None:
    if not 0 < p <= 1:
        raise ValueError(f"EDICT's mixing weight p lies above 0 and at most at 1 (0.93 in the paper), not {p}.")
