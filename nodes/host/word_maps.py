"""Where words look while an edit is sampled: in the source and in the edit, gathered from their cross-attention."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...mirror_ops.attention.prompt_to_prompt import token_mask, word_heat
from .attention import probabilities
from .branches import Branch, branch_of
from .reference_pass import ReferencePass, layer_of
from .words import alike, encoding, length, positions

COARSEST = 8  # cells on the longer side of the layers whose maps tell places apart


@dataclass(frozen=True, eq=False)
class Texts:
    """Two prompts, as their tokens lie along the embeddings that attention reads."""

    clip: object
    source: str
    target: str
    length: int  # of the source's embedding, padding included
    target_length: int
    encoded: tuple[Tensor, Tensor]  # [1, length, width] each

    @classmethod
    def of(cls, clip, source: str, target: str) -> "Texts":
        """The two texts as this CLIP encodes them."""
        encodings = encoding(clip, source), encoding(clip, target)
        return cls(clip, source, target, length(clip, source), length(clip, target), encodings)

    def check(self, source: Tensor | None, positive: Tensor | None = None) -> None:
        """Raises ValueError, saying which text, if one is not what the walk's prompts were encoded from.

        source, positive [B or 1, tokens, width]: the prompt of the picture, and the edited one; None if not known.
        """
        given = (
            ("source_text", self.source, source, "the picture's prompt (the mirror's, or `source`)"),
            ("target_text", self.target, positive, "`positive` of the sampler (`target` of an edit node)"),
        )
        for encoded, (name, text, prompt, of) in zip(self.encoded, given, strict=True):
            if prompt is not None and not alike(encoded, prompt):
                raise ValueError(
                    f"`{name}` (`{text}`) is not the text that {of} was encoded from, with the connected `clip`: "
                    "words would be looked up in the wrong places. Give the same text and CLIP."
                )

    def tokens(self, words: str) -> tuple[list[int], list[int]]:
        """Positions of a word in the source and in the target. ValueError, listing the tokens, if it is in neither."""
        found = [_found(self.clip, text, words) for text in (self.source, self.target)]
        if not any(found):
            positions(self.clip, self.source, [words])
        return found[0], found[1]

    def masks(self, words: list[str]) -> tuple[Tensor, Tensor]:
        """([length], [target_length]) 1 at the tokens of all these words. Raises as `tokens`."""
        found = [self.tokens(word) for word in words]
        source, target = ([place for one in found for place in one[side]] for side in (0, 1))
        return token_mask(source, self.length), token_mask(target, self.target_length)


def _found(clip, text: str, words: str) -> list[int]:
    try:
        return positions(clip, text, [words])[0]
    except ValueError:
        return []


def names(text: str) -> list[str]:
    """Words and phrases, one a line or between commas."""
    return [name.strip() for line in text.splitlines() for name in line.split(",") if name.strip()]


def attention_maps(q: Tensor, k: Tensor, extra_options: dict, length: int) -> Tensor:
    """[B, heads, pixels, length] the probabilities of cross-attention, float32.

    The host repeats a prompt to the length of one that stands beside it in a batch; the repetitions are left out, which
    changes nothing. Raises ValueError if attention reads another prompt than one of `length` tokens.
    """
    tokens = k.shape[1]
    copies = k.unflatten(1, (-1, length)) if tokens % length == 0 else None
    if tokens != length and (copies is None or not torch.allclose(copies, copies[:, :1], rtol=0.01, atol=1e-3)):
        raise ValueError(
            f"The prompt in the sampler has {tokens} tokens, the text in the attention control {length}. Give both the "
            "same text."
        )
    return probabilities(q, k[:, :length], extra_options["n_heads"])


@dataclass(frozen=True, eq=False)
class WordHeat:
    """Gathers what words draw, layer by layer, in `reference.notes`.

    source [words, length], target [words, target_length]: 1 at each word's tokens.
    """

    source: Tensor
    target: Tensor

    def gathers(self, reference: ReferencePass, extra_options: dict) -> bool:
        """Whether this layer counts: those of half the latent's size or less."""
        return max(_size(extra_options)) <= math.ceil(_longest(reference) / 2)

    def gather(self, reference: ReferencePass, extra_options: dict, source: Tensor, target: Tensor) -> None:
        """Takes in a layer's maps of both prompts, [B, heads, pixels, tokens], at this step."""
        maps = ((source, self.source), (target, self.target))
        heats = [word_heat(m, words).unflatten(-1, _size(extra_options)) for m, words in maps]
        notes = reference.notes.setdefault((self, branch_of(extra_options) is Branch.PROBE), {})
        notes[(reference.step, *layer_of(extra_options))] = heats

    def mean(
        self, reference: ReferencePass, wanted: Callable[[int], bool], probed: bool = False
    ) -> tuple[Tensor, Tensor] | None:
        """([B, words, h, w] of the source, of the target) over the layers of the wanted steps; None if there are none.
        `probed`: of the looks that find where the edit acts, which are no part of it.

        The papers' layers of 16 x 16 at a latent of 64 x 64 are in general those of a quarter of its size, or of 8 for
        small latents, where less would not tell places apart; of a network without such, the smallest.
        """
        heats = [heat for (step, *_), heat in reference.notes.get((self, probed), {}).items() if wanted(step)]
        if not heats:
            return None
        quarter = max(math.ceil(_longest(reference) / 4), COARSEST)
        sides = {max(heat[0].shape[-2:]) for heat in heats}
        side = max((s for s in sides if s <= quarter), default=min(sides))
        chosen = [heat for heat in heats if max(heat[0].shape[-2:]) == side]
        return tuple(torch.stack([heat[n] for heat in chosen]).mean(dim=0) for n in (0, 1))


def _size(extra_options: dict) -> tuple[int, int]:
    return tuple(extra_options["activations_shape"][-2:])


def _longest(reference: ReferencePass) -> int:
    return max(reference.size)
