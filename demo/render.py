"""Draws a scene as a cartoon animal portrait, 128 x 128, with Pillow at three times the size.

Lines are thick (about 2 pixels) so that they survive an 8x autoencoder. All head parts live in head coordinates: origin
at the head's centre, unit its radius, y down.
"""
from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .scene import Scene

SIZE = 128
OVER = 3                                            # supersampling

COAT_RGB = {"orange": (238, 134, 38), "brown": (128, 78, 42), "gray": (140, 144, 150), "white": (240, 238, 230),
            "black": (52, 48, 54), "pink": (240, 140, 178)}
BACKGROUND_RGB = {"blue": (74, 140, 226), "green": (98, 182, 88), "pink": (248, 176, 200), "purple": (150, 104, 206),
                  "yellow": (246, 212, 84), "gray": (168, 170, 176)}
HAT_RGB = {"red": (208, 36, 44), "blue": (34, 66, 180), "green": (24, 124, 66), "yellow": (252, 196, 22)}
IRIS_RGB = ((60, 130, 70), (54, 110, 190), (190, 140, 30), (96, 60, 36))
FRAME_RGB = ((24, 22, 26), (178, 24, 32), (28, 56, 160), (16, 104, 74))
LENS = (222, 234, 246)
INK, WHITE, PINK, MUZZLE = (34, 28, 32), (250, 250, 246), (236, 146, 156), (246, 236, 220)


def render(s: Scene, size: int = SIZE) -> Image.Image:
    """The picture of a scene, RGB, `size` x `size`."""
    canvas = Image.new("RGB", (size * OVER,) * 2)
    _background(canvas, s)
    pen = Pen(canvas, s)
    coat = _shift(COAT_RGB[s.coat], s.nuisance.tint[0] * .05)
    _body(pen, s, coat)
    _head(pen, s, coat)
    _pattern(pen, s, coat)
    _face(pen, s, coat)
    if s.hat != "none":
        _hat(pen, s)
    return _light(canvas.resize((size, size), Image.Resampling.BOX), s)


def render_array(s: Scene) -> np.ndarray:
    """The picture as uint8 [H, W, 3]."""
    return np.asarray(render(s))


def difference_mask(before: Image.Image, after: Image.Image, threshold: int = 12, dilate: int = 3) -> np.ndarray:
    """Where two pictures differ by more than `threshold` of 255 in any channel, widened by `dilate` pixels; [H, W]."""
    a, b = (np.asarray(i, np.int16) for i in (before, after))
    mask = Image.fromarray((np.abs(a - b).max(-1) > threshold).astype(np.uint8) * 255)
    return np.asarray(mask.filter(ImageFilter.MaxFilter(2 * dilate + 1))) > 0


class Pen:
    """Draws in head coordinates: rotates by the tilt, scales by the head's radius, moves to its centre."""

    def __init__(self, canvas: Image.Image, s: Scene):
        n, self.canvas = s.nuisance, canvas
        self.unit = n.size * canvas.width
        self.turn = np.array([[np.cos(n.tilt), np.sin(n.tilt)], [-np.sin(n.tilt), np.cos(n.tilt)]])
        self.centre = np.array([n.x, n.y]) * canvas.width
        self.draw = ImageDraw.Draw(canvas)
        self.coat_mask = Image.new("L", canvas.size)     # where fur is, for the pattern

    def at(self, points) -> list[tuple[float, float]]:
        return [tuple(p) for p in np.asarray(points, float) @ self.turn * self.unit + self.centre]

    def shape(self, points, fill=None, line=None, width=.075, fur=False):
        xy = self.at(points)
        if fill:
            self.draw.polygon(xy, fill=fill)
        if fur:
            ImageDraw.Draw(self.coat_mask).polygon(xy, fill=255)
        if line:
            self.stroke([*points, points[0], points[1]], line, width)

    def stroke(self, points, colour, width=.075):
        self.draw.line(self.at(points), fill=colour, width=max(1, round(width * self.unit)), joint="curve")

    def ellipse(self, x, y, rx, ry=None, fill=None, line=None, width=.075, fur=False, turn=0.):
        self.shape(oval(x, y, rx, ry, turn), fill, line, width, fur)


def oval(x, y, rx, ry=None, turn=0.):
    a = np.linspace(0, 2 * np.pi, 49)[:-1]
    p = np.stack([rx * np.cos(a), (ry or rx) * np.sin(a)], 1)
    c, s = np.cos(turn), np.sin(turn)
    return p @ np.array([[c, s], [-s, c]]) + (x, y)


def mirrored(points):
    return [(-x, y) for x, y in points]


def _mix(a, b, t):
    return tuple(int(round(p + (q - p) * t)) for p, q in zip(a, b, strict=True))


def _shift(rgb, by):
    """The colour a little lighter (by > 0) or darker."""
    return _mix(rgb, WHITE if by > 0 else INK, abs(by))


def _dark(coat):
    """The colour of a pattern: darker than the coat, or lighter on a black one."""
    light = colorsys.rgb_to_hls(*(c / 255 for c in coat))[1]
    return _mix(coat, (190, 184, 182), .75) if light < .3 else _mix(coat, (40, 26, 24), .68)


def _outline(coat):
    return _mix(coat, INK, .72)


def _background(canvas, s: Scene):
    n, w = s.nuisance, canvas.width
    base = _shift(BACKGROUND_RGB[s.background], n.tint[1] * .07)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, w, w), fill=base)
    draw.rectangle((0, n.horizon * w, w, w), fill=_mix(base, INK, .16))
    for x, y, r, sign in n.shapes:
        draw.ellipse(((x - r) * w, (y - r) * w, (x + r) * w, (y + r) * w),
                     fill=_mix(base, WHITE if sign > 0 else INK, .28))


def _body(pen, s, coat):
    pen.ellipse(0, 1.95, 1.0, 1.1, coat, _outline(coat), fur=True)


# ---- heads ----

def _head(pen, s: Scene, coat):
    ears = {"cat": _cat_ears, "dog": _dog_ears, "fox": _fox_ears, "bear": _bear_ears, "rabbit": _rabbit_ears}[s.species]
    if s.species != "dog":
        ears(pen, coat)
    outline = {"cat": oval(0, .05, 1.05, .92), "dog": oval(0, .04, .92, 1.0), "bear": oval(0, 0, 1.02, .98),
               "rabbit": oval(0, .08, .88, .94), "fox": FOX_HEAD}[s.species]
    pen.shape(outline, coat, _outline(coat), fur=True)
    if s.species == "dog":
        ears(pen, coat)


FOX_HEAD = [(-1.1, -.28), (-.7, -.72), (-.25, -.84), (.25, -.84), (.7, -.72), (1.1, -.28), (1.05, .1), (.62, .62),
            (.2, 1.12), (0, 1.2), (-.2, 1.12), (-.62, .62), (-1.05, .1)]


def _pair(pen, points, **style):
    pen.shape(points, **style)
    pen.shape(mirrored(points), **style)


def _cat_ears(pen, coat):
    _pair(pen, [(-1.0, -.1), (-.98, -1.25), (-.2, -.78)], fill=coat, line=_outline(coat), fur=True)
    _pair(pen, [(-.86, -.5), (-.86, -1.0), (-.46, -.72)], fill=PINK)


def _fox_ears(pen, coat):
    _pair(pen, [(-1.05, -.2), (-1.02, -1.5), (-.18, -.76)], fill=coat, line=_outline(coat), fur=True)
    _pair(pen, [(-1.03, -1.0), (-1.02, -1.5), (-.66, -1.18)], fill=INK)
    _pair(pen, [(-.88, -.6), (-.84, -1.0), (-.5, -.72)], fill=WHITE)


def _bear_ears(pen, coat):
    for side in (-1, 1):
        pen.ellipse(side * .78, -.78, .38, fill=coat, line=_outline(coat), fur=True)
        pen.ellipse(side * .78, -.78, .2, fill=_mix(coat, PINK, .7))


def _rabbit_ears(pen, coat):
    for side in (-1, 1):
        pen.ellipse(side * .48, -1.18, .27, .7, coat, _outline(coat), fur=True, turn=side * .16)
        pen.ellipse(side * .48, -1.18, .13, .5, fill=PINK, turn=side * .16)


def _dog_ears(pen, coat):
    ear = _mix(coat, INK, .45) if sum(coat) > 260 else _mix(coat, MUZZLE, .35)
    for side in (-1, 1):
        pen.ellipse(side * .98, .12, .3, .72, ear, _outline(coat), turn=-side * .2)


# ---- coat and face ----

def _pattern(pen, s: Scene, coat):
    if s.pattern == "plain":
        return
    layer = Image.new("L", pen.canvas.size)
    draw = ImageDraw.Draw(layer)
    if s.pattern == "striped":
        for k in range(-4, 9):
            y = (k + s.nuisance.phase) * .5
            band = [(-2, y + .5), (0, y), (2, y + .5), (2, y + .73), (0, y + .23), (-2, y + .73)]
            draw.polygon(pen.at(band), fill=255)
    else:
        for x, y, r in s.nuisance.marks:
            draw.polygon(pen.at(oval(x, y, r)), fill=255)
    mask = Image.fromarray(np.minimum(np.asarray(layer), np.asarray(pen.coat_mask)))
    pen.canvas.paste(_dark(coat), mask=mask)


def _face(pen, s: Scene, coat):
    faces = {"cat": _cat_face, "dog": _dog_face, "fox": _fox_face, "bear": _bear_face, "rabbit": _rabbit_face}
    faces[s.species](pen, s)
    if s.glasses == "yes":                           # pale glass behind the eyes, the frame over them
        for lens in _lenses(s):
            pen.shape(lens, LENS)
    _eyes(pen, s)
    if s.glasses == "yes":
        _frame(pen, s)


def _eyes(pen, s: Scene):
    n = s.nuisance
    for side in (-1, 1):
        x, y = side * n.eye_gap, -.16
        pen.ellipse(x, y, n.eye, n.eye * 1.15, WHITE, INK, .055)
        gx, gy = x + n.gaze[0] * n.eye * .8, y + n.gaze[1] * n.eye * .8
        pen.ellipse(gx, gy, n.eye * .62, fill=IRIS_RGB[n.iris])
        pen.ellipse(gx, gy, n.eye * .34, fill=INK)


def _mouth(pen, s: Scene, y):
    n = s.nuisance
    if n.mouth == 2:
        pen.ellipse(0, y + .1, .15, .13, (120, 30, 44), INK, .055)
    else:
        w, d = (.24, .14) if n.mouth else (.16, .06)
        pen.stroke([(-w, y + .02), (-w / 2, y + d), (0, y), (w / 2, y + d), (w, y + .02)], INK, .07)


def _cat_face(pen, s):
    for side in (-1, 1):
        pen.ellipse(side * .2, .42, .27, .22, MUZZLE)
        for dy in (-.04, .14):
            pen.stroke([(side * .42, .4 + dy), (side * 1.12, .32 + 2.2 * dy)], (88, 80, 82), .06)
    _mouth(pen, s, .42)
    pen.shape([(-.15, .2), (.15, .2), (0, .37)], PINK, INK, .04)


def _dog_face(pen, s):
    pen.ellipse(0, .47, .44, .4, MUZZLE, _mix(MUZZLE, INK, .3), .05)
    _mouth(pen, s, .56)
    pen.ellipse(0, .26, .22, .16, INK)
    if s.nuisance.mouth == 1:
        pen.ellipse(0, .82, .13, .19, (228, 92, 110))


def _fox_face(pen, s):
    white = [(-1.02, .12), (-.55, .14), (-.2, .42), (0, .5), (.2, .42), (.55, .14), (1.02, .12), (.6, .6), (.2, 1.07),
             (0, 1.13), (-.2, 1.07), (-.6, .6)]
    pen.shape(white, WHITE)
    _mouth(pen, s, .68)
    pen.ellipse(0, .52, .16, .13, INK)


def _bear_face(pen, s):
    pen.ellipse(0, .4, .4, .33, MUZZLE)
    _mouth(pen, s, .45)
    pen.shape([(-.2, .16), (.2, .16), (.12, .34), (-.12, .34)], INK)


def _rabbit_face(pen, s):
    for side in (-1, 1):
        pen.ellipse(side * .17, .43, .22, .18, MUZZLE)
    pen.shape([(-.12, .5), (.12, .5), (.12, .78), (-.12, .78)], WHITE, INK, .05)
    pen.stroke([(0, .5), (0, .76)], INK, .04)
    pen.shape([(-.13, .22), (.13, .22), (0, .36)], PINK, INK, .04)


# ---- worn things and light ----

def _lenses(s: Scene):
    r = .35
    for side in (-1, 1):
        x = side * .44
        yield oval(x, -.14, r) if s.nuisance.lens else [(x - r, -.44), (x + r, -.44), (x + r, .14), (x - r, .14)]


def _frame(pen, s: Scene):
    colour = FRAME_RGB[s.nuisance.frame]
    for lens in _lenses(s):
        pen.shape(list(map(tuple, lens)), line=colour, width=.12)
    for side in (-1, 1):
        pen.stroke([(side * .78, -.2), (side * 1.02, -.26)], colour, .12)


def _hat(pen, s: Scene):
    colour = HAT_RGB[s.hat]
    line = _mix(colour, INK, .6)
    pen.shape([(-.52, -.72), (-.44, -1.42), (.44, -1.42), (.52, -.72)], colour, line)
    pen.shape([(-.52, -.72), (-.5, -.92), (.5, -.92), (.52, -.72)], _mix(colour, INK, .45))
    pen.ellipse(0, -.7, .92, .16, colour, line)


def _light(picture: Image.Image, s: Scene) -> Image.Image:
    angle, strength = s.nuisance.light
    v, u = np.mgrid[0:picture.height, 0:picture.width] / (picture.width - 1) - .5
    gain = s.nuisance.exposure * (1 + strength * (u * np.cos(angle) + v * np.sin(angle)))
    return Image.fromarray(np.clip(np.asarray(picture, np.float32) * gain[..., None] + .5, 0, 255).astype(np.uint8))
