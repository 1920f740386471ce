"""The graphs of CycleDiffusion: edits by a picture's own noises, two models, and guidance of the noises."""
from __future__ import annotations

from harness.editor import Sheet

from ..scene import caption, scene
from .parts import EDIT, SEED, Graph, before_and_after, compared, decoded, saved, start, template, words

EDIT_NOTE = """## CycleDiffusion

A stochastic sampler draws noise at every step. **CycleDiffusion Edit** finds the noises with which it would have drawn
this very picture, and draws with them under the other prompt, step by step together.

**Too weak?** Raise **denoise** or **cfg**. **Too much?** Lower them, or choose the encoder *edit-friendly*.

**Press Run.**"""

NOISES_NOTE = """## A picture as the noises of a sampler

**CycleDiffusion Encode** gives the picture's noises by themselves. Stock **SamplerCustomAdvanced** draws with them
under another prompt; under the picture's own it gives the picture back.

**Press Run.**"""

TWO_NOTE = """## Translation between two models

The first model knows only cats, the second only dogs; no caption says which. The cat is encoded as noises by the first
and drawn with them by the second: pose, colours and background stay.

For your own pictures take two checkpoints of one family, or one with two LoRAs.

**Press Run.**"""

GUIDANCE_NOTE = """## Look for pictures that an energy likes

The caption says *animal*. **Mirror Latent Guidance** walks on the sampler's noise, to where a classifier sees a dog,
through 5 steps. The noise it finds is drawn in 50. With a checkpoint of your own use **Mirror Text Energy**.

**Press Run.**"""

NEUTRAL = "a photo of a plain brown animal on a blue background with no glasses and no hat"
UNNAMED = caption(scene(SEED).with_(species="cat")).replace(" cat ", " animal ")
ENCODER = {"encoder": "dpm-encoder", "encoder__seed": 0, "encoder__eta": 0.1, "scheduler": "ddim_uniform"}
STEPS = {"steps": 42, "denoise": .85}


@template("13 Edit through a sampler's noises (CycleDiffusion)")
def cycle_edit() -> Sheet:
    """CycleDiffusion on the embedded world, in one node."""
    g = Graph()
    s = start(g, species="fox", edit="species", edit__to="dog")
    before, after = before_and_after(g, s)
    [empty] = words(g, s.clip, ("nothing", ""))
    g.group = EDIT
    edit = g.add("CycleDiffusionEdit", model=s.model, source=before, target=after, latent=s.latent, negative=empty,
                 **ENCODER, **STEPS, source_cfg=1.0, cfg=1.5)
    picture = decoded(g, [edit, 0], s.vae)
    saved(g, picture)
    compared(g, s.picture, picture, [s.scene, 2], labels="before, edit, exact answer")
    return g.sheet(EDIT_NOTE)


@template("14 A picture's noises in stock samplers (CycleDiffusion)")
def cycle_noises() -> Sheet:
    """The noises by themselves, in the stock sampler."""
    g = Graph()
    s = start(g, species="fox", edit="species", edit__to="dog")
    before, after = before_and_after(g, s)
    [empty] = words(g, s.clip, ("nothing", ""))
    g.group = EDIT
    code = g.add("CycleDiffusionEncode", model=s.model, positive=before, latent=s.latent, cfg=1.0, **STEPS,
                 **{**ENCODER, "encoder": "edit-friendly", "encoder__eta": 1.0})
    guider = g.add("CFGGuider", model=s.model, positive=after, negative=empty, cfg=1.5)
    drawn = g.add("SamplerCustomAdvanced", noise=[code, 0], guider=[guider, 0], sampler=[code, 1], sigmas=[code, 2],
                  latent_image=[code, 3])
    picture = decoded(g, [drawn, 0], s.vae)
    compared(g, s.picture, picture, [s.scene, 2], labels="before, edit, exact answer")
    return g.sheet(NOISES_NOTE)


@template("15 From one model's world to another's (CycleDiffusion)")
def cycle_two_models() -> Sheet:
    """Cats to dogs by two models that are told nothing of species."""
    g = Graph()
    s = start(g, species="cat", edit="species", edit__to="dog")
    cats, dogs = (g.add("MirrorDemoLora", f"the model of {species}s", model=s.model, species=species, strength=1.0)
                  for species in ("cat", "dog"))
    [prompt] = words(g, s.clip, ("what both are told", UNNAMED))
    g.group = EDIT
    made = g.add("CycleDiffusionEdit", model=[cats, 0], decoder=[dogs, 0], source=prompt, target=prompt,
                 latent=s.latent, **ENCODER, **STEPS, source_cfg=1.0, cfg=1.0)
    picture = decoded(g, [made, 0], s.vae)
    saved(g, picture)
    compared(g, s.picture, picture, [s.scene, 2], labels="before, edit, exact answer")
    return g.sheet(TWO_NOTE)


@template("16 Find a picture that a classifier likes")
def latent_guidance() -> Sheet:
    """A noise whose picture a classifier likes."""
    g = Graph()
    world = g.add("MirrorDemoModel")
    model, clip, vae = ([world, slot] for slot in range(3))
    empty = g.add("EmptyLatentImage", width=128, height=128, batch_size=1)
    [prompt] = words(g, clip, ("without a species", NEUTRAL))
    g.group = EDIT
    energy = g.add("MirrorDemoEnergy", attribute="species", attribute__value="dog", weight=20.0)
    found = g.add("MirrorLatentGuidance", model=model, positive=prompt, vae=vae, latent=[empty, 0],
                  energy=[energy, 0], steps=5, scheduler="ddim_uniform", cfg=1.0, eta=0.0, iterations=40, step=.05,
                  seed=0)
    before = decoded(g, [found, 1], vae)
    guider = g.add("BasicGuider", model=model, conditioning=prompt)
    euler = g.add("KSamplerSelect", sampler_name="euler")
    sigmas = g.add("BasicScheduler", model=model, scheduler="ddim_uniform", steps=50, denoise=1.0)
    final = g.add("SamplerCustomAdvanced", noise=[found, 2], guider=[guider, 0], sampler=[euler, 0],
                  sigmas=[sigmas, 0], latent_image=[empty, 0])
    compared(g, before, decoded(g, [final, 0], vae), labels="before, found")
    return g.sheet(GUIDANCE_NOTE)
