"""The embedded model: sizes, and loading through ComfyUI's own UNet, CLIP and VAE classes.

A latent diffusion model of Stable Diffusion's kind: 8x autoencoder, CLIP-type text tower, UNet with cross-attention,
scaled-linear schedule, eps-prediction. Unlike SD it has 8 latent channels of unit variance (its pictures are small).
The weights file has SD1's key layout.
"""
from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path

import comfy.clip_model
import comfy.latent_formats
import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "weights" / "embedded_world.safetensors"
PREVIEW = FOLDER / "weights" / "preview.json"
TOKENIZER = FOLDER / "tokenizer"

LATENT_CHANNELS = 8
CONTEXT = 128

VAE = {"double_z": True, "z_channels": LATENT_CHANNELS, "resolution": 128, "in_channels": 3, "out_ch": 3, "ch": 32,
       "ch_mult": [1, 1, 2, 4], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
VAE_CONFIG = {"ddconfig": VAE, "decoder_ddconfig": {**VAE, "num_res_blocks": 0}, "embed_dim": LATENT_CHANNELS}

UNET = {"image_size": 32, "in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS, "model_channels": 64,
        "num_res_blocks": [1, 1, 1], "channel_mult": [1, 2, 3], "transformer_depth": [1, 1, 0],
        "transformer_depth_output": [1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1, "context_dim": CONTEXT,
        "use_spatial_transformer": True, "use_linear_in_transformer": False, "adm_in_channels": None,
        "use_temporal_attention": False, "legacy": False}
FAITHFUL = 24.0                                   # dB; scenes come back from the autoencoder at 26 or more
HEADS = {"num_heads": -1, "num_head_channels": 32}


class LatentFormat(comfy.latent_formats.LatentFormat):
    scale_factor = 1.0
    latent_channels = LATENT_CHANNELS
    largest = 32                                  # cells a side that the pack's nodes take: twice those it learnt
    knows = "cartoon animals of 128 x 128"

    def __init__(self):
        if PREVIEW.exists():                      # made by `python run.py train --stages preview`
            colours = json.loads(PREVIEW.read_text(encoding="utf-8"))
            self.latent_rgb_factors, self.latent_rgb_factors_bias = colours["factors"], colours["bias"]


class EmbeddedWorld(comfy.supported_models.SD15):
    """Sizes of the embedded model. Built by hand: the host's list of models it can recognise is never touched."""
    unet_config = {}
    unet_extra_config = HEADS
    latent_format = LatentFormat

    def inpaint_model(self):
        return False                              # SD15 takes more than four input channels for an inpainting model


def text_config(tokens: int) -> dict:
    """CLIP text tower for a tokenizer of `tokens` entries, the last of which ends a text."""
    return {"num_hidden_layers": 3, "hidden_size": CONTEXT, "num_attention_heads": 4, "intermediate_size": 4 * CONTEXT,
            "hidden_act": "quick_gelu", "max_position_embeddings": 77, "eos_token_id": tokens - 1, "vocab_size": tokens}


@cache
def vocabulary_size() -> int:
    return len(json.loads((TOKENIZER / "vocab.json").read_text(encoding="utf-8")))


class TextModel(comfy.clip_model.CLIPTextModel):
    """The host's text model with as many rows of token embeddings as the config says (the host's always has 49408)."""

    def __init__(self, config_dict, dtype, device, operations):
        super().__init__(config_dict, dtype, device, operations)
        self.set_input_embeddings(operations.Embedding(config_dict["vocab_size"], config_dict["hidden_size"],
                                                       dtype=dtype, device=device))


class TextEncoder(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        n = vocabulary_size()
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, return_projected_pooled=False,
                         textmodel_json_config=text_config(n), model_class=TextModel,
                         special_tokens={"start": n - 2, "end": n - 1, "pad": n - 1})


class ClipModel(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=TextEncoder)


class WordTokenizer(comfy.sd1_clip.SDTokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(tokenizer_path=str(TOKENIZER), embedding_directory=embedding_directory, embedding_size=CONTEXT,
                         tokenizer_data=tokenizer_data or {})


class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {},
                         tokenizer=WordTokenizer)


class Autoencoder(comfy.sd.VAE):
    """The embedded world's VAE, which says so when it is given what is not of that world and so can't give it back."""

    def __init__(self, *given, warn: Callable[[str], None], **named):
        super().__init__(*given, **named)
        self.warn = warn
        self._shorten(self.first_stage_model.decoder)

    @staticmethod
    def _shorten(decoder) -> None:
        """ComfyUI before 0.24 has no `decoder_ddconfig` and builds the decoder as deep as the encoder: the blocks that
        there are no weights for go."""
        decoder.num_res_blocks = VAE_CONFIG["decoder_ddconfig"]["num_res_blocks"]
        for level in decoder.up:
            del level.block[decoder.num_res_blocks + 1:]

    def encode(self, pixel_samples, *given, **named):
        latents = super().encode(pixel_samples, *given, **named)
        small = max(latents.shape[-2:]) <= LatentFormat.largest         # larger ones are refused where they are edited
        if small and (quality := self.given_back(pixel_samples, latents)) < FAITHFUL:
            self.warn(f"This is the demo model, which only knows {LatentFormat.knows}: this picture comes back from it "
                      f"at {quality:.0f} dB. Load a checkpoint of your own for photos.")
        return latents

    def given_back(self, pixels: torch.Tensor, latents: torch.Tensor) -> float:
        """PSNR in dB of the worst of the pictures [B, H, W, 3] in [0, 1] as decoded from their latents [B, C, h, w]."""
        back = self.decode(latents)
        height, width = (min(a, b) for a, b in zip(back.shape[1:3], pixels.shape[1:3], strict=True))
        error = (back[:, :height, :width] - pixels[:, :height, :width, :3].to(back)).square().mean((1, 2, 3)).max()
        return -10 * float(error.clamp(min=1e-10).log10())


def load(path: Path = WEIGHTS, warn: Callable[[str], None] = logging.warning):
    """MODEL, CLIP and VAE of the embedded world, managed by the host like those of any checkpoint.

    warn: is given a sentence when a picture is encoded that is not of the world.

    Raises FileNotFoundError, with the command that makes the file, if the weights are absent.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: restore it from the repository, or run `python run.py train`")
    with torch.inference_mode(False):             # gradients are taken through these weights later
        sd = comfy.utils.load_torch_file(str(path), safe_load=True)
        return _model(sd), _clip(sd), _vae(sd, warn)


def _model(sd):
    prefix = "model.diffusion_model."
    config = EmbeddedWorld(UNET)
    device = mm.get_torch_device()
    dtype = mm.unet_dtype(model_params=comfy.utils.calculate_parameters(sd, prefix),
                          supported_dtypes=config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, mm.unet_manual_cast(dtype, device, config.supported_inference_dtypes))
    model = config.get_model(sd, prefix, device=mm.unet_offload_device())
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=mm.unet_offload_device())
    model.load_model_weights(sd, prefix, assign=patcher.is_dynamic())
    return patcher


def _clip(sd):
    target = comfy.supported_models_base.ClipTarget(Tokenizer, ClipModel)
    weights = {"clip_l." + k[len("cond_stage_model."):]: v for k, v in sd.items() if k.startswith("cond_stage_model.")}
    return comfy.sd.CLIP(target, parameters=sum(v.numel() for v in weights.values()), state_dict=weights)


def _vae(sd, warn):
    weights = {k[len("first_stage_model."):]: v for k, v in sd.items() if k.startswith("first_stage_model.")}
    vae = Autoencoder(sd=weights, config={"params": VAE_CONFIG}, warn=warn)
    vae.latent_channels = LATENT_CHANNELS
    return vae
