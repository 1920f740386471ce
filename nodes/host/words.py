"""Which tokens of a prompt belong to which words."""

from torch import Tensor


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
            raise ValueError(f"`{word}` is not in the text `{text}`. Name words as they stand there, one a line.")
        found.append([tokens[i + k][0] for i in begins for k in range(len(wanted))])
    return found


def length(clip, text: str) -> int:
    """How many tokens the embedding of `text` has, padding included."""
    return sum(len(chunk) for chunk in _chunks(clip, text))


def _word_tokens(clip, text: str) -> list[tuple[int, int | None]]:
    """(position, id) of the tokens that are text, not begin, end or padding. A learned embedding has the id None."""
    flat = [entry for chunk in _chunks(clip, text) for entry in chunk]
    return [(i, None if isinstance(t, Tensor) else int(t)) for i, (t, _, word) in enumerate(flat) if word != 0]


def _chunks(clip, text: str) -> list[list[tuple]]:
    """The chunks of (token, weight, word); where there are several text towers, of the first: they share positions."""
    return next(iter(clip.tokenize(text, return_word_ids=True).values()))
