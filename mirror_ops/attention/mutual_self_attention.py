"""Mutual self-attention: the edit asks, the source answers.

MasaCtrl (Cao et al., "MasaCtrl: Tuning-Free Mutual Self-Attention Control for Consistent Image Synthesis and Editing",
ICCV 2023): in the later layers of the later steps the edit's queries attend to the source's keys and values, so that
the edit gets the source's texture in a layout of its own. All tensors are projected, [B, pixels, heads * d].
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate, scaled_dot_product_attention

OWN, SOURCE, JOINT = "none", "source", "joint"


def mutual(own: Tensor, source: Tensor, mode: str, twice: bool = False) -> Tensor:
    """The keys (or the values) that a branch attends to: its own, the source's, or both side by side.

    source [B or 1, pixels, width]. With `twice` every mode gives 2 * pixels of them, so that branches of different
    modes fit in one batch: attending to the same things twice is attending to them once.
    """
    source = source.expand_as(own)
    first, second = {OWN: (own, own), SOURCE: (source, source), JOINT: (source, own)}[mode]
    if mode == JOINT and not twice:
        raise ValueError("Joint attention has twice the keys.")
    return torch.cat([first, second], dim=1) if twice else first


def unit_area(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, *size] how much a word draws, [B, h, w], from 0 where least to 1 where most, by nearest neighbour."""
    low, high = (f(heat, dim=(1, 2), keepdim=True) for f in (torch.amin, torch.amax))
    return interpolate(((heat - low) / (high - low).clamp(min=1e-12))[:, None], size=size)[:, 0]


def masked_mutual(
    q: Tensor, k: Tensor, v: Tensor, heads: int, source_area: Tensor, area: Tensor, threshold: float = 0.1
) -> Tensor:
    """[B, pixels, heads * d] the mask-guided variant: the edit's object asks the source's object, the rest the rest.

    q [B, pixels, heads * d] of the edit; k, v [B or 1, ...] of the source; source_area [B or 1, pixels] and area
    [B, pixels] in [0, 1], of `unit_area`. The source's is cut at `threshold`; the edit's blends both answers softly.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2).float() for x in (q, k, v))
    inside = (source_area >= threshold)[:, None, None]
    answers = []
    for asked in (inside, ~inside):
        # a finite mask: where nothing may be asked, everything is, alike
        mask = torch.zeros_like(asked, dtype=q.dtype).masked_fill(~asked, torch.finfo(q.dtype).min)
        answers.append(scaled_dot_product_attention(q, k, v, mask))
    blend = area[:, None, :, None]
    return (blend * answers[0] + (1 - blend) * answers[1]).transpose(1, 2).flatten(2)
