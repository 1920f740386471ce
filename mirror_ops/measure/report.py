"""What an edit did and what it cost: one value that every edit node returns, and plain words about it."""

from dataclasses import dataclass

from torch import Tensor

from .metrics import relative_displacement

HARDLY, NEARLY_ALL = 0.02, 0.9  # of the latent's change; of the picture


@dataclass(frozen=True)
class EditReport:
    """Figures of one edit, means over its batch."""

    forwards: float  # network rows per picture (NFE)
    backwards: float = 0.0
    changes: tuple[float, ...] = ()  # [T] how far the edit is from the picture as it was after each step, see `change`
    coverage: float | None = None  # the part of the picture in which the edit may act; None: no region was looked for
    notes: tuple[str, ...] = ()  # sentences of the node's own

    @property
    def text(self) -> str:
        """What the edit did, what may be wrong with it, and what to try."""
        lines = [f"{self.forwards:.0f} forward and {self.backwards:.0f} backward passes a picture."]
        if self.coverage is not None:
            lines.append(f"The region is {self.coverage:.0%} of the picture.")
        if self.changes:
            last, most = self.changes[-1], max(self.changes)
            lines.append(f"The latent changed by {last:.1%} in the end, at most by {most:.1%} on the way.")
        return "\n".join([*lines, *self._advice(), *self.notes])

    def _advice(self) -> list[str]:
        if self.coverage == 0:
            return [
                "The region is empty: the edit was found nowhere, so the picture comes back as it was. Raise strength "
                "or cfg, say the change in other words, or let the edit act everywhere."
            ]
        if self.coverage is not None and self.coverage > NEARLY_ALL:
            return ["The region is nearly the whole picture: lower strength or cfg, or connect a mask."]
        if self.changes and self.changes[-1] < HARDLY:
            return ["Hardly anything changed: raise strength or cfg."]
        return []


def change(edited: Tensor, kept: Tensor) -> float:
    """rms(edited - kept) / rms(kept) of two latents [B, C, H, W], the mean over the batch."""
    return relative_displacement(edited[None], kept[None]).mean().item()


def coverage(region: Tensor) -> float:
    """The part of the picture where a region [B, 1, H, W] or [B, H, W] in [0, 1] lets an edit act at all."""
    return (region > 0).float().mean().item()
