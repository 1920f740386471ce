"""The source branch beside an edit: the network at the mirror's own latents, at the very step, in any sampler."""

import pytest
import torch

from harness.results import GraphFailed
from harness.tiny import Scene, give, node, pictures, sdxl, unet

SAMPLERS = ["KSamplerAdvanced", "SamplerCustomAdvanced", "MirrorSample"]


@pytest.fixture
def patched(host):
    """patched(seen, **attach's) -> the id of a node MODEL, MIRROR -> MODEL that reads each layer's source queries."""
    source, attention = (host.pack_module(f"nodes.host.{name}") for name in ("reference_pass", "attention"))

    def make(seen, sides=(0,), conditioning=None):
        def attend(q, k, v, extra, onward):
            reference = source.get_reference(extra)
            if reference.recording:
                reference.keep("test", extra, lambda rows: q[rows].clone())
            elif not source.is_source(extra):
                for side, rows in reference.rows(extra, len(q)):
                    kept = reference.read("test", extra, side)
                    seen.append((reference.step, side, source.layer_of(extra), kept, len(q[rows])))
            return onward(q, k, v, extra)

        def patch(model, mirror):
            model = model.clone()
            source.attach(model, mirror, conditioning, sides)
            attention.replace_attention(model, "attn2", attend)
            return model

        return node(patch, ("MODEL",), {"model": "MODEL", "mirror": "MIRROR"})

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
    assert len(seen) == 4 * 7 * 2 and len({entry[:3] for entry in seen}) == len(seen)
    for i in range(4):
        for side, text in ((0, trajectory.embeddings[i]), (1, empty)):
            expected = queries(plain, trajectory.latents[i], trajectory.sigmas[i], text)
            mine = [entry[3] for entry in seen if entry[:2] == (i, side)]
            for a, b in zip(mine, expected, strict=True):
                assert torch.allclose(a, b, rtol=0, atol=1e-4)
    assert (seen[0][3] - seen[-14][3]).abs().max() > 1e-2, "steps differ"


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
    assert [entry[1] for entry in seen] == [0] * 14
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
        assert "mirror_beside" not in options and "sample_sigmas" not in options
    assert "mirror_source" not in run.outputs[scene.model[0]][0].model_options["transformer_options"]
