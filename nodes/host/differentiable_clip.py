"""From latents to pictures to CLIP's view of them, differentiably: for energies that guide latents.

The host's own ways cannot serve: `VAE.decode` copies into buffers, `ClipVisionModel.encode_image` rounds pixels to 256
levels, through which no gradient passes, and the layers of its encoders add in place to what their norms have saved.
"""

from collections.abc import Callable, Sequence

import comfy.model_management
import torch
from torch import Tensor
from torch.nn.functional import interpolate, layer_norm
from torch.utils.checkpoint import checkpoint

from .gradients import NormalTensors

# An allowance for a gradient through the decoder, which keeps its activations, in the host's estimates of one decoding.
ROOM = 4


def load(patchers: Sequence, vae, shape: Sequence[int]) -> None:
    """Brings models to their devices, whole, all at once, with room for a gradient through `vae` at latents
    [B, C, h, w], or through an encoder, whose views are looked at one after the other."""
    room = ROOM * vae.memory_used_decode(shape, vae.vae_dtype)
    comfy.model_management.load_models_gpu(list(patchers), memory_required=room, force_full_load=True)


class NormsOnCopies(NormalTensors):
    """Layer norms save a copy of their input, since the host's encoder layers add to that in place."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is layer_norm:
            args = (args[0].clone(), *args[1:])
        return super().__torch_function__(func, types, args, kwargs)


def check_decodes(vae, channels: int) -> None:
    """Raises ValueError for a VAE that decodes latents of another number of channels than the model's."""
    if vae.latent_channels != channels:
        raise ValueError(
            f"This model's latents have {channels} channels, and the VAE decodes those of {vae.latent_channels}. "
            "Connect the VAE of the model's own checkpoint."
        )


def picture_decoder(vae) -> Callable[[Tensor], Tensor]:
    """LATENT samples [B, C, h, w] to pictures [B, 3, H, W] in [0, 1]; keeps only its input for the backward pass.

    For models that `load` has brought in.
    """

    def decode(samples: Tensor) -> Tensor:
        with NormalTensors():
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
        with NormsOnCopies():
            return model(pixel_values=(x - mean) / std, intermediate_output=-2)[2].float()

    return embed


def _middle_square(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return x[..., top : top + side, left : left + side]
