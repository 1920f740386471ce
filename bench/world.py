"""The embedded world for benches: the host in this process, the model through the pack, scenes as ComfyUI images."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from harness.boot import Host, boot


class World:
    """`model`, `clip`, `vae` as MirrorDemoModel gives them; the pack's modules as the host loaded them."""

    def __init__(self, host: Host):
        self.host = host
        self.render = host.pack_module("demo.render")
        self.scene = host.pack_module("demo.scene")
        self.reader = host.pack_module("demo.classifier")
        self.classifier = self.reader.load()
        self.model, self.clip, self.vae = host.pack_module("demo.model").load()

    def image(self, scene) -> torch.Tensor:
        """[1, H, W, 3] in [0, 1]."""
        return torch.from_numpy(self.render.render_array(scene).astype(np.float32) / 255)[None]

    def prompt(self, text: str):
        """CONDITIONING of a text, as CLIPTextEncode makes it."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def attributes(self, images: torch.Tensor) -> list[dict[str, str]]:
        """The captioned attributes that the classifier sees in images [B, H, W, 3]."""
        return self.reader.attributes(self.classifier, images)


@cache
def world() -> World:
    """Start the host with the pack and load the embedded model."""
    return World(boot())


def grid(rows: list[list[torch.Tensor]], gap: int = 2) -> torch.Tensor:
    """Pictures [H, W, 3] of equal size, as one picture [H', W', 3] on white."""
    padded = [torch.cat([torch.nn.functional.pad(p, (0, 0, 0, gap, 0, gap), value=1.) for p in row], 1) for row in rows]
    return torch.cat(padded, 0)


def save(picture: torch.Tensor, path) -> None:
    """Write a picture [H, W, 3] in [0, 1] as PNG."""
    from PIL import Image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture.clamp(0, 1) * 255).round().byte().numpy()).save(path)
