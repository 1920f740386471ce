"""What every control of an edit has to pass, under recorded and under shared noise. A new control is one more row.

CONTROLS: name -> the node and its settings. `scene.control(name)` puts it on the model; no mirror is connected: the
source is that of the walk.
"""

import pytest
import torch
from support.tiny import Scene, pictures, unet

from harness.graph import node
from harness.results import GraphFailed

STEPS = 3
CAT, DOG = "a photo of a cat sitting on a car", "a photo of a dog sitting on a car"
TEXTS = {"source_text": CAT, "target_text": DOG}
QUANTILE = {"threshold": "quantile", "threshold__quantile": 0.6, "threshold__over": "each picture"}
P2P = {"mode": "auto", "cross_until": 1.0, "self_until": 0.5, **TEXTS}
PULL = {**QUANTILE, "dilation": 1, "first_timestep": 1000}
CONTROLS = {
    "prompt-to-prompt": ("MirrorPromptToPrompt", {**P2P, "cross_weight": 0.5}),
    "local blend": ("MirrorPromptToPrompt", {**P2P, "blend_words": "dog", "blend_from": 0.0, "blend_threshold": 0.95}),
    "mutual self-attention": ("MirrorMutualSelfAttention", {
        "first_step": 1, "first_layer": 2, "positive": "source", "negative": "joint"}),
    "cross-attention guidance": ("MirrorCrossAttentionGuidance", {"amount": 20.0}),
    "cross-attention guidance, two latents": ("MirrorCrossAttentionGuidance", {
        "amount": 20.0, "latents": "two latents (official code)"}),
    "proximal": ("MirrorProximalGuidance", {"proximal_map": "soft", **QUANTILE}),
    "inversion guidance": ("MirrorInversionGuidance", {"step_size": 0.5, **PULL}),
    "reconstruction guidance": ("MirrorReconstructionGuidance", {"step_size": 0.3, **PULL}),
}
ALL = pytest.mark.parametrize("name", CONTROLS)
NOISES = pytest.mark.parametrize("noise", ["recorded", "shared"])
READS_THE_NEGATIVE = ("proximal", "inversion guidance", "reconstruction guidance")  # at cfg 1, too: by what they are


class Edit(Scene):
    """A mirror, and edits of it under a control."""

    def __init__(self, name: str, noise: str, batch: int = 1, which: slice = slice(None)):
        super().__init__(unet, lambda: {"samples": pictures(batch)["samples"][which]}, STEPS)
        self.target, self.noise = self.text(DOG), noise
        self.mirror = self.invert({"method": "fixed point + negative prompt", "method__iterations": 6})
        kind, settings = CONTROLS[name]
        extra = {"clip": self.clip} if "source_text" in settings else {}
        self.controlled = self.add(kind, model=self.model, **settings, **extra)

    def edit(self, **changes):
        how = {"model": self.controlled(), "positive": self.target, "cfg": 3.0, "noise": self.noise}
        return self.sample(self.mirror, **{**how, **changes})

    def masked(self, value: float):
        return self.add(node(lambda: torch.full((1, 64, 64), value), ("MASK",)))()

    def picture(self, run):
        return run.outputs[self.mirror.id][2].latents[-1]


def edited(run, made):
    return run.outputs[made.id][0]["samples"] * 0.18215


@pytest.mark.every_host
@ALL
@NOISES
def test_it_changes_the_edit_but_not_where_there_is_none(run_graph, name, noise):
    """It does something; and a mask that allows nothing, or all, does what it says; strength 0 is the picture."""
    scene = Edit(name, noise)
    plain, made = scene.edit(model=scene.model), scene.edit()
    nowhere, everywhere = scene.edit(mask=scene.masked(0.0)), scene.edit(mask=scene.masked(1.0))
    none = scene.edit(strength=0.0, region="auto")
    run = run_graph(scene)
    assert (edited(run, made) - edited(run, plain)).abs().max() > 1e-4, "the control acts"
    assert torch.allclose(edited(run, nowhere), scene.picture(run), rtol=0, atol=1e-6)
    assert torch.allclose(edited(run, everywhere), edited(run, made), rtol=0, atol=1e-5)
    assert (edited(run, none) - scene.picture(run)).abs().max() < 1e-4


@pytest.mark.parametrize("name", [name for name in CONTROLS if name not in READS_THE_NEGATIVE])
@NOISES
def test_at_cfg_1_no_negative_is_read(run_graph, name, noise):
    scene = Edit(name, noise)
    plain, with_negative = scene.edit(cfg=1.0), scene.edit(cfg=1.0, negative=scene.text("a red tree"))
    run = run_graph(scene)
    assert torch.equal(edited(run, plain), edited(run, with_negative))
    assert run.outputs[plain.id][2] == run.outputs[with_negative.id][2]


@ALL
@NOISES
def test_a_batch_is_its_pictures_one_by_one(run_graph, name, noise):
    """Seen of the second, which has its own seed: what crept over from the first would show."""
    both, alone = Edit(name, noise, 2), Edit(name, noise, 2, slice(1, 2))
    made, single = both.edit(seed=5), alone.edit(seed=6)
    together, by_itself = edited(run_graph(both), made), edited(run_graph(alone), single)
    assert torch.allclose(by_itself[0], together[1], rtol=0, atol=2e-4)


@ALL
@NOISES
def test_an_interrupt_leaves_nothing(run_graph, name, noise):
    """Neither on the controlled model nor on the one it was made of: the next edit, and a stock one, are as before."""
    scene = Edit(name, noise)
    made = scene.edit()
    stock = scene.ksampler(scene.mirror(0), scene.target, scene.empty, 3.0)
    before = run_graph(scene, cached=True)
    again = scene.edit(seed=1)
    stopped = run_graph(scene, cached=True, interrupt_when=lambda event, data: (
        event == "progress" and data["node"] == again.id and data["value"] >= 2))
    assert stopped.interrupted
    third, stock_again = scene.edit(), scene.ksampler(scene.mirror(0), scene.target, scene.empty, 3.0, noise_seed=1)
    after = run_graph(scene, cached=True)
    assert torch.equal(edited(after, third), edited(before, made))
    assert torch.equal(edited(after, stock_again), edited(before, stock))


@ALL
def test_under_shared_noise_the_source_costs_no_pass(run_graph, name):
    """Three rows a step, picture, edit and negative; those of a gradient come on top of that."""
    scene = Edit(name, "shared")
    made = scene.edit()
    run = run_graph(scene)
    gradients = {"cross-attention guidance": 1, "cross-attention guidance, two latents": 2}.get(name, 0)
    assert run.outputs[made.id][2] == STEPS * (3 + gradients)


@pytest.mark.parametrize("name", ["inversion guidance", "reconstruction guidance"])
@NOISES
def test_a_pull_without_an_edit_to_spare_holds_the_picture(run_graph, name, noise):
    """All the way, and with a threshold that nothing exceeds."""
    scene = Edit(name, noise)
    kind, settings = CONTROLS[name]
    settings = {**settings, "step_size": 1.0, "threshold": "fixed", "threshold__tau": 100.0, "dilation": 0}
    settings = {key: value for key, value in settings.items() if key not in ("threshold__quantile", "threshold__over")}
    held = scene.add(kind, model=scene.model, **settings)
    made = scene.edit(model=held())
    run = run_graph(scene)
    bound = 1e-5 if name == "inversion guidance" else 0.05 if noise == "shared" else 1e-4
    assert (edited(run, made) - scene.picture(run)).abs().max() < bound


class Picture(Scene):
    """A picture and its edit by one node, under a control or not."""

    def __init__(self, name: str, steps: int = 5):
        super().__init__(self.watched, pictures, steps)
        self.calls = []
        kind, settings = CONTROLS[name]
        extra = {"clip": self.clip} if "source_text" in settings else {}
        self.target, self.controlled = self.text(DOG), self.add(kind, model=self.model, **settings, **extra)()

    def watched(self):
        """The model, which counts what is asked of it."""
        model = unet()
        model.model.diffusion_model.register_forward_pre_hook(lambda *_: self.calls.append(1))
        return model

    def edit(self, **changes):
        how = {"model": self.controlled, "settings": "bold", "strength": 1.0, "seed": 3, "region": "everywhere"}
        return self.add("MirrorEdit", **{**self.both, **how, **changes})

    def cycle(self, **changes):
        how = {"model": self.controlled, "encoder": "dpm-encoder", "encoder__seed": 3, "encoder__eta": 0.1,
               "denoise": 1.0, "source_cfg": 1.0, "cfg": 3.0, "negative": self.empty}
        return self.add("CycleDiffusionEdit", **{**self.both, **how, **changes})

    @property
    def both(self):
        return {"source": self.source, "target": self.target, "latent": self.latent, **self.grid}


@ALL
def test_edit_picture_takes_it_and_polishes_without_it(run_graph, name):
    """Polish begins at a step that the controls have long left behind."""
    scene = Picture(name)
    plain, made = scene.edit(model=scene.model), scene.edit()
    polished = scene.edit(polish=0.6)
    run = run_graph(scene)
    assert (edited(run, made) - edited(run, plain)).abs().max() > 1e-4, "the control acts"
    assert (edited(run, polished) - edited(run, made)).abs().max() > 1e-4
    assert "passes" in run.outputs[polished.id][2].text


@ALL
def test_cyclediffusion_takes_it_and_refines_without_it(run_graph, name):
    """In its own encoding, side by side: with the source's words there is nothing to edit, and the picture is back."""
    scene = Picture(name)
    plain, made, refined = scene.cycle(model=scene.model), scene.cycle(), scene.cycle(refine=3)
    run = run_graph(scene)
    assert (edited(run, made) - edited(run, plain)).abs().max() > 1e-4, "the control acts"
    assert (edited(run, refined) - edited(run, made)).abs().max() > 1e-4


@pytest.mark.parametrize("name", [name for name in CONTROLS if name != "proximal"])    # which reads no source
def test_with_a_second_model_it_is_refused_before_the_first_walks(run_graph, name):
    scene = Picture(name)
    scene.edit(model=scene.model, edit_model=scene.controlled)
    with pytest.raises(GraphFailed, match="with `edit_model` connected the picture is walked by itself"):
        run_graph(scene)
    assert not scene.calls
    scene = Picture(name)
    scene.cycle(model=scene.model, decoder=scene.controlled)
    with pytest.raises(GraphFailed, match="with `decoder` connected the picture is walked by itself"):
        run_graph(scene)
    assert not scene.calls
