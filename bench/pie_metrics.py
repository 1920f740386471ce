"""The figures of PIE-Bench, as its official evaluator computes them (Ju et al., ICLR 2024), and corrected beside.

Networks are read from a folder of the user's, nothing is downloaded. What is not there leaves its columns out:

    dino-vitb8/                                 facebook/dino-vitb8 as transformers saves it: dist
    clip-vit-large-patch14/                     openai/clip-vit-large-patch14: clip_whole, clip_edited, directional,
                                                clip_acc
    hub/checkpoints/squeezenet1_1-b8a52dc0.pth  torchvision's, with the package torchmetrics: lpips

The figures of a set of pictures, fid and kid, are in pie_sets.py.

Units are those of the published tables: dist, lpips x 1000, mse x 10000, ssim and CLIP x 100, PSNR in dB.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import normalize, resize

from mirror_ops.measure.metrics import ssim
from mirror_ops.measure.perceptual import clip_score, directional_similarity, prefers_target, structure_distance
from mirror_ops.measure.within import psnr_blackened, psnr_within

DINO, CLIP, SQUEEZE = "dino-vitb8", "clip-vit-large-patch14", "hub/checkpoints/squeezenet1_1-b8a52dc0.pth"
IMAGENET = ([.485, .456, .406], [.229, .224, .225])
LAST_BLOCK = 11
INSTALL = "install the optional packages, pip install torchmetrics torch-fidelity"

Figure = Callable[[Tensor, Tensor, Tensor, tuple[str, str]], dict[str, float]]


def decoded_mask(spans: list[int], height: int = 512, width: int = 512) -> Tensor:
    """[1, 1, H, W] of PIE-Bench's run lengths [start, length, ...]: 1 in the edited region, and on the border.

    The official decoder sets the border against errors of annotation there.
    """
    mask = torch.zeros(height * width)
    for start, length in zip(spans[::2], spans[1::2], strict=True):
        mask[start:start + length] = 1
    mask = mask.reshape(1, 1, height, width)
    mask[..., [0, -1], :] = 1
    mask[..., [0, -1]] = 1
    return mask


def background(edited: Tensor, source: Tensor, mask: Tensor, prompts: tuple[str, str]) -> dict[str, float]:
    """PSNR, MSE and SSIM with the region painted black, and `psnr_true` of the background's pixels alone.

    Nothing where the mask covers the whole picture.
    """
    keep = 1 - mask
    if not keep.any():
        return {}
    black = edited * keep, source * keep
    return {"psnr": psnr_blackened(edited, source, keep).item(), "psnr_true": psnr_within(edited, source, keep).item(),
            "mse": 1e4 * (black[0] - black[1]).square().mean().item(), "ssim": 100 * ssim(*black).item()}


class Dino:
    """`dist`: structure distance on inputs of 0 to 255, as the official code has them; `dist_true` on 0 to 1."""

    def __init__(self, folder: Path):
        from transformers import ViTModel
        self.network = ViTModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False).eval()
        keys = [part for name, part in self.network.named_modules() if name.endswith((".key", ".k_proj"))]
        self.seen: list[Tensor] = []
        keys[min(LAST_BLOCK, len(keys) - 1)].register_forward_hook(lambda _, inputs, out: self.seen.append(out))

    def keys(self, x: Tensor) -> Tensor:
        """[1, 1 + places, width] the keys of all heads of block 11, side by side."""
        self.network(pixel_values=normalize(resize(x, 224, max_size=480), *IMAGENET), interpolate_pos_encoding=True)
        return self.seen.pop()

    def __call__(self, edited: Tensor, source: Tensor, mask: Tensor, prompts: tuple[str, str]) -> dict[str, float]:
        def distance(scale: float) -> float:
            return 1e3 * structure_distance(self.keys(scale * edited), self.keys(scale * source)).item()

        return {"dist": distance(255.), "dist_true": distance(1.)}


class Clip:
    """`clip_whole`, `clip_edited` (all but the region black) against the target prompt; and two figures of others:
    `directional`, and `clip_acc`, whether the edited picture is nearer to the target's prompt than to the source's."""

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel
        self.network = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)

    def image(self, x: Tensor) -> Tensor:
        """[B, width] of pictures [B, 3, H, W] in [0, 1], which the evaluator rounds to bytes."""
        pixels = self.processor(list((255 * x).byte()), return_tensors="pt")["pixel_values"]
        return self.network.visual_projection(self.network.vision_model(pixel_values=pixels).pooler_output)

    def text(self, prompt: str) -> Tensor:
        most = self.network.config.text_config.max_position_embeddings
        read = self.tokenizer([prompt], return_tensors="pt", truncation=True, max_length=most)
        return self.network.text_projection(self.network.text_model(**read).pooler_output)

    def __call__(self, edited: Tensor, source: Tensor, mask: Tensor, prompts: tuple[str, str]) -> dict[str, float]:
        before, after = (self.text(prompt.replace("[", "").replace("]", "")) for prompt in prompts)
        whole, region, original = self.image(torch.cat([edited, edited * mask, source]))[:, None]
        return {"clip_whole": clip_score(whole, after).item(), "clip_edited": clip_score(region, after).item(),
                "directional": directional_similarity(original, whole, before, after).item(),
                "clip_acc": float(prefers_target(whole, before, after))}


class Lpips:
    """`lpips`: SqueezeNet, on both pictures with the region painted black. Nothing where that is the whole picture."""

    def __init__(self, folder: Path):
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        usual = torch.hub.get_dir()
        torch.hub.set_dir(str(folder / "hub"))          # where torchvision looks before it would download
        try:
            self.metric = LearnedPerceptualImagePatchSimilarity(net_type="squeeze")
        finally:
            torch.hub.set_dir(usual)

    def __call__(self, edited: Tensor, source: Tensor, mask: Tensor, prompts: tuple[str, str]) -> dict[str, float]:
        if not (1 - mask).any():
            return {}
        a, b = (2 * x * (1 - mask) - 1 for x in (edited, source))
        return {"lpips": 1e3 * self.metric(a, b).item()}


def installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


def available(folder: Path | None) -> tuple[list[Figure], list[str]]:
    """(what can be computed with the networks in `folder`, a line for each that can't be and what is missing)."""
    figures: list[Figure] = [background]
    missing = []
    for make, path, columns in ((Dino, DINO, "dist"), (Clip, CLIP, "the CLIP columns"), (Lpips, SQUEEZE, "lpips")):
        if folder is None or not (folder / path).exists():
            missing.append(f"no {columns}: put {path} into the folder given as --weights")
        elif make is Lpips and not installed("torchmetrics"):
            missing.append(f"no lpips: {INSTALL}")
        else:
            figures.append(make(folder) if make is Lpips else make(folder / path))
    return figures, missing
