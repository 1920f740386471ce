"""A picture and its edit walked under the same fresh noise: a mirror that needs no inversion.

At each level the picture is noised anew, the edit is noised by the same noise, and the edit moves by the difference of
what the network sees in the two. CycleDiffusion (Wu & De la Torre 2023) shares the noises of a sampler; for flow models
this is FlowEdit (Kulikov et al., 2412.08629, algorithm 1), and with `jump` it is the virtual inversion of InfEdit (Xu
et al., 2312.04965, algorithm 1). Where both sides are told the same, the difference is zero and the picture stays as it
is, at any guidance and on any grid.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from ..regions.finders import softened
from .ddim import moves, to_d
from .noise import noise_of, noised, signal
from .sample import PredictBoth

Keep = Callable[[int, Tensor], Tensor]
HIDES = 4.5  # the level at which noise, averaged over the cells below, is as large as the picture's own contrast
COARSE = 2  # cells: the mean of 5 x 5


def shared_noise(
    predict: PredictBoth,
    picture: Tensor,
    sigmas: Tensor,
    generators: Sequence[Generator],
    *,
    flow: bool = False,
    draws: int = 1,
    jump: bool = False,
    antithetic: bool = True,
    keep: Keep | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """[B, C, H, W] the edited picture, from `picture` [B, C, H, W], a clean latent, on falling `sigmas` [T+1].

    `predict` is asked at each draw for both sides, at one level and under one noise. `generators`, one for each
    picture, draw the noise, so that a picture's edit does not depend on what it is batched with. `draws`: so many
    noises a step, whose moves are averaged. `antithetic` noises are each followed by their opposite, so that what is
    odd in the noise cancels at no cost. `keep(i, change) -> change` [B, C, H, W] says what is kept of the edit so far,
    its difference from the picture, after each step (see `coarse`, and regions/). `on_step(i, edited)` sees the edit
    after each step. Latents are x0 + sigma n, or (1 - sigma) x0 + sigma n with `flow`.

    The walk may start below the noisiest level: the picture then decides more. Raises ValueError for a number of
    generators that does not fit.
    """
    if len(generators) != len(picture):
        raise ValueError(f"{len(picture)} pictures need as many noise generators, not {len(generators)}.")
    noises = noise_of(generators, picture, antithetic)
    offset = torch.zeros_like(picture)  # of the noised edit from the noised picture; shrinks with a flow model's signal
    for i, sigma, sigma_next in moves(sigmas):
        pairs = [_noised_alike(predict, picture, offset, next(noises), sigma, i, flow) for _ in range(draws)]
        after = signal(sigma_next, flow)
        if jump:
            offset = after * _mean([edited - kept for _, kept, _, edited in pairs])
        else:
            slopes = [to_d(x_e, edited, sigma) - to_d(x_s, kept, sigma) for x_s, kept, x_e, edited in pairs]
            offset = offset + (sigma_next - sigma) * _mean(slopes)
        if keep is not None:
            offset = after * keep(i, offset / after)
        if on_step is not None:
            on_step(i, picture + offset / after)
    return picture + offset / signal(sigmas[-1], flow)


def coarse(change: Tensor, sigma: Tensor, flow: bool = False) -> Tensor:
    """A change [B, C, H, W] without what noise of this level hides: averaged over COARSE cells to each side at the
    noisy end, and as it is below HIDES (in variance-exploding units).

    What is decided finer than it can be seen, such as where an ear ends, is a guess that the rest of the walk is left
    with. Colours and large shapes are decided at high noise and nowhere else, so the walk begins there all the same.
    """
    return softened(change, COARSE) if sigma > HIDES * signal(sigma, flow) else change


def _noised_alike(predict, picture, offset, noise, sigma, i, flow) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x_source, D_source, x_edit, D_edit) under one noise."""
    x_s = noised(picture, noise, sigma, flow)
    x_e = x_s + offset
    kept, edited = predict(x_s, x_e, sigma, i)
    return x_s, kept, x_e, edited


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(dim=0)
