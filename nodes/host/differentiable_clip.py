"""From latents to pictures to CLIP's view of them, differentiably: for energies that guide latents.

The host's own ways cannot serve: `VAE.decode` copies into buffers, `ClipVisionModel.encode_image` rounds pixels to 256
levels, through which no gradient passes, and the layers of its encoders add in place what autograd still needs.
"""

from collections.abc import Callable, Sequence

import comfy.model_management
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.checkpoint import checkpoint

from .gradients import make_weights_normal


def load(patchers: Sequence) -> None:
    """Brings models to their devices, whole, all at once; and makes their weights usable by autograd."""
    comfy.model_management.load_models_gpu(list(patchers), force_full_load=True)
    for patcher in patchers:
        make_weights_normal(patcher.model)


def picture_decoder(vae) -> Callable[[Tensor], Tensor]:
    """LATENT samples [B, C, h, w] to pictures [B, 3, H, W] in [0, 1]; keeps only its input for the backward pass.

    For models that `load` has brought in.
    """

    def decode(samples: Tensor) -> Tensor:
        return vae.process_output(vae.first_stage_model.decode(samples.to(vae.vae_dtype)).float().clone())

    return lambda samples: checkpoint(decode, samples.to(vae.device), use_reentrant=False)


def embedder(clip_vision) -> Callable[[Tensor], Tensor]:
    """Pictures [B, 3, H, W] in [0, 1] to embeddings [B, width] in CLIP's common space.

    For models that `load` has brought in. Raises ValueError for an encoder without a projection into that space.
    """
    model, size, device = clip_vision.model, clip_vision.image_size, clip_vision.load_device
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (clip_vision.image_mean, clip_vision.image_std))
    if not hasattr(model, "visual_projection"):
        raise ValueError("This clip_vision model has no space in common with texts. Load one of CLIP's kind.")

    def embed(pictures: Tensor) -> Tensor:
        x = _middle_square(pictures.to(device, torch.float32))
        if x.shape[-1] != size:
            x = interpolate(x, size=(size, size), mode="bicubic", antialias=True)
        norms = [part for part in model.modules() if isinstance(part, torch.nn.LayerNorm)]
        hooks = [norm.register_forward_pre_hook(lambda _, args: (args[0].clone(), *args[1:])) for norm in norms]
        try:
            return model(pixel_values=(x - mean) / std, intermediate_output=-2)[2].float()
        finally:
            for hook in hooks:
                hook.remove()

    return embed


def _middle_square(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return x[..., top : top + side, left : left + side]
