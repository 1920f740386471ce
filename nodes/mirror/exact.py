"""MirrorExactInvert: a picture as noise, and the SAMPLER that takes this noise back to the picture, exactly."""

from functools import partial

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.inversion.solvers import Bdia, Edict, EditFriendly, SolverContext
from ..host import families
from ..host.denoiser import run
from ..host.files import problem
from ..host.prompts import ABSENT, check_negative, prompts_at
from ..host.solver import denoiser_of, replay, solver_context
from ..host.values import SEEDS, places_of
from ..host.walk import Walk
from ..types import category


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


# What the node offers: name -> (its inputs, (settings, latent) -> method).
METHODS = {
    "edict": (_edict_inputs, lambda choice, _: Edict(choice["mixing"])),
    "bdia": (_bdia_inputs, lambda choice, _: Bdia(choice["gamma"])),
    "edit-friendly": (
        _edit_friendly_inputs,
        lambda choice, latent: EditFriendly(choice["seed"], choice["eta"], places_of(latent)),
    ),
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
                io.Model.Input("model", tooltip="Walks the picture to noise. Edit with the same model and LoRA."),
                io.Conditioning.Input("positive", tooltip="Describes the picture as it is."),
                io.Latent.Input("latent", tooltip="The encoded picture(s). A noise mask confines later edits."),
                io.DynamicCombo.Input(
                    "method",
                    options=[io.DynamicCombo.Option(name, inputs()) for name, (inputs, _) in METHODS.items()],
                    tooltip="edict: two coupled latents, twice the cost. bdia: each step corrects the last one. "
                    "edit-friendly: noise for each step that holds the picture's layout; edits best from denoise 0.64.",
                ),
                io.Int.Input("steps", default=50, min=2, max=1000,
                             tooltip="Steps each way; the picture comes back with any number."),
                io.Combo.Input("scheduler", options=families.SCHEDULERS, default="ddim_uniform",
                               tooltip="As in KSampler."),
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
    def validate_inputs(cls, cfg, negative=ABSENT, method=None):
        return problem(check_negative, negative, cfg)

    @classmethod
    def execute(
        cls, model, positive, latent, method, steps, scheduler, cfg, negative=None, sigmas=None, denoise=1.0
    ) -> io.NodeOutput:
        samples = latent["samples"]
        families.check_supported(model, samples)
        sigmas = families.noise_levels(model, scheduler, steps, denoise) if sigmas is None else sigmas.float().cpu()
        families.check_levels(model, sigmas)
        chosen = METHODS[method["method"]][1](method, latent)
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
        sampler = replay(chosen, state, on, check, families.latent_in(model, samples))
        return io.NodeOutput({**latent, **families.latent_out(model, start)}, sampler, sigmas)


def _check_beginning(model, x: Tensor, sigmas: Tensor, start: Tensor, on: SolverContext) -> None:
    """Raises ValueError unless the sampler was given the latent and levels that it was made for, and no noise."""
    if len(sigmas) != len(on.sigmas) or not torch.allclose(sigmas.float().cpu(), on.sigmas, rtol=1e-5):
        raise ValueError("This sampler walks its own noise levels only: connect `sigmas` of Mirror Exact Invert.")
    if torch.count_nonzero(model.noise):
        raise ValueError("This sampler walks from an inverted picture: switch the noise off (DisableNoise).")
    given = model.latent_image.float().cpu()
    if given.shape != start.shape or not torch.allclose(given, start, rtol=1e-3, atol=1e-3 * float(start.std())):
        raise ValueError("This sampler walks from its own noise only: connect `inverted` of Mirror Exact Invert.")
