"""How alike two pictures are as a network sees them. Features come in as tensors; any encoder will do."""

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize


def self_similarity(features: Tensor) -> Tensor:
    """[B, N, N] cosine of each of N places with each other, from features [B, N, C]."""
    unit = normalize(features, dim=-1)
    return unit @ unit.mT


def structure_distance(features: Tensor, reference: Tensor) -> Tensor:
    """[B] mean squared difference of two self-similarities, from features [B, N, C]: layout, whatever its appearance.

    Splice (Tumanyan et al., CVPR 2022, section 3), with the keys of DINO ViT-B/8's last block as features. Published
    tables give 1000 times this value, and PIE-Bench's were computed on inputs that were not divided by 255.
    """
    return (self_similarity(features) - self_similarity(reference)).square().mean(dim=(1, 2))


def clip_score(image: Tensor, text: Tensor) -> Tensor:
    """[B] 100 max(cos, 0) of image and text embeddings [B, C] (Hessel et al., EMNLP 2021, without their factor 2.5)."""
    return 100 * cosine_similarity(image, text, dim=-1).clamp(min=0)


def directional_similarity(source: Tensor, edited: Tensor, source_text: Tensor, target_text: Tensor) -> Tensor:
    """[B] cosine between what changed in the picture and what changed in the words, of embeddings [B, C].

    Embeddings are brought to unit length before they are subtracted, as CycleDiffusion's evaluator does (Wu & De la
    Torre 2023; Gal et al. 2022, eq. 2).
    """
    change = normalize(edited, dim=-1) - normalize(source, dim=-1)
    return cosine_similarity(change, normalize(target_text, dim=-1) - normalize(source_text, dim=-1), dim=-1)


def prefers_target(image: Tensor, source_text: Tensor, target_text: Tensor) -> Tensor:
    """[B] whether a picture is nearer to the target's words than to the source's: CLIP-Acc (Parmar et al. 2023)."""
    return cosine_similarity(image, target_text, dim=-1) > cosine_similarity(image, source_text, dim=-1)
