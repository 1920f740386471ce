"""The contact sheet: pictures beside their results, evenly from the whole job, failures left out."""
from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from mirror_ops.storage.whole_file import whole_file

PAIRS, COLUMNS, CELL, HEAD, GAP = 40, 4, 160, 18, 6


def contact_sheet(rows: list[dict], source: Path, target: Path) -> Image.Image | None:
    """Of at most 40 pairs; None if there are none."""
    good = [row for row in rows if "error" not in row]
    picked = [good[i * len(good) // min(PAIRS, len(good))] for i in range(min(PAIRS, len(good)))]
    if not picked:
        return None
    columns = min(COLUMNS, len(picked))
    width, height = 2 * CELL + GAP, CELL + HEAD
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, -(-len(picked) // columns) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, row in enumerate(picked):
        x, y = i % columns * (width + GAP), i // columns * height
        draw.text((x, y + 3), shortened(row["name"], font, width, draw), fill=(30, 30, 30), font=font)
        for j, file in enumerate((source / row["name"], target / row["result"])):
            sheet.paste(thumbnail(file), (x + j * CELL, y + HEAD))
    return sheet


def thumbnail(file: Path) -> Image.Image:
    """The picture in a square cell; an empty one if it has gone in the meantime."""
    try:
        with Image.open(file) as picture:
            return ImageOps.pad(ImageOps.exif_transpose(picture).convert("RGB"), (CELL, CELL), color="white")
    except OSError:
        return Image.new("RGB", (CELL, CELL), (230, 230, 230))


def shortened(text: str, font, width: int, draw) -> str:
    """A path in one line; the end of one that is too long."""
    text = " ".join(text.split())  # nothing of several lines can be measured
    while draw.textlength(text, font=font) > width:
        text = "…" + text.lstrip("…")[2:]
    return text


def write(content: Image.Image | str, file: Path) -> None:
    """A report, whole or not there."""
    with whole_file(file) as part:
        if isinstance(content, str):
            part.write_text(content, encoding="utf-8")
        else:
            content.save(part, "JPEG", quality=90)
