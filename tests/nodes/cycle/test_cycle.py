"""CycleDiffusion in the real executor: stock samplers give the picture back from its noises, whatever the grid."""

import functools
import inspect

import pytest
import torch
from support.tiny import Scene, flow, pictures, sdxl, unet

from harness.graph import node
from harness.results import GraphFailed, GraphRejected

PAPERS = "papers (50: 981, ..., 21, 1)"
FAMILIES = {
    "eps": (unet, pictures),
    "v": (functools.partial(unet, v_prediction=True), pictures),
    "sdxl": (sdxl, pictures),
    "flow": (flow, functools.partial(pictures, channels=16, scale=1.0)),
}
DPM, EDIT_FRIENDLY = "dpm-encoder", "edit-friendly"
BOTH = pytest.mark.parametrize("kind", [DPM, EDIT_FRIENDLY])


def encode(scene, kind=DPM, eta=0.1, seed=7, cfg=1.0, **changes):
    inputs = {"model": scene.model, "positive": scene.source, "latent": scene.latent, "encoder": kind,
              "encoder__seed": seed, "encoder__eta": eta, "denoise": 1.0, "cfg": cfg, "negative": scene.empty}
    return scene.add("CycleDiffusionEncode", **{**inputs, **scene.grid, **changes})


def advanced(scene, made, cfg=1.0, model=None, positive=None, **changes):
    """SamplerCustomAdvanced with all that the code brings."""
    guider = scene.add("CFGGuider", model=model or scene.model, positive=positive or scene.source,
                       negative=scene.empty, cfg=cfg)
    inputs = {"noise": made(0), "sampler": made(1), "sigmas": made(2), "latent_image": made(3), "guider": guider()}
    return scene.add("SamplerCustomAdvanced", **{**inputs, **changes})


def edit(scene, target, kind=DPM, eta=0.1, seed=7, cfg=3.0, **changes):
    inputs = {"model": scene.model, "source": scene.source, "target": target, "latent": scene.latent, "encoder": kind,
              "encoder__seed": seed, "encoder__eta": eta, "denoise": 1.0, "source_cfg": 1.0, "cfg": cfg,
              "negative": scene.empty}
    return scene.add("CycleDiffusionEdit", **{**inputs, **scene.grid, **changes})


def samples(run, output, slot=0):
    return run.outputs[output.id][slot]["samples"]


def apart(a, b):
    """Relative rms distance."""
    return ((a - b).norm() / b.norm()).item()


def off(run, output, scene, slot=0):
    return apart(samples(run, output, slot), run.outputs[scene.latent[0]][0]["samples"])


def schedulers():
    import comfy.samplers
    return [*comfy.samplers.SCHEDULER_NAMES, PAPERS]


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
def test_every_scheduler_gives_the_picture_back_to_the_last_step(host, run_graph, eta):
    """Without the last noise the picture would be the network's last prediction: the test knows how far off that is."""
    scene = Scene(steps=4)
    made = {name: encode(scene, eta=eta, cfg=3.0, scheduler=name) for name in schedulers()}
    back = {name: advanced(scene, made[name], cfg=3.0) for name in made}
    run = run_graph(scene)
    for name, one in back.items():
        assert off(run, one, scene) < 2e-6, name
        code = run.outputs[made[name].id][4]
        assert code.noises[-1].abs().max() > 1e-3, f"{name}: the last step's noise is part of the picture"


@BOTH
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_picture_back_at_any_guidance(run_graph, family, kind):
    make, latent = FAMILIES[family]
    scene = Scene(make, latent, steps=4, scheduler="simple" if family == "flow" else "ddim_uniform")
    found = [advanced(scene, encode(scene, kind, eta, cfg=cfg), cfg) for eta, cfg in ((0.1, 5.0), (1.0, 1.0))]
    part = advanced(scene, encode(scene, kind, 0.5, denoise=0.6))
    other = advanced(scene, encode(scene, kind, 0.1), 3.0, positive=scene.text("a photo of a red dog in the sky"))
    run = run_graph(scene)
    for one in (*found, part):
        assert off(run, one, scene) < 2e-6
    assert off(run, other, scene) > 1e-3


def test_a_model_in_float64_gives_the_picture_back_as_well_as_a_latent_can_hold_it(run_graph):
    def double():
        model = unet()
        model.set_model_compute_dtype(torch.float64)
        return model

    scene = Scene(double, steps=8)
    made = encode(scene, eta=0.1, cfg=7.5)
    back = advanced(scene, made, 7.5)
    run = run_graph(scene)
    assert run.outputs[made.id][4].meta["network"] == "float64"
    assert off(run, back, scene) < 1e-7


@pytest.mark.every_host
@BOTH
def test_the_replay_is_the_same_on_a_second_run_and_from_a_file(run_graph, kind):
    scene = Scene(latent=lambda: pictures(2, height=8, width=12), steps=4)
    made = encode(scene, kind, 0.5)
    target = scene.text("a photo of a red dog in the sky")
    edited = advanced(scene, made, 3.0, positive=target)
    saved = scene.add("CycleDiffusionSave", code=made(4), filename_prefix="mirror/test-noises")
    first = run_graph(scene, cached=True)
    again = advanced(scene, made, 3.0, positive=target)
    second = run_graph(scene, cached=True)
    assert second.outputs[made.id][4] is first.outputs[made.id][4], "this run must be the cached one"
    assert torch.equal(samples(first, edited), samples(second, again))
    name = first.outputs[saved.id][0]
    other = Scene(latent=lambda: pictures(2, height=8, width=12), steps=4)
    read = other.add("CycleDiffusionReplay", code=other.add("CycleDiffusionLoad", file=name)(), skip=0)
    from_file = advanced(other, read, 3.0, positive=other.text("a photo of a red dog in the sky"))
    assert torch.equal(samples(run_graph(other), from_file), samples(first, edited))


@BOTH
def test_skipping_begins_nearer_to_the_picture(run_graph, kind):
    scene = Scene(steps=6)
    made = encode(scene, kind, 0.5)
    late = [scene.add("CycleDiffusionReplay", code=made(4), skip=k) for k in (2, 5)]
    back = [advanced(scene, one) for one in late]
    target = scene.text("a photo of a red dog in the sky")
    edits = [advanced(scene, one, 5.0, positive=target) for one in (made, *late)]
    run = run_graph(scene)
    assert all(off(run, one, scene) < 2e-6 for one in back)
    changes = [off(run, one, scene) for one in edits]
    assert changes[0] > changes[1] > changes[2] > 0
    assert len(run.outputs[late[1].id][2]) == 3


@BOTH
def test_both_walks_together_are_encoding_then_decoding(run_graph, kind):
    scene = Scene(steps=4)
    target = scene.text("a photo of a red dog in the sky")
    together = edit(scene, target, kind, 0.3)
    one_by_one = advanced(scene, encode(scene, kind, 0.3), 3.0, positive=target)
    same = edit(scene, scene.source, kind, 0.3, cfg=1.0)
    run = run_graph(scene)
    assert apart(samples(run, together), samples(run, one_by_one)) < 1e-6
    assert off(run, same, scene) < 2e-6 and off(run, together, scene) > 1e-3
    assert run.outputs[together.id][1] == 4 * 3


def test_two_models_the_decoder_with_its_own_prompts(run_graph):
    from harness.graph import give
    scene = Scene(steps=4)
    other = scene.add(give(functools.partial(unet, 5), "MODEL"))()
    target = scene.text("a photo of a red dog in the sky")
    decoder = {"decoder": other, "decoder_negative": scene.text("the sky")}
    translated = edit(scene, target, cfg=2.0, **decoder)
    guided = edit(scene, target, cfg=2.0, decoder=other)
    made = encode(scene)
    by_stock = advanced(scene, made, 2.0, model=other, positive=target)
    same = edit(scene, scene.source, cfg=1.0, decoder=scene.model)
    run = run_graph(scene)
    assert off(run, same, scene) < 2e-6, "encode with A, decode with A"
    assert apart(samples(run, guided), samples(run, by_stock)) < 1e-6
    assert off(run, translated, scene) > 1e-2 and apart(samples(run, translated), samples(run, guided)) > 1e-4
    assert run.outputs[translated.id][1] == 4 * 3


def test_a_cached_sampler_does_not_hold_the_path(run_graph):
    """A view of its beginning would keep all its latents in memory for as long as the SAMPLER is cached."""
    scene = Scene(steps=4)
    made = encode(scene)
    late = scene.add("CycleDiffusionReplay", code=made(4), skip=2)
    run = run_graph(scene)
    for one in (made, late):
        start = inspect.getclosurevars(run.outputs[one.id][1].sampler_function).nonlocals["state"].latents
        assert len(start) == 1 and start.untyped_storage().nbytes() == start.numel() * start.element_size()


def test_refining_redraws_only_what_the_last_steps_decide(run_graph):
    scene = Scene(steps=6)
    plain, little, much = (edit(scene, scene.source, cfg=1.0, refine=n) for n in (0, 1, 4))
    again = edit(scene, scene.source, cfg=1.0, refine=4, decoder=scene.model)
    run = run_graph(scene)
    assert off(run, plain, scene) < 2e-6 < off(run, little, scene) < off(run, much, scene)
    assert apart(samples(run, again), samples(run, much)) < 1e-6
    assert run.outputs[much.id][1] == 7 + 4, "both sides ask for the same, once"


def test_the_path_is_a_mirror_for_mirror_sample(run_graph):
    """With eta 0.1 a step's carried noise is Euler's but for half a percent, so that MirrorSample's residual mode is
    CycleDiffusion; without a change of prompt both give the picture."""
    scene = Scene(steps=10)
    made = encode(scene, eta=0.1)
    target = scene.text("a photo of a red dog in the sky")
    how = {"model": scene.model, "mirror": made(5), "cfg": 1.0, "exact": "source and edit", "region": "everywhere"}
    kept = scene.add("MirrorSample", positive=scene.source, strength=1.0, **how)
    edited = scene.add("MirrorSample", positive=target, strength=1.0, **how)
    cycle = edit(scene, target, eta=0.1, cfg=1.0)
    run = run_graph(scene)
    assert off(run, kept, scene) < 1e-5 and off(run, kept, scene, 1) < 1e-5
    change = off(run, cycle, scene)
    assert change > 1e-3 and apart(samples(run, edited), samples(run, cycle)) < 0.1 * change


def test_a_replay_refuses_what_it_was_not_made_for(run_graph):
    def failure(**changes):
        scene = Scene(steps=4)
        made = encode(scene)
        advanced(scene, made, **{name: value(scene) for name, value in changes.items()})
        with pytest.raises(GraphFailed) as caught:
            run_graph(scene)
        return caught.value.text

    assert "connect `noise` and `latent`" in failure(noise=lambda scene: scene.add("DisableNoise")())
    assert "connect `sigmas`" in failure(
        sigmas=lambda scene: scene.add("BasicScheduler", model=scene.model, scheduler="karras", steps=4, denoise=1.0)())


def test_bad_settings_are_refused_before_work(run_graph):
    def failure(build):
        scene = Scene(steps=4)
        build(scene)
        with pytest.raises((GraphFailed, GraphRejected)) as caught:
            run_graph(scene)
        return str(caught.value)

    assert "at most the 4 steps" in failure(lambda s: edit(s, s.source, refine=5))
    assert "needs a negative prompt" in failure(lambda s: s[edit(s, s.source).id]["inputs"].pop("negative"))
    assert "can be skipped" in failure(lambda s: s.add("CycleDiffusionReplay", code=encode(s)(4), skip=4))

    def strangers(scene):
        from harness.graph import give
        edit(scene, scene.source, decoder=scene.add(give(flow, "MODEL"))())

    assert "do not share their latents" in failure(strangers)


def test_an_interrupt_leaves_the_model_as_it_was(run_graph):
    scene = Scene(steps=30)
    made = edit(scene, scene.source)
    run = run_graph(scene, interrupt_when=lambda event, data: (
        event == "progress" and data["node"] == made.id and data["value"] > 3))
    assert run.interrupted and made.id not in run.outputs


@BOTH
def test_prompt_to_prompt_finds_its_source_in_the_path(run_graph, kind):
    """Attention control evaluates the source on the recorded path beside the stock sampler's replay of the noises."""
    scene = Scene(steps=6)
    words, other = "a photo of a cat sitting on a car", "a photo of a dog sitting on a car"
    made, elsewhere = encode(scene, kind, 0.5), encode(scene, kind, 0.5, seed=8)

    def controlled(target, until, path=made):
        return scene.add("MirrorPromptToPrompt", model=scene.model, mirror=path(5), clip=scene.clip, source_text=words,
                         target_text=target, mode="auto", cross_until=until, self_until=until)()

    kept, strange = (advanced(scene, made, model=controlled(words, 1.0, path)) for path in (made, elsewhere))
    free, loose, tight = (advanced(scene, made, model=model, positive=scene.text(other))
                          for model in (None, controlled(other, 0.0), controlled(other, 1.0)))
    run = run_graph(scene)
    assert off(run, kept, scene) < 1e-5 < 1e-4 < off(run, strange, scene), "the source's maps are those of its path"
    change = off(run, free, scene)
    assert apart(samples(run, loose), samples(run, free)) < 1e-5 < 1e-2 * change
    assert apart(samples(run, tight), samples(run, free)) > 1e-2 * change


@pytest.mark.every_host
def test_both_sides_share_one_call_of_the_network_a_step(run_graph):
    """And it is what two calls give, as for a model with a patch, which might tell the sides apart."""
    calls = []

    def watched():
        model = unet()
        model.model.diffusion_model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
        return model

    def patched(model):
        model = model.clone()
        model.set_model_attn1_patch(lambda q, k, v, options: (q, k, v))
        return model

    scene = Scene(watched, steps=3)
    other = scene.add(node(patched, ("MODEL",), {"model": "MODEL"}), model=scene.model)()
    one = edit(scene, scene.text("a red dog"))
    run = run_graph(scene)
    assert calls == [3, 3, 3]
    two = edit(scene, scene.text("a red dog"), model=other)
    both = run_graph(scene)
    assert calls[3:].count(1) == 3 and calls[3:].count(2) == 3
    assert apart(samples(both, two), samples(run, one)) < 1e-4


@pytest.mark.parametrize("refine", [0, 2])
def test_a_picture_is_edited_alike_in_any_batch(run_graph, refine):
    """The second of a batch has its own seed, and keeps it when it is taken out."""
    pair = pictures(2)
    alone = {"samples": pair["samples"][1:], "batch_index": [1]}

    def edited(latent):
        scene = Scene(latent=lambda: latent, steps=4)
        made = edit(scene, scene.text("a red dog"), refine=refine)
        return samples(run_graph(scene), made)

    together, by_itself, another = edited(pair)[1:], edited(alone), edited({**alone, "batch_index": [0]})
    assert apart(together, by_itself) < 1e-4 < apart(together, another)
