"""MirrorLatentGuidance: a picture found by walking on the sampler's noises, led by an energy of pictures."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.guidance.classifier_free import Denoiser
from ...mirror_ops.stochastic.energies import Energy, total
from ...mirror_ops.stochastic.langevin import (
    Measure,
    State,
    begin,
    generate,
    langevin,
    load_state,
    noise_count,
    save_state,
)
from ..host import differentiable_clip as differentiable_clip
from ..host import families
from ..host.denoiser import run
from ..host.files import check_prefix, own_file, problem
from ..host.identity import identity, marks
from ..host.noises import GivenNoise, empty_latent, noise_spread
from ..host.prompt_digest import prompt_digest
from ..host.prompts import ABSENT, check_negative, prompts_at
from ..host.values import SEEDS
from ..host.walk import Walk
from ..reports import shown
from ..types import category
from .energies import EnergyType, check_pictures

BEST, LAST = "lowest energy", "last"


class Plan(NamedTuple):
    """How noises become a latent, and how they are walked."""

    sigmas: Tensor
    cfg: float
    eta: float
    flow: bool
    iterations: int
    step: float
    seed: int
    keep: str
    file: Path | None


class MirrorLatentGuidance(io.ComfyNode):
    """Langevin dynamics on all noises of a sampler."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorLatentGuidance",
            display_name="Mirror Latent Guidance",
            category=category(__name__),
            description=(
                "Looks for pictures of the model that an energy likes (a text or picture by CLIP, a classifier): the "
                "sampler's noises take random steps that lean towards lower energy and stay as Gaussian as the model "
                "expects, through a sampler of few steps. The model itself is not changed."
            ),
            search_aliases=["langevin", "clip guidance", "classifier guidance", "plug and play", "energy"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="Draws the pictures; it is not changed itself."),
                io.Conditioning.Input("positive", tooltip="What the model itself is told."),
                io.Vae.Input("vae", tooltip="Decodes the pictures that the energy looks at."),
                io.Latent.Input("latent", tooltip="An empty latent: size and number of pictures."),
                EnergyType.Input("energy", tooltip="What to look for. Several add up, each node onto the one before."),
                io.Int.Input("steps", default=5, min=1, max=100, tooltip="Of the sampler in the walk; 5 or 10."),
                io.Combo.Input("scheduler", options=families.SCHEDULERS, default="ddim_uniform",
                               tooltip="As in KSampler."),
                io.Float.Input("cfg", default=1.0, min=0.0, max=30.0, step=0.1,
                               tooltip="Guidance towards what the model is told."),
                io.Float.Input(
                    "eta", default=0.0, min=0.0, max=1.0, step=0.05,
                    tooltip="0: only the first noise is walked, and `noise` serves a sampler of any steps. Above: the "
                    "noises of all steps as well.",
                ),
                io.Int.Input("iterations", default=200, min=1, max=100000, tooltip="200 in the paper."),
                io.Float.Input("step", default=0.05, min=1e-4, max=1.0, step=0.005, tooltip="h, 0.05 in the paper."),
                io.Int.Input("seed", default=0, **SEEDS, control_after_generate=True,
                             tooltip="Another seed is another picture."),
                io.Conditioning.Input("negative", optional=True, tooltip="Needed for a cfg other than 1."),
                io.Combo.Input(
                    "keep", options=[BEST, LAST], default=BEST, optional=True, advanced=True,
                    tooltip="Which picture of the walk comes out.",
                ),
                io.String.Input(
                    "resume", default="", optional=True, advanced=True,
                    tooltip="A name for a file in the output folder: the walk is kept there at every iteration, and "
                    "goes on from it after an interruption, or when iterations are raised.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The picture found, drawn in as many steps."),
                io.Latent.Output(display_name="unguided", tooltip="Where the walk began, for comparison."),
                io.Noise.Output(display_name="noise", tooltip="Of the picture found; at eta 0 for any steps."),
                io.String.Output(display_name="table", tooltip="Energy and size of the noises along the walk."),
            ],
        )

    @classmethod
    def validate_inputs(cls, cfg, negative=ABSENT, resume=""):
        named = problem(check_prefix, resume or "mirror/walk")
        return problem(check_negative, negative, cfg) if named is True else named

    @classmethod
    def execute(
        cls, model, positive, vae, latent, energy, steps, scheduler, cfg, eta, iterations, step, seed, negative=None,
        keep=BEST, resume="",
    ) -> io.NodeOutput:
        samples = torch.zeros_like(latent["samples"], dtype=torch.float32)
        samples = empty_latent(model, {**latent, "samples": samples})
        families.check_supported(model, samples)
        check_pictures(energy, len(samples))
        differentiable_clip.check_decodes(vae, samples.shape[1])
        sigmas = families.noise_levels(model, scheduler, steps)
        families.check_levels(model, sigmas)
        prompts = prompts_at(cfg, positive, negative, len(samples))
        flow = families.is_flow(model)
        plan = Plan(sigmas, cfg, eta, flow, iterations, step, seed, keep, own_file(resume) if resume.strip() else None)
        state = _beginning(plan, samples, _about(model, vae, plan, prompts, energy))
        (found, unguided, state), _ = run(
            model, samples, sigmas, prompts, lambda walk: _walked(walk, vae, energy, plan, state),
            evaluations=(iterations + 2) * (len(sigmas) - 1), with_gradients=True,
        )
        table = _table(state, energy)
        noise = GivenNoise(_kept(state, plan)[0].clone(), "connect the same empty latent")
        latents = (families.latent_out(model, x) for x in (found, unguided))
        return io.NodeOutput(*latents, noise, table, ui=shown(table))


def _walked(walk: Walk, vae, terms: tuple, plan: Plan, state: State) -> tuple[Tensor, Tensor, State]:
    """(latent found, latent of the beginning, the walk)."""
    steps = len(walk.sigmas) - 1
    patchers = [walk.guider.model_patcher, vae.patcher, *(p for term in terms for p in term.patchers)]
    differentiable_clip.load(patchers, vae, state.z.shape[1:])
    decode, energy = differentiable_clip.picture_decoder(vae), total([(term.weight, term.open()) for term in terms])
    denoise = _denoiser(walk, plan.cfg)
    spread = noise_spread(walk)

    def drawn(z: Tensor) -> Tensor:
        return generate(denoise, z.to(walk.device), walk.sigmas, None, plan.eta, plan.flow, spread)

    def on_iteration(state: State) -> None:
        if plan.file is not None:
            save_state(state, plan.file)
        walk.progress.reached(state.done * steps, walk.denoised)

    walk.progress.reached(state.done * steps, None)
    measure = _measure(drawn, lambda x: decode(walk.latent_out(x)), energy)
    state = langevin(measure, state, plan.iterations, plan.step, plan.seed, on_iteration)
    first = begin(state.z.shape[1:], len(state.z), plan.seed, {}).z
    return drawn(_kept(state, plan)), drawn(first), state


def _measure(drawn, decode, energy: Energy) -> Measure:
    return lambda z, generator: energy(decode(drawn(z)), generator).cpu()


def _denoiser(walk: Walk, cfg: float) -> Denoiser:
    prompts = {name: prompt.entries for name, prompt in walk.prompts.items()}
    return lambda x, sigma, cond: walk.denoise(x, sigma, **prompts, cfg=cfg)


def _kept(state: State, plan: Plan) -> Tensor:
    return state.best if plan.keep == BEST else state.z


def _about(model, vae, plan: Plan, prompts: dict, terms: tuple) -> dict:
    """All that the course of a walk depends on, as plain JSON; iterations may be raised."""
    return {
        "model": dataclasses.asdict(identity(model)), "VAE": marks(vae.patcher),
        "sigmas": plan.sigmas.tolist(), "cfg": plan.cfg, "eta": plan.eta,
        "step": plan.step, "seed": plan.seed, "prompts": prompt_digest(prompts),
        "energy": [[term.weight, term.says, *map(marks, term.patchers)] for term in terms],
    }


def _beginning(plan: Plan, samples: Tensor, about: dict) -> State:
    """The walk that the file holds, or a new one. ValueError for a file of another walk."""
    if plan.file is None or not plan.file.exists():
        return begin(samples.shape, noise_count(plan.sigmas, plan.eta), plan.seed, about)
    state = load_state(plan.file, about)
    if state.z.shape[1:] != samples.shape:
        raise ValueError(f"{plan.file.name} holds a walk of pictures of another size or number. Name another file.")
    return state


def _table(state: State, terms: tuple) -> str:
    """About twenty lines of the walk."""
    wanted = "; ".join(f"{term.weight:g} x ({term.says})" for term in terms)
    means = [sum(energies) / len(energies) for energies in state.energies]
    every = max(1, state.done // 20)
    shown = sorted({*range(0, state.done, every), state.done - 1})
    lines = [f"energy: {wanted}", f"lowest {min(means):.4g}, at the beginning {means[0]:.4g}",
             "iteration     energy  mean square of the noises (1 is Gaussian)"]
    return "\n".join(lines + [f"{k:9d}  {means[k]:9.4g}  {state.prior[k]:.3f}" for k in shown])
