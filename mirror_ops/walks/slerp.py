"""Spherical interpolation (Shoemake 1985), of prompts and of noise."""

import torch
from torch import Tensor

PARALLEL = 1e-4  # below this angle the formula divides rounding by rounding


def slerp(start: Tensor, end: Tensor, t: float) -> Tensor:
    """The tensor a fraction t of the way along the arc from `start` to `end`, two [B, ...] (B equal, or 1 of either).

    Each item of the batch is one vector; the angle is between the two and lengths go over linearly in the two
    weights: sin((1 - t) w) / sin(w) start + sin(t w) / sin(w) end. Vectors of one direction, or a vector and 0, go
    over in a straight line.
    """
    first, last = start.flatten(1), end.flatten(1)
    lengths = first.norm(dim=1) * last.norm(dim=1)
    cosine = (first * last).sum(dim=1) / lengths.clamp(min=torch.finfo(start.dtype).tiny)
    angle = torch.where(lengths > 0, cosine.clamp(-1, 1).acos(), torch.zeros_like(cosine))
    straight = angle.sin() < PARALLEL
    safe = torch.where(straight, torch.ones_like(angle), angle)
    one = torch.where(straight, torch.full_like(angle, 1 - t), ((1 - t) * safe).sin() / safe.sin())
    other = torch.where(straight, torch.full_like(angle, t), (t * safe).sin() / safe.sin())
    shape = (-1,) + (1,) * (start.ndim - 1)
    return one.reshape(shape) * start + other.reshape(shape) * end
