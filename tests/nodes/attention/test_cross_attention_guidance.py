"""Cross-attention guidance in the executor, against straight-line code in the papers' own variance-preserving form."""

import pytest
import torch
from support.straight_line_guidance import CODE, PAPER, Network, loss_of, straight_line
from support.tiny import LAYERS, Scene, controlnet, deep, flow, pictures, sdxl, unet

from harness.graph import give, node
from harness.results import GraphFailed
from mirror_ops.attention.cross_attention_guidance import cycle_weights, loss_scale, map_loss

AMOUNT, CFG = 2.0, 3.0
EDIT = "a photo of a dog sitting on a car"


def guided(scene, mirror, model=None, **changes):
    """The id-maker of a guided MODEL."""
    inputs = {"model": model or scene.model, "mirror": mirror(2), "amount": AMOUNT, **changes}
    return scene.add("MirrorCrossAttentionGuidance", **inputs)


def edited(scene, mirror, model, **changes):
    settings = {"positive": scene.text(EDIT), "cfg": CFG, "exact": "source", "negative": scene.empty, **changes}
    return scene.sample(mirror, model=model, **settings)


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


def outside(mirror, *texts):
    """A mirror's and texts' tensors as normal ones, for straight-line code that differentiates."""
    fields = {name: value.clone() for name, value in vars(mirror).items() if isinstance(value, torch.Tensor)}
    return type(mirror)(**{**vars(mirror), **fields}), *(text[0][0].clone() for text in texts)


@pytest.mark.parametrize(
    "latents, cycle, steps, strength",
    [(PAPER, False, 5, 1.0), (CODE, False, 5, 1.0), (PAPER, True, 12, 1.0), (CODE, True, 12, 1.0),
     (CODE, True, 12, 0.4)])
def test_the_walk_is_the_papers(run_graph, latents, cycle, steps, strength):
    scene = Scene(steps=steps, scheduler="sgm_uniform")
    mirror = scene.invert(Scene.PAPER)
    made = edited(scene, mirror, guided(scene, mirror, latents=latents, cycle=cycle)(), strength=strength)
    without = edited(scene, mirror, scene.model, strength=strength)
    text = scene.text(EDIT)
    run = run_graph(scene)
    with torch.inference_mode(False):
        given = outside(run.outputs[mirror.id][2], run.outputs[text[0]][0], run.outputs[scene.empty[0]][0])
        expected = straight_line(Network(), *given, latents, AMOUNT, CFG, cycle=cycle, strength=strength)
        neighbour = {"latents": latents, "cycle": False} if cycle else {"latents": {PAPER: CODE, CODE: PAPER}[latents]}
        other = straight_line(Network(), *given, **neighbour, amount=AMOUNT, cfg=CFG, strength=strength)
    found, unguided = (run.outputs[m.id][0]["samples"] * 0.18215 for m in (made, without))
    assert distance(found, expected) < 1e-4
    assert min(distance(unguided, expected), distance(other, expected)) > 1e-2


def test_the_loss_is_zero_for_equal_maps_and_has_the_official_reduction():
    generator = torch.Generator().manual_seed(0)
    halves, heads = 2, 8
    shape = (halves * heads, 16, 77)
    maps, reference = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    official = loss_of([maps], [reference])
    mine = sum(map_loss(m[None], r[None]) for m, r in zip(maps.split(heads), reference.split(heads), strict=True))
    assert torch.allclose(mine, official, rtol=1e-12) and official > 1
    assert map_loss(maps[None], maps[None]) == 0


def test_keys_and_values_of_cross_attention_have_no_gradient_on_the_latent(host):
    with torch.inference_mode(False):
        network = Network()
        x, text = torch.randn(1, 4, 8, 8, requires_grad=True), torch.randn(1, 77, 64)
        _, maps = network(x, torch.tensor(3.0), text)
        assert len(network.text) == 2 * len(maps) == 2 * LAYERS
        assert all(m.requires_grad for m in maps) and not any(t.requires_grad for t in network.text)


def test_the_cycle_keeps_to_its_part_of_the_walk():
    assert list(cycle_weights(60)) == [25, 20, 15, 10]
    assert cycle_weights(60)[10] == 0.9 and cycle_weights(60)[25] == pytest.approx(0.9 * 0.8**3)
    assert all(0 <= step < steps for steps in range(1, 9) for step in cycle_weights(steps))


def test_the_scale_of_the_backward_pass_is_a_power_of_two():
    for loss in (1e-20, 3e-7, 1.0, 5e8):
        scale = loss_scale(torch.tensor(loss))
        assert scale.log2() == scale.log2().round() and 700 < scale * loss**0.5 < 1500
    assert loss_scale(torch.tensor(0.0)) == 1


@pytest.fixture
def watched(host, monkeypatch):
    """[(x, sigma, side, gradient, whether in inference mode)] of every gradient that guidance takes."""
    guidance = host.pack_module("nodes.host.cross_attention_guidance").Guidance
    found, take = [], guidance._gradients

    def gradients(self, reference, latents, prompts, sigma, model_options):
        taken = take(self, reference, latents, prompts, sigma, model_options)
        found.extend((x, sigma, side, taken[side], torch.is_inference_mode_enabled()) for side, x in latents.items())
        return taken

    monkeypatch.setattr(guidance, "_gradients", gradients)
    return found


def stock(scene, mirror, model, latent=None, **changes):
    inputs = {"model": model, "cfg": CFG, **changes}
    return scene.ksampler(latent or mirror(0), scene.text(EDIT), scene.empty, inputs.pop("cfg"), **inputs)


def test_the_gradient_equals_finite_differences_in_a_stock_sampler(run_graph, watched):
    """In inference mode, after a KSampler on the same model."""
    scene = Scene(steps=3)
    mirror = scene.invert(Scene.NONE)
    before = scene.ksampler(scene.latent, scene.source, scene.empty, CFG)
    late = node(lambda mirror, _: mirror, ("MIRROR",), {"mirror": "MIRROR", "_": "LATENT"})
    ordered = scene.add(late, mirror=mirror(2), _=before())
    made = stock(scene, mirror, guided(scene, lambda slot: ordered(), latents=CODE)())
    text = scene.text(EDIT)
    run = run_graph(scene)
    assert len(watched) == 3 * 2 and all(entry[4] for entry in watched) and made.id in run.outputs
    with torch.inference_mode(False):
        trajectory, *texts = outside(
            run.outputs[mirror.id][2], *(run.outputs[t[0]][0] for t in (text, scene.source, scene.empty)))
        edit, source, empty = (t.double() for t in texts)
        network = Network(dtype=torch.float64)
        for n, (x, sigma, side, gradient, _) in enumerate(watched):
            sigma, x, gradient = (v.clone().double() for v in (sigma[0], x, gradient))
            scale, (read, kept) = (1 + sigma**2).sqrt(), (edit, source) if side == 0 else (empty, empty)
            with torch.no_grad():
                recorded = trajectory.latents[n // 2].double() / scale
                reference = [m.clone() for m in network(recorded, sigma, kept)[1]]

                def loss(x, sigma=sigma, scale=scale, read=read, reference=reference):
                    return loss_of(network(x / scale, sigma, read)[1], reference) / 2

                way = gradient / gradient.norm()
                step = 1e-3 * scale
                finite = (loss(x + step * way) - loss(x - step * way)) / (2 * step)
            if n == 1:  # the negative prompt at the first step: its latent and its prompt are the source's own
                assert gradient.norm() < 1e-3 * watched[0][3].norm() and finite.abs() < 1e-3 * watched[0][3].norm()
                continue
            assert finite.item() == pytest.approx(gradient.norm().item(), rel=1e-2), "along itself: its norm"


@pytest.mark.parametrize("latents", [PAPER, CODE])
def test_stock_samplers_walk_as_mirror_sample_does(run_graph, latents):
    scene = Scene(steps=4)
    mirror = scene.invert(Scene.NONE)
    model = guided(scene, mirror, latents=latents)()
    ours, theirs = edited(scene, mirror, model), stock(scene, mirror, model)
    guider = scene.add("CFGGuider", model=model, positive=scene.text(EDIT), negative=scene.empty, cfg=CFG)
    custom = scene.add("SamplerCustomAdvanced", noise=scene.add("DisableNoise")(), guider=guider(), sigmas=mirror(3),
                       sampler=scene.add("KSamplerSelect", sampler_name="ddim")(), latent_image=mirror(0))
    unguided = stock(scene, mirror, scene.model)
    run = run_graph(scene)
    first, second, third, plain = (run.outputs[made.id][0]["samples"] for made in (ours, theirs, custom, unguided))
    assert distance(second, first) < 1e-5 and distance(third, first) < 1e-5 and distance(plain, first) > 1e-3


@pytest.mark.parametrize("latents", [PAPER, CODE])
def test_the_host_may_evaluate_the_prompts_one_by_one(run_graph, latents, monkeypatch):
    from comfy.model_base import BaseModel
    results = []
    for split in (False, True):
        scene = Scene(steps=3)
        mirror = scene.invert(Scene.NONE)
        rows = []

        def seen(model, rows=rows):
            model = model.clone()
            model.set_model_unet_function_wrapper(
                lambda apply, a: rows.append(len(a["input"])) or apply(a["input"], a["timestep"], **a["c"]))
            return model

        model = scene.add(node(seen, ("MODEL",), {"model": "MODEL"}), model=guided(scene, mirror, latents=latents)())
        made = stock(scene, mirror, model())
        if split:
            monkeypatch.setattr(BaseModel, "memory_required", lambda *args, **kwargs: 1e30)
        results.append(run_graph(scene).outputs[made.id][0]["samples"])
        assert (max(rows) == 1) == split or latents == CODE
    assert distance(*results) < 1e-5


@pytest.mark.parametrize("make", [unet, sdxl])
def test_pictures_of_a_batch_are_guided_as_alone(run_graph, make):
    together = pictures(2, height=8, width=12)["samples"]
    scene = Scene(make, lambda: {"samples": together}, steps=3)
    mirror = scene.invert(Scene.NONE)
    both = edited(scene, mirror, guided(scene, mirror, latents=CODE)())
    alone = []
    for k in range(2):
        one = scene.add(give(lambda k=k: {"samples": together[k : k + 1]}, "LATENT"))
        mirror = scene.invert(Scene.NONE, latent=one())
        alone.append(edited(scene, mirror, guided(scene, mirror, latents=CODE)()))
    run = run_graph(scene)
    for k in range(2):
        assert distance(run.outputs[both.id][0]["samples"][k], run.outputs[alone[k].id][0]["samples"][0]) < 1e-5


@pytest.mark.every_host
def test_checkpointing_changes_memory_only_and_layers_can_be_left_out(run_graph):
    scene = Scene(steps=3)
    mirror = scene.invert(Scene.NONE)
    ways = ({"checkpointing": "off"}, {"checkpointing": "on"}, {"layers": "encoder"}, {"layers": "decoder"},
            {"largest": 7}, {"amount": 0.0})
    made = [edited(scene, mirror, guided(scene, mirror, **way)()) for way in (*ways,)]
    plain = edited(scene, mirror, scene.model)
    run = run_graph(scene)
    off, on, encoder, decoder, coarse, nothing, plain = (run.outputs[m.id][0]["samples"] for m in (*made, plain))
    assert distance(on, off) < 1e-5
    assert torch.equal(nothing, plain)
    for part in (encoder, decoder, coarse):
        assert min(distance(part, off), distance(part, plain)) > 1e-4


@pytest.mark.parametrize("checkpointing, whole", [("off", 1), ("on", 3)])
def test_a_pass_for_its_maps_alone_ends_with_the_last_of_them(run_graph, checkpointing, whole):
    """The first shows which layer that is. What it makes is compared with a checkpointed walk's above."""
    model, reached = unet(), []
    model.model.diffusion_model.out.register_forward_hook(lambda *_: reached.append(torch.is_grad_enabled()))
    scene = Scene(lambda: model, steps=3)
    mirror = scene.invert(Scene.NONE)
    scene.ksampler(mirror(0), scene.text(EDIT), scene.empty, CFG,
                   model=guided(scene, mirror, checkpointing=checkpointing)())
    run_graph(scene)
    assert reached.count(True) == whole


def test_a_guider_without_a_negative_prompt_is_guided_too(run_graph):
    """As at cfg 1, where both readings of the paper are one."""
    scene = Scene(steps=6, scheduler="sgm_uniform")
    mirror = scene.invert(Scene.NONE)
    made = []
    for latents in (PAPER, CODE):
        model = guided(scene, mirror, latents=latents, cycle=True)()
        guider = scene.add("BasicGuider", model=model, conditioning=scene.text(EDIT))
        made.append(scene.add(
            "SamplerCustomAdvanced", noise=scene.add("DisableNoise")(), guider=guider(), sigmas=mirror(3),
            sampler=scene.add("KSamplerSelect", sampler_name="euler")(), latent_image=mirror(0)))
    made += [stock(scene, mirror, model, cfg=1.0), stock(scene, mirror, scene.model, cfg=1.0)]
    run = run_graph(scene)
    first, second, third, plain = (run.outputs[m.id][0]["samples"] for m in made)
    assert distance(second, first) < 1e-6 and distance(third, first) < 1e-5 and distance(plain, first) > 1e-3


@pytest.mark.every_host
def test_half_precision_keeps_the_gradient(run_graph, watched):
    found = {}
    for dtype in (torch.float32, torch.float16):
        watched.clear()
        scene = Scene(lambda dtype=dtype: unet(dtype=dtype), steps=2)
        mirror = scene.invert(Scene.NONE)
        edited(scene, mirror, guided(scene, mirror, amount=1e-4)())
        run_graph(scene)
        found[dtype] = [entry[3].clone() for entry in watched]
    for half, exact in zip(found[torch.float16], found[torch.float32], strict=True):
        assert torch.nn.functional.cosine_similarity(half.flatten(), exact.flatten(), dim=0) > 0.99
        assert (half - exact).norm() < 0.1 * exact.norm()


def test_a_lora_is_part_of_the_model(run_graph):
    """The same as with the difference in the weights themselves."""
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_q.weight"
    change = 0.2 * torch.randn(64, 64, generator=torch.Generator().manual_seed(9))

    def baked():
        made = unet()
        made.model.get_parameter(key).data.add_(change)
        return made

    def patched(model):
        model = model.clone()
        model.add_patches({key: ("diff", (change,))})
        return model

    results = []
    for kind in ("none", "lora", "baked"):
        scene = Scene(baked if kind == "baked" else unet, steps=3)
        if kind == "lora":
            scene.model = scene.add(node(patched, ("MODEL",), {"model": "MODEL"}), model=scene.model)()
        mirror = scene.invert(Scene.NONE)
        made = edited(scene, mirror, guided(scene, mirror)())
        results.append(run_graph(scene).outputs[made.id][0]["samples"])
    assert distance(results[1], results[2]) < 1e-5 and distance(results[0], results[2]) > 1e-3


def test_the_reference_sees_the_controlnet_of_its_prompt(run_graph):
    """A picture sampled again with its own prompt has its own maps: there is nothing to guide."""
    scene = Scene(deep, steps=3, scheduler="normal")
    net = scene.add(give(controlnet, "CONTROL_NET"))
    hint = scene.add(node(lambda: torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(4)), ("IMAGE",)))
    both = scene.add("ControlNetApplyAdvanced", positive=scene.source, negative=scene.empty, control_net=net(),
                     image=hint(), strength=1.0, start_percent=0.0, end_percent=1.0)
    mirror = scene.add("MirrorFromSeed", model=scene.model, positive=both(0), negative=both(1), latent=scene.latent,
                       seed=3, cfg=CFG, **scene.grid)
    again = {"positive": both(0), "negative": both(1), "cfg": CFG}
    trajectory = lambda slot: mirror(1)  # noqa: E731
    seeing = scene.sample(trajectory, model=guided(scene, trajectory, source=both(0))(), **again)
    blind = scene.sample(trajectory, model=guided(scene, trajectory)(), **again)
    run = run_graph(scene)
    picture = run.outputs[mirror.id][0]["samples"]
    assert distance(run.outputs[seeing.id][0]["samples"], picture) < 1e-5
    assert distance(run.outputs[blind.id][0]["samples"], picture) > 1e-4


def test_an_empty_caption_works_throughout(run_graph):
    scene = Scene(steps=3)
    mirror = scene.invert(Scene.NONE, positive=scene.empty, regularise="pix2pix-zero")
    way = scene.add("CLIPDomainDirection", clip=scene.clip, source="cat", target="dog",
                    sentences="template bank: things")
    settings = {"positive": scene.empty, "negative": scene.empty, "direction": way()}
    models = scene.model, guided(scene, mirror, amount=100.0)()
    plain, made = (edited(scene, mirror, model, **settings) for model in models)
    run = run_graph(scene)
    plain, made = (run.outputs[m.id][0]["samples"] for m in (plain, made))
    assert torch.isfinite(made).all() and distance(made, plain) > 1e-3


def test_the_search_for_a_region_looks_without_guidance(host, run_graph, watched, monkeypatch):
    """Where the edit acts is first read off plain predictions; only the walk is guided."""
    sample, found = host.pack_module("nodes.edit.sample"), []
    look = sample.edited_region
    monkeypatch.setattr(sample, "edited_region", lambda *given: found.append(look(*given)) or found[-1])
    scene = Scene(steps=8)
    mirror = scene.invert(Scene.NONE)
    for model in (scene.model, guided(scene, mirror)()):
        edited(scene, mirror, model, region="auto")
    run_graph(scene)
    assert len(found) == 2 and torch.allclose(*found, rtol=0, atol=1e-3)       # plain, both prompts look at once
    assert 0 < found[0].mean() < 1 and len(watched) == 8


def test_an_interrupt_leaves_nothing_and_the_model_is_never_changed(run_graph):
    scene = Scene(steps=4)
    mirror = scene.invert(Scene.NONE)
    patch = guided(scene, mirror, checkpointing="on")
    model = run_graph(scene, cached=True).outputs[scene.model[0]][0]
    before = str(model.model_options), model.patches_uuid, len(model.wrappers)
    made = stock(scene, mirror, patch())
    stopped = run_graph(scene, cached=True, interrupt_when=lambda event, data: (
        event == "progress" and data["node"] == made.id and data["value"] >= 2))
    assert stopped.interrupted and (str(model.model_options), model.patches_uuid, len(model.wrappers)) == before
    assert not any("forward" in vars(part) for part in model.model.diffusion_model.modules())
    again, fresh = stock(scene, mirror, patch()), stock(scene, mirror, guided(scene, mirror)())
    run = run_graph(scene, cached=True)
    assert distance(run.outputs[again.id][0]["samples"], run.outputs[fresh.id][0]["samples"]) < 1e-5


def failure(run_graph, scene):
    with pytest.raises(GraphFailed) as caught:
        run_graph(scene)
    return caught.value.text


def test_what_cannot_be_guided_is_refused(run_graph):
    scene = Scene(flow, lambda: pictures(channels=16, scale=1.0), steps=2, scheduler="simple")
    guided(scene, scene.invert(Scene.NONE))
    assert "SD3 has no cross-attention" in failure(run_graph, scene)
    scene = Scene(steps=2)
    mirror = scene.invert(Scene.NONE)
    stock(scene, mirror, guided(scene, mirror, largest=1)())
    assert "Raise `largest`" in failure(run_graph, scene)
    scene = Scene(steps=4)
    mirror = scene.invert(Scene.NONE)
    stock(scene, mirror, guided(scene, mirror)(), steps=5)
    assert "Give the sampler the mirror's steps" in failure(run_graph, scene)
