"""Classifier-free guidance, as a denoiser made of a denoiser (Ho & Salimans 2022, eq. 6, on denoised)."""

from collections.abc import Callable

from torch import Tensor

Denoiser = Callable[[Tensor, Tensor, object], Tensor]


def guided(denoise: Denoiser, scale: float) -> Denoiser:
    """A denoiser of pairs (positive, negative): D_n + scale * (D_p - D_n). At scale 1 the negative is not evaluated."""

    def pair_denoise(x: Tensor, sigma: Tensor, pair: tuple) -> Tensor:
        positive, negative = pair
        kept = denoise(x, sigma, positive)
        if scale == 1:
            return kept
        base = denoise(x, sigma, negative)
        return base + scale * (kept - base)

    return pair_denoise


def of_positive(denoise: Denoiser, scale: float, negative: object) -> Denoiser:
    """Guidance with a fixed negative: a denoiser of the positive prompt alone, as prompt redescription needs it."""
    pair_denoise = guided(denoise, scale)
    return lambda x, sigma, positive: pair_denoise(x, sigma, (positive, negative))


def of_negative(denoise: Denoiser, scale: float, positive: object) -> Denoiser:
    """Guidance with a fixed positive: a denoiser of the negative prompt alone, as null-text inversion needs it."""
    pair_denoise = guided(denoise, scale)
    return lambda x, sigma, negative: pair_denoise(x, sigma, (positive, negative))
