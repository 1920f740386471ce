"""Where an edit acts, read off the model's own predictions, so that nothing else has to change.

On the recorded latents, the predictions of the edited and of the kept prompt differ where the edit acts, and by much
less elsewhere (DiffEdit, Couairon et al. 2023, takes the same difference on noised pictures and cuts it at a fixed
height). On a logarithmic scale the two kinds of place are two hills, and the valley between them is found for each
picture by Otsu's rule: no threshold to set.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

FIRST, STRIDE = 0.04, 0.12  # of the walk: eight looks at what the edit changes, from the outline to the details
SPREAD = 0.5  # how far a cell listens to its 3 x 3 neighbourhood: one cell alone is noise
LEVEL = 0.01  # hills closer than this (1 % of change) are one
RAMP = (-0.02, 0.28)  # the mask's edge above the valley, in parts of the distance between the hills: rather keep

Look = Callable[[Tensor, Tensor, int], Tensor]


def edited_region(kept: Look, edited: Look, sigmas: Tensor, latents: Tensor) -> Tensor:
    """[B, 1, H, W] in [0, 1]: 1 where the edit acts on the recorded `latents` [T+1, B, C, H, W], 0 where it does not.

    `kept` and `edited` are the unguided predictions `(x, sigma, i) -> denoised` of the two prompts, each evaluated at
    the steps that `probes` names. Their squared difference is summed over steps and channels: steps that decide more
    of the edit so count for more.
    """
    looks = [(kept(latents[i], sigmas[i], i), edited(latents[i], sigmas[i], i)) for i in probes(len(sigmas) - 1)]
    energy = torch.stack([(after - before).square() for before, after in looks]).mean(dim=(0, 2))[:, None]
    digits = 1e-5 * torch.stack([before for before, _ in looks]).abs().mean(dim=(0, 2, 3, 4))
    # Where all that differs is rounding, all is equal.
    return soft_region(energy.sqrt() + digits.clamp(min=1e-12).reshape(-1, 1, 1, 1))


def probes(steps: int) -> range:
    """The steps at which the two predictions are compared; at least one."""
    return range(min(int(FIRST * steps), steps - 1), steps, max(1, round(STRIDE * steps)))


def soft_region(change: Tensor) -> Tensor:
    """The mask [B, 1, H, W] of a positive change [B, 1, H, W]: a ramp across Otsu's threshold of its logarithm."""
    level = change.log()
    around = avg_pool2d(pad(level, (1, 1, 1, 1), mode="replicate"), kernel_size=3, stride=1)
    level = level + SPREAD * (around - level)
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
