"""CycleDiffusionEdit: encoding under one prompt and decoding under another, or by another model."""

from typing import NamedTuple

from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.inversion.solvers import SolverContext
from ...mirror_ops.measure.report import EditReport, change
from ...mirror_ops.stochastic.dpm_encoder import cycle_diffusion, dpm_decode
from ...mirror_ops.stochastic.sdedit import sdedit
from ...mirror_ops.walks.precision import seen_in
from ..host import families
from ..host.attach import SHARED_NOISE, check_apart, check_edited_text
from ..host.branches import Branch
from ..host.compatibility import check_walks
from ..host.count import Count
from ..host.denoiser import run
from ..host.files import problem
from ..host.prompts import ABSENT, check_negative, prompts_at
from ..host.solver import denoiser_of, pair_of, solver_context
from ..host.values import mask_at
from ..host.walk import Walk
from ..reports import shown
from ..types import ReportType, category
from .encode import Encoder, chosen, encoded, encoder_input, grid_inputs, levels

REFINED = 2**32  # added to the seed: other noises than those of any picture's encoding


class Plan(NamedTuple):
    """How a picture is encoded, decoded and polished."""

    sigmas: Tensor  # [T+1]
    encoder: Encoder
    source_cfg: float
    cfg: float
    refine: int  # last steps that are drawn anew
    mask: Tensor | None  # [B or 1, 1, H, W] where the picture may change


class CycleDiffusionEdit(io.ComfyNode):
    """CycleDiffusion in one go."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CycleDiffusionEdit",
            display_name="CycleDiffusion Edit",
            category=category(__name__),
            description=(
                "Encodes the picture as noises under the source prompt and draws it with these noises under the "
                "target prompt, step by step together. With a second model (another checkpoint, or the same with a "
                "LoRA) the first encodes and the second draws: translation between their domains."
            ),
            search_aliases=["cyclediffusion", "dpm-encoder", "unpaired translation", "image to image", "style"],
            inputs=[
                io.Model.Input("model", tooltip="Of the picture's own domain, if there are two."),
                io.Conditioning.Input("source", tooltip="Describes the picture as it is."),
                io.Conditioning.Input("target", tooltip="Describes the edited picture; from the decoder's own CLIP."),
                io.Latent.Input("latent", tooltip="The encoded picture(s). A noise mask confines the edit."),
                encoder_input(),
                *grid_inputs(denoise=0.7, steps=35),
                io.Float.Input("source_cfg", default=1.0, min=0.0, max=30.0, step=0.1, tooltip="Of the encoding."),
                io.Float.Input(
                    "cfg", default=3.0, min=0.0, max=30.0, step=0.1, tooltip="Of the decoding; 1 to 5 in the paper.",
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="Needed where a cfg is not 1."),
                io.Sigmas.Input("sigmas", optional=True, tooltip="Instead of steps, scheduler and denoise."),
                io.Model.Input("decoder", optional=True, tooltip="Draws the edited picture instead of model."),
                io.Conditioning.Input(
                    "decoder_negative", optional=True, tooltip="If the decoder has another CLIP; default: negative.",
                ),
                io.Int.Input(
                    "refine", default=0, min=0, max=1000, optional=True, advanced=True,
                    tooltip="Afterwards noise the result up to the last so many steps and draw these anew (SDEdit): "
                    "crisper, less like the picture. A tenth of all steps in the paper's unpaired translation.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="edited"),
                io.Float.Output(display_name="forwards", tooltip="Passes through the networks a picture."),
                ReportType.Output(display_name="report", tooltip="What changed, and its cost; for Mirror Report."),
            ],
        )

    @classmethod
    def validate_inputs(cls, source_cfg, cfg, negative=ABSENT, encoder=None):
        return problem(check_negative, negative, source_cfg, cfg)

    @classmethod
    def execute(
        cls, model, source, target, latent, encoder, steps, scheduler, denoise, source_cfg, cfg, negative=None,
        sigmas=None, decoder=None, decoder_negative=None, refine=0,
    ) -> io.NodeOutput:
        samples = latent["samples"]
        sigmas = levels(model, samples, steps, scheduler, denoise, sigmas)
        if refine >= len(sigmas):
            raise ValueError(f"`refine` can redraw at most the {len(sigmas) - 1} steps there are, not {refine}.")
        mask = mask_at(latent.get("noise_mask"), samples, "the noise mask")
        plan = Plan(sigmas, chosen(encoder, latent), source_cfg, cfg, refine, mask)
        against = negative if decoder is None or decoder_negative is None else decoder_negative
        said = prompts_at(source_cfg, source, negative, len(samples))
        wanted = prompts_at(cfg, target, against, len(samples))
        check_edited_text(decoder or model, len(sigmas) - 1, target)
        if decoder is None:
            edited, count = _together(model, samples, said, wanted, plan)
        else:
            families.check_alike(model, decoder, "decoder")
            families.check_levels(decoder, sigmas)
            check_apart(model, decoder, "decoder")
            check_walks(decoder, {"target": wanted["positive"], **wanted}, samples)
            edited, count = _apart(model, decoder, samples, said, wanted, plan)
        changed = change(edited.float().cpu(), families.latent_in(model, samples))
        report = EditReport(*count.each(len(samples)), changes=(changed,), widget="denoise")
        edited = {**latent, **families.latent_out(model, edited)}
        return io.NodeOutput(edited, report.forwards, report, ui=shown(report.text))


def _together(model, samples: Tensor, said: dict, wanted: dict, plan: Plan) -> tuple[Tensor, Count]:
    """(edited latent, network rows): both walks advance together, so that memory does not grow with steps."""
    steps, encoder = len(plan.sigmas) - 1, plan.encoder
    negative = said.get("negative", wanted.get("negative"))
    prompts = {"source": said["positive"], "target": wanted["positive"]}
    prompts |= {} if negative is None else {"negative": negative}

    def algorithm(walk: Walk) -> Tensor:
        on, picture = solver_context(walk, model, plan.sigmas), walk.latent_in(samples).cpu().double()
        edited = cycle_diffusion(
            pair_of(walk, plan.source_cfg, plan.cfg, on.network), picture, plan.sigmas.double(), encoder.eta,
            encoder.generators(), on.flow, encoder.path,
            lambda i, x: walk.progress.reached(2 * (i + 1), walk.denoised), plan.mask,
        )
        return _refined(denoiser_of(walk, plan.cfg, "target", branch=Branch.POLISH), edited, picture, plan, on)

    evaluations = 2 * steps + plan.refine
    return run(
        model, samples, plan.sigmas, prompts, algorithm, evaluations=evaluations, reference=SHARED_NOISE
    )


def _apart(model, decoder, samples: Tensor, said: dict, wanted: dict, plan: Plan) -> tuple[Tensor, Count]:
    """(edited latent, network rows): all noises first, then the second model, so that each is loaded once."""
    code, first = encoded(model, samples, plan.sigmas, plan.encoder, plan.source_cfg, said)

    def algorithm(walk: Walk) -> Tensor:
        on = solver_context(walk, decoder, plan.sigmas)
        target = seen_in(on.network, denoiser_of(walk, plan.cfg, branch=Branch.EDIT))
        edited = dpm_decode(
            target, code.latents[0], code.noises, plan.sigmas.double(), None, plan.encoder.eta, on.flow,
            lambda i, x: walk.progress.reached(i + 1, walk.denoised), plan.mask, code.latents[1:],
        )
        return _refined(denoiser_of(walk, plan.cfg, branch=Branch.POLISH), edited, code.latents[-1], plan, on)

    evaluations = code.steps + plan.refine
    edited, second = run(decoder, samples, plan.sigmas, wanted, algorithm, evaluations=evaluations)
    return edited, first + second


def _refined(denoise, edited: Tensor, picture: Tensor, plan: Plan, on: SolverContext) -> Tensor:
    """The result after the refinement pass, if one is asked for; `picture` where the mask is 0."""
    if not plan.refine:
        return edited
    last = plan.sigmas[-(plan.refine + 1) :].double()
    generators = plan.encoder.generators(REFINED)
    refined = sdedit(seen_in(on.network, denoise), edited, last, None, generators, flow=on.flow)
    return refined if plan.mask is None else plan.mask * refined + (1 - plan.mask) * picture
