"""DPM-encoder: a picture as the sequence of noises that a stochastic sampler would need to draw it.

CycleDiffusion (Wu & De la Torre, "A Latent Space of Stochastic Diffusion Models for Zero-Shot Image Editing and
Guidance", ICCV 2023, algorithm 1). A noisy path x_0, ..., x_T is drawn from the posterior q(x_{i+1} | x_i, picture);
each step's noise is what the network's own step misses the path by,

    z_i = (x_{i+1} - mu(x_i)) / up_i,        mu(x_i) = a_{i+1} D + down_i (x_i - a_i D) / s_i.

Sampling with these noises and the same prompt gives the picture back exactly, with another prompt edits it.

With x = a x0 + s n at each level, DDIM's stochastic step (Song et al., eq. 16) in the signal-to-noise form of Karras et
al.'s ancestral step is

    up = eta s_{i+1} sqrt(1 - r^2),    down = sqrt(s_{i+1}^2 - up^2),    r = (s_{i+1} / a_{i+1}) / (s_i / a_i).

Variance-exploding latents have a = 1 and s = sigma. Flow latents have a = 1 - sigma and s = sigma: the same process
after the change of variables x / a, written with r = s_{i+1} a_i / (a_{i+1} s_i) so that sigma = 1 divides by nothing.
(This eta is DDIM's; the host's `euler_ancestral` for flow models spends its eta differently.)

The last step aims at the picture itself. Where it ends at sigma 0, nothing is drawn there (up = 0), yet the network's
last prediction is not the picture: its noise is then kept as the plain difference picture - D, and added as such.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ..guidance.classifier_free import Denoiser
from ..walks.ddim import moves
from ..walks.noise import draw, noised, signal
from ..walks.sample import PredictBoth
from ..walks.schedules import check_grid

Propose = Callable[[int, Tensor], Tensor]  # (i, x_i) -> x_{i+1}, the last one being the picture
Path = Callable[[Tensor, Tensor, float, Sequence[Generator], bool], Propose]  # (picture, sigmas, eta, draws, flow)


class Code(NamedTuple):
    """A picture as noises. Sampling from level k on starts at latents[k] with noises[k:] on sigmas[k:]."""

    latents: Tensor  # [T+1, B, C, H, W] the noisy path, in sampling order, ending in the picture
    noises: Tensor  # [T, B, C, H, W] in units of `up`; the last one in latent units where sigmas[T] is 0


def posterior(picture: Tensor, sigmas: Tensor, eta: float, generators: Sequence[Generator], flow: bool) -> Propose:
    """Draws x_{i+1} from q(x_{i+1} | x_i, picture): the ancestral step of a network that knows the picture."""

    def propose(i: int, x: Tensor) -> Tensor:
        if i == len(sigmas) - 2:
            return picture
        mu, up = ancestral_mean(x, picture, sigmas[i], sigmas[i + 1], eta, flow)
        return mu + up * draw(picture, generators)

    return propose


def dpm_encode(
    denoise: Denoiser,
    picture: Tensor,
    sigmas: Tensor,
    cond: object,
    eta: float,
    generators: Sequence[Generator],
    flow: bool = False,
    path: Path = posterior,
) -> Code:
    """Encodes `picture` [B, C, H, W] along one noisy path on `sigmas` [T+1], sampling order. One evaluation a step.

    `generators`, one for each picture, draw the path. `eta` in (0, 1]: 0.1 in the paper; small eta keeps the path near
    the picture and makes noises far from unit size. To keep more of the picture start lower, with sigmas[k:]. Raises
    ValueError for another eta, a grid that does not fall, or a flow grid above 1.
    """
    check_stochastic(sigmas, eta, flow)
    start = noised(picture, draw(picture, generators), sigmas[0], flow)
    propose = path(picture, sigmas, eta, generators, flow)
    return record(start, encode_steps(denoise, start, propose, sigmas, cond, eta, flow))


def dpm_decode(
    denoise: Denoiser,
    start: Tensor,
    noises: Iterable[Tensor],
    sigmas: Tensor,
    cond: object,
    eta: float,
    flow: bool = False,
    on_step: Callable[[int, Tensor], None] | None = None,
    mask: Tensor | None = None,
    path: Iterable[Tensor] | None = None,
) -> Tensor:
    """The picture [B, C, H, W] sampled from `start` at sigmas[0] with given `noises` (T of them), not drawn ones.

    With the prompt, eta and grid of the encoding it is the encoded picture. `on_step(i, x)` is called after each step.
    Where `mask` [B or 1, 1, H, W] is 0 the walk stays on `path`, the encoding's latents after each step (T of them).
    """
    check_stochastic(sigmas, eta, flow)
    x, path = start, repeat(start, len(sigmas) - 1) if mask is None else path
    for (i, sigma, sigma_next), z, kept in zip(moves(sigmas), noises, path, strict=True):
        mu, scale = ancestral_mean(x, denoise(x, sigma, cond), sigma, sigma_next, eta, flow)
        x = mu + scale * z
        x = x if mask is None else mask * x + (1 - mask) * kept
        if on_step is not None:
            on_step(i, x)
    return x


def cycle_diffusion(
    predict: PredictBoth,
    picture: Tensor,
    sigmas: Tensor,
    eta: float,
    generators: Sequence[Generator],
    flow: bool = False,
    path: Path = posterior,
    on_step: Callable[[int, Tensor], None] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Encoding under one prompt and decoding under another in one walk, each noise used as soon as it is known.

    The result is that of `dpm_encode` and `dpm_decode`; memory does not grow with steps. `predict(x, y, sigma, i)`
    gives the predictions of the encoder at x and of the decoder at y, which may differ in guidance: 1 for the encoder
    and 1 to 5 for the decoder in the paper. Where `mask` [B or 1, 1, H, W] is 0 the picture stays as it was. Errors as
    there.
    """
    check_stochastic(sigmas, eta, flow)
    x = y = noised(picture, draw(picture, generators), sigmas[0], flow)
    propose = path(picture, sigmas, eta, generators, flow)
    for i, sigma, sigma_next in moves(sigmas):
        seen, edited = predict(x, y, sigma, i)
        mu, scale = ancestral_mean(x, seen, sigma, sigma_next, eta, flow)
        z = (propose(i, x) - mu) / scale
        x = mu + scale * z
        mu, scale = ancestral_mean(y, edited, sigma, sigma_next, eta, flow)
        y = mu + scale * z
        y = y if mask is None else mask * y + (1 - mask) * x
        if on_step is not None:
            on_step(i, y)
    return y


def encode_steps(
    denoise: Denoiser, x: Tensor, propose: Propose, sigmas: Tensor, cond: object, eta: float, flow: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """(x_{i+1}, z_i) for each step of a path that starts at x and goes on to `propose(i, x_i)`.

    The next latent is put together again from its noise, so that decoding meets the very same numbers (Huberman-
    Spiegelglas et al. 2024 do so against the build-up of rounding).
    """
    for i, sigma, sigma_next in moves(sigmas):
        mu, scale = ancestral_mean(x, denoise(x, sigma, cond), sigma, sigma_next, eta, flow)
        z = (propose(i, x) - mu) / scale
        x = mu + scale * z
        yield x, z


def record(start: Tensor, steps: Iterable[tuple[Tensor, Tensor]]) -> Code:
    """The code of a path: all its latents and noises."""
    latents, noises = zip(*steps, strict=True)
    return Code(torch.stack([start, *latents]), torch.stack(noises))


def ancestral_mean(
    x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, eta: float, flow: bool
) -> tuple[Tensor, Tensor]:
    """(mu, scale): the mean of the next latent and what a step's noise is multiplied by: `up`, or 1 where up is 0."""
    a, a_next = signal(sigma, flow), signal(sigma_next, flow)
    down, up = ancestral_split(sigma, sigma_next, eta, flow)
    mu = a_next * denoised + down * (x - a * denoised) / sigma
    return mu, torch.where(up > 0, up, torch.ones_like(up))


def ancestral_split(sigma: Tensor, sigma_next: Tensor, eta: float, flow: bool = False) -> tuple[Tensor, Tensor]:
    """(down, up): how much of the next level's noise is carried over, how much drawn; down^2 + up^2 = sigma_next^2."""
    ratio = sigma_next * signal(sigma, flow) / (signal(sigma_next, flow) * sigma)
    up = eta * sigma_next * (1 - ratio**2).sqrt()
    return (sigma_next**2 - up**2).sqrt(), up


def check_stochastic(sigmas: Tensor, eta: float, flow: bool) -> None:
    """Raises ValueError unless the grid falls (a flow grid from 1 or less) and eta is in (0, 1]."""
    check_grid(sigmas)
    if not 0 < eta <= 1:
        raise ValueError(f"eta must be above 0 and at most 1, not {eta}; at 0 no noise is drawn to hold the picture.")
    if flow and sigmas[0] > 1:
        raise ValueError(f"The noise levels of a flow model lie between 0 and 1; these start at {float(sigmas[0]):g}.")
