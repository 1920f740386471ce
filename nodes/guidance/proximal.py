"""MirrorProximalGuidance: guidance that keeps only what is large enough to be the edit."""

from comfy_api.latest import io

from ...mirror_ops.guidance.proximal import Threshold, hard, soft
from ..host.guidance_control import Proximal, Window, guided
from ..types import category

PROXIMAL_MAPS = {"soft": soft, "hard": hard}
PICTURE, BATCH = "each picture", "whole batch (as published)"


class MirrorProximalGuidance(io.ComfyNode):
    """Patches a model so that small differences between the two prompts are not amplified by guidance."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorProximalGuidance",
            display_name="Mirror Proximal Guidance",
            category=category(__name__),
            description=(
                "Proximal guidance (ProxEdit): of the difference between the positive and the negative prediction only "
                "what exceeds a threshold is amplified, so that high cfg changes what the edit is about and less of "
                "the rest. Works in Mirror Sample and stock samplers; meant for mirrors with the negative prompt."
            ),
            search_aliases=["proxedit", "proximal negative prompt inversion", "proxnpi", "guidance threshold"],
            inputs=[
                io.Model.Input("model", tooltip="Comes out with this guidance added; a LoRA on it stays."),
                io.Combo.Input(
                    "proximal_map", options=list(PROXIMAL_MAPS), default="soft",
                    tooltip="soft: what exceeds the threshold, less the threshold (all published results). hard: the "
                    "whole of it.",
                ),
                threshold_input(),
                *window_inputs(1000, advanced=True),
            ],
            outputs=[io.Model.Output(tooltip="For Mirror Sample or a stock sampler.")],
        )

    @classmethod
    def execute(cls, model, proximal_map, threshold, first_timestep=1000, last_timestep=0) -> io.NodeOutput:
        patch = Proximal(
            PROXIMAL_MAPS[proximal_map], threshold_of(threshold), Window.of(model, first_timestep, last_timestep)
        )
        return io.NodeOutput(guided(model, patch, first=True))


def threshold_input() -> io.DynamicCombo.Input:
    """How the threshold is chosen: see `threshold_of`."""
    quantile = [
        io.Float.Input(
            "quantile", default=0.7, min=0.0, max=1.0, step=0.01,
            tooltip="Share of the values that is too small to count. 0: all guidance; 1: none.",
        ),
        io.Combo.Input(
            "over", options=[PICTURE, BATCH], default=PICTURE, tooltip=(
                "As published the source's zeros are counted in, so that 0.7 acts as 0.4 does on the edited picture."
            ),
        ),
    ]
    fixed = [
        io.Float.Input(
            "tau", default=0.1, min=0.0, max=100.0, step=0.005,
            tooltip="The same at every step, in units of the predicted noise (flow models: of the velocity).",
        )
    ]
    options = [io.DynamicCombo.Option("quantile", quantile), io.DynamicCombo.Option("fixed", fixed)]
    return io.DynamicCombo.Input("threshold", options=options, tooltip="Which differences are large enough to count.")


def threshold_of(choice: dict) -> Threshold:
    """The threshold of a `threshold_input`'s value."""
    if choice["threshold"] == "fixed":
        return Threshold(None, choice["tau"])
    return Threshold(choice["quantile"], whole_batch=choice["over"] == BATCH)


def window_inputs(first: int, advanced: bool = False) -> list:
    """The two ends of a `Window`."""
    return [
        io.Int.Input(
            "first_timestep", default=first, min=0, max=1000, optional=True, advanced=advanced,
            tooltip="Acts from this timestep on (1000: noise, 0: picture). 400: the last two fifths of the way.",
        ),
        io.Int.Input(
            "last_timestep", default=0, min=0, max=1000, optional=True, advanced=advanced,
            tooltip="Acts down to this timestep.",
        ),
    ]
