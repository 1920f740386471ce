"""Bad values for each type of the host's and the pack's wires, and for each kind of widget."""

import dataclasses
from functools import cache

import torch
from support import tiny

from harness.graph import give, node

NAN, INFINITE = float("nan"), float("inf")


def first(x: torch.Tensor, value: float) -> torch.Tensor:
    """A copy whose first number is another."""
    x = x.clone()
    x.reshape(-1)[0] = value
    return x


def latent(change):
    return lambda given: {**given, "samples": change(given["samples"])}


def text(change):
    return lambda given: [[change(words), options] for words, options in given]


def field(name: str, change):
    """One field of a MIRROR, direction or code; what its constructor refuses never comes to a node."""
    return lambda given: dataclasses.replace(given, **{name: change(getattr(given, name))})


LATENTS = {
    "nan": latent(lambda x: first(x, NAN)), "infinite": latent(lambda x: first(x, INFINITE)),
    "no picture": latent(lambda x: x[:0]), "no rows": latent(lambda x: x[:, :, :0]),
    "one cell": latent(lambda x: x[..., :1, :1]), "one row": latent(lambda x: x[..., :1, :]),
    "three channels": latent(lambda x: x[:, :3]), "a video": latent(lambda x: x[:, :, None]),
    "no batch": latent(lambda x: x[0]), "odd sides": latent(lambda x: x[..., :7, :5]),
    "half precision": latent(lambda x: x.half()), "whole numbers": latent(lambda x: x.long()),
    "enormous": latent(lambda x: x * 1e30), "two pictures": latent(lambda x: x.repeat(2, 1, 1, 1)),
    "three masks": lambda given: {**given, "noise_mask": torch.ones(3, 8, 8)},
    "nan mask": lambda given: {**given, "noise_mask": first(torch.ones(1, 8, 8), NAN)},
    "empty mask": lambda given: {**given, "noise_mask": torch.zeros(1, 64, 64)},
    "no samples": lambda given: {},
}
IMAGES = {
    "nan": lambda x: first(x, NAN), "infinite": lambda x: first(x, -INFINITE), "no picture": lambda x: x[:0],
    "no rows": lambda x: x[:, :0], "one pixel": lambda x: x[:, :1, :1], "odd sides": lambda x: x[:, :37, :21],
    "grey": lambda x: x[..., :1], "with alpha": lambda x: torch.cat([x, x[..., :1]], dim=-1),
    "two channels": lambda x: x[..., :2], "beyond white": lambda x: x * 1e6, "negative": lambda x: -x,
    "half precision": lambda x: x.half(), "bytes": lambda x: (x * 255).byte(), "no batch": lambda x: x[0],
    "two pictures": lambda x: x.repeat(2, 1, 1, 1), "one value": lambda x: torch.zeros_like(x),
}
MASKS = {
    "nan": lambda x: first(x, NAN), "none": lambda x: x[:0], "three": lambda x: x.repeat(3, 1, 1),
    "flat": lambda x: x[0], "one cell": lambda x: x[:, :1, :1],
    "unpainted": lambda x: 0 * x, "negative": lambda x: x - 2,
    "beyond one": lambda x: 5 * x, "odd sides": lambda x: x[:, :7, :31], "bits": lambda x: x.bool(),
}
TEXTS = {
    "nan": text(lambda x: first(x, NAN)), "infinite": text(lambda x: first(x, INFINITE)), "no entry": lambda x: [],
    "another CLIP's": text(lambda x: x[..., :48]), "no tokens": text(lambda x: x[:, :0]),
    "two chunks": text(lambda x: x.repeat(1, 2, 1)), "few tokens": text(lambda x: x[:, :5]),
    "two texts": text(lambda x: x.repeat(2, 1, 1)), "three texts": text(lambda x: x.repeat(3, 1, 1)),
    "no text": lambda x: [[None, x[0][1]]], "no pooled": lambda x: [[x[0][0], {}]],
    "half precision": text(lambda x: x.half()), "flat": text(lambda x: x[0]),
    "a gap": lambda x: [[x[0][0], {**x[0][1], "start_percent": 0.9, "end_percent": 0.95}]],
    "an area": lambda x: [[x[0][0], {**x[0][1], "area": (4, 4, 2, 2), "strength": 1.0}]],
    "two entries": lambda x: [*x, *x],
}
LEVELS = {
    "nan": lambda x: first(x, NAN), "none": lambda x: x[:0], "one": lambda x: x[:1], "rising": lambda x: x.flip(0),
    "infinite": lambda x: first(x, INFINITE), "repeated": lambda x: x[[0, 0, 1, 2]], "negative": lambda x: x - 5,
    "enormous": lambda x: x * 1e12, "square": lambda x: x[None].repeat(3, 1), "all zero": lambda x: 0 * x,
    "whole numbers": lambda x: x.long(), "beyond the model's": lambda x: torch.tensor([400.0, 40.0, 0.0]),
}
MIRRORS = {
    "nan prompts": field("embeddings", lambda x: first(x, NAN)),
    "nan latents": field("latents", lambda x: first(x, NAN)),
    "another CLIP's": field("source", lambda x: x[..., :48]), "two pictures": lambda x: dataclasses.replace(
        x, latents=x.latents.repeat(1, 2, 1, 1, 1), reconstruction=x.reconstruction.repeat(1, 2, 1, 1, 1)),
    "fewer steps": field("embeddings", lambda x: x[:1]),
    "more channels": lambda x: dataclasses.replace(
        x, latents=x.latents.repeat(1, 1, 4, 1, 1), reconstruction=x.reconstruction.repeat(1, 1, 4, 1, 1)),
    "three masks": field(
        "mask", lambda _: torch.ones(3, 1, 8, 8)),
}
DIRECTIONS = {
    "nan": field("delta", lambda x: first(x, NAN)), "another CLIP's": field("delta", lambda x: x[..., :48]),
    "two chunks": field("delta", lambda x: x.repeat(1, 2, 1)), "enormous": field("delta", lambda x: x * 1e30),
    "no pooled": field("pooled", lambda _: None), "narrow pooled": field("pooled", lambda _: torch.zeros(1, 5)),
}
CODES = {
    "nan": field("noises", lambda x: first(x, NAN)), "infinite": field("latents", lambda x: first(x, INFINITE)),
    "fewer steps": field("noises", lambda x: x[:1]), "rising": field("sigmas", lambda x: x.flip(0)),
}
ENERGIES = {"none at all": lambda x: ()}
CHANGED = {"LATENT": LATENTS, "IMAGE": IMAGES, "MASK": MASKS, "CONDITIONING": TEXTS, "SIGMAS": LEVELS,
           "MIRROR": MIRRORS, "MIRROR_DIRECTION": DIRECTIONS, "MIRROR_CODE": CODES, "MIRROR_ENERGY": ENERGIES}
OTHERS = {"MODEL": {"SDXL": tiny.sdxl, "SD3": tiny.flow, "Flux": tiny.flux,
                    "v-prediction": lambda: tiny.unet(v_prediction=True), "other weights": lambda: tiny.unet(9)}}
STRINGS = ["", "  ", "\n\n\n", "x" * 5000, "a\0b", "../../etc/passwd", "/etc/passwd", "\U0001f98a" * 40, "{cat}",
           "%s %n", "nothing like that", "cat=1=2", "-1e400", "1;2", "nan", "a/" * 400]
NUMBERS = [-1, 0, 2**31, 2**63, -2**70, 1e308, NAN, INFINITE, -INFINITE, "five", "", None, [1, 2], True, 0.5, 1e-300]


def by_widget(kind: str, options: dict, costs: bool) -> list:
    """Values as a graph's file may hold them; not the highest one of what makes a node work for long."""
    if kind in ("INT", "FLOAT"):
        edges = [options[key] for key in ("min", "max")[: 1 if costs else 2] if key in options]
        return [*NUMBERS, *edges, *(edge * 2 + 1 for edge in edges)]
    if kind == "STRING":
        return [*STRINGS, 7, None]
    if kind == "BOOLEAN":
        return [None, "yes", 3]
    return ["none of these", "", 3, None]


@cache
def spoiler(kind: str, name: str) -> str:
    """The node that makes a bad value of this type from a good one."""
    return node(CHANGED[kind][name], (kind,), {"given": kind})


@cache
def other(kind: str, name: str) -> str:
    """The node that makes a value of this type which belongs to something else."""
    return give(OTHERS[kind][name], kind)


@cache
def wired(kind: str, value) -> str:
    """The node that sends a number or text by wire, past the widget's own checks."""
    return give(lambda: value, kind)


@cache
def nothing(kind: str) -> str:
    """The node that gives None, as the loader of a checkpoint without VAE or CLIP does."""
    return give(lambda: None, kind)

