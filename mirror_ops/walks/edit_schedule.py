"""What the network is told at each step of an edit: text, pooled text and guidance.

The prompt of the edit is the prompt that keeps the picture + amount x (edited - describing), as in pix2pix-zero (Parmar
et al. 2023) and MirrorDiffusion (Xue et al. 2024), whose amount grows along the walk.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..directions.direction import ramped


@dataclass(frozen=True, eq=False)
class EditSchedule:
    """An edit of T steps.

    kept [T, B or 1, tokens, width]: the prompt that keeps the picture, step by step; change [B or 1, tokens, width]:
    the whole edit; amounts [T]: how much of it; cfgs [T]: guidance. pooled and pooled_change [entries, B or 1, pooled
    width]: the same for models with a pooled prompt.
    """

    kept: Tensor
    change: Tensor
    amounts: tuple[float, ...]
    cfgs: tuple[float, ...]
    pooled: Tensor | None = None
    pooled_change: Tensor | None = None

    @property
    def steps(self) -> int:
        return len(self.amounts)

    @property
    def is_constant(self) -> bool:
        """Whether the amount is the same at all steps."""
        return len(set(self.amounts)) == 1

    @property
    def says_nothing(self) -> bool:
        """Whether the edited prompt is the kept one, at every step."""
        changes = [change for change in (self.change, self.pooled_change) if change is not None]
        return not any(self.amounts) or not any(bool(change.any()) for change in changes)

    def edited(self, i: int) -> Tensor:
        """[B or 1, tokens, width] the prompt of the edit at step i."""
        return self.kept[i] + self.amounts[i] * self.change

    def one_edit_less(self, i: int) -> Tensor:
        """[B or 1, tokens, width] the same less one whole edit: what MirrorDiffusion's cycle loss asks for."""
        return self.edited(i) - self.change

    def edited_pooled(self) -> Tensor | None:
        """[T, entries, B or 1, pooled width] the pooled prompt of the edit, or None for models without."""
        if self.pooled is None or self.pooled_change is None:
            return None
        return torch.stack([self.pooled + amount * self.pooled_change for amount in self.amounts])


def amounts(steps: int, strength: float, ramp: float = 0.0, until: float = 1.0) -> tuple[float, ...]:
    """[T] how much of the edit at each step, of `ramped`."""
    return tuple(ramped(strength, ramp, until, i / steps) for i in range(steps))


def guidance(steps: int, cfg: float, until: float = 1.0, after: float = 1.0) -> tuple[float, ...]:
    """[T] `cfg` in the first part of the walk, and `after` in the rest: 1 is unguided, at half the cost."""
    return tuple(cfg if i < round(until * steps) else after for i in range(steps))
