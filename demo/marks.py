"""The pack's icon and banner in docs/, drawn of one scene before and after an edit: python run.py marks."""
from __future__ import annotations

from dataclasses import replace

from PIL import Image, ImageDraw

from .render import render
from .scene import scene

ICON, BANNER = 400, (1260, 540)         # the registry: square, at most 400 pixels; 21:9
FROM, TO = "fox", "dog"
LOOKS = (dict(coat="orange", background="blue"), dict(coat="gray", background="yellow"),
         dict(coat="white", background="green"))


def main(argv: list[str]) -> int:
    from harness.environment import ROOT
    folder = ROOT / "docs"
    icon().save(folder / "icon.png", optimize=True)
    banner().save(folder / "banner.png", optimize=True)
    print(f"wrote {folder / 'icon.png'} and {folder / 'banner.png'}")
    return 0


def icon() -> Image.Image:
    """The first look."""
    return _halves(ICON, LOOKS[0])


def banner() -> Image.Image:
    """All looks, side by side."""
    width, height = BANNER
    column, picture = width // len(LOOKS), Image.new("RGB", BANNER)
    for k, look in enumerate(LOOKS):
        picture.paste(_halves(height, look).crop(((height - column) // 2, 0, (height + column) // 2, height)),
                      (k * column, 0))
    return picture


def _halves(size: int, look: dict) -> Image.Image:
    """A face as it is on the left of a mirror, and edited on the right of it."""
    picture, after = _pair(size, look)
    half = size // 2
    picture.paste(after.crop((half, 0, size, size)), (half, 0))
    ImageDraw.Draw(picture).line((half, 0, half, size), fill="white", width=size // 60)
    return picture


def _pair(size: int, look: dict) -> tuple[Image.Image, Image.Image]:
    """A face that stands straight in the middle, before the edit and after it."""
    start = scene(0)
    straight = replace(start.nuisance, x=.5, y=.5, tilt=0., size=.29)
    before = replace(start, nuisance=straight, species=FROM, pattern="plain", hat="none", glasses="no", **look)
    return render(before, size), render(before.with_(species=TO), size)
