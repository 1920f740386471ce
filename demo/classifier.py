"""Reads the captioned attributes off a picture. It sees pixels only, not latents, so it doesn't share the autoencoder's
blindness; `python run.py bench demo-model` prints its own held-out accuracy."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from .scene import ATTRIBUTES

WEIGHTS = Path(__file__).parent / "weights" / "classifier.safetensors"
SIZE = 64


class Classifier(nn.Module):
    """Pictures [B, 3, H, W] in [-1, 1] to one row of logits per attribute; works at 64 x 64 whatever comes in."""

    def __init__(self, width: int = 32):
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 4 * width]
        self.body = nn.Sequential(*(layer for a, b in zip(widths, widths[1:], strict=False)
                                    for layer in (nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(8, b), nn.SiLU(),
                                                  nn.Conv2d(b, b, 3, 1, 1), nn.GroupNorm(8, b), nn.SiLU())))
        features = widths[-1] * (SIZE // 16) ** 2
        self.heads = nn.ModuleDict({k: nn.Linear(features, len(v)) for k, v in ATTRIBUTES.items()})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = F.interpolate(x, size=(SIZE, SIZE), mode="area") if x.shape[-2:] != (SIZE, SIZE) else x
        h = self.body(x).flatten(1)                     # [B, C * 4 * 4]
        return {k: head(h) for k, head in self.heads.items()}


def load(path: Path = WEIGHTS) -> Classifier:
    """The trained classifier; raises FileNotFoundError, with the command that makes it, if the weights are absent."""
    from safetensors.torch import load_file
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: restore it from the repository, or run `python run.py train`")
    with torch.inference_mode(False):
        model = Classifier()
        model.load_state_dict({k: v.float() for k, v in load_file(str(path)).items()})
    return model.eval()


@torch.no_grad()
def attributes(model: Classifier, images: torch.Tensor) -> list[dict[str, str]]:
    """What the classifier sees in ComfyUI images [B, H, W, 3] in [0, 1]: one dict of attribute names a picture."""
    out = model(images[..., :3].movedim(-1, 1).float() * 2 - 1)
    best = {k: v.argmax(1).tolist() for k, v in out.items()}
    return [{k: ATTRIBUTES[k][best[k][i]] for k in ATTRIBUTES} for i in range(len(images))]
