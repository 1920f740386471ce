"""MirrorMutualSelfAttention: the edit takes its texture from the mirror's picture, in a layout of its own."""

from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.attention.mutual_self_attention import JOINT, OWN, SOURCE, masked_mutual, mutual, unit_area
from ...mirror_ops.walks.trajectory import Mirror
from ..host.attach import active_reference, attach
from ..host.attention import CROSS, SELF, Attention, attention_layers, put_in_rows, replace_attention
from ..host.reference_pass import NEGATIVE, POSITIVE, ReferencePass
from ..host.word_maps import Texts, WordHeat, attention_maps, names
from ..host.words import length
from ..types import MirrorType, category

SAMPLERS, KEPT = "the sampler's", "the source prompt"


class MirrorMutualSelfAttention(io.ComfyNode):
    """Patches a model so that the edit's self-attention looks at the mirror's picture."""

    @classmethod
    def define_schema(cls):
        modes = [SOURCE, JOINT, OWN]
        return io.Schema(
            node_id="MirrorMutualSelfAttention",
            display_name="Mirror Mutual Self-Attention",
            category=category(__name__),
            description=(
                "MasaCtrl: in later steps and layers the edit's self-attention takes keys and values from the mirror's "
                "picture. Shape and pose may follow the new prompt, texture stays the picture's. For Mirror Sample "
                "and stock samplers that take the mirror's steps."
            ),
            search_aliases=["masactrl", "proxmasactrl", "attention control", "pose edit", "geometry edit"],
            inputs=[
                io.Model.Input("model", tooltip="The mirror's model. Other packs' attention patches come before this."),
                MirrorType.Input("mirror"),
                io.Int.Input(
                    "first_step", default=4, min=0, max=1000,
                    tooltip="The mirror's step from which it acts. Earlier: more of the layout is the picture's.",
                ),
                io.Int.Input(
                    "first_layer", default=10, min=0, max=200,
                    tooltip="The self-attention layer from which it acts, in the order in which the network runs "
                    "them: 10 of SD1.x's 16, the second half of the decoder.",
                ),
                io.Combo.Input("positive", options=modes, default=SOURCE, tooltip=(
                    "What the edit's positive prompt looks at: the source, both, or itself.")),
                io.Combo.Input("negative", options=modes, default=SOURCE, tooltip=(
                    "The same for the negative prompt.")),
                io.Combo.Input(
                    "source_negative", options=[SAMPLERS, KEPT], default=SAMPLERS, optional=True,
                    tooltip="Under which prompt the edit's negative sees the source. The source prompt is "
                    "negative-prompt inversion of the source, as in ProxMasaCtrl, and costs no pass of its own.",
                ),
                *_mask_inputs(),
                io.Conditioning.Input("source", optional=True, tooltip=(
                    "The mirror's own prompt, if it carries more than text (ControlNet, sizes).")),
            ],
            outputs=[
                io.Model.Output(tooltip="For Mirror Sample, or a stock sampler with the mirror's noise and steps.")
            ],
        )

    @classmethod
    def execute(
        cls, model, mirror: Mirror, first_step, first_layer, positive, negative, source_negative=SAMPLERS,
        mask_words="", mask_threshold=0.1, clip=None, source_text="", target_text="", source=None,
    ) -> io.NodeOutput:
        layers = attention_layers(model, SELF)
        if first_step >= mirror.steps or first_layer >= len(layers):
            raise ValueError(
                f"`first_step` {first_step} and `first_layer` {first_layer} must lie below the mirror's {mirror.steps} "
                f"steps and this model's {len(layers)} self-attention layers."
            )
        heat = _heat(mirror, clip, source_text, target_text, names(mask_words))
        control = MutualControl({POSITIVE: positive, NEGATIVE: negative}, first_step, source_negative == KEPT, *heat,
                                mask_threshold)
        model = model.clone()
        attach(model, mirror, source, control.sides)
        control.patch(model, layers[first_layer:])
        return io.NodeOutput(model)


def _mask_inputs() -> list:
    return [
        io.String.Input("mask_words", default="", multiline=True, optional=True, tooltip=(
            "Words for the object, of either text: `cat, dog`. The edit's object then looks at the picture's object, "
            "and the rest at the rest. Needs clip and both texts.")),
        io.Float.Input("mask_threshold", default=0.1, min=0.0, max=1.0, step=0.05, optional=True, advanced=True,
                       tooltip="What counts as the object in the picture, between the least and the most attention."),
        io.Clip.Input("clip", optional=True),
        io.String.Input("source_text", default="", multiline=True, optional=True, advanced=True,
                        tooltip="The mirror's prompt, as it was encoded."),
        io.String.Input("target_text", default="", multiline=True, optional=True, advanced=True,
                        tooltip="The edited prompt, as the sampler gets it."),
    ]


def _heat(mirror: Mirror, clip, source: str, target: str, words: list[str]) -> tuple[WordHeat | None, tuple]:
    """(what gathers the words' maps, the lengths of both prompts), or (None, ()) without words."""
    if not words:
        return None, ()
    if clip is None or not source or not target:
        raise ValueError("`mask_words` are looked up in the texts: connect `clip` and give both texts.")
    if length(clip, source) != mirror.source.shape[1]:
        raise ValueError(f"`source_text` does not have the {mirror.source.shape[1]} tokens of the mirror's prompt.")
    texts = Texts(clip, source, target, length(clip, source), length(clip, target))
    masks = texts.masks(words)
    return WordHeat(masks[0][None], masks[1][None]), (texts.length, texts.target_length)


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
        size = tuple(extra_options["activations_shape"][-2:])
        for step in (reference.step, reference.step - 1):
            heats = self.heat.mean(reference, lambda gathered, step=step: gathered == step)
            if heats is not None:
                return [unit_area(heat[:, 0], size).flatten(1) for heat in heats]
        return None
