"""Mutual self-attention as patches of a model: the edit's self-attention looks at the picture.

MasaCtrl (Cao et al., ICCV 2023). The maths is in mirror_ops/attention/mutual_self_attention.py; here it meets the
host's hooks.
"""

from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...mirror_ops.attention.mutual_self_attention import JOINT, OWN, SOURCE, masked_mutual, mutual, unit_area
from .attach import active_reference
from .attention import CROSS, SELF, Attention, put_in_rows, replace_attention
from .branches import Branch, branch_of
from .reference_pass import POSITIVE, ReferencePass
from .word_maps import WordHeat, attention_maps


@dataclass(frozen=True, eq=False)
class MutualControl:
    """The patches. modes: SOURCE, JOINT or OWN by side; kept_negative: both sides see the source under its own prompt;
    heat and lengths: of the mask-guided variant."""

    modes: dict[int, str]
    first_step: int
    kept_negative: bool
    heat: WordHeat | None = None
    lengths: tuple[int, ...] = ()
    threshold: float = 0.1

    @property
    def sides(self) -> list[int]:
        """The prompts under which the source has to be evaluated."""
        acting_sides = [side for side, mode in self.modes.items() if mode != OWN]
        return [POSITIVE] if self.kept_negative else [POSITIVE, *acting_sides]

    def patch(self, patcher: ModelPatcher, layers: list) -> None:
        """Puts the control on these self-attention layers of a cloned patcher to which the source was attached."""
        replace_attention(patcher, SELF, self.own, layers)
        if self.heat is not None:
            replace_attention(patcher, CROSS, self.watch)

    def own(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict, onward: Attention) -> Tensor:
        """Self-attention with keys and values of the source."""
        reference = active_reference(extra_options)
        if reference is None or reference.step < self.first_step:
            return onward(q, k, v, extra_options)
        if reference.recording:
            reference.keep(self, extra_options, lambda rows: (k[rows], v[rows]))
            return onward(q, k, v, extra_options)
        twice = JOINT in self.modes.values()
        seen = [torch.cat([x, x], dim=1) if twice else x.clone() for x in (k, v)]
        changed = [(side, rows) for side, rows in reference.rows(extra_options, len(q)) if self.modes[side] != OWN]
        for side, rows in changed:
            kept = reference.read(self, extra_options, POSITIVE if self.kept_negative else side)
            for whole, own, source in zip(seen, (k, v), kept, strict=True):
                whole[rows] = mutual(own[rows], source, self.modes[side], twice)
        out = onward(q, *seen, extra_options)
        areas = None if self.heat is None else self._areas(reference, extra_options)
        if areas is None:
            return out
        for side, rows in changed:
            if self.modes[side] == SOURCE:
                pixels = q.shape[1]
                mine = masked_mutual(q[rows], *(x[rows, :pixels] for x in seen), extra_options["n_heads"], *areas,
                                     self.threshold).to(out)
                out = put_in_rows(mine, out, rows, (q, *seen), extra_options, onward)
        return out

    def watch(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict, onward: Attention) -> Tensor:
        """Cross-attention as it is, its maps gathered for the words' areas."""
        reference = active_reference(extra_options)
        if reference is not None and self.heat.gathers(reference, extra_options):
            if reference.recording:
                reference.keep((self, CROSS), extra_options, lambda rows: (q[rows], k[rows]))
            else:
                self._gather(reference, q, k, extra_options)
        return onward(q, k, v, extra_options)

    def _gather(self, reference: ReferencePass, q: Tensor, k: Tensor, extra_options: dict) -> None:
        for side, rows in reference.rows(extra_options, len(q)):
            if side == POSITIVE:
                source = attention_maps(*reference.read((self, CROSS), extra_options, side), extra_options,
                                        self.lengths[0])
                target = attention_maps(q[rows], k[rows], extra_options, self.lengths[1])
                self.heat.gather(reference, extra_options, source, target)

    def _areas(self, reference: ReferencePass, extra_options: dict) -> list[Tensor] | None:
        """[pixels of the source's object, of the edit's], from the maps of this step that the network has run so far;
        where the prompts are evaluated apart and the positive's turn is still to come, from those of the last step."""
        size, probed = tuple(extra_options["activations_shape"][-2:]), branch_of(extra_options) is Branch.PROBE
        for step in (reference.step, reference.step - 1):
            heats = self.heat.mean(reference, lambda gathered, step=step: gathered == step, probed)
            if heats is not None:
                return [unit_area(heat[:, 0], size).flatten(1) for heat in heats]
        return None
