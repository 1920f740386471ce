"""Grids of noise levels, and the windows in which a per-step prompt is valid."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def paper_timesteps(steps: int, table_size: int = 1000) -> list[int]:
    """Rising training timesteps 1, 1+r, ..., with r = table_size // steps: the papers' "leading" grid with offset 1."""
    if not 1 <= steps < table_size:
        raise ValueError(f"The papers' grid takes 1 to {table_size - 1} steps, not {steps}.")
    stride = table_size // steps
    return [k * stride + 1 for k in range(steps)]


def paper_grid(table: Tensor, steps: int) -> Tensor:
    """[steps+1] levels of the prompt-to-prompt family: timesteps ..., 21, 1 and then the table's first level.

    `table` is the model's rising [N] table of levels. The last level is table[0] (sigma 0.029 for Stable Diffusion),
    not 0: the official code of those papers decodes the latent of that level (Mokady et al. 2023).
    """
    timesteps = paper_timesteps(steps, len(table))
    return torch.cat([table[timesteps].flip(0), table[:1]])


def target_labels(sigmas: Tensor) -> Tensor:
    """[T] levels whose label the network is given at each inversion move: the noisier end (prompt-to-prompt family)."""
    return sigmas[:-1]


def current_labels(sigmas: Tensor, floor: Tensor | float) -> Tensor:
    """[T] labels at the cleaner end (pix2pix-zero, MirrorDiffusion), but at least `floor`, the model's first level."""
    return sigmas[1:].clamp(min=float(floor))


def check_grid(sigmas: Tensor) -> None:
    """Raises ValueError unless `sigmas` is [T+1], T >= 1, finite, falling and >= 0."""
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"A schedule needs two or more noise levels in a row, not the shape {list(sigmas.shape)}.")
    falling = bool((sigmas[1:] < sigmas[:-1]).all())
    if not (falling and torch.isfinite(sigmas).all() and sigmas[-1] >= 0):
        raise ValueError(
            "The noise levels must fall strictly from the noisiest to 0 or more. "
            "Give the sigmas in sampling order (not flipped), with no level twice."
        )


def windows(levels: Sequence[float], level_at: Callable[[float], float]) -> list[tuple[float, float]]:
    """T adjoining (start, end) fractions of the walk, one around each of T falling levels.

    `level_at(fraction)` is the level there; it falls. A border is a fraction whose level lies between its two
    neighbours', a quarter of their distance or more from both, so that rounding moves no step across it. Raises
    ValueError where the model cannot tell two steps apart.
    """
    borders = [0.0]
    for i, (above, below) in enumerate(zip(levels, levels[1:], strict=False)):
        borders.append(_border(above, below, level_at, borders[-1]))
        if borders[-1] is None:
            raise ValueError(
                f"Steps {i} and {i + 1} lie too close for prompt windows. Use fewer steps or another scheduler."
            )
    return list(zip(borders, [*borders[1:], 1.0], strict=True))


def _border(above: float, below: float, level_at: Callable[[float], float], low: float) -> float | None:
    """A fraction from `low` on whose level is well between two, by bisection; None if there is none."""
    high, margin = 1.0, (above - below) / 4
    for _ in range(40):
        middle = (low + high) / 2
        level = level_at(middle)
        if below + margin <= level <= above - margin:
            return middle
        low, high = (middle, high) if level > below + margin else (low, middle)
    return None
