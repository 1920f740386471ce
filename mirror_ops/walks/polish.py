"""A finished edit drawn again from a little noise on, where it acted.

A walk under shared noise adds up moves that were each seen through another noise: what they agree on is right, what
they do not is left as a shimmer, of an ear that is gone or of the edge of a new one. A little noise hides that, and the
network draws it as its pictures are (SDEdit, Meng et al., ICLR 2022), the original around it under the same noise
(Blended Latent Diffusion, Avrahami et al., SIGGRAPH 2023).
"""

import torch
from torch import Tensor

from .ddim import euler, moves
from .noise import noised
from .sample import Predict


def polished(
    predict: Predict, edited: Tensor, picture: Tensor, region: Tensor, noise: Tensor, sigmas: Tensor, flow: bool = False
) -> Tensor:
    """[B, C, H, W] the edit, noised to sigmas[0] and walked down again, `picture` where the region [B, 1, H, W] is 0.

    `edited`, `picture` and the unit `noise` are [B, C, H, W], clean latents; `predict` answers for the edited prompt.
    The last step goes on to 0 where `sigmas` [N+1] end above it, so that no noise is left.
    """
    sigmas = torch.cat([sigmas[:-1], torch.zeros_like(sigmas[-1:])])
    x = noised(edited, noise, sigmas[0], flow)
    for i, sigma, sigma_next in moves(sigmas):
        x, around = euler(x, predict(x, sigma, i), sigma, sigma_next), noised(picture, noise, sigma_next, flow)
        x = around + region * (x - around)
    return x
