"""The graphs of pix2pix-zero: on a picture of one's own, and on one that the model samples."""
from __future__ import annotations

from harness.editor import Sheet

from .parts import EXAMPLE, SEED, Graph, invert, sample, saved

EDIT_NOTE = """## pix2pix-zero: edit a picture by a direction

1. **Redescribed DDIM Invert** walks the picture back to noise. `regularise` keeps that noise white.
2. **CLIP Domain Direction** says what is there, and what should be there instead: no prompt of the edited picture.
3. **Mirror Cross-Attention Guidance** holds the attention of the edit near that of the picture, so its structure stays.
4. **Mirror Sample** walks forward from the noise with the direction added.

**Structure lost?** Raise `amount`. **Edit too weak?** Lower `amount`, or raise `cfg` or `strength` of Mirror Sample.

The caption may be empty, or come from **Mirror Caption**. **Mirror Sentences** writes sentences for a direction with a
language model."""

SYNTHETIC_NOTE = """## pix2pix-zero on a picture that the model makes

**Mirror From Seed** samples the picture as KSampler does with *euler*, and records the way, so there is nothing to
invert. **Mirror Sample** then walks it again with the direction added, and **Mirror Cross-Attention Guidance** keeps
the structure. Mirror Sample needs the same `negative`. A noise mask on the empty latent confines the edit."""


def pix2pix_zero_edit() -> Sheet:
    """The method on the user's own picture and checkpoint."""
    g, groups = Graph(), {}
    model = g.add("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly.safetensors")
    loaded = g.add("LoadImage", image="example.png")
    image = g.add("VAEEncode", pixels=[loaded, 0], vae=[model, 2])
    before = g.add("CLIPTextEncode", "what is in the picture", clip=[model, 1], text=EXAMPLE)
    groups["Your checkpoint, your picture, and words for it"] = g.since(0)

    mark = len(g.nodes)
    mirror = g.add("RedescribedDDIMInvert", **invert([model, 0], [before, 0], [image, 0]), regularise="pix2pix-zero",
                   label="current (pix2pix-zero family)",
                   rewriter=[g.add("PromptRewriteOptimizer", method="none"), 0])
    edited(g, [model, 0], [model, 1], [model, 2], [mirror, 2], [before, 0], .1)
    saved(g, [mirror, 4], [model, 2], "reconstruction")
    groups["Invert, hold the attention, edit"] = g.since(mark)
    return Sheet(g.nodes, g.titles, groups, [EDIT_NOTE])


def pix2pix_zero_synthetic() -> Sheet:
    """The method on a picture that the user's checkpoint makes."""
    g, groups = Graph(), {}
    model = g.add("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly.safetensors")
    latent = g.add("EmptyLatentImage", width=512, height=512, batch_size=1)
    before = g.add("CLIPTextEncode", "the picture", clip=[model, 1], text=EXAMPLE)
    empty = g.add("CLIPTextEncode", "nothing", clip=[model, 1], text="")
    mirror = g.add("MirrorFromSeed", model=[model, 0], positive=[before, 0], latent=[latent, 0], seed=SEED, steps=50,
                   scheduler="ddim_uniform", cfg=5.0, negative=[empty, 0])
    saved(g, [mirror, 0], [model, 2], "before")
    groups["A picture from a seed"] = g.since(0)

    mark = len(g.nodes)
    edited(g, [model, 0], [model, 1], [model, 2], [mirror, 1], [before, 0], .15, negative=[empty, 0])
    groups["Hold the attention, edit"] = g.since(mark)
    return Sheet(g.nodes, g.titles, groups, [SYNTHETIC_NOTE])


def edited(g: Graph, model, clip, vae, mirror, before, amount: float, **changes) -> None:
    """Direction, guidance, sampling, and the saved edit."""
    direction = g.add("CLIPDomainDirection", clip=clip, source="cat", target="dog", sentences="template bank: things")
    guided = g.add("MirrorCrossAttentionGuidance", model=model, mirror=mirror, amount=amount,
                   latents="one latent (paper)")
    inputs = {**sample([guided, 0], mirror, before, 5.0), **changes}
    edit = g.add("MirrorSample", **inputs, direction=[direction, 0])
    saved(g, [edit, 0], vae, "edit")


SHEETS = {"pix2pix_zero_edit": pix2pix_zero_edit, "pix2pix_zero_synthetic": pix2pix_zero_synthetic}
