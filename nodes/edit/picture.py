"""MirrorEdit: from a picture and two prompts to the edited picture, without an inversion."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.directions.direction import EditDirection
from ...mirror_ops.regions.found import latent_region
from ...mirror_ops.walks.shared_noise import picture_generators, shared_noise
from ...mirror_ops.walks.trajectory import cpu
from ..host import families
from ..host.attach import SHARED_NOISE
from ..host.branches import Branch
from ..host.conditioning import (
    Conditioning,
    check_batch,
    common_tokens,
    pooled_of,
    text_of,
    token_counts,
    with_pooled,
    with_text,
)
from ..host.denoiser import Walk, run
from ..reports import shown
from ..types import DirectionType, category

AUTO, EVERYWHERE, CUSTOM = "auto", "everywhere", "custom"
FOUND_FROM = 0.8  # of the walk: earlier the edit has not decided where it acts


class Guidance(NamedTuple):
    """How strongly the edit is asked for along the walk: `cfg` until `until`, `after` from then on."""

    cfg: float
    until: float
    after: float
    source_cfg: float = 1.0
    draws: int = 1
    jump: bool = False

    def at(self, steps: int) -> list[float]:
        """[T] the cfg of each step."""
        return [self.cfg if i < round(self.until * steps) else self.after for i in range(steps)]


PRESETS = {
    "balanced": Guidance(2.5, 0.3, 1.5),
    "faithful": Guidance(1.5, 1.0, 1.5),
    "bold": Guidance(4.0, 0.3, 2.0),
}


class MirrorEdit(io.ComfyNode):
    """Edits a picture by walking it and its edit under the same noise."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorEdit",
            display_name="Edit Picture (Mirror)",
            category=category(__name__),
            description=(
                "Changes what you name in a picture and keeps the rest: say what is in it (source) and what should be "
                "there instead (target). Both prompts are walked under the same noise, so what they share stays as it "
                "is; no inversion, no training, no mask needed."
            ),
            search_aliases=[
                "edit", "edit picture", "edit image", "prompt edit", "text edit", "img2img edit", "image editing",
                "flowedit", "infedit", "cyclediffusion", "zero-shot edit", "inversion-free", "change object",
            ],
            inputs=[*_edit_inputs(), *_optional_inputs()],
            outputs=[
                io.Latent.Output(display_name="edited"),
                io.Mask.Output(display_name="region", tooltip="Where the edit acted, a value for each latent cell."),
                io.String.Output(display_name="report", tooltip="What changed, where, and what it cost."),
            ],
        )

    @classmethod
    def execute(
        cls, model, source, target, latent, settings: dict, steps, scheduler, strength, seed, region, negative=None,
        direction: EditDirection | None = None, mask=None, edit_model=None, sigmas=None, denoise=1.0,
    ) -> io.NodeOutput:
        samples = latent["samples"]
        sigmas = families.noise_levels(model, scheduler, steps, denoise) if sigmas is None else sigmas.float().cpu()
        check(model, edit_model, samples, sigmas)
        prompts = {"source": source, "target": asked_for(source, target, strength, direction)}
        prompts |= {} if negative is None else {"negative": negative}
        for name, prompt in prompts.items():
            check_batch(text_of(prompt, name), len(samples))
        allowed = allowed_region(samples, mask, latent.get("noise_mask"))
        plan = Plan(sigmas, chosen(settings), seed, places_of(latent), allowed, region == AUTO, families.is_flow(model))
        made = walked(model, samples, prompts, plan) if edit_model is None else (
            walked_apart(model, edit_model, samples, prompts, plan))
        if not torch.isfinite(made.edited).all():
            raise ValueError("The edit is not finite. Lower cfg or strength, or take another scheduler.")
        told = report(made, plan, why_nothing(prompts, edit_model))
        edited = {**latent, "samples": model.model.process_latent_out(made.edited)}
        return io.NodeOutput(edited, made.region[:, 0], told, ui=shown(told))


def _edit_inputs() -> list:
    """What is edited, to what, and how."""
    return [
        io.Model.Input("model", tooltip="Patches on it (LoRA, guidance and attention nodes) apply."),
        io.Conditioning.Input("source", tooltip="Describes the picture as it is."),
        io.Conditioning.Input(
            "target", tooltip="Describes the edited picture: the same sentence with the words that should change, one "
            "or several.",
        ),
        io.Latent.Input("latent", tooltip="The encoded picture(s). A noise mask says where the edit may act."),
        io.DynamicCombo.Input("settings", options=_settings(), tooltip=(
            "balanced: what was asked, little else. faithful: keeps more, misses more. bold: leaves less of the old. "
            "custom: your own guidance."
        )),
        io.Int.Input("steps", default=50, min=1, max=1000, tooltip="20 is quick, 50 good; 3 passes a step."),
        io.Combo.Input("scheduler", options=families.SCHEDULERS, default="ddim_uniform", tooltip="As in KSampler."),
        io.Float.Input(
            "strength", default=1.0, min=-10.0, max=10.0, step=0.05,
            tooltip="How much of the edit: 0 none, 1 as the target says, more exaggerates, negative is the opposite.",
        ),
        io.Int.Input(
            "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
            tooltip="Of the noise. Another seed is another answer where the picture leaves it open.",
        ),
        io.Combo.Input("region", options=[AUTO, EVERYWHERE], default=AUTO, tooltip=(
            "auto: towards the end, where the edit changed little it changes nothing. everywhere: as it comes."
        )),
    ]


def _optional_inputs() -> list:
    return [
        io.Conditioning.Input(
            "negative", optional=True, tooltip="What guidance leads away from. Default: the source prompt.",
        ),
        DirectionType.Input("direction", optional=True, tooltip="From CLIP Domain Direction; adds to the target."),
        io.Mask.Input("mask", optional=True, tooltip="Where the edit may change the picture, softly."),
        io.Model.Input("edit_model", optional=True, tooltip=(
            "Sees the edited side instead of model: the same checkpoint with a LoRA, or another of its family. With "
            "the same words on both sides this model alone makes the edit."
        )),
        io.Sigmas.Input("sigmas", optional=True, tooltip="Instead of steps, scheduler and denoise."),
        io.Float.Input(
            "denoise", default=1.0, min=0.05, max=1.0, step=0.05, optional=True, advanced=True,
            tooltip="Below 1 the walk begins nearer to the picture: less can change.",
        ),
    ]


def _settings() -> list:
    custom = [
        io.Float.Input("cfg", default=2.5, min=0.0, max=30.0, step=0.1, tooltip="Towards the target, at first."),
        io.Float.Input("cfg_until", default=0.3, min=0.0, max=1.0, step=0.01, tooltip="Part of the walk it lasts."),
        io.Float.Input("cfg_after", default=1.5, min=0.0, max=30.0, step=0.1, tooltip="From then on; 1 is cheaper."),
        io.Float.Input(
            "source_cfg", default=1.0, min=0.0, max=30.0, step=0.1, tooltip="FlowEdit guides the source side too.",
        ),
        io.Int.Input("draws", default=1, min=1, max=16, tooltip="Noises a step, whose moves are averaged."),
        io.Boolean.Input("jump", default=False, tooltip=(
            "At each step jump to where the network now sees the edit (InfEdit) instead of going a step towards it."
        )),
    ]
    return [*(io.DynamicCombo.Option(name, []) for name in PRESETS), io.DynamicCombo.Option(CUSTOM, custom)]


class Plan(NamedTuple):
    """How both sides are walked."""

    sigmas: Tensor
    guidance: Guidance
    seed: int
    places: list[int]  # of the pictures in the batch they came from
    allowed: Tensor | None  # [B or 1, 1, H, W]
    local: bool
    flow: bool

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def walk(self, source, edit, picture: Tensor, **more) -> Tensor:
        """The edited picture [B, C, H, W], by two branches."""
        return shared_noise(
            source, edit, picture, self.sigmas.to(picture), picture_generators(self.seed, self.places), flow=self.flow,
            draws=self.guidance.draws, jump=self.guidance.jump, **more,
        )


class Made(NamedTuple):
    """An edit, in model space on the CPU."""

    picture: Tensor
    edited: Tensor
    region: Tensor  # [B, 1, H, W] where it acted
    changes: list[float]  # rms of the edit after each step, relative to the picture's
    passes: float  # through the network, a picture


def chosen(settings: dict) -> Guidance:
    if settings["settings"] != CUSTOM:
        return PRESETS[settings["settings"]]
    given = {name: settings[name] for name in ("cfg", "source_cfg", "draws", "jump")}
    return Guidance(until=settings["cfg_until"], after=settings["cfg_after"], **given)


def walked(model, samples: Tensor, prompts: dict, plan: Plan) -> Made:
    """Both sides with one model, the source first at each step."""

    def algorithm(walk: Walk) -> tuple:
        return _edited(walk, samples, _source_branch(walk, plan), plan)

    evaluations = 2 * plan.steps * plan.guidance.draws
    made, count = run(
        model, samples, plan.sigmas, prompts, algorithm, evaluations=evaluations, reference=SHARED_NOISE
    )
    return Made(*made, count.forwards / len(samples))


def walked_apart(model, edit_model, samples: Tensor, prompts: dict, plan: Plan) -> Made:
    """The whole source side first, which does not depend on the edit, then the other model: each is loaded once."""
    seen: list[Tensor] = []
    evaluations = plan.steps * plan.guidance.draws

    def look(walk: Walk) -> None:
        source = _source_branch(walk, plan)

        def kept(x: Tensor, sigma: Tensor, i: int) -> Tensor:
            seen.append(cpu(source(x, sigma, i)))
            return x

        plan.walk(kept, lambda x, sigma, i: x, walk.latent_in(samples))

    def algorithm(walk: Walk) -> tuple:
        before = iter(seen)
        return _edited(walk, samples, lambda x, sigma, i: next(before).to(x), plan)

    on_source = {name: prompts[name] for name in prompts if name != "target"}
    _, first = run(model, samples, plan.sigmas, on_source, look, evaluations=evaluations)
    made, second = run(edit_model, samples, plan.sigmas, prompts, algorithm, evaluations=evaluations)
    return Made(*made, (first.forwards + second.forwards) / len(samples))


def _source_branch(walk: Walk, plan: Plan) -> Callable:
    prompt, against = walk.prompts["source"].entries, _against(walk)
    return lambda x, sigma, i: walk.denoise(x, sigma, prompt, against, plan.guidance.source_cfg, branch=Branch.SOURCE)


def _against(walk: Walk) -> list:
    return (walk.prompts.get("negative") or walk.prompts["source"]).entries


def _edited(walk: Walk, samples: Tensor, source: Callable, plan: Plan) -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """(picture, edited, region, change after each step)."""
    picture, target, against = walk.latent_in(samples), walk.prompts["target"].entries, _against(walk)
    cfgs, changes = plan.guidance.at(plan.steps), []
    allowed = None if plan.allowed is None else plan.allowed.to(picture)

    def edit(x: Tensor, sigma: Tensor, i: int) -> Tensor:
        return walk.denoise(x, sigma, target, against, cfgs[i], branch=Branch.EDIT)

    def region(i: int, change: Tensor) -> Tensor:
        late = plan.local and i >= round(FOUND_FROM * plan.steps)
        return _kept(latent_region(change, picture) if late else torch.ones_like(change[:, :1]), allowed)

    def on_step(i: int, edited: Tensor) -> None:
        changes.append(float((edited - picture).square().mean().sqrt() / picture.std()))
        walk.progress.reached(round((i + 1) / plan.steps * walk.progress.total), edited)

    edited = plan.walk(source, edit, picture, region=region, on_step=on_step)
    acted = _kept(latent_region(edited - picture, picture), allowed)
    return cpu(picture), cpu(edited), cpu(acted), changes


def _kept(region: Tensor, allowed: Tensor | None) -> Tensor:
    return region if allowed is None else region * allowed


# ---- what was asked ----

def check(model, edit_model, samples: Tensor, sigmas: Tensor) -> None:
    """Raises ValueError, before any work, for a picture or models that can't be edited so."""
    families.check_supported(model, samples)
    families.check_levels(model, sigmas)
    if not torch.isfinite(samples).all():
        raise ValueError("The latent holds values that are not finite. Encode the picture again.")
    if edit_model is None:
        return
    one, other = ((families.describe(m)["latent_format"], families.is_flow(m)) for m in (model, edit_model))
    if one != other:
        raise ValueError(
            f"`model` ({type(model.model).__name__}) and `edit_model` ({type(edit_model.model).__name__}) do not share "
            "their latents. Use two models of one family."
        )
    families.check_levels(edit_model, sigmas)


def asked_for(source: Conditioning, target: Conditioning, strength: float, direction) -> Conditioning:
    """source + strength x ((target - source) + direction), text and pooled; the target itself at strength 1."""
    if strength == 1 and direction is None:
        return target
    before, after = common_tokens(source, target)
    change = text_of(after, "target") - text_of(before, "source")
    if direction is not None:
        each = [direction.for_tokens(n, change.shape[2]) for n in token_counts(after)]
        change = change + torch.cat(each, dim=1).to(change)
    pooled = [pooled_of(prompt) for prompt in (before, after)]
    made = with_text(after, text_of(before, "source") + strength * change)
    if any(p is None for p in pooled):
        return made
    change = pooled[1] - pooled[0]
    if direction is not None and direction.pooled is not None:
        change = change + direction.pooled.to(change)
    return with_pooled(made, pooled[0] + strength * change)


def allowed_region(samples: Tensor, *masks: Tensor | None) -> Tensor | None:
    """[B or 1, 1, H, W] where all masks allow the edit, at the latent's size; None without any."""
    allowed = None
    for mask in masks:
        if mask is None:
            continue
        mask = mask.float().reshape(-1, 1, *mask.shape[-2:])
        if len(mask) not in (1, len(samples)):
            raise ValueError(f"There are {len(mask)} masks for {len(samples)} pictures. Give one, or one each.")
        mask = torch.nn.functional.interpolate(mask, size=samples.shape[-2:], mode="area").clamp(0, 1)
        allowed = mask if allowed is None else allowed * mask
    return allowed


def places_of(latent: dict) -> list[int]:
    """Which picture of its batch each is: a picture taken out of a batch is edited as it was in there."""
    return list(latent.get("batch_index") or range(len(latent["samples"])))


# ---- what came of it ----

def why_nothing(prompts: dict, edit_model) -> str:
    """What to do where nothing changed."""
    source, target = (text_of(prompts[name], name) for name in ("source", "target"))
    if source.shape == target.shape and torch.equal(source, target) and edit_model is None:
        return "source and target say the same, and no edit_model is connected"
    return "the model sees no difference worth an edit; try bold, a higher strength, or plainer words"


def report(made: Made, plan: Plan, reason: str) -> str:
    """What changed, where, and what it cost, in plain words."""
    lines = []
    for k, region in enumerate(made.region):
        share, name = float(region.mean()), "region" if len(made.region) == 1 else f"region of picture {k}"
        if share > 0:
            lines.append(f"{name}: {share:.0%} of the picture")
        elif plan.allowed is not None and float(plan.allowed[k % len(plan.allowed)].max()) == 0:
            lines.append(f"{name} empty: the mask allows no change anywhere")
        else:
            lines.append(f"{name} empty: {reason}")
    every = max(1, plan.steps // 10)
    lines.append(f"change: {made.changes[-1]:.2f} of the picture's own contrast; along the walk "
                 + " ".join(f"{change:.2f}" for change in made.changes[every - 1 :: every]))
    lines.append(f"passes: {made.passes:.0f} in {plan.steps} steps")
    return "\n".join(lines)
