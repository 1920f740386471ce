"""pix2pix-zero and its ablations (Parmar et al. 2023, table 2)."""

from __future__ import annotations

from harness.tiny import Graph

from .parts import CFGS, NONE, STRENGTHS, Made, Method, Wires, each, invert, sample

CURRENT = "current (pix2pix-zero family)"


def pix2pix_zero_swap(g: Graph, w: Wires, cfg: float) -> Made:
    """Configuration C of pix2pix-zero's ablation: regularised inversion, the other caption."""
    return sample(g, w, pix2pix_zero_inversion(g, w), w.after, cfg)


def pix2pix_zero_direction(g: Graph, w: Wires, cfg: float, strength: float = 1.0) -> Made:
    """Configuration D: regularised inversion, an edit direction; no cross-attention guidance."""
    mirror = pix2pix_zero_inversion(g, w)
    return sample(g, w, mirror, w.before, cfg, direction=w.direction, strength=strength)


def pix2pix_zero_inversion(g: Graph, w: Wires):
    return invert(g, w, NONE, regularise="pix2pix-zero", label=CURRENT)


METHODS = {
    "pix2pix-zero-C": Method(pix2pix_zero_swap, {"cfg": 5.0}, each(CFGS), "ablation C: regularised inversion, caption"),
    "pix2pix-zero-D": Method(pix2pix_zero_direction, {"cfg": 5.0}, STRENGTHS,
                             "ablation D: regularised inversion, edit direction, no cross-attention guidance"),
}
