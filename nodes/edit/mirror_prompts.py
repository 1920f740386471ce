"""What Mirror Sample tells the network: the prompts of both branches of a mirror, and who is guided away from what."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...mirror_ops.directions.direction import EditDirection
from ...mirror_ops.walks.edit_schedule import EditSchedule
from ...mirror_ops.walks.trajectory import Mirror
from ..host.branches import ONE_EDIT_LESS, Branch
from ..host.conditioning import (
    Conditioning,
    as_negative,
    check_batch,
    common_tokens,
    lengthened,
    pooled_of,
    text_of,
    token_counts,
    with_pooled,
    with_text,
)
from ..host.processed import Entries
from ..host.walk import Asked, Walk

KEPT_NEGATIVE = "kept negative"


class Against(NamedTuple):
    """What guidance leads away from: one of the walk's prompts, with the mirror's rewritten texts or its own."""

    prompt: str
    rewritten: bool


class Fitted(NamedTuple):
    """A caption and a mirror's prompts with as many tokens."""

    positive: Conditioning
    source: Tensor  # [B or 1, tokens, width]
    rewritten: Tensor  # [T, B or 1, tokens, width], of the negative's own tokens if that was given and rewritten


def fitted(mirror: Mirror, positive: Conditioning) -> Fitted:
    """The shorter text at the length of the other; ValueError if the two cannot have one length."""
    check_batch(text_of(positive), mirror.latents.shape[1])
    tokens, width = sum(token_counts(positive)), positive[0][0].shape[2]
    if width != mirror.source.shape[2] or (len(positive) > 1 and tokens != mirror.source.shape[1]):
        raise ValueError(
            f"`positive` has {tokens} tokens of width {width} in {len(positive)} part(s), the mirror's prompt "
            f"{mirror.source.shape[1]} of {mirror.source.shape[2]}. Use the same CLIP, and the mirror's own parts."
        )
    if len(positive) > 1:
        return Fitted(positive, mirror.source, mirror.embeddings)
    positive, ((source, _),) = common_tokens(positive, [[mirror.source, {}]])
    made_of_source = mirror.provenance.rewrote_positive or mirror.provenance.brings_negative
    rewritten = lengthened(mirror.embeddings, source.shape[1]) if made_of_source else mirror.embeddings
    return Fitted(positive, source, rewritten)


def schedule_of(
    mirror: Mirror, fit: Fitted, direction: EditDirection | None, amounts: tuple[float, ...], cfgs: tuple[float, ...],
    rewritten: bool,
) -> EditSchedule:
    """The edit (positive - the mirror's prompt) + direction, on the prompt as `rewritten` or as it was written."""
    written = fit.source.expand(mirror.steps, *fit.source.shape)
    change = text_of(fit.positive).float().cpu() - fit.source
    if direction is not None:
        each = [direction.for_tokens(n, change.shape[2]) for n in token_counts(fit.positive)]
        change = change + torch.cat(each, dim=1)
    pooled, pooled_change = pooled_of(fit.positive), None
    if pooled is not None and mirror.pooled is not None:
        pooled_change = pooled.float().cpu() - mirror.pooled
        if direction is not None:
            pooled_change = pooled_change + direction.for_pooled(pooled_change)
    kept = fit.rewritten if rewritten and mirror.provenance.rewrote_positive else written
    return EditSchedule(kept, change, amounts, cfgs, mirror.pooled, pooled_change)


def prompts_of(mirror: Mirror, fit: Fitted, schedule: EditSchedule, negative: Conditioning | None) -> dict:
    """The CONDITIONING of the edit, of the kept picture, of its negative, and the connected negative."""
    kept = with_pooled(_kept(mirror, fit), mirror.pooled)
    pooled = schedule.edited_pooled()
    prompts = {
        "positive": with_pooled(fit.positive, None if pooled is None else pooled[0]),
        "kept": kept,
        KEPT_NEGATIVE: as_negative(kept),
    }
    if negative is not None:
        check_batch(text_of(negative, "negative"), mirror.latents.shape[1])
        prompts["negative"] = negative
    return prompts


def _kept(mirror: Mirror, fit: Fitted) -> Conditioning:
    """The mirror's own prompt, as long as it was when the mirror was made: not every kind of model reads a
    lengthened text as it reads that."""
    if mirror.source.shape[1] == fit.source.shape[1]:
        return with_text(fit.positive, fit.source)
    _, options = fit.positive[0]
    if "attention_mask" in options:  # texts of many lengths have no padding
        options = {**options, "attention_mask": torch.ones(1, mirror.source.shape[1], dtype=torch.long)}
    return [[mirror.source, options]]


def negatives_of(mirror: Mirror, connected: bool) -> tuple[Against, Against]:
    """What the (picture's, edit's) branch of a recorded walk is guided away from. ValueError if that is missing.

    The edit's is the connected negative if there is one, and else the kept prompt. The picture's is what the mirror was
    made with, or strength 0 would not give the picture back.
    """
    provenance, given = mirror.provenance, Against("negative", rewritten=False)
    if provenance.rewrote_positive or provenance.brings_negative:
        kept = Against(KEPT_NEGATIVE, rewritten=True)
        if provenance.rewrote_positive and provenance.cfg != 1:
            _require(mirror, connected)
            return given, given
        return kept, given if connected else kept
    _require(mirror, connected)
    return (Against("negative", rewritten=True),) * 2


def _require(mirror: Mirror, connected: bool) -> None:
    if not connected:
        raise ValueError(
            f"This mirror was made at cfg {mirror.provenance.cfg:g} against a negative prompt. Connect the same "
            "`negative` here, or make the mirror at cfg 1."
        )


class MirrorBranches:
    """The denoisers `(x, sigma, i) -> denoised` of a walk: picture, edit, and the probes that compare the two."""

    def __init__(
        self, walk: Walk, schedule: EditSchedule, rewritten: Tensor, against: tuple[Against, Against],
        source_cfg: float, guided_probes: bool = False,
    ):
        self.walk, self.schedule, self.source_cfg = walk, schedule, source_cfg
        self.rewritten, (self.source_against, self.edit_against) = rewritten, against
        self.guided_probes = guided_probes  # whether the edit is nothing but its guidance

    def source(self, x: Tensor, sigma: Tensor, i: int) -> Tensor:
        """The picture, as the mirror was made."""
        return self.walk.asked(self._source(x, sigma, i), sigma)

    def edit(self, x: Tensor, sigma: Tensor, i: int) -> Tensor:
        """The edit, guided."""
        return self.walk.asked(self._edit(x, sigma, i), sigma)

    def both(self, x: Tensor, y: Tensor, sigma: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """(the picture at x, the edit at y)."""
        return self.walk.denoise_pair(self._source(x, sigma, i), self._edit(y, sigma, i), sigma)

    def probes(self, x: Tensor, sigma: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """(the kept prompt without guidance or controls, the edited one under the attention controls), without guidance
        unless the edit is nothing else."""
        edited = Asked(x, self._edited(i, sigma), branch=Branch.PROBE)
        if self.guided_probes:
            edited = edited._replace(negative=self._said(self.edit_against, i, sigma), cfg=self.schedule.cfgs[i])
        return self.walk.denoise_pair(Asked(x, self._kept(i, sigma), branch=Branch.SOURCE), edited, sigma)

    def _source(self, x: Tensor, sigma: Tensor, i: int) -> Asked:
        negative = self._said(self.source_against, i, sigma)
        return Asked(x, self._kept(i, sigma), negative, self.source_cfg, Branch.SOURCE)

    def _edit(self, x: Tensor, sigma: Tensor, i: int) -> Asked:
        """The edit's question; beside it, for cross-attention guidance, the prompt of one edit less."""
        if not self.walk.is_plain:
            less = self.walk.prompts["positive"].saying(self.schedule.one_edit_less(i).to(self.walk.device), sigma)
            self.walk.guider.conds = {**self.walk.guider.conds, ONE_EDIT_LESS: less}
        negative = self._said(self.edit_against, i, sigma)
        return Asked(x, self._edited(i, sigma), negative, self.schedule.cfgs[i], Branch.EDIT)

    def _kept(self, i: int, sigma: Tensor) -> Entries:
        return self._once("kept", self.schedule.kept[i], sigma)

    def _edited(self, i: int, sigma: Tensor) -> Entries:
        if self.schedule.amounts[i] == 0:
            return self._kept(i, sigma)
        return self.walk.prompts["positive"].saying(self.schedule.edited(i).to(self.walk.device), sigma)

    def _said(self, against: Against, i: int, sigma: Tensor) -> Entries:
        prompt = self.walk.prompts[against.prompt]
        return self._once(against.prompt, self.rewritten[i], sigma) if against.rewritten else prompt.entries

    def _once(self, name: str, text: Tensor, sigma: Tensor) -> Entries:
        """A prompt saying a text that may have been lengthened to that of the edit."""
        prompt = self.walk.prompts[name]
        return prompt.saying(text[:, :sum(prompt.tokens)].to(self.walk.device), sigma)
