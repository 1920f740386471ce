"""Tiny models of the kinds that `support.tiny` has not: the host's own classes, with random weights."""

import torch
from support.tiny import GAIN, UNET, WIDTH, clip, fill, patcher

FLOW = {"multiplier": 1.0, "shift": 1.5}


def made(base_class, config_class, config: dict, last, seed: int, extra: dict | None = None, gain=GAIN):
    """MODEL of the host's class `base_class`; `last` picks the network's last layer, which is weakened by `gain`."""
    kind = type("Tiny", (config_class,), {"unet_config": {}, "unet_extra_config": extra or {}})
    options = kind(config)
    options.set_inference_dtype(torch.float32, None)
    model = base_class(options, device=torch.device("cpu"))
    fill(model.diffusion_model, seed)
    last(model.diffusion_model).weight.data.mul_(gain)
    return patcher(model)


def refiner(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {**UNET, "num_classes": "sequential", "adm_in_channels": WIDTH + 5 * 256}
    heads = {"num_heads": 4, "num_head_channels": -1}
    return made(base.SDXLRefiner, kinds.SDXLRefiner, config, lambda network: network.out[-1], seed, heads)


def aura(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"in_channels": 4, "out_channels": 4, "cond_seq_dim": WIDTH, "n_double_layers": 1, "n_layers": 2,
              "dim": 64, "n_heads": 2, "patch_size": 2, "max_seq": 64, "global_conddim": 64}
    return made(base.AuraFlow, kinds.AuraFlow, config, lambda network: network.final_linear, seed)


def lumina(seed: int = 0, **changes):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"image_model": "lumina2", "in_channels": 16, "dim": 64, "n_layers": 1, "n_refiner_layers": 1,
              "n_heads": 2, "n_kv_heads": 2, "qk_norm": True, "cap_feat_dim": WIDTH, "axes_dims": [8, 12, 12],
              "axes_lens": [300, 64, 64], "patch_size": 2, **changes}
    return made(base.Lumina2, kinds.Lumina2, config, lambda network: network.final_layer.linear, seed)


def z_image(seed: int = 0):
    size = {"dim": 256, "n_heads": 8, "n_kv_heads": 8}
    return lumina(seed, **size, z_image_modulation=True, pad_tokens_multiple=32, time_scale=1000.0)


CHROMA = {
    "image_model": "chroma", "in_channels": 64, "out_channels": 64, "context_in_dim": WIDTH, "hidden_size": 64,
    "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 10000,
    "patch_size": 2, "qkv_bias": True, "in_dim": 64, "out_dim": 64, "hidden_dim": 64, "n_layers": 2,
    "txt_ids_dims": [], "vec_in_dim": 0,
}


def chroma(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    return made(base.Chroma, kinds.Chroma, CHROMA, lambda network: network.final_layer.linear, seed)


def chroma_radiance(seed: int = 0, **changes):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {**CHROMA, "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 4,
              "nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 1, "nerf_max_freqs": 4, "nerf_tile_size": 512,
              "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32, "use_x0": False,
              "use_sequential_txt_ids": False, **changes}
    return made(base.ChromaRadiance, kinds.ChromaRadiance, config, lambda net: net.nerf_final_layer_conv.conv, seed)


def pix_art(seed: int = 0, micro_condition: bool = True):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"input_size": 8, "hidden_size": 96, "num_heads": 4, "depth": 2, "caption_channels": WIDTH,
              "micro_condition": micro_condition}
    kind = kinds.PixArtAlpha if micro_condition else kinds.PixArtSigma
    return made(base.PixArt, kind, config, lambda network: network.final_layer.linear, seed)


def pix_art_sigma(seed: int = 0):
    return pix_art(seed, micro_condition=False)


def hunyuan_dit(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"hidden_size": 64, "depth": 4, "num_heads": 2, "text_states_dim": WIDTH, "text_states_dim_t5": 32,
              "text_len_t5": 16, "size_cond": True}
    return made(base.HunyuanDiT, kinds.HunyuanDiT1, config, lambda network: network.final_layer.linear, seed)


def flux(base_class, config_class, seed: int = 0, gain=GAIN, **changes):
    config = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": WIDTH,
              "context_in_dim": WIDTH, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
              "depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "qkv_bias": True,
              "guidance_embed": True, "txt_ids_dims": [], **changes}
    return made(base_class, config_class, config, lambda network: network.final_layer.linear, seed, gain=gain)


def flux_inpaint(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    return flux(base.Flux, kinds.FluxInpaint, seed, in_channels=96)


def flux2(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    return flux(base.Flux2, kinds.Flux2, seed, gain=3 * GAIN, in_channels=128, out_channels=128, vec_in_dim=None,
                theta=2000, axes_dim=[8, 8, 8, 8], patch_size=1, qkv_bias=False, txt_ids_dims=[3],
                global_modulation=True, mlp_silu_act=True, ops_bias=False, default_ref_method="index",
                ref_index_scale=10.0)


def long_cat(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    return flux(base.LongCatImage, kinds.LongCatImage, seed, vec_in_dim=None, guidance_embed=False,
                txt_ids_dims=[1, 2])


def hidream(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"image_model": "hidream", "in_channels": 16, "patch_size": 2, "num_layers": 1, "num_single_layers": 1,
              "attention_head_dim": 32, "num_attention_heads": 2, "caption_channels": [WIDTH, 32],
              "text_emb_dim": WIDTH, "axes_dims_rope": [16, 8, 8], "llama_layers": [0, 1]}
    return made(base.HiDream, kinds.HiDream, config, lambda network: network.final_layer.linear, seed)


OMNIGEN = {"hidden_size": 96, "num_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 4, "num_kv_heads": 2,
           "multiple_of": 32, "axes_dim_rope": (8, 8, 8), "axes_lens": (300, 64, 64), "timestep_scale": 1000.0}


def omnigen2(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"image_model": "omnigen2", **OMNIGEN, "text_feat_dim": WIDTH}
    return made(base.Omnigen2, kinds.Omnigen2, config, lambda network: network.norm_out.linear_2, seed)


def boogu(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"image_model": "boogu", **OMNIGEN, "instruction_feat_dim": WIDTH, "num_double_stream_layers": 1}
    return made(base.Boogu, kinds.Boogu, config, lambda network: network.norm_out.linear_2, seed)


def kandinsky5_image(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"image_model": "kandinsky5", "in_text_dim": WIDTH, "in_text_dim2": WIDTH, "time_dim": 32,
              "model_dim": 64, "ff_dim": 128, "visual_embed_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 1,
              "axes_dims": (8, 12, 12)}
    return made(base.Kandinsky5Image, kinds.Kandinsky5Image, config, lambda net: net.out_layer.out_layer, seed)


def hunyuan_image21(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"image_model": "hunyuan_video", "in_channels": 64, "out_channels": 64, "vec_in_dim": None,
              "context_in_dim": WIDTH, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
              "depth_single_blocks": 1, "axes_dim": [16, 16], "theta": 256, "patch_size": [1, 1], "qkv_bias": True,
              "guidance_embed": False, "byt5": False, "meanflow": False, "use_cond_type_embedding": False,
              "vision_in_dim": None, "meanflow_sum": False}
    return made(base.HunyuanImage21, kinds.HunyuanImage21, config, lambda net: net.final_layer.linear, seed)


def z_image_pixels(seed: int = 0, **changes):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"image_model": "zimage_pixel", "in_channels": 3, "dim": 256, "n_layers": 1, "n_refiner_layers": 1,
              "n_heads": 8, "n_kv_heads": 8, "qk_norm": True, "cap_feat_dim": WIDTH, "axes_dims": [8, 12, 12],
              "axes_lens": [300, 64, 64], "patch_size": 4, "z_image_modulation": True, "time_scale": 1000.0,
              "decoder_hidden_size": 32, "decoder_num_res_blocks": 1, "decoder_max_freqs": 4, **changes}
    return made(base.ZImagePixelSpace, kinds.ZImagePixelSpace, config, lambda net: net.dec_net.final_layer.linear, seed)


PIXEL_DIT = {
    "image_model": "pixeldit_t2i", "num_groups": 2, "hidden_size": 64, "pixel_hidden_size": 16,
    "pixel_attn_hidden_size": 32, "pixel_num_groups": 2, "patch_depth": 1, "pixel_depth": 1, "patch_size": 4,
    "txt_embed_dim": WIDTH,
}


def pixel_dit(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    return made(base.PixelDiTT2I, kinds.PixelDiTT2I, PIXEL_DIT, lambda net: net.final_layer.linear, seed, gain=6.0)


def mage_flow(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"image_model": "mage_flow", "num_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2,
              "joint_attention_dim": WIDTH, "axes_dims_rope": (8, 12, 12)}
    return made(base.MageFlow, kinds.MageFlow, config, lambda network: network.proj_out, seed, gain=3 * GAIN)


def ideogram4(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"image_model": "ideogram4", "num_layers": 1}
    size = {"num_attention_heads": 2, "attention_head_dim": 32, "intermediate_size": 128, "adaln_dim": 32,
            "llm_features_dim": WIDTH, "mrope_section": [6, 5, 5]}
    return made(base.Ideogram4, kinds.Ideogram4, config, lambda network: network.final_layer.linear, seed, size)


def lens(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"image_model": "lens", "num_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2,
              "enc_hidden_dim": WIDTH // 4, "axes_dims_rope": (8, 12, 12)}
    return made(base.Lens, kinds.Lens, config, lambda network: network.proj_out, seed)


def ernie(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"image_model": "ernie", "hidden_size": 128, "num_attention_heads": 2, "num_layers": 1,
              "ffn_hidden_size": 128, "text_in_dim": WIDTH, "rope_axes_dim": (16, 24, 24)}
    return made(base.ErnieImage, kinds.ErnieImage, config, lambda network: network.final_linear, seed, gain=4 * GAIN)


def instruct(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    heads = {"num_heads": 4, "num_head_channels": -1}
    return made(base.SD15_instructpix2pix, kinds.SD15_instructpix2pix, {**UNET, "in_channels": 8},
                lambda network: network.out[-1], seed, heads)


def instruct_sdxl(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {**UNET, "in_channels": 8, "num_classes": "sequential", "adm_in_channels": WIDTH + 6 * 256}
    heads = {"num_heads": 4, "num_head_channels": -1}
    return made(base.SDXL_instructpix2pix, kinds.SDXL_instructpix2pix, config, lambda network: network.out[-1], seed,
                heads)


def unclip(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {**UNET, "num_classes": "sequential", "adm_in_channels": WIDTH}
    noise = {"noise_schedule_config": {"timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}, "timestep_dim": 32}

    def base_class(options, device):
        return base.SD21UNCLIP(options, noise, device=device)

    heads = {"num_heads": 4, "num_head_channels": -1}
    return made(base_class, kinds.SD21UnclipL, config, lambda network: network.out[-1], seed, heads)


def schnell(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds

    def base_class(options, device):
        return base.Flux(options, model_type=base.ModelType.FLOW, device=device)

    return flux(base_class, kinds.FluxSchnell, seed, guidance_embed=False)


CASCADE = {"c_cond": 32, "c_hidden": [32, 32], "nhead": [2, 2], "blocks": [[1, 1], [1, 1]]}


def cascade_c(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"stable_cascade_stage": "c", **CASCADE, "c_clip_text": WIDTH, "c_clip_text_pooled": WIDTH}
    return made(base.StableCascade_C, kinds.Stable_Cascade_C, config, lambda network: network.clf[1], seed)


def cascade_b(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"stable_cascade_stage": "b", **CASCADE, "block_repeat": [[1, 1], [1, 1]],
              "level_config": ["CT", "CTA"], "dropout": [0, 0], "self_attn": [True, True], "c_clip": WIDTH}
    return made(base.StableCascade_B, kinds.Stable_Cascade_B, config, lambda network: network.clf[1], seed)


def pid(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {**PIXEL_DIT, "image_model": "pid", "lq_hidden_dim": 32, "lq_num_res_blocks": 1}
    return made(base.PiD, kinds.PiD, config, lambda network: network.final_layer.linear, seed)


def hidream_o1(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
            "intermediate_size": 64, "vocab_size": 100}
    vision = {"hidden_size": 32, "num_heads": 2, "depth": 1, "intermediate_size": 32, "deepstack_visual_indexes": (0,)}
    config = {"image_model": "hidream_o1", "text_config_overrides": text, "vision_config_overrides": vision}
    return made(base.HiDreamO1, kinds.HiDreamO1, config, lambda network: network.final_layer2.linear, seed)


def clip_with(extra, padded: bool = True):
    """`tiny.clip` that hands on what other encoders of the kind say beside its text: extra(embedding) -> options.

    Not `padded`: texts are as long as their words, as the encoders that are language models leave them.
    """
    def make():
        made = clip()
        encode = made.cond_stage_model.encode_token_weights

        def encoded(tokens):
            text, pooled = encode(tokens)[:2]
            ids = [token for token, _ in tokens["l"][0]]
            text = text if padded else text[:, :ids.index(ids[-1]) + 1]
            return text, pooled, extra(text)

        made.cond_stage_model.encode_token_weights = encoded
        return made
    return make


def mask(text):
    """That all tokens are words."""
    return {"attention_mask": torch.ones(text.shape[:2], dtype=torch.long)}


def llama(text):
    """HiDream's third encoder: [1, layers, tokens, width]."""
    return {"conditioning_llama3": torch.stack([text[..., :32], text[..., 32:]], dim=1)}


def mt5(text):
    """HunyuanDiT's second encoder, and the masks of both."""
    masks = {"attention_mask": torch.arange(77)[None] < 20, "attention_mask_mt5xl": torch.arange(16)[None] < 12}
    return {"conditioning_mt5xl": text[:, :16, :32].clone(), **masks}


def quoted(text):
    """HunyuanImage's second encoder, for the words in quotation marks."""
    return {"conditioning_byt5small": text[:, :8].clone()}


words = clip_with(mask, padded=False)
