"""Texts and pictures in CLIP's common space."""

import torch
from torch import Tensor


def text_embedding(clip, text: str) -> Tensor:
    """[1, width] the text in the space of pictures. The host itself leaves out this step for SD1's text model.

    Raises ValueError for a text model without the projection, in whose place the host has put the identity.
    """
    pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled="unprojected")[1]
    parts = [getattr(part, "text_projection", None) for part in clip.cond_stage_model.modules()]
    for part in parts:
        if isinstance(part, torch.nn.Linear) and pooled is not None and part.in_features == pooled.shape[-1]:
            if not torch.equal(part.weight.float(), torch.eye(*part.weight.shape, device=part.weight.device)):
                return part(pooled.float()).float().cpu()
    raise ValueError(
        "This CLIP came without its projection into the space of pictures (checkpoints of SD1.5 and SD2 leave it out). "
        "Load the text model that belongs to the clip_vision by itself, with Load CLIP."
    )


def image_embedding(clip_vision, images: Tensor) -> Tensor:
    """[B, width] IMAGEs [B, H, W, 3] in the space of texts, float32 on the CPU.

    Raises ValueError for an encoder without a projection into that space (DINO and the like).
    """
    found = clip_vision.encode_image(images)["image_embeds"]
    if found is None:
        raise ValueError("This clip_vision model has no space in common with texts. Load one of CLIP's kind.")
    return found.float().cpu()


def check_belong(image: Tensor, text: Tensor) -> None:
    """Raises ValueError if embeddings come from models of different widths."""
    if image.shape[-1] != text.shape[-1]:
        raise ValueError("`clip` and `clip_vision` do not belong together: their embeddings differ in size.")
