"""What a distilled edit is trained for: the teacher's pixels, its edges, and pictures that look like the teacher's.

Pictures [B, 3, H, W] in [0, 1], regions [B, 1, H, W] with 1 where the edit acts. Outside the region the target is the
picture itself, whatever the teacher did there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu
from torch.nn.utils.parametrizations import spectral_norm

INSIDE = 0.25  # how much more a pixel of the region counts, in all losses; at 1 more changes outside it


def target(before: Tensor, after: Tensor, region: Tensor) -> Tensor:
    """What the network is to return: the teacher's edit in its region, the picture elsewhere."""
    return before + region * (after - before)


def pixel_loss(made: Tensor, wanted: Tensor, region: Tensor) -> Tensor:
    """Mean absolute error, a pixel of the region counting 1 + INSIDE times."""
    return weighted((made - wanted).abs(), region)


def gradient_loss(made: Tensor, wanted: Tensor, region: Tensor) -> Tensor:
    """Mean absolute error of neighbours' differences, across and down, weighted as `pixel_loss`, a difference by the
    mean of its two pixels: edges as sharp as the teacher's."""
    error = made - wanted
    across = weighted((error[..., 1:] - error[..., :-1]).abs(), (region[..., 1:] + region[..., :-1]) / 2)
    down = weighted((error[..., 1:, :] - error[..., :-1, :]).abs(), (region[..., 1:, :] + region[..., :-1, :]) / 2)
    return across + down


def weighted(values: Tensor, region: Tensor) -> Tensor:
    """The mean of values [B, C, H, W], those of the region [B, 1, H, W] counting 1 + INSIDE times."""
    weight = 1 + INSIDE * region
    return (weight * values).sum() / (values.shape[1] * weight.sum())


class Discriminator(nn.Module):
    """Scores each patch of a pair (before, after): is the second the teacher's or the network's?

    PatchGAN conditioned on the input (Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks",
    CVPR 2017), 46-pixel patches, spectral normalisation (Miyato et al., ICLR 2018).
    """

    def __init__(self, width: int = 32):
        super().__init__()
        sides = (6, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for there, here in zip(sides, sides[1:], strict=False):
            layers += [spectral_norm(nn.Conv2d(there, here, 4, 2, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(sides[-1], 1, 4, 1, 1)))

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return self.layers(torch.cat([before, after], dim=1) * 2 - 1)


def discriminator_loss(judge: Discriminator, before: Tensor, made: Tensor, wanted: Tensor, region: Tensor) -> Tensor:
    """Hinge loss: the teacher's pairs above 1, the network's below -1 (Lim & Ye 2017); patches are `weighted` by how
    much of the region they lie in."""
    real, fake = relu(1 - judge(before, wanted)), relu(1 + judge(before, made.detach()))
    share = _of_patches(region, real)
    return weighted(real, share) + weighted(fake, share)


def adversarial_loss(judge: Discriminator, before: Tensor, made: Tensor, region: Tensor) -> Tensor:
    """The network's part of the hinge loss."""
    scores = judge(before, made)
    return -weighted(scores, _of_patches(region, scores))


def _of_patches(region: Tensor, scores: Tensor) -> Tensor:
    """The region pooled to the patches of scores [B, 1, h, w]."""
    return adaptive_avg_pool2d(region, scores.shape[2:])
