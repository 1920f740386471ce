"""The graphs of the ProxEdit family: null-text inversion, and negative-prompt inversion with proximal guidance."""
from __future__ import annotations

from harness.editor import Sheet

from .parts import PAPER, SEED, Graph, invert, picture, sample, saved

CFG = 7.5
NULL_TEXT, NEGATIVE_PROMPT = {**PAPER, "method": "null text"}, {"method": "negative prompt"}

NULL_TEXT_NOTE = """## Null-text inversion

At high cfg the way back from noise leaves the picture. Null-text inversion (Mokady et al. 2023) optimises the
**negative** prompt at every step until the way back holds, and leaves the describing prompt alone, so that the other
caption can take its place in **Mirror Sample** at the same cfg.

The rewritten prompt is the negative of stock samplers too: euler, noise off, the same steps, scheduler and cfg.
**Too slow?** Use the rewriter `negative prompt`: no optimisation (template **proximal_edit**)."""

PROXIMAL_NOTE = """## Proximal negative-prompt inversion

1. The rewriter `negative prompt` makes the describing prompt the negative: guidance then has nothing to do where the
   edit changes nothing, and no optimisation is needed.
2. **Mirror Proximal Guidance** removes the small differences that guidance would amplify.
3. **Mirror Inversion Guidance** pulls the last steps to the recording, except where the edit is at work. Its mask is
   shown beside it.

**Edit too weak?** Lower the first `quantile`. **Parts of the edit missing?** Lower the second, or `step_size`. **Too
much changed?** Raise them."""


def threshold(quantile: float) -> dict:
    return {"threshold": "quantile", "threshold__quantile": quantile, "threshold__over": "each picture"}


def start(g: Graph, species: str = "fox", to: str = "dog") -> tuple[str, str, list, list, list]:
    """(world, scene, latent, caption before, caption after): the embedded model, a scene and its words."""
    world = g.add("MirrorDemoModel")
    scene = g.add("MirrorDemoScene", seed=SEED, species=species, edit="species", edit__to=to)
    image = g.add("VAEEncode", pixels=[scene, 0], vae=[world, 2])
    before = g.add("CLIPTextEncode", "what is in the picture", clip=[world, 1], text=[scene, 1])
    after = g.add("CLIPTextEncode", "what should be in it", clip=[world, 1], text=[scene, 4])
    picture(g, [scene, 0], "the picture")
    return world, scene, [image, 0], [before, 0], [after, 0]


def edited(model, mirror, positive) -> dict:
    """MirrorSample's inputs at the published guidance, free to change the whole picture."""
    return sample(model, mirror, positive, CFG)


def null_text_edit() -> Sheet:
    """Null-text inversion at cfg 7.5, then the other caption."""
    g, groups = Graph(), {}
    world, scene, image, before, after = start(g)
    empty = g.add("CLIPTextEncode", "nothing", clip=[world, 1], text="")
    groups["A picture, and words for it"] = g.since(0)

    mark = len(g.nodes)
    mirror = g.add("RedescribedDDIMInvert", **invert([world, 0], before, image, cfg=CFG), negative=[empty, 0],
                   rewriter=[g.add("PromptRewriteOptimizer", **NULL_TEXT), 0])
    saved(g, [mirror, 4], [world, 2], "reconstruction")
    g.add("MirrorReport", mirror=[mirror, 2], vae=[world, 2])
    groups["Invert, and optimise the negative prompt at every step"] = g.since(mark)

    mark = len(g.nodes)
    edit = g.add("MirrorSample", **edited([world, 0], [mirror, 2], after), negative=[empty, 0])
    saved(g, [edit, 0], [world, 2], "edit")
    picture(g, [scene, 2], "the exact answer")
    groups["The other caption, at the same guidance"] = g.since(mark)
    return Sheet(g.nodes, g.titles, groups, [NULL_TEXT_NOTE])


def proximal_edit() -> Sheet:
    """Negative-prompt inversion with proximal and inversion guidance, beside the same without."""
    g, groups = Graph(), {}
    world, scene, image, before, after = start(g)
    mirror = g.add("RedescribedDDIMInvert", **invert([world, 0], before, image, cfg=CFG),
                   rewriter=[g.add("PromptRewriteOptimizer", **NEGATIVE_PROMPT), 0])
    groups["A picture, words for it, and its mirror"] = g.since(0)

    mark = len(g.nodes)
    proximal = g.add("MirrorProximalGuidance", model=[world, 0], proximal_map="soft", **threshold(.9))
    guidance = g.add("MirrorInversionGuidance", model=[proximal, 0], mirror=[mirror, 2], step_size=.1, **threshold(.4),
                     dilation=1, first_timestep=400, last_timestep=0, positive=after)
    mask = g.add("MaskToImage", mask=[guidance, 1])
    picture(g, [mask, 0], "where the edit is left alone")
    edit = g.add("MirrorSample", **edited([guidance, 0], [mirror, 2], after))
    saved(g, [edit, 0], [world, 2], "edit")
    groups["Proximal guidance, and inversion guidance outside the edit"] = g.since(mark)

    mark = len(g.nodes)
    plain = g.add("MirrorSample", "without them", **edited([world, 0], [mirror, 2], after))
    saved(g, [plain, 0], [world, 2], "without")
    picture(g, [scene, 2], "the exact answer")
    groups["The same without them, and the exact answer"] = g.since(mark)
    return Sheet(g.nodes, g.titles, groups, [PROXIMAL_NOTE])


SHEETS = {"null_text_edit": null_text_edit, "proximal_edit": proximal_edit}
