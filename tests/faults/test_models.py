"""Every kind of model of the host: walked, or refused by name with the right reason before any pass."""

import pytest
import torch

from harness import tiny
from harness.tiny import Scene

from . import kinds

pytestmark = pytest.mark.faults
WALKED = {
    "SD1": (tiny.unet, 4), "SD2 (v)": (lambda: tiny.unet(v_prediction=True), 4), "SDXL": (tiny.sdxl, 4),
    "SDXL refiner": (kinds.refiner, 4), "SD3": (tiny.flow, 16), "Flux": (tiny.flux, 16), "AuraFlow": (kinds.aura, 4),
    "Lumina2": (kinds.lumina, 16), "Z-Image": (kinds.z_image, 16), "Chroma": (kinds.chroma, 16),
}


def samples(run, output, slot=0):
    return run.outputs[output.id][slot]["samples"]


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
    assert torch.allclose(samples(run, same), samples(run, mirror, 4), atol=1e-4)
    assert torch.isfinite(samples(run, edited)).all() and not torch.allclose(samples(run, edited), samples(run, same))
    assert torch.allclose(samples(run, back), picture, atol=1e-4)
    figures(f"{kind}: mirror returns to {run.outputs[mirror.id][2].displacement[-1].item():.3f} of the picture")


def shape_of(latent_format) -> list[int]:
    sides = {1: [16], 2: [8, 8], 3: [1, 8, 8]}[latent_format.latent_dimensions]
    return [1, latent_format.latent_channels, *sides]


def described(config_class):
    """A model of that kind without its network, as the loader makes it; None for what is no diffusion model."""
    import comfy.model_patcher
    config = config_class({**config_class.unet_config, "disable_unet_model_creation": True})
    try:
        model = config.get_model({}, "", device=torch.device("cpu"))
    except Exception as error:  # noqa: BLE001 (whatever a loader of another kind raises without its weights)
        return repr(error)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def test_every_other_kind_is_refused_by_name(host, figures):
    import comfy.supported_models
    families = host.pack_module("nodes.host.families")
    for config_class in comfy.supported_models.models:
        patcher = described(config_class)
        if isinstance(patcher, str):
            print(config_class.__name__, "UNMADE", patcher[:100])
            continue
        model = patcher.model
        try:
            families.check_supported(patcher, torch.zeros(shape_of(model.latent_format)))
            print(config_class.__name__, type(model).__name__, model.model_type.name, "accepted")
        except ValueError as refusal:
            print(config_class.__name__, type(model).__name__, model.model_type.name, "refused:", str(refusal)[:150])
