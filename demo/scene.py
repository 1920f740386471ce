"""What is in a picture of the embedded world: the captioned attributes, the uncaptioned nuisances, and the captions.

A scene is drawn from one integer seed. The nuisances come from their own random stream, before and independently of the
attributes, so `scene.with_(species="dog")` changes what the caption says and nothing else: rendering it gives the exact
counterfactual of an edit.

Training scenes use seeds below `HELD_OUT`, held-out scenes seeds from it on: disjoint by construction.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

HELD_OUT = 1_000_000

SPECIES = ("cat", "dog", "fox", "bear", "rabbit")
COATS = ("orange", "brown", "gray", "white", "black", "pink")
PATTERNS = ("plain", "striped", "spotted")
GLASSES = ("no", "yes")
HATS = ("none", "red", "blue", "green", "yellow")
BACKGROUNDS = ("blue", "green", "pink", "purple", "yellow", "gray")

ATTRIBUTES = {"species": SPECIES, "coat": COATS, "pattern": PATTERNS, "glasses": GLASSES, "hat": HATS,
              "background": BACKGROUNDS}


@dataclass(frozen=True)
class Nuisance:
    """Everything no caption names. Lengths in units of the picture's height, angles in radians, the rest in [0, 1)."""
    x: float            # head centre
    y: float
    size: float         # head radius
    tilt: float
    gaze: tuple[float, float]
    eye: float          # eye radius relative to the head
    eye_gap: float
    iris: int
    mouth: int
    frame: int          # colour of the glasses' frame
    lens: int           # shape of the glasses
    phase: float        # of the stripes
    marks: tuple[tuple[float, float, float], ...]      # spots on the coat, in head coordinates: x, y, radius
    light: tuple[float, float]                          # direction (angle) and strength of the shading
    exposure: float
    tint: tuple[float, float, float]                    # small shifts of coat and background colour
    shapes: tuple[tuple[float, float, float, float], ...]   # background: x, y, radius, lighter or darker
    horizon: float


@dataclass(frozen=True)
class Scene:
    species: str
    coat: str
    pattern: str
    glasses: str
    hat: str
    background: str
    nuisance: Nuisance

    def __post_init__(self):
        for name, values in ATTRIBUTES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}; got {getattr(self, name)!r}")

    def with_(self, **attributes) -> Scene:
        """The same scene with some captioned attributes replaced; raises ValueError for a value the world lacks."""
        return replace(self, **attributes)

    def labels(self) -> dict[str, int]:
        """Class index of each captioned attribute."""
        return {name: values.index(getattr(self, name)) for name, values in ATTRIBUTES.items()}


def scene(seed: int) -> Scene:
    """The scene of a seed, the same on every machine (numpy's PCG64)."""
    nuisance = _nuisance(np.random.default_rng([seed, 1]))
    rng = np.random.default_rng([seed, 2])
    pick = {name: values[rng.integers(len(values))] for name, values in ATTRIBUTES.items() if name != "hat"}
    pick["hat"] = "none" if rng.random() < 0.4 else HATS[rng.integers(1, len(HATS))]
    return Scene(**pick, nuisance=nuisance)


def _nuisance(rng: np.random.Generator) -> Nuisance:
    u = rng.uniform
    marks, shapes = [], []
    while len(marks) < 8:                               # spots keep their distance, so that they stay apart when drawn
        x, y, r = u(-.9, .9), u(-.85, 1.6), u(.15, .24)
        if all((x - a) ** 2 + (y - b) ** 2 > (r + c + .08) ** 2 for a, b, c in marks):
            marks.append((x, y, r))
    for _ in range(rng.integers(2, 5)):
        shapes.append((u(0, 1), u(0, .75), u(.05, .12), float(rng.choice([-1, 1]))))
    return Nuisance(
        x=u(.42, .58), y=u(.52, .62), size=u(.27, .335), tilt=u(-.16, .16),
        gaze=(u(-.35, .35), u(-.3, .3)), eye=u(.19, .235), eye_gap=u(.38, .45), iris=int(rng.integers(4)),
        mouth=int(rng.integers(3)), frame=int(rng.integers(4)), lens=int(rng.integers(2)), phase=u(0, 1),
        marks=tuple(marks), light=(u(0, 2 * np.pi), u(.05, .22)), exposure=u(.92, 1.08),
        tint=(u(-1, 1), u(-1, 1), u(-1, 1)), shapes=tuple(shapes), horizon=u(.60, .85))


# ---- captions ----

PREFIXES = ("a photo of", "a picture of", "a drawing of", "a cartoon of", "a portrait of", "an image of",
            "a painting of", "this is", "here is", "")
ARTICLES = ("a", "the", "one", "my")


def caption(s: Scene) -> str:
    """The full caption in its standard wording, which names all six attributes.

    The hat comes last, because "a red hat" and "no hat" differ in length: every other word keeps its place in an edit.
    """
    glasses = "big" if s.glasses == "yes" else "no"
    hat = "no" if s.hat == "none" else f"a {s.hat}"
    return (f"a photo of a {s.pattern} {s.coat} {s.species} on a {s.background} background "
            f"with {glasses} glasses and {hat} hat")


def random_caption(s: Scene, rng: np.random.Generator, fillers: tuple[str, ...] = ()) -> str:
    """A caption in varied wording: attributes left out at times, wording and order of the parts changed, now and then
    `fillers` around it that mean nothing in this world, so that sentences from outside it can be read too."""
    if rng.random() < .35:                               # the standard wording has to be the best known
        return caption(s)

    def keep(chance):
        return rng.random() < chance
    if keep(.18):
        return " ".join(_padded(_short(s, rng), rng, fillers).split())
    words = [s.pattern] * keep(.85) + [s.coat] * keep(.85) + [s.species if keep(.97) else "animal"]
    glasses = rng.choice(["big glasses", "glasses", "round glasses"]) if s.glasses == "yes" else "no glasses"
    hat = "no hat" if s.hat == "none" else f"a {s.hat} hat" if keep(.94) else "a hat"
    worn = [glasses] * keep(.9 if s.glasses == "yes" else .6) + [hat] * keep(.9 if s.hat != "none" else .6)
    if keep(.3):
        worn.reverse()
    parts = [f"{rng.choice(['with', 'wearing'])} {' and '.join(worn)}"] * bool(worn)
    parts += [f"{rng.choice(['on a', 'in front of a'])} {s.background} background"] * keep(.88)
    if keep(.6):
        parts.reverse()
    text = [rng.choice(PREFIXES), rng.choice(ARTICLES), *words, *parts]
    return " ".join(_padded(" ".join(text), rng, fillers if keep(.25) else ()).split())


def _short(s: Scene, rng: np.random.Generator) -> str:
    """One attribute alone, as sentences for edit directions have it."""
    article = rng.choice(ARTICLES)
    one = [f"{article} {s.species}", f"{article} {s.species}",
           f"{article} {s.coat} animal", f"{article} {s.pattern} animal",
           f"an animal with {'' if s.glasses == 'yes' else 'no '}glasses", f"{article} {s.coat} {s.species}",
           f"an animal with {'no' if s.hat == 'none' else f'a {s.hat}'} hat",
           f"{article} {s.background} background"]
    return f"{rng.choice(PREFIXES)} {rng.choice(one)}"


def _padded(text: str, rng: np.random.Generator, fillers: tuple[str, ...]) -> str:
    if not fillers:
        return text
    before, after = (rng.choice(fillers, rng.integers(0, 5)) for _ in range(2))
    return " ".join([*before, text, *after])


def describe(s: Scene) -> dict[str, str]:
    """The captioned attributes by name."""
    return {name: getattr(s, name) for name in ATTRIBUTES}
