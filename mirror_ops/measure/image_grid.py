"""Pictures side by side on one labelled sheet, and the heat map of a difference. numpy and Pillow only."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .colormap import colours

GAP, HEAD, LINE, MARK = 4, 26, 13, 3
INK, PAPER = (40, 40, 40), (255, 255, 255)


def draw_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    marks: Sequence[Sequence[tuple[int, int, int] | None]] = (),
) -> np.ndarray:
    """[height, width, 3] uint8: `rows` of pictures [h, w, 3] uint8, all of one size.

    `columns` are titles above, `labels` names before the rows (several lines are fine), `marks` the colours of frames
    around single pictures, or None.
    """
    font = ImageFont.load_default(LINE)
    height, width = rows[0][0].shape[:2]
    side = max((font.getbbox(line)[2] for label in labels for line in label.splitlines()), default=-12) + 12
    head = HEAD if any(columns) else 0
    size = (side + max(map(len, rows)) * (width + GAP) - GAP, head + len(rows) * (height + GAP) - GAP)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for x, title in enumerate(columns):
        pen.text((side + x * (width + GAP) + width / 2, HEAD / 2), title, fill=INK, font=font, anchor="mm")
    for y, pictures in enumerate(rows):
        top = head + y * (height + GAP)
        if labels:
            pen.multiline_text((6, top + height / 2), labels[y], fill=INK, font=font, anchor="lm")
        for x, picture in enumerate(pictures):
            left = side + x * (width + GAP)
            sheet.paste(Image.fromarray(picture), (left, top))
            if marks and marks[y][x]:
                pen.rectangle([left, top, left + width - 1, top + height - 1], outline=marks[y][x], width=MARK)
    return np.asarray(sheet)


def difference_heat(picture: np.ndarray, reference: np.ndarray, gain: float = 4.0) -> np.ndarray:
    """[h, w, 3] uint8: |picture - reference|, mean over colours, times `gain`; dark where nothing changed."""
    difference = np.abs(picture.astype(np.float32) - reference.astype(np.float32)).mean(axis=-1) / 255
    return colours(gain * difference)


def outlined(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = PAPER) -> np.ndarray:
    """The picture [h, w, 3] with the border of a mask [h, w] drawn on it."""
    inside = mask > 0.5
    kept = np.pad(inside, 1, mode="edge")
    core = kept[:-2, 1:-1] & kept[2:, 1:-1] & kept[1:-1, :-2] & kept[1:-1, 2:]
    return np.where((inside & ~core)[..., None], np.array(colour, np.uint8), picture)
