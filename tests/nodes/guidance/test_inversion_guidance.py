"""Inversion and reconstruction guidance in the real executor: their ends, stock samplers, families, masks, errors."""

import functools

import pytest
import torch
from support.tiny import Scene, flow, pictures, sdxl, unet

from harness.graph import give, node
from harness.results import GraphFailed

CFG = 7.5
FAMILIES = {
    "eps": (unet, pictures),
    "v": (functools.partial(unet, v_prediction=True), pictures),
    "sdxl": (sdxl, pictures),
    "flow": (flow, functools.partial(pictures, channels=16, scale=1.0)),
}
KINDS = ["MirrorInversionGuidance", "MirrorReconstructionGuidance"]
NODES = pytest.mark.parametrize("node_id", KINDS)
ALWAYS = {"first_timestep": 1000}


def guidance(scene, node_id, mirror, quantile=1.0, step_size=1.0, **changes):
    """The patching node; at quantile 1 nothing is the edit's."""
    inputs = {"model": scene.model, "mirror": mirror(2), "step_size": step_size, "threshold": "quantile",
              "threshold__quantile": quantile, "threshold__over": "each picture", "dilation": 0}
    return scene.add(node_id, **{**inputs, **changes})


def npi(kind="eps", batch=1, steps=5, **changes):
    """(scene, its mirror by the negative prompt, the caption of the edit)."""
    make, latent = FAMILIES[kind]
    scene = Scene(make, functools.partial(latent, batch=batch, height=8, width=12), steps=steps,
                  scheduler="simple" if kind == "flow" else "ddim_uniform")
    mirror = scene.invert({"method": "negative prompt"}, cfg=CFG, negative=scene.source, **changes)
    return scene, mirror, scene.text("a photo of a red dog in the sky")


def edited(scene, mirror, target, model):
    return scene.sample(mirror, positive=target, cfg=CFG, model=model, exact="source")


def picture_of(run, scene):
    return run.outputs[scene.latent[0]][0]["samples"]


def samples(run, output, slot=0):
    return run.outputs[output.id][slot]["samples"]


def far(x, y):
    """The greatest difference, in deviations of the latent."""
    return ((x - y).abs().max() / y.std()).item()


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_whole_pull_gives_the_picture_and_none_gives_npi(run_graph, kind):
    scene, mirror, target = npi(kind, batch=2)
    free = edited(scene, mirror, target, scene.model)
    made = {}
    for node_id in KINDS:
        for name, changes in (("whole", ALWAYS), ("none", {"step_size": 0.0, **ALWAYS}),
                              ("half", {"step_size": 0.2, **ALWAYS}), ("masked", {"quantile": 0.5, **ALWAYS})):
            model = guidance(scene, node_id, mirror, **changes)()
            made[node_id, name] = edited(scene, mirror, target, model)
    run = run_graph(scene)
    picture, edit = picture_of(run, scene), samples(run, free)
    whole = far(edit, picture)
    assert whole > 1e-2
    for node_id in KINDS:
        off = {name: far(samples(run, made[node_id, name]), picture) for name in ("whole", "half")}
        assert off["whole"] < 1e-4 * max(1, whole) < 0.02 * off["half"] < 0.02 * whole
        kept = (samples(run, made[node_id, "masked"]) - picture).abs() < 1e-4 * picture.std()
        assert kept.flatten(1).float().mean(dim=1).tolist() == pytest.approx([0.5, 0.5], abs=0.05)
        assert far(samples(run, made[node_id, "none"]), edit) < 1e-4 * max(1, whole)


@NODES
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_a_stock_sampler_makes_the_same_edit(run_graph, kind, node_id):
    scene, mirror, target = npi(kind, **({"denoise": 0.5} if kind == "flow" else {}))
    model = guidance(scene, node_id, mirror, quantile=0.6, step_size=0.5)()
    edit, free = (edited(scene, mirror, target, model) for model in (model, scene.model))
    guider = scene.add("CFGGuider", model=model, positive=target, negative=scene.source, cfg=CFG)
    stock = scene.add(
        "SamplerCustomAdvanced", noise=scene.add("DisableNoise")(), guider=guider(), sigmas=mirror(3),
        sampler=scene.add("KSamplerSelect", sampler_name="ddim")(), latent_image=mirror(0))
    made = [edit, stock, free]
    if kind == "eps":
        made.append(scene.ksampler(mirror(0), target, mirror(5), CFG, model=model))
    run = run_graph(scene)
    edit, stock, free, *more = (samples(run, output) for output in made)
    assert far(edit, free) > 1e-3
    assert all(far(edit, same) < 1e-2 * far(edit, free) for same in (stock, *more))


def test_they_act_in_their_window_only(run_graph):
    """ddim_uniform's steps: 801, 601, 401, 201, 1; a pull in the window 0..400 acts on the last two."""
    scene, mirror, target = npi()

    def edit(first, last):
        model = guidance(scene, KINDS[0], mirror, first_timestep=first, last_timestep=last)()
        return edited(scene, mirror, target, model)

    free = edited(scene, mirror, target, scene.model)
    never, last, early = edit(400, 202), edit(400, 0), edit(1000, 401)
    # early: the first three steps end on the recording; the other two are plain guidance from there
    start = scene.ksampler(mirror(0), scene.source, mirror(5), CFG, end_at_step=3,
                           return_with_leftover_noise="enable",
                           model=guidance(scene, KINDS[0], mirror, **ALWAYS)())
    rest = scene.ksampler(start(), target, mirror(5), CFG, start_at_step=3)
    run = run_graph(scene)
    assert torch.equal(samples(run, never), samples(run, free))
    assert far(samples(run, last), picture_of(run, scene)) < 1e-4
    assert far(samples(run, early), samples(run, rest)) < 1e-4
    assert far(samples(run, early), samples(run, free)) > 1e-2


@pytest.mark.every_host
def test_proximal_guidance_may_stand_before_or_after(run_graph):
    scene, mirror, target = npi()

    def proximal(model):
        return scene.add("MirrorProximalGuidance", model=model, proximal_map="soft", threshold="quantile",
                         threshold__quantile=0.5, threshold__over="each picture")()

    settings = {"quantile": 0.5, "step_size": 0.7, **ALWAYS}
    for node_id in KINDS:
        last = guidance(scene, node_id, mirror, model=proximal(scene.model), **settings)()
        first = proximal(guidance(scene, node_id, mirror, **settings)())
        alone = guidance(scene, node_id, mirror, **settings)()
        made = [edited(scene, mirror, target, model) for model in (last, first, alone)]
        run = run_graph(scene)
        last, first, alone = (samples(run, edit) for edit in made)
        assert torch.equal(last, first) and far(last, alone) > 1e-2


def test_the_source_branch_of_a_null_text_mirror_is_left_as_it_is(run_graph):
    scene, _, target = npi()
    mirror = scene.invert(Scene.NULL_TEXT, cfg=5.0)
    model = guidance(scene, KINDS[0], mirror, **ALWAYS)()
    made = [scene.sample(mirror, positive=target, cfg=5.0, negative=scene.empty, model=m) for m in (scene.model, model)]
    run = run_graph(scene)
    plain, pulled = made
    assert torch.equal(samples(run, plain, 1), samples(run, pulled, 1))
    assert far(samples(run, pulled), picture_of(run, scene)) < 1e-4
    assert far(samples(run, pulled, 1), picture_of(run, scene)) > 1e-4
    assert "sampler_post_cfg_function" not in run.outputs[scene.model[0]][0].model_options


def test_the_mask_is_where_the_prompts_differ_on_the_recording(run_graph):
    """Of one step, by the two stock predictions: denoised = x - sigma * slope of one Euler step."""
    scene, mirror, target = npi(batch=2, steps=3)
    window = {"first_timestep": 400, "last_timestep": 300}                       # of 667, 334, 1: the second step
    node = functools.partial(guidance, scene, KINDS[1], mirror, positive=target, **window)
    published = {"mask_rule": "|proximal map| > threshold (as published)"}
    narrow, wide, doubled = node(0.7), node(0.7, dilation=1), node(0.7, **published)
    run = run_graph(scene)
    made = run.outputs[mirror.id][2]
    masks = [run.outputs[output.id][1] for output in (narrow, wide, doubled)]
    again = Scene(steps=3)
    start = again.add(give(lambda: {"samples": made.latents[1] / 0.18215}, "LATENT"))
    level = again.ksampler(start(), again.source, again.source, 1.0, start_at_step=1, end_at_step=2,
                           return_with_leftover_noise="enable")
    other = again.ksampler(start(), again.text("a photo of a red dog in the sky"), again.source, 1.0, start_at_step=1,
                           end_at_step=2, return_with_leftover_noise="enable")
    second = run_graph(again)
    delta = (samples(second, other) - samples(second, level)).abs()
    tau = torch.quantile(delta.flatten(1), 0.7, dim=1).reshape(-1, 1, 1, 1)
    assert torch.equal(masks[0], (delta > tau).float().mean(dim=1))
    assert torch.equal(masks[2], (delta > 2 * tau).float().mean(dim=1)) and masks[2].sum() < masks[0].sum()
    grown = torch.nn.functional.max_pool2d((delta > tau).float(), 3, 1, 1).mean(dim=1)
    assert torch.equal(masks[1], grown) and grown.mean() > masks[0].mean() and grown.shape == (2, 8, 12)


def test_a_caption_of_more_chunks_than_the_mirrors_has_a_mask_too(run_graph):
    """Repeated chunks say the same: the mask is that of the caption alone."""
    scene, _, target = npi(steps=3)
    mirror = scene.invert(Scene.PAPER)
    twice = scene.add(node(lambda c: [[text.repeat(1, 2, 1), options] for text, options in c], ("CONDITIONING",),
                           {"c": "CONDITIONING"}), c=target)
    once, both = (guidance(scene, KINDS[0], mirror, quantile=0.7, positive=text, **ALWAYS)
                  for text in (target, twice()))
    run = run_graph(scene)
    masks = [run.outputs[made.id][1] for made in (once, both)]
    assert masks[0].std() > 0 and (masks[0] - masks[1]).abs().mean() < 0.01


def test_the_mask_without_a_caption_says_what_it_needs(run_graph):
    scene, mirror, target = npi()
    made = guidance(scene, KINDS[0], mirror)
    scene.sample(mirror, positive=target, cfg=CFG, model=made())
    run_graph(scene)
    scene.add("MaskToImage", mask=made(1))
    with pytest.raises(GraphFailed, match="connect both to this node"):
        run_graph(scene)


@NODES
def test_what_the_mirror_has_not_recorded_is_refused(run_graph, node_id):
    def failure(build, **changes):
        scene, mirror, target = npi()
        build(scene, mirror, target, guidance(scene, node_id, mirror, **changes))
        with pytest.raises(GraphFailed) as caught:
            run_graph(scene)
        return caught.value.text

    def other_steps(scene, mirror, target, made):
        scene.ksampler(mirror(0), target, mirror(5), CFG, model=made(), steps=7)

    def skipped(scene, mirror, target, made):
        """Of the recorded steps the first, straight to 0."""
        scene.ksampler(mirror(0), target, mirror(5), CFG, model=made(), end_at_step=1)

    def other_size(scene, mirror, target, made):
        small = scene.add("EmptyLatentImage", width=64, height=64, batch_size=1)
        scene.ksampler(small(), target, mirror(5), CFG, model=made())

    assert "not one of the mirror's 5 steps" in failure(other_steps)
    assert "leaves out steps of the mirror" in failure(skipped)
    assert "[1, 4, 8, 12]" in failure(other_size)
    empty = failure(lambda *args: None, first_timestep=100, last_timestep=200)
    assert "100 cannot be first and 200 last" in empty
