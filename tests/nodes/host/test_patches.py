"""Other nodes' patches on the MODEL, under every walk of this pack: it works, or one sentence says why not."""

import pytest
import torch
from support import tiny
from support.judge import eye
from support.tiny import Scene

from harness.graph import give, node
from harness.results import GraphFailed

PATCHES = {
    "PerturbedAttentionGuidance": {"scale": 1.0},
    "SelfAttentionGuidance": {"scale": 0.5, "blur_sigma": 2.0},
    "FreeU": {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2},
    "FreeU_V2": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
    "TomePatchModel": {"ratio": 0.3},
    "HyperTile": {"tile_size": 32, "swap_size": 2, "max_depth": 0, "scale_depth": False},
    "RescaleCFG": {"multiplier": 0.7},
    "DifferentialDiffusion": {},
    "torch.compile": {},
}
CACHES = {
    "EasyCache": {"reuse_threshold": 0.2, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
    "LazyCache": {"reuse_threshold": 0.2, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
}


def compiled(model):
    """As TorchCompileModel does, by a backend that needs no C++ compiler and no minutes."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = model.clone()
    set_torch_compile_wrapper(model=model, backend="eager")
    return model


class Patched(Scene):
    """A scene whose model another node has patched."""

    def __init__(self, patch):
        super().__init__(steps=2)
        self.plain = self.model
        if patch == "torch.compile":
            self.model = self.add(node(compiled, ("MODEL",), {"model": "MODEL"}), model=self.model)()
        elif patch is not None:
            self.model = self.add(patch, model=self.model, **{**PATCHES, **CACHES}[patch])()
        self.prompts = {"positive": self.source, "latent": self.latent}


def inverted(rewriter, **settings):
    return lambda scene: (scene.invert({"method": rewriter, **settings}, cfg=1.0 if rewriter in UNGUIDED else 3.0), 4)


def sampled(scene):
    mirror = scene.invert({"method": "fixed point + negative prompt", "method__iterations": 2})
    return scene.sample(mirror, positive=scene.text("a photo of a dog"), cfg=2.0, region="auto"), 0


def followed(scene):
    """Cross-attention guidance in a stock sampler, its mirror made without the patch."""
    mirror = scene.invert({"method": "fixed point + negative prompt", "method__iterations": 2}, model=scene.plain)
    model = scene.add("MirrorCrossAttentionGuidance", model=scene.model, mirror=mirror(2), amount=2.0)()
    return scene.ksampler(mirror(0), scene.text("a photo of a dog"), scene.empty, 3.0, model=model), 0


def cycled(scene):
    inputs = {"model": scene.model, "source": scene.source, "target": scene.text("a dog"), "latent": scene.latent,
              "encoder": "dpm-encoder", "encoder__seed": 7, "encoder__eta": 0.1, "denoise": 1.0, "source_cfg": 1.0,
              "cfg": 3.0, "negative": scene.empty}
    return scene.add("CycleDiffusionEdit", **inputs, **scene.grid), 0


def led(scene):
    """Latent guidance by CLIP."""
    vae, clip_vision = scene.add(give(tiny.vae, "VAE"))(), scene.add(give(eye, "CLIP_VISION"))()
    clip = scene.add(give(tiny.clip, "CLIP"))()
    energy = scene.add("MirrorTextEnergy", clip_vision=clip_vision, clip=clip, text="a dog", weight=500.0, views=2)
    return scene.add("MirrorLatentGuidance", model=scene.model, positive=scene.source, vae=vae, latent=scene.latent,
                     energy=energy(), steps=2, scheduler="normal", cfg=1.0, eta=0.0, iterations=2, step=0.05,
                     seed=3), 0


def exact(scene):
    return scene.add("MirrorExactInvert", model=scene.model, positive=scene.source, latent=scene.latent, cfg=1.0,
                     method="edict", method__mixing=0.93, **scene.grid), 0


def edited(scene):
    """Edit Picture, both sides under shared noise."""
    return scene.add("MirrorEdit", model=scene.model, source=scene.source, target=scene.text("a photo of a dog"),
                     latent=scene.latent, settings="balanced", strength=1.0, seed=0, region="auto", **scene.grid), 0


def from_seed(scene):
    return scene.add("MirrorFromSeed", model=scene.model, positive=scene.source, negative=scene.empty, seed=3, cfg=2.0,
                     latent=scene.latent, **scene.grid), 0


def attention(scene):
    """Prompt-to-prompt and a pull towards the picture, in Mirror Sample."""
    mirror = scene.invert({"method": "fixed point + negative prompt", "method__iterations": 2}, model=scene.plain)
    model = scene.add("MirrorPromptToPrompt", model=scene.model, clip=scene.clip, mode="auto", cross_until=0.8,
                      self_until=0.5, source_text="a photo of a cat sitting on a car", target_text="a photo of a dog")()
    model = scene.add("MirrorReconstructionGuidance", model=model, step_size=0.2, threshold="fixed",
                      threshold__tau=0.1, dilation=0, first_timestep=1000)()
    return scene.sample(mirror, model=model, positive=scene.text("a photo of a dog"), cfg=2.0), 0


UNGUIDED = ("none", "fixed point + negative prompt", "paper")
ADAM = {"method__inner_steps": 2, "method__learning_rate": 0.01, "method__early_stop": False}
WALKS = {
    "invert, none": inverted("none"),
    "invert, fixed point": inverted("fixed point + negative prompt", method__iterations=2),
    "invert, paper": inverted("paper", **ADAM),
    "invert, null text": inverted("null text", **ADAM),
    "invert, negative prompt": inverted("negative prompt", method__interpolation=0.0),
    "sample": sampled,
    "cross-attention guidance": followed,
    "cycle": cycled,
    "latent guidance": led,
    "exact": exact,
    "edit picture": edited,
    "from a seed": from_seed,
    "attention control": attention,
}


def result(run_graph, patch, walk):
    scene = Patched(patch)
    made, slot = WALKS[walk](scene)
    return run_graph(scene).outputs[made.id][slot]["samples"]


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("patch", [
    pytest.param(patch, marks=pytest.mark.slow) if patch == "torch.compile" else patch for patch in PATCHES])
def test_patches_of_other_nodes(run_graph, patch, walk):
    found = result(run_graph, patch, walk)
    assert torch.isfinite(found).all() and found.std() > 0


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("cache", CACHES)
def test_models_that_skip_passes_are_refused_by_name(run_graph, cache, walk):
    with pytest.raises(GraphFailed, match=f"{cache} on this model skips passes.*Connect the model from before"):
        result(run_graph, cache, walk)
