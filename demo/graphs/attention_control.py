"""The graphs of attention control: prompt-to-prompt, MasaCtrl, and MasaCtrl with proximal guidance."""
from __future__ import annotations

from harness.editor import Sheet

from .parts import (
    EDIT,
    Graph,
    before_and_after,
    compared,
    decoded,
    invert,
    sample,
    saved,
    start,
    stock,
    template,
    words,
)

CFG, FULL = 4.0, 7.5
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

PROX_NOTE = """## ProxMasaCtrl

The new caption decides the shape and the picture gives the texture, as in MasaCtrl, at full guidance: the describing
prompt is the negative (negative-prompt inversion), and **Mirror Proximal Guidance** removes the small differences that
cfg would amplify.

**The shape stays?** Lower **quantile** or raise **first_step**. **Too much changes?** The other way.

**Press Run.**"""


def rewriter(g: Graph, method: dict) -> list:
    return [g.add("PromptRewriteOptimizer", **method), 0]


@template("08 Swap a word, keep the shapes (prompt-to-prompt)")
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
                    blend_words="fox, orange", self_largest=HALF)
    edit = g.add("MirrorSample", **sample([control, 0], [mirror, 2], after, 2.0))
    picture = decoded(g, [edit, 0], s.vae)
    saved(g, picture)
    compared(g, s.picture, picture, [s.scene, 2], labels="before, edit, exact answer", mask=[control, 1])
    return g.sheet(P2P_NOTE)


@template("09 New shape, same texture (MasaCtrl)")
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


@template("10 New shape, same texture, at high guidance (ProxEdit)")
def proxmasactrl_edit() -> Sheet:
    """ProxMasaCtrl: MasaCtrl at full guidance, with negative-prompt inversion and proximal guidance."""
    g = Graph()
    s = start(g, species="fox", edit="species", edit__to="rabbit")
    before, after = before_and_after(g, s)
    g.group = EDIT
    mirror = g.add("RedescribedDDIMInvert", **invert(s.model, before, s.latent, cfg=FULL),
                   rewriter=rewriter(g, NEGATIVE_PROMPT))
    control = g.add("MirrorMutualSelfAttention", model=s.model, mirror=[mirror, 2], positive="source",
                    negative="source", source_negative="the source prompt", **DECODER)
    guided = g.add("MirrorProximalGuidance", model=[control, 0], proximal_map="soft", **THRESHOLD)
    edit = g.add("MirrorSample", **sample([guided, 0], [mirror, 2], after, FULL))
    picture = decoded(g, [edit, 0], s.vae)
    compared(g, s.picture, picture, [s.scene, 2], labels="before, edit, exact answer")
    return g.sheet(PROX_NOTE)
