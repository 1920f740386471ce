"""The graphs of CycleDiffusion: edits by a picture's own noises, two models, and guidance of the noises."""
from __future__ import annotations

from harness.editor import Sheet

from .parts import SEED, Graph, picture, saved

EDIT_NOTE = """## A picture as the noises of a sampler

A stochastic sampler draws noise at every step. **CycleDiffusion Encode** finds the noises with which it would have
drawn this very picture; stock **SamplerCustomAdvanced** then gives the picture back, to the last step, or edits it
under another prompt. **CycleDiffusion Edit** does both at once, step by step together.

**Edit too weak?** Raise `denoise` or `cfg`. **Too much changed?** Lower them, or choose the encoder *edit-friendly*.
For your own pictures put Load Checkpoint and Load Image in place of the demo nodes; there, `cfg` 3 is a good start."""

TWO_NOTE = """## Translation between two models

The first model knows only cats, the second only dogs; no caption says which. The cat is encoded as noises by the first
and drawn with these noises by the second: what the noises hold (pose, colours, background) stays, what the model knows
changes. With the first model as `decoder` the cat comes back.

For your own pictures take two checkpoints of one family, or one checkpoint with two LoRAs. `refine` redraws the last
steps, for details that are the second model's own."""

GUIDANCE_NOTE = """## Looking for pictures that an energy likes

The caption says *animal*. **Mirror Latent Guidance** walks on the sampler's noise, leaning to where a classifier sees a
dog, through a sampler of 5 steps. The noise that it finds is then drawn in 50.

With a checkpoint of your own use **Mirror Text Energy** (CLIP Vision and its own CLIP), 50 views, weight 500, 200
iterations. `resume` keeps the walk in a file."""

NEUTRAL = "a photo of a plain brown animal on a blue background with no glasses and no hat"
EDIT = {"encoder": "dpm-encoder", "encoder__seed": 0, "encoder__eta": 0.1, "scheduler": "ddim_uniform"}


def world(g: Graph, species: str) -> tuple[str, str, str]:
    """(model, scene, its LATENT)."""
    model = g.add("MirrorDemoModel")
    scene = g.add("MirrorDemoScene", seed=SEED, species=species, edit="species", edit__to="dog")
    return model, scene, g.add("VAEEncode", pixels=[scene, 0], vae=[model, 2])


def cycle_edit() -> Sheet:
    """CycleDiffusion on the embedded world: in one node, and through the stock sampler."""
    g, groups = Graph(), {}
    model, scene, image = world(g, "fox")
    before = g.add("CLIPTextEncode", "what is in the picture", clip=[model, 1], text=[scene, 1])
    after = g.add("CLIPTextEncode", "what should be in it", clip=[model, 1], text=[scene, 4])
    empty = g.add("CLIPTextEncode", "nothing", clip=[model, 1], text="")
    picture(g, [scene, 0], "the picture")
    groups["A picture, and words for it"] = g.since(0)

    mark = len(g.nodes)
    edit = g.add("CycleDiffusionEdit", model=[model, 0], source=[before, 0], target=[after, 0], latent=[image, 0],
                 negative=[empty, 0], **EDIT, steps=42, denoise=.85, source_cfg=1.0, cfg=1.5)
    saved(g, [edit, 0], [model, 2], "edit")
    picture(g, [scene, 2], "the exact answer")
    groups["Both walks in one node"] = g.since(mark)

    mark = len(g.nodes)
    code = g.add("CycleDiffusionEncode", model=[model, 0], positive=[before, 0], latent=[image, 0], steps=42,
                 denoise=.85, cfg=1.0, **{**EDIT, "encoder": "edit-friendly", "encoder__eta": 1.0})
    for title, prompt, cfg in (("reconstruction", before, 1.0), ("edit-friendly", after, 1.5)):
        guider = g.add("CFGGuider", model=[model, 0], positive=[prompt, 0], negative=[empty, 0], cfg=cfg)
        drawn = g.add("SamplerCustomAdvanced", title, noise=[code, 0], guider=[guider, 0], sampler=[code, 1],
                      sigmas=[code, 2], latent_image=[code, 3])
        saved(g, [drawn, 0], [model, 2], title)
    groups["The noises by themselves, in the stock sampler"] = g.since(mark)
    return Sheet(g.nodes, g.titles, groups, [EDIT_NOTE])


def cycle_two_models() -> Sheet:
    """Cats to dogs by two models that are told nothing of species."""
    g, groups = Graph(), {}
    model, scene, image = world(g, "cat")
    cats, dogs = (g.add("MirrorDemoLora", f"the model of {s}s", model=[model, 0], species=s, strength=1.0)
                  for s in ("cat", "dog"))
    words = g.add("StringReplace", "no species", string=[scene, 1], find=" cat ", replace=" animal ")
    prompt = g.add("CLIPTextEncode", "what both are told", clip=[model, 1], text=[words, 0])
    picture(g, [scene, 0], "the picture")
    groups["Two models and a picture of the first one's kind"] = g.since(0)

    mark = len(g.nodes)
    for title, decoder in (("reconstruction", cats), ("edit", dogs)):
        made = g.add("CycleDiffusionEdit", title, model=[cats, 0], decoder=[decoder, 0], source=[prompt, 0],
                     target=[prompt, 0], latent=[image, 0], **EDIT, steps=42, denoise=.85, source_cfg=1.0, cfg=1.0)
        saved(g, [made, 0], [model, 2], title)
    groups["Encoded by the model of cats, drawn by itself and by the model of dogs"] = g.since(mark)
    return Sheet(g.nodes, g.titles, groups, [TWO_NOTE])


def latent_guidance() -> Sheet:
    """A noise whose picture a classifier likes."""
    g, groups = Graph(), {}
    model = g.add("MirrorDemoModel")
    prompt = g.add("CLIPTextEncode", "without a species", clip=[model, 1], text=NEUTRAL)
    empty = g.add("EmptyLatentImage", width=128, height=128, batch_size=1)
    energy = g.add("MirrorDemoEnergy", attribute="species", attribute__value="dog", weight=20.0)
    found = g.add("MirrorLatentGuidance", model=[model, 0], positive=[prompt, 0], vae=[model, 2], latent=[empty, 0],
                  energy=[energy, 0], steps=5, scheduler="ddim_uniform", cfg=1.0, eta=0.0, iterations=40, step=.05,
                  seed=0)
    saved(g, [found, 1], [model, 2], "before")
    groups["The walk"] = g.since(0)

    mark = len(g.nodes)
    guider = g.add("BasicGuider", model=[model, 0], conditioning=[prompt, 0])
    euler = g.add("KSamplerSelect", sampler_name="euler")
    sigmas = g.add("BasicScheduler", model=[model, 0], scheduler="ddim_uniform", steps=50, denoise=1.0)
    final = g.add("SamplerCustomAdvanced", noise=[found, 2], guider=[guider, 0], sampler=[euler, 0],
                  sigmas=[sigmas, 0], latent_image=[empty, 0])
    saved(g, [final, 0], [model, 2], "edit")
    groups["The noise found, in 50 steps"] = g.since(mark)
    return Sheet(g.nodes, g.titles, groups, [GUIDANCE_NOTE])


SHEETS = {"cycle_edit": cycle_edit, "cycle_two_models": cycle_two_models, "latent_guidance": latent_guidance}
