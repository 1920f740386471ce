"""Where an edit acts, read off the model's own predictions, so that nothing else has to change.

On the recorded latents, the predictions of the edited and of the kept prompt differ where the edit acts, and by much
less elsewhere (DiffEdit, Couairon et al. 2023, takes the same difference on noised pictures and cuts it at a fixed
height). On a logarithmic scale the two kinds of place are two hills, and the valley between them is found for each
picture by Otsu's rule: no threshold to set.
"""

from collections.abc import Callable

import torch
from torch import Tensor

FIRST, LAST, STRIDE = 0.08, 0.5, 3  # of the walk: before, nothing is decided; after, only details differ
LEVEL = 0.01  # hills closer than this (1 % of change) are one
RAMP = (-0.05, 0.45)  # the mask's edge about the valley, in parts of the distance between the hills: rather keep


def edited_region(
    source: Callable[[Tensor, Tensor, int], Tensor],
    edit: Callable[[Tensor, Tensor, int], Tensor],
    sigmas: Tensor,
    latents: Tensor,
) -> Tensor:
    """[B, 1, H, W] in [0, 1]: 1 where `edit` acts on the recorded `latents` [T+1, B, C, H, W], 0 where it does not.

    `source` and `edit` are branches `(x, sigma, i) -> denoised` (see `sample`). Costs both at about T / 7 steps.
    """
    changes = [
        relative_change(source(latents[i], sigmas[i], i), edit(latents[i], sigmas[i], i))
        for i in probes(len(sigmas) - 1)
    ]
    return soft_region(torch.stack(changes).mean(dim=0))


def probes(steps: int) -> range:
    """The steps at which the two predictions are compared; at least one."""
    first = min(int(FIRST * steps), steps - 1)
    return range(first, max(first + 1, int(LAST * steps)), STRIDE)


def relative_change(kept: Tensor, edited: Tensor) -> Tensor:
    """[B, 1, H, W] mean over channels of |edited - kept|, divided by its mean over the picture: so each step counts
    alike. 0 where nothing changes but the last digits."""
    change = (edited - kept).abs().mean(dim=1, keepdim=True)
    mean = change.mean(dim=(2, 3), keepdim=True)
    digits = 1e-5 * kept.abs().mean(dim=(1, 2, 3), keepdim=True)
    return torch.where(mean > digits, change / mean.clamp(min=1e-12), torch.zeros_like(change))


def soft_region(change: Tensor) -> Tensor:
    """The mask [B, 1, H, W] of a change [B, 1, H, W]: a ramp across Otsu's threshold of its logarithm."""
    level = change.clamp(min=1e-6).log()
    threshold, distance = (v.reshape(-1, 1, 1, 1) for v in otsu(level.flatten(1)))
    region = (((level - threshold) / distance.clamp(min=LEVEL) - RAMP[0]) / (RAMP[1] - RAMP[0])).clamp(0, 1)
    return torch.where(distance > LEVEL, region, torch.zeros_like(region))  # one kind of place only: nothing is edited


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
