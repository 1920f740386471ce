"""What a node shows on itself after a run: words, and a picture. web/reports.js puts the words into a box."""

from comfy_api.latest import io, ui
from torch import Tensor


def shown(text: str, picture: Tensor | None = None, node: type[io.ComfyNode] | None = None) -> dict:
    """The `ui` of a NodeOutput: the text, and under it a picture [B, H, W, 3] in [0, 1] of the class `node`."""
    images = {} if picture is None else ui.PreviewImage(picture, cls=node).as_dict()
    return ui.PreviewText(text).as_dict() | images
