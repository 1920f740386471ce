"""Tiny models of the kinds that `support.tiny` has not: the host's own classes, with random weights."""

import torch
from support.tiny import GAIN, UNET, WIDTH, fill, patcher

FLOW = {"multiplier": 1.0, "shift": 1.5}


def made(base_class, config_class, config: dict, last, seed: int, extra: dict | None = None):
    """MODEL of the host's class `base_class`; `last` picks the network's last layer."""
    kind = type("Tiny", (config_class,), {"unet_config": {}, "unet_extra_config": extra or {}})
    options = kind(config)
    options.set_inference_dtype(torch.float32, None)
    model = base_class(options, device=torch.device("cpu"))
    fill(model.diffusion_model, seed)
    last(model.diffusion_model).weight.data.mul_(GAIN)
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


def chroma(seed: int = 0):
    import comfy.model_base as base
    import comfy.supported_models as kinds
    config = {"image_model": "chroma", "in_channels": 64, "out_channels": 64, "context_in_dim": WIDTH,
              "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
              "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "qkv_bias": True, "in_dim": 64, "out_dim": 64,
              "hidden_dim": 64, "n_layers": 2, "txt_ids_dims": [], "vec_in_dim": 0}
    return made(base.Chroma, kinds.Chroma, config, lambda network: network.final_layer.linear, seed)
