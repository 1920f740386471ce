"""CycleDiffusionEncode: a picture as the noises of a stochastic sampler."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.inversion.solvers import SolverContext
from ...mirror_ops.stochastic.dpm_encoder import Path, dpm_encode, posterior
from ...mirror_ops.stochastic.edit_friendly import independent
from ...mirror_ops.stochastic.noise_code import NoiseCode
from ...mirror_ops.walks.noise import picture_generators
from ...mirror_ops.walks.precision import seen_in
from ...mirror_ops.walks.provenance import DPM, EDIT_FRIENDLY, Provenance
from ...mirror_ops.walks.trajectory import Mirror, cpu
from ..host import families
from ..host.branches import Branch
from ..host.conditioning import pooled_of, text_of
from ..host.denoiser import run
from ..host.files import problem
from ..host.identity import identity
from ..host.prompts import ABSENT, check_negative, prompts_at
from ..host.solver import denoiser_of, solver_context
from ..host.values import SEEDS, mask_at, places_of
from ..host.walk import Walk
from ..types import MirrorType, category
from .replay import CodeType, replay_outputs, replayed

PATHS = {DPM: (posterior, 0.1), EDIT_FRIENDLY: (independent, 1.0)}  # the noisy path, and the eta of its paper


@dataclass(frozen=True)
class Encoder:
    """How a picture becomes noises."""

    name: str
    seed: int
    eta: float
    places: Sequence[int]  # of the pictures in the batch they came from

    @property
    def path(self) -> Path:
        """The noisy path of this encoder, as `dpm_encode` takes it."""
        return PATHS[self.name][0]

    def generators(self, trial: int = 0) -> list[torch.Generator]:
        """The randomness of one trial for each picture, on the CPU: that of `seed` + trial + its place."""
        return picture_generators(self.seed + trial, self.places)


def encoder_input() -> io.DynamicCombo.Input:
    """The widget that chooses an encoder."""
    options = [
        io.DynamicCombo.Option(name, [
            io.Int.Input("seed", default=0, **SEEDS, tooltip="Of the noises drawn along the path."),
            io.Float.Input("eta", default=eta, min=0.01, max=1.0, step=0.01, tooltip="How much noise a step draws."),
        ])
        for name, (_, eta) in PATHS.items()
    ]
    return io.DynamicCombo.Input(
        "encoder", options=options,
        tooltip="dpm-encoder: one noisy path that a sampler might have walked (CycleDiffusion). edit-friendly: each "
        "level noised by itself; the noises hold more of the layout, also under strong guidance.",
    )


def chosen(encoder: dict, latent: dict) -> Encoder:
    """The encoder that `encoder_input` was set to, for the pictures of a LATENT."""
    return Encoder(encoder["encoder"], encoder["seed"], encoder["eta"], places_of(latent))


def grid_inputs(denoise: float, steps: int) -> list:
    """Widgets of the noise levels."""
    return [
        io.Int.Input("steps", default=steps, min=2, max=1000,
                     tooltip="Steps each way; of each a noise is kept that holds something of the picture."),
        io.Combo.Input("scheduler", options=families.SCHEDULERS, default="ddim_uniform", tooltip="As in KSampler."),
        io.Float.Input(
            "denoise", default=denoise, min=0.05, max=1.0, step=0.05,
            tooltip="How far towards noise the picture is walked, in as many `steps`. Less keeps more of it.",
        ),
    ]


def levels(model, samples: Tensor, steps: int, scheduler: str, denoise: float, sigmas: Tensor | None) -> Tensor:
    """[T+1] the noise levels asked for; ValueError if the model or its latents do not fit."""
    families.check_supported(model, samples)
    sigmas = families.noise_levels(model, scheduler, steps, denoise) if sigmas is None else sigmas.float().cpu()
    families.check_levels(model, sigmas)
    return sigmas


def encoded(model, samples: Tensor, sigmas: Tensor, encoder: Encoder, cfg: float, prompts: dict):
    """(the picture as a NoiseCode, network rows it took)."""

    def algorithm(walk: Walk) -> NoiseCode:
        on, picture = solver_context(walk, model, sigmas), walk.latent_in(samples).cpu().double()
        denoise = seen_in(on.network, denoiser_of(walk, cfg, branch=Branch.SOURCE))
        code = dpm_encode(
            denoise, picture, sigmas.double(), None, encoder.eta, encoder.generators(), on.flow, encoder.path
        )
        return NoiseCode(sigmas, code.latents, code.noises, _meta(walk, model, on, encoder, cfg))

    code, count = run(model, samples, sigmas, prompts, algorithm, evaluations=len(sigmas) - 1)
    return code, count


def _meta(walk: Walk, model, on: SolverContext, encoder: Encoder, cfg: float) -> dict:
    return {
        "encoder": encoder.name,
        "seed": encoder.seed,
        "eta": encoder.eta,
        "cfg": cfg,
        "flow": on.flow,
        "sigma_max": float(walk.guider.inner_model.model_sampling.sigma_max),
        "network": str(on.network).removeprefix("torch."),
        "latent_format": families.latent_format(model),
    }


class CycleDiffusionEncode(io.ComfyNode):
    """A picture as its first noisy latent and the noise of every step."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CycleDiffusionEncode",
            display_name="CycleDiffusion Encode",
            category=category(__name__),
            description=(
                "Finds the noises with which a stochastic sampler draws this picture, to the last step. Give noise, "
                "sampler, sigmas and latent to SamplerCustomAdvanced: with the same model, prompt and cfg the picture "
                "comes back; another prompt edits it; another model draws it as its own."
            ),
            search_aliases=["dpm-encoder", "cyclediffusion", "edit friendly ddpm", "stochastic inversion"],
            inputs=[
                io.Model.Input("model", tooltip="Of the picture's own domain, if there are two."),
                io.Conditioning.Input("positive", tooltip="Describes the picture as it is."),
                io.Latent.Input("latent", tooltip="The encoded picture(s). A noise mask confines later edits."),
                encoder_input(),
                *grid_inputs(denoise=0.7, steps=35),
                io.Float.Input(
                    "cfg", default=1.0, min=0.0, max=30.0, step=0.1,
                    tooltip="Guidance of the encoding, 1 in the papers. The picture comes back exactly at this cfg.",
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="Needed for a cfg other than 1."),
                io.Sigmas.Input("sigmas", optional=True, tooltip="Instead of steps, scheduler and denoise."),
            ],
            outputs=[
                *replay_outputs(),
                CodeType.Output(display_name="code", tooltip="All noises, to be kept or decoded from a later step."),
                MirrorType.Output(
                    display_name="mirror",
                    tooltip="The noisy path, for Mirror Sample (exact: source and edit), attention control and files.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, cfg, negative=ABSENT, encoder=None):
        return problem(check_negative, negative, cfg)

    @classmethod
    def execute(
        cls, model, positive, latent, encoder, steps, scheduler, denoise, cfg, negative=None, sigmas=None
    ) -> io.NodeOutput:
        samples = latent["samples"]
        sigmas = levels(model, samples, steps, scheduler, denoise, sigmas)
        prompts = prompts_at(cfg, positive, negative, len(samples))
        code, count = encoded(model, samples, sigmas, chosen(encoder, latent), cfg, prompts)
        mask = mask_at(latent.get("noise_mask"), samples, "the noise mask")
        noise, sampler, sigmas, picture = replayed(code)
        mirror = _mirror(model, code, positive, count.forwards / len(samples), cpu(mask))
        return io.NodeOutput(noise, sampler, sigmas, {**latent, **picture}, code, mirror)


def _mirror(model, code: NoiseCode, positive, forwards: float, mask: Tensor | None) -> Mirror:
    """The path as a mirror that needs no rewriting: each step's miss is known, and its noises are in it."""
    text, pooled = cpu(text_of(positive)), pooled_of(positive)
    path = code.latents.float()
    provenance = Provenance(
        identity(model), code.meta["encoder"], code.meta["cfg"], seed=code.meta["seed"], forwards=forwards
    )
    texts = text.expand(code.steps, *text.shape).clone()
    return Mirror(code.sigmas, path, path, text, texts, provenance, cpu(pooled), mask)
