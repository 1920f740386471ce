"""From how much something changed, place by place, to where it changed: rules that need no threshold set by hand.

The rules take a change [B, 1, H, W] >= 0 and give a region [B, 1, H, W] in [0, 1]. `otsu_region` is the one in use
here, on latents as `seen_region`; the others are those of recent editors, as their codes have them, to compare with
(`run.py bench edits-regions`).
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d, pad

from ..measure.quantile import quantile

SPREAD = 0.5  # how far a cell listens to its 3 x 3 neighbourhood: one cell alone is noise
LEVEL = 0.01  # hills closer than this (1 % of change) are one
DIGITS = 1e-5  # of the values compared: a floor under changes, so that what rounds to nothing has a logarithm
UNSEEN = 1e-3  # of the largest value of a latent: less is not seen once it is decoded, as rounding is not
HARD = (0.0, 1e-6)  # the ramp of a region without a soft edge


def seen_region(difference: Tensor, compared: Tensor, ramp: tuple[float, float]) -> Tensor:
    """[B, 1, H, W] the `otsu_region` of a difference [B, N, C, H, W] of latents at N steps, its rms over steps and
    channels. All 0 where all of it is so little, beside the latents `compared` [B, N, C, H, W], that nobody will see
    it.
    """
    floor = DIGITS * compared.abs().mean(dim=(1, 2, 3, 4)).clamp(min=1e-7)
    change = difference.square().mean(dim=(1, 2))[:, None].sqrt() + floor.reshape(-1, 1, 1, 1)
    largest, contrast = (x.abs().amax(dim=(1, 2, 3, 4)).reshape(-1, 1, 1, 1) for x in (difference, compared))
    region = otsu_region(change, ramp)
    return torch.where(largest > UNSEEN * contrast, region, torch.zeros_like(region))


def otsu_region(
    change: Tensor, ramp: tuple[float, float] = HARD, spread: float = SPREAD, power: float = 0.0
) -> Tensor:
    """A ramp across Otsu's threshold of the change, from ramp[0] to ramp[1] in parts of the distance between the two
    hills. All 0 where there is one hill only: nothing has changed more than the rest.

    `power` is that of the scale (`box_cox`): 0 finds all that changed, 1 only what changed most.
    """
    level = box_cox(change, power)
    around = avg_pool2d(pad(level, (1, 1, 1, 1), mode="replicate"), kernel_size=3, stride=1)
    level = level + spread * (around - level)
    threshold, distance = (v.reshape(-1, 1, 1, 1) for v in otsu(level.flatten(1)))
    region = (((level - threshold) / distance.clamp(min=LEVEL) - ramp[0]) / (ramp[1] - ramp[0])).clamp(0, 1)
    return torch.where(distance > LEVEL, region, torch.zeros_like(region))


def box_cox(change: Tensor, power: float) -> Tensor:
    """(c^power - 1) / power of the change over its mean, the logarithm for 0 (Box & Cox 1964): a difference of 0.01 is
    1 % of change near the mean, whatever the power."""
    relative = change / change.mean(dim=(2, 3), keepdim=True).clamp(min=torch.finfo(change.dtype).tiny)
    return relative.log() if power == 0 else (relative**power - 1) / power


def min_max_region(change: Tensor) -> Tensor:
    """The change from its least to its largest (UniEdit-Flow, 2504.13109): a weight more than a region."""
    low, high = change.amin(dim=(2, 3), keepdim=True), change.amax(dim=(2, 3), keepdim=True)
    return (change - low) / (high - low).clamp(min=torch.finfo(change.dtype).tiny)


def quantile_sigmoid_region(change: Tensor, steepness: float = 15.0, closing: int = 5) -> Tensor:
    """A sigmoid around the middle between the 0.05 and the 0.95 quantile, holes closed (SteerFlow, 2604.01715)."""
    low, high = (quantile(change.flatten(1), q).reshape(-1, 1, 1, 1) for q in (0.05, 0.95))
    scaled = ((change - low) / (high - low).clamp(min=torch.finfo(change.dtype).tiny)).clamp(0, 1)
    region = torch.sigmoid(steepness * (scaled - 0.5))
    return -grown(-grown(region, closing // 2), closing // 2)


def similarity_region(change: Tensor, kept: Tensor, similar: float = 0.8) -> Tensor:
    """1 where `kept`, a magnitude [B, 1, H, W], is less than `similar` of kept + change (VeloEdit, 2603.13388)."""
    return (kept / (kept + change) < similar).to(change.dtype)


def grown(region: Tensor, by: int) -> Tensor:
    """The region widened by so many cells. Rows and columns in turn: a window's cost grows with its side."""
    window = 2 * by + 1
    return max_pool2d(max_pool2d(region, (window, 1), 1, (by, 0)), (1, window), 1, (0, by))


def softened(region: Tensor, by: int) -> Tensor:
    """The region with its edge spread over so many cells to each side. Rows and columns in turn, as `grown`."""
    window = 2 * by + 1
    rows = avg_pool2d(pad(region, (0, 0, by, by), mode="replicate"), (window, 1), stride=1)
    return avg_pool2d(pad(rows, (by, by, 0, 0), mode="replicate"), (1, window), stride=1)


def otsu(values: Tensor) -> tuple[Tensor, Tensor]:
    """([B] threshold, [B] distance of the two means) that split values [B, N] with the greatest variance between the
    two parts (Otsu 1979), over all N - 1 splits."""
    ordered = values.sort(dim=1).values
    n = ordered.shape[1]
    below = torch.arange(1, n, device=values.device, dtype=values.dtype)
    sums = ordered.cumsum(dim=1)
    low, high = sums[:, :-1] / below, (sums[:, -1:] - sums[:, :-1]) / (n - below)
    between = below / n * (1 - below / n) * (high - low).square()
    split = between.argmax(dim=1, keepdim=True)
    threshold = (ordered.gather(1, split) + ordered.gather(1, split + 1)) / 2
    return threshold[:, 0], (high - low).gather(1, split)[:, 0]
