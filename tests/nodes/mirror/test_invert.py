"""The main graph in the real executor, on tiny random models: what it promises, and that it leaves no trace."""

import pytest
import torch
from support.tiny import Scene, pictures

from harness.graph import give, node
from mirror_ops.measure.metrics import relative_displacement

AWAY = 1e-2  # a difference that counts, in deviations of the latent


@pytest.fixture(scope="module")
def executor(host):
    return host


def samples(run, output, slot=0):
    return run.outputs[output.id][slot]["samples"]


def far(x, y):
    """The greatest difference, in deviations of the latent."""
    return ((x - y).abs().max() / y.std()).item()


@pytest.mark.parametrize("scheduler", ["ddim_uniform", "normal", "karras", "sgm_uniform"])
def test_a_stock_ksampler_reproduces_the_reconstruction(run_graph, scheduler):
    scene = Scene(scheduler=scheduler)
    for cfg, negative in ((1.0, scene.source), (5.0, scene.empty)):
        mirror = scene.invert(Scene.PAPER, cfg=cfg)
        walk = scene.sample(mirror, negative=negative)
        stock = scene.ksampler(mirror(0), mirror(1), negative, cfg)
        plain = scene.ksampler(mirror(0), scene.source, negative, cfg)
        run = run_graph(scene)
        assert far(samples(run, stock), samples(run, mirror, 4)) < 1e-4
        assert far(samples(run, walk, 1), samples(run, mirror, 4)) < 1e-4
        assert far(samples(run, plain), samples(run, mirror, 4)) > AWAY


def test_a_stock_custom_sampler_walks_the_sigmas_output(run_graph):
    scene = Scene(scheduler="papers (50: 981, ..., 21, 1)")
    mirror = scene.invert(Scene.PAPER)
    stock = scene.add(
        "SamplerCustom", model=scene.model, add_noise=False, noise_seed=0, cfg=1.0, positive=mirror(1),
        negative=scene.empty, sampler=scene.add("KSamplerSelect", sampler_name="euler")(), sigmas=mirror(3),
        latent_image=mirror(0))
    run = run_graph(scene)
    assert run.outputs[mirror.id][3][-1] == pytest.approx(0.0292, abs=1e-4)
    assert far(samples(run, stock), samples(run, mirror, 4)) < 1e-4


def test_null_text_leaves_as_the_negative_of_a_stock_ksampler(run_graph):
    scene = Scene()
    mirror = scene.invert(Scene.NULL_TEXT, cfg=5.0)
    stock = scene.ksampler(mirror(0), scene.source, mirror(5), 5.0)
    walk = scene.sample(mirror, negative=scene.empty)
    run = run_graph(scene)
    assert far(samples(run, stock), samples(run, mirror, 4)) < 1e-4
    assert far(samples(run, walk, 1), samples(run, mirror, 4)) < 1e-4


def test_a_stock_ksampler_makes_the_same_edit(run_graph):
    """rewritten + direction against rewritten, as CONDITIONING, is MirrorSample's edit."""
    scene = Scene()
    mirror = scene.invert(Scene.PAPER)
    direction = scene.add(
        "CLIPDomainDirection", clip=scene.clip, source="cat", target="dog", sentences="template bank: things")
    walk = scene.sample(mirror, direction=direction(), strength=0.7, cfg=2.0)
    moved = scene.add("MirrorApplyDirection", conditioning=mirror(1), direction=direction(), strength=0.7)
    stock = scene.ksampler(mirror(0), moved(), mirror(1), 2.0)
    run = run_graph(scene)
    assert far(samples(run, walk), samples(run, stock)) < 1e-4
    assert far(samples(run, walk), samples(run, walk, 1)) > AWAY


def test_rewriting_lowers_the_displacement_and_negative_prompt_is_plain_ddim(run_graph):
    scene = Scene(steps=10)
    none, paper = scene.invert(Scene.NONE, cfg=5.0), scene.invert(Scene.PAPER, cfg=5.0)
    null = scene.invert(Scene.NULL_TEXT, cfg=5.0)
    closed = scene.invert({"method": "negative prompt"}, cfg=5.0, negative=scene.source)
    plain = scene.invert(Scene.NONE)
    run = run_graph(scene)
    moved = {made.id: run.outputs[made.id][2].displacement[-1].item() for made in (none, paper, null, closed, plain)}
    assert moved[paper.id] < 0.8 * moved[none.id]
    assert moved[null.id] < 0.95 * moved[none.id]
    assert moved[closed.id] == pytest.approx(moved[plain.id], rel=1e-3)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_ours_comes_closer_than_paper_for_less(run_graph, cfg):
    scene = Scene(steps=10)
    settings = {"cfg": cfg} if cfg == 1 else {"cfg": cfg, "negative": scene.empty}
    full = {**Scene.PAPER, "method__inner_steps": 10}
    ddim, paper = scene.invert(Scene.NONE, **settings), scene.invert(full, **settings)
    ours = scene.invert({"method": "fixed point + negative prompt", "method__iterations": 2}, **settings)
    stock = scene.ksampler(ours(0), ours(1), ours(5), cfg)
    edit = scene.sample(ours, positive=scene.text("a photo of a dog"), cfg=2.0)
    run = run_graph(scene)
    ddim, paper, made = (run.outputs[node.id][2] for node in (ddim, paper, ours))
    assert made.displacement[-1] < paper.displacement[-1] < ddim.displacement[-1]
    ddim, paper, made = (mirror.provenance.forwards + mirror.provenance.backwards for mirror in (ddim, paper, made))
    assert made - ddim <= (paper - ddim) / 4
    assert far(samples(run, stock), samples(run, ours, 4)) < 1e-4
    assert far(samples(run, edit), samples(run, edit, 1)) > AWAY


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("method", [
    Scene.PAPER, Scene.NULL_TEXT, Scene.NONE, {"method": "negative prompt"},
    {"method": "negative prompt", "method__interpolation": 0.5},
    {"method": "fixed point + negative prompt", "method__iterations": 2},
], ids=lambda method: "interpolated" if "method__interpolation" in method else method["method"])
def test_both_prompts_leave_the_right_way_round_whatever_was_rewritten(run_graph, method, cfg):
    if cfg == 1 and method["method"] in ("null text", "negative prompt"):
        pytest.skip("the negative is not read at cfg 1")
    scene = Scene()
    mirror = scene.invert(method, cfg=cfg)
    stock = scene.ksampler(mirror(0), mirror(1), mirror(5), cfg)
    run = run_graph(scene)
    assert far(samples(run, stock), samples(run, mirror, 4)) < 1e-4


def test_refinement_cures_the_inversion(run_graph):
    scene = Scene(steps=10)
    plain, refined = scene.invert(Scene.NONE), scene.invert(Scene.NONE, refine=5)
    run = run_graph(scene)
    plain, refined = (run.outputs[made.id][2] for made in (plain, refined))
    assert refined.displacement[-1] < plain.displacement[-1] / 10
    assert refined.provenance.forwards == 10 * 7 and plain.provenance.forwards == 10 * 2


def test_the_cost_is_counted_in_rows_a_picture(run_graph):
    scene = Scene(latent=lambda: pictures(2))
    paper, guided = scene.invert(Scene.PAPER), scene.invert(Scene.PAPER, cfg=5.0)
    run = run_graph(scene)
    alone, held = (run.outputs[made.id][2].provenance for made in (paper, guided))
    assert (alone.forwards, alone.backwards) == (5 + 5 * 4, 5 * 3)
    assert (held.forwards, held.backwards) == (5 + 5 + 5 * 4, 5 * 3), "the negative is evaluated once a step"


def test_an_edit_by_caption_is_the_difference_of_captions(run_graph):
    scene = Scene()
    mirror = scene.invert(Scene.NONE)
    target = scene.text("a photo of a dog sitting on a car")
    edit = scene.sample(mirror, positive=target, cfg=1.0)
    stock = scene.ksampler(mirror(0), target, scene.empty, 1.0)
    half = scene.sample(mirror, positive=target, cfg=2.0, strength=0.5)
    nothing = scene.sample(mirror, positive=target, cfg=3.0, strength=0.0)
    run = run_graph(scene)
    assert far(samples(run, edit), samples(run, stock)) < 1e-4
    assert far(samples(run, edit), samples(run, edit, 1)) > AWAY
    assert AWAY < far(samples(run, half), samples(run, half, 1))
    assert far(samples(run, nothing), samples(run, nothing, 1)) < 1e-4


def test_exact_keeps_the_recording_and_a_mask_confines_the_edit(run_graph):
    def masked():
        made = pictures()
        made["noise_mask"] = torch.zeros(1, 64, 64)
        made["noise_mask"][..., :32] = 1
        return made

    scene = Scene()
    mirror, target = scene.invert(Scene.NONE), scene.text("a photo of a dog sitting on a car")
    exact = scene.sample(mirror, positive=target, exact="source")
    given = scene.sample(mirror, strength=0.0, cfg=1.0, exact="source and edit")
    half = scene.add(node(lambda: masked()["noise_mask"], ("MASK",)))
    confined = scene.sample(mirror, positive=target, mask=half())
    of_half = scene.invert(Scene.NONE, latent=scene.add(give(masked, "LATENT"))())
    recorded = scene.sample(of_half, positive=target)
    within = scene.sample(of_half, positive=target, mask=scene.add(give(lambda: torch.ones(1, 64, 64), "MASK"))())
    run = run_graph(scene)
    picture = pictures()["samples"]
    assert far(samples(run, exact, 1), picture) < 1e-5
    assert far(samples(run, given), picture) < 1e-4
    assert far(samples(run, mirror, 4), picture) > AWAY
    for made in (confined, recorded, within):
        assert far(samples(run, made)[..., 4:], picture[..., 4:]) < 1e-4
        assert far(samples(run, made)[..., :4], picture[..., :4]) > AWAY


def test_pictures_of_a_batch_are_treated_as_alone(run_graph):
    together = pictures(3)["samples"]
    scene = Scene(latent=lambda: {"samples": together})
    batch = scene.invert(Scene.PAPER, cfg=3.0)
    edited = scene.sample(batch, positive=scene.text("a photo of a dog sitting on a car"), negative=scene.empty)
    alone = []
    for k in range(3):
        latent = scene.add(give(lambda k=k: {"samples": together[k : k + 1]}, "LATENT"))
        alone.append(scene.invert(Scene.PAPER, cfg=3.0, latent=latent()))
    run = run_graph(scene)
    for k, one in enumerate(alone):
        assert far(samples(run, batch, 4)[k], samples(run, one, 4)[0]) < 5e-3
        assert relative_displacement(samples(run, batch)[k], samples(run, one)[0]) < 1e-5
    assert len(samples(run, edited)) == 3
    assert run.outputs[batch.id][2].embeddings.shape[1] == 3


@pytest.mark.every_host
def test_nothing_is_left_behind_and_a_second_run_is_identical(run_graph, executor):
    scene = Scene()
    before = scene.ksampler(scene.latent, scene.source, scene.empty, 3.0)
    run = run_graph(scene, cached=True)
    model = run.outputs[scene.model[0]][0]
    state = trace(model)
    mirrors = [scene.invert(Scene.PAPER, cfg=5.0, checkpointing=c) for c in ("off", "on")]
    edits = [scene.sample(mirror, negative=scene.empty) for mirror in mirrors]
    first = run_graph(scene, cached=True)
    assert first.outputs[scene.model[0]][0] is model, "the test needs the very same MODEL"
    assert trace(model) == state
    after = scene.ksampler(scene.latent, scene.source, scene.empty, 3.0, noise_seed=1)
    again = [scene.invert(Scene.PAPER, cfg=5.0, refine=0, checkpointing=c) for c in ("off", "on")]
    second = run_graph(scene, cached=True)
    assert torch.equal(samples(second, after), samples(run, before))
    for old, new in zip(mirrors, again, strict=True):
        assert torch.equal(samples(second, new, 4), samples(first, old, 4))
    assert far(samples(first, mirrors[0], 4), samples(first, mirrors[1], 4)) < 1e-4
    assert len(edits) == 2


def trace(model):
    """All that a node could leave behind on a MODEL."""
    network = model.model.diffusion_model
    return (
        model.patches_uuid, str(model.model_options), {kind: list(model.wrappers[kind]) for kind in model.wrappers},
        list(model.weight_wrapper_patches), list(model.object_patches),
        [name for name, part in network.named_modules() if "forward" in vars(part)],
        [name for name, part in network.named_modules() if getattr(part, "weight_function", None)],
    )


@pytest.mark.every_host
@pytest.mark.parametrize("phase", [0.1, 0.6])
def test_an_interrupt_stops_the_work_and_leaves_nothing_patched(run_graph, phase):
    scene = Scene(steps=10)
    before = scene.ksampler(scene.latent, scene.source, scene.empty, 3.0)
    run = run_graph(scene, cached=True)
    model = run.outputs[scene.model[0]][0]
    state = trace(model)
    mirror = scene.invert(Scene.PAPER, cfg=5.0, checkpointing="on")
    stopped = run_graph(
        scene, cached=True,
        interrupt_when=lambda event, data: event == "progress" and data["value"] > phase * data["max"])
    assert stopped.interrupted and mirror.id not in stopped.outputs
    assert trace(model) == state
    del scene[mirror.id]
    after = scene.ksampler(scene.latent, scene.source, scene.empty, 3.0, noise_seed=1)
    assert torch.equal(samples(run_graph(scene, cached=True), after), samples(run, before))


@pytest.mark.every_host
def test_one_progress_bar_runs_over_all_inner_steps_with_previews(run_graph):
    scene = Scene()
    mirror = scene.invert(Scene.PAPER)
    run = run_graph(scene, previews=True)
    bar = [data for data in run.named("progress") if data["node"] == mirror.id]
    values = [data["value"] for data in bar]
    assert {data["max"] for data in bar} == {5 * 5}
    assert values == sorted(values) and values[-1] == 25 and len(set(values)) > 8
    assert len(run.named("preview")) >= 10


def test_an_automatic_region_keeps_the_recording_outside_it(run_graph):
    scene = Scene()
    mirror = scene.invert(Scene.NONE)
    target = scene.text("a photo of a dog sitting on a car")
    auto = scene.sample(mirror, positive=target, cfg=2.0, region="auto")
    free = scene.sample(mirror, positive=target, cfg=2.0)
    none = scene.sample(mirror, cfg=2.0, region="auto")
    run = run_graph(scene)
    region = run.outputs[auto.id][3][:, None]
    recorded = run.outputs[mirror.id][2].latents[-1]
    outside = (region == 0).expand_as(recorded)
    assert 0 < outside.float().mean() < 1 and region.max() == 1
    scale = samples(run, auto)[outside].std() / recorded[outside].std()       # LATENTs are in picture space
    assert torch.allclose(samples(run, auto)[outside], recorded[outside] * scale, atol=1e-4)
    assert not torch.allclose(samples(run, free)[outside], recorded[outside] * scale, atol=1e-2)
    assert run.outputs[none.id][3].max() == 0 and run.outputs[free.id][3].min() == 1


def test_guidance_that_ends_before_the_walk_does(run_graph):
    scene = Scene()
    mirror = scene.invert(Scene.NONE)
    target = scene.text("a photo of a dog sitting on a car")
    ends = {until: scene.sample(mirror, positive=target, cfg=4.0, exact="source", cfg_until=until)
            for until in (0.0, 0.4, 1.0)}
    plain = scene.sample(mirror, positive=target, cfg=1.0, exact="source")
    run = run_graph(scene)
    edits = {until: samples(run, node) for until, node in ends.items()}
    assert torch.equal(edits[0.0], samples(run, plain))
    assert not any(torch.allclose(edits[0.4], edits[other], atol=1e-3) for other in (0.0, 1.0))
    cost = {until: run.outputs[node.id][2] for until, node in ends.items()}
    steps = run.outputs[mirror.id][2].steps
    assert cost == {0.0: steps, 0.4: steps + round(0.4 * steps), 1.0: 2 * steps}
