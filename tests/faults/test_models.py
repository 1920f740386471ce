"""Every kind of model of the host: walked, or refused by name with the right reason before any pass."""

import pytest
import torch
from support import tiny
from support.tiny import Scene

from . import kinds

pytestmark = pytest.mark.faults
WALKED = {
    "SD1": (tiny.unet, 4), "SD2 (v)": (lambda: tiny.unet(v_prediction=True), 4), "SDXL": (tiny.sdxl, 4),
    "SDXL refiner": (kinds.refiner, 4), "SD3": (tiny.flow, 16), "Flux": (tiny.flux, 16), "AuraFlow": (kinds.aura, 4),
    "Lumina2": (kinds.lumina, 16), "Z-Image": (kinds.z_image, 16), "Chroma": (kinds.chroma, 16),
}


def samples(run, output, slot=0):
    return run.outputs[output.id][slot]["samples"]


def apart(a, b) -> float:
    """Relative rms distance."""
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("kind", WALKED)
def test_a_picture_comes_back_and_is_edited(run_graph, figures, kind):
    make, channels = WALKED[kind]
    scene = Scene(make, lambda: tiny.pictures(channels=channels, scale=1.0), steps=4, scheduler="simple")
    mirror, negative = scene.invert(Scene.PAPER, cfg=3.0), {"negative": scene.empty}
    same = scene.sample(mirror, strength=0.0, cfg=3.0, **negative)
    edited = scene.sample(mirror, positive=scene.text("a photo of a dog"), **negative)
    code = scene.add("CycleDiffusionEncode", model=scene.model, positive=scene.source, latent=scene.latent, cfg=1.0,
                     denoise=0.8, encoder="dpm-encoder", encoder__seed=1, encoder__eta=0.5, **scene.grid)
    guider = scene.add("BasicGuider", model=scene.model, conditioning=scene.source)
    back = scene.add("SamplerCustomAdvanced", noise=code(0), sampler=code(1), sigmas=code(2), latent_image=code(3),
                     guider=guider())
    run = run_graph(scene)
    picture = run.outputs[scene.latent[0]][0]["samples"]
    assert apart(samples(run, same), samples(run, mirror, 4)) < 1e-4
    assert torch.isfinite(samples(run, edited)).all() and apart(samples(run, edited), samples(run, same)) > 1e-3
    assert apart(samples(run, back), picture) < 1e-5
    figures(f"{kind}: mirror returns to {run.outputs[mirror.id][2].displacement[-1].item():.3f} of the picture")


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


# Kinds whose latents are pictures. Those that are not walked above are told at their prompts, before any pass, if they
# read a text in another way than as one embedding (`denoiser.Prompt`).
PICTURES = set("""SD15 SD20 SD21UnclipL SD21UnclipH SDXLRefiner SDXL SSD1B KOALA_700M KOALA_1B Segmind_Vega SD3 AuraFlow
    SD15_instructpix2pix SDXL_instructpix2pix Stable_Cascade_C Stable_Cascade_B PixArtAlpha PixArtSigma HunyuanDiT
    HunyuanDiT1 FluxInpaint Flux LongCatImage FluxSchnell HunyuanImage21 ZImagePixelSpace ZImage PiD PixelDiTT2I Lumina2
    HiDream HiDreamO1 Chroma ChromaRadiance Omnigen2 Boogu MageFlow Ideogram4 Flux2 Lens ErnieImage
    Kandinsky5Image""".split())


def test_every_other_kind_is_refused_by_name(host, figures):
    import comfy.supported_models
    families = host.pack_module("nodes.host.families")
    accepted, refused, wrong = set(), {}, []
    for config_class in comfy.supported_models.models:
        patcher, kind = described(config_class), config_class.__name__
        if patcher is None:
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
    figures(f"kinds of the host: {len(accepted)} of pictures, {len(refused)} refused by name")
    assert not wrong, "\n" + "\n".join(wrong)
    assert accepted - PICTURES == set() and len(refused) >= 40
    assert "keeps its pictures as video latents" in refused["QwenImage"]  # it draws pictures, in another form
