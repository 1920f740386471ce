"""Several controls on one model: each does what it does by itself."""

import pytest
import torch
from support.straight_line_guidance import CODE, PAPER
from support.tiny import Scene, controlnet, deep

from harness.graph import give

CFG = 3.0
EDIT = "a photo of a dog sitting on a car"


def guided(scene, mirror, model=None, **changes):
    inputs = {"model": model or scene.model, "mirror": mirror(2), "amount": 2.0, **changes}
    return scene.add("MirrorCrossAttentionGuidance", **inputs)


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("first, second", [(CODE, CODE), (CODE, PAPER)])
def test_a_second_guidance_of_nothing_does_nothing(run_graph, first, second):
    scene = Scene(deep, steps=3)
    mirror, target = scene.invert(Scene.NONE), scene.text(EDIT)
    one = guided(scene, mirror, latents=first, layers="encoder")()
    both = guided(scene, mirror, model=one, latents=second, layers="all", amount=0.0)()
    alone, beside, none = (scene.ksampler(mirror(0), target, scene.empty, CFG, model=model)
                           for model in (one, both, scene.model))
    run = run_graph(scene)
    alone, beside, none = (run.outputs[made.id][0]["samples"] for made in (alone, beside, none))
    assert distance(beside, alone) < 1e-6 < 1e-4 < distance(none, alone)


def test_two_guidances_follow_their_own_layers(run_graph):
    """What the second adds is what it does by itself where the first has left the latent."""
    scene = Scene(deep, steps=2)
    mirror, target = scene.invert(Scene.NONE), scene.text(EDIT)
    encoder, whole = ({"layers": layers} for layers in ("encoder", "all"))
    tiny_step = {"amount": 1e-9}
    alone = guided(scene, mirror, **encoder)()
    pairs = (alone, guided(scene, mirror, model=guided(scene, mirror, **whole, **tiny_step)(), **encoder)(),
             guided(scene, mirror, **whole)())
    made = [scene.ksampler(mirror(0), target, scene.empty, CFG, model=model) for model in pairs]
    run = run_graph(scene)
    one, beside, other = (run.outputs[each.id][0]["samples"] for each in made)
    assert distance(beside, one) < 1e-5 < 1e-4 < distance(other, one)


def test_another_control_leaves_the_sources_controlnet(run_graph):
    scene = Scene(deep, steps=3)
    net, hint = scene.add(give(controlnet, "CONTROL_NET")), scene.add(give(
        lambda: torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(4)), "IMAGE"))
    both = scene.add("ControlNetApplyAdvanced", positive=scene.source, negative=scene.empty, control_net=net(),
                     image=hint(), strength=1.0, start_percent=0.0, end_percent=1.0)
    mirror, target = scene.invert(Scene.NONE, positive=both(0)), scene.text(EDIT)

    def pull(model):
        return scene.add("MirrorInversionGuidance", model=model, mirror=mirror(2), step_size=0.0, dilation=1,
                         threshold="quantile", threshold__quantile=0.7, threshold__over="each picture")()

    models = guided(scene, mirror, source=both(0))(), pull(guided(scene, mirror, source=both(0))()), \
        guided(scene, mirror)()
    made = [scene.ksampler(mirror(0), target, scene.empty, CFG, model=model) for model in models]
    run = run_graph(scene)
    alone, beside, without = (run.outputs[each.id][0]["samples"] for each in made)
    assert distance(beside, alone) < 1e-6 < 1e-4 < distance(without, alone)
