"""Results as files: whole or not there, each with the record of what it was made of."""
from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

RECORD = "translate"        # the PNG text that holds the record


def write(image: Tensor, target: Path, scratch: Path, record: dict, graph: dict) -> None:
    """Write a picture [H, W, C] in [0, 1] with the pixels that Save Image writes; `scratch` is on the same disk."""
    info = PngInfo()
    info.add_text("prompt", json.dumps(graph))      # the editor opens the graph of a picture that is dropped on it
    info.add_text(RECORD, json.dumps(record))
    pixels = np.clip(255. * image.cpu().numpy(), 0, 255).astype(np.uint8)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(scratch, "wb") as file:
            Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
                file, "PNG", pnginfo=info, compress_level=4)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()


def record_of(file: Path) -> dict | None:
    """The record in a result; None if there is no such file, or it is none of a folder job's."""
    try:
        with Image.open(file) as picture:
            return json.loads(picture.info[RECORD])
    except (OSError, KeyError, ValueError, SyntaxError):
        return None
