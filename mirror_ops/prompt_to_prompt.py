"""Prompt-to-prompt: give the edit the attention maps of the source, word by word.

Hertz et al., "Prompt-to-Prompt Image Editing with Cross Attention Control", ICLR 2023. Attention probabilities M
[..., pixels, tokens] of the source prompt replace those of the target prompt: token by token where a word was swapped
(`replacement`), by alignment where words were added (`refinement`), and multiplied where a word is to weigh more
(`reweighting`), while the windows of `schedule` last. Self-attention maps are simply taken over for a part of the walk.
`word_area` reads from the maps where named words are. Which token belongs to which word comes in as a `Prompt`; no
tokenizer is needed here.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d


class Prompt(NamedTuple):
    """A tokenized prompt: its token ids with begin and end marks, without padding, and each word's span in them."""

    tokens: list[int]
    words: list[tuple[int, int]]  # [start, end) of each word, in order


def replacement(source: Prompt, target: Prompt, length: int = 77) -> Tensor:
    """W [length, length] such that M_source @ W are the maps for the target's tokens, words swapped one for one.

    Tokens of a swapped word share its map: equally many are matched one to one, otherwise each target token gets
    1 / n of the sum over the source's. All other tokens keep their own, moved along where the swap changed the count.
    (The official code does not move the tokens after the last swapped word, and so gives them a neighbour's map.)
    Rows sum to 1, so no attention is lost. Raises ValueError if the prompts differ in words, or exceed `length`.
    """
    _check(source, length)
    _check(target, length)
    if len(source.words) != len(target.words):
        raise ValueError(
            f"Replacing words needs prompts of equally many words; the source has {len(source.words)}, the target "
            f"{len(target.words)}. Use refinement for added words."
        )
    weights = torch.zeros(length, length)
    i = j = 0
    for (start, end), (start_to, end_to) in zip(source.words, target.words, strict=True):
        _match_one_to_one(weights, range(i, start), range(j, start_to))
        if end - start == end_to - start_to:
            _match_one_to_one(weights, range(start, end), range(start_to, end_to))
        else:
            weights[start:end, start_to:end_to] = 1 / (end_to - start_to)
        i, j = end, end_to
    _match_one_to_one(weights, range(i, length), range(j, length))
    weights[weights.sum(dim=1) == 0, -1] = 1  # padding pushed off the end
    return weights


def _match_one_to_one(weights: Tensor, rows: range, columns: range) -> None:
    for i, j in zip(rows, columns, strict=False):
        weights[i, j] = 1


def refinement(source: Prompt, target: Prompt, length: int = 77) -> tuple[Tensor, Tensor]:
    """(mapper, alpha), both [length]: the source token that each target token comes from, and 1, or 0 if it is new.

    Needleman-Wunsch alignment of the token ids, gap 0, match 1, mismatch -1; among equals a gap in the source before
    one in the target before a pair, as in the official code. New tokens have mapper 0 and keep their own map. Padding
    maps to itself. Raises ValueError for prompts longer than `length`.
    """
    _check(source, length)
    _check(target, length)
    mapper, alpha = torch.arange(length), torch.ones(length)
    for j, i in enumerate(align(source.tokens, target.tokens)):
        mapper[j] = 0 if i is None else i
        alpha[j] = float(i is not None)
    return mapper, alpha


def align(source: list[int], target: list[int]) -> list[int | None]:
    """For each target token the index of the source token it is aligned to, or None."""
    rows, columns = len(source) + 1, len(target) + 1
    score = [[0] * columns for _ in range(rows)]
    for i in range(1, rows):
        for j in range(1, columns):
            pair = score[i - 1][j - 1] + (1 if source[i - 1] == target[j - 1] else -1)
            score[i][j] = max(score[i][j - 1], score[i - 1][j], pair)
    aligned: list[int | None] = [None] * len(target)
    i, j = len(source), len(target)
    while i > 0 and j > 0:
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            aligned[j] = i
    return aligned


def word_tokens(prompt: Prompt, words: Iterable[int], length: int = 77) -> Tensor:
    """[length] 1 at the tokens of the given words (indices into prompt.words), else 0. IndexError for no such word."""
    mask = torch.zeros(length)
    for word in words:
        start, end = _span(prompt, word)
        mask[start:end] = 1
    return mask


def reweighting(prompt: Prompt, of: Mapping[int, float], length: int = 77) -> Tensor:
    """[length] factors for the maps: the given value at each named word's tokens, else 1.

    Maps are multiplied and not normalised again. IndexError for a word that is not in the prompt.
    """
    factors = torch.ones(length)
    for word, value in of.items():
        start, end = _span(prompt, word)
        factors[start:end] = value
    return factors


def schedule(
    steps: int,
    window: tuple[float, float] = (0.0, 0.8),
    prompt: Prompt | None = None,
    of: Mapping[int, tuple[float, float]] | None = None,
    length: int = 77,
) -> Tensor:
    """alpha [steps, length]: 1 in the steps and at the tokens where the source's cross-attention is taken over.

    A window (start, end) in fractions of the walk covers steps int(start (steps + 1)) up to int(end (steps + 1)), end
    excluded, as in the official code. `of` gives words of `prompt` windows of their own. Raises ValueError for a window
    outside [0, 1] or backwards.
    """
    alpha = torch.zeros(steps, length)
    alpha[_steps(window, steps)] = 1
    for word, own in (of or {}).items():
        start, end = _span(prompt, word)
        alpha[:, start:end] = 0
        alpha[_steps(own, steps), start:end] = 1
    return alpha


def _steps(window: tuple[float, float], steps: int) -> slice:
    start, end = window
    if not 0 <= start <= end <= 1:
        raise ValueError(f"A window of steps runs from start to end within 0 ... 1, not from {start} to {end}.")
    return slice(int(start * (steps + 1)), int(end * (steps + 1)))


def replaced(source: Tensor, weights: Tensor) -> Tensor:
    """Maps [..., pixels, tokens] for the target's tokens under `replacement`."""
    return source @ weights.to(source)


def refined(source: Tensor, target: Tensor, mapper: Tensor, alpha: Tensor) -> Tensor:
    """Maps [..., pixels, tokens] under `refinement`: the source's for aligned tokens, the target's own for new ones."""
    return injected(source[..., mapper.to(source.device)], target, alpha)


def injected(control: Tensor, target: Tensor, alpha: Tensor) -> Tensor:
    """alpha * control + (1 - alpha) * target, with this step's row alpha [tokens] of `schedule`."""
    alpha = alpha.to(target)
    return alpha * control + (1 - alpha) * target


def self_attention_taken(step: int, steps: int, fraction: float, pixels: int, most: int = 32 * 32) -> bool:
    """Whether the source's self-attention replaces the target's: the first part of the walk, and small maps only."""
    return step < int(steps * fraction) and pixels <= most


def word_area(maps: Tensor, tokens: Tensor, size: tuple[int, int], threshold: float = 0.3, pool: bool = True) -> Tensor:
    """[B, 1, *size] True where words draw attention: LocalBlend's mask of one branch.

    maps [B, K, h, w, tokens] of K layers and heads (the paper's: all cross-attention of 16 x 16), tokens [tokens] from
    `word_tokens`. The map summed over tokens and averaged over K, widened by 3 x 3 max-pooling if `pool`, resized to
    `size` by nearest neighbour, relative to its largest value, above `threshold`.
    """
    area = (maps * tokens.to(maps)).sum(dim=-1).mean(dim=1, keepdim=True)  # [B, 1, h, w]
    if pool:
        area = max_pool2d(area, 3, stride=1, padding=1)
    area = interpolate(area, size=size)
    return area > threshold * area.amax(dim=(2, 3), keepdim=True)


def local_blend(source: Tensor, edited: Tensor, mask: Tensor) -> Tensor:
    """x_source + mask (x_edited - x_source), latents [B, C, H, W] at one level, mask [B, 1, H, W].

    The paper's mask is the union of the source's and the target's `word_area`, less the area of words to be left alone
    (`word_area` with pool=False).
    """
    return source + mask.to(source) * (edited - source)


def _span(prompt: Prompt, word: int) -> tuple[int, int]:
    if not 0 <= word < len(prompt.words):
        raise IndexError(f"There is no word {word} in a prompt of {len(prompt.words)} words.")
    return prompt.words[word]


def _check(prompt: Prompt, length: int) -> None:
    if len(prompt.tokens) > length:
        raise ValueError(f"A prompt of {len(prompt.tokens)} tokens does not fit in attention maps of {length}.")
    ends = [0, *(edge for word in prompt.words for edge in word), len(prompt.tokens)]
    if ends != sorted(ends) or any(start == end for start, end in prompt.words):
        raise ValueError(f"The spans of words must be in order, apart and not empty; these are {prompt.words}.")
