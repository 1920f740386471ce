"""Whether a text was encoded by the CLIP of this model: the commonest mistake, told before any pass."""

from itertools import chain

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .conditioning import Conditioning

TEXT_LAYERS = ("context_embedder", "txt_in", "cap_embedder.1", "cond_seq_linear")  # SD3, Flux and Chroma, Lumina, Aura


def check_fits(model: ModelPatcher, prompts: dict[str, Conditioning], latent: Tensor) -> None:
    """Raises ValueError unless the texts have the widths that this model's network reads: else the CLIP is another's.

    prompts: name -> CONDITIONING; latent [B, C, H, W].
    """
    family, width, pooled = type(model.model).__name__, text_width(model), pooled_width(model)
    for name, prompt in prompts.items():
        for text, options in prompt:
            if width is not None and text.shape[-1] != width:
                raise ValueError(
                    f"The {name} prompt has {text.shape[-1]} numbers a token and {family} reads {width}: it was "
                    "encoded by the CLIP of another model. Encode it with the CLIP that belongs to this one."
                )
            found = _pooled_input(model, name, options, latent)
            if pooled is not None and found is not None and found.shape[-1] != pooled:
                raise ValueError(
                    f"The pooled output of the {name} prompt does not fit {family} ({found.shape[-1]} numbers instead "
                    f"of {pooled}): it was encoded by the CLIP of another model. Use the one that belongs to this."
                )


def text_width(model: ModelPatcher) -> int | None:
    """How many numbers a token of the text has that the network reads; None where it cannot be told."""
    network = model.model.diffusion_model
    named = (_layer(network, path) for path in TEXT_LAYERS)
    found = (part.attn2.to_k for part in network.modules() if hasattr(getattr(part, "attn2", None), "to_k"))
    return next((layer.in_features for layer in chain(named, found) if hasattr(layer, "in_features")), None)


def _layer(network: torch.nn.Module, path: str):
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None


def pooled_width(model: ModelPatcher) -> int | None:
    """How many numbers the network reads beside the text, sizes included; None if none."""
    flux = _layer(model.model.diffusion_model, "vector_in.in_layer")
    if flux is not None:
        return getattr(flux, "in_features", None)
    return model.model.model_config.unet_config.get("adm_in_channels") or None


def _pooled_input(model: ModelPatcher, name: str, options: dict, latent: Tensor) -> Tensor | None:
    """What the model makes of the pooled output and sizes; ValueError if it needs a pooled output that is missing."""
    if "unclip_conditioning" in options:  # takes the place of the pooled output, and weights to look at
        return None
    sizes = {"height": latent.shape[-2] * 8, "width": latent.shape[-1] * 8}
    try:
        return model.model.encode_adm(
            **{**sizes, "noise": latent, "device": torch.device("cpu"), "prompt_type": name, **options})
    except KeyError as missing:
        raise ValueError(
            f"{type(model.model).__name__} reads a pooled output beside the text, which the {name} prompt lacks "
            f"({missing}). Encode it with the CLIP of this model."
        ) from missing
