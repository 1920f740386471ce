"""Sampling: the plain walk, and the two-branch walk that edits.

A branch of a walk is predicted by `predict(x, sigma, i) -> denoised`, a denoiser that already knows the prompts and
guidance of step i. `PredictBoth` answers for two branches, each at its own latent, which may take one network call.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .ddim import euler, implied_denoised, moves

Predict = Callable[[Tensor, Tensor, int], Tensor]
PredictBoth = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
Region = Callable[[int, Tensor], Tensor]


def sample(
    predict: Predict, sigmas: Tensor, x: Tensor, on_step: Callable[[int, Tensor], None] | None = None
) -> Tensor:
    """The trajectory [T+1, B, C, H, W] of Euler's walk from x at sigmas[0]. DDIM with eta 0."""
    walk = [x]
    for i, sigma, sigma_next in moves(sigmas):
        x = euler(x, predict(x, sigma, i), sigma, sigma_next)
        walk.append(x)
        if on_step is not None:
            on_step(i, x)
    return torch.stack(walk)


def mirror_sample(
    source: Predict,
    edit: Predict,
    sigmas: Tensor,
    latents: Tensor,
    *,
    exact: bool = False,
    residual: bool = False,
    region: Region | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """(edited, reconstruction), each [B, C, H, W]: both branches walk side by side from latents[0], the recording
    to hold onto.

    latents [T+1, B, C, H, W] is the recorded inversion. With `exact` the recorded latent takes over in the source
    branch after each step (Direct Inversion, Ju et al. 2024), so the reconstruction is the recording. `residual` also
    adds to the edit branch what the source branch missed the recording by at this step.
    `region(i, difference) -> m` in [0, 1], broadcastable to [B, C, H, W], keeps the recording where m is 0: the
    edited latent of the next level becomes recorded + m * (edited - recorded). `difference` [B, C, H, W] is the edit
    branch's prediction without the one that the recording moved by; with `residual`, without the source branch's, as a
    recorded noisy path moves by its noises, too.
    """
    x = y = latents[0]
    for i, sigma, sigma_next in moves(sigmas):
        recorded = latents[i + 1]
        if residual or not exact:
            kept = source(x, sigma, i)
            arrived = euler(x, kept, sigma, sigma_next)
        denoised = edit(y, sigma, i)
        y = euler(y, denoised, sigma, sigma_next)
        if residual:
            y = y + (recorded - arrived)
        x = recorded if exact else arrived
        if region is not None:
            difference = denoised - (kept if residual else implied_denoised(latents[i], recorded, sigma, sigma_next))
            y = recorded + region(i, difference) * (y - recorded)
        if on_step is not None:
            on_step(i, y)
    return y, x
