"""MirrorMutualSelfAttention: the edit takes its texture from the mirror's picture, in a layout of its own."""

from comfy_api.latest import io

from ...mirror_ops.attention.mutual_self_attention import JOINT, OWN, SOURCE
from ...mirror_ops.walks.trajectory import Mirror
from ..host.attach import attach
from ..host.attention import SELF, attention_layers
from ..host.mutual_control import MutualControl
from ..host.reference_pass import NEGATIVE, POSITIVE, Check
from ..host.word_maps import Texts, WordHeat, names
from ..types import category, mirror_input

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
                "MasaCtrl: in later steps and layers the edit's self-attention takes keys and values from the picture "
                "as it was. Shape and pose may follow the new prompt, texture stays the picture's. Works in Mirror "
                "Sample, in edits under shared noise, and with a mirror in stock samplers that take its steps."
            ),
            search_aliases=["masactrl", "proxmasactrl", "attention control", "pose edit", "geometry edit"],
            inputs=[
                io.Model.Input("model", tooltip="Other packs' attention patches come before this."),
                io.Int.Input(
                    "first_step", default=4, min=0, max=1000,
                    tooltip="The step of the walk from which it acts. Earlier: more of the layout is the picture's.",
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
                mirror_input(),
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
        cls, model, first_step, first_layer, positive, negative, mirror: Mirror | None = None,
        source_negative=SAMPLERS, mask_words="", mask_threshold=0.1, clip=None, source_text="", target_text="",
        source=None,
    ) -> io.NodeOutput:
        layers = attention_layers(model, SELF)
        if first_layer >= len(layers):
            raise ValueError(f"`first_layer` {first_layer} must lie below this model's {len(layers)} self-attention "
                             "layers.")
        texts = _texts(clip, source_text, target_text) if names(mask_words) else None
        control = MutualControl({POSITIVE: positive, NEGATIVE: negative}, first_step, source_negative == KEPT,
                                *_heat(texts, names(mask_words)), mask_threshold)
        model = model.clone()
        attach(model, mirror, source, control.sides, _check(first_step, texts))
        control.patch(model, layers[first_layer:])
        return io.NodeOutput(model)


def _mask_inputs() -> list:
    return [
        io.String.Input("mask_words", default="", multiline=True, optional=True, tooltip=(
            "Words for the object, of either text: `cat, dog`. The edit's object then looks at the picture's object, "
            "and the rest at the rest. Needs clip and both texts.")),
        io.Float.Input("mask_threshold", default=0.1, min=0.0, max=1.0, step=0.05, optional=True, advanced=True,
                       tooltip="What counts as the object in the picture, between the least and the most attention."),
        io.Clip.Input("clip", optional=True, tooltip="The one that encoded the texts; needed for `mask_words` only."),
        io.String.Input("source_text", default="", multiline=True, optional=True, advanced=True,
                        tooltip="The mirror's prompt, as it was encoded."),
        io.String.Input("target_text", default="", multiline=True, optional=True, advanced=True,
                        tooltip="The edited prompt, as the sampler gets it."),
    ]


def _texts(clip, source: str, target: str) -> Texts:
    """Both prompts; ValueError if one is missing."""
    if clip is None or not source or not target:
        raise ValueError("`mask_words` are looked up in the texts: connect `clip` and give both texts.")
    return Texts.of(clip, source, target)


def _heat(texts: Texts | None, words: list[str]) -> tuple[WordHeat | None, tuple]:
    """(what gathers the words' maps, the lengths of both prompts), or (None, ()) without words."""
    if texts is None:
        return None, ()
    masks = texts.masks(words)
    return WordHeat(masks[0][None], masks[1][None]), (texts.length, texts.target_length)


def _check(first_step: int, texts: Texts | None) -> Check:
    """Raises ValueError for a walk that ends before the first step, or has other prompts than the texts."""

    def check(steps: int, source, positive=None) -> None:
        if first_step >= steps:
            raise ValueError(f"`first_step` {first_step} must lie below the {steps} steps of the walk.")
        if texts is not None:
            texts.check(source, positive)

    return check
