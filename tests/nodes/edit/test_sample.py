"""MirrorSample: what makes an edit is seen, wherever it comes from; the same walk under recorded or shared noise."""

import pytest
import torch
from support.tiny import GAIN, LAYERS, UNET, WIDTH, Scene, deep, gentle, patcher, pictures, sdxl, unet

from harness.graph import node
from harness.results import GraphFailed

OURS = {"method": "fixed point + negative prompt", "method__iterations": 4}
DOG = "a photo of a dog sitting on a car"


def samples(run, made, slot=0):
    return run.outputs[made.id][slot]["samples"] * 0.18215


def picture(run, scene):
    return run.outputs[scene.latent[0]][0]["samples"] * 0.18215


def other_weights(strength=0.05):
    """A node MODEL -> MODEL with patched weights, as a LoRA leaves it."""
    def patch(model):
        model = model.clone()
        model.add_patches({
            f"diffusion_model.{name}": ("diff", (torch.randn(
                weight.shape, generator=torch.Generator().manual_seed(3)) * strength,))
            for name, weight in model.model.diffusion_model.named_parameters() if "attn2.to_v" in name})
        return model

    return node(patch, ("MODEL",), {"model": "MODEL"})


def refiner():
    """MODEL of SDXL's refiner's kind, which is told a lower aesthetic score on the negative side."""
    import comfy.model_base as base
    import comfy.supported_models

    class Tiny(comfy.supported_models.SDXLRefiner):
        unet_config = {}
        unet_extra_config = {"num_heads": 4, "num_head_channels": -1}

    config = Tiny({**UNET, "num_classes": "sequential", "adm_in_channels": WIDTH + 5 * 256})
    config.set_inference_dtype(torch.float32, None)
    model = base.SDXLRefiner(config, device=torch.device("cpu"))
    gentle(model.diffusion_model, model.diffusion_model.out[-1], 0, GAIN / 4)
    return patcher(model)


# --- what the region sees ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rewriter", [OURS, Scene.PAPER], ids=["ours", "paper"])
def test_an_edit_by_the_model_alone_is_not_thrown_away(run_graph, rewriter):
    """The same words and a LoRA: its own region, and none without the LoRA."""
    scene = Scene(steps=8)
    mirror = scene.invert(rewriter)
    lora = scene.add(other_weights(), model=scene.model)
    same, edited = (scene.sample(mirror, model=model, region="auto") for model in (scene.model, lora()))
    run = run_graph(scene)
    assert torch.equal(samples(run, same), samples(run, same, 1)) or run.outputs[same.id][3].max() == 0
    region = run.outputs[edited.id][3]
    assert 0 < region.mean() < 1
    assert (samples(run, edited) - picture(run, scene)).abs().max() > 0.02


def test_an_edit_by_reweighting_alone_is_not_thrown_away(run_graph):
    scene = Scene(deep, steps=8)
    mirror = scene.invert(OURS)
    words = {"clip": scene.clip, "source_text": "a photo of a cat sitting on a car",
             "target_text": "a photo of a cat sitting on a car", "mode": "auto", "cross_until": 1.0, "self_until": 0.0}
    made = {}
    for factor in (1, 6):
        control = scene.add("MirrorPromptToPrompt", model=scene.model, reweight=f"cat: {factor}", **words)
        made[factor] = scene.sample(mirror, model=control(), region="auto")
    run = run_graph(scene)
    assert run.outputs[made[1].id][3].max() == 0 and run.outputs[made[6].id][3].max() == 1
    assert torch.equal(samples(run, made[1]), picture(run, scene))
    assert (samples(run, made[6]) - picture(run, scene)).abs().max() > 1e-3


@pytest.mark.every_host
def test_controls_act_on_the_edited_probe_only(run_graph, host):
    """Prompt-to-prompt's evaluations in a walk with a region: the edit at every step, and the edited probe."""
    branches, attach, attention = (host.pack_module(f"nodes.host.{name}") for name in (
        "branches", "attach", "attention"))
    seen = []

    def attend(q, k, v, extra, onward):
        reference = attach.active_reference(extra)
        if reference is not None and not reference.recording:
            seen.append(branches.branch_of(extra))
        return onward(q, k, v, extra)

    def patch(model):
        model = model.clone()
        attach.attach(model)
        attention.replace_attention(model, "attn2", attend)
        return model

    scene = Scene(steps=8)
    model = scene.add(node(patch, ("MODEL",), {"model": "MODEL"}), model=scene.model)
    scene.sample(scene.invert(OURS), model=model(), positive=scene.text(DOG), region="auto", cfg=1.0)
    run_graph(scene)
    probes = len(host.pack_module("mirror_ops.regions.predicted").probes(8))
    assert seen.count(branches.Branch.PROBE) == probes * LAYERS and seen.count(branches.Branch.EDIT) == 8 * LAYERS
    assert len(seen) == (probes + 8) * LAYERS


@pytest.mark.parametrize("method", ["fixed point + negative prompt", "negative prompt"])
def test_a_connected_negative_is_read(run_graph, method):
    """Guidance leads away from it, also where the words stay the same; the reconstruction stays the picture's."""
    rewriter = OURS if method == "fixed point + negative prompt" else {"method": method, "method__interpolation": 0.0}
    scene = Scene(steps=6)
    mirror = scene.invert(rewriter, cfg=3.0)
    how = {"cfg": 3.0, "region": "auto", "exact": "off"}
    plain, against = scene.sample(mirror, **how), scene.sample(mirror, negative=scene.text("a red car"), **how)
    edit = {"positive": scene.text(DOG), "region": "everywhere", "cfg": 3.0}
    kept, moved = scene.sample(mirror, **edit), scene.sample(mirror, negative=scene.text("a red car"), **edit)
    run = run_graph(scene)
    assert run.outputs[plain.id][3].max() == 0 and run.outputs[against.id][3].max() == 1
    assert torch.equal(samples(run, plain, 1), samples(run, against, 1))
    assert (samples(run, kept) - samples(run, moved)).abs().max() > 1e-3


# --- prompts ----------------------------------------------------------------------------------------------------------

def test_the_refiners_kept_prompt_is_a_negative_on_the_negative_side(run_graph):
    """SDXL's refiner reads an aesthetic score of 2.5 there, as the way back did when the mirror was made."""
    scene = Scene(refiner, steps=5)
    mirror = scene.invert(OURS, cfg=4.0)
    made = scene.sample(mirror, strength=0.0, cfg=1.0, exact="off")
    run = run_graph(scene)
    trajectory = run.outputs[mirror.id][2]
    way_back = trajectory.reconstruction[-1]
    assert torch.allclose(run.outputs[made.id][1]["samples"] * 0.13025, way_back, rtol=0, atol=1e-4)
    assert (way_back - trajectory.latents[-1]).abs().max() > 1e-2, "the two scores differ, so it is no perfect mirror"


def told(scene, model):
    """A node MODEL -> MODEL, and the (sigma, y) that the positive side of its network is told."""
    from comfy.patcher_extension import WrappersMP
    seen = []

    def apply(executor, x, t, *args, **kwargs):
        seen.append((float(t[0]), kwargs["y"].clone()))
        return executor(x, t, *args, **kwargs)

    def patch(model):
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "told", apply)
        return model

    return scene.add(node(patch, ("MODEL",), {"model": "MODEL"}), model=model), seen


def test_the_pooled_prompt_follows_the_ramp(run_graph):
    scene = Scene(sdxl, steps=5)
    mirror, target = scene.invert(Scene.NONE), scene.text(DOG)
    model, seen = told(scene, scene.model)
    scene.sample(mirror, model=model(), positive=target, cfg=1.0, strength=0.5, ramp=1.0, ramp_until=0.7)
    run = run_graph(scene)
    after, before = (run.outputs[text[0]][0][0][1]["pooled_output"] for text in (target, scene.source))
    pooled = [y[0, :WIDTH] for _, y in seen if y.shape[0] == 1]
    amounts = [0.5, 0.7, 0.9, 1.1, 0.5]
    edits = [p for p in pooled if not torch.allclose(p, before[0], atol=1e-6)]
    assert len(edits) == 5
    for p, amount in zip(edits, amounts, strict=True):
        assert torch.allclose(p, (before + amount * (after - before))[0], rtol=0, atol=1e-5)


def test_captions_of_several_chunks_are_padded(run_graph):
    """A caption of two chunks beside a prompt of one: repeated tokens change nothing, other words do."""
    def twice(conditioning):
        return [[text.repeat(1, 2, 1), options] for text, options in conditioning]

    scene = Scene(steps=5)
    mirror = scene.invert(OURS)
    repeated = scene.add(node(twice, ("CONDITIONING",), {"conditioning": "CONDITIONING"}), conditioning=scene.source)
    longer = scene.text(" ".join(["a photo of a dog sitting on a car"] * 9))
    plain, kept, edited = (scene.sample(mirror, positive=p, cfg=2.0) for p in (scene.source, repeated(), longer))
    short = scene.invert({"method": "fixed point + negative prompt", "method__iterations": 4}, positive=longer)
    back = scene.sample(short, positive=scene.source, cfg=2.0)
    run = run_graph(scene)
    assert torch.allclose(samples(run, kept), samples(run, plain), rtol=0, atol=1e-4)
    assert (samples(run, edited) - samples(run, plain)).abs().max() > 1e-2
    assert (samples(run, back) - picture(run, scene)).abs().max() > 1e-2


def test_prompts_of_another_width_or_parts_are_refused(run_graph):
    scene = Scene(steps=2)
    parts = scene.add("ConditioningCombine", conditioning_1=scene.source, conditioning_2=scene.text(DOG))
    scene.sample(scene.invert(Scene.NONE), positive=parts())
    with pytest.raises(GraphFailed, match="154 tokens of width 64 in 2 part"):
        run_graph(scene)


# --- shared noise -----------------------------------------------------------------------------------------------------

def test_shared_noise_in_mirror_sample_is_edit_picture(run_graph):
    """The same walk as the node without a mirror has, and of the mirror only the picture and the prompt."""
    scene = Scene(unet, steps=4)
    target = scene.text(DOG)
    mirrors = [scene.invert(Scene.NONE), scene.invert(Scene.PAPER)]
    how = {"cfg": 2.5, "cfg_until": 0.5, "cfg_after": 1.5, "noise": "shared", "seed": 7, "region": "auto"}
    made = [scene.sample(mirror, positive=target, **how) for mirror in mirrors]
    alone = scene.add(
        "MirrorEdit", model=scene.model, source=scene.source, target=target, latent=scene.latent, strength=1.0, seed=7,
        region="auto", polish=0.0, settings="custom", settings__cfg=2.5, settings__cfg_until=0.5,
        settings__cfg_after=1.5, settings__coarse=True, settings__antithetic=True, settings__source_cfg=1.0,
        settings__draws=1, settings__jump=False, **scene.grid)
    run = run_graph(scene)
    expected = samples(run, alone)
    for m in made:
        assert torch.allclose(samples(run, m), expected, rtol=0, atol=1e-5)
        assert torch.equal(samples(run, m, 1), picture(run, scene)) and run.outputs[m.id][2] == 4 * 3
    assert (expected - picture(run, scene)).abs().max() > 1e-2


def test_the_same_words_under_shared_noise_are_the_picture_at_any_guidance(run_graph):
    scene = Scene(steps=4, latent=lambda: pictures(2))
    mirror = scene.invert(Scene.PAPER)
    made = scene.sample(mirror, noise="shared", cfg=5.0)
    run = run_graph(scene)
    assert (samples(run, made) - picture(run, scene)).abs().max() < 1e-4


# --- recordings of stochastic samplers --------------------------------------------------------------------------------

@pytest.mark.parametrize("encoder, eta", [("dpm-encoder", 0.1), ("edit-friendly", 1.0)])
def test_the_region_of_an_edit_on_a_noisy_path_is_the_edits(run_graph, encoder, eta):
    """Its latents move by noises, too, which are neither another model's nor an edit's."""
    scene = Scene(deep, steps=6)
    code = scene.add("CycleDiffusionEncode", model=scene.model, positive=scene.source, latent=scene.latent,
                     encoder=encoder, encoder__seed=0, encoder__eta=eta, denoise=1.0, cfg=1.0, **scene.grid)

    def edit(positive, region):
        settings = {"positive": positive, "exact": "source and edit", "region": region, "cfg": 2.0}
        return scene.add("MirrorSample", model=scene.model, mirror=code(5), strength=1.0, **settings)

    same, auto, everywhere = (edit(*asked) for asked in (
        (scene.source, "auto"), (scene.text(DOG), "auto"), (scene.text(DOG), "everywhere")))
    run = run_graph(scene)
    assert run.outputs[same.id][3].max() == 0
    changes = [(samples(run, made) - picture(run, scene)).norm() for made in (auto, everywhere)]
    assert changes[0] > .5 * changes[1] > 0
