"""Small denoisers with a known answer, for tests of the maths: no host, no weights, any dtype."""

from collections.abc import Callable

import torch
from torch import Tensor

from mirror_ops.walks.provenance import ModelIdentity, Provenance
from mirror_ops.walks.sample import Predict, PredictBoth


def scaled_linear_sigmas(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Stable Diffusion's table: [steps] noise levels, rising, float64.

    betas = linspace(sqrt(start), sqrt(end))^2, alpha_bar = cumprod(1 - betas) (Rombach et al. 2022, "scaled linear");
    sigma = sqrt((1 - alpha_bar) / alpha_bar).
    """
    alpha_bar = torch.cumprod(1 - torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2, dim=0)
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def mixture(*, channels: int = 4, components: int = 3, spread: float = 0.35, flow: bool = False) -> Callable:
    """The exact posterior mean E[x0 | x] of data whose pixels are drawn from a mixture of Gaussians. Nonlinear.

    Each pixel, a vector of `channels`, is drawn from one of `components` Gaussians of deviation `spread` around random
    means. cond, broadcastable to [B, C, H, W], moves all means: the "prompt". x = a x0 + s n, where a = 1, s = sigma
    (variance exploding) or a = 1 - sigma, s = sigma (flow).
    """
    means = torch.randn(components, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def denoise(x: Tensor, sigma: Tensor, cond: Tensor | float) -> Tensor:
        signal = 1 - sigma if flow else torch.ones_like(sigma)
        centres = means.to(x)[:, None, :, None, None] + cond  # [K, B, C, H, W]
        offset = x - signal * centres
        total = (signal * spread) ** 2 + sigma**2
        weights = torch.softmax(-offset.square().sum(dim=2, keepdim=True) / (2 * total), dim=0)
        return (weights * (centres + signal * spread**2 / total * offset)).sum(dim=0)

    return denoise


def pictures(batch: int = 2, height: int = 8, width: int = 6, *, seed: int = 1, dtype=torch.float64) -> Tensor:
    """[batch, 4, height, width] latents of unit deviation, repeatable."""
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generators(batch: int = 2, seed: int = 3) -> list[torch.Generator]:
    """A generator for each picture, as nodes make them of a seed."""
    return [torch.Generator().manual_seed(seed + place) for place in range(batch)]


def normals(of: list[torch.Generator], *shape: int) -> Tensor:
    """[B, *shape] the next unit noise of each."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in of]).double()


def karras(steps: int, highest: float = 14.6, lowest: float = 0.03, dtype=torch.float64) -> Tensor:
    """[steps+1] falling levels, `highest` ... `lowest`, 0 (Karras et al. 2022, eq. 5, rho = 7)."""
    ramp = torch.linspace(0, 1, steps, dtype=dtype)
    levels = (highest ** (1 / 7) + ramp * (lowest ** (1 / 7) - highest ** (1 / 7))) ** 7
    return torch.cat([levels, levels.new_zeros(1)])


def flow_grid(steps: int, dtype=torch.float64) -> Tensor:
    """[steps+1] even levels 1 ... 0 of a flow model."""
    return torch.linspace(1, 0, steps + 1, dtype=dtype)


def provenance(method: str = "paper", **changes) -> Provenance:
    """Of a mirror that no host made."""
    model = ModelIdentity("Toy", "EPS", "EPS", "SD15", 4, "from 0.03 to 14.6", "float32", "0" * 12, "")
    return Provenance(model, method, **changes)


def told(denoise, prompt):
    """A denoiser that knows its prompt, as a branch of a walk."""
    return lambda x, sigma, i: denoise(x, sigma, prompt)


def one_by_one(source: Predict, edit: Predict) -> PredictBoth:
    """Two branches as a pair: the source is asked first."""
    return lambda x, y, sigma, i: (source(x, sigma, i), edit(y, sigma, i))
