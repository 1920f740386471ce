"""MirrorApplyEdit: a distilled edit on pictures, with its region, the picture's own pixels outside it, a strength."""

import time

from comfy_api.latest import io

from ...mirror_ops.regions.found import SOFTEN, WIDEN, picture_region
from ..edit.region import edge_inputs, planes
from ..host.training import edited
from ..reports import shown
from ..types import category


class MirrorApplyEdit(io.ComfyNode):
    """Upscale Image (using Model) for edits: only what was edited is taken from the network."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorApplyEdit",
            display_name="Mirror Apply Edit",
            category=category(__name__),
            description=(
                "Runs a distilled edit (Mirror Train Edit, or Load Upscale Model) on pictures. Outside the region that "
                "it edits the picture's own pixels stay."
            ),
            search_aliases=["distilled edit", "real time edit", "apply edit model", "image to image network"],
            inputs=[
                io.UpscaleModel.Input("edit", tooltip="From Mirror Train Edit, or stock Load Upscale Model."),
                io.Image.Input("image", tooltip="The picture(s) to edit."),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=2.0, step=0.05,
                    tooltip="0 leaves the picture, 1 is the edit as it was learnt, more exaggerates it.",
                ),
                io.Boolean.Input("paste", default=True, tooltip="Keep the picture's own pixels outside the region."),
                *edge_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.Mask.Output(display_name="region", tooltip="Where the network changed the picture."),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(cls, edit, image, strength, paste=True, widen=WIDEN, soften=SOFTEN) -> io.NodeOutput:
        if edit.scale != 1:
            raise ValueError(
                f"This upscaling model makes pictures {edit.scale} times as large: it is no distilled edit. Take a "
                "file of Mirror Train Edit."
            )
        begun = time.perf_counter()
        picture = planes(image)
        made = planes(edited(edit, image[..., :3]))
        region = picture_region(picture, made, widen, soften)
        mixed = picture + strength * (region if paste else 1) * (made - picture)
        speed = len(picture) / (time.perf_counter() - begun)
        report = f"{region.mean():.1%} of the picture was edited; {speed:.1f} pictures a second."
        return io.NodeOutput(mixed.clamp(0, 1).movedim(1, -1), region[:, 0], report, ui=shown(report))
