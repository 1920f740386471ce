"""MirrorMetrics: two pictures, in figures."""

import math

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.measure.metrics import psnr, ssim
from ...mirror_ops.measure.perceptual import clip_score, directional_similarity, structure_distance
from ...mirror_ops.measure.within import psnr_within, ssim_within
from ..host.clip_space import text_embedding
from ..reports import shown
from ..types import category

# Name of each figure, its decimals in the table, and what it says.
FIGURES = {
    "psnr": (2, "In dB, of the whole picture."),
    "ssim": (4, "Structural similarity, of the whole picture; 1 is equal."),
    "psnr_inside": (2, "In dB, within the mask."),
    "psnr_outside": (2, "In dB, outside the mask: what the edit should have left alone."),
    "ssim_inside": (4, "Structural similarity within the mask."),
    "ssim_outside": (4, "Structural similarity outside the mask."),
    "structure": (5, "Distance of the layouts as the clip_vision model sees them; 0 is equal."),
    "clip_score": (2, "100 x cosine of the picture and target_text."),
    "directional": (4, "Cosine of the change of the picture and the change of the words."),
}


class MirrorMetrics(io.ComfyNode):
    """PSNR and SSIM of the whole, inside and outside a mask; structure and CLIP figures with models of the user's."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorMetrics",
            display_name="Mirror Metrics",
            category=category(__name__),
            description=(
                "Compares a picture with a reference: PSNR and SSIM of the whole, inside and outside a mask. With a "
                "CLIP_VISION also how far the layout moved; with its CLIP also how well the picture fits words. "
                "Figures are means over a batch; those that lack an input are nan."
            ),
            search_aliases=["psnr", "ssim", "clip score", "directional clip", "structure distance", "image quality"],
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The edited picture(s)."),
                io.Image.Input("reference", tooltip="What to compare with: the picture before the edit, or the truth."),
                io.Mask.Input("mask", optional=True, tooltip="The edited region."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="For structure, and with clip for words."),
                io.Clip.Input(
                    "clip", optional=True,
                    tooltip="The text side of the clip_vision model. Load it by itself: that of SD1.5 and SD2 "
                    "checkpoints lacks the projection that leads to pictures.",
                ),
                io.String.Input("source_text", default="", optional=True, tooltip="What is in the reference."),
                io.String.Input("target_text", default="", optional=True, tooltip="What should be in the image."),
            ],
            outputs=[
                *(io.Float.Output(display_name=name, tooltip=tooltip) for name, (_, tooltip) in FIGURES.items()),
                io.String.Output(display_name="table", tooltip="A line a picture."),
            ],
        )

    @classmethod
    def execute(
        cls, image, reference, mask=None, clip_vision=None, clip=None, source_text="", target_text=""
    ) -> io.NodeOutput:
        x, truth = _pair(image, reference)
        texts = _texts(clip, clip_vision, source_text, target_text)
        window = min(11, *x.shape[-2:])
        found = {"psnr": psnr(x, truth), "ssim": ssim(x, truth, size=window)}
        if mask is not None:
            found |= _regions(x, truth, _fitted(mask, x))
        if clip_vision is not None:
            found |= _seen(clip_vision, x, truth, texts)
        table = _table(found)
        means = [found[name].mean().item() if name in found else math.nan for name in FIGURES]
        return io.NodeOutput(*means, table, ui=shown(table))


def _pair(image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [B, 3, H, W] in float32; ValueError unless they are of one size, and as many or one reference for all."""
    if image.shape[1:3] != reference.shape[1:3] or len(reference) not in (1, len(image)):
        raise ValueError(
            f"`image` is {len(image)} x {image.shape[2]} x {image.shape[1]} (pictures, width, height) and `reference` "
            f"{len(reference)} x {reference.shape[2]} x {reference.shape[1]}. Give pictures of one size, and one "
            "reference for all or one for each."
        )
    x, truth = (p[..., :3].movedim(-1, 1).float().cpu() for p in (image, reference))
    return x, truth.expand_as(x)


def _fitted(mask: Tensor, x: Tensor) -> Tensor:
    """[B or 1, 1, H, W] the mask at the pictures' size; ValueError for a wrong number of masks."""
    mask = mask.float().cpu().reshape(-1, 1, *mask.shape[-2:])
    if len(mask) not in (1, len(x)):
        raise ValueError(f"There are {len(mask)} masks for {len(x)} pictures. Give one mask, or one for each picture.")
    return mask if mask.shape[-2:] == x.shape[-2:] else torch.nn.functional.interpolate(mask, x.shape[-2:])


def _regions(x: Tensor, truth: Tensor, mask: Tensor) -> dict[str, Tensor]:
    found = {"psnr_inside": psnr_within(x, truth, mask), "psnr_outside": psnr_within(x, truth, 1 - mask)}
    if min(x.shape[-2:]) > 11:
        found |= {"ssim_inside": ssim_within(x, truth, mask), "ssim_outside": ssim_within(x, truth, 1 - mask)}
    return found


def _texts(clip, clip_vision, source: str, target: str) -> list[Tensor]:
    """[1, width] embeddings of target and, if given, source, in the space of pictures; ValueError for a bad clip."""
    if clip is None:
        return []
    if clip_vision is None:
        raise ValueError("`clip` reads words only. Connect the `clip_vision` of the same model as well.")
    if not target.strip():
        raise ValueError("`clip` is connected, but `target_text` is empty. Say what should be in the image.")
    return [text_embedding(clip, text) for text in ([target, source] if source.strip() else [target])]


def _seen(clip_vision, x: Tensor, truth: Tensor, texts: list[Tensor]) -> dict[str, Tensor]:
    """What the encoder makes of both pictures."""
    edited, before = (clip_vision.encode_image(p.movedim(1, -1)) for p in (x, truth))
    places = [seen["last_hidden_state"].float().cpu() for seen in (edited, before)]
    found = {"structure": structure_distance(*places)}
    if not texts:
        return found
    if edited["image_embeds"] is None or edited["image_embeds"].shape[-1] != texts[0].shape[-1]:
        raise ValueError("`clip` and `clip_vision` do not belong together: their embeddings differ in size.")
    image, source = (seen["image_embeds"].float().cpu() for seen in (edited, before))
    found["clip_score"] = clip_score(image, texts[0])
    if len(texts) > 1:
        found["directional"] = directional_similarity(source, image, texts[1], texts[0])
    return found


def _table(found: dict[str, Tensor]) -> str:
    """A line a picture, and their mean."""
    heads = [name for name in FIGURES if name in found]
    count = len(found["psnr"])
    lines = [(str(k + 1), [found[name][k] for name in heads]) for k in range(count)]
    if count > 1:
        lines.append(("mean", [found[name].mean() for name in heads]))
    cells = [[name, *(f"{v:.{FIGURES[h][0]}f}" for h, v in zip(heads, values, strict=True))] for name, values in lines]
    widths = [max(len(line[i]) for line in [["picture", *heads], *cells]) for i in range(len(heads) + 1)]
    rows = [["picture", *heads], *cells]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
