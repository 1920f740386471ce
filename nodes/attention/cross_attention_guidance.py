"""MirrorCrossAttentionGuidance: keeps an edit's attention, and so the picture's structure, near the source's."""

from dataclasses import dataclass

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.attention.cross_attention_guidance import carried, cycle_weights, descend, loss_scale, map_loss
from ...mirror_ops.walks.trajectory import Mirror
from ..host import families, gradients
from ..host.attach import attach, get_reference
from ..host.attention import CROSS, attention_layers, probabilities, replace_attention
from ..host.branches import Control, acts
from ..host.out_of_place import differentiable
from ..host.reference_pass import NEGATIVE, POSITIVE, ReferencePass, layer_of
from ..types import MirrorType, category

KEY, LOSS, LEAD = "mirror_cross_attention_guidance", "mirror_map_loss", "mirror_lead"
PAPER, CODE = "one latent (paper)", "two latents (official code)"
LAYERS = {"all": ("input", "middle", "output"), "encoder": ("input", "middle"), "decoder": ("output",)}
CHECKPOINTING = {"auto": None, "on": True, "off": False}


class MirrorCrossAttentionGuidance(io.ComfyNode):
    """A gradient step on the latent before each prediction, towards the source's cross-attention maps."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorCrossAttentionGuidance",
            display_name="Mirror Cross-Attention Guidance",
            category=category(__name__),
            description=(
                "Before each prediction of an edit, moves the latent so that its cross-attention maps come near those "
                "of the mirror at the same step: the picture's structure stays (pix2pix-zero). Patches a model for "
                "Mirror Sample, or for stock samplers at the mirror's own steps (euler, ddim)."
            ),
            search_aliases=["pix2pix-zero", "cross attention guidance", "keep structure", "structure guidance"],
            inputs=_inputs(),
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls, model, mirror: Mirror, amount, latents=PAPER, cycle=False, source=None, layers="all", largest=64,
        checkpointing="auto",
    ) -> io.NodeOutput:
        patcher = model.clone()
        chosen = [layer for layer in attention_layers(patcher, CROSS) if layer[0] in LAYERS[layers]]
        sides = (POSITIVE, NEGATIVE) if latents == CODE else (POSITIVE,)
        attach(patcher, mirror, source, sides)
        on_gpu = patcher.load_device.type != "cpu"
        wanted = CHECKPOINTING[checkpointing]
        checkpoint = on_gpu if wanted is None else wanted
        guidance = Guidance(amount, sides, cycle, largest, checkpoint)
        replace_attention(patcher, CROSS, guidance.attend, chosen)
        patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, guidance.predict)
        patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, _each_half_at_its_latent)
        gradients.prepare(patcher, checkpoint)
        return io.NodeOutput(patcher)


def _inputs() -> list:
    return [
        io.Model.Input("model", tooltip="The model of the mirror. Patches on it apply to the source as well."),
        MirrorType.Input("mirror", tooltip="Of the picture, or from Mirror From Seed; its maps are the reference."),
        io.Float.Input(
            "amount", default=0.1, min=0.0, max=100.0, step=0.01,
            tooltip="The size of the step. The paper takes 0.1 for photos and 0.15 for synthetic pictures; more "
            "keeps more of the structure, and less of the edit.",
        ),
        io.Combo.Input(
            "latents", options=[PAPER, CODE], default=PAPER, optional=True, tooltip=(
                "paper: one latent follows the maps of the edited prompt. official code: each half of the guidance "
                "follows its own maps, and only the unguided half's latent is kept. It takes twice the passes."
            ),
        ),
        io.Boolean.Input(
            "cycle", default=False, optional=True, advanced=True,
            tooltip="MirrorDiffusion's cycle loss: at four early steps the maps of the mirror's own prompt count too.",
        ),
        io.Conditioning.Input(
            "source", optional=True, tooltip="The mirror's own prompt, if it holds more than text (a ControlNet)."
        ),
        io.Combo.Input(
            "layers", options=list(LAYERS), default="all", optional=True, advanced=True,
            tooltip="Attention layers whose maps are compared.",
        ),
        io.Int.Input(
            "largest", default=64, min=1, max=512, optional=True, advanced=True,
            tooltip="Layers with a longer side than this are left out: their maps take the most memory.",
        ),
        io.Combo.Input(
            "checkpointing", options=list(CHECKPOINTING), default="auto", optional=True, advanced=True,
            tooltip="Recompute activations for gradients: a third slower, far less memory. auto: on a GPU.",
        ),
    ]


class Losses:
    """The map losses of one pass, by layer. No dict: the host copies those on the way to the layers."""

    def __init__(self):
        self.of: dict[tuple[str, int, int], Tensor] = {}


@dataclass(frozen=True)
class Guidance:
    """What a patched model carries. `sides`: whose maps are followed, each with a latent of its own."""

    amount: float
    sides: tuple[int, ...]
    cycle: bool
    largest: int
    checkpoint: bool

    def predict(self, executor, x: Tensor, sigma: Tensor, model_options: dict, seed=None) -> Tensor:
        """Wraps a guider's prediction: first descends, then predicts there, and tells it for where the sampler is."""
        guider, options = executor.class_obj, model_options["transformer_options"]
        reference = get_reference(options)
        if reference is None or not acts(Control.GRADIENT, options) or not self.amount:
            return executor(x, sigma, model_options, seed)
        prompts = [guider.conds["positive"], _guided_away_from(guider)]
        reference.record(guider.inner_model, prompts, x, sigma, model_options)
        latents = {side: x for side in self.sides if prompts[side]}
        weight = cycle_weights(reference.steps).get(reference.step) if self.cycle else None
        if weight is not None:
            kept = [reference.prompt, prompts[NEGATIVE]]
            latents = self._descended(reference, latents, kept, sigma, model_options, weight)
        latents = self._descended(reference, latents, prompts, sigma, model_options)
        base = latents.get(NEGATIVE, latents[POSITIVE])
        if NEGATIVE in latents:
            options = {**options, LEAD: latents[POSITIVE] - base}
        denoised = executor(base, sigma, {**model_options, "transformer_options": options}, seed)
        level = sigma.flatten()[0]
        return carried(denoised, base - x, level, _next(options["sample_sigmas"], level).to(x))

    def _descended(
        self, reference: ReferencePass, latents: dict[int, Tensor], prompts: list, sigma: Tensor, model_options: dict,
        weight: float = 1.0,
    ) -> dict[int, Tensor]:
        """The latents after one step down the loss of their own side's prompt."""
        scale = families.input_scale(reference.guider.model_patcher)(sigma.flatten()[0])
        gradients_of = {
            side: self._gradient(reference, x, side, prompts, sigma, model_options) for side, x in latents.items()
        }
        return {side: descend(x, gradients_of[side], weight * self.amount, scale) for side, x in latents.items()}

    def _gradient(
        self, reference: ReferencePass, x: Tensor, side: int, prompts: list, sigma: Tensor, model_options: dict
    ) -> Tensor:
        """[B, C, H, W] of the map loss of one side at x. In stock samplers this is the way out of inference mode."""
        guider = reference.guider
        only = [prompt if k == side else None for k, prompt in enumerate(prompts)]
        losses = Losses()
        with torch.inference_mode(False), torch.enable_grad():
            options = differentiable(model_options)
            options["transformer_options"][LOSS] = losses
            leaf = x.clone().requires_grad_(True)
            with gradients.differentiable_pass(guider.inner_model.diffusion_model, self.checkpoint):
                comfy.samplers.calc_cond_batch(guider.inner_model, only, leaf, sigma, options)
            if not losses.of:
                raise ValueError(
                    f"Every attention layer has a side above {self.largest} or was left out: nothing can be compared. "
                    "Raise `largest`."
                )
            loss = sum(losses.of.values())
            factor = loss_scale(loss.detach())
            (gradient,) = torch.autograd.grad(factor * loss, leaf)
        return gradient / factor

    def attend(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict, onward) -> Tensor:
        """Changes no output. Keeps the source's queries and keys, and adds this layer's loss where one is gathered."""
        reference, losses = get_reference(extra_options), extra_options.get(LOSS)
        if max(extra_options["activations_shape"][-2:]) <= self.largest:
            if reference is not None and reference.recording:
                reference.keep(KEY, extra_options, lambda rows: (q[rows].clone(), k[rows].clone()))
            elif losses is not None:
                for side, rows in reference.rows(extra_options, len(q)):
                    # written, not added: a checkpointed block runs twice
                    losses.of[layer_of(extra_options)] = _loss(reference, side, q[rows], k[rows], extra_options)
        return onward(q, k, v, extra_options)


def _loss(reference: ReferencePass, side: int, q: Tensor, k: Tensor, extra_options: dict) -> Tensor:
    """The map loss of one layer and side."""
    heads = extra_options["n_heads"]
    q_source, k_source = reference.read(KEY, extra_options, side)
    if k_source.shape[1] != k.shape[1]:
        raise ValueError(
            f"The edit's prompt has {k.shape[1]} tokens and the mirror's {k_source.shape[1]}: their attention cannot "
            "be compared. Use captions that fill as many 77-token chunks."
        )
    with torch.no_grad():
        reference = probabilities(q_source, k_source, heads)
    return map_loss(probabilities(q, k, heads), reference)


def _guided_away_from(guider) -> list | None:
    """The guider's negative prompt, if it is evaluated at all."""
    read = getattr(guider, "cfg", 1.0) != 1 or guider.model_options.get("disable_cfg1_optimization", False)
    return guider.conds.get("negative") if read else None


def _next(sigmas: Tensor, sigma: Tensor) -> Tensor:
    """The level after `sigma` in the sampler's own schedule."""
    sigmas = sigmas.to(sigma)
    return sigmas[min(int((sigmas - sigma).abs().argmin()) + 1, len(sigmas) - 1)]


def _each_half_at_its_latent(executor, model, conds: list, x: Tensor, sigma: Tensor, model_options: dict) -> list:
    """The positive prompt is evaluated at x + lead, the others at x; as noise predictions all stand at x."""
    options = model_options["transformer_options"]
    lead = options.get(LEAD)
    if lead is None or not acts(Control.GRADIENT, options) or LOSS in options or conds[0] is None:
        return executor(model, conds, x, sigma, model_options)
    positive, *_ = executor(model, [conds[0], *(None for _ in conds[1:])], x + lead, sigma, model_options)
    _, *others = executor(model, [None, *conds[1:]], x, sigma, model_options)
    return [positive - lead, *others]
