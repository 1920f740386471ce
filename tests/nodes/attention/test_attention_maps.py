"""MirrorAttentionMaps in the real executor, and the reading of cross-attention below it."""

import numpy as np
import pytest
import torch
from support.tiny import LAYERS, Scene, flow, pictures, sdxl, unet

from harness.graph import give
from harness.results import GraphFailed
from mirror_ops.measure.colormap import colours, draw_maps, unit

TEXT = "a photo of a cat sitting on a car"
CAT, CAR = 5, 9  # their places among the tokens, after the begin mark


def maps(scene, mirror, **changes):
    inputs = {"model": scene.model, "mirror": mirror(2), "clip": scene.clip, "text": TEXT, "words": "cat, car"}
    return scene.add("MirrorAttentionMaps", **{**inputs, **changes})


def layers(model):
    return [part.attn2 for part in model.model.diffusion_model.modules() if hasattr(part, "attn2")]


@pytest.fixture
def recorded():
    """Records what the cross-attention projections of a model give: [(q, k), ...] in order of the calls."""
    hooks, calls = [], []

    def record(model):
        for layer in layers(model):
            pair = {}
            hooks.append(layer.to_q.register_forward_hook(lambda m, a, out, pair=pair: pair.update(q=out)))
            hooks.append(layer.to_k.register_forward_hook(
                lambda m, a, out, pair=pair: calls.append((pair.pop("q"), out))))
        return calls

    yield record
    for hook in hooks:
        hook.remove()


def test_maps_are_the_softmax_of_the_networks_own_queries_and_keys(run_graph, recorded):
    scene = Scene(steps=3)
    mirror = scene.invert(Scene.PAPER)
    model = run_graph(scene, cached=True).outputs[scene.model[0]][0]
    calls = recorded(model)
    made = maps(scene, mirror)
    run = run_graph(scene, cached=True)
    grid, masks = run.outputs[made.id]
    assert len(calls) == 3 * 2 * LAYERS, "three steps, two prompts"
    rewritten = [calls[LAYERS * n : LAYERS * (n + 1)] for n in (1, 3, 5)]
    expected = torch.zeros(2, 8, 8, dtype=torch.float64)
    for step in rewritten:
        for q, k in step:
            q, k = (x[0].double().reshape(len(x[0]), 4, -1) for x in (q, k))
            for head in range(4):
                weights = torch.exp(q[:, head] @ k[:, head].T / q.shape[-1] ** 0.5)
                weights = weights / weights.sum(dim=1, keepdim=True)
                side = int(len(q) ** 0.5)
                here = weights[:, [CAT, CAR]].T.reshape(1, 2, side, side)
                expected += torch.nn.functional.interpolate(here, size=(8, 8), mode="bilinear")[0] / (4 * 7 * 3)
    expected = torch.nn.functional.interpolate(expected[None], size=(64, 64), mode="bilinear")[0]
    low, high = expected.amin(dim=(1, 2), keepdim=True), expected.amax(dim=(1, 2), keepdim=True)
    assert torch.allclose(masks.double(), (expected - low) / (high - low), rtol=0, atol=1e-4)
    assert grid.ndim == 4 and len(grid) == 1 and grid.min() >= 0 and grid.max() <= 1
    assert made.id in run.ui and run.ui[made.id]["images"]


@pytest.mark.every_host
def test_watching_changes_nothing_and_earlier_replacements_go_on(host):
    attention = host.pack_module("nodes.host.attention")
    model, latent = unet(), pictures(2)["samples"]
    text = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(0))

    def walk(patcher):
        positive, negative = [[text, {}]], [[text.flip(1), {}]]
        import comfy.sample
        noise = torch.zeros_like(latent)
        with torch.inference_mode():
            return comfy.sample.sample(patcher, noise, 3, 4.0, "euler", "normal", positive, negative, latent, seed=0,
                                       disable_pbar=True)

    rows, seen = [], []

    def see(q, k, extra_options):
        rows.append((attention.positive_rows(extra_options, len(q)), len(q)))
        seen.append((extra_options["block"], extra_options["block_index"], float(extra_options["sigmas"][0])))

    watched = model.clone()
    attention.watch_cross_attention(watched, see)
    plain = walk(model)
    assert torch.equal(walk(watched), plain)
    assert len(set(seen)) == len(seen) == LAYERS * 3
    assert all(mine == [2, 3] and all_rows == 4 for mine, all_rows in rows), "negatives come first in the batch"

    silenced = model.clone()
    silenced.set_model_attn2_replace(lambda q, k, v, extra_options: torch.zeros_like(q), "middle", 0)
    both = silenced.clone()
    seen.clear()
    attention.watch_cross_attention(both, see)
    assert torch.equal(walk(both), walk(silenced)) and not torch.equal(walk(both), plain)
    assert len(seen) == 2 * LAYERS * 3, "the replaced layer is watched too"


def test_a_long_prompt_a_phrase_and_every_occurrence_are_found(host):
    words = host.pack_module("nodes.host.words")
    from support.tiny import clip
    text = " ".join(["a photo of a red cat"] * 14)  # 84 words: two chunks of 77 tokens
    tower = clip()
    assert words.length(tower, text) == 154
    found = words.positions(tower, text, ["red cat", "photo"])
    assert len(found[0]) == 28 and len(found[1]) == 14
    assert found[1][0] == 2 and found[0][:2] == [5, 6]
    assert found[1][13] == 77 + 1 + (13 * 6 + 1 - 75), "the second chunk has a begin mark of its own"
    assert words.positions(tower, "(red:1.3) cat", ["red"]) == [[1]]
    with pytest.raises(ValueError, match="`dog` is not in the text"):
        words.positions(tower, text, ["dog"])


@pytest.mark.parametrize("make", [unet, sdxl])
def test_pictures_of_a_batch_and_other_sizes(run_graph, make):
    together = pictures(2, height=8, width=12)["samples"]
    scene = Scene(make, lambda: {"samples": together}, steps=3)
    both = maps(scene, scene.invert(Scene.PAPER))
    alone = []
    for k in range(2):
        one = scene.add(give(lambda k=k: {"samples": together[k : k + 1]}, "LATENT"))
        alone.append(maps(scene, scene.invert(Scene.PAPER, latent=one())))
    run = run_graph(scene)
    grid, masks = run.outputs[both.id]
    assert masks.shape == (4, 64, 96) and len(grid) == 2
    for k in range(2):
        assert torch.allclose(run.outputs[alone[k].id][1], masks[[k, 2 + k]], rtol=0, atol=1e-2)
    assert (masks[0] - masks[2]).abs().max() > 0.05, "two words look at different places"


def test_the_null_text_mirror_shows_one_row(run_graph):
    scene = Scene(steps=3)
    one = maps(scene, scene.invert(Scene.NULL_TEXT, cfg=3.0))
    two = maps(scene, scene.invert(Scene.PAPER, cfg=3.0))
    beside = maps(scene, scene.invert(Scene.PAPER), image=scene.add("EmptyImage", width=64, height=64, batch_size=1,
                                                                   color=0xFF0000)())
    run = run_graph(scene)
    heights = [run.outputs[made.id][0].shape[1] for made in (one, two)]
    assert heights[1] - heights[0] > 190
    assert run.outputs[beside.id][0].shape[2] - run.outputs[two.id][0].shape[2] > 190
    assert (run.outputs[beside.id][0][0] == torch.tensor([1.0, 0.0, 0.0])).all(dim=-1).sum() == 2 * 192 * 192


def test_what_cannot_be_read_is_refused(run_graph):
    def failure(scene, **changes):
        maps(scene, scene.invert(Scene.NONE), **changes)
        with pytest.raises(GraphFailed) as caught:
            run_graph(scene)
        return caught.value.text

    assert "`dog` is not in the text" in failure(Scene(steps=2), words="dog")
    assert "is not the text that the mirror's prompt" in failure(Scene(steps=2), text=" ".join([TEXT] * 9))
    assert "is not the text that the mirror's prompt" in failure(Scene(steps=2), text=TEXT.replace("cat", "dog"))
    assert "Raise `largest`" in failure(Scene(steps=2), largest=2)
    assert "`words` is empty" in failure(Scene(steps=2), words=" , ")
    still = Scene(flow, lambda: pictures(channels=16, scale=1.0), steps=2, scheduler="simple")
    assert "SD3 has no cross-attention" in failure(still)


def test_nothing_is_left_on_the_model(run_graph):
    scene = Scene(steps=3)
    mirror = scene.invert(Scene.NONE)
    model = run_graph(scene, cached=True).outputs[scene.model[0]][0]
    before = (str(model.model_options), model.patches_uuid)
    made = maps(scene, mirror)
    stopped = run_graph(scene, cached=True, interrupt_when=lambda event, data: (
        event == "progress" and data["node"] == made.id and data["value"] >= 2))
    assert stopped.interrupted and (str(model.model_options), model.patches_uuid) == before
    again = maps(scene, mirror, largest=31)
    run = run_graph(scene, cached=True)
    assert (str(model.model_options), model.patches_uuid) == before
    assert torch.equal(run.outputs[made.id][1], run.outputs[again.id][1])


def test_the_sheet_is_drawn_from_its_maps():
    ramp = np.linspace(0, 1, 16).reshape(4, 4)
    assert colours(ramp).shape == (4, 4, 3)
    brightness = colours(np.linspace(0, 1, 50)).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(brightness) > 0).all()
    assert unit(ramp * 7 + 3).min() == 0 and unit(ramp * 7 + 3).max() == 1 and unit(np.ones((2, 2))).max() == 0
    sheet = draw_maps({"one": [ramp, 1 - ramp], "two": [ramp, ramp]}, ["cat", "dog"], tile=(40, 60))
    other = draw_maps({"one": [ramp, ramp], "two": [ramp, ramp]}, ["cat", "dog"], tile=(40, 60))
    assert sheet.shape == (26 + 2 * 46, 92 + 2 * 66, 3)
    changed = (sheet != other).any(axis=-1)
    rows, columns = changed.any(axis=1).nonzero()[0], changed.any(axis=0).nonzero()[0]
    assert (rows.min(), rows.max()) == (26, 65) and (columns.min(), columns.max()) == (92 + 66, 92 + 66 + 59)
