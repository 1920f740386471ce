"""DDIM inversion: the walk from the picture to noise that every method here starts from."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..guidance.classifier_free import Denoiser
from ..walks.ddim import InputScale, to_d, variance_preserving
from ..walks.schedules import check_grid, target_labels

Refinement = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def invert(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    cond: object,
    *,
    labels: Tensor | None = None,
    input_scale: InputScale = variance_preserving,
    regularise: Callable[[Tensor], Tensor] | None = None,
    refine: Refinement | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """The trajectory [T+1, B, C, H, W], in sampling order, that ends in the picture `x` at level sigmas[T].

    Move i goes up from sigma_{i+1} to sigma_i. The slope at the upper end is not known yet, so it is read at the lower
    latent under the label labels[i]: `schedules.target_labels` (default; Mokady et al. 2023) or `current_labels`
    (Parmar et al. 2023). `regularise(slope) -> slope` shapes the predicted noise before the move.
    `refine(g, x_up) -> x_up` then solves x_up = g(x_up), the implicit step that sampling undoes exactly.
    `on_step(i, x_up)` is called after each move. Raises ValueError for a grid that does not fall.
    """
    check_grid(sigmas)
    labels = target_labels(sigmas) if labels is None else labels
    latents = [x]
    for i in reversed(range(len(sigmas) - 1)):
        below, above = sigmas[i + 1], sigmas[i]
        d_up = to_d_below(denoise, x, below, labels[i], cond, input_scale)
        if regularise is not None:
            d_up = regularise(d_up)
        x_up = x + (above - below) * d_up
        if refine is not None:
            x_up = refine(fixed_point_map_of(denoise, x, below, above, cond), x_up)
        x = x_up
        latents.append(x)
        if on_step is not None:
            on_step(i, x)
    return torch.stack(latents[::-1])


def to_d_below(
    denoise: Denoiser, x: Tensor, level: Tensor, label: Tensor, cond: object, input_scale: InputScale
) -> Tensor:
    """dX/dsigma read at the latent of `level` while the network is told `label`.

    The network must see the latent of its own level, so x is rescaled by the quotient of the two input scales.
    """
    seen = x * (input_scale(level) / input_scale(label))
    return to_d(seen, denoise(seen, label, cond), label)


def fixed_point_map_of(
    denoise: Denoiser, x: Tensor, below: Tensor, above: Tensor, cond: object
) -> Callable[[Tensor], Tensor]:
    """The map x_up -> x + (above - below) * d(x_up, above), whose fixed point inverts the sampling move exactly."""

    def fixed_point_map(x_up: Tensor) -> Tensor:
        return x + (above - below) * to_d(x_up, denoise(x_up, above, cond), above)

    return fixed_point_map
