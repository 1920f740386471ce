"""MirrorCompare: pictures side by side, with what changed between them."""

import numpy as np
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ...mirror_ops.measure.image_grid import difference_heat, draw_sheet, outlined
from ..types import category

MOST = 12


class MirrorCompare(io.ComfyNode):
    """A labelled sheet: the reference, the other pictures, and under each the heat map of its difference."""

    @classmethod
    def define_schema(cls):
        pictures = io.Autogrow.TemplatePrefix(io.Image.Input("image"), prefix="image", min=1, max=MOST)
        return io.Schema(
            node_id="MirrorCompare",
            display_name="Mirror Compare",
            category=category(__name__),
            description=(
                "Puts a picture and edits of it side by side under their names, and under each edit a heat map of what "
                "changed: dark where nothing did."
            ),
            search_aliases=["image grid", "difference", "heat map", "contact sheet", "before and after"],
            is_output_node=True,
            inputs=[
                io.Image.Input("reference", tooltip="What the others are compared with, such as the picture itself."),
                io.Autogrow.Input("images", template=pictures, tooltip="Up to twelve edits of it."),
                io.String.Input(
                    "labels", default="before\nafter", multiline=True, tooltip="One a line, the reference's first."
                ),
                io.Float.Input(
                    "gain", default=4.0, min=0.0, max=100.0, step=0.5,
                    tooltip="The heat map is brightest at a difference of 1 / gain. 0: no heat maps.",
                ),
                io.Int.Input("tile", default=384, min=32, max=2048, tooltip="Longest side of a picture on the sheet."),
                io.Mask.Input("mask", optional=True, tooltip="The edited region, outlined on the heat maps."),
            ],
            outputs=[io.Image.Output(display_name="sheet")],
        )

    @classmethod
    def execute(cls, reference, images: dict, labels, gain, tile, mask=None) -> io.NodeOutput:
        count = max(len(reference), *(len(image) for image in images.values()))
        columns = [_tiles(image, name, reference, count, tile) for name, image in _named(reference, images)]
        regions = None if mask is None else _masks(mask, columns[0][0].shape[:2], count)
        rows = []
        for k in range(count):
            row = [column[k] for column in columns]
            rows.append(row)
            if gain:
                heats = [difference_heat(picture, row[0], gain) for picture in row]
                rows.append(heats if regions is None else [outlined(heat, regions[k]) for heat in heats])
        sheet = draw_sheet(rows, _titles(labels, len(columns)))
        grid = torch.from_numpy(sheet.copy()).float()[None] / 255
        return io.NodeOutput(grid, ui=ui.PreviewImage(grid, cls=cls))


def _named(reference: Tensor, images: dict) -> list[tuple[str, Tensor]]:
    return [("reference", reference), *((name, image) for name, image in images.items() if image is not None)]


def _tiles(image: Tensor, name: str, reference: Tensor, count: int, tile: int) -> list[np.ndarray]:
    """[count] pictures [h, w, 3] uint8, the reference's size brought to `tile`; ValueError for other proportions."""
    if len(image) not in (1, count):
        raise ValueError(f"`{name}` has {len(image)} pictures where others have {count}: give one, or as many.")
    height, width = reference.shape[1:3]
    if abs(image.shape[2] * height - image.shape[1] * width) > max(height, width):
        raise ValueError(
            f"`{name}` is {image.shape[2]} x {image.shape[1]} and the reference {width} x {height}: pictures of other "
            "proportions can't be compared. Crop one of them."
        )
    scale = min(1.0, tile / max(height, width))
    size = (round(height * scale), round(width * scale))
    x = image[..., :3].movedim(-1, 1).float().cpu()
    if x.shape[-2:] != size:
        x = torch.nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)
    pixels = (x.clamp(0, 1).movedim(1, -1) * 255).round().byte().numpy()
    return [pixels[k % len(pixels)] for k in range(count)]


def _masks(mask: Tensor, size: tuple[int, int], count: int) -> list[np.ndarray]:
    """[count] masks [h, w] at the tiles' size; ValueError for a wrong number."""
    mask = mask.float().cpu().reshape(-1, 1, *mask.shape[-2:])
    if len(mask) not in (1, count):
        raise ValueError(f"There are {len(mask)} masks for {count} pictures: give one, or as many.")
    fitted = torch.nn.functional.interpolate(mask, size=size)[:, 0].numpy()
    return [fitted[k % len(fitted)] for k in range(count)]


def _titles(labels: str, columns: int) -> list[str]:
    """A name for each column: the lines given, and numbers for those without one."""
    lines = [line.strip() for line in labels.splitlines()][:columns]
    return lines + [str(k) for k in range(len(lines), columns)]
