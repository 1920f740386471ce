"""Null-text, negative-prompt and direct inversion, and the attention control on top of them."""

from __future__ import annotations

from harness.tiny import Graph

from .parts import HIGHER, NEGATIVE, NONE, NULL_TEXT, STEPS, Made, Method, Wires, each, invert, sample


def null_text(g: Graph, w: Wires, cfg: float, p2p: dict | None = None) -> Made:
    mirror = invert(g, w, NULL_TEXT, cfg)
    return sample(g, w, mirror, w.after, cfg, negative=w.empty, model=with_maps(g, w, mirror, w.model, p2p))


def negative_prompt(g: Graph, w: Wires, cfg: float, p2p: dict | None = None) -> Made:
    mirror = invert(g, w, NEGATIVE, cfg)
    return sample(g, w, mirror, w.after, cfg, model=with_maps(g, w, mirror, w.model, p2p))


def proximal_negative_prompt(g: Graph, w: Wires, cfg: float, quantile: float, p2p: dict | None = None) -> Made:
    """Proximal guidance on negative-prompt inversion."""
    mirror = invert(g, w, NEGATIVE, cfg)
    return sample(g, w, mirror, w.after, cfg, model=with_maps(g, w, mirror, proximal(g, w.model, quantile), p2p))


def direct(g: Graph, w: Wires, cfg: float, p2p: dict | None = None) -> Made:
    """What the source branch misses the recording by is given to the edit as well."""
    mirror = invert(g, w, NONE, cfg)
    return sample(g, w, mirror, w.after, cfg, exact="source and edit", negative=w.empty,
                  model=with_maps(g, w, mirror, w.model, p2p))


def masactrl(g: Graph, w: Wires, cfg: float, first_step: int = 4, quantile: float | None = None) -> Made:
    """Keys and values of the picture in the decoder's self-attention; with a quantile as ProxMasaCtrl."""
    mirror = invert(g, w, NONE)
    own = {} if quantile is None else {"source_negative": "the source prompt"}
    model = g.add("MirrorMutualSelfAttention", model=w.model, mirror=mirror(2), positive="source", negative="source",
                  first_step=round(first_step * w.steps / STEPS), first_layer=DECODER, **own)()
    model = model if quantile is None else proximal(g, model, quantile)
    return sample(g, w, mirror, w.after, cfg, negative=w.empty, model=model)


def proximal(g: Graph, model: list, quantile: float) -> list:
    return g.add("MirrorProximalGuidance", model=model, proximal_map="soft", threshold="quantile",
                 threshold__quantile=quantile, threshold__over="each picture")()


def with_maps(g: Graph, w: Wires, mirror, model: list, settings: dict | None) -> list:
    """The model with prompt-to-prompt at these settings, or as it is without any."""
    if settings is None:
        return model
    return g.add("MirrorPromptToPrompt", model=model, mirror=mirror(2), clip=w.clip, source_text=w.words_before,
                 target_text=w.words_after, mode="auto", **settings)()


DECODER = 3     # the embedded model's first self-attention of the decoder, as 10 of SD1.x's 16 is of its last two sizes
MAPS = {"cross_until": .4, "self_until": .6}    # as Ju et al. 2024 run all of these
LESS, LEAST = {"cross_until": .4, "self_until": .2}, {"cross_until": .2, "self_until": .1}
WAYS = tuple({"cfg": cfg, "p2p": p2p} for cfg in (2.0, 4.0) for p2p in (MAPS, LESS, LEAST))


METHODS = {
    "nti": Method(null_text, {"cfg": 7.5}, each((*HIGHER, 4.0)), "null-text inversion, the other caption at cfg 7.5"),
    "npi": Method(negative_prompt, {"cfg": 7.5}, each((*HIGHER, 4.0)), "negative-prompt inversion, the same"),
    "proxnpi": Method(proximal_negative_prompt, {"cfg": 7.5, "quantile": .4},
                      each((2.0, 3.0, 5.0), quantile=.4) + each((3.0, 5.0, 7.5), quantile=.7),
                      "the same with proximal guidance (soft; the published quantile 0.7 counts the source in: 0.4)"),
    "direct": Method(direct, {"cfg": 7.5}, each((*HIGHER, 4.0)), "source residual given to the edit, cfg 7.5"),
    "nti+p2p": Method(null_text, {"cfg": 7.5, "p2p": MAPS}, WAYS, "null-text inversion with prompt-to-prompt"),
    "npi+p2p": Method(negative_prompt, {"cfg": 7.5, "p2p": MAPS}, WAYS, "negative-prompt inversion, the same"),
    "proxnpi+p2p": Method(proximal_negative_prompt, {"cfg": 7.5, "quantile": .4, "p2p": MAPS},
                          tuple({"quantile": .4, **way} for way in WAYS), "with proximal guidance, the same"),
    "direct+p2p": Method(direct, {"cfg": 7.5, "p2p": MAPS}, WAYS, "source residual given to the edit, the same"),
    "masactrl": Method(masactrl, {"cfg": 7.5},
                       each((2.0, 3.0, 5.0)) + each((2.0, 3.0, 5.0), first_step=10), "MasaCtrl from step 4 of 50"),
    "proxmasactrl": Method(masactrl, {"cfg": 7.5, "quantile": .6},
                           each((2.0, 3.0, 5.0), quantile=.6) + each((2.0, 3.0, 5.0), quantile=.6, first_step=10),
                           "the same, proximal guidance, negative-prompt inversion of the source"),
}
