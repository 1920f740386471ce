"""Null-text, negative-prompt and direct inversion, and the attention control on top of them."""

from __future__ import annotations

from harness.tiny import Graph

from .parts import HIGHER, NEGATIVE, NONE, NULL_TEXT, Made, Method, Wires, each, invert, sample


def null_text(g: Graph, w: Wires, cfg: float) -> Made:
    return sample(g, w, invert(g, w, NULL_TEXT, cfg), w.after, cfg, negative=w.empty)


def negative_prompt(g: Graph, w: Wires, cfg: float) -> Made:
    return sample(g, w, invert(g, w, NEGATIVE, cfg), w.after, cfg)


def direct(g: Graph, w: Wires, cfg: float) -> Made:
    """What the source branch misses the recording by is given to the edit as well."""
    return sample(g, w, invert(g, w, NONE, cfg), w.after, cfg, exact="source and edit", negative=w.empty)


METHODS = {
    "nti": Method(null_text, {"cfg": 7.5}, each((*HIGHER, 4.0)), "null-text inversion, the other caption at cfg 7.5"),
    "npi": Method(negative_prompt, {"cfg": 7.5}, each((*HIGHER, 4.0)), "negative-prompt inversion, the same"),
    "direct": Method(direct, {"cfg": 7.5}, each((*HIGHER, 4.0)), "source residual given to the edit, cfg 7.5"),
}
