"""What an edit is asked for: the prompt of the edited side, where it may act, and what can't be edited."""

import math

import torch
from torch import Tensor

from ..host import families
from ..host.conditioning import Conditioning, common_tokens, pooled_of, text_of, token_counts, with_pooled, with_text
from ..host.values import mask_at


def check(model, edit_model, samples: Tensor, sigmas: Tensor) -> None:
    """Raises ValueError, before any work, for a picture or models that can't be edited so."""
    families.check_supported(model, samples)
    families.check_levels(model, sigmas)
    if edit_model is None:
        return
    families.check_alike(model, edit_model, "edit_model")
    families.check_levels(edit_model, sigmas)


def asked_for(source: Conditioning, target: Conditioning, strength: float, direction) -> Conditioning:
    """source + strength x ((target - source) + direction), text and pooled; at 0 and 1 the prompts themselves."""
    if strength in (0, 1) and direction is None:
        return target if strength else source
    before, after = common_tokens(source, target)
    change = text_of(after, "target") - text_of(before, "source")
    if direction is not None:
        each = [direction.for_tokens(n, change.shape[2]) for n in token_counts(after)]
        change = change + torch.cat(each, dim=1).to(change)
    pooled = [pooled_of(prompt) for prompt in (before, after)]
    made = with_text(after, text_of(before, "source") + strength * change)
    if any(p is None for p in pooled):
        return made
    change = pooled[1] - pooled[0]
    if direction is not None:
        change = change + direction.for_pooled(change)
    return with_pooled(made, pooled[0] + strength * change)


def allowed_region(samples: Tensor, **masks: Tensor | None) -> Tensor | None:
    """[B or 1, 1, H, W] where all masks allow the edit, at the latent's size; None without any. Raises ValueError for a
    wrong number of masks."""
    fitted = [mask_at(mask, samples, f"`{name}`") for name, mask in masks.items() if mask is not None]
    return math.prod(fitted) if fitted else None
