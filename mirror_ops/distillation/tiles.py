"""A distilled edit on pictures too large for one pass: in pieces whose result is that of the whole picture."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .network import Shape

SIDE = 512  # pixels of a piece's sides, at most


def room(shape: Shape, side: int = SIDE) -> int:
    """Pixels of a piece's side that are right, once those go that its borders reach; none: 0."""
    return max(0, side - 2 * _margin(shape)) // shape.multiple * shape.multiple


def in_tiles(run: Callable[[Tensor], Tensor], picture: Tensor, shape: Shape, side: int = SIDE) -> Tensor:
    """`run(picture)` [B, 3, H, W] by a network of this shape, but never on more than `side` x `side` pixels at once.

    Pieces overlap by the network's reach on each side and are cut there, not blended: every pixel comes from a piece
    that holds all it depends on. Pieces begin at multiples of the network's halvings, so that its cells lie where they
    lie in the whole. Raises ValueError where the reach leaves no `room`.
    """
    step, margin = room(shape, side), _margin(shape)
    if not step:
        raise ValueError(f"A network that sees {shape.reach} pixels to each side has no place in tiles of {side}.")
    height, width = picture.shape[2:]
    rows = [torch.cat([_piece(run, picture, top, left, step, margin) for left in range(0, width, step)], dim=3)
            for top in range(0, height, step)]
    return torch.cat(rows, dim=2)


def _piece(run: Callable[[Tensor], Tensor], picture: Tensor, top: int, left: int, step: int, margin: int) -> Tensor:
    above, beside = max(0, top - margin), max(0, left - margin)
    made = run(picture[..., above:top + step + margin, beside:left + step + margin])
    return made[..., top - above:, left - beside:][..., :step, :step]


def _margin(shape: Shape) -> int:
    """The reach, in whole cells."""
    return -(-shape.reach // shape.multiple) * shape.multiple
