"""MirrorInversionGuidance and MirrorReconstructionGuidance: outside a mask, an edit is pulled back to the picture."""

from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ...mirror_ops.guidance.proximal import EditMask, inversion_guidance, reconstruction_guidance
from ...mirror_ops.walks.ddim import euler, implied_denoised
from ...mirror_ops.walks.trajectory import Mirror, cpu
from ..host.branches import Control
from ..host.conditioning import check_batch, text_of, with_pooled, with_text
from ..host.denoiser import Walk, run
from ..host.identity import check_made_with
from ..host.reference_pass import NEAR, check_shape, step_of
from ..types import MirrorType, category
from .proximal import Window, guided, is_edit_alone, is_guided, threshold_input, threshold_of, window_inputs

ABOVE, PUBLISHED = "|difference| > threshold", "|proximal map| > threshold (as published)"


@dataclass(frozen=True)
class Pull:
    """The post-cfg function: the step arrives where the pull moves it to, if it is one Euler move (euler, ddim)."""

    mirror: Mirror
    mask: EditMask
    rate: float
    window: Window

    def __call__(self, args: dict) -> Tensor:
        if not is_guided(args, self.window, Control.PULL):
            return args["denoised"]
        x, denoised, sigma = args["input"], args["denoised"], args["sigma"].flatten()[0]
        i, delta = step_of(self.mirror.sigmas, sigma), args["cond_denoised"] - args["uncond_denoised"]
        mask, sigma_next = self.mask(delta, sigma, is_edit_alone(args)), self.mirror.sigmas[i + 1].to(sigma)
        return implied_denoised(x, self.arrive(x, denoised, mask, i, sigma, sigma_next), sigma, sigma_next)

    def arrive(self, x: Tensor, denoised: Tensor, mask: Tensor, i: int, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The latent at sigma_next, the mirror's level i + 1."""
        raise NotImplementedError


class ToRecording(Pull):
    """Inversion guidance: to the recorded latent of the level that the step arrives at."""

    def arrive(self, x, denoised, mask, i, sigma, sigma_next):
        recorded = self.mirror.latents[i + 1].to(x)
        return inversion_guidance(euler(x, denoised, sigma, sigma_next), recorded, mask, self.rate)


class ToPicture(Pull):
    """Reconstruction guidance: the prediction to the picture, before noise is added back."""

    def arrive(self, x, denoised, mask, i, sigma, sigma_next):
        clean = self.mirror.latents[-1].to(x)
        return reconstruction_guidance(x, denoised, clean, mask, self.rate, sigma, sigma_next, self.window.flow)


class MirrorInversionGuidance(io.ComfyNode):
    """Patches a model so that after each step the latent is pulled to the recorded one, outside the edit."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorInversionGuidance",
            display_name="Mirror Inversion Guidance",
            category=category(__name__),
            description=(
                "Inversion guidance (ProxEdit): after each step the latent is pulled to the one that inversion "
                "recorded at this level, except where the two predictions of guidance differ by more than a threshold."
            ),
            search_aliases=["proxedit", "inversion guidance", "keep background"],
            inputs=_inputs(1.0, "Part of the way to the recorded latent: 1 takes its place."),
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, model, mirror: Mirror, **settings) -> io.NodeOutput:
        return _patched(ToRecording, model, mirror, **settings)


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
                "inverted, except where the two predictions of guidance differ by more than a threshold."
            ),
            search_aliases=["proxedit", "reconstruction guidance", "keep background"],
            inputs=_inputs(0.1, "Part of the way from the predicted picture to the real one, at each step."),
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, model, mirror: Mirror, **settings) -> io.NodeOutput:
        return _patched(ToPicture, model, mirror, **settings)


def _inputs(rate: float, tooltip: str) -> list:
    return [
        io.Model.Input("model"),
        MirrorType.Input("mirror", tooltip="The mirror that is sampled from."),
        io.Float.Input("step_size", default=rate, min=0.0, max=1.0, step=0.01, tooltip=tooltip),
        threshold_input(),
        io.Int.Input("dilation", default=1, min=0, max=64, tooltip="Latent cells by which the edit's part is widened."),
        *window_inputs(400),
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
        io.Model.Output(tooltip="For Mirror Sample, or a stock euler or ddim sampler on the mirror's sigmas."),
        io.Mask.Output(
            display_name="mask", tooltip=(
                "The part of the pull that each latent cell is spared, measured on the recording. Needs `positive`."
            ),
        ),
    ]


def _patched(
    kind: type[Pull], model, mirror: Mirror, step_size, threshold, dilation, first_timestep=400, last_timestep=0,
    mask_rule=ABOVE, positive=None,
) -> io.NodeOutput:
    check_made_with(mirror, model)
    mask = EditMask(threshold_of(threshold), dilation, mask_rule == PUBLISHED)
    window = Window.of(model, first_timestep, last_timestep)
    patched = guided(model, kind(mirror, mask, step_size, window))
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "mirror_pull", _checked(mirror))
    spared = ExecutionBlocker("The mask needs `positive`, the edited picture's caption: connect it to this node.")
    if positive is not None:
        spared = recorded_mask(model, mirror, positive, mask, window)
    return io.NodeOutput(patched, spared)


def _checked(mirror: Mirror):
    """An OUTER_SAMPLE wrapper: before work, ValueError for latents or levels that the mirror has not recorded."""

    def sample(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        check_shape(mirror, noise.shape)
        for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
            recorded = mirror.sigmas[step_of(mirror.sigmas, sigma) + 1].to(sigmas)
            if (sigma_next - recorded).abs() > NEAR * sigma:
                raise ValueError(
                    f"The sampler goes from noise level {sigma:.4g} to {sigma_next:.4g}, the mirror to {recorded:.4g}: "
                    "give the sampler the mirror's `sigmas`."
                )
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)

    return sample


def recorded_mask(model: ModelPatcher, mirror: Mirror, positive, mask: EditMask, window: Window) -> Tensor:
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
    check_batch(text_of(positive), mirror.latents.shape[1])
    kept = with_pooled(with_text(positive, mirror.source), mirror.pooled)
    change = text_of(positive).float().cpu() - mirror.source

    def algorithm(walk: Walk) -> Tensor:
        total = 0.0
        for n, i in enumerate(steps):
            x, sigma = mirror.latents[i].to(walk.device), mirror.sigmas[i].to(walk.device)
            said = (mirror.embeddings[i] if mirror.provenance.rewrote_positive else mirror.source).to(walk.device)
            source = walk.denoise(x, sigma, walk.prompts["kept"].saying(said))
            edited = walk.denoise(x, sigma, walk.prompts["positive"].saying(said + change.to(walk.device)))
            total = total + mask(edited - source, sigma, alone=True).mean(dim=1)
            walk.progress.reached(2 * (n + 1), walk.denoised)
        return total / len(steps)

    prompts = {"positive": positive, "kept": kept}
    spared, _ = run(model, mirror.latents[-1], mirror.sigmas, prompts, algorithm, evaluations=2 * len(steps))
    return cpu(spared)
