"""Edit directions: what to add to a prompt's embedding so that "cat" becomes "dog".

pix2pix-zero (Parmar et al. 2023, section 3.1): encode many sentences about the source and about the target, average
each set over its sentences, subtract. Token positions are kept; nothing is pooled or normalised.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..storage.pt_file import read_pt
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

    def for_pooled(self, pooled: Tensor) -> Tensor | float:
        """What to add to a pooled prompt [..., width], on its device: 0 if the direction has no pooled part.

        Raises ValueError if the direction comes from another text encoder.
        """
        if self.pooled is None:
            return 0.0
        if self.pooled.shape[-1] != pooled.shape[-1]:
            raise ValueError(
                f"The direction has {self.pooled.shape[-1]} pooled numbers and the prompt {pooled.shape[-1]}: they "
                "come from different text encoders. Make the direction with this model's CLIP."
            )
        return self.pooled.to(pooled)


def ramped(strength: float, ramp: float, until: float, progress: float) -> float:
    """How much of an edit to add at `progress` (0 ... 1) of the walk: strength + ramp x progress, and from `until` on
    the plain strength again. MirrorDiffusion's code: strength 0.65, ramp 1.2, until 2/3."""
    return strength + (ramp * progress if progress < until else 0.0)


class SentenceMean:
    """The mean encoding of one side's sentences, added one by one. Only sums are kept, not the encodings."""

    def __init__(self, encodings: Iterable[Tensor] = ()):
        self.count = 0
        self.first: Tensor | None = None  # [1, ...]
        self._sums: list = [0.0, 0.0]  # of the even and of the odd sentences, [1, ...] float64
        for encoding in encodings:
            self.add(encoding)

    def add(self, encoding: Tensor) -> None:
        """One more sentence, [1, ...]. Raises ValueError unless it has the shape of those before."""
        encoding = encoding.detach().to("cpu", torch.float64)
        if self.first is None:
            self.first = encoding
        _check_shapes(self.first, encoding)
        self._sums[self.count % 2] = self._sums[self.count % 2] + encoding
        self.count += 1

    @property
    def halves(self) -> tuple[Tensor, Tensor]:
        """[1, ...] float64 the means of the even and of the odd sentences, of which there must be two or more."""
        return self._sums[0] / ((self.count + 1) // 2), self._sums[1] / (self.count // 2)

    def to(self, target: "SentenceMean") -> Tensor:
        """[1, ...] float32 the mean of `target` minus this one. Raises ValueError if sentences differ in length."""
        _check_shapes(self.first, target.first)
        return (sum(target._sums) / target.count - sum(self._sums) / self.count).float()


def _check_shapes(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise ValueError(
            f"The sentences encode to different lengths ({sorted({one.shape[1], other.shape[1]})} tokens). Use shorter "
            "sentences."
        )


def agreement(source: SentenceMean, target: SentenceMean) -> float:
    """Cosine between the directions of the even and the odd sentences: near 1 a direction, near 0 noise.

    NaN where a side has only one sentence, because there are no halves to compare.
    """
    if min(source.count, target.count) < 2:
        return math.nan
    even, odd = (after - before for before, after in zip(source.halves, target.halves, strict=True))
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
    source, target = (_sentences_of(path) for path in (source_path, target_path))
    if source.shape[1:] != target.shape[1:]:
        raise ValueError(f"The two files do not match: {list(source.shape)} and {list(target.shape)}.")
    counts = "precomputed" if len(source) == len(target) == 1 else f"{len(source)} and {len(target)} (precomputed)"
    meta = {"source": Path(source_path).stem, "target": Path(target_path).stem, "sentences": counts}
    return EditDirection(target.mean(dim=0, keepdim=True) - source.mean(dim=0, keepdim=True), meta=meta)


def _sentences_of(path: str | Path) -> Tensor:
    """[N, tokens, width] float32."""
    value = read_pt(path)
    if value.ndim not in (2, 3):
        raise ValueError(f"{Path(path).name} does not hold one tensor [1 or sentences, tokens, width].")
    return value if value.ndim == 3 else value[None]
