"""A small line chart as a picture, so that a report can show how the walk drifted. Pillow only."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))
INK, GRID, PAPER = (40, 40, 40), (225, 225, 225), (255, 255, 255)


def draw_curves(
    curves: Sequence[Sequence[float]], title: str, size: tuple[int, int] = (640, 360), floor: float = 1e-8
) -> np.ndarray:
    """[height, width, 3] uint8: each curve over its index on a logarithmic axis. Values below `floor` sit on it."""
    width, height = size
    left, right, top, bottom = 62, width - 16, 34, height - 34
    logs = [[math.log10(max(value, floor)) for value in curve] for curve in curves]
    low = math.floor(min(min(curve) for curve in logs))
    high = max(math.ceil(max(max(curve) for curve in logs)), low + 1)

    image = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((left, 10), title, fill=INK)
    for power in range(low, high + 1):
        y = bottom - (bottom - top) * (power - low) / (high - low)
        pen.line([(left, y), (right, y)], fill=GRID)
        pen.text((14, y - 6), f"1e{power}", fill=INK)
    pen.line([(left, top), (left, bottom), (right, bottom)], fill=INK)
    pen.text((left, bottom + 10), "noise", fill=INK)
    pen.text((right - 42, bottom + 10), "picture", fill=INK)
    for k, curve in enumerate(logs):
        xs = [left + (right - left) * i / max(len(curve) - 1, 1) for i in range(len(curve))]
        points = [(x, bottom - (bottom - top) * (v - low) / (high - low)) for x, v in zip(xs, curve, strict=True)]
        pen.line(points, fill=COLOURS[k % len(COLOURS)], width=2)
    return np.asarray(image)
