"""Prompt-to-prompt as patches of a model: the source's attention maps for the edit, and what it leaves of the picture.

Hertz et al., "Prompt-to-Prompt Image Editing with Cross Attention Control", ICLR 2023. The maths is in
mirror_ops/attention/prompt_to_prompt.py; here it meets the host's hooks. Only the positive prompt of the edit is
controlled, as in the paper.
"""

from collections.abc import Callable
from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...mirror_ops.attention.prompt_to_prompt import injected, local_blend, self_attention_taken, word_area
from ...mirror_ops.walks.ddim import euler, implied_denoised
from .attach import active_reference
from .attention import CROSS, SELF, Attention, put_in_rows, replace_attention
from .branches import Control
from .reference_pass import POSITIVE, ReferencePass
from .word_maps import WordHeat, attention_maps


@dataclass(frozen=True, eq=False)
class LocalBlend:
    """Where the edit may change the picture: the words' areas in both branches, less those of words left alone.

    heat: row 0 the words, row 1 the words to leave alone; begin: the part of the walk after which it acts.
    """

    heat: WordHeat
    begin: float
    threshold: float
    subtract: bool

    def mask(self, reference: ReferencePass, until: int, probed: bool = False) -> Tensor | None:
        """[B, 1, H, W] bool at the latent's size, from the maps of all steps up to and with `until`."""
        heats = self.heat.mean(reference, lambda step: step <= until, probed)
        return None if heats is None else self.area(heats, reference.size)

    def area(self, heats: tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
        """The same from the words' heat in the source and in the edit, each [B, 2, h, w]."""

        def union(row: int, pool: bool) -> Tensor:
            source, target = (word_area(heat[:, row : row + 1], size, self.threshold, pool) for heat in heats)
            return source | target

        mask = union(0, True)
        return mask & ~union(1, False) if self.subtract else mask


@dataclass(frozen=True, eq=False)
class PromptControl:
    """The patches of one edit of one text.

    edit(source maps, target maps) -> maps: replacement or refinement, reweighted; lengths: tokens of both prompts;
    alpha(steps) -> [T, target length]: `schedule`; own_until: the part of the walk in which self-attention is taken
    over, in layers of at most `own_pixels`; injected_heat: the blend sees maps after injection (the official code).
    """

    edit: Callable[[Tensor, Tensor], Tensor]
    lengths: tuple[int, int]
    alpha: Callable[[int], Tensor]
    own_until: float
    own_pixels: int
    blend: LocalBlend | None = None
    injected_heat: bool = False

    def patch(self, patcher: ModelPatcher) -> None:
        """Puts the control on a cloned patcher to which the source was attached."""
        replace_attention(patcher, CROSS, self.cross)
        if self.own_until > 0:
            replace_attention(patcher, SELF, self.own)
        if self.blend is not None:
            patcher.set_model_sampler_post_cfg_function(self.keep_outside)

    def cross(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict, onward: Attention) -> Tensor:
        """Cross-attention, with the edit's maps made of the source's."""
        out, reference = onward(q, k, v, extra_options), active_reference(extra_options)
        if reference is not None and reference.recording:
            reference.keep((self, CROSS), extra_options, lambda rows: (q[rows], k[rows]))
        if reference is None or reference.recording:
            return out
        alpha = self.alpha(reference.steps)[reference.step]
        gathers = self.blend is not None and self.blend.heat.gathers(reference, extra_options)
        if not gathers and not alpha.any():
            return out
        for side, rows in reference.rows(extra_options, len(q)):
            if side != POSITIVE:
                continue
            q_source, k_source = reference.read((self, CROSS), extra_options, POSITIVE)
            source = attention_maps(q_source, k_source, extra_options, self.lengths[0])
            target = attention_maps(q[rows], k[rows], extra_options, self.lengths[1])
            mixed = injected(self.edit(source, target), target, alpha)
            if gathers:
                self.blend.heat.gather(reference, extra_options, source, mixed if self.injected_heat else target)
            if alpha.any():
                attended = mixed.to(v) @ v[rows, : self.lengths[1]].unflatten(-1, (mixed.shape[1], -1)).transpose(1, 2)
                mine = attended.transpose(1, 2).flatten(2)
                out = put_in_rows(mine, out, rows, (q, k, v), extra_options, onward)
        return out

    def own(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict, onward: Attention) -> Tensor:
        """Self-attention with the source's queries and keys, that is with its maps."""
        reference = active_reference(extra_options)
        if reference is None or not self_attention_taken(
            reference.step, reference.steps, self.own_until, q.shape[1], self.own_pixels
        ):
            return onward(q, k, v, extra_options)
        if reference.recording:
            reference.keep((self, SELF), extra_options, lambda rows: (q[rows], k[rows]))
            return onward(q, k, v, extra_options)
        q, k = q.clone(), k.clone()
        for side, rows in reference.rows(extra_options, len(q)):
            if side == POSITIVE:
                q[rows], k[rows] = reference.read((self, SELF), extra_options, POSITIVE)
        return onward(q, k, v, extra_options)

    def keep_outside(self, args: dict) -> Tensor:
        """The denoised with which Euler's step arrives at the source outside the words' area.

        Exact for euler and ddim.
        """
        options, denoised = args["model_options"].get("transformer_options", {}), args["denoised"]
        reference = active_reference(options, Control.PULL)
        if reference is None or reference.recording or reference.step < int(self.blend.begin * reference.steps):
            return denoised
        mask = self.blend.mask(reference, reference.step)
        if mask is None:
            return denoised
        x = args["input"]
        sigma, sigma_next = (reference.sigmas[reference.step + n].to(x) for n in (0, 1))
        blended = local_blend(reference.arrival(x), euler(x, denoised, sigma, sigma_next), mask)
        return implied_denoised(x, blended, sigma, sigma_next)
