"""The graphs of attention control: prompt-to-prompt, MasaCtrl, and a texture edit followed by a geometry edit."""
from __future__ import annotations

from harness.editor import Sheet

from ..scene import caption, scene
from .parts import (
    EDIT,
    SEED,
    Graph,
    before_and_after,
    compared,
    decoded,
    invert,
    sample,
    saved,
    start,
    stock,
    words,
)

CFG = 4.0
NONE, NEGATIVE_PROMPT = {"method": "none"}, {"method": "negative prompt"}
THRESHOLD = {"threshold": "quantile", "threshold__quantile": .6, "threshold__over": "each picture"}
DECODER = {"first_step": 4, "first_layer": 3}
HALF = 8        # of the embedded model's latent, as the published 32 is of Stable Diffusion's 64

P2P_NOTE = """## Prompt-to-prompt

The words of the edited caption look where the picture's own words look, for the first part of the walk. **blend_words**
keeps everything outside of these words as it was (outlined).

**Shapes do not change?** Lower **self_until** and **cross_until**. **Too much?** Raise them. **reweight** makes a word
weigh more: **big: 2**.

**Press Run.**"""

MASA_NOTE = """## MasaCtrl

The new caption decides the shape, the picture gives the texture: from **first_step** and **first_layer** on, the edit's
self-attention looks at the picture. The sampler is the stock KSampler (euler, noise off).

**The shape stays?** Raise **first_step**. **Texture lost?** Lower it. For SD1.x at 512 x 512 take 4 and layer 10.

**Press Run.**"""

BOTH_NOTE = """## Texture, then geometry

**Texture**: negative-prompt inversion with proximal guidance changes the coat and leaves shapes alone. **Geometry**:
the result is inverted again, and MasaCtrl with proximal guidance changes the animal and takes the new coat along.

**Press Run.**"""


def rewriter(g: Graph, method: dict) -> list:
    return [g.add("PromptRewriteOptimizer", **method), 0]


def prompt_to_prompt_edit() -> Sheet:
    """One word swapped with prompt-to-prompt and local blend."""
    g = Graph()
    s = start(g, species="fox", coat="orange", edit="coat", edit__to="gray")
    before, after = before_and_after(g, s)
    g.group = EDIT
    mirror = g.add("RedescribedDDIMInvert", **invert(s.model, before, s.latent, cfg=CFG),
                   rewriter=rewriter(g, NEGATIVE_PROMPT))
    control = g.add("MirrorPromptToPrompt", model=s.model, mirror=[mirror, 2], clip=s.clip,
                    source_text=[s.scene, 1], target_text=[s.scene, 4], mode="auto", cross_until=.4, self_until=.6,
                    blend_words="fox", self_largest=HALF)
    edit = g.add("MirrorSample", **sample([control, 0], [mirror, 2], after, 2.0))
    picture = decoded(g, [edit, 0], s.vae)
    saved(g, picture)
    compared(g, s.picture, picture, [s.scene, 2], labels="before, edit, exact answer", mask=[control, 1])
    return g.sheet(P2P_NOTE)


def masactrl_edit() -> Sheet:
    """MasaCtrl in the stock KSampler."""
    g = Graph()
    s = start(g, species="fox", edit="species", edit__to="rabbit")
    before, after = before_and_after(g, s)
    [empty] = words(g, s.clip, ("nothing", ""))
    g.group = EDIT
    mirror = g.add("RedescribedDDIMInvert", **invert(s.model, before, s.latent), rewriter=rewriter(g, NONE))
    control = g.add("MirrorMutualSelfAttention", model=s.model, mirror=[mirror, 2], positive="source",
                    negative="source", **DECODER)
    sampled = g.add("KSamplerAdvanced", **stock([control, 0], after, empty, [mirror, 0], CFG))
    picture = decoded(g, [sampled, 0], s.vae)
    compared(g, s.picture, picture, [s.scene, 2], labels="before, edit, exact answer")
    return g.sheet(MASA_NOTE)


def texture_then_geometry() -> Sheet:
    """ProxNPI changes the coat, then ProxMasaCtrl the animal."""
    g = Graph()
    s = start(g, species="fox", coat="orange", edit="coat", edit__to="gray")
    before, after = before_and_after(g, s)
    both = caption(scene(SEED).with_(species="rabbit", coat="gray"))
    whole, empty = words(g, s.clip, ("the animal as well", both), ("nothing", ""))
    g.group = EDIT
    rewriters = [rewriter(g, method) for method in (NEGATIVE_PROMPT, NONE)]
    mirror = g.add("RedescribedDDIMInvert", "texture: invert", **invert(s.model, before, s.latent, cfg=CFG),
                   rewriter=rewriters[0])
    proximal = g.add("MirrorProximalGuidance", "texture: guide", model=s.model, proximal_map="soft", **THRESHOLD)
    texture = g.add("MirrorSample", "texture: edit", **sample([proximal, 0], [mirror, 2], after, CFG))
    again = g.add("RedescribedDDIMInvert", "geometry: invert", **invert(s.model, after, [texture, 0]),
                  rewriter=rewriters[1])
    control = g.add("MirrorMutualSelfAttention", "geometry: look at the texture", model=s.model, mirror=[again, 2],
                    positive="source", negative="source", source_negative="the source prompt", **DECODER)
    guided = g.add("MirrorProximalGuidance", "geometry: guide", model=[control, 0], proximal_map="soft", **THRESHOLD)
    edit = g.add("MirrorSample", "geometry: edit", **sample([guided, 0], [again, 2], whole, CFG), negative=empty)
    keys = g.groups[EDIT]
    g.groups[EDIT] = [*keys[2:5], *keys[:2], *keys[5:]]         # a column for the texture, and what fits beside it
    first, last = (decoded(g, [key, 0], s.vae) for key in (texture, edit))
    compared(g, s.picture, first, last, labels="before, texture, and geometry")
    return g.sheet(BOTH_NOTE)


SHEETS = {"prompt_to_prompt_edit": prompt_to_prompt_edit, "masactrl_edit": masactrl_edit,
          "texture_then_geometry": texture_then_geometry}
