"""MirrorProximalGuidance in the real executor: its ends, stock samplers, every family, and that it leaves no trace."""

import functools

import pytest
import torch
from support.tiny import Scene, flow, pictures, sdxl, unet

from harness.graph import node
from harness.results import GraphFailed

CFG = 7.5
NEGATIVE_PROMPT = {"method": "negative prompt"}
FAMILIES = {
    "eps": (unet, pictures),
    "v": (functools.partial(unet, v_prediction=True), pictures),
    "sdxl": (sdxl, pictures),
    "flow": (flow, functools.partial(pictures, channels=16, scale=1.0)),
}
MAPS = pytest.mark.parametrize("proximal_map", ["soft", "hard"])


def proximal(scene, quantile=0.7, proximal_map="soft", over="each picture", **changes):
    choice = {"threshold": "quantile", "threshold__quantile": quantile, "threshold__over": over}
    return scene.add(
        "MirrorProximalGuidance", **{"model": scene.model, "proximal_map": proximal_map, **choice, **changes})()


def fixed(scene, tau, **changes):
    return scene.add(
        "MirrorProximalGuidance",
        **{"model": scene.model, "proximal_map": "soft", "threshold": "fixed", "threshold__tau": tau, **changes})()


def npi(kind="eps", batch=1, height=8, width=12, steps=5, cfg=CFG):
    """(scene, its mirror by the negative prompt, the caption of the edit)."""
    make, latent = FAMILIES[kind]
    scene = Scene(make, functools.partial(latent, batch=batch, height=height, width=width), steps=steps,
                  scheduler="simple" if kind == "flow" else "ddim_uniform")
    mirror = scene.invert(NEGATIVE_PROMPT, cfg=cfg, negative=scene.source)
    return scene, mirror, scene.text("a photo of a red dog in the sky")


def samples(run, output, slot=0):
    return run.outputs[output.id][slot]["samples"]


def far(x, y):
    """The greatest difference, in deviations of the latent."""
    return ((x - y).abs().max() / y.std()).item()


@MAPS
@pytest.mark.parametrize("kind", FAMILIES)
def test_quantile_one_is_the_reconstruction_and_zero_is_npi(run_graph, kind, proximal_map):
    scene, mirror, target = npi(kind)
    plain = scene.sample(mirror, positive=target, cfg=CFG)

    def edit(model):
        return scene.sample(mirror, positive=target, cfg=CFG, model=model, exact="source")

    one, zero = edit(proximal(scene, 1.0, proximal_map)), edit(proximal(scene, 0.0, proximal_map))
    half, none = edit(proximal(scene, 0.5, proximal_map)), edit(fixed(scene, 0.0, proximal_map=proximal_map))
    run = run_graph(scene)
    back, npi_edit = samples(run, plain, 1), samples(run, plain)
    whole = far(npi_edit, back)
    assert whole > 1e-2
    assert far(samples(run, one), back) < 1e-4 * max(1, whole)
    assert far(samples(run, none), npi_edit) < 1e-4 * max(1, whole)
    assert far(samples(run, zero), npi_edit) < 0.05 * whole, "only the smallest value of each step is missing"
    assert far(samples(run, half), npi_edit) > 0.05 * whole and far(samples(run, half), back) > 0.05 * whole


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_stock_ksampler_makes_the_same_edit(run_graph, kind):
    scene, mirror, target = npi(kind, batch=2)
    if kind == "flow":      # a stock sampler cannot start at sigma 1 from an inverted latent
        mirror = scene.invert(NEGATIVE_PROMPT, cfg=CFG, negative=scene.source, denoise=0.5)
    model = proximal(scene, 0.6)
    edit = scene.sample(mirror, positive=target, cfg=CFG, model=model)
    free = scene.sample(mirror, positive=target, cfg=CFG)
    guider = scene.add("CFGGuider", model=model, positive=target, negative=scene.source, cfg=CFG)
    stock = scene.add(
        "SamplerCustomAdvanced", noise=scene.add("DisableNoise")(), guider=guider(), sigmas=mirror(3),
        sampler=scene.add("KSamplerSelect", sampler_name="euler")(), latent_image=mirror(0))
    run = run_graph(scene)
    assert far(samples(run, edit), samples(run, stock)) < 1e-3 * far(samples(run, edit), samples(run, free))


def test_the_ksampler_node_too(run_graph):
    scene, mirror, target = npi()
    model = proximal(scene)
    edit = scene.sample(mirror, positive=target, cfg=CFG, model=model)
    stock = scene.ksampler(mirror(0), target, mirror(5), CFG, model=model)
    plain = scene.ksampler(mirror(0), target, mirror(5), CFG)
    run = run_graph(scene)
    assert far(samples(run, edit), samples(run, stock)) < 1e-4 < 1e-2 < far(samples(run, plain), samples(run, stock))


def test_pictures_of_a_batch_are_treated_as_alone(run_graph):
    together = pictures(2, height=8, width=12)["samples"]
    together[1] *= 3

    def edited(latent, **changes):
        scene = Scene(latent=lambda: {"samples": latent}, steps=5)
        mirror = scene.invert(NEGATIVE_PROMPT, cfg=CFG, negative=scene.source)
        made = scene.sample(
            mirror, positive=scene.text("a red dog"), cfg=CFG, model=proximal(scene, 0.6, "hard", **changes))
        return samples(run_graph(scene), made)

    batch, whole = edited(together), edited(together, over="whole batch (as published)")
    for k in range(2):
        alone = edited(together[k : k + 1])[0]
        assert far(batch[k], alone) < 1e-3
    assert far(whole[0], batch[0]) > 1e-2


def test_the_published_quantile_counts_the_source_in(run_graph):
    """Its q acts as 2 q - 1 on the edited picture."""
    scene, mirror, target = npi(height=16, width=16)
    settings = ((0.7, "whole batch (as published)"), (0.4, "each picture"), (0.7, "each picture"))
    made = [
        scene.sample(mirror, positive=target, cfg=CFG, model=proximal(scene, q, over=over), exact="source")
        for q, over in settings
    ]
    run = run_graph(scene)
    published, same, other = (samples(run, edit) for edit in made)
    assert far(published, same) < 0.02 * far(published, other)


def test_only_the_window_is_touched(run_graph):
    """Where it does not act, the step is plain guidance; steps of ddim_uniform: 801, 601, ..., 1."""
    scene, mirror, target = npi(steps=5)

    def edit(**window):
        return scene.sample(mirror, positive=target, cfg=CFG, exact="source",
                            model=proximal(scene, 1.0, **window))

    free = scene.sample(mirror, positive=target, cfg=CFG, exact="source")
    everywhere, all_steps = edit(), edit(first_timestep=801, last_timestep=1)
    no_step = edit(first_timestep=800, last_timestep=602)
    late, early = edit(first_timestep=500), edit(last_timestep=500)
    run = run_graph(scene, cached=True)
    assert torch.equal(samples(run, everywhere), samples(run, all_steps))
    assert torch.equal(samples(run, free), samples(run, no_step))
    assert far(samples(run, late), samples(run, free)) > 1e-2
    # late: two steps with the edit, then three without, from wherever these two led
    step = scene.ksampler(mirror(0), target, mirror(5), CFG, end_at_step=2, return_with_leftover_noise="enable")
    rest = scene.ksampler(step(), scene.source, mirror(5), CFG, start_at_step=2)
    kept = scene.ksampler(mirror(0), scene.source, mirror(5), CFG, end_at_step=2, return_with_leftover_noise="enable")
    after = scene.ksampler(kept(), target, mirror(5), CFG, start_at_step=2)
    run = run_graph(scene, cached=True)
    assert far(samples(run, late), samples(run, rest)) < 1e-4
    assert far(samples(run, early), samples(run, after)) < 1e-4


def test_cfg_one_and_a_null_text_mirror(run_graph):
    """At cfg 1 the negative is still read; and a source branch with guidance of its own is not touched."""
    scene, mirror, target = npi()
    one = scene.sample(mirror, positive=target, cfg=1.0, model=proximal(scene, 1.0))
    free = scene.sample(mirror, positive=target, cfg=1.0)
    null = scene.invert(Scene.NULL_TEXT, cfg=5.0)
    plain, patched = (scene.sample(null, positive=target, cfg=5.0, negative=scene.empty, model=model)
                      for model in (scene.model, proximal(scene, 0.9)))
    run = run_graph(scene)
    assert far(samples(run, one), samples(run, one, 1)) < 1e-4 < 1e-3 < far(samples(run, free), samples(run, one))
    assert torch.equal(samples(run, plain, 1), samples(run, patched, 1))
    assert far(samples(run, plain), samples(run, patched)) > 1e-2


@pytest.mark.every_host
def test_other_patches_keep_what_they_add(run_graph):
    """Before or after it: an additive post-cfg patch stays, and the model that came in is as it was."""
    def add(model):
        model = model.clone()
        model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + 0.05 * args["sigma"][0])
        return model

    scene, mirror, target = npi()
    adds = node(add, ("MODEL",), {"model": "MODEL"})
    before = proximal(scene, 1.0, model=scene.add(adds, model=scene.model)())
    after = scene.add(adds, model=proximal(scene, 1.0))()
    only = scene.add(adds, model=scene.model)()
    made = [scene.sample(mirror, positive=target, cfg=CFG, model=model) for model in (before, after)]
    kept = scene.sample(mirror, strength=0.0, cfg=CFG, model=only)
    run = run_graph(scene)
    assert far(samples(run, made[0]), samples(run, kept)) < 1e-4
    assert far(samples(run, made[1]), samples(run, kept)) < 1e-4
    assert far(samples(run, kept), samples(run, mirror, 4)) > 1e-2
    assert "sampler_post_cfg_function" not in run.outputs[scene.model[0]][0].model_options


def test_an_empty_window_is_named(run_graph):
    scene = Scene()
    proximal(scene, first_timestep=100, last_timestep=200)
    with pytest.raises(GraphFailed, match="100 cannot be first and 200 last"):
        run_graph(scene)


def test_a_mirror_is_made_without_the_controls_of_the_edit(run_graph):
    """Inversion and the way back evaluate the picture: a patch for the edit keeps still there."""
    scene = Scene(steps=3)
    patched = scene.add("MirrorProximalGuidance", model=scene.model, proximal_map="soft", threshold="fixed",
                        threshold__tau=0.5)
    pulled = scene.add("MirrorReconstructionGuidance", model=patched(), step_size=1.0, threshold="fixed",
                       threshold__tau=0.5, dilation=0, first_timestep=1000)
    plain, made = (scene.invert(Scene.NONE, cfg=5.0, model=model) for model in (scene.model, pulled()))
    run = run_graph(scene)
    one, other = (run.outputs[m.id][2] for m in (plain, made))
    assert torch.equal(one.latents, other.latents) and torch.equal(one.reconstruction, other.reconstruction)
