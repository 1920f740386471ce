"""Null-text, negative-prompt and direct inversion, and the attention control on top of them."""

from __future__ import annotations

from harness.tiny import Graph

from .parts import HIGHER, NEGATIVE, NONE, NULL_TEXT, Made, Method, Wires, each, invert, sample


def null_text(g: Graph, w: Wires, cfg: float) -> Made:
    return sample(g, w, invert(g, w, NULL_TEXT, cfg), w.after, cfg, negative=w.empty)


def negative_prompt(g: Graph, w: Wires, cfg: float) -> Made:
    return sample(g, w, invert(g, w, NEGATIVE, cfg), w.after, cfg)


def proximal_negative_prompt(g: Graph, w: Wires, cfg: float, quantile: float) -> Made:
    """Proximal guidance on negative-prompt inversion."""
    model = g.add("MirrorProximalGuidance", model=w.model, proximal_map="soft", threshold="quantile",
                  threshold__quantile=quantile, threshold__over="each picture")
    return sample(g, w, invert(g, w, NEGATIVE, cfg), w.after, cfg, model=model())


def direct(g: Graph, w: Wires, cfg: float) -> Made:
    """What the source branch misses the recording by is given to the edit as well."""
    return sample(g, w, invert(g, w, NONE, cfg), w.after, cfg, exact="source and edit", negative=w.empty)


METHODS = {
    "nti": Method(null_text, {"cfg": 7.5}, each((*HIGHER, 4.0)), "null-text inversion, the other caption at cfg 7.5"),
    "npi": Method(negative_prompt, {"cfg": 7.5}, each((*HIGHER, 4.0)), "negative-prompt inversion, the same"),
    "proxnpi": Method(proximal_negative_prompt, {"cfg": 7.5, "quantile": .4},
                      each((2.0, 3.0, 5.0), quantile=.4) + each((3.0, 5.0, 7.5), quantile=.7),
                      "the same with proximal guidance (soft; the published quantile 0.7 counts the source in: 0.4)"),
    "direct": Method(direct, {"cfg": 7.5}, each((*HIGHER, 4.0)), "source residual given to the edit, cfg 7.5"),
}
