"""MirrorExactInvert: a picture as noise, and the SAMPLER that takes this noise back to the picture, exactly."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.guidance.classifier_free import Denoiser
from ...mirror_ops.inversion.bdia import bdia_decode, bdia_encode
from ...mirror_ops.inversion.edict import edict_decode, edict_encode
from ...mirror_ops.stochastic.dpm_encoder import Code, dpm_decode
from ...mirror_ops.stochastic.edit_friendly import edit_friendly_encode
from ...mirror_ops.walks.ddim import InputScale
from ...mirror_ops.walks.precision import seen_in
from ..host import families
from ..host.branches import Branch
from ..host.conditioning import check_batch, text_of
from ..host.denoiser import Walk, run
from ..host.values import SEEDS
from ..types import category


class SolverContext(NamedTuple):
    """What both directions share."""

    sigmas: Tensor  # [T+1] on the CPU
    scale: InputScale
    flow: bool
    network: torch.dtype  # in which the network is called; the state itself is float64


@dataclass(frozen=True)
class Edict:
    """The state is the pair of latents at the noisiest level, [2, B, C, H, W]."""

    p: float
    calls: int = 2

    def encode(self, denoise: Denoiser, picture: Tensor, on: SolverContext) -> Tensor:
        pairs = edict_encode(denoise, picture, on.sigmas, None, self.p, input_scale=on.scale, network=on.network)
        return pairs[0].clone()  # not a view, which would keep the pairs of all levels in memory

    def decode(self, denoise: Denoiser, state: Tensor, on: SolverContext, on_step: Callable) -> Tensor:
        how = {"input_scale": on.scale, "network": on.network, "on_step": lambda i, pair: on_step(i, pair[0])}
        return edict_decode(denoise, state, on.sigmas, None, self.p, **how)[-1, 0]

    def start(self, state: Tensor) -> Tensor:
        return state[0]


@dataclass(frozen=True)
class Bdia:
    """The state is the latents of the two noisiest levels, [2, B, C, H, W]."""

    gamma: float
    calls: int = 1

    def encode(self, denoise: Denoiser, picture: Tensor, on: SolverContext) -> Tensor:
        how = {"input_scale": on.scale, "network": on.network}
        return bdia_encode(denoise, picture, on.sigmas, None, self.gamma, **how)[:2].clone()

    def decode(self, denoise: Denoiser, state: Tensor, on: SolverContext, on_step: Callable) -> Tensor:
        how = {"input_scale": on.scale, "network": on.network, "on_step": on_step}
        return bdia_decode(denoise, state, on.sigmas, None, self.gamma, **how)[-1]

    def start(self, state: Tensor) -> Tensor:
        return state[0]


@dataclass(frozen=True)
class EditFriendly:
    """The state is the noisiest latent and the noise of each step."""

    seed: int
    eta: float
    calls: int = 1

    def encode(self, denoise: Denoiser, picture: Tensor, on: SolverContext) -> Code:
        generator = torch.Generator().manual_seed(self.seed)
        denoise = seen_in(on.network, denoise)
        code = edit_friendly_encode(denoise, picture.double(), on.sigmas.double(), None, generator, self.eta, on.flow)
        return Code(code.latents[:1].clone(), code.noises)

    def decode(self, denoise: Denoiser, state: Code, on: SolverContext, on_step: Callable) -> Tensor:
        denoise, sigmas = seen_in(on.network, denoise), on.sigmas.double()
        return dpm_decode(denoise, state.latents[0], state.noises, sigmas, None, self.eta, on.flow, on_step)

    def start(self, state: Code) -> Tensor:
        return state.latents[0]


def _edict_inputs() -> list:
    return [
        io.Float.Input(
            "mixing", default=0.93, min=0.5, max=1.0, step=0.01,
            tooltip="How much of itself each of the two latents keeps at a step; 0.93 in the paper.",
        )
    ]


def _bdia_inputs() -> list:
    return [
        io.Float.Input(
            "gamma", default=0.96, min=0.5, max=1.0, step=0.01,
            tooltip="How strongly the last step is corrected. Near 1: stable inversion, rougher edits.",
        )
    ]


def _edit_friendly_inputs() -> list:
    return [
        io.Int.Input("seed", default=0, **SEEDS, tooltip="Of the noises drawn at each level."),
        io.Float.Input("eta", default=1.0, min=0.01, max=1.0, step=0.01, tooltip="How much noise a step draws."),
    ]


# What the node offers: name -> (its inputs, settings -> method).
METHODS = {
    "edict": (_edict_inputs, lambda choice: Edict(choice["mixing"])),
    "bdia": (_bdia_inputs, lambda choice: Bdia(choice["gamma"])),
    "edit-friendly": (_edit_friendly_inputs, lambda choice: EditFriendly(choice["seed"], choice["eta"])),
}


class MirrorExactInvert(io.ComfyNode):
    """Inverts a picture such that the sampler that comes with the noise undoes every step."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorExactInvert",
            display_name="Mirror Exact Invert",
            category=category(__name__),
            description=(
                "Inverts a picture by a method that can be undone exactly at any guidance, without rewriting the "
                "prompt. Give all three outputs to SamplerCustom or SamplerCustomAdvanced with the noise switched off: "
                "with the same prompts and cfg the picture comes back, with another prompt it is edited."
            ),
            search_aliases=["edict", "bdia", "edit friendly ddpm", "exact inversion", "unsampler"],
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive", tooltip="Describes the picture as it is."),
                io.Latent.Input("latent", tooltip="The encoded picture(s). A noise mask confines later edits."),
                io.DynamicCombo.Input(
                    "method",
                    options=[io.DynamicCombo.Option(name, inputs()) for name, (inputs, _) in METHODS.items()],
                    tooltip="edict: two coupled latents, twice the cost. bdia: each step corrects the last one. "
                    "edit-friendly: noise for each step that holds the picture's layout; edits best from denoise 0.64.",
                ),
                io.Int.Input("steps", default=50, min=2, max=1000),
                io.Combo.Input("scheduler", options=families.SCHEDULERS, default="ddim_uniform"),
                io.Float.Input(
                    "cfg", default=1.0, min=0.0, max=30.0, step=0.1,
                    tooltip="Guidance of the inversion: the picture comes back exactly at this cfg.",
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="Needed for a cfg other than 1."),
                io.Sigmas.Input("sigmas", optional=True, tooltip="Instead of steps, scheduler and denoise."),
                io.Float.Input(
                    "denoise", default=1.0, min=0.05, max=1.0, step=0.05, optional=True, advanced=True,
                    tooltip="Below 1 the picture is walked only part of the way to noise; edits keep more of it.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="inverted", tooltip="The noise, for the sampler's latent."),
                io.Sampler.Output(display_name="sampler", tooltip="Walks from this noise, and no other, forward."),
                io.Sigmas.Output(display_name="sigmas", tooltip="The noise levels walked."),
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, latent, method, steps, scheduler, cfg, negative=None, sigmas=None, denoise=1.0
    ) -> io.NodeOutput:
        samples = latent["samples"]
        families.check_supported(model, samples)
        sigmas = families.noise_levels(model, scheduler, steps, denoise) if sigmas is None else sigmas.float().cpu()
        families.check_levels(model, sigmas)
        chosen = METHODS[method["method"]][1](method)
        prompts = prompts_at(cfg, positive, negative, len(samples))

        def algorithm(walk: Walk):
            on = solver_context(walk, model, sigmas)
            return on, chosen.encode(denoiser_of(walk, cfg), walk.latent_in(samples).cpu(), on)

        evaluations = chosen.calls * (len(sigmas) - 1)
        (on, state), _ = run(model, samples, sigmas, prompts, algorithm, evaluations=evaluations)
        start = chosen.start(state).float()
        if not torch.isfinite(start).all():
            raise ValueError("The inversion is not finite. Lower cfg, or take fewer steps or another method.")
        check = partial(_check_beginning, start=start, on=on)
        sampler = comfy.samplers.KSAMPLER(replay(chosen, state, on, check, model.model.process_latent_in(samples)))
        return io.NodeOutput({**latent, "samples": model.model.process_latent_out(start)}, sampler, sigmas)


def prompts_at(cfg: float, positive, negative, batch: int) -> dict:
    """The CONDITIONING of each side; ValueError if one is missing or does not fit."""
    if negative is None and cfg != 1:
        raise ValueError(f"cfg {cfg:g} needs a negative prompt to guide away from. Connect `negative`, or use cfg 1.")
    prompts = {"positive": positive} if cfg == 1 else {"positive": positive, "negative": negative}
    for name, conditioning in prompts.items():
        check_batch(text_of(conditioning, name), batch)
    return prompts


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


def solver_context(walk: Walk, model, sigmas: Tensor) -> SolverContext:
    """The network is called in float64 if the model computes in it, else in float32, which the host casts further."""
    computes = walk.guider.inner_model.get_dtype_inference()
    network = torch.float64 if computes == torch.float64 else torch.float32
    return SolverContext(sigmas, families.input_scale(model), families.is_flow(model), network)


def replay(method, state, on: SolverContext, check: Callable, picture: Tensor | None = None) -> Callable:
    """The sampler function that decodes `state`. It knows its own beginning better than float32 latents can tell it.

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

    return sample


def _check_beginning(model, x: Tensor, sigmas: Tensor, start: Tensor, on: SolverContext) -> None:
    """Raises ValueError unless the sampler was given the latent and levels that it was made for, and no noise."""
    if len(sigmas) != len(on.sigmas) or not torch.allclose(sigmas.float().cpu(), on.sigmas, rtol=1e-5):
        raise ValueError("This sampler walks its own noise levels only: connect `sigmas` of MirrorExactInvert.")
    if torch.count_nonzero(model.noise):
        raise ValueError("This sampler walks from an inverted picture: switch the noise off (DisableNoise).")
    given = model.latent_image.float().cpu()
    if given.shape != start.shape or not torch.allclose(given, start, rtol=1e-3, atol=1e-3 * float(start.std())):
        raise ValueError("This sampler walks from its own noise only: connect `inverted` of MirrorExactInvert.")
