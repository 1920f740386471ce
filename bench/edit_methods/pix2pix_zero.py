"""pix2pix-zero and its ablations (Parmar et al. 2023, table 2), each with one part more than the one before.

In all of them guidance leads away from the source's prompt, as the official code's negative prompt does.
"""

from __future__ import annotations

from harness.graph import Graph

from .parts import NONE, Made, Method, Wires, invert, sample

CURRENT = "current (pix2pix-zero family)"
PAPER, CODE = "one latent (paper)", "two latents (official code)"
AMOUNTS = tuple({"cfg": cfg, "amount": amount} for cfg, amount in ((1.5, .1), (1.5, .5), (3.0, .5)))


def pix2pix_zero_noise(g: Graph, w: Wires, cfg: float) -> Made:
    """Configuration A: noise on the picture, all of it, the other caption."""
    inputs = {"model": w.model, "positive": w.after, "negative": w.before, "latent_image": w.latent(g)}
    return Made(g.add("KSampler", **inputs, seed=0, cfg=cfg, sampler_name="euler", scheduler="ddim_uniform",
                      denoise=1.0, steps=w.steps)())


def pix2pix_zero_ddim(g: Graph, w: Wires, cfg: float) -> Made:
    """Configuration B: DDIM inversion, the other caption."""
    return sample(g, w, invert(g, w, NONE, label=CURRENT), w.after, cfg)


def pix2pix_zero_swap(g: Graph, w: Wires, cfg: float) -> Made:
    """Configuration C: regularised inversion, the other caption."""
    return sample(g, w, pix2pix_zero_inversion(g, w), w.after, cfg)


def pix2pix_zero_direction(g: Graph, w: Wires, cfg: float, strength: float = 1.0) -> Made:
    """Configuration D: regularised inversion, an edit direction; no cross-attention guidance."""
    mirror = pix2pix_zero_inversion(g, w)
    return sample(g, w, mirror, w.before, cfg, direction=w.direction, strength=strength)


def pix2pix_zero(g: Graph, w: Wires, cfg: float, amount: float, latents: str = PAPER) -> Made:
    """Configuration E, the method: regularised inversion, an edit direction, cross-attention guidance."""
    mirror = pix2pix_zero_inversion(g, w)
    model = g.add("MirrorCrossAttentionGuidance", model=w.model, mirror=mirror(2), amount=amount, latents=latents)
    return sample(g, w, mirror, w.before, cfg, model=model(), direction=w.direction)


def pix2pix_zero_code(g: Graph, w: Wires, cfg: float, amount: float) -> Made:
    """The same as the official code reads the paper."""
    return pix2pix_zero(g, w, cfg, amount, CODE)


def pix2pix_zero_inversion(g: Graph, w: Wires):
    return invert(g, w, NONE, regularise="pix2pix-zero", label=CURRENT)


METHODS = {
    "pix2pix-zero-A": Method(pix2pix_zero_noise, {"cfg": 5.0}, about="ablation A: noise, the other caption"),
    "pix2pix-zero-B": Method(pix2pix_zero_ddim, {"cfg": 5.0}, about="ablation B: DDIM inversion, caption"),
    "pix2pix-zero-C": Method(pix2pix_zero_swap, {"cfg": 5.0}, about="ablation C: regularised inversion, caption"),
    "pix2pix-zero-D": Method(pix2pix_zero_direction, {"cfg": 5.0},
                             about="ablation D: regularised inversion, edit direction, no cross-attention guidance"),
    "pix2pix-zero": Method(pix2pix_zero, {"cfg": 5.0, "amount": .1}, AMOUNTS,
                           "regularised inversion, edit direction, cross-attention guidance of one latent"),
    "pix2pix-zero-code": Method(pix2pix_zero_code, {"cfg": 5.0, "amount": .1},
                                about="the same with the official code's two latents"),
}
