"""The graphs of pix2pix-zero: on a picture of one's own, and on one that the model samples."""
from __future__ import annotations

from harness.editor import Sheet

from .parts import (
    CHECKPOINT,
    EDIT,
    FOX,
    PICTURE,
    Graph,
    compared,
    decoded,
    invert,
    sample,
    saved,
    start_own,
    template,
    words,
)

EDIT_NOTE = """## pix2pix-zero on your own picture

1. **Checkpoint** and **picture**: choose an SD1.x, SD2 or SDXL one, and yours; the names there now are placeholders, a
   model of cartoon animals and one of them. Sides that are no multiple of 8 are cropped.
2. **CLIP Domain Direction**: what is there, and what should be: no prompt of the edited picture is needed.

**Cross-Attention Guidance** keeps the structure. **Structure lost?** Raise **amount**. **Too weak?** Lower it, or raise
**cfg**.

**Press Run.**"""

SYNTHETIC_NOTE = """## pix2pix-zero on a picture from a seed

**Mirror From Seed** samples a picture as KSampler does with *euler* and records the way, so nothing is to invert. The
edit walks it again with the direction added. Choose a checkpoint of your own and its size; the name there now is a
placeholder, a model of cartoon animals of 128 x 128.

**Press Run.**"""


@template("06 Edit your own picture by a direction (pix2pix-zero)")
def pix2pix_zero_edit() -> Sheet:
    """The method on the user's own picture and checkpoint."""
    g = Graph()
    s = start_own(g)
    [before] = words(g, s.clip, ("what is in the picture", FOX))
    direction = change(g, s.clip)
    g.group = EDIT
    mirror = g.add("RedescribedDDIMInvert", **invert(s.model, before, s.latent), regularise="pix2pix-zero",
                   label="current (pix2pix-zero family)",
                   rewriter=[g.add("PromptRewriteOptimizer", method="none"), 0])
    picture = edited(g, s.model, s.vae, [mirror, 2], before, direction, .05, strength=1.5)
    compared(g, s.picture, picture, labels="before, edit")
    return g.sheet(EDIT_NOTE)


@template("07 Edit a picture from a seed (pix2pix-zero)")
def pix2pix_zero_synthetic() -> Sheet:
    """The method on a picture that the user's checkpoint makes."""
    g = Graph()
    loader = g.add("CheckpointLoaderSimple", "your checkpoint", ckpt_name=CHECKPOINT)
    model, clip, vae = ([loader, slot] for slot in range(3))
    latent = g.add("EmptyLatentImage", width=128, height=128, batch_size=1)
    before, empty = words(g, clip, ("the picture", FOX), ("nothing", ""))
    direction = change(g, clip)
    g.group = PICTURE
    mirror = g.add("MirrorFromSeed", model=model, positive=before, latent=[latent, 0], seed=11, steps=50,
                   scheduler="ddim_uniform", cfg=5.0, negative=empty)
    sampled = decoded(g, [mirror, 0], vae)
    g.group = EDIT
    picture = edited(g, model, vae, [mirror, 1], before, direction, .05, negative=empty)
    compared(g, sampled, picture, labels="before, edit")
    return g.sheet(SYNTHETIC_NOTE)


def change(g: Graph, clip: list) -> list:
    return [g.add("CLIPDomainDirection", clip=clip, source="fox", target="dog", sentences="template bank: things"), 0]


def edited(g: Graph, model, vae, mirror, before, direction, amount: float, **changes) -> list:
    """Guidance, sampling, and the saved edit."""
    guided = g.add("MirrorCrossAttentionGuidance", model=model, mirror=mirror, amount=amount,
                   latents="one latent (paper)")
    inputs = {**sample([guided, 0], mirror, before, 5.0), **changes}
    edit = g.add("MirrorSample", **inputs, direction=direction)
    picture = decoded(g, [edit, 0], vae)
    saved(g, picture)
    return picture
