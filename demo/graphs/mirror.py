"""The graphs of the mirror: the picture walked back to noise, and its prompt rewritten so that it comes back."""
from __future__ import annotations

from harness.editor import Sheet

from .parts import (
    EDIT,
    FOX,
    PAPER,
    Graph,
    before_and_after,
    compared,
    decoded,
    invert,
    pasted,
    sample_locally,
    saved,
    start,
    start_own,
    stock,
    template,
    words,
)

MIRROR_NOTE = """## Edit with a mirror

The picture is walked back to noise, and its prompt rewritten at every step so that the way forward retraces the way
back. Then it is walked forward with the edit added. **Mirror Report** says how good the mirror is.

**Too weak?** Raise **strength**. **Too much?** Lower it.

**Press Run.**"""

OWN_NOTE = """## A mirror of your own picture

1. **Checkpoint**: choose an SD1.x, SD2 or SDXL one. The name there now is a placeholder: a model of cartoon animals.
2. **Picture**: choose yours. A large photo first through *Scale Image to Total Pixels*: .26 megapixels for SD1.x, 1 for
   SDXL.
3. **Words**: say what you see; then name what is there, and what should be.

LoRAs and ControlNet go between the checkpoint and both mirror nodes.

**Press Run.**"""

STOCK_NOTE = """## The mirror in a stock sampler

The rewritten prompt is plain CONDITIONING, one text a step. **Mirror Apply Direction** adds the edit, and a stock
**KSampler** draws it: euler, noise off, the same steps, scheduler, cfg and negative. Samplers that look at a step twice
(heun, dpm_2, sde) do not fit.

**Press Run.**"""

WAYS_NOTE = """## What rewriting cures

At normal guidance the way back from noise leaves the picture. With the prompt rewritten at every step it comes back.
The heat maps show how far each way back is from the picture.

**Press Run.**"""

RETRACED_NOTE = """## A stock sampler gives the picture back

The same picture twice: from the mirror's own reconstruction, and from a stock **KSampler** with the rewritten prompt at
cfg 5 (euler, noise off, the same steps, scheduler and negative).

**Press Run.**"""


@template("03 Edit with a mirror")
def mirror_demo() -> Sheet:
    """The whole method on the embedded world, with the exact answer beside it."""
    g = Graph()
    s = start(g, species="fox", edit="species", edit__to="dog")
    before, after = before_and_after(g, s)
    g.group = EDIT
    mirror = g.add("RedescribedDDIMInvert", **invert(s.model, before, s.latent))
    g.add("MirrorReport", mirror=[mirror, 2], vae=s.vae)
    edit = g.add("MirrorSample", **sample_locally(s.model, [mirror, 2], after))
    picture = pasted(g, edit, s.vae, s.picture, 3)
    saved(g, picture)
    compared(g, s.picture, picture, [s.scene, 2], labels="before, edit, exact answer")
    return g.sheet(MIRROR_NOTE)


@template("04 Edit your own picture with a mirror")
def mirror_edit() -> Sheet:
    """The same method on the user's own picture and checkpoint, with an edit direction."""
    g = Graph()
    s = start_own(g)
    [before] = words(g, s.clip, ("what is in the picture", FOX))
    direction = g.add("CLIPDomainDirection", clip=s.clip, source="fox", target="dog",
                      sentences="template bank: things")
    g.group = EDIT
    mirror = g.add("RedescribedDDIMInvert", **invert(s.model, before, s.latent))
    g.add("MirrorReport", mirror=[mirror, 2], vae=s.vae)
    edit = g.add("MirrorSample", **sample_locally(s.model, [mirror, 2], before), direction=[direction, 0])
    picture = pasted(g, edit, s.vae, s.picture, 3)
    saved(g, picture)
    compared(g, s.picture, picture, labels="before, edit")
    return g.sheet(OWN_NOTE)


@template("05 Edit with a mirror in a stock KSampler")
def mirror_stock_ksampler() -> Sheet:
    """The rewritten prompt, and the edit added to it, in a stock sampler."""
    g = Graph()
    s = start(g, species="fox", edit="species", edit__to="dog")
    before, empty = words(g, s.clip, ("what is in the picture", [s.scene, 1]), ("nothing", ""))
    direction = g.add("CLIPDomainDirection", clip=s.clip, source="fox", target="dog",
                      sentences="template bank: things")
    g.group = EDIT
    mirror = g.add("RedescribedDDIMInvert", **invert(s.model, before, s.latent, cfg=5.0), negative=empty)
    moved = g.add("MirrorApplyDirection", conditioning=[mirror, 1], direction=[direction, 0], strength=1.0, ramp=0.0)
    edit = g.add("KSamplerAdvanced", "stock: edit", **stock(s.model, [moved, 0], [mirror, 5], [mirror, 0], 5.0))
    picture = decoded(g, [edit, 0], s.vae)
    compared(g, s.picture, picture, [s.scene, 2], labels="before, edit, exact answer")
    return g.sheet(STOCK_NOTE)


@template("17 Compare ways back from noise")
def compare_ways_back() -> Sheet:
    """The way back at normal guidance, without and with rewriting."""
    g = Graph()
    s = start(g, species="fox", edit="species", edit__to="dog")
    before, empty = words(g, s.clip, ("what is in the picture", [s.scene, 1]), ("nothing", ""))
    g.group = EDIT
    ways = []
    for title, method in (("DDIM at cfg 5", {"method": "none"}), ("mirror at cfg 5", PAPER)):
        rewriter = g.add("PromptRewriteOptimizer", **method)
        way = g.add("RedescribedDDIMInvert", title, **invert(s.model, before, s.latent, cfg=5.0), negative=empty,
                    rewriter=[rewriter, 0])
        ways.append(decoded(g, [way, 4], s.vae))
    compared(g, s.picture, *ways, labels="picture, DDIM, mirror")
    return g.sheet(WAYS_NOTE)


@template("18 Compare the mirror with a stock KSampler")
def compare_stock_ksampler() -> Sheet:
    """The reconstruction by the mirror's own walk, and by a stock sampler with the rewritten prompt."""
    g = Graph()
    s = start(g, species="fox", edit="species", edit__to="dog")
    before, empty = words(g, s.clip, ("what is in the picture", [s.scene, 1]), ("nothing", ""))
    g.group = EDIT
    mirror = g.add("RedescribedDDIMInvert", **invert(s.model, before, s.latent, cfg=5.0), negative=empty)
    back = g.add("KSamplerAdvanced", "stock: reconstruct", **stock(s.model, [mirror, 1], [mirror, 5], [mirror, 0], 5.0))
    ways = [decoded(g, wire, s.vae) for wire in ([mirror, 4], [back, 0])]
    compared(g, s.picture, *ways, labels="picture, mirror, stock KSampler")
    return g.sheet(RETRACED_NOTE)
