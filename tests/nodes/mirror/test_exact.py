"""MirrorExactInvert in the real executor: stock samplers take its noise back to the picture, and nowhere else."""

import functools
import inspect

import pytest
import torch
from support.tiny import Scene, flow, pictures, sdxl, unet

from harness.graph import give
from harness.results import GraphFailed, GraphRejected

EDICT = {"method": "edict", "method__mixing": 0.93}
BDIA = {"method": "bdia", "method__gamma": 0.96}
EDIT_FRIENDLY = {"method": "edit-friendly", "method__seed": 7, "method__eta": 1.0}
METHODS = pytest.mark.parametrize("method", [EDICT, BDIA, EDIT_FRIENDLY], ids=lambda m: m["method"])
FAMILIES = {
    "eps": (unet, pictures),
    "v": (functools.partial(unet, v_prediction=True), pictures),
    "sdxl": (sdxl, pictures),
    "flow": (flow, functools.partial(pictures, channels=16, scale=1.0)),
}


def exact(scene, method, cfg=5.0, **changes):
    inputs = {"model": scene.model, "positive": scene.source, "latent": scene.latent, "cfg": cfg, **scene.grid}
    return scene.add("MirrorExactInvert", **{**inputs, "negative": scene.empty, **method, **changes})


def replay(scene, made, cfg=5.0, **changes):
    inputs = {"model": scene.model, "add_noise": False, "noise_seed": 0, "cfg": cfg, "positive": scene.source,
              "negative": scene.empty, "sampler": made(1), "sigmas": made(2), "latent_image": made(0)}
    return scene.add("SamplerCustom", **{**inputs, **changes})


def samples(run, output, slot=0):
    return run.outputs[output.id][slot]["samples"]


def off(run, output, scene, slot=0):
    """Relative rms distance to the picture."""
    picture = run.outputs[scene.latent[0]][0]["samples"]
    return ((samples(run, output, slot) - picture).norm() / picture.norm()).item()


def grid(kind, steps=6):
    return {"steps": steps, "scheduler": "simple" if kind == "flow" else "ddim_uniform"}


@METHODS
@pytest.mark.parametrize("kind", FAMILIES)
def test_stock_samplers_take_the_noise_back_to_the_picture(run_graph, kind, method):
    make, latent = FAMILIES[kind]
    scene = Scene(make, latent, **grid(kind))
    plain = scene.invert(Scene.NONE, cfg=5.0)
    found = [replay(scene, exact(scene, method, cfg), cfg) for cfg in (1.0, 5.0)]
    edit = replay(scene, exact(scene, method), positive=scene.text("a photo of a red dog in the sky"))
    run = run_graph(scene)
    assert off(run, plain, scene, 4) > 1e-2, "DDIM must lose what these methods keep"
    for made in found:
        assert off(run, made, scene) < 2e-6
    assert off(run, edit, scene) > 1e-3


@METHODS
def test_the_advanced_sampler_the_papers_grid_and_a_part_of_the_walk(run_graph, method):
    scene = Scene(steps=6)
    found = []
    for changes in ({"scheduler": "papers (50: 981, ..., 21, 1)"}, {"denoise": 0.6}):
        made = exact(scene, method, **changes)
        guider = scene.add("CFGGuider", model=scene.model, positive=scene.source, negative=scene.empty, cfg=5.0)
        noise = scene.add("DisableNoise")
        found.append(scene.add("SamplerCustomAdvanced", noise=noise(), guider=guider(), sampler=made(1),
                               sigmas=made(2), latent_image=made(0)))
    run = run_graph(scene)
    for made in found:
        assert off(run, made, scene) < 2e-6
    assert run.outputs[made.id][0]["samples"].dtype == torch.float32


@pytest.mark.parametrize("method", [EDICT, BDIA], ids=lambda m: m["method"])
def test_a_model_that_computes_in_float64_is_undone_to_float64(run_graph, method):
    def double():
        model = unet()
        model.set_model_compute_dtype(torch.float64)
        return model

    scene = Scene(double, steps=10)
    made = exact(scene, method, cfg=7.5)
    back = replay(scene, made, cfg=7.5)
    run = run_graph(scene)
    begin = run.outputs[made.id][1].sampler_function.__closure__
    assert any(getattr(cell.cell_contents, "network", None) == torch.float64 for cell in begin)
    assert off(run, back, scene) < 1e-7, "a float32 LATENT cannot hold more"


@METHODS
def test_pictures_of_a_batch_are_treated_as_alone(run_graph, method):
    together = pictures(3, height=8, width=12)["samples"]
    scene = Scene(latent=lambda: {"samples": together}, steps=4)
    inverted = exact(scene, method)
    batch = replay(scene, inverted)
    run = run_graph(scene)
    assert samples(run, batch).shape == (3, 4, 8, 12) and off(run, batch, scene) < 2e-6
    for k in range(3):
        alone = Scene(latent=lambda k=k: {"samples": together[k : k + 1]}, steps=4)
        made = exact(alone, method)
        again = samples(run_graph(alone), made)[0]
        if method is not EDIT_FRIENDLY:  # whose noises are drawn for the batch as a whole
            assert ((samples(run, inverted)[k] - again).norm() / again.norm()).item() < 1e-3
    assert ((samples(run, inverted)[0] - samples(run, inverted)[1]).norm() / again.norm()).item() > 0.1


@METHODS
def test_a_sampler_refuses_what_it_was_not_made_for(run_graph, method):
    def failure(**changes):
        scene = Scene(steps=4)
        made = exact(scene, method)
        given = {name: value(scene) for name, value in changes.items()}
        replay(scene, made, **given)
        with pytest.raises(GraphFailed) as caught:
            run_graph(scene)
        return caught.value.text

    assert "switch the noise off" in failure(add_noise=lambda scene: True)
    assert "connect `inverted`" in failure(latent_image=lambda scene: scene.latent)
    assert "connect `sigmas`" in failure(
        sigmas=lambda scene: scene.add("BasicScheduler", model=scene.model, scheduler="karras", steps=4, denoise=1.0)())


def test_guidance_without_a_negative_and_odd_batches_are_refused(run_graph):
    scene = Scene()
    made = exact(scene, EDICT)
    del scene[made.id]["inputs"]["negative"]
    with pytest.raises((GraphFailed, GraphRejected), match="needs a negative prompt"):
        run_graph(scene)
    scene = Scene(latent=lambda: pictures(3))
    two = scene.add(give(lambda: [[torch.zeros(2, 77, 64), {}]], "CONDITIONING"))
    exact(scene, BDIA, positive=two())
    with pytest.raises(GraphFailed, match="2 prompts for 3 pictures"):
        run_graph(scene)


@pytest.mark.every_host
@METHODS
def test_nothing_is_left_on_the_model_and_a_second_run_is_identical(run_graph, method):
    scene = Scene(steps=4)
    made = exact(scene, method)
    back = replay(scene, made)
    first = run_graph(scene, cached=True)
    model = first.outputs[scene.model[0]][0]
    before = (model.patches_uuid, str(model.model_options), str(model.wrappers), list(model.object_patches))
    again = replay(scene, made, noise_seed=1)
    other = replay(scene, exact(scene, method, denoise=1.0, steps=4))
    second = run_graph(scene, cached=True)
    assert second.outputs[scene.model[0]][0] is model
    assert (model.patches_uuid, str(model.model_options), str(model.wrappers), list(model.object_patches)) == before
    assert torch.equal(samples(first, back), samples(second, again)), "a kept sampler has no memory"
    assert torch.equal(samples(first, back), samples(second, other))


@pytest.mark.every_host
def test_an_interrupt_stops_inversion_and_replay(run_graph):
    for stop_at in ("invert", "replay"):
        scene = Scene(steps=30)
        made = exact(scene, EDICT)
        back = replay(scene, made)
        at = made.id if stop_at == "invert" else back.id
        run = run_graph(scene, interrupt_when=lambda event, data, at=at: (
            event == "progress" and data["node"] == at and data["value"] > 3))
        assert run.interrupted and back.id not in run.outputs
        assert (made.id in run.outputs) == (stop_at == "replay")


@pytest.mark.parametrize("method", [EDICT, BDIA, EDIT_FRIENDLY], ids=lambda method: method["method"])
def test_a_cached_sampler_holds_what_it_decodes_and_no_more(run_graph, method):
    """A view of the whole walk would keep all its latents in memory for as long as the SAMPLER is cached."""
    scene = Scene(steps=4)
    made = exact(scene, method)
    state = inspect.getclosurevars(run_graph(scene).outputs[made.id][1].sampler_function).nonlocals["state"]
    for tensor in state if isinstance(state, tuple) else (state,):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
