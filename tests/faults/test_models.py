"""Every kind of model of the host: walked, or refused by name with the right reason before any pass."""

import pytest
import torch
from support import tiny
from support.tiny import Scene

from harness.results import GraphFailed

from . import kinds

pytestmark = pytest.mark.faults
WALKED = {  # kind -> maker, channels of a latent, and the encoder if it is not a CLIP with padding
    "SD1": (tiny.unet, 4), "SD2 (v)": (lambda: tiny.unet(v_prediction=True), 4), "SDXL": (tiny.sdxl, 4),
    "SDXL refiner": (kinds.refiner, 4), "InstructPix2Pix": (kinds.instruct, 4),
    "InstructPix2Pix SDXL": (kinds.instruct_sdxl, 4), "SD3": (tiny.flow, 16), "AuraFlow": (kinds.aura, 4),
    "PixArt Alpha": (kinds.pix_art, 4, kinds.words), "PixArt Sigma": (kinds.pix_art_sigma, 4, kinds.words),
    "Flux": (tiny.flux, 16), "Flux Fill": (kinds.flux_inpaint, 16), "LongCat": (kinds.long_cat, 16),
    "Flux2": (kinds.flux2, 128, kinds.words), "Chroma": (kinds.chroma, 16),
    "Chroma Radiance": (kinds.chroma_radiance, 3),
    "Chroma Radiance x0": (lambda: kinds.chroma_radiance(use_x0=True), 3),
    "Lumina2": (kinds.lumina, 16, kinds.words), "Z-Image": (kinds.z_image, 16, kinds.words),
    "Z-Image pixels": (kinds.z_image_pixels, 3, kinds.words), "OmniGen2": (kinds.omnigen2, 16, kinds.words),
    "Boogu": (kinds.boogu, 16, kinds.words), "Kandinsky5 Image": (kinds.kandinsky5_image, 16, kinds.words),
    "HunyuanImage 2.1": (kinds.hunyuan_image21, 64, kinds.words), "MageFlow": (kinds.mage_flow, 128, kinds.words),
    "Ideogram4": (kinds.ideogram4, 128, kinds.words), "Lens": (kinds.lens, 128, kinds.words),
    "Ernie": (kinds.ernie, 128, kinds.words), "PixelDiT": (kinds.pixel_dit, 3, kinds.words),
    "SD2 unCLIP": (kinds.unclip, 4), "Flux schnell": (kinds.schnell, 16),
}
PLAIN = ("Ernie", "PixelDiT")  # through which no gradient can be taken
WITHOUT_GRADIENTS = {"method": "fixed point + negative prompt", "method__iterations": 2}
SIZE = {"PixArt Alpha": (40, 40), "PixArt Sigma": (40, 40)}  # where the host divides by zero for smaller pictures


def samples(run, output, slot=0):
    return run.outputs[output.id][slot]["samples"]


def apart(a, b) -> float:
    """Relative rms distance."""
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("kind", WALKED)
def test_a_picture_comes_back_and_is_edited(run_graph, figures, kind):
    make, channels, *encoder = WALKED[kind]
    scene = Scene(make, lambda: tiny.pictures(1, channels, *SIZE.get(kind, (8, 8)), scale=1.0), 4, "simple", *encoder)
    rewriter = WITHOUT_GRADIENTS if kind in PLAIN else Scene.PAPER
    mirror = scene.invert(rewriter, cfg=3.0)
    negative = {} if kind in PLAIN else {"negative": scene.empty}  # that rewriter's mirror brings one
    dog = scene.text("a photo of a dog")
    same = scene.sample(mirror, strength=0.0, cfg=3.0, **negative)
    unedited = scene.sample(mirror, positive=dog, strength=0.0, cfg=3.0, **negative)
    edited = scene.sample(mirror, positive=dog, **negative)
    half, nothing = (
        scene.add("MirrorEdit", model=scene.model, source=scene.source, target=dog, latent=scene.latent, seed=3,
                  settings="balanced", strength=strength, region="everywhere", **scene.grid) for strength in (0.5, 0.0))
    code = scene.add("CycleDiffusionEncode", model=scene.model, positive=scene.source, latent=scene.latent, cfg=1.0,
                     denoise=0.8, encoder="dpm-encoder", encoder__seed=1, encoder__eta=0.5, **scene.grid)
    guider = scene.add("BasicGuider", model=scene.model, conditioning=scene.source)
    back = scene.add("SamplerCustomAdvanced", noise=code(0), sampler=code(1), sigmas=code(2), latent_image=code(3),
                     guider=guider())
    run = run_graph(scene)
    picture = run.outputs[scene.latent[0]][0]["samples"]
    assert apart(samples(run, same), samples(run, mirror, 4)) < 1e-4
    assert apart(samples(run, unedited), samples(run, same)) < 1e-5  # whatever the length of its prompt
    assert torch.isfinite(samples(run, edited)).all() and apart(samples(run, edited), samples(run, same)) > 1e-3
    assert apart(samples(run, nothing), picture) < 1e-5
    assert torch.isfinite(samples(run, half)).all() and apart(samples(run, half), picture) > 1e-4
    assert apart(samples(run, back), picture) < 1e-5
    figures(f"{kind}: mirror returns to {run.outputs[mirror.id][2].displacement[-1].item():.3f} of the picture")


SEVERAL = "several encoders, of which one would be rewritten"
REFUSED = {  # kind -> maker, channels of a latent, its encoder, and words of the sentence
    "HiDream": (kinds.hidream, 16, kinds.clip_with(kinds.llama), SEVERAL),
    "HunyuanDiT": (kinds.hunyuan_dit, 4, kinds.clip_with(kinds.mt5), SEVERAL),
    "HiDream O1": (kinds.hidream_o1, 3, tiny.clip, "as words, of which there is no embedding"),
    "Stable Cascade C": (kinds.cascade_c, 16, tiny.clip, "composes what another network draws"),
    "Stable Cascade B": (kinds.cascade_b, 4, tiny.clip, "draws the details of what another network composed"),
    "PiD": (kinds.pid, 3, tiny.clip, "draws the pixels of another model's latent"),
    "HunyuanImage 2.1 with quoted words": (
        kinds.hunyuan_image21, 64, kinds.clip_with(kinds.quoted), "without quotation marks"),
    "Ernie": (kinds.ernie, 128, tiny.clip, "Use a rewriter without gradients"),
    "PixelDiT": (kinds.pixel_dit, 3, tiny.clip, "Use a rewriter without gradients"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_others_are_refused_before_any_pass(run_graph, kind):
    make, channels, encoder, words = REFUSED[kind]
    passes, models = [], []

    def watched():
        models.append(make())
        models[0].model.diffusion_model.register_forward_pre_hook(lambda *_: passes.append(1))
        return models[0]

    scene = Scene(watched, lambda: tiny.pictures(channels=channels, scale=1.0), 4, "simple", encoder)
    scene.invert(Scene.PAPER, cfg=3.0)
    with pytest.raises(GraphFailed) as failure:
        run_graph(scene)
    sentence = str(failure.value)
    assert type(models[0].model).__name__ in sentence and words in sentence and not passes


def shape_of(latent_format) -> list[int]:
    sides = {1: [16], 2: [8, 8], 3: [1, 8, 8]}[latent_format.latent_dimensions]
    return [1, latent_format.latent_channels, *sides]


def described(config_class):
    """A model of that kind without its network, as the loader makes it; None where that takes weights to look at."""
    import comfy.model_patcher
    try:
        config = config_class({**config_class.unet_config, "disable_unet_model_creation": True})
        model = config.get_model({}, "", device=torch.device("cpu"))
    except (KeyError, RuntimeError, TypeError, AttributeError, IndexError, StopIteration, ValueError):
        return None
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


# The host's kinds that are walked above, and those of the same classes in other sizes.
SEEN = set("""SD15 SD20 SD21UnclipL SDXL SDXLRefiner SD15_instructpix2pix SDXL_instructpix2pix SD3 AuraFlow PixArtAlpha
    PixArtSigma Flux FluxInpaint FluxSchnell LongCatImage Flux2 Chroma ChromaRadiance Lumina2 ZImage ZImagePixelSpace
    Omnigen2 Boogu Kandinsky5Image HunyuanImage21 MageFlow Ideogram4 Lens ErnieImage PixelDiTT2I""".split())
ALIKE = {"SD21UnclipH", "SSD1B", "KOALA_700M", "KOALA_1B", "Segmind_Vega"}
# No pictures either, but made only of weights to look at: views of a picture, and two of sound.
NEEDS_WEIGHTS = {"Stable_Zero123", "StableAudio", "StableAudio3"}


def test_every_other_kind_is_refused_by_name(host, figures):
    import comfy.supported_models
    families = host.pack_module("nodes.host.families")
    accepted, refused, wrong, needs_weights = set(), {}, [], set()
    for config_class in comfy.supported_models.models:
        patcher, kind = described(config_class), config_class.__name__
        if patcher is None:
            needs_weights.add(kind)
            continue
        try:
            families.check_supported(patcher, torch.zeros(shape_of(patcher.model.latent_format)))
            accepted.add(kind)
        except ValueError as refusal:
            refused[kind] = str(refusal)
            if type(patcher.model).__name__ not in str(refusal) or not str(refusal).endswith("."):
                wrong.append(f"{kind}: {refusal}")
        except Exception as error:  # noqa: BLE001 (whatever it is, it is no sentence)
            wrong.append(f"{kind}: {error!r}")
    figures(f"kinds of the host: {len(SEEN | ALIKE)} of pictures, {len(refused)} refused by name")
    assert not wrong, "\n" + "\n".join(wrong)
    assert accepted <= SEEN and needs_weights <= SEEN | ALIKE | NEEDS_WEIGHTS and len(refused) >= 40
    assert "keeps its pictures as video latents" in refused["QwenImage"]  # it draws pictures, in another form
