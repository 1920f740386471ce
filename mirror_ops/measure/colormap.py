"""Maps of where something is, as a labelled sheet of pictures."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# dark blue, violet, orange, pale yellow: brightness rises all the way, so it reads in print and to the colour-blind
STOPS = np.array([(13, 8, 70), (140, 20, 130), (240, 120, 60), (250, 245, 180)], np.float32)
GAP, HEAD, SIDE = 6, 26, 92
INK, PAPER = (40, 40, 40), (255, 255, 255)


def colours(values: np.ndarray) -> np.ndarray:
    """[..., 3] uint8 of values in [0, 1]."""
    at = np.clip(values, 0, 1) * (len(STOPS) - 1)
    channels = [np.interp(at, range(len(STOPS)), STOPS[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def unit(values: np.ndarray) -> np.ndarray:
    """The same values from 0, the least, to 1, the greatest; all 0 where all are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def draw_maps(
    rows: dict[str, Sequence[np.ndarray]],
    names: Sequence[str],
    picture: np.ndarray | None = None,
    tile: tuple[int, int] = (160, 160),
) -> np.ndarray:
    """[height, width, 3] uint8: one labelled row for each entry of `rows`, one column for each name.

    A row holds one map [h, w] in [0, 1] a name. `picture` [h, w, 3] uint8 stands before each row. `tile` is (height,
    width).
    """
    height, width = tile
    heads = [*([""] if picture is not None else []), *names]
    size = (SIDE + len(heads) * (width + GAP), HEAD + len(rows) * (height + GAP))
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, name in enumerate(heads):
        pen.text((SIDE + column * (width + GAP) + width / 2, HEAD / 2), name, fill=INK, font=font, anchor="mm")
    for row, (label, maps) in enumerate(rows.items()):
        top = HEAD + row * (height + GAP)
        pen.text((SIDE / 2, top + height / 2), label, fill=INK, font=font, anchor="mm")
        tiles = [*([picture] if picture is not None else []), *(colours(values) for values in maps)]
        for column, pixels in enumerate(tiles):
            scaled = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
            sheet.paste(scaled, (SIDE + column * (width + GAP), top))
    return np.asarray(sheet)
