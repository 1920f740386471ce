"""Which models can work, and their noise levels."""

import comfy.latent_formats
import comfy.model_sampling
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...mirror_ops.walks.ddim import InputScale
from ...mirror_ops.walks.schedules import check_grid, paper_grid
from .values import check_finite

PAPERS = "papers (50: 981, ..., 21, 1)"
SCHEDULERS = [*comfy.samplers.SCHEDULER_NAMES, PAPERS]
NO_PICTURES = {  # kinds of the host whose latents have the shape of a picture's
    "ACEStep": "sound", "TripoSplat": "solid objects", "SVD_img2vid": "a video of a picture",
    "Stable_Zero123": "views of a picture", "SD_X4Upscaler": "a larger picture of a small one",
    "SAM3": "masks of a picture", "RT_DETR_v4": "boxes on a picture", "DepthAnything3": "depths of a picture",
}
NO_MIRROR = {  # kinds of the host that make pictures of a text, and why those cannot be walked
    "StableCascade_B": "draws the details of what another network composed",
    "StableCascade_C": "composes what another network draws",
    "PiD": "draws the pixels of another model's latent",
    "HiDream": "reads its prompt by several encoders, of which one would be rewritten",
    "HunyuanDiT": "reads its prompt by several encoders, of which one would be rewritten",
    "HiDreamO1": "reads its prompt as words, of which there is no embedding",
}
PICTURES = "SD1, SD2, SDXL, SD3, Flux, AuraFlow, PixArt, Lumina or Chroma"  # the kinds to use instead
UNSUPPORTED = ("IMG_TO_IMG", "IMG_TO_IMG_FLOW", "V_PREDICTION_DDPM")  # by name: older hosts lack some


def sampling_kind(model: ModelPatcher) -> str:
    """How the network's output is read (EPS, V_PREDICTION, CONST, ...); nodes that patch a MODEL can change it."""
    sampling = model.get_model_object("model_sampling")
    reads = {"calculate_input", "calculate_denoised"}
    return next(kind.__name__ for kind in type(sampling).__mro__ if reads & set(vars(kind)))


def check_supported(model: ModelPatcher, latent: Tensor) -> None:
    """Raises ValueError, naming the model, for families that cannot be inverted here and latents that do not fit."""
    name, latent_format = type(model.model).__name__, model.get_model_object("latent_format")
    for kind in (model.model.model_type.name, sampling_kind(model)):
        if kind in UNSUPPORTED:
            raise ValueError(f"{name} ({kind}) does not predict the noise in a picture, so nothing can be inverted.")
    for kind in type(model.model).__mro__:
        if kind.__name__ in NO_PICTURES:
            raise ValueError(f"{name} makes {NO_PICTURES[kind.__name__]}. Use a model that makes pictures of a text.")
        if kind.__name__ in NO_MIRROR:
            reason = NO_MIRROR[kind.__name__]
            raise ValueError(f"{name} {reason}: this cannot be inverted. Use a model of the kind of {PICTURES}.")
    if latent_format.latent_dimensions == 3:
        raise ValueError(
            f"{name} keeps its pictures as video latents of five dimensions, which cannot be walked here. Use a model "
            f"of still pictures, of the kind of {PICTURES}."
        )
    if latent.is_nested or latent.ndim != 4 or latent_format.latent_dimensions != 2:
        raise ValueError(
            f"Only still pictures can be inverted; {name} with a latent of {latent.ndim} dimensions is something else."
        )
    check_finite(latent, "`latent`")
    if latent.shape[-2] * latent.shape[-1] < 2:
        raise ValueError("The latent is a single cell, in which nothing can be edited. Give a larger picture.")
    if latent.shape[1] != latent_format.latent_channels:
        raise ValueError(
            f"The latent has {latent.shape[1]} channels and {name} needs {latent_format.latent_channels}. "
            "Encode the picture with this model's own VAE."
        )
    if max(latent.shape[-2:]) > getattr(latent_format, "largest", max(latent.shape[-2:])):
        height, width = (8 * cells for cells in latent.shape[-2:])
        raise ValueError(
            f"This is the demo model, which only knows {latent_format.knows}; the picture is {width} x {height}. Load "
            "a checkpoint of your own for it."
        )


def noise_levels(model: ModelPatcher, scheduler: str, steps: int, denoise: float = 1.0) -> Tensor:
    """[T+1] levels in sampling order, as the stock samplers use them (T is `steps`, or near it for some schedulers).

    With denoise < 1 the walk begins part of the way: the last `steps` of int(steps / denoise).
    """
    sampling = model.get_model_object("model_sampling")
    total = steps if denoise > 0.9999 else int(steps / denoise)
    if scheduler == PAPERS:
        sigmas = paper_grid(sampling.sigmas.float().cpu(), total)
    else:
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, total).float().cpu()
    return sigmas[-(steps + 1) :] if total > steps else sigmas


def check_alike(model, other, name: str) -> None:
    """Raises ValueError unless `model` and the model of the input `name` share latents and kind of noise."""
    one, two = ((latent_format(m), is_flow(m)) for m in (model, other))
    if one != two:
        raise ValueError(
            f"`model` ({type(model.model).__name__}) and `{name}` ({type(other.model).__name__}) do not share their "
            "latents: what one makes means nothing to the other. Use two models of one family."
        )


def check_levels(model: ModelPatcher, sigmas: Tensor) -> None:
    """Raises ValueError unless `sigmas` is a falling grid that this model can be told."""
    check_grid(sigmas)
    if is_flow(model) and sigmas[0] > 1:
        raise ValueError(f"A flow model's noise levels end at 1; this schedule begins at {sigmas[0]:.3g}.")


def is_flow(model: ModelPatcher) -> bool:
    """Whether latents are (1 - sigma) * x0 + sigma * noise instead of x0 + sigma * noise."""
    return isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)


def input_scale(model: ModelPatcher) -> InputScale:
    """c_in(sigma), from model space to the network's input, read off the model's own sampling object."""
    sampling = model.get_model_object("model_sampling")

    def scale(sigma: Tensor) -> Tensor:
        one = torch.ones(1, 1, 1, 1, device=sigma.device, dtype=sigma.dtype)
        return sampling.calculate_input(sigma.reshape(1), one).reshape(())

    return scale


def stock_start(model: ModelPatcher, x: Tensor, sigma: Tensor) -> Tensor:
    """The LATENT from which a stock sampler with its noise off starts at the model-space latent x of level sigma.

    For a flow model that sampler multiplies by 1 - sigma, so at sigma 1 no latent will do; x itself is then returned.
    """
    if is_flow(model) and sigma < 1:
        x = x / (1 - sigma)
    return latent_out(model, x)["samples"]


def latent_format(model: ModelPatcher) -> str:
    """The name of the model's latent space, as `to_picture_space` takes it."""
    return type(model.get_model_object("latent_format")).__name__


def latent_in(model: ModelPatcher, samples: Tensor) -> Tensor:
    """The samples of a LATENT in model space, float32 on the CPU."""
    return model.model.process_latent_in(samples.float().cpu())


def latent_out(model: ModelPatcher, x: Tensor) -> dict:
    """Model-space latents [B, C, H, W] as a LATENT, float32 on the CPU."""
    return {"samples": model.model.process_latent_out(x.float()).cpu()}


def to_picture_space(latents: Tensor, latent_format: str) -> Tensor:
    """Model-space latents as the LATENT that a VAE decodes. Raises ValueError for a latent format the host lacks."""
    kind = getattr(comfy.latent_formats, latent_format, None)
    if kind is None:
        raise ValueError(f"This ComfyUI does not know the latent format {latent_format} of the mirror.")
    return kind().process_out(latents)
