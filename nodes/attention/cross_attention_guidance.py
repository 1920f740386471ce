"""MirrorCrossAttentionGuidance: keeps an edit's attention, and so the picture's structure, near the source's."""

from comfy_api.latest import io

from ...mirror_ops.walks.trajectory import Mirror
from ..host.attach import attach
from ..host.attention import CROSS, attention_layers
from ..host.cross_attention_guidance import Guidance
from ..host.reference_pass import NEGATIVE, POSITIVE
from ..types import category, mirror_input

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
                "of the picture at the same step: its structure stays (pix2pix-zero). Patches a model for Mirror "
                "Sample, for edits under shared noise, or with a mirror for stock samplers at its steps (euler, ddim)."
            ),
            search_aliases=["pix2pix-zero", "cross attention guidance", "keep structure", "structure guidance"],
            inputs=_inputs(),
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls, model, amount, mirror: Mirror | None = None, latents=PAPER, cycle=False, source=None, layers="all",
        largest=64, checkpointing="auto",
    ) -> io.NodeOutput:
        patcher, wanted = model.clone(), CHECKPOINTING[checkpointing]
        sides = (POSITIVE, NEGATIVE) if latents == CODE else (POSITIVE,)
        checkpoint = model.load_device.type != "cpu" if wanted is None else wanted
        attach(patcher, mirror, source, sides)
        chosen = [layer for layer in attention_layers(patcher, CROSS) if layer[0] in LAYERS[layers]]
        Guidance(amount, sides, cycle, largest, checkpoint).patch(patcher, chosen)
        return io.NodeOutput(patcher)


def _inputs() -> list:
    return [
        io.Model.Input("model", tooltip="The model of the mirror. Patches on it apply to the source as well."),
        io.Float.Input(
            "amount", default=0.1, min=0.0, max=100.0, step=0.01,
            tooltip="The size of the step. The paper takes 0.1 for photos and 0.15 for synthetic pictures; more "
            "keeps more of the structure, and less of the edit.",
        ),
        mirror_input(),
        io.Combo.Input(
            "latents", options=[PAPER, CODE], default=PAPER, optional=True, tooltip=(
                "paper: one latent follows the maps of the edited prompt. official code: each half of the guidance "
                "follows its own maps, and only the unguided half's latent is kept. It takes twice the passes."
            ),
        ),
        io.Boolean.Input(
            "cycle", default=False, optional=True, advanced=True,
            tooltip="MirrorDiffusion's cycle loss: at four early steps the maps of the prompt less one edit count too.",
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
