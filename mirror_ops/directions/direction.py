"""Edit directions: what to add to a prompt's embedding so that "cat" becomes "dog".

pix2pix-zero (Parmar et al. 2023, section 3.1): encode many sentences about the source and about the target, average
each set over its sentences, subtract. Token positions are kept; nothing is pooled or normalised.
"""

import json
import math
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..storage.tensor_file import FileKind

SINGLE = (torch.float32,)
FILE = FileKind(
    "mirror-direction", 1, "direction", {"delta": (3, SINGLE), "pooled": (2, SINGLE)}, optional=frozenset({"pooled"})
)
NOISE_AGREEMENT = 0.5


@dataclass(frozen=True, eq=False)
class EditDirection:
    """delta [1, tokens, width] and, for models with a pooled prompt, pooled [1, pooled width]; float32 on the CPU."""

    delta: Tensor
    pooled: Tensor | None = None
    meta: dict = field(default_factory=dict)  # "source", "target": the words; "sentences": how many on each side

    def for_tokens(self, tokens: int, width: int) -> Tensor:
        """[1, tokens, width] for a prompt of that shape: longer prompts are changed in their first chunk only.

        Raises ValueError if the direction comes from another text encoder, or does not fit.
        """
        if self.delta.shape[2] != width:
            raise ValueError(
                f"The direction has {self.delta.shape[2]} numbers a token and the prompt {width}: they come from "
                "different text encoders. Make the direction with this model's CLIP."
            )
        missing = tokens - self.delta.shape[1]
        if missing < 0:
            raise ValueError(f"The direction has {self.delta.shape[1]} tokens and the prompt only {tokens}.")
        return torch.nn.functional.pad(self.delta, (0, 0, 0, missing))


def ramped(strength: float, ramp: float, until: float, progress: float) -> float:
    """How much of an edit to add at `progress` (0 ... 1) of the walk: strength + ramp x progress, and from `until` on
    the plain strength again. MirrorDiffusion's code: strength 0.65, ramp 1.2, until 2/3."""
    return strength + (ramp * progress if progress < until else 0.0)


def mean_difference(source: list[Tensor], target: list[Tensor]) -> Tensor:
    """[1, ...] mean of the target sentences minus mean of the source sentences, each a list of [1, ...] encodings.

    Raises ValueError if the sentences do not all have one shape (some are longer than the encoder's window).
    """
    shapes = {tuple(e.shape) for e in [*source, *target]}
    if len(shapes) > 1:
        raise ValueError(
            f"The sentences encode to different lengths ({sorted(s[1] for s in shapes)} tokens). Use shorter sentences."
        )
    return torch.stack(target).mean(dim=0) - torch.stack(source).mean(dim=0)


def agreement(source: list[Tensor], target: list[Tensor]) -> float:
    """Cosine between the directions of the even and the odd sentences: near 1 a direction, near 0 noise.

    NaN where a side has only one sentence, because there are no halves to compare.
    """
    if min(len(source), len(target)) < 2:
        return math.nan
    even = mean_difference(source[::2], target[::2])
    odd = mean_difference(source[1::2], target[1::2])
    return cosine_similarity(even.flatten(), odd.flatten(), dim=0).item()


def direction_report(direction: EditDirection, halves_agree: float, swap: Tensor | None = None) -> str:
    """Plain words about a direction: its size at each token, and whether its two halves agree.

    `swap` [1, tokens, width] is the difference of just one pair of sentences, to be seen beside it.
    """
    norms = direction.delta[0].norm(dim=-1)
    shown = " ".join(f"{n:.1f}" for n in norms[:16].tolist())
    lines = [
        " -> ".join(shorten(direction.meta.get(side, "?"), 60, placeholder=" ...") for side in ("source", "target")),
        f"sentences: {direction.meta.get('sentences', '?')}",
        f"norm of the first {min(16, len(norms))} of {len(norms)} tokens: {shown}",
    ]
    if direction.pooled is not None:
        lines.append(f"norm of the pooled part: {direction.pooled.norm():.2f}")
    if swap is not None:
        alike = cosine_similarity(swap.flatten().cpu(), direction.delta.flatten(), dim=0)
        lines.append(
            f"the first pair alone (word swap): norm {swap.norm():.1f} against {direction.delta.norm():.1f}, "
            f"cosine {alike:.2f}"
        )
    if math.isnan(halves_agree):
        lines.append("One sentence a side: there are no halves to compare. Several sentences average out the wording.")
        return "\n".join(lines)
    lines.append(f"agreement of the two halves of the sentences: {halves_agree:.2f} (1 is perfect, 0 is noise)")
    if halves_agree < NOISE_AGREEMENT:
        lines.append("WARNING: the halves disagree, so this direction is mostly noise. Use more sentences.")
    return "\n".join(lines)


def save_direction(direction: EditDirection, path: str | Path) -> None:
    """Writes one safetensors file; `load_direction` gives back an equal direction. Raises ValueError if it cannot."""
    FILE.write(path, {"delta": direction.delta, "pooled": direction.pooled}, json.dumps(direction.meta))


def load_direction(path: str | Path) -> EditDirection:
    """Reads a file of `save_direction`. Raises ValueError if it is none, a damaged one, or of another version."""
    facts, tensors = FILE.read(path)
    if not all(isinstance(word, str) for word in facts.values()):
        raise ValueError(f"{Path(path).name} is damaged: it does not say in words where its direction leads.")
    return EditDirection(**tensors, meta=facts)


def load_pt_pair(source_path: str | Path, target_path: str | Path) -> EditDirection:
    """A direction from the pairs of .pt files that pix2pix-zero and MirrorDiffusion ship; read as weights only.

    Each holds the mean encoding [1, tokens, width] of one side, or the encodings [N, tokens, width] of its N
    sentences, in any floating-point precision. Raises ValueError if a file holds anything else.
    """
    source, target = (_read_pt(path) for path in (source_path, target_path))
    if source.shape[1:] != target.shape[1:]:
        raise ValueError(f"The two files do not match: {list(source.shape)} and {list(target.shape)}.")
    counts = "precomputed" if len(source) == len(target) == 1 else f"{len(source)} and {len(target)} (precomputed)"
    meta = {"source": Path(source_path).stem, "target": Path(target_path).stem, "sentences": counts}
    return EditDirection(target.mean(dim=0, keepdim=True) - source.mean(dim=0, keepdim=True), meta=meta)


def _read_pt(path: str | Path) -> Tensor:
    """[N, tokens, width] float32."""
    name = Path(path).name
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{name} is damaged, or holds more than tensors: it is not read.") from error
    if not isinstance(value, Tensor) or value.ndim not in (2, 3) or not value.is_floating_point():
        raise ValueError(f"{name} does not hold one tensor [1, tokens, width] or [sentences, tokens, width].")
    value = value.detach().float()
    if value.numel() == 0 or not torch.isfinite(value).all():
        raise ValueError(f"{name} holds numbers that are not finite, or none at all.")
    return value if value.ndim == 3 else value[None]
