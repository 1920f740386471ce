"""Tiny random models of the host's own classes, so that graphs run for real in seconds and without weight files.

`loader(make)` registers a node that builds what `make()` returns, inside the executor as a stock loader would, so that
its weights are inference tensors.
"""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from unittest import mock

import torch

from harness.graph import Graph, give

WIDTH, GAIN = 64, 0.1
WORDS = "a an the of on photo picture cat dog red blue car tree sky in with sitting striped plain this is".split()
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_output": [0, 1, 0, 1],
    "transformer_depth_middle": 1, "context_dim": WIDTH, "use_spatial_transformer": True,
    "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False, "legacy": False,
}

LAYERS = 5      # of self- and of cross-attention in UNET: two on the way in, one in the middle, two on the way out


def fill(module: torch.nn.Module, seed: int, scale: float = 0.08) -> torch.nn.Module:
    """Seeded weights: the host's layers start as uninitialised memory."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(module.named_parameters()):
        value = torch.randn(weight.shape, generator=generator) * scale
        gain = name.endswith("weight") and weight.ndim == 1
        weight.data.copy_((value + 1.0 if gain else value).to(weight.dtype))
    return module


def gentle(network: torch.nn.Module, out: torch.nn.Module, seed: int, gain: float) -> None:
    """Seeded weights with a weak last layer: a smooth denoiser, so that walks drift but do not explode."""
    fill(network, seed)
    out.weight.data.mul_(gain)
    out.bias.data.mul_(gain)


def patcher(model):
    import comfy.model_management as management
    from comfy.model_patcher import CoreModelPatcher

    return CoreModelPatcher(model.eval(), management.get_torch_device(), management.unet_offload_device())


def unet(seed: int = 0, dtype=torch.float32, v_prediction: bool = False):
    """MODEL of SD1.x's kind, about a million parameters."""
    import comfy.model_base as base
    import comfy.supported_models

    class Tiny(comfy.supported_models.SD15):
        unet_config = {}
        unet_extra_config = {"num_heads": 4, "num_head_channels": -1}

    config = Tiny(dict(UNET))
    config.set_inference_dtype(dtype, None)
    kind = base.ModelType.V_PREDICTION if v_prediction else base.ModelType.EPS
    model = base.BaseModel(config, model_type=kind, device=torch.device("cpu"))
    gentle(model.diffusion_model, model.diffusion_model.out[-1], seed, GAIN)
    return patcher(model)


def deep(seed: int = 0):
    """`unet` with attention at all the places where SD1.x has it."""
    with mock.patch.dict(UNET, transformer_depth_output=[1, 1, 1, 1]):
        return unet(seed)


def coarse(seed: int = 0):
    """`unet` for latents whose cells are 16 pixels wide."""
    model = unet(seed)
    model.model.latent_format.spacial_downscale_ratio = 16
    return model


def sdxl(seed: int = 0):
    """MODEL of SDXL's kind: a pooled prompt and sizes enter through `y`."""
    import comfy.model_base as base
    import comfy.supported_models

    class Tiny(comfy.supported_models.SDXL):
        unet_config = {}
        unet_extra_config = {"num_heads": 4, "num_head_channels": -1}

    config = Tiny({**UNET, "num_classes": "sequential", "adm_in_channels": WIDTH + 6 * 256})
    config.set_inference_dtype(torch.float32, None)
    model = base.SDXL(config, device=torch.device("cpu"))
    gentle(model.diffusion_model, model.diffusion_model.out[-1], seed, GAIN / 4)
    return patcher(model)


def flow(seed: int = 0):
    """MODEL of SD3's kind: a flow-prediction transformer with joint attention and 16 latent channels."""
    import comfy.model_base as base
    import comfy.supported_models

    class Tiny(comfy.supported_models.SD3):
        unet_config = {}

    config = Tiny({
        "in_channels": 16, "patch_size": 2, "depth": 2, "input_size": None, "adm_in_channels": WIDTH,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": 128}},
        "pos_embed_max_size": 16, "num_patches": 256, "pos_embed_scaling_factor": None,
    })
    config.set_inference_dtype(torch.float32, None)
    model = base.SD3(config, device=torch.device("cpu"))
    gentle(model.diffusion_model, model.diffusion_model.final_layer.linear, seed, GAIN)
    model.diffusion_model.pos_embed.normal_(generator=torch.Generator().manual_seed(seed)).mul_(0.02)
    return patcher(model)


def flux(seed: int = 0):
    """MODEL of Flux's kind: flow prediction, joint and single attention blocks, distilled guidance as an input."""
    import comfy.model_base as base
    import comfy.supported_models

    class Tiny(comfy.supported_models.Flux):
        unet_config = {}

    config = Tiny({
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": WIDTH, "context_in_dim": WIDTH,
        "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
        "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True,
        "txt_ids_dims": [],
    })
    config.set_inference_dtype(torch.float32, None)
    model = base.Flux(config, device=torch.device("cpu"))
    gentle(model.diffusion_model, model.diffusion_model.final_layer.linear, seed, GAIN)
    return patcher(model)


def controlnet(seed: int = 7):
    """CONTROL_NET for `unet`."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    config = {key: value for key, value in UNET.items() if key not in ("out_channels", "transformer_depth_output")}
    model = comfy.cldm.cldm.ControlNet(
        hint_channels=3, num_heads=4, num_head_channels=-1, dtype=torch.float32,
        operations=comfy.ops.disable_weight_init, **config)
    return comfy.controlnet.ControlNet(fill(model, seed, 0.05).eval())


@cache
def tokenizer_folder() -> tuple[str, dict[str, int]]:
    """A folder with a small byte-pair vocabulary in which each of WORDS is one token; removed when Python ends."""
    import comfy.sd1_clip

    folder = Path(tempfile.mkdtemp(prefix="tiny-tokenizer-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    letters = [*map(chr, range(ord("a"), ord("z") + 1)), *"0123456789,.'-"]
    pieces = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            pieces.append(parts[0])
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merged = [" ".join(pair) for pair in dict.fromkeys(merges)]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merged, ""]))
    stock = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        (folder / name).write_text((stock / name).read_text())
    return str(folder), vocabulary


def clip(seed: int = 1):
    """CLIP with a two-layer text tower of width WIDTH and 77 tokens."""
    import comfy.sd
    import comfy.sd1_clip as sd1
    import comfy.supported_models_base

    folder, vocabulary = tokenizer_folder()
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    config = {
        "num_hidden_layers": 2, "hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": 128,
        "hidden_act": "quick_gelu", "max_position_embeddings": 77, "eos_token_id": end, "vocab_size": len(vocabulary),
    }

    class Tower(sd1.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            special = {"start": start, "end": end, "pad": end}
            super().__init__(
                device=device, dtype=dtype, model_options=model_options or {}, return_projected_pooled=False,
                textmodel_json_config=dict(config), special_tokens=special,
            )

    class Encoder(sd1.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(device, dtype, model_options or {}, clip_name="l", clip_model=Tower)

    class Words(sd1.SDTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(
                tokenizer_path=folder, embedding_directory=embedding_directory, embedding_size=WIDTH,
                tokenizer_data=tokenizer_data or {},
            )

    class Tokenizer(sd1.SD1Tokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(embedding_directory, tokenizer_data or {}, clip_name="l", tokenizer=Words)

    made = comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(Tokenizer, Encoder))
    fill(made.cond_stage_model, seed)
    return made


def vae(seed: int = 2):
    """VAE of TAESD's kind with SD1.x's latent scale."""
    import comfy.sd
    from comfy.taesd.taesd import TAESD

    weights = fill(TAESD(latent_channels=4), seed, 0.05).state_dict()
    weights["vae_scale"], weights["vae_shift"] = torch.tensor(0.18215), torch.tensor(0.0)
    return comfy.sd.VAE(sd=weights)


def pictures(batch: int = 1, channels: int = 4, height: int = 8, width: int = 8, seed: int = 3, scale: float = 0.18215):
    """A LATENT of smooth unit-variance pictures in model space, unscaled as on a wire."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, channels, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return {"samples": smooth / smooth.std() / scale}


class Scene(Graph):
    """A graph with a tiny model, its texts and a picture, and short ways to the pack's nodes.

    PAPER never stops early, so that what it does is the same everywhere.
    """

    PAPER = {"method": "paper", "method__inner_steps": 3, "method__learning_rate": 0.02, "method__early_stop": False}
    NULL_TEXT = {**PAPER, "method": "null text"}
    NONE = {"method": "none"}

    def __init__(self, make=unet, latent=pictures, steps: int = 5, scheduler: str = "ddim_uniform", encoder=clip):
        super().__init__()
        self.model = self.add(give(make, "MODEL"))()
        self.clip = self.add(give(encoder, "CLIP"))()
        self.latent = self.add(give(latent, "LATENT"))()
        self.source = self.text("a photo of a cat sitting on a car")
        self.empty = self.text("")
        self.grid = {"steps": steps, "scheduler": scheduler}

    def text(self, words: str) -> list:
        return self.add("CLIPTextEncode", clip=self.clip, text=words)()

    def invert(self, rewriter=None, **changes):
        """RedescribedDDIMInvert; a cfg other than 1 gets the empty negative."""
        inputs = {"model": self.model, "positive": self.source, "latent": self.latent, "cfg": 1.0, **self.grid}
        if rewriter:
            inputs["rewriter"] = self.add("PromptRewriteOptimizer", **rewriter)()
        if changes.get("cfg", 1.0) != 1.0:
            inputs["negative"] = self.empty
        return self.add("RedescribedDDIMInvert", **{**inputs, **changes})

    def sample(self, mirror, **changes):
        inputs = {"model": self.model, "mirror": mirror(2), "positive": self.source, "strength": 1.0, "cfg": 1.5,
                  "cfg_until": 1.0, "exact": "off", "region": "everywhere"}
        return self.add("MirrorSample", **{**inputs, **changes})

    def ksampler(self, latent, positive, negative, cfg: float, **changes):
        """The stock sampler with the noise off."""
        inputs = {
            "model": self.model, "add_noise": "disable", "noise_seed": 0, "cfg": cfg, "sampler_name": "euler",
            "positive": positive, "negative": negative, "latent_image": latent, "start_at_step": 0,
            "end_at_step": 10000, "return_with_leftover_noise": "disable", **self.grid,
        }
        return self.add("KSamplerAdvanced", **{**inputs, **changes})
