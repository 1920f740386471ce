"""The source branch beside an edit: the network at the mirror's own latents, at the very step, in any sampler."""

import copy

import pytest
import torch
from support.tiny import LAYERS, Scene, pictures, sdxl, unet

from harness.graph import give, node
from harness.results import GraphFailed

SAMPLERS = ["KSamplerAdvanced", "SamplerCustomAdvanced", "MirrorSample"]


@pytest.fixture
def patched(host):
    """patched(seen, **attach's) -> the id of a node MODEL, MIRROR -> MODEL that reads each layer's source queries; one
    without a mirror if `alone`."""
    source, reference_pass, attention = (host.pack_module(f"nodes.host.{name}") for name in (
        "attach", "reference_pass", "attention"))

    def make(seen, sides=(0,), conditioning=None, alone=False):
        def attend(q, k, v, extra, onward):
            reference = source.active_reference(extra)
            if reference is not None and reference.recording:
                reference.keep("test", extra, lambda rows: q[rows].clone())
            elif reference is not None:
                for side, rows in reference.rows(extra, len(q)):
                    kept = reference.read("test", extra, side)
                    seen.append((reference.step, side, reference_pass.layer_of(extra), kept, len(q[rows])))
            return onward(q, k, v, extra)

        def patch(model, mirror=None):
            model = model.clone()
            source.attach(model, mirror, conditioning, sides)
            attention.replace_attention(model, "attn2", attend)
            return model

        return node(patch, ("MODEL",), {"model": "MODEL"} if alone else {"model": "MODEL", "mirror": "MIRROR"})

    return make


def sampled(scene, sampler, model, mirror, cfg=3.0, **changes):
    edit = scene.text("a photo of a dog sitting on a car")
    if sampler == "MirrorSample":
        return scene.sample(mirror, model=model, positive=edit, cfg=cfg, negative=scene.empty, **changes)
    if sampler == "KSamplerAdvanced":
        return scene.ksampler(mirror(0), edit, scene.empty, cfg, model=model, **changes)
    guider = scene.add("CFGGuider", model=model, positive=edit, negative=scene.empty, cfg=cfg)
    sigmas = scene.add("BasicScheduler", model=scene.model, denoise=1.0, **scene.grid)
    return scene.add("SamplerCustomAdvanced", noise=scene.add("DisableNoise")(), guider=guider(), sigmas=sigmas(),
                     sampler=scene.add("KSamplerSelect", sampler_name="euler")(), latent_image=mirror(0))


def queries(model, x, sigma, text, pooled=None):
    """Each cross-attention's queries, from the network by itself: no sampler and no patches."""
    found, hooks = [], []
    for part in model.model.diffusion_model.modules():
        if hasattr(part, "attn2"):
            hooks.append(part.attn2.to_q.register_forward_hook(lambda m, a, out: found.append(out)))
    with torch.no_grad():
        model.model.apply_model(x, sigma.expand(len(x)), c_crossattn=text.expand(len(x), -1, -1), y=pooled)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_source_is_evaluated_at_the_step_of_the_edit(run_graph, patched, sampler):
    seen, scene = [], Scene(steps=4, latent=lambda: pictures(2, height=8, width=12))
    mirror = scene.invert(Scene.PAPER)
    model = scene.add(patched(seen, (0, 1)), model=scene.model, mirror=mirror(2))
    sampled(scene, sampler, model(), mirror)
    run = run_graph(scene)
    trajectory, plain = run.outputs[mirror.id][2], run.outputs[scene.model[0]][0]
    empty = run.outputs[scene.empty[0]][0][0][0]
    assert len(seen) == 4 * LAYERS * 2 and len({entry[:3] for entry in seen}) == len(seen)
    for i in range(4):
        for side, text in ((0, trajectory.embeddings[i]), (1, empty)):
            expected = queries(plain, trajectory.latents[i], trajectory.sigmas[i], text)
            mine = [entry[3] for entry in seen if entry[:2] == (i, side)]
            for a, b in zip(mine, expected, strict=True):
                assert torch.allclose(a, b, rtol=0, atol=1e-4)
    assert (seen[0][3] - seen[-2 * LAYERS][3]).abs().max() > 1e-2, "steps differ"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_watching_changes_nothing(run_graph, patched, sampler):
    scene = Scene(sdxl, steps=3)
    mirror = scene.invert(Scene.PAPER)
    watched = scene.add(patched([], (0, 1)), model=scene.model, mirror=mirror(2))
    pair = [sampled(scene, sampler, model, mirror) for model in (scene.model, watched())]
    run = run_graph(scene)
    assert torch.equal(*(run.outputs[made.id][0]["samples"] for made in pair))


def test_the_negative_is_left_out_where_the_sampler_leaves_it_out(run_graph, patched):
    seen, scene = [], Scene(steps=2)
    mirror = scene.invert(Scene.NONE)
    model = scene.add(patched(seen, (0, 1)), model=scene.model, mirror=mirror(2))
    sampled(scene, "KSamplerAdvanced", model(), mirror, cfg=1.0)
    run_graph(scene)
    assert [entry[1] for entry in seen] == [0] * 2 * LAYERS
    made = sampled(scene, "MirrorSample", model(), mirror, cfg=3.0, exact="source")
    run = run_graph(scene)
    assert run.outputs[made.id][2] == 2 * (2 + 2), "two rows of the edit and two of the source a step"


def test_one_picture_beside_several_edits(run_graph, patched):
    seen, scene = [], Scene(steps=2)
    mirror = scene.invert(Scene.NONE)
    model = scene.add(patched(seen), model=scene.model, mirror=mirror(2))
    several = scene.add("RepeatLatentBatch", samples=mirror(0), amount=3)
    scene.ksampler(several(), scene.source, scene.empty, 3.0, model=model())
    run_graph(scene)
    assert all(len(kept) == 1 and rows == 3 for _, side, _, kept, rows in seen if side == 0)


def failure(run_graph, scene):
    with pytest.raises(GraphFailed) as caught:
        run_graph(scene)
    return caught.value.text


def test_what_does_not_fit_is_refused(run_graph, patched):
    def scene(**changes):
        made = Scene(steps=4)
        mirror = made.invert(Scene.NONE)
        model = made.add(patched([]), model=made.model, mirror=mirror(2))
        return made, mirror, model

    made, mirror, model = scene()
    made.ksampler(mirror(0), made.source, made.empty, 3.0, model=model(), steps=5)
    assert "Give the sampler the mirror's steps" in failure(run_graph, made)
    made, mirror, model = scene()
    made.ksampler(mirror(0), made.source, made.empty, 3.0, model=model(), sampler_name="dpm_2")
    assert "one look a step (euler, ddim, dpmpp_2m)" in failure(run_graph, made)
    made, mirror, model = scene()
    other = made.add(give(lambda: pictures(height=16, width=8), "LATENT"))
    made.ksampler(other(), made.source, made.empty, 3.0, model=model())
    assert "Sample from the mirror's own noise" in failure(run_graph, made)
    made, mirror, model = scene()
    again = made.add(patched([]), model=model(), mirror=made.invert(Scene.PAPER)(2))
    made.ksampler(mirror(0), made.source, made.empty, 3.0, model=again())
    assert "attention control by another mirror" in failure(run_graph, made)
    made, mirror, model = scene()
    both = made.add("ConditioningCombine", conditioning_1=made.source, conditioning_2=made.text("a dog"))
    made.ksampler(mirror(0), both(), made.empty, 3.0, model=model())
    assert "several parts or areas" in failure(run_graph, made)


def test_an_interrupt_leaves_nothing(run_graph, patched):
    scene = Scene(unet, steps=4)
    mirror = scene.invert(Scene.NONE)
    patch = scene.add(patched([]), model=scene.model, mirror=mirror(2))
    made = sampled(scene, "KSamplerAdvanced", patch(), mirror)
    stopped = run_graph(scene, cached=True, interrupt_when=lambda event, data: (
        event == "progress" and data["node"] == made.id and data["value"] >= 2))
    assert stopped.interrupted
    run = run_graph(scene, cached=True)
    for output in (scene.model, patch()):
        options = run.outputs[output[0]][0].model_options["transformer_options"]
        assert "mirror_reference" not in options and "sample_sigmas" not in options
    assert "mirror_source" not in run.outputs[scene.model[0]][0].model_options["transformer_options"]


def shared_walk(host, cfg=3.0):
    """A node MODEL, before, after, LATENT -> the edit's latents: both sides walked under the same fresh noise."""
    denoiser, attach = (host.pack_module(f"nodes.host.{name}") for name in ("denoiser", "attach"))
    Branch = host.pack_module("nodes.host.branches").Branch

    def walk(model, before, after, negative, latent):
        sigmas, generator = torch.tensor([8.0, 3.0, 1.0, 0.0]), torch.Generator().manual_seed(0)

        def algorithm(on):
            clean = edit = on.latent_in(latent["samples"])
            texts = [on.prompts[name].entries for name in ("before", "after", "negative")]
            for sigma, sigma_next in zip(on.sigmas[:-1], on.sigmas[1:], strict=True):
                noise = sigma * torch.randn(clean.shape, generator=generator)
                source = on.denoise(clean + noise, sigma, texts[0], branch=Branch.SOURCE)
                edited = on.denoise(edit + noise, sigma, texts[1], texts[2], cfg, branch=Branch.EDIT)
                edit = edit + (sigma_next - sigma) * (edit - edited - clean + source) / sigma
            return edit

        prompts = {"positive": before, "before": before, "after": after, "negative": negative}
        edit, count = denoiser.run(model, latent["samples"], sigmas, prompts, algorithm, evaluations=9,
                                   reference=attach.SHARED_NOISE)
        return edit, count.forwards

    kinds = {"model": "MODEL", "before": "CONDITIONING", "after": "CONDITIONING", "negative": "CONDITIONING",
             "latent": "LATENT"}
    return node(walk, ("LATENT", "INT"), kinds)


@pytest.mark.parametrize("with_mirror", [False, True])
def test_a_walk_under_shared_noise_is_its_own_source(host, run_graph, patched, with_mirror):
    """What controls read is the source side's own evaluation at this very step; it takes no pass more."""
    seen, scene = [], Scene(steps=4)
    mirror = scene.invert(Scene.NONE)(2) if with_mirror else None
    plain = scene.add(shared_walk(host), model=scene.model, before=scene.source, after=scene.text("a dog"),
                      negative=scene.source, latent=scene.latent)
    given = {"mirror": mirror} if with_mirror else {}
    model = scene.add(patched(seen, (0, 1), alone=not with_mirror), model=scene.model, **given)
    read = scene.add(shared_walk(host), model=model(), before=scene.source, after=scene.text("a dog"),
                     negative=scene.source, latent=scene.latent)
    run = run_graph(scene)
    assert torch.equal(run.outputs[read.id][0], run.outputs[plain.id][0])
    assert run.outputs[read.id][1] == run.outputs[plain.id][1] == 3 * 3
    assert len(seen) == 3 * LAYERS * 2
    text, clean = run.outputs[scene.source[0]][0][0][0], run.outputs[scene.latent[0]][0]["samples"] * 0.18215
    generator = torch.Generator().manual_seed(0)
    for i, sigma in enumerate(torch.tensor([8.0, 3.0, 1.0])):
        x = clean + sigma * torch.randn(clean.shape, generator=generator)
        expected = queries(run.outputs[scene.model[0]][0], x, sigma, text)
        for side in (0, 1):  # the negative says the same as the source
            for a, b in zip([entry[3] for entry in seen if entry[:2] == (i, side)], expected, strict=True):
                assert torch.allclose(a, b, rtol=0, atol=1e-4)


def test_under_shared_noise_another_negative_takes_a_row_of_its_own(host, run_graph, patched):
    seen, scene = [], Scene()
    model = scene.add(patched(seen, (0, 1), alone=True), model=scene.model)
    made = scene.add(shared_walk(host), model=model(), before=scene.source, after=scene.text("a dog"),
                     negative=scene.empty, latent=scene.latent)
    run = run_graph(scene)
    assert run.outputs[made.id][1] == 3 * 4
    x = run.outputs[scene.latent[0]][0]["samples"] * 0.18215
    x = x + 8 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    empty = run.outputs[scene.empty[0]][0][0][0]
    expected = queries(run.outputs[scene.model[0]][0], x, torch.tensor(8.0), empty)
    for a, b in zip([entry[3] for entry in seen if entry[:2] == (0, 1)], expected, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-4)


def test_a_control_without_a_mirror_needs_a_walk_with_a_source(run_graph, patched):
    seen, scene = [], Scene(steps=2)
    mirror = scene.invert(Scene.NONE)
    model = scene.add(patched(seen, alone=True), model=scene.model)
    made = sampled(scene, "MirrorSample", model(), mirror, exact="source")
    run_graph(scene)
    assert len([entry for entry in seen if entry[1] == 0]) >= 2 * LAYERS, "MirrorSample has a mirror of its own"
    scene.ksampler(mirror(0), scene.source, scene.empty, 3.0, model=model())
    assert "Connect `mirror` to the control node" in failure(run_graph, scene) and made


def test_a_mirror_that_was_loaded_again_is_the_same(run_graph, patched):
    scene = Scene(steps=2)
    mirror = scene.invert(Scene.NONE)
    again = scene.add(node(lambda m: type(m)(**{k: copy.deepcopy(v) for k, v in vars(m).items()}), ("MIRROR",),
                           {"m": "MIRROR"}), m=mirror(2))
    model = scene.add(patched([]), model=scene.model, mirror=mirror(2))
    model = scene.add(patched([]), model=model(), mirror=again())
    scene.ksampler(mirror(0), scene.source, scene.empty, 3.0, model=model())
    run_graph(scene)


def test_a_sampler_that_takes_no_step_takes_none_beside_a_control(run_graph):
    """Split Sigmas at 0 leaves one level before it."""
    scene = Scene(steps=3)
    mirror = scene.invert(Scene.NONE)
    model = scene.add("MirrorInversionGuidance", model=scene.model, mirror=mirror(2), step_size=0.5,
                      dilation=1, threshold="quantile", threshold__quantile=0.7, threshold__over="each picture")()
    first = scene.add("SplitSigmas", sigmas=mirror(3), step=0)
    made = scene.add("SamplerCustom", model=model, add_noise=False, noise_seed=0, cfg=2.0, positive=scene.source,
                     negative=scene.empty, sampler=scene.add("KSamplerSelect", sampler_name="euler")(),
                     sigmas=first(0), latent_image=mirror(0))
    assert run_graph(scene).outputs[made.id][0]["samples"].shape == (1, 4, 8, 8)
