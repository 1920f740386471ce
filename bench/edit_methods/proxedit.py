"""Null-text, negative-prompt and direct inversion, and the attention control on top of them."""

from __future__ import annotations

from harness.graph import Graph

from .parts import NEGATIVE, NONE, NULL_TEXT, STEPS, Made, Method, Wires, each, invert, sample

PUBLISHED = "|proximal map| > threshold (as published)"
PULL = {"step_size": .5, "first_timestep": 600, "dilation": 1}      # inversion guidance as the authors run it
# Ju et al. 2024 run all of these so: cross-attention for .4 of the walk, self-attention for .6, in layers of at most
# half the latent's side: 32 of Stable Diffusion's 64, 8 of the embedded model's 16.
MAPS = {"cross_until": .4, "self_until": .6}
LESS = {"cross_until": .4, "self_until": .2}
BLENDED = {**LESS, "blend": True}
WAYS = tuple({"cfg": 4.0, "p2p": p2p} for p2p in (MAPS, LESS, BLENDED))


def null_text(g: Graph, w: Wires, cfg: float, p2p: dict | None = None) -> Made:
    mirror = invert(g, w, NULL_TEXT, cfg)
    return sample(g, w, mirror, w.after, cfg, negative=w.empty, model=with_maps(g, w, mirror, w.model, p2p))


def negative_prompt(g: Graph, w: Wires, cfg: float, p2p: dict | None = None) -> Made:
    mirror = invert(g, w, NEGATIVE, cfg)
    return sample(g, w, mirror, w.after, cfg, model=with_maps(g, w, mirror, w.model, p2p))


def proximal_negative_prompt(
    g: Graph, w: Wires, cfg: float, quantile: float, p2p: dict | None = None, pull: dict | None = PULL
) -> Made:
    """Proximal guidance on negative-prompt inversion, with inversion guidance at the settings of `pull`, or without."""
    mirror = invert(g, w, NEGATIVE, cfg)
    model = with_maps(g, w, mirror, proximal(g, w.model, quantile), p2p)
    if pull is not None:
        model = g.add("MirrorInversionGuidance", model=model, mirror=mirror(2), threshold="quantile",
                      threshold__quantile=quantile, threshold__over="each picture", mask_rule=PUBLISHED, **pull)()
    return sample(g, w, mirror, w.after, cfg, model=model)


def direct(g: Graph, w: Wires, cfg: float, p2p: dict | None = None) -> Made:
    """The source branch follows the recording; the edit is left alone, and only attention control carries over what was
    corrected. So without it this is DDIM inversion."""
    mirror = invert(g, w, NONE, cfg)
    return sample(g, w, mirror, w.after, cfg, negative=w.empty, model=with_maps(g, w, mirror, w.model, p2p))


def masactrl(g: Graph, w: Wires, cfg: float, first_step: int = 4, quantile: float | None = None) -> Made:
    """Keys and values of the picture in the decoder's self-attention; with a quantile as ProxMasaCtrl."""
    mirror = invert(g, w, NONE)
    own = {} if quantile is None else {"source_negative": "the source prompt"}
    model = g.add("MirrorMutualSelfAttention", model=w.model, mirror=mirror(2), positive="source", negative="source",
                  first_step=round(first_step * w.steps / STEPS), first_layer=w.decoder, **own)()
    model = model if quantile is None else proximal(g, model, quantile)
    return sample(g, w, mirror, w.after, cfg, negative=w.empty, model=model)


def proximal(g: Graph, model: list, quantile: float) -> list:
    return g.add("MirrorProximalGuidance", model=model, proximal_map="soft", threshold="quantile",
                 threshold__quantile=quantile, threshold__over="each picture")()


def with_maps(g: Graph, w: Wires, mirror, model: list, settings: dict | None) -> list:
    """The model with prompt-to-prompt at these settings, `blend` by the edited words; as it is without any."""
    if settings is None:
        return model
    windows = {name: value for name, value in settings.items() if name != "blend"}
    blend = {"blend_words": w.words_blend} if settings.get("blend") else {}
    return g.add("MirrorPromptToPrompt", model=model, mirror=mirror(2), clip=w.clip, source_text=w.words_before,
                 target_text=w.words_after, mode="auto", self_largest=w.cells // 2, **windows, **blend)()


METHODS = {
    "nti": Method(null_text, {"cfg": 7.5}, tuned_as="npi", about="null-text inversion, the other caption at cfg 7.5"),
    "npi": Method(negative_prompt, {"cfg": 7.5}, each((1.5, 2.0, 4.0)), "negative-prompt inversion, the same"),
    "proxnpi": Method(proximal_negative_prompt, {"cfg": 7.5, "quantile": .4},
                      each((2.0, 3.0), quantile=.4) + each((3.0,), quantile=.7),
                      "the same with proximal guidance (soft; the published quantile 0.7 counts the source in: 0.4) "
                      "and inversion guidance (0.5 from timestep 600)"),
    "proxnpi-unpulled": Method(proximal_negative_prompt, {"cfg": 7.5, "quantile": .4, "pull": None},
                               each((2.0, 3.0), quantile=.4, pull=None) + each((3.0,), quantile=.7, pull=None),
                               "the same without inversion guidance"),
    "direct": Method(direct, {"cfg": 7.5}, tuned_as="ddim", about=
                     "Direct Inversion without attention control: only the source is corrected, so it is `ddim`"),
    "nti+p2p": Method(null_text, {"cfg": 7.5, "p2p": MAPS}, tuned_as="npi+p2p",
                      about="null-text inversion with prompt-to-prompt"),
    "npi+p2p": Method(negative_prompt, {"cfg": 7.5, "p2p": MAPS}, WAYS, "negative-prompt inversion, the same"),
    "proxnpi+p2p": Method(proximal_negative_prompt, {"cfg": 7.5, "quantile": .4, "p2p": MAPS},
                          tuple({"quantile": .4, **way} for way in WAYS),
                          "with proximal and inversion guidance, the same"),
    "direct+p2p": Method(direct, {"cfg": 7.5, "p2p": MAPS}, WAYS, "Direct Inversion, the same"),
    "masactrl": Method(masactrl, {"cfg": 7.5}, each((3.0, 5.0)) + each((3.0,), first_step=10),
                       "MasaCtrl from step 4 of 50"),
    "proxmasactrl": Method(masactrl, {"cfg": 7.5, "quantile": .6},
                           each((3.0, 5.0), quantile=.6) + each((3.0,), quantile=.6, first_step=10),
                           "the same, proximal guidance, negative-prompt inversion of the source"),
}
