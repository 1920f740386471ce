"""Where an edit acted, found in what it did: in latents while it is walked, in pictures once it is decoded."""

from collections.abc import Callable

import torch
from torch import Tensor

from .finders import (
    grown,
    min_max_region,
    otsu_region,
    quantile_sigmoid_region,
    seen_region,
    similarity_region,
    softened,
)

DECIDED = 0.8  # of the walk: earlier the edit has not decided where it acts
LATENT_RAMP = (-0.1, 0.2)  # the soft edge of a region of cells, from the valley upwards
VISIBLE = 1e-3  # of a picture's range: less is not seen, nor told from rounding to 8 bits
NOTHING = 2 / 255  # where no pixel changed by more, there is no edit
AROUND = 2  # pixels: a change is read off the 5 x 5 around each
WIDEN, SOFTEN = 2, 2  # pixels
POWER = 0.5  # of the scale on which pixels part: of several edits the weak ones count, the autoencoder's error does not
CELL = 64  # pixels: of the coarsest autoencoder, and so the most that its crop takes
Rule = Callable[[Tensor, Tensor], Tensor]


def latent_region(edit: Tensor, picture: Tensor) -> Tensor:
    """[B, 1, H, W] in [0, 1]: where the edit so far, a difference [B, C, H, W] from the `picture`, has moved. All 0
    where it has moved so little that nobody will see it, as rounding does."""
    return seen_region(edit[:, None], picture[:, None], LATENT_RAMP)


def late_region(picture: Tensor, steps: int, begin: float = DECIDED) -> Callable[[int, Tensor], Tensor]:
    """`(i, edit) -> m` for `shared_noise`: 1 until the edit has decided where it acts, then `latent_region`."""

    def region(i: int, edit: Tensor) -> Tensor:
        return latent_region(edit, picture) if i >= round(begin * steps) else torch.ones_like(edit[:, :1])

    return region


def picture_region(one: Tensor, other: Tensor, widen: int = WIDEN, soften: int = SOFTEN, rule: str = "otsu") -> Tensor:
    """[B, 1, H, W] in [0, 1]: where two pictures [B, 3, H, W] in [0, 1] differ, a pixel sharp before it is widened and
    softened by so many pixels. All 0 where nothing differs that can be seen.

    Give pictures that came out of the same decoder, or its own error counts as a change. `rule` is one of RULES.
    """
    return region_by(RULES[rule], one, other, widen, soften)


def region_by(rule: Rule, one: Tensor, other: Tensor, widen: int = WIDEN, soften: int = SOFTEN) -> Tensor:
    """`picture_region` by any rule, a function of a change and of what is kept [B, 1, H, W]."""
    difference = (one - other).square().mean(dim=1, keepdim=True).sqrt()
    kept = one.square().mean(dim=1, keepdim=True).sqrt()
    found = rule(softened(difference, AROUND) + VISIBLE, softened(kept, AROUND))
    seen = difference.amax(dim=(2, 3), keepdim=True) > NOTHING
    return softened(grown(torch.where(seen, found, torch.zeros_like(found)), widen), soften)


RULES: dict[str, Rule] = {  # of how a change [B, 1, H, W] becomes a region, given the magnitude of what is kept
    "otsu": lambda change, kept: otsu_region(change, spread=0.0, power=POWER),
    "min-max": lambda change, kept: min_max_region(change),
    "quantile sigmoid": lambda change, kept: quantile_sigmoid_region(change),
    "similarity": similarity_region,
}


def pasted(edited: Tensor, original: Tensor, region: Tensor) -> Tensor:
    """[B, C, H, W] the original with the edited pixels [B, C, h, w] where the region [B, 1, h, w] is 1. There may be
    one of each for several of the others.

    An edit that is smaller than the original lies in its middle, as an autoencoder that takes only whole cells crops
    it; the original stays around it. Raises ValueError for one that is larger, or smaller by more than such a crop.
    """
    rows, columns = middle(edited, original)
    count = max(map(len, (edited, original, region)))
    result = original.expand(count, -1, -1, -1).clone()
    inner = result[..., rows, columns]
    result[..., rows, columns] = torch.lerp(inner, edited.expand_as(inner), region.expand_as(inner).to(edited))
    return result


def middle(inner: Tensor, outer: Tensor) -> tuple[slice, slice]:
    """(rows, columns) of a picture [..., H, W] that the autoencoder's crop of it, [..., h, w], comes from."""
    (h, w), (height, width) = inner.shape[-2:], outer.shape[-2:]
    if not (0 <= height - h < CELL and 0 <= width - w < CELL):
        raise ValueError(
            f"The edited picture is {w} x {h} and the original {width} x {height}. Connect the picture that was "
            "encoded, or bring both to one size."
        )
    top, left = (height - h) // 2, (width - w) // 2
    return slice(top, top + h), slice(left, left + w)
