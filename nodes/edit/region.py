"""Where two pictures differ, and the original's pixels put back where an edit changed nothing."""

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.regions.finders import grown, softened
from ...mirror_ops.regions.found import RULES, SOFTEN, WIDEN, middle, pasted, picture_region
from ..host.autoencoder import there_and_back
from ..types import category


class MirrorRegion(io.ComfyNode):
    """The region in which a picture was edited, found in what changed."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorRegion",
            display_name="Edited Region",
            category=category(__name__),
            description=(
                "A mask of where two pictures differ, a pixel sharp and with a soft edge, without a threshold to set. "
                "Works on any two pictures of one size, whatever made the edit."
            ),
            search_aliases=["difference mask", "change mask", "edit mask", "what changed", "otsu", "image difference"],
            inputs=[
                io.Image.Input("before", tooltip="Decoded from the picture's latent, so that the VAE's own error does "
                               "not count as a change; or the picture itself."),
                io.Image.Input("after", tooltip="The edited picture."),
                *edge_inputs(),
                io.Combo.Input("rule", options=list(RULES), default="otsu", optional=True, advanced=True, tooltip=(
                    "otsu: the valley between little and much change. The others are published editors': a weight from "
                    "the least to the largest change, a sigmoid between two quantiles, how unlike the two are."
                )),
            ],
            outputs=[io.Mask.Output(display_name="region")],
        )

    @classmethod
    def execute(cls, before, after, widen, soften, rule="otsu") -> io.NodeOutput:
        one, other = planes(before), planes(after)
        check_counts(before=len(one), after=len(other))
        rows, columns = middle(other, one)
        return io.NodeOutput(picture_region(one[..., rows, columns], other, widen, soften, rule)[:, 0])


class MirrorPaste(io.ComfyNode):
    """The edit where it acted, the original's own pixels everywhere else."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorPaste",
            display_name="Paste Edit onto Original",
            category=category(__name__),
            description=(
                "Keeps the original's own pixels, which no VAE has touched, wherever the edit changed nothing, with a "
                "soft edge between. Originals whose sides are no multiple of 8 keep their size."
            ),
            search_aliases=["composite edit", "put back original", "restore background", "paste back", "blend edit"],
            inputs=[
                io.Image.Input("original", tooltip="The picture as it was before the VAE."),
                io.Image.Input("edited", tooltip="The decoded edit."),
                io.Vae.Input("vae", optional=True, tooltip=(
                    "Connect it: its own error on the original is then known and does not count as an edit."
                )),
                io.Mask.Input("region", optional=True, tooltip="Where to take the edit; default: found."),
                *edge_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.Mask.Output(display_name="region", tooltip="Where the edit was taken, at the original's size."),
            ],
        )

    @classmethod
    def execute(cls, original, edited, widen, soften, vae=None, region=None) -> io.NodeOutput:
        picture, edit = planes(original), planes(edited)
        check_counts(original=len(picture), edited=len(edit), region=1 if region is None else len(region))
        if region is not None:
            region = softened(grown(_at_edit(region, edit, picture), widen), soften)
        else:
            rows, columns = middle(edit, picture)
            before = picture[..., rows, columns] if vae is None else planes(there_and_back(vae, original[..., :3]))
            region = picture_region(before, edit, widen, soften)
        image = pasted(edit, picture, region)
        where = pasted(torch.ones_like(edit[:, :1]), torch.zeros_like(image[:, :1]), region)
        return io.NodeOutput(image.movedim(1, -1), where[:, 0])


def _at_edit(mask: Tensor, edit: Tensor, picture: Tensor) -> Tensor:
    """[B, 1, h, w] a mask at the edit's size; one of the original's size is cropped as the autoencoder cropped that."""
    mask = mask.float().reshape(-1, 1, *mask.shape[-2:])
    if mask.shape[-2:] == picture.shape[-2:]:
        rows, columns = middle(edit, picture)
        mask = mask[..., rows, columns]
    return torch.nn.functional.interpolate(mask, size=edit.shape[-2:], mode="bilinear")


def planes(image: Tensor) -> Tensor:
    """[B, 3, H, W] float32 on the CPU, of an IMAGE [B, H, W, 3 or 4]."""
    return image[..., :3].movedim(-1, 1).float().cpu()


def check_counts(**counts: int) -> None:
    """Raises ValueError unless there is one of each, or as many as of the most."""
    most = max(counts.values())
    for name, count in counts.items():
        if count not in (1, most):
            raise ValueError(f"`{name}` has {count} pictures where others have {most}. Give one, or as many.")


def edge_inputs() -> list:
    """Widgets of a region's edge."""
    return [
        io.Int.Input("widen", default=WIDEN, min=0, max=256, tooltip="Pixels that the region is widened by."),
        io.Int.Input("soften", default=SOFTEN, min=0, max=256, tooltip="Pixels to each side of its soft edge."),
    ]
