"""Where an edit acts, read off the model's own predictions, so that nothing else has to change.

On the recorded latents, the predictions of the edited and of the kept prompt differ where the edit acts, and by much
less elsewhere (DiffEdit, Couairon et al. 2023, takes the same difference on noised pictures and cuts it at a fixed
height). On a logarithmic scale the two kinds of place are two hills, and the valley between them is found for each
picture by Otsu's rule: no threshold to set. Towards the end of the edit its own predictions are read instead: they show
where new things ended up, and what has stayed as it was after all.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..walks.ddim import implied_denoised
from .finders import seen_region
from .found import latent_region

FIRST, STRIDE = 0.04, 0.12  # of the walk: eight looks at what the edit changes, from the outline to the details
# The mask's edge, from the valley upwards, in parts of the distance between the hills. First rather keep too much:
# what is let go of early is lost. Once the edit stands, the valley itself divides.
FIRST_RAMP = (-0.02, 0.28)
# A prediction that misses the mirror's own on the way back by more than this many times what the latents had drifted,
# and by this part of a prediction, is another model's. Half precision stays far below, a LoRA that can be seen above.
DRIFT, SEEN = 2.0, 0.005
STANDS = 0.7  # of the walk: from here on the region is what the edit itself would change

Look = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def edited_region(
    look: Look, sigmas: Tensor, latents: Tensor, way_back: Tensor | None = None, another_model: bool | None = None,
) -> Tensor:
    """[B, 1, H, W] in [0, 1]: 1 where the edit acts on the recorded `latents` [T+1, B, C, H, W], 0 where it does not,
    and everywhere if the predictions differ by no more than rounding or what nobody will see.

    `look(x, sigma, i) -> (kept, edited)` gives the predictions of the two prompts, at the steps that `probes` names.
    Their squared difference is summed over steps and channels: steps that decide more of the edit so count for more.
    `way_back` [T+1, B, C, H, W] is the mirror's reconstruction, if it was walked by the kept prompt without guidance.
    Where it was walked by `another_model` (a LoRA is there since, or a patch), that is the edit, or part of it, and the
    edited prompt's are compared with the predictions that `way_back` moved by. None: find out, by whether the kept
    prompt's miss those by more than a drift of the latents explains.
    """
    at = probes(len(sigmas) - 1)
    looks = [look(latents[i], sigmas[i], i) for i in at]
    before, after = (torch.stack(side, dim=1) for side in zip(*looks, strict=True))
    if way_back is not None:
        retraced = _moved_by(way_back, sigmas, at)
        if another_model is None:
            drift = torch.stack([way_back[i] - latents[i] for i in at], dim=1)
            another_model = _another_model(before - retraced, drift, before)
        before = torch.where(torch.as_tensor(another_model, device=before.device), retraced, before)
    return seen_region(after - before, before, FIRST_RAMP)


def _moved_by(latents: Tensor, sigmas: Tensor, at: Sequence[int]) -> Tensor:
    """[B, N, C, H, W] the predictions with which Euler's moves take a walk's latents from these steps to the next."""
    return torch.stack([implied_denoised(*latents[i : i + 2], *sigmas[i : i + 2]) for i in at], dim=1)


def _another_model(miss: Tensor, drift: Tensor, prediction: Tensor) -> Tensor:
    """[B, 1, 1, 1, 1] bool: whether predictions [B, N, C, H, W] miss those of the model that walked back by more than
    its latents there had drifted off the recording."""
    now, then, size = (x.square().mean(dim=(1, 2, 3, 4), keepdim=True).sqrt() for x in (miss, drift, prediction))
    return now > DRIFT * then + SEEN * size


def walked_region(first: Tensor, recorded: Tensor, steps: int) -> Callable[[int, Tensor], Tensor]:
    """`(i, difference) -> m` for `mirror_sample`: the region while the edit is walked in so many steps.

    It is `first` [B, 1, H, W], the one of `edited_region`, until the edit stands, and then at each step where the
    edit's own prediction differs from that of the recording: what the recording alone could not show, as where a new
    ear ends, joins, and what the edit has left as it was goes. `recorded` [B, C, H, W] says how large predictions are.
    """
    edits = first.amax(dim=(1, 2, 3), keepdim=True) > 0

    def region(i: int, difference: Tensor) -> Tensor:
        if i < round(STANDS * steps):
            return first
        found = latent_region(difference, recorded)
        return torch.where(edits, found, torch.zeros_like(found))

    return region


def probes(steps: int) -> range:
    """The steps at which the two predictions are compared; at least one."""
    return range(min(int(FIRST * steps), steps - 1), steps, max(1, round(STRIDE * steps)))
