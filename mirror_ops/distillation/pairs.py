"""Pairs of pictures before and after an edit: which are good enough to learn from, and a folder of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..measure.within import psnr_within
from ..storage.whole_file import write_whole

BEFORE, AFTER, REGION, FIGURES = "before", "after", "region", "figures"
LEAST = 8  # pairs that a training takes


@dataclass(frozen=True)
class Pair:
    """uint8 pictures of one size: before and after [3, H, W], and where the edit acts [1, H, W]."""

    before: Tensor
    after: Tensor
    region: Tensor


@dataclass(frozen=True)
class Rule:
    """Which edits are kept: the region's share of the picture, PSNR outside it in dB, and a score of any kind."""

    least_region: float = 0.005
    most_region: float = 0.9
    outside: float = 30.0
    least_score: float = 0.0

    def why_not(self, figures: dict) -> str:
        """What speaks against a pair with these `figures_of`; empty if nothing does."""
        if not self.least_region <= figures["region"] <= self.most_region:
            return f"its region is {figures['region']:.1%} of the picture"
        if figures["outside"] < self.outside:
            return f"outside its region it is {figures['outside']:.1f} dB from the picture"
        if figures.get("score") is not None and not figures["score"] >= self.least_score:
            return f"its score is {figures['score']:.3g}"
        return ""


def figures_of(before: Tensor, after: Tensor, region: Tensor, score: float | None = None) -> dict:
    """{"region", "outside", "score"} of one pair: pictures [1, 3, H, W] in [0, 1], region [1, 1, H, W]."""
    beside = (region <= 0.5).float()
    outside = psnr_within(after, before, beside).nan_to_num(posinf=99.0).clamp(max=99.0) if beside.any() else 99.0
    return {"region": float(region.mean()), "outside": float(outside), "score": score}


def write_pair(folder: Path, name: str, before: Tensor, after: Tensor, region: Tensor, figures: dict) -> None:
    """Adds a pair [1, 3, H, W] in [0, 1] to a folder, in place of an earlier one of the same name.

    The figures come last: what lacks them is no pair. Raises OSError if it can't be written.
    """
    pictures = {BEFORE: before, AFTER: after, REGION: region}
    for kind, picture in pictures.items():
        place = folder / kind
        place.mkdir(parents=True, exist_ok=True)
        write_whole(place / f"{name}.png", _png(picture))
    place = folder / FIGURES
    place.mkdir(exist_ok=True)
    write_whole(place / f"{name}.json", json.dumps(figures).encode())


def digest(pairs: list[Pair]) -> str:
    """A name of these pairs: the same for equal ones in the same order."""
    parts = sha256()
    for pair in pairs:
        for part in (pair.before, pair.after, pair.region):
            parts.update(repr(tuple(part.shape)).encode() + part.contiguous().numpy().tobytes())
    return parts.hexdigest()[:12]


def read_pairs(folder: Path, least: int = LEAST) -> list[Pair]:
    """All pairs of a folder, by name. Raises ValueError if there are fewer than `least`, or for one that is damaged."""
    names = sorted(path.stem for path in (folder / FIGURES).glob("*.json")) if folder.is_dir() else []
    if len(names) < least:
        raise ValueError(f"{folder} holds {len(names)} kept pairs; training takes {least} or more.")
    return list(_read(folder, names))


def _read(folder: Path, names: list[str]) -> Iterator[Pair]:
    for name in names:
        parts = [_pixels(folder / kind / f"{name}.png", mode) for kind, mode in
                 ((BEFORE, "RGB"), (AFTER, "RGB"), (REGION, "L"))]
        if len({part.shape[1:] for part in parts}) > 1:
            sizes = ", ".join(f"{part.shape[2]} x {part.shape[1]}" for part in parts)
            raise ValueError(f"Pair {name} in {folder} is of unlike sizes: {sizes}. Take it out or make it again.")
        yield Pair(*parts)


def _pixels(path: Path, mode: str) -> Tensor:
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert(mode))
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path} can't be read as a picture ({error}). Take out this pair or make it anew.") from error
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()


def _png(picture: Tensor) -> bytes:
    pixels = (picture[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(file, "PNG")
    return file.getvalue()
