"""What an edit did and what it cost: one value that every edit node returns, and plain words about it."""

from dataclasses import dataclass

from torch import Tensor

HARDLY, NEARLY_ALL = 0.02, 0.9  # of the latent's change; of the picture
FLAT = 1e-2  # the least contrast of a latent, whose values are about 1


@dataclass(frozen=True)
class EditReport:
    """Figures of one edit."""

    forwards: float  # network rows per picture (NFE)
    backwards: float = 0.0
    changes: tuple[float, ...] = ()  # [T] how far the edit is from the picture as it was after each step, see `change`
    coverage: tuple[float, ...] = ()  # [B] the part of each picture in which the edit acts; empty: no region was sought
    widget: str = "strength"  # of the node, which asks for more or less of the edit
    why_empty: str = "the model sees no difference worth an edit; try a higher strength or cfg, or plainer words"

    @property
    def text(self) -> str:
        """What changed, where, what it cost, and what to try."""
        lines = [self._region(k, share) for k, share in enumerate(self.coverage)]
        if self.changes:
            every = max(1, len(self.changes) // 10)
            walk = " ".join(f"{change:.2f}" for change in self.changes[every - 1 :: every])
            along = f"; along the walk {walk}" if len(self.changes) > 1 else ""
            lines.append(f"change: {self.changes[-1]:.2f} of the picture's own contrast{along}")
        backwards = f", {self.backwards:.0f} of them backward" if self.backwards else ""
        steps = f" in {len(self.changes)} steps" if len(self.changes) > 1 else ""
        return "\n".join([*lines, f"passes: {self.forwards + self.backwards:.0f}{backwards}{steps}", *self._advice()])

    def _region(self, k: int, share: float) -> str:
        name = "region" if len(self.coverage) == 1 else f"region of picture {k}"
        return f"{name}: {share:.0%} of the picture" if share > 0 else f"{name} empty: {self.why_empty}"

    def _advice(self) -> list[str]:
        if self.coverage and min(self.coverage) > NEARLY_ALL:
            return [f"Nearly the whole picture changed: lower {self.widget} or cfg, or connect a mask."]
        if self.changes and self.changes[-1] < HARDLY and not (self.coverage and min(self.coverage) == 0):
            return [f"Hardly anything changed: raise {self.widget} or cfg, or say the change in plainer words."]
        return []


def change(edited: Tensor, picture: Tensor) -> float:
    """rms(edited - picture) / standard deviation of the picture, of latents [B, C, H, W], the mean over the batch.

    A picture of one colour counts as one that can just be seen.
    """
    contrast = picture.flatten(1).std(dim=1).clamp(min=FLAT)
    return ((edited - picture).flatten(1).square().mean(dim=1).sqrt() / contrast).mean().item()


def coverage(region: Tensor) -> tuple[float, ...]:
    """[B] the part of each picture that a region [B, 1, H, W] in [0, 1] covers, soft edges by their weight."""
    return tuple(region.flatten(1).mean(dim=1).tolist())
