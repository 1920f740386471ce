"""Scatter plots and bars as pictures. Pillow only, since nothing else of the kind comes with the host."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mirror_ops.measure.curve import COLOURS, GRID, INK, PAPER

SIZE = (900, 600)
LEFT, RIGHT, TOP, BOTTOM = 80, 24, 46, 62
RADIUS, TEXT, TITLE = 6, 13, 16


class Point(NamedTuple):
    name: str
    x: float
    y: float
    filled: bool


def scatter(points: Sequence[Point], title: str, x_title: str, y_title: str) -> np.ndarray:
    """[height, width, 3] uint8: named points on linear axes; names step aside for each other."""
    image, pen = page(title)
    across, down = Axis([p.x for p in points]), Axis([p.y for p in points])
    width, height = SIZE
    plot = (LEFT, TOP, width - RIGHT, height - BOTTOM)

    def place(x: float, y: float) -> tuple[float, float]:
        return (plot[0] + across.part(x) * (plot[2] - plot[0]), plot[3] - down.part(y) * (plot[3] - plot[1]))

    for tick in across.ticks():
        x, _ = place(tick, down.low)
        pen.line([(x, plot[1]), (x, plot[3])], fill=GRID)
        pen.text((x, plot[3] + 8), f"{tick:g}", fill=INK, font=font(), anchor="mt")
    for tick in down.ticks():
        _, y = place(across.low, tick)
        pen.line([(plot[0], y), (plot[2], y)], fill=GRID)
        pen.text((plot[0] - 8, y), f"{tick:g}", fill=INK, font=font(), anchor="rm")
    pen.text(((plot[0] + plot[2]) / 2, height - 16), x_title, fill=INK, font=font(), anchor="mm")
    image.paste(upright(y_title), (12, (plot[1] + plot[3] - upright(y_title).height) // 2))
    marks = [(*place(p.x, p.y), p.filled) for p in points]
    for k, (x, y, filled) in enumerate(marks):
        colour = COLOURS[k % len(COLOURS)]
        box = [x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS]
        pen.ellipse(box, fill=colour if filled else PAPER, outline=colour, width=2)
    taken = [(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y, _ in marks]
    for k, (point, (x, y, _)) in enumerate(zip(points, marks, strict=True)):
        box = free_place(pen, point.name, x, y, taken, plot)
        taken.append(box)
        pen.text(box[:2], point.name, fill=COLOURS[k % len(COLOURS)], font=font())
    return np.asarray(image)


def bars(names: Sequence[str], series: dict[str, Sequence[float]], title: str) -> np.ndarray:
    """[height, width, 3] uint8: for each name one bar a series, values in [0, 1], with their percentages."""
    side = max(int(font().getlength(name)) for name in names) + 20
    step, thick = 14 * len(series) + 12, 14
    size = (SIZE[0], TOP + step * len(names) + 16)
    image, pen = page(title, size)
    length = size[0] - side - RIGHT - 50
    at = size[0] - RIGHT
    for k, name in reversed(list(enumerate(series))):
        pen.text((at, 16), name, fill=COLOURS[k], font=font(), anchor="rm")
        at -= int(font().getlength(name)) + 18
    for row, name in enumerate(names):
        top = TOP + row * step
        pen.text((side - 10, top + step / 2 - 6), name, fill=INK, font=font(), anchor="rm")
        for k, values in enumerate(series.values()):
            y = top + k * thick
            pen.rectangle([side, y, side + length * values[row], y + thick - 3], fill=COLOURS[k])
            end = side + length * values[row] + 6
            pen.text((end, y + thick / 2 - 2), f"{values[row]:.0%}", fill=INK, font=font(), anchor="lm")
    return np.asarray(image)


class Axis:
    """Round ticks over the values, with some room at both ends."""

    def __init__(self, values: Sequence[float]):
        low, high = min(values), max(values)
        room = .06 * (high - low) or 1.0
        self.low, self.high = low - room, high + room

    def part(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> Iterator[float]:
        rough = (self.high - self.low) / 7
        power = 10 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        tick = math.ceil(self.low / step) * step
        while tick <= self.high:
            yield round(tick, 10)
            tick += step


def free_place(pen, text: str, x: float, y: float, taken: list, plot: tuple) -> tuple:
    """A box for a name near (x, y) that touches nothing taken, right of the point if it can be; else the right one."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font())
    width, height = right - left, bottom
    first = None
    for reach in (RADIUS + 3, RADIUS + 16, RADIUS + 30, RADIUS + 46):
        for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)):
            at_x = x + dx * reach if dx > 0 else x - reach - width if dx < 0 else x - width / 2
            at_y = y - height / 2 + dy * reach * 1.2
            box = (at_x, at_y, at_x + width, at_y + height)
            first = first or box
            within = box[0] >= plot[0] and box[2] <= plot[2] + RIGHT and box[1] >= plot[1] and box[3] <= plot[3]
            if within and not any(overlap(box, other) for other in taken):
                return box
    return first


def overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def page(title: str, size: tuple[int, int] = SIZE) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((16, 16), title, fill=INK, font=ImageFont.load_default(TITLE), anchor="lm")
    return image, pen


def upright(text: str) -> Image.Image:
    """A line of text turned to be read from below."""
    line = Image.new("RGB", (int(font().getlength(text)) + 4, TEXT + 6), PAPER)
    ImageDraw.Draw(line).text((2, 1), text, fill=INK, font=font())
    return line.rotate(90, expand=True)


def font() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(TEXT)
