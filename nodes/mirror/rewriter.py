"""Choosing how the prompt is rewritten."""

from comfy_api.latest import io

from ...mirror_ops.rewriting.rewriters import Adam, FixedPoint, Keep, NegativePrompt, null_text
from ..types import RewriterType, category


def _adam_inputs() -> list:
    return [
        io.Int.Input("inner_steps", default=10, min=1, max=100, tooltip="Most Adam steps at each step of the walk."),
        io.Float.Input("learning_rate", default=0.01, min=1e-4, max=1.0, step=1e-4, tooltip="Falls to its half."),
        io.Boolean.Input(
            "early_stop", default=True, tooltip="Stop at the published error. Off: all inner steps; closer, slower."
        ),
    ]


def _adam_settings(choice: dict) -> dict:
    return {"steps": choice["inner_steps"], "rate": choice["learning_rate"], "early_stop": choice["early_stop"]}


def _fixed_point_inputs() -> list:
    return [
        io.Int.Input(
            "iterations", default=2, min=1, max=20, tooltip="Fixed-point iterations at each inversion step, at least."
        )
    ]


def _negative_prompt_inputs() -> list:
    return [
        io.Float.Input(
            "interpolation", default=0.0, min=0.0, max=1.0, step=0.05, optional=True, tooltip=(
                "How far from the describing prompt to the connected negative: more of the edit, less of the picture."
            ),
        )
    ]


# What the node offers: name -> (its inputs, settings -> rewriter). A new method is one more line.
METHODS = {
    "paper": (_adam_inputs, lambda choice: Adam(**_adam_settings(choice))),
    "fixed point + negative prompt": (
        _fixed_point_inputs, lambda choice: FixedPoint(refine=choice["iterations"])
    ),
    "null text": (_adam_inputs, lambda choice: null_text(**_adam_settings(choice))),
    "negative prompt": (
        _negative_prompt_inputs, lambda choice: NegativePrompt(interpolation=choice.get("interpolation", 0.0))
    ),
    "none": (list, lambda choice: Keep()),
}


class PromptRewriteOptimizer(io.ComfyNode):
    """A MIRROR_REWRITER for RedescribedDDIMInvert."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PromptRewriteOptimizer",
            display_name="Prompt Rewrite Optimizer",
            category=category(__name__),
            description="How Redescribed DDIM Invert rewrites the prompt so that sampling retraces the inversion.",
            search_aliases=["null text inversion", "negative prompt inversion", "prompt tuning inversion", "rewriter"],
            inputs=[
                io.DynamicCombo.Input(
                    "method",
                    options=[io.DynamicCombo.Option(name, inputs()) for name, (inputs, _) in METHODS.items()],
                    tooltip=(
                        "paper: Adam on the describing prompt (MirrorDiffusion). fixed point + negative prompt: the "
                        "inversion is solved by fixed-point iterations, and above cfg 1 the negative becomes the "
                        "describing prompt; no gradients. null text: Adam on the negative. negative prompt: the "
                        "negative becomes the describing prompt. none: plain DDIM, to compare."
                    ),
                )
            ],
            outputs=[RewriterType.Output(display_name="rewriter", tooltip="For Redescribed DDIM Invert.")],
        )

    @classmethod
    def execute(cls, method: dict) -> io.NodeOutput:
        _, make = METHODS[method["method"]]
        return io.NodeOutput(make(method))
