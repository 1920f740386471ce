"""How far a walk is from the recording, and how alike two pictures are."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

LEAST = 1e-12  # of a reference that something is measured by


def relative_displacement(x: Tensor, reference: Tensor) -> Tensor:
    """[...] rms(x - reference) / rms(reference) over the last three dimensions [..., C, H, W]; a large number, not
    infinity, where the reference is 0 everywhere."""
    return _rms(x - reference) / _rms(reference).clamp(min=LEAST)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(dim=(-3, -2, -1)).sqrt()


def psnr(x: Tensor, reference: Tensor, peak: float = 1.0) -> Tensor:
    """[B] 10 log10(peak^2 / mse) in dB over [B, ...]; equal pictures give inf."""
    mse = (x - reference).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(peak**2 / mse)


def ssim(x: Tensor, reference: Tensor, peak: float = 1.0, size: int = 11, width: float = 1.5) -> Tensor:
    """[B] structural similarity of [B, C, H, W] (Wang et al. 2004, eq. 13): the mean of `ssim_map`."""
    return ssim_map(x, reference, peak, size, width).mean(dim=(1, 2))


def ssim_map(x: Tensor, reference: Tensor, peak: float = 1.0, size: int = 11, width: float = 1.5) -> Tensor:
    """[B, H - size + 1, W - size + 1] similarity around each pixel of [B, C, H, W]: Gaussian window, valid borders.

    The mean over channels. Raises ValueError for pictures smaller than the window.
    """
    if min(x.shape[-2:]) < size:
        raise ValueError(f"SSIM needs pictures of at least {size} x {size} pixels, not {list(x.shape[-2:])}.")
    offsets = torch.arange(size, dtype=x.dtype, device=x.device) - (size - 1) / 2
    bell = torch.exp(-offsets.square() / (2 * width**2))
    window = torch.outer(bell, bell)[None, None] / bell.sum() ** 2

    def blur(y: Tensor) -> Tensor:
        return conv2d(y.flatten(0, 1)[:, None], window).unflatten(0, y.shape[:2])[:, :, 0]

    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mu_x, mu_y = blur(x), blur(reference)
    var_x = blur(x * x) - mu_x**2
    var_y = blur(reference * reference) - mu_y**2
    covariance = blur(x * reference) - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean(dim=1)
