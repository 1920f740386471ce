"""MirrorMutualSelfAttention in the real executor, against straight-line code on the same network."""

from unittest import mock

import pytest
import torch
from support import straight_line, tiny
from support.straight_line import CROSS
from support.tiny import Scene, pictures, sdxl, unet
from torch.nn.functional import interpolate

from harness.results import GraphFailed
from mirror_ops.attention.mutual_self_attention import masked_mutual, mutual

SOURCE, TARGET = "a photo of a cat sitting on a car", "a photo of a dog sitting on a car"
CAT, STEPS, FIRST, LAYER = 5, 4, 1, 3


class Edit(Scene):
    """A mirror, a controlled model, and an edit of it by a stock sampler."""

    def __init__(self, make=unet, **changes):
        super().__init__(make, lambda: pictures(2, height=8, width=12), STEPS)
        self.target = self.text(TARGET)
        self.mirror = self.invert(Scene.NONE)
        self.control = self.controlled(**changes)

    def controlled(self, **changes):
        inputs = {"model": self.model, "mirror": self.mirror(2), "first_step": FIRST, "first_layer": LAYER,
                  "positive": "source", "negative": "source"}
        return self.add("MirrorMutualSelfAttention", **{**inputs, **changes})

    def stock(self, model=None, cfg=3.0):
        return self.ksampler(self.mirror(0), self.target, self.empty, cfg, model=model or self.control())


def edited(run, output):
    return run.outputs[output.id][0]["samples"] * 0.18215


def softmax(q, k):
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)


def answer(mode, q, k, v, p, k_source, v_source):
    """(p, v) of one branch, always with twice the keys, so that all branches have as many."""
    if mode == "joint":
        return softmax(q, torch.cat([k_source, k], dim=2)), torch.cat([v_source, v], dim=2)
    if mode == "source":
        p, v = softmax(q, k_source), v_source
    return torch.cat([p, p], dim=-1) / 2, torch.cat([v, v], dim=2)


def mutual_control(positive, negative):
    """MasaCtrl on the four rows [source without words, edit without words, source, edit]."""
    def control(step, kind, n, q, k, v, p):
        if kind == CROSS or step < FIRST or n < LAYER:
            return p, v
        rows = [list(parts) for parts in zip(*(t.chunk(4) for t in (q, k, v, p)), strict=True)]
        modes = ("none", negative, "none", positive)
        answers = [answer(mode, *row, *rows[i - i % 2][1:3]) for i, (mode, row) in enumerate(zip(modes, rows,
                                                                                                    strict=True))]
        return torch.cat([a[0] for a in answers]), torch.cat([a[1] for a in answers])

    return control


def reference(scene, run, control, **changes):
    mirror, model = run.outputs[scene.mirror.id][2], run.outputs[scene.model[0]][0]
    target, empty = (run.outputs[text[0]][0][0][0] for text in (scene.target, scene.empty))
    return straight_line.walk(model, mirror, target, empty, 3.0, control, **changes)


def close(a, b):
    """Edits in model space, which differ by about 0.01."""
    return torch.allclose(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("positive, negative", [("source", "source"), ("joint", "none"), ("none", "joint")])
def test_the_whole_walk_is_masactrl(run_graph, positive, negative):
    scene = Edit(positive=positive, negative=negative)
    made, plain = scene.stock(), scene.stock(scene.model)
    mirrored = scene.sample(scene.mirror, model=scene.control(), positive=scene.target, cfg=3.0, negative=scene.empty)
    run = run_graph(scene)
    expected = reference(scene, run, mutual_control(positive, negative))
    assert close(edited(run, made), expected) and close(edited(run, mirrored), expected)
    assert (edited(run, plain) - expected).abs().max() > 1e-3
    wrong = reference(scene, run, mutual_control(positive, "source" if negative != "source" else "none"))
    assert (wrong - expected).abs().max() > 1e-3, "the negative's mode matters"


def deep():
    """Several transformers in a block, as SDXL has."""
    with mock.patch.dict(tiny.UNET, transformer_depth=[1, 2], transformer_depth_output=[1, 1, 2, 2],
                         transformer_depth_middle=3):
        return unet()


@pytest.mark.every_host
def test_blocks_of_several_transformers(run_graph, host):
    attention = host.pack_module("nodes.host.attention")
    inputs, middle = [("input", 1, 0), ("input", 3, 0), ("input", 3, 1)], [("middle", 0, n) for n in range(3)]
    outputs = [("output", n, k) for n in range(4) for k in range(2 if n < 2 else 1)]
    assert attention.attention_layers(deep(), "attn1") == inputs + middle + outputs
    scene = Edit(deep)
    made, plain = scene.stock(), scene.stock(scene.model)
    run = run_graph(scene)
    expected = reference(scene, run, mutual_control("source", "source"))
    assert close(edited(run, made), expected) and not close(edited(run, plain), expected)


def test_the_whole_walk_is_proxmasactrl(run_graph):
    """The source under its own prompt in both halves, the edit's guidance thresholded by a quantile of its own."""
    scene = Edit(source_negative="the source prompt")
    threshold = {"threshold": "quantile", "threshold__quantile": 0.6, "threshold__over": "each picture"}
    proximal = scene.add("MirrorProximalGuidance", model=scene.control(), proximal_map="soft", **threshold)
    made, masa = scene.stock(proximal()), scene.stock()
    run = run_graph(scene)

    def guide(cond, uncond):
        delta = cond - uncond
        tau = torch.stack([torch.quantile(one.abs(), 0.6) for one in delta]).reshape(-1, 1, 1, 1)
        return uncond + 3.0 * delta.sign() * (delta.abs() - tau).relu()

    control, own = mutual_control("source", "source"), run.outputs[scene.source[0]][0][0][0]
    expected = reference(scene, run, control, source_empty=own, guide=guide)
    assert close(edited(run, made), expected)
    assert close(edited(run, masa), reference(scene, run, control, source_empty=own))
    assert not close(edited(run, masa), expected)
    assert (reference(scene, run, control, guide=guide) - expected).abs().max() > 1e-3, "the source's prompt matters"


class Masked:
    """The mask-guided variant: the words' maps of the coarse layers that this pass has run so far."""

    def __init__(self, threshold):
        self.threshold, self.maps, self.shares = threshold, {}, []

    def __call__(self, step, kind, n, q, k, v, p):
        if kind == CROSS:
            if p.shape[2] == 4 * 6:
                self.maps.setdefault(step, []).append(p[len(p) // 2 :, :, :, CAT].mean(dim=1).reshape(-1, 1, 4, 6))
            return p, v
        if step < FIRST or n < LAYER:
            return p, v
        heat = torch.stack(self.maps[step]).mean(dim=0)
        low, high = heat.amin(dim=(2, 3), keepdim=True), heat.amax(dim=(2, 3), keepdim=True)
        size = (4, 6) if q.shape[2] == 24 else (8, 12)
        source, changed = interpolate((heat - low) / (high - low), size=size).flatten(1).chunk(2)
        inside = (source >= self.threshold)[:, None, None]
        self.shares.append(inside.float().mean())
        p, v = list(p.chunk(4)), list(v.chunk(4))
        for row in (1, 3):
            logits = q.chunk(4)[row] @ k.chunk(4)[row - 1].mT / q.shape[-1] ** 0.5
            there = logits.masked_fill(~inside, -1e30).softmax(dim=-1)
            elsewhere = logits.masked_fill(inside, -1e30).softmax(dim=-1)
            p[row], v[row] = changed[:, None, :, None] * there + (1 - changed[:, None, :, None]) * elsewhere, v[row - 1]
        return torch.cat(p), torch.cat(v)


def test_the_masked_variant_is_the_papers(run_graph):
    texts = {"source_text": SOURCE, "target_text": TARGET, "mask_words": "cat, dog", "mask_threshold": 0.4}
    scene = Edit(**texts)
    scene[scene.control.id]["inputs"]["clip"] = scene.clip
    made = scene.stock()
    unmasked = scene.stock(scene.controlled()())
    run = run_graph(scene)
    control = Masked(0.4)
    expected = reference(scene, run, control)
    assert 0.05 < torch.stack(control.shares).mean() < 0.95
    assert close(edited(run, made), expected)
    assert (edited(run, unmasked) - expected).abs().max() > 1e-3


def test_beside_prompt_to_prompt(run_graph):
    """Both on one model: maps from the source for the words, keys and values from the source for the picture."""
    scene = Edit()
    words = {"mirror": scene.mirror(2), "clip": scene.clip, "source_text": SOURCE, "target_text": TARGET,
             "mode": "replace", "cross_until": 0.8, "self_until": 0.0}
    both = scene.add("MirrorPromptToPrompt", model=scene.control(), **words)
    first = scene.add("MirrorPromptToPrompt", model=scene.model, **words)
    other = scene.controlled(model=first())
    made = [scene.stock(model()) for model in (both, other)]
    run = run_graph(scene)
    masa = mutual_control("source", "source")

    def control(step, kind, n, q, k, v, p):
        if kind == CROSS and step < int(0.8 * (STEPS + 1)):
            rows = list(p.chunk(4))
            return torch.cat([*rows[:3], rows[2]]), v
        return masa(step, kind, n, q, k, v, p)

    expected = reference(scene, run, control)
    for one in made:
        assert close(edited(run, one), expected)
    assert (expected - reference(scene, run, masa)).abs().max() > 1e-3


@pytest.mark.parametrize("make", [unet, sdxl])
def test_looking_at_itself_changes_nothing(run_graph, make):
    scene = Edit(make, positive="none", negative="none")
    looking = scene.controlled(first_step=0, first_layer=0)
    made = [scene.stock(model) for model in (scene.model, scene.control(), looking())]
    run = run_graph(scene)
    plain, itself, picture = (edited(run, one) for one in made)
    assert torch.equal(plain, itself) and (plain - picture).abs().max() > 1e-3


def test_the_costs_are_rows_of_the_network(run_graph):
    """A step: two of the edit, one of the source, and one more where the sampler's negative looks at it."""
    scene = Edit()
    ways = [scene.controlled(**way) for way in ({}, {"source_negative": "the source prompt"}, {"negative": "none"})]
    made = [scene.sample(scene.mirror, model=way(), positive=scene.target, cfg=3.0, negative=scene.empty,
                         exact="source") for way in ways]
    run = run_graph(scene)
    assert [run.outputs[one.id][2] for one in made] == [STEPS * rows for rows in (4, 3, 3)]


@pytest.mark.parametrize("changes, words", [
    ({"first_layer": tiny.LAYERS}, f"this model's {tiny.LAYERS} self-attention layers"),
    ({"first_step": 4}, "the 4 steps of the walk"),
    ({"mask_words": "cat"}, "connect `clip` and give both texts"),
])
def test_what_does_not_fit_is_named(run_graph, changes, words):
    scene = Edit(**changes)
    with pytest.raises(GraphFailed) as caught:
        run_graph(scene)
    assert words in caught.value.text


@pytest.mark.parametrize("texts, named", [((TARGET, TARGET), "source_text"), ((SOURCE, SOURCE), "target_text")])
def test_texts_that_the_prompts_were_not_encoded_from_are_named(run_graph, texts, named):
    """As many tokens as the right ones have: only the encodings tell."""
    source, target = texts
    scene = Edit(source_text=source, target_text=target, mask_words="car")
    scene[scene.control.id]["inputs"]["clip"] = scene.clip
    scene.stock()
    with pytest.raises(GraphFailed, match=f"`{named}` .* is not the text"):
        run_graph(scene)


def test_attending_to_the_same_twice_is_attending_once():
    generator = torch.Generator().manual_seed(0)
    own, source = (torch.randn(2, 6, 8, generator=generator) for _ in range(2))
    assert torch.equal(mutual(own, source, "none"), own)
    assert torch.equal(mutual(own, source[:1], "source")[1], source[0])
    assert mutual(own, source, "joint", twice=True).shape == (2, 12, 8)
    q = torch.randn(2, 6, 8, generator=generator)
    once, twice = (softmax(q, k) @ k for k in (source, mutual(own, source, "source", twice=True)))
    assert torch.allclose(once, twice, atol=1e-6)


def test_a_mask_of_everything_is_no_mask():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 6, 8, generator=generator) for _ in range(3))
    everything = torch.ones(2, 6)
    heads = [x.unflatten(-1, (2, 4)).transpose(1, 2) for x in (q, k, v)]
    plain = (softmax(*heads[:2]) @ heads[2]).transpose(1, 2).flatten(2)
    assert torch.allclose(masked_mutual(q, k, v, 2, everything, everything), plain, atol=1e-6)


def test_looks_that_find_the_region_leave_no_maps_in_the_edit(host, run_graph, monkeypatch):
    """Where all is found, the masked variant's edit is the one that looks for no region."""
    sample = host.pack_module("nodes.edit.sample")
    find = sample.edited_region

    def all_of_it(look, sigmas, latents, *rest):
        find(look, sigmas, latents, *rest)
        return torch.ones_like(latents[0, :, :1])

    monkeypatch.setattr(sample, "edited_region", all_of_it)
    monkeypatch.setattr(sample, "walked_region", lambda first, *rest: lambda i, difference: first)
    scene = Scene(tiny.deep, steps=6)
    mirror = scene.invert(Scene.NONE)
    model = scene.add("MirrorMutualSelfAttention", model=scene.model, first_step=0, first_layer=0, positive="source",
                      negative="source", clip=scene.clip, mask_words="cat, dog", source_text=SOURCE, target_text=TARGET)
    target = scene.text(TARGET)
    found, whole, plain = (
        scene.sample(mirror, model=m, positive=target, cfg=3.0, region=region)
        for m, region in ((model(), "auto"), (model(), "everywhere"), (scene.model, "everywhere")))
    run = run_graph(scene)
    found, whole, plain = (edited(run, made) for made in (found, whole, plain))
    assert (found - whole).norm() < 1e-4 * (plain - whole).norm()
