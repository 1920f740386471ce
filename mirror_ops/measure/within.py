"""How alike two pictures are inside a region, and outside it.

Pictures [B, C, H, W], masks [B or 1, 1, H, W] with 1 in the region. An edit should reach the truth inside the edited
region and leave everything outside as it was; one number over the whole picture mixes the two up.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from .metrics import psnr, ssim_map

WINDOW = 11  # of SSIM


def psnr_within(x: Tensor, reference: Tensor, mask: Tensor, peak: float = 1.0) -> Tensor:
    """[B] PSNR in dB of the pixels of the region alone; NaN where there are none."""
    mask = mask.to(x)
    error = (x - reference).square().mean(dim=1, keepdim=True) * mask
    mse = error.sum(dim=(1, 2, 3)) / mask.expand_as(error).sum(dim=(1, 2, 3))
    return 10 * torch.log10(peak**2 / mse)


def ssim_within(x: Tensor, reference: Tensor, mask: Tensor, peak: float = 1.0) -> Tensor:
    """[B] mean of `ssim_map` over the region's pixels; NaN where there are none.

    Five pixels at each border have no full window and don't count.
    """
    border = WINDOW // 2
    inner = mask.to(x)[:, 0, border:-border, border:-border]
    similarity = ssim_map(x, reference, peak, WINDOW) * inner
    return similarity.sum(dim=(1, 2)) / inner.expand_as(similarity).sum(dim=(1, 2))


def psnr_blackened(x: Tensor, reference: Tensor, mask: Tensor, peak: float = 1.0) -> Tensor:
    """[B] PSNR with everything outside the region painted black in both: how PIE-Bench measures the background.

    The black pixels count as equal (Ju et al. 2024, official evaluator), so that this is `psnr_within` plus
    10 log10(pixels / pixels of the region).
    """
    mask = mask.to(x)
    return psnr(x * mask, reference * mask, peak)


def leak_within(x: Tensor, source: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """[B] how much of the source is left in the region: <x - reference, source - reference> / |source - reference|^2.

    0 where nothing of it is left, whatever else is wrong; 1 for the source itself. NaN where source and reference are
    equal.
    """
    mask = mask.to(x)
    old = (source - reference) * mask
    return ((x - reference) * old).flatten(1).sum(dim=1) / old.square().flatten(1).sum(dim=1)


def sharpness_within(x: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """[B] energy of the finest band in the region, relative to the reference's: below 1 where edges are smeared.

    The band is that of a Laplacian pyramid (Burt & Adelson 1983): what a 5 x 5 binomial blur takes away.
    """
    mask = mask.to(x)
    fine, of_reference = ((_finest_band(y).square() * mask).flatten(1).sum(dim=1) for y in (x, reference))
    return fine / of_reference


def _finest_band(x: Tensor) -> Tensor:
    """[B, C, H, W]"""
    taps = torch.tensor([1.0, 4, 6, 4, 1], dtype=x.dtype, device=x.device) / 16
    window = torch.outer(taps, taps)[None, None]
    padded = pad(x, (2, 2, 2, 2), mode="reflect").flatten(0, 1)[:, None]
    return x - conv2d(padded, window).unflatten(0, x.shape[:2])[:, :, 0]


def intersection_over_union(region: Tensor, mask: Tensor) -> Tensor:
    """[B] IoU of two regions [B, 1, H, W], each taken as 1 above a half; NaN where both are empty."""
    a, b = region > 0.5, mask > 0.5
    both, either = ((x.flatten(1).sum(dim=1)).to(mask) for x in (a & b, a | b))
    return both / either
