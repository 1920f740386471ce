"""Which tokens of a prompt belong to which words, by the host's own tokenizer."""

import torch
from comfy.sd1_clip import escape_important, token_weights, unescape_important
from torch import Tensor

from ...mirror_ops.attention.prompt_to_prompt import Prompt

ALIKE = 0.05  # relative distance of two encodings of a token, in whatever precision, of one text
EMBEDDING = -1  # in place of the id of a learned embedding


def positions(clip, text: str, words: list[str]) -> list[list[int]]:
    """For each of `words` (or phrases) the positions of its tokens along the embedding of `text`, all occurrences.

    Raises ValueError for a word that the text does not contain.
    """
    tokens = _word_tokens(clip, text)
    found = []
    for word in words:
        wanted = [token for _, token in _word_tokens(clip, word)]
        ids = [token for _, token in tokens]
        begins = [i for i in range(len(ids) - len(wanted) + 1) if wanted and ids[i : i + len(wanted)] == wanted]
        if not begins:
            raise ValueError(
                f"`{word}` is not in the text `{text}`. Name words as they stand there, one a line. "
                f"The text's tokens are: {', '.join(pieces(clip, text))}."
            )
        found.append([tokens[i + k][0] for i in begins for k in range(len(wanted))])
    return found


def tokenized(clip, text: str) -> Prompt:
    """The text as prompt-to-prompt reads it: token ids as they lie along the embedding, and the span of each word.

    Words are what stands between spaces; where the tokenizer mixes them up (learned embeddings), what it takes for one.
    Marks and padding between the chunks of a long text count as tokens, padding after the last does not.
    """
    tokens = _word_tokens(clip, text)
    flat = [EMBEDDING if isinstance(t, Tensor) else int(t) for chunk in _chunks(clip, text) for t, _, _ in chunk]
    end = max((position for position, _ in tokens), default=0) + 2
    spans, begin = [], 0
    for count in _word_lengths(clip, text, [token for _, token in tokens]):
        places = [position for position, _ in tokens[begin : begin + count]]
        begin += count
        breaks = [k for k in range(1, len(places)) if places[k] != places[k - 1] + 1]  # a word cut by a chunk's end
        edges = [0, *breaks, len(places)]
        spans += [(places[a], places[b - 1] + 1) for a, b in zip(edges, edges[1:], strict=False)]
    return Prompt(flat[:end], spans)


def _word_lengths(clip, text: str, ids: list[int | None]) -> list[int]:
    """How many tokens each word has."""
    plain = "".join(unescape_important(part) for part, _ in token_weights(escape_important(text), 1.0))
    words = [[token for _, token in _word_tokens(clip, word)] for word in plain.split()]
    if [token for word in words for token in word] == ids:
        return [len(word) for word in words if word]
    lengths, open_word = [], False
    for piece in pieces(clip, text):
        starts = not open_word or piece.startswith(("\u2581", "\u0120"))
        lengths = [*lengths, 1] if starts else [*lengths[:-1], lengths[-1] + 1]
        open_word = not piece.endswith("</w>")
    return lengths


def pieces(clip, text: str) -> list[str]:
    """The tokens of the text as the tokenizer writes them (CLIP's end a word with `</w>`)."""
    ids = [token for _, token in _word_tokens(clip, text)]
    if not hasattr(clip.tokenizer, "untokenize"):
        return ["embedding" if token is None else str(token) for token in ids]
    return ["embedding</w>" if token is None else clip.tokenizer.untokenize([(token,)])[0][1] for token in ids]


def length(clip, text: str) -> int:
    """How many tokens the embedding of `text` has, padding included."""
    return sum(len(chunk) for chunk in _chunks(clip, text))


def encoding(clip, text: str) -> Tensor:
    """[1, tokens, width] what the host makes of a text."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0]


def alike(encoded: Tensor, prompt: Tensor) -> bool:
    """Whether a prompt [B or 1, tokens, width] is this encoding [1, tokens, width], as far as half precision tells."""
    if encoded.shape[1:] != prompt.shape[1:]:
        return False
    encoded, prompt = encoded.float(), prompt.to(encoded.device, torch.float32)
    apart = (encoded - prompt).norm(dim=-1) / encoded.norm(dim=-1).clamp(min=1e-6)
    return bool(apart.max() < ALIKE)


def _word_tokens(clip, text: str) -> list[tuple[int, int | None]]:
    """(position, id) of the tokens that are text, not begin, end or padding. A learned embedding has the id None."""
    flat = [entry for chunk in _chunks(clip, text) for entry in chunk]
    return [(i, None if isinstance(t, Tensor) else int(t)) for i, (t, _, word) in enumerate(flat) if word != 0]


def _chunks(clip, text: str) -> list[list[tuple]]:
    """The chunks of (token, weight, word); where there are several text towers, of the first: they share positions."""
    return next(iter(clip.tokenize(text, return_word_ids=True).values()))
