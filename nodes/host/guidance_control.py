"""Post-cfg functions of a model: proximal guidance, and the pull towards the picture outside of the edit.

ProxEdit (Han et al., WACV 2024). The maths is in mirror_ops/guidance/proximal.py; here it meets the host's hooks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import ModelSamplingContinuousEDM, ModelSamplingDiscreteEDM, StableCascadeSampling
from torch import Tensor

from ...mirror_ops.guidance.proximal import (
    EditMask,
    Prox,
    Threshold,
    inversion_guidance,
    reconstruction_guidance,
    without_small,
)
from ...mirror_ops.walks.ddim import euler, implied_denoised
from ...mirror_ops.walks.trajectory import Mirror
from . import families
from .attach import active_reference, attach
from .branches import Branch, Control, acts, branch_of
from .reference_pass import ReferencePass

PostCfg = Callable[[dict], Tensor]
# Whose timesteps are what the network is told of sigma, and no places in a table of 1000; continuous v is an EDM
NO_TABLE = (ModelSamplingContinuousEDM, ModelSamplingDiscreteEDM, StableCascadeSampling)


class Window(NamedTuple):
    """The training timesteps at which a patch acts: first >= t >= last. Of a flow model t is 1000 sigma, of others
    without a table of timesteps (EDM, continuous v) the place of log sigma between the model's ends, from 0 to 1000."""

    first: int
    last: int
    flow: bool

    @classmethod
    def of(cls, model: ModelPatcher, first: int, last: int) -> "Window":
        """Raises ValueError for a window that holds nothing."""
        if last > first:
            raise ValueError(f"Sampling goes from timestep 1000 to 0: {first} cannot be first and {last} last.")
        return cls(first, last, families.is_flow(model))

    def holds(self, sigma: Tensor, sampling) -> bool:
        """Whether the level sigma, [B] alike or a number, lies in it; `sampling` is the model's model_sampling."""
        sigma = sigma.flatten()[0]
        if self.flow:
            t = 1000 * sigma
        else:
            t = log_place(sigma, sampling) if isinstance(sampling, NO_TABLE) else sampling.timestep(sigma)
        return self.last <= float(t) <= self.first


def log_place(sigma: Tensor, sampling) -> float:
    """Where log sigma lies between the sampling's ends: 0 at sigma_min and below, 1000 at sigma_max and above."""
    lowest, highest = (math.log(float(end)) for end in (sampling.sigma_min, sampling.sigma_max))
    return 1000 * min(max((float(sigma.log()) - lowest) / (highest - lowest), 0.0), 1.0)


@dataclass(frozen=True)
class Proximal:
    """The post-cfg function. Where there is no negative there is no guidance; a source branch is left as it is."""

    prox: Prox
    threshold: Threshold
    window: Window

    def __call__(self, args: dict) -> Tensor:
        if not is_guided(args, self.window):
            return args["denoised"]
        delta = args["cond_denoised"] - args["uncond_denoised"]
        tau = self.threshold(delta, args["sigma"], alone=is_edit_alone(args))
        return without_small(args["denoised"], delta, args["cond_scale"], tau, self.prox)


def is_guided(args: dict, window: Window, control: Control = Control.GUIDANCE) -> bool:
    """Whether a post-cfg function has something to do: guidance, in its window, where this kind of control acts."""
    here = acts(control, args["model_options"].get("transformer_options", {}))
    return args["uncond"] is not None and here and window.holds(args["sigma"], args["model"].model_sampling)


def is_edit_alone(args: dict) -> bool:
    """Whether the batch is MirrorSample's edit branch, whose source branch is evaluated by itself."""
    return branch_of(args["model_options"].get("transformer_options", {})) is Branch.EDIT


def guided(model: ModelPatcher, patch: PostCfg, first: bool = False) -> ModelPatcher:
    """A clone of the model with a post-cfg function, at the end of those it has, or `first`.

    The negative is evaluated at cfg 1 too: the patch needs the difference.
    """
    model = model.clone()
    model.set_model_sampler_post_cfg_function(patch, disable_cfg1_optimization=True)
    if first:
        functions = model.model_options["sampler_post_cfg_function"]
        model.model_options["sampler_post_cfg_function"] = functions[-1:] + functions[:-1]
    return model


@dataclass(frozen=True)
class Pull:
    """The post-cfg function: the step arrives where the pull moves it to, if it is one Euler move (euler, ddim)."""

    mask: EditMask
    rate: float
    window: Window

    def patched(self, model: ModelPatcher, mirror: Mirror | None) -> ModelPatcher:
        """A clone of the model with the pull towards the mirror's recording, or the source of the walk that runs."""
        model = guided(model, self)
        attach(model, mirror, sides=())
        return model

    def __call__(self, args: dict) -> Tensor:
        reference = active_reference(args["model_options"].get("transformer_options", {}), Control.PULL)
        if reference is None or reference.recording or not is_guided(args, self.window, Control.PULL):
            return args["denoised"]
        x, sigma, delta = args["input"], args["sigma"].flatten()[0], args["cond_denoised"] - args["uncond_denoised"]
        mask, sigma_next = self.mask(delta, sigma, is_edit_alone(args)), reference.sigmas[reference.step + 1].to(sigma)
        arrived = self.arrive(x, args["denoised"], mask, reference, sigma, sigma_next)
        return implied_denoised(x, arrived, sigma, sigma_next)

    def arrive(
        self, x: Tensor, denoised: Tensor, mask: Tensor, reference: ReferencePass, sigma: Tensor, sigma_next: Tensor
    ) -> Tensor:
        """The latent at sigma_next."""
        raise NotImplementedError


class ToRecording(Pull):
    """Inversion guidance: to the source's latent of the level that the step arrives at."""

    def arrive(self, x, denoised, mask, reference, sigma, sigma_next):
        """The step's own latent, pulled outside the mask to the source's at sigma_next."""
        return inversion_guidance(euler(x, denoised, sigma, sigma_next), reference.arrival(x), mask, self.rate)


class ToPicture(Pull):
    """Reconstruction guidance: the prediction to the picture, before noise is added back."""

    def arrive(self, x, denoised, mask, reference, sigma, sigma_next):
        """The step of a prediction that was pulled outside the mask to the source's picture."""
        clean, flow = reference.picture(x), self.window.flow
        return reconstruction_guidance(x, denoised, clean, mask, self.rate, sigma, sigma_next, flow)
