"""RedescribedDDIMInvert: from a picture and its description to a mirror."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.inversion.invert import invert
from ...mirror_ops.inversion.refine import anderson, averaged, newest
from ...mirror_ops.inversion.refine import refine as solve
from ...mirror_ops.inversion.regularise import regularise as nudge
from ...mirror_ops.rewriting.redescribe import Redescription, Rewriter, redescribe
from ...mirror_ops.rewriting.rewriters import Adam
from ...mirror_ops.walks.ddim import InputScale
from ...mirror_ops.walks.parity import parity_invert, resting
from ...mirror_ops.walks.provenance import Provenance, Side
from ...mirror_ops.walks.schedules import current_labels, target_labels
from ...mirror_ops.walks.trajectory import Mirror, cpu
from ..host import families
from ..host.branches import Branch
from ..host.conditioning import Conditioning, Windows, pooled_of, scheduled, step_windows, text_of
from ..host.count import Count
from ..host.denoiser import run
from ..host.files import problem
from ..host.identity import identity
from ..host.prompts import ABSENT, check_negative, prompts_for
from ..host.values import mask_at
from ..host.walk import Walk
from ..types import MirrorType, RewriterType, category

TARGET, CURRENT = "target (null-text family)", "current (pix2pix-zero family)"
PARITY = "parity (pix2pix-zero's own code)"  # 48 of 50 moves, see mirror_ops.walks.parity
REGULARISERS = {"off": None, "pix2pix-zero": {}, "MirrorDiffusion": {"autocorrelation": 0.0}}
MIXINGS = {"plain": newest, "averaged": averaged, "anderson": anderson()}
CHECKPOINTING = {"auto": None, "on": True, "off": False}


class RedescribedDDIMInvert(io.ComfyNode):
    """Walks a picture back to noise, then rewrites its prompt at every step so that the way forward is a mirror."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RedescribedDDIMInvert",
            display_name="Redescribed DDIM Invert",
            category=category(__name__),
            description=(
                "Inverts a picture to noise and rewrites its prompt at every step, so that sampling from the noise "
                "with the rewritten prompt gives the picture back. Edit it from there with Mirror Sample, or with "
                "stock samplers: euler, noise off, the same schedule and cfg, with both prompts of this node."
            ),
            search_aliases=["unsampler", "ddim inversion", "mirrordiffusion", "null text inversion", "real image edit"],
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, cfg, negative=ABSENT, rewriter=ABSENT):
        return rewriter != ABSENT or problem(check_negative, negative, cfg)  # some rewriters bring a negative

    @classmethod
    def execute(
        cls, model, positive, latent, steps, scheduler, cfg, negative=None, rewriter=None, sigmas=None, denoise=1.0,
        refine=0, mixing="plain", regularise="off", label=TARGET, checkpointing="auto",
    ) -> io.NodeOutput:
        rewriter, samples = (rewriter or Adam()).at(cfg), latent["samples"]
        families.check_supported(model, samples)
        sigmas = families.noise_levels(model, scheduler, steps, denoise) if sigmas is None else sigmas.float().cpu()
        families.check_levels(model, sigmas)
        prompts = prompts_for(rewriter, cfg, positive, negative, len(samples))
        if regularise != "off" and families.is_flow(model):
            raise ValueError("A flow model predicts a velocity, not noise: set `regularise` to off.")
        refine = max(refine, rewriter.refine)
        if label == PARITY:
            _check_parity(model, sigmas, steps, refine)
        plan = Plan(families.input_scale(model), cfg, rewriter, label, refine, mixing, regularise)
        windows = step_windows(sigmas, model.get_model_object("model_sampling"))  # or an error, before any work
        latents, residuals, back, count = _walk_both_ways(model, samples, sigmas, prompts, plan, checkpointing)
        mirror = Mirror(
            sigmas=sigmas,
            latents=cpu(latents),
            reconstruction=cpu(back.reconstruction),
            source=cpu(text_of(positive)),
            embeddings=cpu(back.embeddings),
            pooled=cpu(pooled_of(positive)),
            mask=mask_at(latent.get("noise_mask"), samples, "the noise mask"),
            provenance=_provenance(model, plan, scheduler, back, count, residuals),
        )
        stock = _for_samplers(model, positive, prompts, rewriter.side, mirror, windows)
        return io.NodeOutput(
            {"samples": families.stock_start(model, mirror.latents[0], sigmas[0])},
            stock["positive"],
            mirror,
            sigmas,
            families.latent_out(model, mirror.reconstruction[-1]),
            stock["negative"],
        )


def _inputs() -> list:
    return [
        io.Model.Input("model", tooltip="Walks the picture to noise. Edit with the same model and LoRA."),
        io.Conditioning.Input("positive", tooltip="Describes the picture as it is."),
        io.Latent.Input("latent", tooltip="The encoded picture(s). A noise mask confines later edits."),
        io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Steps each way. Fewer drift more."),
        io.Combo.Input("scheduler", options=families.SCHEDULERS, default="ddim_uniform", tooltip="As in KSampler."),
        io.Float.Input(
            "cfg", default=1.0, min=0.0, max=30.0, step=0.1,
            tooltip="Guidance at which the prompt is rewritten: the reconstruction holds at this guidance. 1 for "
            "Mirror Sample without a negative. Inversion itself always runs at 1.",
        ),
        io.Conditioning.Input(
            "negative", optional=True, tooltip="Needed for a cfg other than 1, unless the rewriter brings its own."
        ),
        RewriterType.Input("rewriter", optional=True, tooltip="From Prompt Rewrite Optimizer; default: paper."),
        io.Sigmas.Input("sigmas", optional=True, tooltip="Instead of steps, scheduler and denoise."),
        io.Float.Input(
            "denoise", default=1.0, min=0.05, max=1.0, step=0.05, optional=True, advanced=True,
            tooltip="Below 1 the picture is walked only part of the way to noise, as in the stock samplers.",
        ),
        io.Int.Input(
            "refine", default=0, min=0, max=50, optional=True, advanced=True,
            tooltip="Fixed-point iterations at each inversion step; each costs an evaluation and cuts the error.",
        ),
        io.Combo.Input(
            "mixing", options=list(MIXINGS), default="plain", optional=True, advanced=True,
            tooltip="How refine's iterations are combined: the newest alone, half of each of the last two, or the best "
            "mixture of the last four (Anderson), which converges where the others do not.",
        ),
        io.Combo.Input(
            "regularise", options=list(REGULARISERS), default="off", optional=True, advanced=True,
            tooltip="Nudge the predicted noise towards white noise. With refine it shapes the first guess only.",
        ),
        io.Combo.Input(
            "label", options=[TARGET, CURRENT, PARITY], default=TARGET, optional=True, advanced=True,
            tooltip="The noise level that the network is told at each inversion step. parity: the published code's "
            "walk of 48 moves for 50 steps, to compare with it; it cannot come back exactly.",
        ),
        io.Combo.Input(
            "checkpointing", options=list(CHECKPOINTING), default="auto", optional=True, advanced=True,
            tooltip="Recompute activations for gradients: a third slower, far less memory. auto: on a GPU.",
        ),
    ]


def _outputs() -> list:
    return [
        io.Latent.Output(display_name="inverted", tooltip="The noise. For a stock sampler with noise off."),
        io.Conditioning.Output(
            display_name="positive", tooltip="For a stock sampler: the describing prompt, rewritten where it was."
        ),
        MirrorType.Output(display_name="mirror", tooltip="Everything, for Mirror Sample and Mirror Report."),
        io.Sigmas.Output(display_name="sigmas", tooltip="The noise levels walked."),
        io.Latent.Output(display_name="reconstruction", tooltip="Where the way back arrives."),
        io.Conditioning.Output(
            display_name="negative", tooltip="For a stock sampler: the negative prompt, rewritten where it was."
        ),
    ]


class Plan(NamedTuple):
    """How both walks are made."""

    scale: InputScale
    cfg: float
    rewriter: Rewriter
    label: str
    refine: int
    mixing: str
    regularise: str


def _check_parity(model, sigmas: Tensor, steps: int, refine: int) -> None:
    """Raises ValueError where the published code's walk has no meaning."""
    grid = None if families.is_flow(model) or steps < 3 else families.noise_levels(model, families.PAPERS, steps)
    if grid is None or len(grid) != len(sigmas) or not torch.allclose(grid, sigmas, rtol=1e-4):
        raise ValueError(
            f"`label` {PARITY!r} is a walk on the papers' grid of an eps- or v-prediction model: set `scheduler` to "
            f"{families.PAPERS!r}, 3 or more steps, denoise 1 and no sigmas, or choose another label."
        )
    if refine:
        raise ValueError(
            "The published code's walk is no inverse that could be refined: set `refine` to 0 and use a rewriter that "
            "does not refine (paper, null text, negative prompt, none), or choose another label."
        )


def _for_samplers(
    model, positive: Conditioning, prompts: dict, side: Side, mirror: Mirror, windows: Windows
) -> dict:
    """Both prompts that retrace the mirror in a stock sampler: the side that was rewritten holds a text for each step.
    At cfg 1 no sampler reads its negative, yet each wants one: the positive stands in."""
    sampling = model.get_model_object("model_sampling")
    return {
        "positive": positive,
        "negative": prompts.get("negative", positive),
        side.value: scheduled(prompts[side], mirror.embeddings, mirror.sigmas, sampling, windows),
    }


def _walk_both_ways(
    model, samples: Tensor, sigmas: Tensor, prompts: dict, plan: Plan, checkpointing: str
) -> tuple[Tensor, list, Redescription, Count]:
    """(the inversion [T+1, B, C, H, W], its residuals, the way back, network rows)."""
    checkpoint = CHECKPOINTING[checkpointing]

    def algorithm(walk: Walk) -> tuple[Tensor, list, Redescription]:
        latents, residuals = _invert(walk, walk.latent_in(samples), plan)
        return latents, residuals, _redescribe(walk, latents, plan)

    (latents, residuals, back), count = run(
        model, samples, sigmas, prompts, algorithm,
        evaluations=(len(sigmas) - 1) * (2 + plan.refine + plan.rewriter.most),
        by_step=(plan.rewriter.side,),
        with_gradients=plan.rewriter.most > 0,
        checkpoint=model.load_device.type != "cpu" if checkpoint is None else checkpoint,
    )
    return latents, residuals, back, count


def _invert(walk: Walk, x: Tensor, plan: Plan) -> tuple[Tensor, list[list[float]]]:
    """The inversion [T+1, B, C, H, W] at guidance 1, and the residuals [T][B] that refinement last saw ([] without)."""
    sigmas, steps, residuals = walk.sigmas, len(walk.sigmas) - 1, []
    denoise = partial(walk.denoise, branch=Branch.SOURCE)

    def refined(fixed_point_map: Callable[[Tensor], Tensor], guess: Tensor) -> Tensor:
        found = solve(fixed_point_map, guess, plan.refine, MIXINGS[plan.mixing])
        residuals.append(found.residuals[-1].tolist())
        return found.x

    prompt, how = walk.prompts["positive"].entries, {
        "regularise": _regulariser(plan.regularise),
        "on_step": lambda i, x: walk.progress.reached((steps - i) * (1 + plan.refine), walk.denoised),
    }
    if plan.label == PARITY:
        latents = parity_invert(denoise, x, walk.table.to(sigmas), steps, prompt, **how)
    else:
        labels = target_labels(sigmas) if plan.label == TARGET else current_labels(sigmas, walk.least_sigma)
        how["refine"] = refined if plan.refine else None
        latents = invert(denoise, x, sigmas, prompt, labels=labels, input_scale=plan.scale, **how)
    if not torch.isfinite(latents).all():
        raise ValueError("The inversion is not finite. The picture's latent, the schedule or the model is at fault.")
    return latents, residuals[::-1]


def _regulariser(name: str) -> Callable[[Tensor], Tensor] | None:
    """The chosen nudge of the predicted noise; its random shifts are the same in every run."""
    settings = REGULARISERS[name]
    return None if settings is None else partial(nudge, generator=torch.Generator().manual_seed(0), **settings)


def _redescribe(walk: Walk, latents: Tensor, plan: Plan) -> Redescription:
    """The way back at guidance plan.cfg, with the rewriter at work on its side of the guidance."""
    side, steps = plan.rewriter.side, len(walk.sigmas) - 1
    prompt = walk.prompts[side]
    other = {name: prompt.entries for name, prompt in walk.prompts.items() if name != side}
    held = next(iter(other.values()), None)

    def denoise(x: Tensor, sigma: Tensor, embedding: Tensor) -> Tensor:
        prompts = {side: prompt.saying(embedding), **other}
        return walk.denoise(x, sigma, **prompts, cfg=plan.cfg, hold=held, branch=Branch.SOURCE)

    def on_step(i: int, x: Tensor) -> None:
        walk.progress.reached(steps * (1 + plan.refine) + (i + 1) * (1 + plan.rewriter.most), walk.denoised)

    rewrite = resting(plan.rewriter, steps) if plan.label == PARITY else plan.rewriter
    return redescribe(
        denoise, walk.sigmas, latents, prompt.embedding, rewrite, input_scale=plan.scale, on_step=on_step
    )


def _provenance(
    model, plan: Plan, scheduler: str, back: Redescription, count: Count, residuals: list[list[float]]
) -> Provenance:
    """How the mirror was made and what it cost."""
    batch, rewriter = back.reconstruction.shape[1], plan.rewriter
    return Provenance(
        identity(model),
        rewriter.name,
        plan.cfg,
        rewriter.side,
        rewriter.start,
        scheduler,
        label=plan.label,
        refine=plan.refine,
        mixing=plan.mixing,
        regularise=plan.regularise,
        forwards=count.forwards / batch,
        backwards=count.backwards / batch,
        evaluations=tuple(back.evaluations),
        losses=tuple(map(tuple, back.losses.tolist())),
        residuals=tuple(map(tuple, residuals)),
    )
