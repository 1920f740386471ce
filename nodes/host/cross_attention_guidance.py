"""Cross-attention guidance as patches of a model: before each prediction of an edit, a gradient step on its latent.

pix2pix-zero (Parmar et al., SIGGRAPH 2023). The maths is in mirror_ops/attention/cross_attention_guidance.py; here it
meets the host's hooks.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...mirror_ops.attention.cross_attention_guidance import carried, cycle_weights, descend, loss_scale, map_loss
from . import families, gradients
from .attach import get_reference
from .attention import CROSS, Layer, probabilities, replace_attention
from .branches import ONE_EDIT_LESS, Control, acts
from .out_of_place import differentiable
from .own_latents import can_share, with_own_latents
from .reference_pass import NEGATIVE, POSITIVE, ReferencePass, layer_of

KEY, LOSS, LEAD = "mirror_cross_attention_guidance", "mirror_map_loss", "mirror_lead"
AROUND_NETWORK = (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)


class Losses:
    """The map losses of one pass, by side and layer. No dict: the host copies those on the way to the layers.

    owner: whose they are, as a model may carry several guidances; sides: those that are followed; last: the layer after
    which nothing is looked at, if the pass may end there.
    """

    def __init__(self, owner: object, sides: Iterable[int], last: Layer | None):
        self.owner, self.sides, self.last = owner, frozenset(sides), last
        self.of: dict[tuple[int, str, int, int], Tensor] = {}


class Enough(Exception):
    """Ends a pass through the network whose answer nobody reads: all that is wanted of it is known."""


@dataclass
class Known:
    """What a sampling has found out: its network made ready for gradients, and the last layer that is looked at."""

    network: gradients.Differentiable
    last: Layer | None = None


@dataclass(frozen=True, eq=False)
class Guidance:
    """What a patched model carries.

    amount: of the step; sides: whose maps are followed, each with a latent of its own; cycle: MirrorDiffusion's second
    loss; largest: longer sides than this are left out; checkpoint: activations are computed again for the gradient.
    """

    amount: float
    sides: tuple[int, ...]
    cycle: bool
    largest: int
    checkpoint: bool

    def patch(self, patcher: ModelPatcher, layers: Iterable[Layer]) -> None:
        """Puts the guidance, by these layers' maps, on a cloned patcher to which the source was attached."""
        replace_attention(patcher, CROSS, self.attend, layers)
        patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self.predict)
        patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, _each_half_at_its_latent)
        gradients.prepare(patcher, self.checkpoint)

    def predict(self, executor, x: Tensor, sigma: Tensor, model_options: dict, seed=None) -> Tensor:
        """Wraps a guider's prediction: first descends, then predicts there, and tells it for where the sampler is."""
        guider, options = executor.class_obj, model_options["transformer_options"]
        reference = get_reference(options)
        if reference is None or not acts(Control.GRADIENT, options) or not self.amount:
            return executor(x, sigma, model_options, seed)
        prompts = [guider.conds["positive"], _guided_away_from(guider)]
        reference.record(guider.inner_model, prompts, x, sigma, model_options)
        latents = {side: x for side in self.sides if prompts[side]}
        if NEGATIVE in latents:  # where another guidance has the positive elsewhere, it goes on from there
            latents[POSITIVE] = x + options.get(LEAD, 0.0)
        weight = cycle_weights(reference.steps).get(reference.step) if self.cycle else None
        if weight is not None:
            asked = [guider.conds.get(ONE_EDIT_LESS, reference.prompt), prompts[NEGATIVE]]
            latents = self._descended(reference, latents, asked, sigma, model_options, weight)
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
        found = self._gradients(reference, latents, prompts, sigma, model_options)
        return {side: descend(x, found[side], weight * self.amount, scale) for side, x in latents.items()}

    def _gradients(
        self, reference: ReferencePass, latents: dict[int, Tensor], prompts: list, sigma: Tensor, model_options: dict
    ) -> dict[int, Tensor]:
        """{side: [B, C, H, W] of its map loss at its latent}. In stock samplers this is the way out of inference mode.

        Both sides go through the network together, unless something in their prompts keeps them apart, or the positive
        is not the sampler's own, which is nobody's side beside its negative.
        """
        own = prompts[POSITIVE] is reference.guider.conds.get("positive")
        if len(latents) > 1 and not (own and can_share(prompts)):
            apart = ({side: x} for side, x in latents.items())
            return {side: g for one in apart for side, g in
                    self._gradients(reference, one, prompts, sigma, model_options).items()}
        guider, known = reference.guider, self._known(reference)
        only = [prompt if side in latents else None for side, prompt in enumerate(prompts)]
        with torch.inference_mode(False), torch.enable_grad():
            options = differentiable(model_options)
            leaves = {side: x.clone().requires_grad_(True) for side, x in latents.items()}
            options = with_own_latents(options, leaves) if len(leaves) > 1 else options
            losses = Losses(self, leaves, known.last if self._may_end(options) else None)
            options["transformer_options"][LOSS] = losses
            leaf, level = next(iter(leaves.values())), sigma.clone()
            with suppress(Enough):
                known.network(lambda: comfy.samplers.calc_cond_batch(guider.inner_model, only, leaf, level, options))
            if not losses.of:
                raise ValueError(
                    f"Every attention layer has a side above {self.largest} or was left out: nothing can be compared. "
                    "Raise `largest`."
                )
            known.last = next(reversed(losses.of))[1:]
            loss = {side: sum(value for key, value in losses.of.items() if key[0] == side) for side in leaves}
            factor = {side: loss_scale(value.detach()) for side, value in loss.items()}
            slopes = torch.autograd.grad(sum(factor[side] * loss[side] for side in leaves), list(leaves.values()))
        return {side: slope / factor[side] for side, slope in zip(leaves, slopes, strict=True)}

    def _known(self, reference: ReferencePass) -> "Known":
        """What this sampling has found out."""
        notes = reference.notes.setdefault(self, {})
        if not notes:
            network = reference.guider.inner_model.diffusion_model
            notes[KEY] = Known(gradients.Differentiable(network, self.checkpoint))
        return notes[KEY]

    def _may_end(self, options: dict) -> bool:
        """Whether a pass can end early: no block runs again, and no other pack waits around the network for its end."""
        wrappers = options["transformer_options"]["wrappers"]
        around = {key for kind in AROUND_NETWORK for key in wrappers.get(kind, {})}
        return not self.checkpoint and all(str(key).startswith("mirror_") for key in around)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict, onward) -> Tensor:
        """Changes no output. Keeps the source's queries and keys, and adds this layer's loss where one is gathered."""
        reference, losses = get_reference(extra_options), extra_options.get(LOSS)
        if max(extra_options["activations_shape"][-2:]) <= self.largest:
            if reference is not None and reference.recording:
                reference.keep(KEY, extra_options, lambda rows: (q[rows].clone(), k[rows].clone()))
            elif losses is not None and losses.owner is self:
                seen = set()
                for side, rows in reference.rows(extra_options, len(q)):
                    # written, not added: a checkpointed block runs twice
                    loss = _loss(reference, side, q[rows], k[rows], extra_options)
                    losses.of[(side, *layer_of(extra_options))] = loss
                    seen.add(side)
                if layer_of(extra_options) == losses.last and seen == losses.sides:
                    raise Enough
        return onward(q, k, v, extra_options)


def _loss(reference: ReferencePass, side: int, q: Tensor, k: Tensor, extra_options: dict) -> Tensor:
    """The map loss of one layer and side.

    Where a prompt has several times the other's tokens, because it fills more chunks or because the host repeated it to
    the length of one that stands beside it in a batch, what the tokens of one place draw is added up.
    """
    heads = extra_options["n_heads"]
    q_source, k_source = reference.read(KEY, extra_options, side)
    fewest = min(k.shape[1], k_source.shape[1])
    if max(k.shape[1], k_source.shape[1]) % fewest:
        raise ValueError(
            f"The edit's prompt has {k.shape[1]} tokens and the picture's {k_source.shape[1]}: their attention cannot "
            "be compared. Encode both with the same CLIP."
        )
    with torch.no_grad():
        source = _of_places(probabilities(q_source, k_source, heads), fewest)
    return map_loss(_of_places(probabilities(q, k, heads), fewest), source)


def _of_places(maps: Tensor, places: int) -> Tensor:
    """Maps [B, heads, pixels, tokens] of repeated tokens, those of one place added up."""
    return maps if maps.shape[-1] == places else maps.unflatten(-1, (-1, places)).sum(dim=-2)


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
    options = {name: value for name, value in options.items() if name != LEAD}  # of two guidances one does it
    model_options = {**model_options, "transformer_options": options}
    if can_share(conds):
        positive, *others = executor(model, conds, x, sigma, with_own_latents(model_options, {0: x + lead}))
        return [positive - lead, *others]
    positive, *_ = executor(model, [conds[0], *(None for _ in conds[1:])], x + lead, sigma, model_options)
    _, *others = executor(model, [None, *conds[1:]], x, sigma, model_options)
    return [positive - lead, *others]
