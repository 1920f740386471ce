"""MirrorEdit: from a picture and two prompts to the edited picture, without an inversion."""

import torch
from comfy_api.latest import io

from ...mirror_ops.directions.direction import EditDirection
from ...mirror_ops.measure.report import EditReport, coverage
from ..host import families
from ..host.attach import check_apart, check_edited_text
from ..host.compatibility import check_walks
from ..host.conditioning import check_batch, text_of
from ..host.values import SEEDS, places_of
from ..reports import shown
from ..types import DirectionType, ReportType, category
from .asked import allowed_region, asked_for, check
from .shared_walk import Guidance, Plan, walked, walked_apart

AUTO, EVERYWHERE, CUSTOM = "auto", "everywhere", "custom"


PRESETS = {
    "balanced": Guidance(3.0, 0.45, 1.25),
    "faithful": Guidance(2.0, 0.45, 1.25),
    "bold": Guidance(4.0, 0.45, 1.5),
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
                ReportType.Output(display_name="report", tooltip="What changed, where, and what it cost."),
            ],
        )

    @classmethod
    def execute(
        cls, model, source, target, latent, settings: dict, steps, scheduler, strength, seed, region, negative=None,
        direction: EditDirection | None = None, mask=None, edit_model=None, sigmas=None, denoise=1.0,
        polish=0.2,
    ) -> io.NodeOutput:
        samples = latent["samples"]
        sigmas = families.noise_levels(model, scheduler, steps, denoise) if sigmas is None else sigmas.float().cpu()
        check(model, edit_model, samples, sigmas)
        prompts = {"source": source, "target": asked_for(source, target, strength, direction)}
        prompts |= {} if negative is None else {"negative": negative}
        for name, prompt in prompts.items():
            check_batch(text_of(prompt, name), len(samples))
        if edit_model is not None:
            check_walks(edit_model, prompts, samples)
            check_apart(model, edit_model, "edit_model")
        if direction is None:
            check_edited_text(edit_model or model, len(sigmas) - 1, target)
        allowed = allowed_region(samples, mask=mask, noise_mask=latent.get("noise_mask"))
        plan = Plan(
            sigmas, chosen(settings), seed, places_of(latent), allowed, region == AUTO, families.is_flow(model),
            round(polish * (len(sigmas) - 1)),
        )
        made = walked(model, samples, prompts, plan) if edit_model is None else (
            walked_apart(model, edit_model, samples, prompts, plan))
        report = EditReport(
            *made.count.each(len(samples)), changes=tuple(made.changes), coverage=coverage(made.region),
            why_empty=why_nothing(prompts, edit_model, allowed, strength),
        )
        edited = {**latent, **families.latent_out(model, made.edited)}
        return io.NodeOutput(edited, made.region[:, 0], report, ui=shown(report.text))


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
            "custom: your own guidance. Figures: `bench edits --scenes 2`."
        )),
        io.Int.Input("steps", default=25, min=1, max=1000, tooltip="25 is good, more hardly better; 3 passes a step."),
        io.Combo.Input("scheduler", options=families.SCHEDULERS, default="ddim_uniform", tooltip="As in KSampler."),
        io.Float.Input(
            "strength", default=1.0, min=-10.0, max=10.0, step=0.05,
            tooltip="How much of the edit: 0 none, 1 as the target says, more exaggerates, negative is the opposite.",
        ),
        io.Int.Input(
            "seed", default=0, **SEEDS, control_after_generate=True,
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
        io.Float.Input(
            "polish", default=0.2, min=0.0, max=0.8, step=0.05, optional=True, tooltip=(
                "Draws the finished edit again where it acted, from so much noise on: outlines become crisp and what "
                "shimmers goes. 0 leaves it as the walk made it, which is nearer the average answer."
            ),
        ),
    ]


def _settings() -> list:
    cfg = {"min": 0.0, "max": 30.0, "step": 0.1}
    part = {"min": 0.0, "max": 1.0, "step": 0.01}
    shipped = PRESETS["balanced"]
    custom = [
        io.Float.Input(
            "cfg", default=shipped.cfg, **cfg, tooltip="Towards the target, where it is decided what is there.",
        ),
        io.Float.Input("cfg_until", default=shipped.until, **part, tooltip="Part of the walk at which that ends."),
        io.Float.Input("cfg_after", default=shipped.after, **cfg, tooltip="From then on; 1 is cheaper."),
        io.Boolean.Input("coarse", default=True, tooltip=(
            "Keep of each change only what is coarse enough to be seen through the noise of its step."
        )),
        io.Boolean.Input("antithetic", default=True, tooltip="Every other noise is its opposite."),
        io.Float.Input("source_cfg", default=1.0, **cfg, tooltip="FlowEdit guides the source side too."),
        io.Int.Input("draws", default=1, min=1, max=16, tooltip="Noises a step, whose moves are averaged."),
        io.Boolean.Input("jump", default=False, tooltip=(
            "At each step jump to where the network now sees the edit (InfEdit) instead of going a step towards it."
        )),
    ]
    return [*(io.DynamicCombo.Option(name, []) for name in PRESETS), io.DynamicCombo.Option(CUSTOM, custom)]


def chosen(settings: dict) -> Guidance:
    """The guidance of a preset or of the custom widgets."""
    if settings["settings"] != CUSTOM:
        return PRESETS[settings["settings"]]
    same = {name: settings[name] for name in ("cfg", "source_cfg", "draws", "jump", "coarse", "antithetic")}
    return Guidance(until=settings["cfg_until"], after=settings["cfg_after"], **same)


def why_nothing(prompts: dict, edit_model, allowed: torch.Tensor | None, strength: float) -> str:
    """Why a region is empty, or what to do about it."""
    if allowed is not None and float(allowed.max()) == 0:
        return "the mask allows no change anywhere"
    if strength == 0 and edit_model is None:
        return "strength is 0"
    source, target = (text_of(prompts[name], name) for name in ("source", "target"))
    if source.shape == target.shape and torch.equal(source, target) and edit_model is None:
        return "source and target say the same, and no edit_model is connected"
    return "the model sees no difference worth an edit; try bold, a higher strength, or plainer words"
