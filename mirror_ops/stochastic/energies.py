"""Energies of pictures, low where a picture is as wanted, for guidance by gradients.

An energy is `energy(pictures [B, 3, H, W] in [0, 1], generator) -> [B]`, differentiable in the pictures; what is random
in it comes from the generator. Any function of this form will do.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, cosine_similarity, grid_sample, log_softmax
from torch.utils.checkpoint import checkpoint


class Energy(Protocol):
    def __call__(self, pictures: Tensor, generator: Generator) -> Tensor:
        """[B] from pictures [B, 3, H, W]."""
        ...


def total(terms: Sequence[tuple[float, Energy]]) -> Energy:
    """The weighted sum of energies."""
    return lambda pictures, generator: sum(weight * energy(pictures, generator) for weight, energy in terms)


def likeness(embed: Callable[[Tensor], Tensor], target: Tensor, views: int) -> Energy:
    """1 - cosine of a picture's embedding and `target` [1 or B, width], the mean over `views` distorted copies.

    `target` may be a text's embedding (CLIP guidance) or another picture's. Without distortions the gradient finds
    patterns that only the encoder sees; 50 views in Wu & De la Torre 2023. The backward pass makes the views again, one
    at a time, so that memory does not grow with their number.
    """

    def distance(pictures: Tensor, seed: int) -> Tensor:
        seen = embed(distort(pictures, Generator().manual_seed(seed)))
        return 1 - cosine_similarity(seen, target.to(seen), dim=-1)

    def energy(pictures: Tensor, generator: Generator) -> Tensor:
        seeds = torch.randint(2**62, (views,), generator=generator, device=generator.device).tolist()
        return sum(checkpoint(distance, pictures, seed, use_reentrant=False) for seed in seeds) / views

    return energy


def class_likelihood(logits: Callable[[Tensor], Tensor], index: int) -> Energy:
    """-log of the probability that a classifier with `logits` [B, classes] gives to one class."""
    return lambda pictures, generator: -log_softmax(logits(pictures), dim=-1)[:, index]


def distort(x: Tensor, generator: Generator) -> Tensor:
    """Pictures [B, 3, H, W] with other colours, moved, resized and with a hole, each picture in its own way.

    DiffAugment (Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020): brightness
    + U(-0.5, 0.5), saturation x U(0, 2), contrast x U(0.5, 1.5), moved by up to 1/8, resized by U(0.8, 1.2), a hole of
    half the side. Values are not clamped: where a clamp binds there is no gradient.
    """
    return hole(moved(recoloured(x, generator), generator), generator)


def recoloured(x: Tensor, generator: Generator) -> Tensor:
    x = x + _uniform(x, generator, -0.5, 0.5)
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (x - grey) * _uniform(x, generator, 0.0, 2.0)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (x - mean) * _uniform(x, generator, 0.5, 1.5)


def moved(x: Tensor, generator: Generator) -> Tensor:
    """Translated and resized in one resampling; what comes in from outside is 0."""
    zoom = 1 / _uniform(x, generator, 0.8, 1.2).flatten()
    right, down = (_uniform(x, generator, -0.25, 0.25).flatten() for _ in range(2))  # an eighth of [-1, 1]
    none = torch.zeros_like(zoom)
    matrix = torch.stack([zoom, none, right, none, zoom, down], dim=1).reshape(-1, 2, 3)
    return grid_sample(x, affine_grid(matrix, list(x.shape), align_corners=False), align_corners=False)


def hole(x: Tensor, generator: Generator) -> Tensor:
    """A square of half the side blanked out, its middle anywhere in the picture."""
    masks = []
    for size in x.shape[-2:]:
        middle = _uniform(x, generator, 0, size).flatten()[:, None]
        masks.append((torch.arange(size, device=x.device) + 0.5 - middle).abs() < size / 4)
    inside = masks[0][:, None, :, None] & masks[1][:, None, None, :]
    return x * ~inside


def _uniform(x: Tensor, generator: Generator, low: float, high: float) -> Tensor:
    """[B, 1, 1, 1] of U(low, high), drawn on the generator's device."""
    drawn = torch.rand(len(x), 1, 1, 1, generator=generator, device=generator.device)
    return (low + (high - low) * drawn).to(x)
