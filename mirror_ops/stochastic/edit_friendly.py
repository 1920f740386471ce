"""Edit-friendly DDPM inversion (Huberman-Spiegelglas, Kulikov & Michaeli, CVPR 2024, arXiv 2304.06140, algorithm 1).

Like the DPM-encoder, but each level's noisy picture gets a noise of its own instead of one posterior path. Such a path
is not one a sampler would draw: its noises are larger and hold more of the picture's layout, so the layout survives
another prompt. Decode with `dpm_encoder.dpm_decode`; to start at level k (36 of 100 in the paper) decode latents[k]
with noises[k:] on sigmas[k:].

Two differences from the official code: the last noise is kept, where the code sets it to 0 and does not reproduce the
picture; and the mean uses eta^2, where the code uses eta (equal at eta 1).
"""

from collections.abc import Sequence

from torch import Generator, Tensor

from ..guidance.classifier_free import Denoiser
from ..walks.noise import draw, noised
from .dpm_encoder import Code, Propose, dpm_encode


def independent(picture: Tensor, sigmas: Tensor, eta: float, generators: Sequence[Generator], flow: bool) -> Propose:
    """Draws x_{i+1} = a picture + sigma n with a noise n of its own, whatever x_i is: a path for `dpm_encode`."""

    def propose(i: int, x: Tensor) -> Tensor:
        if i == len(sigmas) - 2:
            return picture
        return noised(picture, draw(picture, generators), sigmas[i + 1], flow)

    return propose


def edit_friendly_encode(
    denoise: Denoiser,
    picture: Tensor,
    sigmas: Tensor,
    cond: object,
    generators: Sequence[Generator],
    eta: float = 1.0,
    flow: bool = False,
) -> Code:
    """Encodes `picture` [B, C, H, W] on `sigmas` [T+1], sampling order, at one evaluation a step.

    Raises ValueError for eta outside (0, 1], a grid that does not fall, or a flow grid above 1.
    """
    return dpm_encode(denoise, picture, sigmas, cond, eta, generators, flow, independent)
