"""MirrorPromptToPrompt in the real executor, against straight-line code on the same network."""

import re

import pytest
import torch
from support import straight_line
from support.straight_line import CROSS
from support.tiny import Scene, clip, pictures, sdxl, unet
from torch.nn.functional import interpolate, max_pool2d

from harness.graph import node
from harness.results import GraphFailed

SOURCE = "a photo of a cat sitting on a car"
SWAPPED, LONGER, ADDED = (f"a photo of a {words} sitting on a car" for words in ("dog", "zebra", "red cat"))
CAT = 5  # its place among the tokens; "zebra" is five tokens, each other word one
STEPS = 5


def wide():
    """A latent that is not square, of two pictures."""
    return pictures(2, height=8, width=12)


class Edit(Scene):
    """A mirror, a controlled model, and an edit of it by a stock sampler."""

    def __init__(self, target, make=unet, latent=wide, rewriter=Scene.NONE, source=SOURCE, **changes):
        super().__init__(make, latent, STEPS)
        self.source, self.target = self.text(source), self.text(target)
        self.mirror = self.invert(rewriter)
        self.control = self.controlled(source, target, **changes)

    def controlled(self, source, target, **changes):
        inputs = {"model": self.model, "mirror": self.mirror(2), "clip": self.clip, "source_text": source,
                  "target_text": target, "mode": "auto", "cross_until": 0.4, "self_until": 0.6}
        return self.add("MirrorPromptToPrompt", **{**inputs, **changes})

    def stock(self, model=None, cfg=3.0, **changes):
        model = self.control() if model is None else model
        return self.ksampler(self.mirror(0), self.target, self.empty, cfg, model=model, **changes)


def reference(scene, run, edit, *, cross=0.4, own=0.6, alpha=None, factors=None, blend=None, cfg=3.0):
    """The same edit by straight-line code. edit(source maps, target maps) -> maps; alpha [T, tokens]."""
    mirror, model = run.outputs[scene.mirror.id][2], run.outputs[scene.model[0]][0]
    target, empty = (run.outputs[text[0]][0][0][0] for text in (scene.target, scene.empty))
    if alpha is None:
        alpha = torch.zeros(STEPS, 77)
        alpha[: int(cross * (STEPS + 1))] = 1
    factors = torch.ones(77) if factors is None else factors

    def control(step, kind, layer, q, k, v, p):
        without, picture, changed = p[: len(p) // 2], *p[len(p) // 2 :].chunk(2)
        if kind == CROSS:
            before = changed
            changed = alpha[step] * edit(picture, changed) * factors + (1 - alpha[step]) * changed
            if blend is not None:
                blend.see(step, picture, changed if blend.injected else before)
        elif step < int(own * STEPS):
            changed = picture
        return torch.cat([without, picture, changed]), v

    after = None if blend is None else blend.after
    return straight_line.walk(model, mirror, target, empty, cfg, control, after=after)


def edited(run, output):
    return run.outputs[output.id][0]["samples"] * 0.18215


def swapped(picture, changed):
    return picture


def lengthened(picture, changed):
    """"cat" shared out over five tokens, and what follows moved along."""
    weights = torch.zeros(77, 77)
    for i in range(CAT):
        weights[i, i] = 1
    weights[CAT, CAT : CAT + 5] = 1 / 5
    for i in range(CAT + 1, 77):
        weights[i, min(i + 4, 76)] = 1
    weights[73:, 76] = 0
    weights[72:, 76] = 1
    return picture @ weights


def added(picture, changed):
    """"red", the sixth token, keeps its own map; those after it come from one token before; padding from itself."""
    columns = [changed[..., j] if j == CAT else picture[..., j - (CAT < j < 12)] for j in range(77)]
    return torch.stack(columns, dim=-1)


def close(a, b):
    """Edits in model space, whose differences from one another are about 0.03."""
    return torch.allclose(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("target, edit", [(SWAPPED, swapped), (LONGER, lengthened), (ADDED, added)])
def test_the_whole_walk_is_the_papers(run_graph, target, edit):
    scene = Edit(target, rewriter=Scene.PAPER)
    made, plain = scene.stock(), scene.stock(scene.model)
    run = run_graph(scene)
    expected = reference(scene, run, edit)
    assert close(edited(run, made), expected)
    assert (edited(run, plain) - expected).abs().max() > 0.02
    other = reference(scene, run, swapped if edit is not swapped else added)
    assert (other - expected).abs().max() > 5e-3, "the mapping matters"


def test_mirror_sample_does_as_a_stock_sampler(run_graph):
    scene = Edit(SWAPPED)
    made = scene.stock()
    pair = [scene.sample(scene.mirror, model=scene.control(), positive=scene.target, cfg=3.0, negative=scene.empty,
                         exact=exact) for exact in ("off", "source")]
    run = run_graph(scene)
    for sampled in pair:
        assert close(edited(run, sampled), edited(run, made))
    plain = run.outputs[scene.mirror.id][2].reconstruction[-1] / 0.18215
    assert torch.allclose(run.outputs[pair[0].id][1]["samples"], plain, atol=1e-3), "the source branch is left alone"


def test_reweighting_and_windows_of_words(run_graph):
    scene = Edit(ADDED, reweight="red cat: 3\nphoto: -1", windows="car: 0.35 0.9\nsitting: 0 0.2", self_until=0.0)
    made = scene.stock()
    run = run_graph(scene)
    factors, alpha = torch.ones(77), torch.zeros(STEPS, 77)
    factors[[CAT, CAT + 1]], factors[2] = 3, -1
    alpha[:2] = 1
    alpha[:, 10] = torch.tensor([0, 0, 1, 1, 1])
    alpha[:, 7] = torch.tensor([1, 0, 0, 0, 0])
    expected = reference(scene, run, added, own=0.0, alpha=alpha, factors=factors)
    assert close(edited(run, made), expected)
    assert (reference(scene, run, added, own=0.0, alpha=alpha) - expected).abs().max() > 0.02


class Blend:
    """LocalBlend as straight-line code, on the layers that are half as fine as the latent: the tiny network's coarsest.

    words: (tokens in the source, in the target), left: the same for words to leave alone.
    """

    def __init__(self, words, left=None, injected=False, threshold=0.3, first=1):
        self.words, self.left, self.injected, self.threshold, self.first = words, left, injected, threshold, first
        self.sums, self.masks = {}, []

    def see(self, step, picture, changed):
        if picture.shape[2] != 4 * 6:
            return
        for name, branches in (("words", self.words), ("left", self.left)):
            for branch, maps, tokens in zip("st", (picture, changed), branches or (), strict=False):
                heat = maps[..., tokens].sum(dim=-1).sum(dim=1).reshape(-1, 1, 4, 6)
                self.sums[name, branch] = self.sums.get((name, branch), 0) + heat

    def area(self, name, pool):
        masks = []
        for branch in "st":
            heat = self.sums[name, branch]
            heat = max_pool2d(heat, 3, 1, 1) if pool else heat
            heat = interpolate(heat, size=(8, 12))
            masks.append(heat / heat.amax(dim=(2, 3), keepdim=True) > self.threshold)
        return masks[0] | masks[1]

    def after(self, step, x, recorded):
        if step < self.first:
            return x
        mask = self.area("words", True)
        if self.left:
            mask = mask & ~self.area("left", False)
        self.masks.append(mask)
        return recorded + mask * (x - recorded)


@pytest.mark.parametrize("parity", [False, True])
def test_local_blend_is_the_papers(run_graph, parity):
    settings = {"blend_words": "cat, dog", "subtract_words": "car", "blend_from": 0.2, "blend_threshold": 0.9}
    scene = Edit(SWAPPED, parity=parity, **settings)
    made = scene.stock()
    mirrored = scene.sample(scene.mirror, model=scene.control(), positive=scene.target, cfg=3.0, negative=scene.empty)
    run = run_graph(scene)
    blend = Blend(([CAT], [CAT]), ([9], [9]), parity, threshold=0.9)
    expected = reference(scene, run, swapped, blend=blend)
    assert 0.02 < torch.stack(blend.masks).float().mean() < 0.98
    assert close(edited(run, made), expected)
    recorded = run.outputs[scene.mirror.id][2].latents[-1]
    outside = ~blend.masks[-1].expand_as(recorded)
    assert torch.allclose(edited(run, made)[outside], recorded[outside], atol=1e-3)
    kept = (edited(run, mirrored) - recorded).abs().amax(dim=1) < 1e-3
    assert 0.02 < kept.float().mean() < 0.98, "in MirrorSample too"
    mask = run.outputs[scene.control.id][1]
    assert mask.shape == (2, 8, 12) and set(mask.unique().tolist()) == {0.0, 1.0}


def test_the_same_text_changes_nothing(run_graph):
    """The source's maps in place of equal ones: guidance away from the kept prompt adds nothing."""
    scene = Edit(SOURCE)
    ways = ({}, {"mode": "refine"}, {"mode": "replace", "parity": True})
    controls = [scene.controlled(SOURCE, SOURCE, cross_until=1.0, self_until=1.0, **way) for way in ways]
    models = [scene.model, *(control() for control in controls)]
    made = [scene.sample(scene.mirror, model=model, exact="source and edit", cfg=4.0) for model in models]
    run = run_graph(scene)
    plain, *controlled = (edited(run, one) for one in made)
    for one in controlled:
        assert torch.allclose(one, plain, rtol=0, atol=1e-4)
    assert run.outputs[controls[0].id][1].eq(1).all()


def test_a_batch_is_its_pictures_one_by_one(run_graph):
    both, alone = wide()["samples"], []
    scene = Edit(SWAPPED, blend_words="cat, dog")
    made = scene.stock()
    run = run_graph(scene)
    for b in range(2):
        one = Edit(SWAPPED, latent=lambda b=b: {"samples": both[b : b + 1]}, blend_words="cat, dog")
        result = one.stock()
        alone.append(edited(run_graph(one), result))
    assert torch.allclose(torch.cat(alone), edited(run, made), rtol=0, atol=5e-3)


def test_several_edits_of_one_picture(run_graph):
    scene = Edit(SWAPPED, latent=lambda: pictures(height=8, width=12))
    made = scene.stock()
    several = scene.add("RepeatLatentBatch", samples=scene.mirror(0), amount=2)
    twice = scene.ksampler(several(), scene.target, scene.empty, 3.0, model=scene.control())
    run = run_graph(scene)
    assert torch.allclose(edited(run, twice), edited(run, made).expand(2, -1, -1, -1), rtol=0, atol=1e-3)


@pytest.mark.every_host
def test_prompts_apart_or_together(run_graph):
    """The host evaluates both prompts in one call, or apart where memory is short."""
    scene = Edit(SWAPPED, blend_words="cat, dog")

    def short(model):
        model = model.clone()
        model.model_options["sampler_calc_cond_batch_function"] = one_by_one
        return model

    def one_by_one(args):
        import comfy.samplers
        return [comfy.samplers.calc_cond_batch(args["model"], [conds], args["input"], args["sigma"],
                                               args["model_options"])[0] for conds in reversed(args["conds"])][::-1]

    apart = scene.add(node(short, ("MODEL",), {"model": "MODEL"}), model=scene.control())
    pair = [scene.stock(), scene.stock(apart())]
    run = run_graph(scene)
    assert close(*(edited(run, made) for made in pair))


def test_long_prompts(run_graph):
    filler = " ".join(["the red tree on the photo"] * 14)
    source, target = f"a cat {filler} a car", f"a dog {filler} a car"
    scene = Edit(target, source=source, cross_until=1.0)
    made, plain = scene.stock(), scene.stock(scene.model)
    short = Edit(target, cross_until=1.0)
    mixed = short.stock()
    run = run_graph(scene)
    weights = [run.outputs[text[0]][0][0][0].shape[1] for text in (scene.source, scene.empty)]
    assert weights == [154, 77], "the host repeats the shorter one to fit both in a batch"
    assert (edited(run, made) - edited(run, plain)).abs().max() > 0.01
    assert torch.isfinite(edited(run_graph(short), mixed)).all()


@pytest.mark.every_host
@pytest.mark.parametrize("make", [unet, sdxl])
def test_another_packs_image_prompt_goes_on(run_graph, make):
    """A replacement that adds to the text's attention keeps its part, in our layers too."""
    def attend(q, k, v, extra_options):
        from comfy.ldm.modules.attention import optimized_attention
        text = optimized_attention(q, k, v, extra_options["n_heads"], transformer_options=extra_options)
        return text + 0.1 * torch.sin(torch.arange(q.shape[-1]))

    def image_prompt(model):
        model = model.clone()
        for layer in [("input", 3), ("middle", 0), ("output", 0), ("output", 2)]:
            model.set_model_attn2_replace(attend, *layer)
        return model

    scene = Edit(SOURCE, make, cross_until=1.0, self_until=0.0)
    theirs = scene.add(node(image_prompt, ("MODEL",), {"model": "MODEL"}), model=scene.model)
    both = scene.controlled(SOURCE, SOURCE, model=theirs(), cross_until=1.0, self_until=0.0)
    models = (theirs(), both(), scene.model)
    runs = [scene.ksampler(scene.mirror(0), scene.source, scene.empty, 1.0, model=model, end_at_step=1,
                            return_with_leftover_noise="enable")
            for model in models]
    run = run_graph(scene)
    with_theirs, with_both, plain = (edited(run, made) for made in runs)
    assert torch.allclose(with_both, with_theirs, rtol=0, atol=1e-4), "the first step starts from the recording"
    assert (with_theirs - plain).abs().max() > 5e-3


@pytest.mark.every_host
def test_words_by_the_hosts_tokenizer(host):
    words, tower = host.pack_module("nodes.host.words"), clip()
    read = words.tokenized(tower, SOURCE)
    assert len(read.tokens) == 11 and read.words == [(n, n + 1) for n in range(1, 10)]
    read = words.tokenized(tower, "a (zebra:1.2), cat")
    assert read.words == [(1, 2), (2, 8), (8, 9)] and len(read.tokens) == 10, "a comma belongs to its word"
    read = words.tokenized(tower, " ".join(["cat"] * 80))
    assert len(read.words) == 80 and read.words[75] == (78, 79) and len(read.tokens) == 77 + 7
    assert words.tokenized(tower, "").words == []


def failure(run_graph, scene):
    with pytest.raises(GraphFailed) as caught:
        run_graph(scene)
    return caught.value.text


def test_what_does_not_fit_is_named(host, run_graph):
    for other in (" ".join([SWAPPED] * 9), ADDED):  # of another length, and of the same
        scene = Edit(SWAPPED, target_text=other, mode="refine")
        made = scene.stock()
        assert re.search("`target_text` .* is not the text that `positive`", failure(run_graph, scene))
    del scene[made.id], scene[scene.control.id]
    run = run_graph(scene)
    patch = host.pack_module("nodes.attention.prompt_to_prompt").MirrorPromptToPrompt.execute
    model, texts = run.outputs[scene.model[0]][0], {"source_text": SOURCE, "target_text": SWAPPED}
    given = {"mirror": run.outputs[scene.mirror.id][2], "clip": run.outputs[scene.clip[0]][0], "mode": "auto",
             "cross_until": 0.4, "self_until": 0.6, **texts}
    for changes, words in (
        ({"blend_words": "horse"}, "`horse` is not in the text"),
        ({"reweight": "horse: 2"}, "The text's tokens are: a</w>, photo</w>, of</w>, a</w>, dog</w>"),
        ({"reweight": "dog 2"}, "`reweight`: a line is a word, a colon and 1 number"),
        ({"reweight": "dog: nan"}, "`reweight`: a line is a word, a colon and 1 number"),
        ({"reweight": "dog: -inf"}, "`reweight`: a line is a word, a colon and 1 number"),
        ({"windows": "dog: 0.2"}, "a colon and 2 number"),
        ({"windows": "dog: 0.8 0.2"}, "not from 0.8 to 0.2"),
        ({"subtract_words": "dog"}, "`blend_words`, which is empty"),
        ({"source_text": " ".join([SOURCE] * 9)}, "`source_text` .* is not the text that the picture's prompt"),
        ({"source_text": SWAPPED, "target_text": SOURCE}, "`source_text` .* is not the text"),
        ({"target_text": ADDED, "mode": "replace"}, "Use refine"),
    ):
        with pytest.raises(ValueError, match=words):
            patch(model, **{**given, **changes})


@pytest.mark.parametrize("walk", ["recorded", "shared", "Edit Picture", "CycleDiffusion"])
def test_another_edited_text_than_the_walks_is_named(run_graph, walk):
    """As many tokens as the right one has. Where a direction is added nobody has written the text."""
    def edit(text, directed=False):
        scene = Edit(text)
        wires = {"model": scene.control(), "strength": 0.7}
        if directed:
            wires["direction"] = scene.add("CLIPDomainDirection", clip=scene.clip, source="cat", target="dog",
                                           sentences="as given")()
        if walk == "Edit Picture":
            scene.add("MirrorEdit", **wires, source=scene.source, target=scene.text(SWAPPED), latent=scene.latent,
                      seed=0, settings="balanced", region="auto", **scene.grid)
        elif walk == "CycleDiffusion":
            scene.add("CycleDiffusionEdit", model=scene.control(), source=scene.source, target=scene.text(SWAPPED),
                      latent=scene.latent, encoder="dpm-encoder", encoder__seed=1, encoder__eta=0.5, denoise=1.0,
                      source_cfg=1.0, cfg=1.0, **scene.grid)
        else:
            scene.sample(scene.mirror, **wires, positive=scene.text(SWAPPED), noise=walk)
        return scene

    assert re.search("`target_text` .* is not the text that `positive`", failure(run_graph, edit(ADDED)))
    for scene in [edit(SWAPPED)] + [edit(ADDED, directed=True)] * (walk != "CycleDiffusion"):
        run_graph(scene)


def test_models_without_cross_attention_are_refused(run_graph):
    from support.tiny import flow
    scene = Edit(SWAPPED, flow, lambda: pictures(channels=16, scale=1.0))
    assert "SD3 has no cross-attention" in failure(run_graph, scene)


def test_the_model_that_came_in_stays_as_it_was(run_graph):
    scene = Edit(SWAPPED, blend_words="cat, dog")
    scene.stock()
    run = run_graph(scene, cached=True)
    plain, patched = run.outputs[scene.model[0]][0], run.outputs[scene.control.id][0]
    assert not plain.model_options["transformer_options"].get("patches_replace") and not plain.wrappers
    assert "sampler_post_cfg_function" not in plain.model_options
    assert "mirror_beside" not in patched.model_options["transformer_options"]
