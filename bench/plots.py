"""Scatter plots and bars as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from harness.extras import BENCH, ensure

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
SHIFTS = ((6, 3), (6, -9), (-6, 3), (-6, -9), (6, 12), (-6, 12), (6, -18), (-6, -18))    # of a name from its point


class Point(NamedTuple):
    name: str
    x: float
    y: float
    filled: bool


def scatter(path: Path, points: Sequence[Point], title: str, x_title: str, y_title: str) -> None:
    """Named points on linear axes; names step aside for each other."""
    figure, axes = page(title, (9, 6))
    axes.set(xlabel=x_title, ylabel=y_title)
    axes.margins(.08)
    axes.grid(color="#e1e1e1")
    axes.set_axisbelow(True)
    for k, point in enumerate(points):
        colour = COLOURS[k % len(COLOURS)]
        axes.scatter(point.x, point.y, s=45, facecolors=colour if point.filled else "none", edgecolors=colour)
    figure.draw_without_rendering()
    taken = [axes.transData.transform((p.x, p.y)) for p in points]
    boxes = [box(x - 5, y - 5, x + 5, y + 5) for x, y in taken]
    for k, point in enumerate(points):
        boxes.append(named(axes, point, COLOURS[k % len(COLOURS)], boxes))
    figure.savefig(path, dpi=100)


def bars(path: Path, names: Sequence[str], series: dict[str, Sequence[float]], title: str) -> None:
    """For each name one bar a series, values in [0, 1], with their percentages."""
    figure, axes = page(title, (9, 1 + .25 * len(names) * len(series)))
    thick = .8 / len(series)
    for k, (name, values) in enumerate(series.items()):
        drawn = axes.barh([row + k * thick for row in range(len(names))], values, thick, color=COLOURS[k], label=name)
        axes.bar_label(drawn, [f"{value:.0%}" for value in values], padding=4, fontsize=8)
    axes.set_yticks([row + .4 - thick / 2 for row in range(len(names))], names)
    axes.set_xlim(0, 1.1)
    axes.invert_yaxis()
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(series), frameon=False)
    figure.savefig(path, dpi=100)


def page(title: str, size: tuple[float, float]):
    """(figure, axes) of an empty page, drawn without a display."""
    ensure(BENCH)
    from matplotlib.figure import Figure
    figure = Figure(size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    return figure, axes


def named(axes, point: Point, colour: str, taken: list):
    """Write a point's name where it touches nothing taken, if there is such a place; the box it then takes."""
    for dx, dy in SHIFTS:
        text = axes.annotate(point.name, (point.x, point.y), (dx, dy), textcoords="offset points", fontsize=8,
                             color=colour, ha="left" if dx > 0 else "right")
        place = text.get_window_extent()
        if not any(place.overlaps(other) for other in taken):
            return place
        text.remove()
    return axes.annotate(point.name, (point.x, point.y), SHIFTS[0], textcoords="offset points", fontsize=8,
                         color=colour).get_window_extent()


def box(left: float, bottom: float, right: float, top: float):
    from matplotlib.transforms import Bbox
    return Bbox.from_extents(left, bottom, right, top)
