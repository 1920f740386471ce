"""SDEdit: a picture is noised part of the way and drawn anew from there.

Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations", ICLR 2022. With eta 1
over the last few levels it is the polish that CycleDiffusion's unpaired translation ends with (Wu & De la Torre 2023:
noise to t = 99 of 1000, once).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from ..guidance.classifier_free import Denoiser
from ..walks.noise import draw, noised
from .dpm_encoder import check_stochastic, dpm_decode


def sdedit(
    denoise: Denoiser,
    picture: Tensor,
    sigmas: Tensor,
    cond: object,
    generators: Sequence[Generator],
    eta: float = 1.0,
    flow: bool = False,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """[B, C, H, W] `picture` at level sigmas[0], sampled down `sigmas` [T+1] with fresh noises.

    Raises ValueError for eta outside (0, 1], a grid that does not fall, or a flow grid above 1.
    """
    check_stochastic(sigmas, eta, flow)
    start = noised(picture, draw(picture, generators), sigmas[0], flow)
    steps = len(sigmas) - 1
    fresh = (draw(picture, generators) if sigmas[i + 1] > 0 else torch.zeros_like(picture) for i in range(steps))
    return dpm_decode(denoise, start, fresh, sigmas, cond, eta, flow, on_step)
