"""The graphs of the core method."""
from __future__ import annotations

from harness.editor import Sheet

from .parts import EXAMPLE, PAPER, SEED, Graph, invert, picture, sample_locally, saved, saved_in_place, stock

MIRROR_NOTE = """## Edit a picture by saying what should be there instead

1. **Redescribed DDIM Invert** walks the picture back to noise and rewrites its prompt at every step, so that the way
   forward is a mirror of the way back.
2. **Mirror Sample** walks forward with the edit added. Everything not asked to change stays.
3. **Mirror Report** says how good the mirror is before you look at an edit.

**Edit too weak?** Raise `strength` or `cfg` of Mirror Sample a little. **Too much changed?** Lower them."""

DEMO_NOTE = """## The embedded world

This graph needs no download: the pack brings a small model that draws cartoon animals, and knows the exact answer of
every edit. Change `seed`, or what `edit` changes. For your own pictures open the template **mirror_edit**."""

EDIT_NOTE = """## With your own checkpoint

Pick any SD1.x, SD2 or SDXL checkpoint and a picture whose sides are multiples of 8 (512 x 512 for SD1.5). Say in
*what is in the picture* what you see, then name the change in **CLIP Domain Direction**: what is there, and what should
be there instead. LoRAs, ControlNet and other model patches go between the loader and both mirror nodes."""

STOCK_NOTE = """## No sampler of our own needed

The rewritten prompt is plain CONDITIONING: one text for each step, in adjoining timestep windows. With **euler**, noise
off, and the same steps, scheduler, cfg and negative, a stock sampler gives the picture back. Put the prompt through
**Mirror Apply Direction** and the same sampler edits it. Samplers that look at a step twice (heun, dpm_2, sde) do not
fit the windows."""


def mirror_demo() -> Sheet:
    """The whole method on the embedded world, with the exact answer beside it."""
    g, groups = Graph(), {}
    world = g.add("MirrorDemoModel")
    scene = g.add("MirrorDemoScene", seed=SEED, species="fox", edit="species", edit__to="dog")
    image = g.add("VAEEncode", pixels=[scene, 0], vae=[world, 2])
    before = g.add("CLIPTextEncode", "what is in the picture", clip=[world, 1], text=[scene, 1])
    after = g.add("CLIPTextEncode", "what should be in it", clip=[world, 1], text=[scene, 4])
    picture(g, [scene, 0], "the picture")
    groups["A picture, and words for it"] = g.since(0)

    mark = len(g.nodes)
    mirror = g.add("RedescribedDDIMInvert", **invert([world, 0], [before, 0], [image, 0]),
                   rewriter=[g.add("PromptRewriteOptimizer", **PAPER), 0])
    edit = g.add("MirrorSample", **sample_locally([world, 0], [mirror, 2], [after, 0]))
    saved_in_place(g, edit, [world, 2], [scene, 0], "edit")
    picture(g, [scene, 2], "the exact answer")
    g.add("MirrorReport", mirror=[mirror, 2], vae=[world, 2])
    groups["Invert, rewrite the prompt, edit"] = g.since(mark)

    mark = len(g.nodes)
    empty = g.add("CLIPTextEncode", "nothing", clip=[world, 1], text="")
    for title, method in (("DDIM at cfg 5", {"method": "none"}), ("mirror at cfg 5", PAPER)):
        way = g.add("RedescribedDDIMInvert", title, **invert([world, 0], [before, 0], [image, 0], cfg=5.0),
                    negative=[empty, 0], rewriter=[g.add("PromptRewriteOptimizer", **method), 0])
        saved(g, [way, 4], [world, 2], title)
        g.add("MirrorReport", title, mirror=[way, 2], vae=[world, 2])
    groups["What rewriting cures: the way back at normal guidance, without and with it"] = g.since(mark)
    return Sheet(g.nodes, g.titles, groups, [MIRROR_NOTE, DEMO_NOTE])


def mirror_edit() -> Sheet:
    """The same method on the user's own picture and checkpoint."""
    g, groups = Graph(), {}
    model = g.add("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly.safetensors")
    loaded = g.add("LoadImage", image="example.png")
    image = g.add("VAEEncode", pixels=[loaded, 0], vae=[model, 2])
    before = g.add("CLIPTextEncode", "what is in the picture", clip=[model, 1],
                   text=EXAMPLE)
    groups["Your checkpoint, your picture, and words for it"] = g.since(0)

    mark = len(g.nodes)
    mirror = g.add("RedescribedDDIMInvert", **invert([model, 0], [before, 0], [image, 0]),
                   rewriter=[g.add("PromptRewriteOptimizer", **PAPER), 0])
    direction = g.add("CLIPDomainDirection", clip=[model, 1], source="cat", target="dog",
                      sentences="template bank: things")
    edit = g.add("MirrorSample", **sample_locally([model, 0], [mirror, 2], [before, 0]), direction=[direction, 0])
    saved_in_place(g, edit, [model, 2], [loaded, 0], "edit")
    saved(g, [edit, 1], [model, 2], "reconstruction")
    g.add("MirrorReport", mirror=[mirror, 2], vae=[model, 2])
    groups["Invert, rewrite the prompt, edit"] = g.since(mark)
    return Sheet(g.nodes, g.titles, groups, [MIRROR_NOTE, EDIT_NOTE])


def mirror_stock_ksampler() -> Sheet:
    """The rewritten prompt in stock samplers: ComfyUI's own nodes reconstruct and edit."""
    g, groups = Graph(), {}
    world = g.add("MirrorDemoModel")
    scene = g.add("MirrorDemoScene", seed=SEED, species="fox", edit="species", edit__to="dog")
    image = g.add("VAEEncode", pixels=[scene, 0], vae=[world, 2])
    before = g.add("CLIPTextEncode", "what is in the picture", clip=[world, 1], text=[scene, 1])
    empty = g.add("CLIPTextEncode", "nothing", clip=[world, 1], text="")
    mirror = g.add("RedescribedDDIMInvert", **invert([world, 0], [before, 0], [image, 0], cfg=5.0),
                   negative=[empty, 0], rewriter=[g.add("PromptRewriteOptimizer", **PAPER), 0])
    groups["Invert and rewrite the prompt at cfg 5"] = g.since(0)

    mark = len(g.nodes)
    back = g.add("KSamplerAdvanced", "stock: reconstruct",
                 **stock([world, 0], [mirror, 1], [mirror, 5], [mirror, 0], 5.0))
    saved(g, [back, 0], [world, 2], "reconstruction")
    direction = g.add("CLIPDomainDirection", clip=[world, 1], source="fox", target="dog",
                      sentences="template bank: things")
    moved = g.add("MirrorApplyDirection", conditioning=[mirror, 1], direction=[direction, 0], strength=1.0, ramp=0.0)
    edit = g.add("KSamplerAdvanced", "stock: edit",
                 **stock([world, 0], [moved, 0], [mirror, 5], [mirror, 0], 5.0))
    saved(g, [edit, 0], [world, 2], "edit")
    picture(g, [scene, 0], "the picture")
    groups["Stock samplers: euler, noise off, the same schedule, cfg and negative"] = g.since(mark)
    return Sheet(g.nodes, g.titles, groups, [STOCK_NOTE])


SHEETS = {"mirror_demo": mirror_demo, "mirror_edit": mirror_edit, "mirror_stock_ksampler": mirror_stock_ksampler}
