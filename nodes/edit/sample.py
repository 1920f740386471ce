"""MirrorSample: the way forward, with the edit added."""

import math

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.directions.direction import EditDirection
from ...mirror_ops.measure.report import EditReport, change, coverage
from ...mirror_ops.regions.found import late_region
from ...mirror_ops.regions.predicted import edited_region, probes, walked_region
from ...mirror_ops.walks.edit_schedule import EditSchedule, amounts, guidance
from ...mirror_ops.walks.noise import picture_generators
from ...mirror_ops.walks.sample import Region, mirror_sample
from ...mirror_ops.walks.shared_noise import coarse, shared_noise
from ...mirror_ops.walks.trajectory import Mirror, cpu
from ..host import families
from ..host.attach import SHARED_NOISE, check_edited_text
from ..host.count import Count
from ..host.denoiser import run
from ..host.families import latent_out
from ..host.identity import check_made_with
from ..host.values import SEEDS, mask_at
from ..host.walk import Walk
from ..reports import shown
from ..types import DirectionType, MirrorType, ReportType, category
from .mirror_prompts import KEPT_NEGATIVE, Against, MirrorBranches, fitted, negatives_of, prompts_of, schedule_of

RECORDED, SHARED = "recorded", "shared"
AUTO, EVERYWHERE = "auto", "everywhere"
EXACT = {"off": (False, False), "source": (True, False), "source and edit": (True, True)}


class MirrorSample(io.ComfyNode):
    """Samples from a mirror's noise twice, side by side: once as it was, and once with the edit."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorSample",
            display_name="Mirror Sample",
            category=category(__name__),
            description=(
                "Walks forward from the mirror's noise with the prompt kept + strength x edit, where the edit is "
                "(positive - the mirror's own prompt) + direction. Guidance leads from the negative, which is the kept "
                "prompt itself unless one is connected, towards the edited prompt."
            ),
            search_aliases=["mirrordiffusion", "pix2pix-zero", "edit picture", "prompt edit", "direct inversion"],
            inputs=[*_edit_inputs(), *_walk_inputs()],
            outputs=[
                io.Latent.Output(display_name="edited"),
                io.Latent.Output(display_name="reconstruction", tooltip="The same walk without the edit."),
                io.Float.Output(display_name="forwards", tooltip="Passes through the network a picture."),
                io.Mask.Output(display_name="region", tooltip="Where the edit acts, a value for each latent cell."),
                ReportType.Output(display_name="report", tooltip="What changed, where, and its cost."),
            ],
        )

    @classmethod
    def execute(
        cls, model, mirror: Mirror, positive, strength, cfg, direction: EditDirection | None = None,
        negative=None, mask=None, noise=RECORDED, exact="source", region=AUTO, ramp=0.0, ramp_until=1.0,
        cfg_until=0.3, cfg_after=1.0, seed=0,
    ) -> io.NodeOutput:
        connected = check_made_with(mirror, model)
        fit = fitted(mirror, positive)
        if direction is None:
            check_edited_text(model, mirror.steps, positive)
        schedule = schedule_of(
            mirror, fit, direction, amounts(mirror.steps, strength, ramp, ramp_until),
            guidance(mirror.steps, cfg, cfg_until, cfg_after), rewritten=noise == RECORDED,
        )
        prompts = prompts_of(mirror, fit, schedule, negative)
        allowed = _allowed(mirror, mask)
        if noise == SHARED:
            made = _shared_walk(model, mirror, prompts, schedule, region, allowed, seed)
        else:
            another = mirror.provenance.model != connected or None
            made = _recorded_walk(
                model, mirror, prompts, schedule, fit.rewritten, region, allowed, EXACT[exact], another
            )
        (edited, kept, acted), count = made
        edited, kept, acted = (cpu(x) for x in (edited, kept, acted))
        report = EditReport(
            *count.each(mirror.latents.shape[1]),
            changes=(change(edited, mirror.latents[-1]),),
            coverage=coverage(acted) if region == AUTO or allowed is not None else (),
            why_empty=_why_empty(schedule, allowed, negative is not None),
        )
        edited, kept = (latent_out(model, x) for x in (edited, kept))
        return io.NodeOutput(edited, kept, report.forwards, acted[:, 0], report, ui=shown(report.text))


def _recorded_walk(
    model, mirror: Mirror, prompts: dict, schedule: EditSchedule, rewritten: Tensor, region: str,
    allowed: Tensor | None, exact: tuple[bool, bool], another: bool | None,
) -> tuple[tuple[Tensor, Tensor, Tensor], Count]:
    """((edited, reconstruction, region), network rows): both branches from the mirror's own noise."""
    against = negatives_of(mirror, "negative" in prompts)
    follow, residual = exact
    a_step, looked = 1 + (residual or not follow), 2 * len(probes(mirror.steps)) if region == AUTO else 0
    guided_probes = schedule.says_nothing and "negative" in prompts

    def algorithm(walk: Walk) -> tuple[Tensor, Tensor, Tensor]:
        branches = MirrorBranches(walk, schedule, rewritten, against, mirror.provenance.cfg, guided_probes)
        latents, found = mirror.latents.to(walk.device), None
        if region == AUTO:
            way_back, unlike = _way_back(mirror, another)
            first = edited_region(branches.probes, walk.sigmas, latents, way_back.to(walk.device), unlike)
            found = walked_region(first, latents[-1], mirror.steps)
        local = None if found is None and allowed is None else Local(latents[0], found, allowed)
        edited, kept = mirror_sample(
            branches.source, branches.edit, walk.sigmas, latents, exact=follow, residual=residual, region=local,
            on_step=lambda i, edited: walk.progress.reached(looked + (i + 1) * a_step, walk.denoised),
        )
        return edited, kept, torch.ones_like(latents[0, :, :1]) if local is None else local.region

    by_step = ("kept", "positive") if mirror.provenance.rewrote_positive else ("negative", KEPT_NEGATIVE)
    return _run(model, mirror, prompts, schedule, algorithm, by_step, mirror, looked + mirror.steps * a_step)


def _way_back(mirror: Mirror, another: bool | None) -> tuple[Tensor, bool | None]:
    """What `edited_region` takes for the predictions of the model that made the mirror, [T+1, B, C, H, W], and whether
    the connected model is another: None to have that found out.

    The reconstruction was walked by the kept prompt without guidance, but for mirrors that were made with some, of
    which the recording itself is near enough; and but for a stochastic sampler's, which no prediction has moved by.
    """
    if mirror.provenance.is_noisy_path:
        return mirror.latents, False
    if mirror.provenance.cfg == 1 or mirror.provenance.brings_negative:
        return mirror.reconstruction, another
    return mirror.latents, bool(another)


def _shared_walk(
    model, mirror: Mirror, prompts: dict, schedule: EditSchedule, region: str, allowed: Tensor | None, seed: int
) -> tuple[tuple[Tensor, Tensor, Tensor], Count]:
    """The same with fresh noise at each step, the same for both branches: the recording and what was rewritten for it
    are not needed, and the reconstruction is the picture."""
    against = (Against("negative" if "negative" in prompts else "kept", rewritten=False),) * 2
    batch = mirror.latents.shape[1]

    def algorithm(walk: Walk) -> tuple[Tensor, Tensor, Tensor]:
        branches = MirrorBranches(walk, schedule, schedule.kept, against, source_cfg=1.0)
        picture = mirror.latents[-1].to(walk.device)
        found = late_region(picture, mirror.steps) if region == AUTO else None
        local, flow = Local(picture, found, allowed), families.is_flow(model)

        def keep(i: int, change: Tensor) -> Tensor:
            change = coarse(change, walk.sigmas[i], flow)
            return local(i, change) * change

        edited = shared_noise(
            branches.both, picture, walk.sigmas, picture_generators(seed, range(batch)), flow=flow, keep=keep,
            on_step=lambda i, edited: walk.progress.reached(2 * (i + 1), edited),
        )
        return edited, picture, local.region

    return _run(model, mirror, prompts, schedule, algorithm, (), SHARED_NOISE, 2 * mirror.steps)


def _run(
    model, mirror: Mirror, prompts: dict, schedule: EditSchedule, algorithm, by_step: tuple, reference, evaluations: int
) -> tuple[tuple[Tensor, Tensor, Tensor], Count]:
    """`run` on the mirror's levels, the pooled prompt step by step where it changes."""
    pooled = {} if schedule.is_constant or schedule.edited_pooled() is None else {"positive": schedule.edited_pooled()}
    return run(
        model, mirror.latents[-1], mirror.sigmas, prompts, algorithm, evaluations=evaluations,
        by_step=tuple({*by_step, *pooled}), pooled_by_step=pooled, reference=reference,
    )


def _edit_inputs() -> list:
    """What is edited, and to what."""
    return [
        io.Model.Input("model", tooltip="The model of the mirror. Patches on it (guidance nodes) apply."),
        MirrorType.Input("mirror", tooltip="The picture to edit, as it was walked back to noise or drawn from a seed."),
        io.Conditioning.Input(
            "positive",
            tooltip="The mirror's own prompt, to edit by a direction; or the caption of the edited picture.",
        ),
        io.Float.Input(
            "strength", default=1.3, min=-10.0, max=10.0, step=0.05,
            tooltip="How much of the edit: 0 reconstructs, 1 is the whole edit, negative is the opposite.",
        ),
        io.Float.Input(
            "cfg", default=2.0, min=0.0, max=30.0, step=0.1,
            tooltip="Guidance towards the edit, at first (`cfg_until`). The papers' 5 to 7.5 throughout overshoots.",
        ),
        DirectionType.Input("direction", optional=True, tooltip="From CLIP Domain Direction; adds to the edit."),
        io.Conditioning.Input(
            "negative", optional=True,
            tooltip="What guidance leads away from. Default: the kept prompt. A mirror made against a negative needs "
            "the same one.",
        ),
        io.Mask.Input("mask", optional=True, tooltip=(
            "Where the edit may change the picture, softly; within the noise mask that the picture was inverted with."
        )),
    ]


def _walk_inputs() -> list:
    """How the edit is walked."""
    return [
        io.Combo.Input(
            "noise", options=[RECORDED, SHARED], default=RECORDED, optional=True, tooltip=(
                "recorded: from the mirror's own noise, with its rewritten prompt. shared: picture and edit get the "
                "same fresh noise at each step; of the mirror only picture, prompt and steps are used."
            ),
        ),
        io.Combo.Input(
            "exact", options=list(EXACT), default="source", optional=True, advanced=True, tooltip=(
                "Of recorded noise. source: the reconstruction follows the recording exactly (Direct Inversion). "
                "source and edit: the edit is also given what the source branch missed at each step."
            ),
        ),
        io.Combo.Input(
            "region", options=[AUTO, EVERYWHERE], default=AUTO, optional=True, tooltip=(
                "auto: find where the edit acts from the model's own predictions, and keep the recording "
                "elsewhere. everywhere: let the edit change what it will."
            ),
        ),
        io.Float.Input(
            "ramp", default=0.0, min=-10.0, max=10.0, step=0.05, optional=True, advanced=True,
            tooltip="How much the strength has grown at the clean end. MirrorDiffusion: strength 0.65, ramp "
            "1.2, until 0.67.",
        ),
        io.Float.Input(
            "ramp_until", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
            tooltip="Part of the walk after which the strength falls back to where it began.",
        ),
        io.Float.Input(
            "cfg_until", default=0.3, min=0.0, max=1.0, step=0.01, optional=True, tooltip=(
                "Part of the walk that is guided at cfg. What is there is decided early: 0.3 and a higher cfg change "
                "more of it, and less beside it. 1: guided throughout, as published methods are."
            ),
        ),
        io.Float.Input(
            "cfg_after", default=1.0, min=0.0, max=30.0, step=0.1, optional=True, advanced=True,
            tooltip="Guidance of the rest. 1: unguided, at half the cost; shared noise is best with 1.25.",
        ),
        io.Int.Input(
            "seed", default=0, **SEEDS, control_after_generate=False, optional=True,
            advanced=True, tooltip="Of shared noise.",
        ),
    ]


class Local:
    """Where the edit may act, as `mirror_sample` asks at every step: what is found there (None: all) and allowed.

    `region` [B, 1, H, W] is the latest answer.
    """

    def __init__(self, x: Tensor, found: Region | None, allowed: Tensor | None):
        self.found = found
        self.region = self.allowed = torch.ones_like(x[:, :1]) * (1.0 if allowed is None else allowed.to(x))

    def __call__(self, i: int, difference: Tensor) -> Tensor:
        if self.found is not None:
            self.region = self.found(i, difference) * self.allowed
        return self.region


def _why_empty(schedule: EditSchedule, allowed: Tensor | None, guided: bool) -> str:
    """Why a region is empty, or what to do about it."""
    if allowed is not None and float(allowed.max()) == 0:
        return "the mask allows no change anywhere"
    if schedule.says_nothing and not guided:
        return "`positive` says what the mirror's prompt says, or strength is 0, and nothing else edits"
    return EditReport.why_empty


def _allowed(mirror: Mirror, mask: Tensor | None) -> Tensor | None:
    """[B or 1, 1, H, W] at the latent's size: where the connected mask and the one that the mirror recorded allow the
    edit; None without any."""
    masks = [each for each in (mirror.mask, mask_at(mask, mirror.latents[0], "`mask`")) if each is not None]
    return math.prod(masks) if masks else None
