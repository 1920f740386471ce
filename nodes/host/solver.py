"""Exact inversions inside the host's sampling, and the SAMPLER that undoes one."""

from collections.abc import Callable

import comfy.samplers
import torch
from torch import Tensor

from ...mirror_ops.guidance.classifier_free import Denoiser
from ...mirror_ops.inversion.solvers import SolverContext
from ...mirror_ops.walks.sample import PredictBoth
from .branches import Branch
from .families import input_scale, is_flow
from .walk import Asked, Walk


def solver_context(walk: Walk, model, sigmas: Tensor) -> SolverContext:
    """The network is called in float64 if the model computes in it, else in float32, which the host casts further."""
    computes = walk.guider.inner_model.get_dtype_inference()
    network = torch.float64 if computes == torch.float64 else torch.float32
    return SolverContext(sigmas, input_scale(model), is_flow(model), network)


def denoiser_of(
    walk: Walk, cfg: float, positive: str = "positive", negative: str = "negative", branch: Branch = Branch.SAMPLER
) -> Denoiser:
    """The guided prediction, from and to the CPU, where the float64 state lies: not every device has float64.

    `positive`, `negative` name two of the walk's prompts, of which the latter may be missing; `branch` as in
    `Walk.denoise`.
    """
    prompt, against = walk.prompts[positive].entries, walk.prompts.get(negative)
    against = None if against is None else against.entries

    def predict(x: Tensor, sigma: Tensor, cond: None) -> Tensor:
        return walk.denoise(x.to(walk.device), sigma.to(walk.device), prompt, against, cfg, branch=branch).cpu()

    return predict


def pair_of(walk: Walk, source_cfg: float, cfg: float, network: torch.dtype) -> PredictBoth:
    """Both predictions of CycleDiffusion, from and to a float64 state on the CPU: of the prompt `source` at x, and of
    `target` at y; `negative`, if the walk has one, serves both. The network is called in the dtype `network`."""
    source, target = (walk.prompts[name].entries for name in ("source", "target"))
    negative = walk.prompts.get("negative")
    negative = None if negative is None else negative.entries

    def predict(x: Tensor, y: Tensor, sigma: Tensor, i: int) -> tuple[Tensor, Tensor]:
        x, y, sigma = (value.to(network).to(walk.device) for value in (x, y, sigma))
        sides = Asked(x, source, negative, source_cfg, Branch.SOURCE), Asked(y, target, negative, cfg, Branch.EDIT)
        both = walk.denoise_pair(*sides, sigma)
        return tuple(denoised.cpu().double() for denoised in both)

    return predict


def replay(
    method, state, on: SolverContext, check: Callable, picture: Tensor | None = None
) -> comfy.samplers.KSAMPLER:
    """The SAMPLER that decodes `state`. It knows its own beginning better than float32 latents can tell it.

    `check(model, x, sigmas)` raises ValueError if what the sampler was given is not that beginning. `picture`
    [B, C, H, W], in model space, is what stays where the host has a mask of 0, if it is not the sampler's latent. The
    host's own blending knows neither the picture behind an inverted latent nor what the last noise adds.
    """

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        check(model, x, sigmas)
        denoised, extra = x, dict(extra_args or {})
        mask = extra.get("denoise_mask")
        if picture is not None:
            extra["denoise_mask"] = None

        def predict(x_i: Tensor, sigma: Tensor, cond: None) -> Tensor:
            nonlocal denoised
            denoised = model(x_i.to(x.device), sigma.to(x.device).expand(len(x)), **extra)
            return denoised.cpu()

        def on_step(i: int, x_i: Tensor) -> None:
            if callback is not None:
                level = {"i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i]}
                callback({**level, "x": x_i.to(x), "denoised": denoised.to(x)})

        result = method.decode(predict, state, on, on_step).to(x)
        if mask is not None:
            result = mask * result + (1 - mask) * (model.latent_image if picture is None else picture).to(x)
        sampling = model.inner_model.inner_model.model_sampling
        return result / sampling.inverse_noise_scaling(sigmas[-1], torch.ones_like(result))  # which the host will do

    return comfy.samplers.KSAMPLER(sample)
