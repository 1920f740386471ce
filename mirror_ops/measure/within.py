"""How alike two pictures are inside a region, and outside it.

Pictures [B, C, H, W], masks [B or 1, 1, H, W] with 1 in the region. An edit should reach the truth inside the edited
region and leave everything outside as it was; one number over the whole picture mixes the two up.
"""

import torch
from torch import Tensor

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
