"""Prompt-to-prompt: give the edit the attention maps of the source, word by word.

Hertz et al., "Prompt-to-Prompt Image Editing with Cross Attention Control", ICLR 2023. Attention probabilities M
[..., pixels, tokens] of the source prompt replace those of the target prompt: token by token where a word was swapped
(`replacement`), by alignment where words were added (`refinement`), and multiplied where a word is to weigh more
(`reweighting`), while the windows of `schedule` last. Self-attention maps are simply taken over for a part of the walk.
`word_area` reads from the maps where named words are. Which token belongs to which word comes in as a `Prompt`, and
named words as lists of token positions; no tokenizer is needed here.
"""

from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d


class Prompt(NamedTuple):
    """A tokenized prompt: its token ids with begin and end marks, without padding, and each word's span in them."""

    tokens: list[int]
    words: list[tuple[int, int]]  # [start, end) of each word, in order


def paired(source: Prompt, target: Prompt) -> tuple[Prompt, Prompt]:
    """The same prompts with words joined so that they correspond one for one, as `replacement` needs them.

    Prompts of equally many words are paired by place, as in the paper. Otherwise a run of words that stands in place
    of another run counts as one ("cat" - "golden retriever"). Raises ValueError if words are only added or removed.
    """
    if len(source.words) == len(target.words):
        return source, target
    before, after = ([tuple(p.tokens[start:end]) for start, end in p.words] for p in (source, target))
    spans = [], []
    for kind, i, i_end, j, j_end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            spans[0].extend(source.words[i:i_end])
            spans[1].extend(target.words[j:j_end])
        elif kind == "replace":
            spans[0].append((source.words[i][0], source.words[i_end - 1][1]))
            spans[1].append((target.words[j][0], target.words[j_end - 1][1]))
        else:
            raise ValueError("Words were added to the prompt or removed; replacing cannot pair them. Use refine.")
    return Prompt(source.tokens, spans[0]), Prompt(target.tokens, spans[1])


def replacement(
    source: Prompt, target: Prompt, length: int = 77, target_length: int | None = None, *, parity: bool = False
) -> Tensor:
    """W [length, target_length] such that M_source @ W are the maps for the target's tokens, words swapped one for one.

    Tokens of a swapped word share its map: equally many are matched one to one, otherwise each target token gets
    1 / n of the sum over the source's. All other tokens keep their own, moved along where the swap changed the count.
    With `parity` the tokens after the last swapped word are not moved along, as in the official code, and so get a
    neighbour's map. Otherwise rows sum to 1, so no attention is lost.
    Raises ValueError if the prompts differ in the number of words (see `paired`), or exceed their length.
    """
    target_length = length if target_length is None else target_length
    _check(source, length)
    _check(target, target_length)
    if len(source.words) != len(target.words):
        raise ValueError(
            f"Replacing words needs prompts of equally many words; the source has {len(source.words)}, the target "
            f"{len(target.words)}. Use refinement for added words."
        )
    weights = torch.zeros(length, target_length)
    i = j = 0
    for (start, end), (start_to, end_to) in _last_swapped(source, target) if parity else _spans(source, target):
        _match_one_to_one(weights, range(i, start), range(j, start_to))
        if end - start == end_to - start_to:
            _match_one_to_one(weights, range(start, end), range(start_to, end_to))
        else:
            weights[start:end, start_to:end_to] = 1 / (end_to - start_to)
        i, j = end, end_to
    if parity:
        rest = range(j, j + min(length - i, target_length - j))
        _match_one_to_one(weights, rest, rest)
        return weights
    _match_one_to_one(weights, range(i, length), range(j, target_length))
    weights[weights.sum(dim=1) == 0, -1] = 1  # padding pushed off the end
    return weights


def _spans(source: Prompt, target: Prompt) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    return list(zip(source.words, target.words, strict=True))


def _last_swapped(source: Prompt, target: Prompt) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The pairs of words up to the last that differ."""
    pairs = _spans(source, target)
    differ = [n for n, (s, t) in enumerate(pairs) if source.tokens[slice(*s)] != target.tokens[slice(*t)]]
    return pairs[: differ[-1] + 1] if differ else []


def _match_one_to_one(weights: Tensor, rows: range, columns: range) -> None:
    for i, j in zip(rows, columns, strict=False):
        weights[i, j] = 1


def refinement(
    source: Prompt, target: Prompt, length: int = 77, target_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """(mapper, alpha), both [target_length]: the source token that each target token comes from; and 1, or 0 if new.

    Needleman-Wunsch alignment of the token ids, gap 0, match 1, mismatch -1; among equals a gap in the source before
    one in the target before a pair, as in the official code. New tokens have mapper 0 and keep their own map. Padding
    maps to itself where the source has as much. Raises ValueError for prompts longer than their length.
    """
    target_length = length if target_length is None else target_length
    _check(source, length)
    _check(target, target_length)
    mapper = torch.arange(target_length)
    alpha = (mapper < length).float()
    mapper = mapper.clamp(max=length - 1)
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


def token_mask(tokens: Iterable[int], length: int = 77) -> Tensor:
    """[length] 1 at the given positions, else 0."""
    mask = torch.zeros(length)
    mask[list(tokens)] = 1
    return mask


def reweighting(of: Iterable[tuple[list[int], float]], length: int = 77) -> Tensor:
    """[length] factors for the maps: for each (tokens, value) the value at these tokens, elsewhere 1.

    Maps are multiplied and not normalised again.
    """
    factors = torch.ones(length)
    for tokens, value in of:
        factors[tokens] = value
    return factors


def schedule(
    steps: int,
    window: tuple[float, float] = (0.0, 0.8),
    of: Iterable[tuple[list[int], tuple[float, float]]] = (),
    length: int = 77,
) -> Tensor:
    """alpha [steps, length]: 1 in the steps and at the tokens where the source's cross-attention is taken over.

    A window (start, end) in fractions of the walk covers steps int(start (steps + 1)) up to int(end (steps + 1)), end
    excluded, as in the official code. `of` gives tokens windows of their own. Raises ValueError for a window outside
    [0, 1] or backwards.
    """
    alpha = torch.zeros(steps, length)
    alpha[_steps(window, steps)] = 1
    for tokens, own in of:
        alpha[:, tokens] = 0
        inside = torch.zeros(steps, 1)
        inside[_steps(own, steps)] = 1
        alpha[:, tokens] = inside
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


def word_heat(maps: Tensor, tokens: Tensor) -> Tensor:
    """[B, words, pixels] what the tokens of each word draw: maps [B, heads, pixels, length], tokens [words, length].

    Summed over a word's tokens and averaged over heads.
    """
    return torch.einsum("bhpt,nt->bnp", maps, tokens.to(maps)) / maps.shape[1]


def word_area(heat: Tensor, size: tuple[int, int], threshold: float = 0.3, pool: bool = True) -> Tensor:
    """[B, 1, *size] True where words draw attention: LocalBlend's mask of one branch.

    heat [B, 1, h, w], of `word_heat`, averaged over layers and steps (the paper's: all cross-attention of 16 x 16).
    Widened by 3 x 3 max-pooling if `pool`, resized to `size` by nearest neighbour, relative to its largest value,
    above `threshold`.
    """
    area = max_pool2d(heat, 3, stride=1, padding=1) if pool else heat
    area = interpolate(area, size=size)
    return area > threshold * area.amax(dim=(2, 3), keepdim=True)


def local_blend(source: Tensor, edited: Tensor, mask: Tensor) -> Tensor:
    """x_source + mask (x_edited - x_source), latents [B, C, H, W] at one level, mask [B, 1, H, W].

    The paper's mask is the union of the source's and the target's `word_area`, less the area of words to be left alone
    (`word_area` with pool=False).
    """
    return source + mask.to(source) * (edited - source)


def _check(prompt: Prompt, length: int) -> None:
    if len(prompt.tokens) > length:
        raise ValueError(f"A prompt of {len(prompt.tokens)} tokens does not fit in attention maps of {length}.")
    ends = [0, *(edge for word in prompt.words for edge in word), len(prompt.tokens)]
    if ends != sorted(ends) or any(start == end for start, end in prompt.words):
        raise ValueError(f"The spans of words must be in order, apart and not empty; these are {prompt.words}.")
