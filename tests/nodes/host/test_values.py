"""What comes in at a node and leaves a walk: finite, in range, of this model, and a mask for each picture."""

import logging
from unittest import mock

import pytest
import torch
from support import tiny
from support.tiny import Scene, pictures

from harness.graph import give, node
from harness.results import GraphFailed

MOST = 2**64 - 1


def samples(run, output, slot=0):
    return run.outputs[output.id][slot]["samples"]


def failure(run_graph, scene):
    with pytest.raises(GraphFailed) as caught:
        run_graph(scene)
    return caught.value.text


def spoiled(tensor, value=float("nan")):
    """A copy with one number that is not finite."""
    tensor = tensor.clone()
    tensor.view(-1)[0] = value
    return tensor


class Counted(Scene):
    """A scene that knows how many passes went through its network."""

    def __init__(self, make=tiny.unet, latent=pictures, **changes):
        self.passes = []

        def counted():
            model = make()
            model.model.diffusion_model.register_forward_pre_hook(lambda *_: self.passes.append(1))
            return model

        super().__init__(counted, latent, **changes)

    def refuses(self, run_graph, words):
        text = failure(run_graph, self)
        assert words in text and "\n" not in text.strip(), text
        assert not self.passes, "refused only after work had begun"


def exact(scene, **changes):
    inputs = {"model": scene.model, "positive": scene.source, "latent": scene.latent, "method": "edict",
              "method__mixing": 0.93, "cfg": 1.0, **scene.grid}
    return scene.add("MirrorExactInvert", **{**inputs, **changes})


def encode(scene, **changes):
    inputs = {"model": scene.model, "positive": scene.source, "latent": scene.latent, "encoder": "dpm-encoder",
              "encoder__seed": MOST, "encoder__eta": 0.5, "denoise": 1.0, "cfg": 1.0}
    return scene.add("CycleDiffusionEncode", **{**inputs, **scene.grid, **changes})


def edit(scene, **changes):
    inputs = {"model": scene.model, "source": scene.source, "target": scene.text("a red dog"), "latent": scene.latent,
              "encoder": "dpm-encoder", "encoder__seed": MOST, "encoder__eta": 0.5, "denoise": 1.0, "source_cfg": 1.0,
              "cfg": 1.0}
    return scene.add("CycleDiffusionEdit", **{**inputs, **scene.grid, **changes})


WALKS = {"invert": lambda scene, **changes: scene.invert(Scene.NONE, **changes), "exact": exact, "encode": encode,
         "edit": edit}


# Numbers that are not finite

@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_latent_that_is_not_finite_is_refused_before_any_pass(run_graph, walk, value):
    scene = Counted(latent=lambda: {"samples": spoiled(pictures()["samples"], value)})
    WALKS[walk](scene)
    scene.refuses(run_graph, "`latent` holds numbers that are not finite")


def test_an_infinite_negative_is_refused_before_any_pass(run_graph):
    scene = Counted()
    infinite = node(lambda a: [[spoiled(a[0][0], float("inf")), a[0][1]]], ("CONDITIONING",), {"a": "CONDITIONING"})
    scene.invert(Scene.NONE, cfg=3.0, negative=scene.add(infinite, a=scene.empty)())
    scene.refuses(run_graph, "`negative` holds numbers that are not finite")


def test_masks_levels_and_mirrors_that_are_not_finite_are_refused(run_graph):
    scene = Counted(latent=lambda: {**pictures(), "noise_mask": spoiled(torch.ones(1, 8, 8))})
    scene.invert(Scene.NONE)
    scene.refuses(run_graph, "`latent` holds")
    scene = Counted()
    scene.invert(Scene.NONE, sigmas=scene.add(give(lambda: torch.tensor([9.0, float("nan"), 0.0]), "SIGMAS"))())
    scene.refuses(run_graph, "`sigmas` holds")
    scene, made = Counted(), Scene()
    mirror = run_graph_of(run_graph, made, made.invert(Scene.NONE))
    broken = type(mirror)(**{**vars(mirror), "embeddings": spoiled(mirror.embeddings)})
    scene.sample(lambda slot: scene.add(give(lambda: broken, "MIRROR"))())
    scene.refuses(run_graph, "`mirror` holds")


def run_graph_of(run_graph, scene, output):
    return run_graph(scene).outputs[output.id][2]


def test_a_walk_that_leaves_the_finite_numbers_says_so(run_graph):
    """The weights are at fault, which no input shows."""
    def broken():
        model = tiny.unet()
        model.model.diffusion_model.out[-1].bias.data.fill_(float("inf"))
        return model

    for walk in (edit, encode, lambda s: s.sample(s.invert(Scene.NONE))):
        scene = Scene(broken)
        walk(scene)
        assert "finite" in failure(run_graph, scene)


@pytest.mark.parametrize("name, value, words", [
    ("steps", 0, "`steps` takes a number from"), ("cfg", float("nan"), "`cfg` takes a number from 0 to 30, not nan"),
    ("cfg", 31.0, "not 31"), ("scheduler", "none of these", "`scheduler` cannot be 'none of these'. It is one of:")])
def test_a_number_or_choice_by_wire_is_held_to_what_the_widget_allows(run_graph, name, value, words):
    scene = Counted()
    kind = {"steps": "INT", "cfg": "FLOAT", "scheduler": "COMBO"}[name]
    exact(scene, **{name: scene.add(give(lambda: value, kind))()})
    scene.refuses(run_graph, words)


# Texts of another model

def narrow(a):
    return [[text[..., :48], options] for text, options in a]


@pytest.mark.parametrize("make", [tiny.unet, tiny.sdxl, tiny.flow, tiny.flux])
def test_a_text_of_another_width_names_the_wrong_clip(run_graph, make):
    channels = 4 if make in (tiny.unet, tiny.sdxl) else 16
    scene = Counted(make, lambda: pictures(channels=channels), scheduler="simple")
    wrong = node(narrow, ("CONDITIONING",), {"a": "CONDITIONING"})
    exact(scene, positive=scene.add(wrong, a=scene.source)())
    scene.refuses(run_graph, "has 48 numbers a token and")


def test_a_pooled_output_that_is_missing_or_of_another_width_names_the_wrong_clip(run_graph):
    for change, words in (({"pooled_output": torch.zeros(1, 48)}, "does not fit SDXL"), ({}, "reads a pooled output")):
        scene = Counted(tiny.sdxl)
        wrong = node(lambda a, change=change: [[a[0][0], change]], ("CONDITIONING",), {"a": "CONDITIONING"})
        exact(scene, positive=scene.add(wrong, a=scene.source)())
        scene.refuses(run_graph, words)


def narrow_model():
    """A model with the latents of the others here that reads texts of 48 numbers a token."""
    with mock.patch.dict(tiny.UNET, context_dim=48):
        return tiny.unet()


@pytest.mark.parametrize("wrong, words", [
    (lambda scene: scene.add(give(narrow_model, "MODEL"))(), "has 64 numbers a token and BaseModel reads 48"),
    (lambda scene: scene.add("EasyCache", model=scene.model, reuse_threshold=0.2, start_percent=0.0, end_percent=1.0,
                             verbose=False)(), "EasyCache on this model skips passes")], ids=["CLIP", "cache"])
@pytest.mark.parametrize("second", ["decoder", "edit_model"])
def test_the_second_model_of_an_edit_is_looked_at_before_the_first_walks(run_graph, second, wrong, words):
    scene = Counted()
    if second == "decoder":
        edit(scene, decoder=wrong(scene))
    else:
        scene.add("MirrorEdit", model=scene.model, source=scene.source, target=scene.text("a red dog"), seed=0,
                  latent=scene.latent, settings="balanced", strength=1.0, region="auto", edit_model=wrong(scene),
                  **scene.grid)
    scene.refuses(run_graph, words)


def test_no_tokens_and_no_pictures_are_named(run_graph):
    scene = Counted()
    none = node(lambda a: [[a[0][0][:, :0], a[0][1]]], ("CONDITIONING",), {"a": "CONDITIONING"})
    scene.invert(Scene.NONE, positive=scene.add(none, a=scene.source)())
    scene.refuses(run_graph, "`positive` is empty")
    for shape in ([0, 4, 8, 8], [1, 4, 0, 8]):
        scene = Counted(latent=lambda shape=shape: {"samples": torch.zeros(shape)})
        scene.invert(Scene.NONE)
        scene.refuses(run_graph, "`latent` is empty")
    scene = Counted(latent=lambda: {"samples": torch.zeros(1, 4, 1, 1)})
    scene.invert(Scene.NONE)
    scene.refuses(run_graph, "The latent is a single cell")


# Masks

def masked(scene, mask):
    return scene.add("SetLatentNoiseMask", samples=scene.latent, mask=scene.add(give(lambda: mask, "MASK"))())()


HALF = torch.zeros(1, 8, 8)
HALF[..., 4:] = 1


@pytest.mark.parametrize("walk", WALKS)
def test_three_masks_for_one_picture_are_refused(run_graph, walk):
    scene = Counted()
    WALKS[walk](scene, latent=masked(scene, torch.ones(3, 8, 8)))
    scene.refuses(run_graph, "There are 3 masks in the noise mask of `latent` for 1 picture(s)")


def test_an_unpainted_mask_is_told(host, run_graph, caplog, monkeypatch):
    """In the log, and by what shows notices on the node that runs."""
    values, told = host.pack_module("nodes.host.values"), []
    shown = values.warn
    monkeypatch.setattr(values, "warn", lambda text: told.append(text) or shown(text))
    scene = Scene()
    mirror = scene.invert(Scene.NONE)
    unpainted = scene.add(give(lambda: torch.zeros(1, 64, 64), "MASK"))()
    same = scene.sample(mirror, positive=scene.text("a red dog"), mask=unpainted)
    with caplog.at_level(logging.WARNING):
        run = run_graph(scene)
    assert "`mask` is empty" in caplog.text and "Load Image without a painted mask" in caplog.text
    assert [text for text in told if text.startswith("`mask` is empty")]
    assert torch.allclose(samples(run, same), run.outputs[scene.latent[0]][0]["samples"], atol=1e-5)


@pytest.mark.parametrize("decoder", [False, True], ids=["one model", "two models"])
def test_a_noise_mask_confines_cyclediffusion(run_graph, decoder):
    scene = Scene()
    two = {"decoder": scene.add(give(lambda: tiny.unet(5), "MODEL"))()} if decoder else {}
    found = {part: edit(scene, latent=latent, refine=2, **two) for part, latent in (
        ("all", scene.latent), ("half", masked(scene, HALF)), ("one", masked(scene, torch.ones(1, 8, 8))))}
    run = run_graph(scene)
    picture = run.outputs[scene.latent[0]][0]["samples"]
    half, everywhere = samples(run, found["half"]), samples(run, found["all"])
    assert torch.allclose(half[..., :4], picture[..., :4], atol=1e-5), "outside the mask the picture stays"
    assert (half[..., 4:] - picture[..., 4:]).abs().mean() > 1e-3, "inside it is edited"
    assert torch.allclose(samples(run, found["one"]), everywhere, atol=1e-5)


@pytest.mark.parametrize("made", [exact, encode])
def test_a_noise_mask_confines_what_stock_samplers_make_of_noises(run_graph, made):
    scene = Scene()
    target = scene.text("a red dog")
    kept = {}
    for part, latent in (("half", masked(scene, HALF)), ("all", scene.latent)):
        out = made(scene, latent=latent)
        guider = scene.add("BasicGuider", model=scene.model, conditioning=target)
        noise = scene.add("DisableNoise")() if made is exact else out(0)
        start, sampler, sigmas = (out(0), out(1), out(2)) if made is exact else (out(3), out(1), out(2))
        kept[part] = scene.add("SamplerCustomAdvanced", noise=noise, guider=guider(), sampler=sampler, sigmas=sigmas,
                               latent_image=start)
    run = run_graph(scene)
    picture = run.outputs[scene.latent[0]][0]["samples"]
    half = samples(run, kept["half"])
    assert torch.allclose(half[..., :4], picture[..., :4], atol=1e-5)
    assert (half[..., 4:] - picture[..., 4:]).abs().mean() > 1e-3
    assert (samples(run, kept["all"])[..., :4] - picture[..., :4]).abs().mean() > 1e-3


# Seeds

def test_every_seed_is_as_wide_as_that_of_the_stock_nodes(host, run_graph):
    import json
    info = host.object_info()
    assert '"seed": ["INT"' in json.dumps(info["KSampler"]["input"])
    for name in host.pack_nodes:
        described = json.dumps(info[name]["input"], default=str)
        seeds = described.count('"seed": ["INT"')
        assert described.count(f'"max": {MOST}') == seeds, name
    scene = Scene()
    one, other = edit(scene), edit(scene, encoder__seed=MOST - 1)
    method = {"method": "edit-friendly", "method__seed": MOST, "method__eta": 1.0}
    exact_ = scene.add("MirrorExactInvert", model=scene.model, positive=scene.source, latent=scene.latent, cfg=1.0,
                       **scene.grid, **method)
    again = edit(scene, refine=2)
    run = run_graph(scene)
    assert not torch.equal(samples(run, one), samples(run, other))
    assert torch.isfinite(samples(run, exact_)).all() and torch.isfinite(samples(run, again)).all()


def test_a_mask_loses_what_the_autoencoder_crops(host):
    mask_at = host.pack_module("nodes.host.values").mask_at
    mask = torch.zeros(1, 71, 83)
    mask[:, 3 + 16 : 3 + 32, 1 + 8 : 1 + 24] = 1        # of 71 x 83 pixels 64 x 80 are taken, from row 3 and column 1
    found = mask_at(mask, torch.zeros(1, 4, 8, 10), "`mask`")
    cells = torch.zeros(1, 1, 8, 10)
    cells[..., 2:4, 1:3] = 1
    assert torch.equal(found, cells)
    assert torch.equal(mask_at(torch.ones(1, 100, 100), torch.zeros(1, 4, 8, 10), "`mask`"), torch.ones(1, 1, 8, 10))


def test_what_another_option_of_a_choice_had_is_left_out(run_graph):
    """A wire to it stays behind in a saved graph whose choice is then changed by hand."""
    scene = Scene(steps=2)
    wire = scene.add("PrimitiveFloat", value=0.7)()
    made = scene.add("MirrorProximalGuidance", model=scene.model, proximal_map="soft", threshold="fixed",
                     threshold__tau=0.5, threshold__quantile=wire)
    assert run_graph(scene).outputs[made.id]
