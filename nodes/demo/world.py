"""The embedded world as nodes: its model, and scenes whose edits are known exactly."""

import numpy as np
import torch
from comfy_api.latest import io

from ...demo import model as embedded
from ...demo.render import difference_mask, render
from ...demo.scene import ATTRIBUTES, HELD_OUT, caption, scene
from ..host.notices import warn
from ..host.values import SEEDS

AS_SEED = "from the seed"


class MirrorDemoModel(io.ComfyNode):
    """The embedded model, its text encoder and its autoencoder."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorDemoModel",
            display_name="Mirror Demo Model",
            category="mirror/demo",
            description="A small text-to-image model that comes with the pack and draws cartoon animals (128 x 128). "
                        "Use it to try any graph without a download; replace it by Load Checkpoint for real pictures.",
            search_aliases=["demo checkpoint", "tiny model", "embedded model"],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*embedded.load(warn=warn))


class MirrorDemoScene(io.ComfyNode):
    """A picture of the embedded world, and the exact answer to an edit of it."""

    @classmethod
    def define_schema(cls):
        kinds = [io.Combo.Input(name, options=[AS_SEED, *values], default=AS_SEED, advanced=name != "species",
                                tooltip=f"The {name} in the picture.") for name, values in ATTRIBUTES.items()]
        edits = [io.DynamicCombo.Option(name, [io.Combo.Input("to", options=list(values), default=values[1],
                                                              tooltip=f"The {name} after the edit.")])
                 for name, values in ATTRIBUTES.items()]
        return io.Schema(
            node_id="MirrorDemoScene",
            display_name="Mirror Demo Scene",
            category="mirror/demo",
            description="Draws a cartoon animal, and the same picture with one thing changed: the exact answer that an "
                        "edit of the first should come to.",
            search_aliases=["demo picture", "counterfactual", "test image"],
            inputs=[io.Int.Input("seed", default=HELD_OUT, **SEEDS, control_after_generate=True,
                                 tooltip="Decides pose, light, marks, and all that is left to it below. The demo model "
                                         f"was trained on scenes below {HELD_OUT}; from there on they are new to it."),
                    *kinds,
                    io.DynamicCombo.Input("edit", options=edits, tooltip="What the edit changes.")],
            outputs=[io.Image.Output(display_name="image"), io.String.Output(display_name="caption"),
                     io.Image.Output(display_name="edited image"), io.Mask.Output(display_name="edited region"),
                     io.String.Output(display_name="edited caption")],
        )

    @classmethod
    def execute(cls, seed, edit, **attributes) -> io.NodeOutput:
        before = scene(seed).with_(**{k: v for k, v in attributes.items() if v != AS_SEED})
        after = before.with_(**{edit["edit"]: edit["to"]})
        pictures = [render(s) for s in (before, after)]
        mask = torch.from_numpy(difference_mask(*pictures)).float()[None]
        image, answer = (torch.from_numpy(np.asarray(p, np.float32) / 255)[None] for p in pictures)     # [1, H, W, 3]
        return io.NodeOutput(image, caption(before), answer, mask, caption(after))
