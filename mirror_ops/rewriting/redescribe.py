"""Prompt redescription: walk forward again and rewrite the prompt at every step so that the walk retraces inversion.

MirrorDiffusion (Xue et al., IEEE SPL 2024) rewrites the conditional embedding, null-text inversion (Mokady et al.
2023) the unconditional one; both are the same walk with another rewriter and another side of the guidance.
Two things matter: the embedding is carried from step to step, and the latent drifts, that is each step starts where
the last one really arrived and not at the recorded latent, so that errors are seen and undone.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..guidance.classifier_free import Denoiser
from ..walks.ddim import InputScale, euler, moves, variance_preserving


class Rewritten(NamedTuple):
    """What a rewriter returns for one step."""

    embedding: Tensor  # [B, tokens, width]
    arrived: Tensor | None  # move(embedding), if the rewriter has it already: saves one evaluation
    evaluations: int  # calls of move


Rewriter = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor, float], Rewritten]


class Redescription(NamedTuple):
    """The walk with rewritten prompts."""

    embeddings: Tensor  # [T, B, tokens, width], one per step
    reconstruction: Tensor  # [T+1, B, C, H, W], where the walk really went
    losses: Tensor  # [T, B] mean squared distance to the recorded latent after each step, in network units
    evaluations: list[int]  # [T] evaluations inside the rewriter


def redescribe(
    denoise: Denoiser,
    sigmas: Tensor,
    latents: Tensor,
    embedding: Tensor,
    rewrite: Rewriter,
    *,
    input_scale: InputScale = variance_preserving,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Redescription:
    """Walks `latents` [T+1, B, C, H, W] forward from latents[0], rewriting `embedding` [B or 1, tokens, width].

    `denoise(x, sigma, embedding)` holds the guidance at which one will sample (`of_positive`, `of_negative` of
    guidance.classifier_free).
    A rewriter is called as `rewrite(move, target, embedding, progress)`: `move(embedding)` is this step's Euler move,
    differentiable in its argument; `target` is the recorded latent it should reach, [B, C, H, W]; both are scaled to
    the unit variance that the network sees, so that losses mean the same at every level. `progress` is i / T.
    """
    x = latents[0]
    embedding = embedding.expand(len(x), -1, -1)
    embeddings, walk, losses, evaluations = [], [x], [], []
    for i, sigma, sigma_next in moves(sigmas):
        scale = input_scale(sigma_next)
        move = move_from(denoise, x, sigma, sigma_next, scale)
        target = scale * latents[i + 1]
        step = rewrite(move, target, embedding, i / (len(sigmas) - 1))
        embedding = step.embedding
        arrived = move(embedding) if step.arrived is None else step.arrived
        x = arrived / scale
        embeddings.append(embedding)
        walk.append(x)
        losses.append(mean_square(arrived - target))
        evaluations.append(step.evaluations)
        if on_step is not None:
            on_step(i, x)
    return Redescription(torch.stack(embeddings), torch.stack(walk), torch.stack(losses), evaluations)


def move_from(
    denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, scale: Tensor | float
) -> Callable[[Tensor], Tensor]:
    """One step as a function of the prompt: embedding -> scale * (the latent at sigma_next)."""
    return lambda embedding: scale * euler(x, denoise(x, sigma, embedding), sigma, sigma_next)


def mean_square(x: Tensor) -> Tensor:
    """[B] mean of squares of each picture of a batch."""
    return x.square().flatten(1).mean(dim=1)
