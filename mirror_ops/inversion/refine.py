"""Fixed-point refinement of one inversion move.

DDIM inversion reads the slope at the wrong end of the move. The move that sampling undoes exactly is the implicit one,

    X_b = g(X_b),    g(X) = X_a + (sigma_b - sigma_a) (X - D(X, sigma_b)) / sigma_b,

solved by iteration (Pan et al., "Effective Real Image Editing with Accelerated Iterative Diffusion Inversion", ICCV
2023; Garibi et al., "ReNoise", ECCV 2024). Only sigma_b > 0 is divided by, so moves that start at sigma_a = 0 or end
at a flow model's sigma_b = 1 are like any other. The sampling move from X_b lands on X_a + (X_b - g(X_b)): the
residual g(X) - X is what reconstruction will miss, and at the fixed point sampling returns X_a.

The map contracts only while guidance is weak. Invert at cfg 1; at higher scales look at the residuals.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

FixedPointMap = Callable[[Tensor], Tensor]
Mixing = Callable[[list[Tensor], list[Tensor]], Tensor]


class Refined(NamedTuple):
    """The refined latent and how it was reached."""

    x: Tensor  # [B, C, H, W]
    residuals: Tensor  # [evaluations, B] ||g(x) - x|| / ||g(x)|| of the iterates, before each update


def refine(
    g: FixedPointMap, x: Tensor, iterations: int, mixing: Mixing | None = None, tolerance: float = 0.0
) -> Refined:
    """Solves x = g(x) from the first guess `x` [B, C, H, W], usually the plain inversion move.

    Each iteration costs one evaluation of `g`. `mixing(mapped, residuals) -> next iterate` combines what was
    evaluated so far, newest last: `newest` (default), `averaged` or `anderson`. A picture whose residual is at most
    `tolerance` is left as it is, and iteration ends when all are, so a batch gives what its pictures give one by one.
    Where the iteration diverged, the best iterate evaluated is returned. Raises ValueError for iterations < 1.
    """
    if iterations < 1:
        raise ValueError(f"Fixed-point refinement takes 1 or more iterations, not {iterations}.")
    mixing = mixing or newest
    best, least = x, None
    mapped_all: list[Tensor] = []
    residual_all: list[Tensor] = []
    curve: list[Tensor] = []
    for _ in range(iterations):
        mapped = g(x)
        mapped_all.append(mapped)
        residual_all.append(mapped - x)
        curve.append(_relative(mapped - x, mapped))
        least = curve[-1] if least is None else torch.minimum(least, curve[-1])
        best = torch.where(_rows(curve[-1] <= least, x), x, best)
        settled = curve[-1] <= tolerance
        if bool(settled.all()):
            break
        x = torch.where(_rows(settled, x), x, mixing(mapped_all, residual_all))
    diverged = ~(curve[-1] <= curve[0])  # also where it is not a number
    return Refined(torch.where(_rows(diverged, x), best, x), torch.stack(curve))


def newest(mapped: list[Tensor], residuals: list[Tensor]) -> Tensor:
    """Plain iteration: x <- g(x). The error shrinks by the map's contraction factor each time."""
    return mapped[-1]


def averaged(mapped: list[Tensor], residuals: list[Tensor]) -> Tensor:
    """Half of each of the last two, AIDI's empirical acceleration: cancels a contraction factor close to -1."""
    return mapped[-1] if len(mapped) < 2 else (mapped[-1] + mapped[-2]) / 2


def anderson(memory: int = 3, ridge: float = 1e-6) -> Mixing:
    """Anderson acceleration over the last `memory` + 1 evaluations, solved for each picture by itself.

    gamma = argmin ||r_n - sum_j gamma_j (r_n - r_{n-j})||^2, x <- g_n - sum_j gamma_j (g_n - g_{n-j}), where g are
    the mapped latents and r = g - x their residuals (Walker & Ni 2011, eq. 2.2, full step). The normal equations are
    scaled to a unit diagonal and given `ridge`; raise it where evaluations are noisy (half precision).
    """

    def mix(mapped: list[Tensor], residuals: list[Tensor]) -> Tensor:
        window = slice(-1 - memory, -1)
        if not residuals[window]:
            return mapped[-1]
        step_r = torch.stack([(residuals[-1] - r).flatten(1) for r in residuals[window]], dim=1)  # [B, m, CHW]
        step_g = torch.stack([(mapped[-1] - g).flatten(1) for g in mapped[window]], dim=1)  # [B, m, CHW]
        gamma = _least_squares(step_r, residuals[-1].flatten(1), ridge)  # [B, m, 1]
        return mapped[-1] - (gamma * step_g).sum(dim=1).reshape(mapped[-1].shape)

    return mix


def _least_squares(rows: Tensor, target: Tensor, ridge: float) -> Tensor:
    """[B, m, 1] weights with which `rows` [B, m, N] add up to `target` [B, N]. Not finite counts as no weight."""
    gram = (rows @ rows.mT).cpu().double()
    right = (rows @ target[..., None]).cpu().double()  # the m x m system is tiny, and not every device has doubles
    size = gram.diagonal(dim1=1, dim2=2).clamp(min=1e-300).sqrt()[..., None]  # [B, m, 1]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    scaled = (gram / (size * size.mT)).nan_to_num() + ridge * eye
    return (torch.linalg.solve(scaled, (right / size).nan_to_num()) / size).to(rows)


def _relative(difference: Tensor, reference: Tensor) -> Tensor:
    """[B] ||difference|| / ||reference|| of [B, ...]."""
    size = reference.flatten(1).norm(dim=1).clamp(min=torch.finfo(reference.dtype).tiny)
    return difference.flatten(1).norm(dim=1) / size


def _rows(mask: Tensor, x: Tensor) -> Tensor:
    """A mask [B] in a shape that broadcasts against x [B, ...]."""
    return mask.reshape(-1, *[1] * (x.ndim - 1))
