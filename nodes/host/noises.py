"""NOISE and empty latents, as the host's own samplers take them."""

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .walk import Walk


class GivenNoise:
    """A NOISE: this one, whatever the seed. `belongs` says, where the latent has another shape, what to connect."""

    seed = 0

    def __init__(self, noise: Tensor, belongs: str):
        self.noise, self.belongs = noise, belongs

    def generate_noise(self, latent: dict) -> Tensor:
        """[B, C, H, W] as the sampler asks for it. Raises ValueError for a latent of another shape."""
        if latent["samples"].shape != self.noise.shape:
            raise ValueError(f"This noise is for latents of {list(self.noise.shape)}: {self.belongs}.")
        return self.noise.clone()


def empty_latent(model: ModelPatcher, latent: dict) -> Tensor:
    """An empty LATENT's samples with as many channels as the model's latents have, and cells of their size; others as
    they are."""
    return comfy.sample.fix_empty_latent_channels(model, latent["samples"], latent.get("downscale_ratio_spacial"))


def seeded_noise(samples: Tensor, seed: int, batch_index: list[int] | None) -> Tensor:
    """[B, C, H, W] the noise that a stock sampler draws for this seed."""
    return comfy.sample.prepare_noise(samples, seed, batch_index)


def noisy_start(walk: Walk, noise: Tensor, picture: Tensor) -> Tensor:
    """[B, C, H, W] where a stock sampler begins: `picture`, in model space, under the noise of the first level."""
    whole = comfy.samplers.KSAMPLER(None).max_denoise(walk.guider, walk.sigmas)
    sampling = walk.guider.inner_model.model_sampling
    return sampling.noise_scaling(walk.sigmas[0], noise.to(picture), picture, whole)


def noise_spread(walk: Walk) -> float:
    """The deviation that a stock sampler gives to the noise of an empty latent."""
    one = torch.ones(1, 1, 1, 1, device=walk.device)
    return float(noisy_start(walk, one, torch.zeros_like(one)))
