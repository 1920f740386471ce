"""MirrorEdit in the real host."""
import pytest
import torch
from support import tiny
from support.tiny import Scene

from harness.graph import give, node
from harness.results import GraphFailed

KINDS = {"eps": (tiny.unet, tiny.pictures), "v": (lambda: tiny.unet(v_prediction=True), tiny.pictures),
         "sdxl": (tiny.sdxl, tiny.pictures), "flow": (tiny.flow, lambda: tiny.pictures(channels=16))}


def edit(g: Scene, **changes):
    target = changes.pop("target", None) or g.text("a photo of a dog sitting on a car")
    inputs = {"model": g.model, "source": g.source, "target": target, "latent": g.latent, "settings": "balanced",
              "strength": 1.0, "seed": 3, "region": "everywhere", "polish": 0.0, **g.grid}
    return g.add("MirrorEdit", **{**inputs, **changes})


def results(run_graph, g: Scene, made):
    """(edited samples, region, report) of one run."""
    edited, region, report = run_graph(g).outputs[made.id]
    return edited["samples"], region, report.text


def custom(**changes):
    given = {"cfg": 2.5, "cfg_until": .3, "cfg_after": 1.5, "source_cfg": 1.0, "draws": 1, "jump": False,
             "coarse": False, "antithetic": False, **changes}
    return {"settings": "custom", **{f"settings__{name}": value for name, value in given.items()}}


def given(latent):
    return latent()["samples"]


def scene(kind: str) -> Scene:
    make, latent = KINDS[kind]
    return Scene(make, latent)


@pytest.mark.every_host
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_edits_and_the_same_words_change_nothing(run_graph, kind):
    picture = given(KINDS[kind][1])
    g = scene(kind)
    edited, region, report = results(run_graph, g, edit(g))
    assert torch.isfinite(edited).all() and (edited - picture).abs().max() > 1e-3 * picture.std()
    assert region.shape == (1, 8, 8) and "passes: 15 in 5 steps" in report

    g = scene(kind)
    same, region, report = results(run_graph, g, edit(g, target=g.source, settings="bold", region="auto"))
    assert torch.equal(same, through(KINDS[kind][0], picture)) and region.max() == 0
    assert "region empty: source and target say the same" in report


def through(make, picture):
    """The picture as it is after the way into model space and out again."""
    inside = make().model
    return inside.process_latent_out(inside.process_latent_in(picture))


def test_at_any_guidance_the_picture_comes_back_to_the_last_bit(run_graph):
    picture = through(tiny.unet, given(tiny.pictures))
    for region, settings in (("everywhere", custom(cfg=1.0, cfg_after=1.0)), ("auto", custom(cfg=7.5, draws=2)),
                             ("auto", custom(jump=True, cfg=7.5))):
        g = Scene()
        assert torch.equal(results(run_graph, g, edit(g, target=g.source, region=region, **settings))[0], picture)
    g = Scene()
    again = g.text("a photo of a cat sitting on a car")
    assert torch.equal(results(run_graph, g, edit(g, target=again, settings="bold"))[0], picture)


def test_both_sides_take_one_call_of_the_network(run_graph):
    """Guided or not, at each latent its own prompts; apart where a patch on the model might tell the sides apart."""
    model, rows, quick = tiny.unet(), [], []
    model.model.diffusion_model.register_forward_pre_hook(
        lambda module, args: rows.append(len(args[0])) or quick.append(torch.is_inference_mode_enabled()))

    def walked(patch=None, **guidance):
        rows.clear()
        g = Scene(lambda: model)
        g.model = g.add(patch, model=g.model, b1=1, b2=1, s1=1, s2=1)() if patch else g.model
        return results(run_graph, g, edit(g, **custom(**guidance)))[0], list(rows)

    for guidance, together, apart in (
        ({}, [3] * 5, [1, 2] * 5), ({"cfg_after": 1.0, "cfg_until": 0.4}, [3] * 2 + [2] * 3, [1, 2] * 2 + [1] * 6),
        ({"source_cfg": 1.5, "draws": 2}, [4] * 10, [2] * 20),
    ):
        made, seen = walked(**guidance)
        expected, each = walked("FreeU", **guidance)
        assert (seen, each) == (together, apart) and all(quick)
        assert (made - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_picture_does_not_depend_on_its_batch(run_graph):
    g = Scene(latent=lambda: tiny.pictures(3))
    together, _, _ = results(run_graph, g, edit(g))
    g = Scene(latent=lambda: tiny.pictures(3))
    one = g.add("LatentFromBatch", samples=g.latent, batch_index=2, length=1)()
    alone, _, _ = results(run_graph, g, edit(g, latent=one))
    assert (alone - together[2]).abs().max() < 1e-5 * together.abs().max()


def test_seeds_are_64_bit_and_matter(run_graph):
    made = []
    for seed in (0, 2**64 - 1):
        g = Scene()
        made.append(results(run_graph, g, edit(g, seed=seed))[0])
    assert (made[0] - made[1]).abs().max() > 1e-3


def test_the_words_strength_and_direction(run_graph):
    picture = given(tiny.pictures)

    def moved(**changes):
        g = Scene()
        if changes.pop("direct", False):
            changes["target"] = g.source
            direction = g.add("CLIPDomainDirection", clip=g.clip, source="cat", target="dog", sentences="as given")
            changes["direction"] = direction()
        return (results(run_graph, g, edit(g, **changes))[0] - picture).norm()

    none, half, whole = moved(strength=0.0), moved(strength=0.5), moved()
    assert none < 1e-5 * picture.norm() and none < half < whole
    assert moved(direct=True) > 1e-3 and moved(direct=True, strength=0.0) < 1e-5 * picture.norm()


def test_prompts_of_other_lengths_can_be_mixed(run_graph):
    g = Scene()
    longer = g.text("a photo of a dog " + "in the sky " * 40)
    full, _, _ = results(run_graph, g, edit(g, target=longer))
    g = Scene()
    longer = g.text("a photo of a dog " + "in the sky " * 40)
    most, _, _ = results(run_graph, g, edit(g, target=longer, strength=1 - 1e-6))
    assert (full - most).abs().max() < 1e-3 * full.std() and (full - given(tiny.pictures)).abs().max() > 1e-3


def test_a_model_alone_makes_the_edit(run_graph):
    """The same words, and a LoRA (here: a weight patch) on the side of the edit."""
    picture = given(tiny.pictures)

    def lora(model):
        model = model.clone()
        key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_v.weight"
        weight = model.model.state_dict()[key]
        model.add_patches({key: ("diff", (torch.ones_like(weight),))}, 1.0)
        return model

    g = Scene()
    patched = g.add(node(lora, ("MODEL",), {"model": "MODEL"}), model=g.model)()
    edited, region, report = results(run_graph, g, edit(g, target=g.source, edit_model=patched, region="auto"))
    assert (edited - picture).abs().max() > 1e-3 and region.max() > 0 and "region:" in report
    assert "passes: 15 in 5 steps" in report        # 5 with the source's model, 10 with the other

    g = Scene()
    plain = g.add(node(lambda model: model.clone(), ("MODEL",), {"model": "MODEL"}), model=g.model)()
    same, _, _ = results(run_graph, g, edit(g, target=g.source, edit_model=plain))
    assert (same - picture).abs().max() < 1e-5 * picture.abs().max()


def test_apart_is_together_where_both_models_are_one(run_graph):
    g = Scene()
    together, _, _ = results(run_graph, g, edit(g, **custom(draws=2)))
    g = Scene()
    apart, _, _ = results(run_graph, g, edit(g, edit_model=g.model, **custom(draws=2)))
    assert (apart - together).abs().max() < 1e-5 * together.abs().max()


def half(height=64, width=64):
    mask = torch.zeros(1, height, width)
    mask[..., : width // 2] = 1
    return mask


def test_the_mask_and_the_latents_own_noise_mask_hold_the_rest(run_graph):
    picture = given(tiny.pictures)
    g = Scene()
    masked, region, _ = results(run_graph, g, edit(g, mask=g.add(give(half, "MASK"))()))
    g = Scene(latent=lambda: {**tiny.pictures(), "noise_mask": half()[None]})
    noised, _, _ = results(run_graph, g, edit(g))
    assert torch.equal(masked, noised) and region[..., 4:].max() == 0
    assert (masked - picture)[..., 4:].abs().max() < 1e-6 and (masked - picture)[..., :4].abs().max() > 1e-3
    g = Scene()
    nothing = g.add(give(lambda: torch.zeros(1, 64, 64), "MASK"))()
    _, _, report = results(run_graph, g, edit(g, mask=nothing))
    assert "region empty: the mask allows no change" in report


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_polish_draws_again_where_the_edit_acted_and_only_there(run_graph, kind):
    picture = through(KINDS[kind][0], given(KINDS[kind][1]))
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    made = {}
    for polish in (0.0, 0.4):
        g = scene(kind)
        made[polish] = results(run_graph, g, edit(g, mask=g.add(give(lambda: mask, "MASK"))(), polish=polish))
    (plain, _, before), (again, _, report) = made.values()
    assert torch.allclose(again[..., 4:], picture[..., 4:], atol=1e-5)
    assert (again - plain)[..., :4].abs().max() > 1e-3 * picture.std()
    assert "passes: 15 in" in before and "passes: 17 in" in report
    g = scene(kind)
    hardly = results(run_graph, g, edit(g, mask=g.add(give(lambda: mask, "MASK"))(), polish=1e-30))[0]
    assert torch.equal(hardly, plain), "less than a step"
    g = scene(kind)
    same, region, report = results(run_graph, g, edit(g, target=g.source, polish=0.4))
    assert torch.equal(same, picture) and "passes: 5 in" in report, "nothing to polish"


def test_polish_leaves_controls_out_and_pictures_of_a_batch_alone(run_graph):
    pictures = tiny.pictures(2)["samples"]

    def polished(latent, seed: int, control=None):
        g = Scene(latent=lambda: {"samples": latent})
        model = g.model if control is None else g.add(control, model=g.model)()
        return results(run_graph, g, edit(g, model=model, polish=0.4, seed=seed))[0]

    both = polished(pictures, 3)
    assert torch.allclose(both[1:], polished(pictures[1:], 4), atol=1e-5)
    branches = []

    def spied(model):
        clone = model.clone()
        clone.set_model_sampler_post_cfg_function(
            lambda args: branches.append(args["model_options"]["transformer_options"]["mirror_branch"].name)
            or args["denoised"])
        return (clone,)

    polished(pictures[:1], 3, node(spied, ("MODEL",), {"model": "MODEL"}))
    assert branches[-2:] == ["POLISH"] * 2 and set(branches[:-2]) == {"SOURCE", "EDIT"}


@pytest.mark.every_host
def test_the_edit_shows_at_every_step_and_an_interrupt_leaves_nothing_patched(run_graph, host):
    model = tiny.unet()
    shared = node(lambda: model, ("MODEL",))

    def graph():
        g = Scene()
        g.model = g.add(shared)()
        return g

    g = graph()
    edit(g)
    shown = host.run_graph(g, previews=True)
    assert len(shown.named("preview")) == 5
    before = dict(model.model_options["transformer_options"]), {k: dict(v) for k, v in model.patches.items()}
    g = graph()
    edit(g)
    run = host.run_graph(g, interrupt_when=lambda event, data: event == "progress" and data["value"] >= 3)
    assert run.interrupted
    assert (model.model_options["transformer_options"], model.patches) == before and not model.wrappers
    g = graph()
    made = edit(g)
    assert torch.equal(results(run_graph, g, made)[0], shown.outputs[made.id][0]["samples"])


@pytest.mark.parametrize("changes, says", [
    ({"latent": lambda: tiny.pictures(channels=16)}, "16 channels"),
    ({"latent": lambda: {"samples": torch.full((1, 4, 8, 8), torch.nan)}}, "not finite"),
    ({"mask": lambda: torch.ones(3, 8, 8)}, "3 masks in `mask` for 1 picture"),
    ({"edit_model": tiny.flow}, "do not share"),
])
def test_what_does_not_fit_is_refused_in_words(run_graph, changes, says):
    kinds = {"latent": "LATENT", "mask": "MASK", "edit_model": "MODEL"}
    g = Scene()
    links = {name: g.add(give(make, kinds[name]))() for name, make in changes.items()}
    edit(g, **links)
    with pytest.raises(GraphFailed, match=says):
        run_graph(g)


def test_the_demo_model_says_that_it_knows_no_photos(run_graph):
    def node(kind, **inputs):
        return {"class_type": kind, "inputs": inputs}

    graph = {"world": node("MirrorDemoModel"),
             "photo": node("EmptyImage", width=512, height=384, batch_size=1, color=9),
             "latent": node("VAEEncode", pixels=["photo", 0], vae=["world", 2]),
             "words": node("CLIPTextEncode", clip=["world", 1], text="a photo of a cat"),
             "edit": node("MirrorEdit", model=["world", 0], source=["words", 0], target=["words", 0],
                          latent=["latent", 0], settings="balanced", steps=2, scheduler="ddim_uniform", strength=1.0,
                          seed=0, region="auto")}
    with pytest.raises(GraphFailed, match="only knows cartoon animals of 128 x 128; the picture is 512 x 384"):
        run_graph(graph)


def test_the_report_counts_passes_back_through_the_network(run_graph):
    g = Scene()
    model = g.add("MirrorCrossAttentionGuidance", model=g.model, amount=5.0)()
    report = results(run_graph, g, edit(g, model=model))[2]
    assert "passes: 25, 5 of them backward in 5 steps" in report


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_picture_of_one_colour_has_a_report_and_a_curve(run_graph, value):
    g = Scene(latent=lambda: {"samples": torch.full((2, 4, 8, 8), value)})
    made = edit(g)
    g.add("MirrorReport", report=made(2))
    run = run_graph(g)
    assert "inf" not in run.outputs[made.id][2].text and "nan" not in run.outputs[made.id][2].text


def test_nothing_at_strength_0_is_said_to_come_from_that(run_graph):
    g = Scene()
    assert "region empty: strength is 0" in results(run_graph, g, edit(g, strength=0.0, region="auto"))[2]


def test_the_bar_is_full_when_polish_is_done_and_not_before(run_graph, host):
    g = Scene()
    edit(g, polish=0.4)
    seen = [event["value"] / event["max"] for event in host.run_graph(g).named("progress")]
    assert seen[-1] == 1 and seen[-2] < 1 and seen == sorted(seen)


@pytest.mark.parametrize("node_id", ["MirrorEdit", "CycleDiffusionEdit"])
def test_a_controlnet_for_both_sides_is_on_the_negative_too(run_graph, node_id):
    """Stock Apply ControlNet (OLD) leaves it to the sampler to put the hint of the positive on the negative."""
    def scene_of(old: bool) -> tuple[Scene, object]:
        g = Scene(steps=4)
        net, hint = g.add(give(tiny.controlnet, "CONTROL_NET"))(), g.add(give(
            lambda: torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(5)), "IMAGE"))()
        target, negative = g.text("a photo of a dog sitting on a car"), g.empty
        if old:
            target = g.add("ControlNetApply", conditioning=target, control_net=net, image=hint, strength=1.0)()
        else:
            both = g.add("ControlNetApplyAdvanced", positive=target, negative=negative, control_net=net, image=hint,
                         strength=1.0, start_percent=0.0, end_percent=1.0)
            target, negative = both(0), both(1)
        if node_id == "MirrorEdit":
            return g, edit(g, target=target, negative=negative, **custom(cfg=3.0))
        return g, g.add(node_id, model=g.model, source=g.source, target=target, latent=g.latent, negative=negative,
                        encoder="dpm-encoder", encoder__seed=0, encoder__eta=.1, denoise=.7, source_cfg=1.0, cfg=3.0,
                        **g.grid)

    old, new = (run_graph(g).outputs[made.id][0]["samples"] for g, made in map(scene_of, (True, False)))
    assert (old - new).norm() < 1e-5 * new.norm()
