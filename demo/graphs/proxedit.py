"""The graphs of the ProxEdit family: null-text inversion, and negative-prompt inversion with proximal guidance."""
from __future__ import annotations

from harness.editor import Sheet

from .parts import EDIT, PAPER, Graph, before_and_after, compared, decoded, invert, sample, start, template, words

CFG = 7.5
NULL_TEXT, NEGATIVE_PROMPT = {**PAPER, "method": "null text"}, {"method": "negative prompt"}

NULL_TEXT_NOTE = """## Null-text inversion

At high cfg the way back from noise leaves the picture. Null-text inversion (Mokady et al. 2023) optimises the
**negative** prompt at every step until the way back holds; the other caption then takes the describing prompt's place.

**Too slow?** The rewriter **negative prompt** needs no optimisation.

**Press Run.**"""

PROXIMAL_NOTE = """## Proximal negative-prompt inversion

The describing prompt becomes the negative: no optimisation. **Mirror Proximal Guidance** removes the small differences
that guidance would amplify; **Mirror Inversion Guidance** pulls the last steps to the recording, except where the edit
is at work (outlined).

**Too weak?** Lower the first **quantile**. **Too much?** Raise it.

**Press Run.**"""


def threshold(quantile: float) -> dict:
    return {"threshold": "quantile", "threshold__quantile": quantile, "threshold__over": "each picture"}


@template("11 Edit at high guidance (null-text inversion)")
def null_text_edit() -> Sheet:
    """Null-text inversion at cfg 7.5, then the other caption."""
    g = Graph()
    s = start(g, species="fox", edit="species", edit__to="dog")
    before, after = before_and_after(g, s)
    [empty] = words(g, s.clip, ("nothing", ""))
    g.group = EDIT
    mirror = g.add("RedescribedDDIMInvert", **invert(s.model, before, s.latent, cfg=CFG), negative=empty,
                   rewriter=[g.add("PromptRewriteOptimizer", **NULL_TEXT), 0])
    g.add("MirrorReport", mirror=[mirror, 2], vae=s.vae)
    edit = g.add("MirrorSample", **sample(s.model, [mirror, 2], after, CFG), negative=empty)
    picture = decoded(g, [edit, 0], s.vae)
    compared(g, s.picture, picture, [s.scene, 2], labels="before, edit, exact answer")
    return g.sheet(NULL_TEXT_NOTE)


@template("12 Edit at high guidance, quicker (proximal guidance)")
def proximal_edit() -> Sheet:
    """Negative-prompt inversion with proximal and inversion guidance."""
    g = Graph()
    s = start(g, species="fox", edit="species", edit__to="dog")
    before, after = before_and_after(g, s)
    g.group = EDIT
    mirror = g.add("RedescribedDDIMInvert", **invert(s.model, before, s.latent, cfg=CFG),
                   rewriter=[g.add("PromptRewriteOptimizer", **NEGATIVE_PROMPT), 0])
    proximal = g.add("MirrorProximalGuidance", model=s.model, proximal_map="soft", **threshold(.9))
    guidance = g.add("MirrorInversionGuidance", model=[proximal, 0], mirror=[mirror, 2], step_size=.1, **threshold(.4),
                     dilation=1, first_timestep=400, last_timestep=0, positive=after)
    edit = g.add("MirrorSample", **sample([guidance, 0], [mirror, 2], after, CFG))
    picture = decoded(g, [edit, 0], s.vae)
    compared(g, s.picture, picture, [s.scene, 2], labels="before, edit, exact answer", mask=[guidance, 1])
    return g.sheet(PROXIMAL_NOTE)
