"""Quantiles of as many numbers as there are: torch.quantile refuses more than 2^24 at once."""

import math

import torch
from torch import Tensor

LARGEST = 2**24  # numbers that torch.quantile takes


def quantile(values: Tensor, q: float) -> Tensor:
    """[...] the q-quantile, q in [0, 1], along the last dimension of finite values [..., N], linear between two of them
    as torch.quantile's."""
    if values.numel() <= LARGEST:
        return torch.quantile(values, q, dim=-1)
    ordered, last = values.sort(dim=-1).values, values.shape[-1] - 1
    rank = q * last  # in double precision: single has no fractions up there
    below = math.floor(rank)
    return torch.lerp(ordered[..., below], ordered[..., min(below + 1, last)], rank - below)
