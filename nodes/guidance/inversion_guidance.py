"""MirrorInversionGuidance and MirrorReconstructionGuidance: outside a mask, an edit is pulled back to the picture."""

from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.guidance.proximal import EditMask
from ...mirror_ops.walks.trajectory import Mirror, cpu
from ..edit.mirror_prompts import fitted
from ..host.blocked import unknown
from ..host.branches import Branch
from ..host.conditioning import text_of, with_pooled, with_text
from ..host.denoiser import run
from ..host.guidance_control import Pull, ToPicture, ToRecording, Window
from ..host.walk import Walk
from ..types import category, mirror_input
from .proximal import threshold_input, threshold_of, window_inputs

ABOVE, PUBLISHED = "|difference| > threshold", "|proximal map| > threshold (as published)"


class MirrorInversionGuidance(io.ComfyNode):
    """Patches a model so that after each step the latent is pulled to the recorded one, outside the edit."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorInversionGuidance",
            display_name="Mirror Inversion Guidance",
            category=category(__name__),
            description=(
                "Inversion guidance (ProxEdit): after each step the latent is pulled to the picture's own at this "
                "level (the one that inversion recorded, or the source side under shared noise), except where the two "
                "predictions of guidance differ by more than a threshold."
            ),
            search_aliases=["proxedit", "inversion guidance", "keep background"],
            inputs=_inputs(1.0, "Part of the way to the recorded latent: 1 takes its place."),
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, model, **settings) -> io.NodeOutput:
        return _patched(ToRecording, model, **settings)


class MirrorReconstructionGuidance(io.ComfyNode):
    """Patches a model so that at each step the predicted picture is pulled to the real one, outside the edit."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorReconstructionGuidance",
            display_name="Mirror Reconstruction Guidance",
            category=category(__name__),
            description=(
                "Reconstruction guidance (ProxEdit): at each step the predicted picture is pulled to the one that was "
                "inverted (under shared noise: to what is predicted of it), except where the two predictions of "
                "guidance differ by more than a threshold."
            ),
            search_aliases=["proxedit", "reconstruction guidance", "keep background"],
            inputs=_inputs(0.1, "Part of the way from the predicted picture to the real one, at each step."),
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, model, **settings) -> io.NodeOutput:
        return _patched(ToPicture, model, **settings)


def _inputs(rate: float, tooltip: str) -> list:
    return [
        io.Model.Input("model", tooltip="Comes out with this guidance added; a LoRA on it stays."),
        io.Float.Input("step_size", default=rate, min=0.0, max=1.0, step=0.01, tooltip=tooltip),
        threshold_input(),
        io.Int.Input("dilation", default=1, min=0, max=64, tooltip="Latent cells by which the edit's part is widened."),
        *window_inputs(400),
        mirror_input(),
        io.Combo.Input(
            "mask_rule", options=[ABOVE, PUBLISHED], default=ABOVE, optional=True, advanced=True, tooltip=(
                "What counts as the edit's. The official code asks for twice the threshold: more is pulled back."
            ),
        ),
        io.Conditioning.Input(
            "positive", optional=True,
            tooltip="The edited picture's caption; only for the `mask` output, which costs two passes a step.",
        ),
    ]


def _outputs() -> list:
    return [
        io.Model.Output(
            tooltip="For Mirror Sample, edits under shared noise, or with a mirror a stock euler or ddim sampler on "
            "its sigmas."
        ),
        io.Mask.Output(
            display_name="mask", tooltip=(
                "The part of the pull that each latent cell is spared, measured on the recording. Needs `mirror` and "
                "`positive`."
            ),
        ),
    ]


def _patched(
    kind: type[Pull], model, step_size, threshold, dilation, mirror: Mirror | None = None, first_timestep=400,
    last_timestep=0, mask_rule=ABOVE, positive=None,
) -> io.NodeOutput:
    mask = EditMask(threshold_of(threshold), dilation, mask_rule == PUBLISHED)
    window = Window.of(model, first_timestep, last_timestep)
    patched = kind(mask, step_size, window).patched(model, mirror)
    if mirror is None or positive is None:
        return io.NodeOutput(patched, unknown(
            "The mask needs `mirror` and `positive`, the edited picture's caption: connect both to this node."
        ))
    return io.NodeOutput(patched, recorded_mask(model, mirror, positive, mask, window))


def recorded_mask(model, mirror: Mirror, positive, mask: EditMask, window: Window) -> Tensor:
    """[B, H, W] in [0, 1]: the mean over steps and channels of the mask, with the edit measured on the recording.

    While one samples the mask is made anew at every step, on latents that the edit has already changed, and no node
    could receive it before the picture is done. On the recorded latents it is known now. The difference is that of
    the edited prompt and the mirror's own, which is guidance's where the negative is the mirror's prompt.
    Raises ValueError if no step of the mirror lies in the window, or for a prompt that does not fit.
    """
    sampling = model.get_model_object("model_sampling")
    steps = [i for i in range(mirror.steps) if window.holds(mirror.sigmas[i], sampling)]
    if not steps:
        raise ValueError(f"No step of the mirror lies between timesteps {window.first} and {window.last}.")
    fit = fitted(mirror, positive)
    kept = with_pooled(with_text(fit.positive, fit.source), mirror.pooled)
    change = text_of(fit.positive).float().cpu() - fit.source

    def algorithm(walk: Walk) -> Tensor:
        total = 0.0
        for n, i in enumerate(steps):
            x, sigma = mirror.latents[i].to(walk.device), mirror.sigmas[i].to(walk.device)
            said = (fit.rewritten[i] if mirror.provenance.rewrote_positive else fit.source).to(walk.device)
            kept = walk.prompts["kept"].saying(said)
            source = walk.denoise(x, sigma, kept, branch=Branch.SOURCE)
            told = walk.prompts["positive"].saying(said + change.to(walk.device))
            edited = walk.denoise(x, sigma, told, branch=Branch.PROBE)
            total = total + mask(edited - source, sigma, alone=True).mean(dim=1)
            walk.progress.reached(2 * (n + 1), walk.denoised)
        return total / len(steps)

    prompts = {"positive": fit.positive, "kept": kept}
    spared, _ = run(
        model, mirror.latents[-1], mirror.sigmas, prompts, algorithm, evaluations=2 * len(steps), reference=mirror
    )
    return cpu(spared)
