"""What the graph did to a picture, in figures, and the figures of a job as CSV."""
from __future__ import annotations

import csv
import io
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mirror_ops.measure.metrics import psnr

VISIBLE = 16 / 255          # a change of a channel that can be seen: it marks the region where the graph has none
COLUMNS = ("name", "result", "seed", "region", "outside", "psnr", "seconds", "cpu_seconds")


def figures(before: Tensor, after: Tensor, region: Tensor | None = None) -> dict[str, float]:
    """Of pictures [1, H, W, C] in [0, 1] and the mask [1, H, W] of what was edited.

    region: its share of the picture; outside: the share of pixels outside it that changed, as 8-bit values;
    psnr: of the result against the picture, dB. A picture of another size is scaled to the result's first.
    """
    before, after = before[..., :3].float().cpu(), after[..., :3].float().cpu()
    if before.shape[1:3] != after.shape[1:3]:
        before = scaled(before.movedim(-1, 1), after.shape[1:3]).movedim(1, -1)
    change = (quantised(after) - quantised(before)).abs().amax(-1) / 255        # [1, H, W]
    if region is None:
        inside = change >= VISIBLE
    else:
        inside = scaled(region.float().cpu().reshape(1, 1, *region.shape[-2:]), after.shape[1:3])[:, 0] > 0
    outside = ~inside
    changed = (change[outside] > 0).float().mean() if outside.any() else torch.zeros(())
    return {"region": float(inside.float().mean()), "outside": float(changed),
            "psnr": float(psnr(after.clamp(0, 1), before.clamp(0, 1)))}


def quantised(image: Tensor) -> Tensor:
    return (image * 255).clamp(0, 255).floor()


def scaled(image: Tensor, size) -> Tensor:
    """[B, C, H, W] at another size."""
    return image if image.shape[2:] == size else interpolate(image, tuple(size), mode="bilinear", antialias=True)


def table(rows: Iterable[dict]) -> str:
    """CSV of the rows that succeeded."""
    return as_csv(COLUMNS, (row for row in rows if "error" not in row))


def failures(rows: Iterable[dict]) -> str:
    """CSV of the rows that did not, with the reason."""
    return as_csv(("name", "error"), (row for row in rows if "error" in row))


def as_csv(columns: tuple, rows: Iterable[dict]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
