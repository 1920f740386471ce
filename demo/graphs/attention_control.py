"""The graphs of attention control: prompt-to-prompt, MasaCtrl, and a texture edit followed by a geometry edit."""
from __future__ import annotations

from harness.editor import Sheet

from .parts import SEED, Graph, invert, picture, sample, saved, stock

CFG = 4.0
NONE, NEGATIVE_PROMPT = {"method": "none"}, {"method": "negative prompt"}
THRESHOLD = {"threshold": "quantile", "threshold__quantile": .6, "threshold__over": "each picture"}
DECODER = {"first_step": 4, "first_layer": 3}
HALF = 8        # of the embedded model's latent, as the published 32 is of Stable Diffusion's 64

P2P_NOTE = """## Prompt-to-prompt

1. **Redescribed DDIM Invert** with the rewriter `negative prompt` gives the picture's mirror without optimisation.
2. **Mirror Prompt-to-Prompt** makes the words of the edited caption look where the picture's own words look, for the
   first part of the walk. `blend_words` keeps everything outside of these words as it was.
3. **Mirror Sample** gets the patched model, and the edited caption as its positive.

**Edit too weak, or shapes do not change?** Lower `self_until` and `cross_until`. **Too much changed?** Raise them.
A word should weigh more? `reweight`: `big: 2`."""

MASA_NOTE = """## MasaCtrl

The new caption decides the shape, the picture gives the texture: from `first_step` and `first_layer` on, the edit's
self-attention looks at the picture instead of at itself. Any sampler that takes the mirror's steps will do; here it is
the stock KSampler: euler, noise off, the mirror's steps and scheduler.

**The shape stays as it was?** Raise `first_step`. **Texture lost?** Lower it. For SD1.x at 512 x 512 and 50 steps take
`first_step` 4 and `first_layer` 10."""

BOTH_NOTE = """## Texture, then geometry

1. **Texture**: negative-prompt inversion with proximal guidance changes the coat and leaves shapes alone.
2. The result is inverted again, under the caption it now has.
3. **Geometry**: MasaCtrl with proximal guidance (`source_negative`: the source prompt) changes the animal and takes the
   new coat from the first result."""


def start(g: Graph, **edit) -> tuple[str, str, list, list]:
    """(world, scene, caption before, caption after): the embedded model, a scene and its words."""
    world = g.add("MirrorDemoModel")
    scene = g.add("MirrorDemoScene", seed=SEED, **edit)
    before = g.add("CLIPTextEncode", "what is in the picture", clip=[world, 1], text=[scene, 1])
    after = g.add("CLIPTextEncode", "what should be in it", clip=[world, 1], text=[scene, 4])
    picture(g, [scene, 0], "the picture")
    return world, scene, [before, 0], [after, 0]


def rewriter(g: Graph, method: dict) -> list:
    return [g.add("PromptRewriteOptimizer", **method), 0]


def prompt_to_prompt_edit() -> Sheet:
    """One word swapped with prompt-to-prompt and local blend, beside the same without."""
    g, groups = Graph(), {}
    world, scene, before, after = start(g, species="fox", coat="orange", edit="coat", edit__to="gray")
    image = g.add("VAEEncode", pixels=[scene, 0], vae=[world, 2])
    mirror = g.add("RedescribedDDIMInvert", **invert([world, 0], before, [image, 0], cfg=CFG),
                   rewriter=rewriter(g, NEGATIVE_PROMPT))
    groups["A picture, words for it, and its mirror"] = g.since(0)

    mark = len(g.nodes)
    control = g.add("MirrorPromptToPrompt", model=[world, 0], mirror=[mirror, 2], clip=[world, 1],
                    source_text=[scene, 1], target_text=[scene, 4], mode="auto", cross_until=.4, self_until=.6,
                    blend_words="fox", self_largest=HALF)
    mask = g.add("MaskToImage", mask=[control, 1])
    picture(g, [mask, 0], "where the blend words look")
    edit = g.add("MirrorSample", **sample([control, 0], [mirror, 2], after, 2.0))
    saved(g, [edit, 0], [world, 2], "edit")
    groups["The other caption, with the picture's attention"] = g.since(mark)

    mark = len(g.nodes)
    plain = g.add("MirrorSample", "without control", **sample([world, 0], [mirror, 2], after, 2.0))
    saved(g, [plain, 0], [world, 2], "without")
    picture(g, [scene, 2], "the exact answer")
    groups["The same without control, and the exact answer"] = g.since(mark)
    return Sheet(g.nodes, g.titles, groups, [P2P_NOTE])


def masactrl_edit() -> Sheet:
    """MasaCtrl in the stock KSampler."""
    g, groups = Graph(), {}
    world, scene, before, after = start(g, species="fox", edit="species", edit__to="rabbit")
    image = g.add("VAEEncode", pixels=[scene, 0], vae=[world, 2])
    empty = g.add("CLIPTextEncode", "nothing", clip=[world, 1], text="")
    mirror = g.add("RedescribedDDIMInvert", **invert([world, 0], before, [image, 0]), rewriter=rewriter(g, NONE))
    groups["A picture, words for it, and its mirror"] = g.since(0)

    mark = len(g.nodes)
    control = g.add("MirrorMutualSelfAttention", model=[world, 0], mirror=[mirror, 2], positive="source",
                    negative="source", **DECODER)
    for title, model in (("edit", control), ("without", world)):
        sampled = g.add("KSamplerAdvanced", title, **stock([model, 0], after, [empty, 0], [mirror, 0], CFG))
        saved(g, [sampled, 0], [world, 2], title)
    picture(g, [scene, 2], "the exact answer")
    groups["Stock sampler, with and without the picture's keys and values"] = g.since(mark)
    return Sheet(g.nodes, g.titles, groups, [MASA_NOTE])


def texture_then_geometry() -> Sheet:
    """ProxNPI changes the coat, then ProxMasaCtrl the animal."""
    g, groups = Graph(), {}
    world, scene, before, after = start(g, species="fox", coat="orange", edit="coat", edit__to="gray")
    image = g.add("VAEEncode", pixels=[scene, 0], vae=[world, 2])
    mirror = g.add("RedescribedDDIMInvert", **invert([world, 0], before, [image, 0], cfg=CFG),
                   rewriter=rewriter(g, NEGATIVE_PROMPT))
    proximal = g.add("MirrorProximalGuidance", model=[world, 0], proximal_map="soft", **THRESHOLD)
    texture = g.add("MirrorSample", **sample([proximal, 0], [mirror, 2], after, CFG))
    saved(g, [texture, 0], [world, 2], "texture")
    groups["Texture: another coat, by negative-prompt inversion and proximal guidance"] = g.since(0)

    mark = len(g.nodes)
    both = g.add("MirrorDemoScene", seed=SEED, species="fox", coat="gray", edit="species", edit__to="rabbit")
    last = g.add("CLIPTextEncode", "the animal as well", clip=[world, 1], text=[both, 4])
    empty = g.add("CLIPTextEncode", "nothing", clip=[world, 1], text="")
    again = g.add("RedescribedDDIMInvert", **invert([world, 0], after, [texture, 0]), rewriter=rewriter(g, NONE))
    control = g.add("MirrorMutualSelfAttention", model=[world, 0], mirror=[again, 2], positive="source",
                    negative="source", source_negative="the source prompt", **DECODER)
    guided = g.add("MirrorProximalGuidance", model=[control, 0], proximal_map="soft", **THRESHOLD)
    edit = g.add("MirrorSample", **sample([guided, 0], [again, 2], [last, 0], CFG), negative=[empty, 0])
    saved(g, [edit, 0], [world, 2], "edit")
    picture(g, [both, 2], "the exact answer")
    groups["Geometry: another animal in the same coat, by ProxMasaCtrl"] = g.since(mark)
    return Sheet(g.nodes, g.titles, groups, [BOTH_NOTE])


SHEETS = {"prompt_to_prompt_edit": prompt_to_prompt_edit, "masactrl_edit": masactrl_edit,
          "texture_then_geometry": texture_then_geometry}
