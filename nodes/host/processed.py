"""Prompts as the host has processed them for a sampling: which parts are read at a level, and texts exchanged."""

import torch
from comfy.conds import is_equal
from torch import Tensor

from .conditioning import PART, Conditioning, split, text_of, token_counts
from .families import PICTURES

Entries = list[dict]


class Prompt:
    """A prompt that the host has processed, whose text can be exchanged.

    given: the CONDITIONING as it came; passed: as it was passed to the host (`stepwise` or the same); entries: what
    the host made of that. Raises ValueError, naming the `family`, for models that do not read the given text as one
    plain embedding.
    """

    def __init__(self, name: str, given: Conditioning, passed: Conditioning, entries: Entries, family: str):
        self.entries, self.tokens, self.given = entries, token_counts(given), text_of(given, name)
        # The host may add entries, for areas, after ours; those share the text object of the entry they stand for.
        self.parts = {}
        for k, (entry, (text, options)) in enumerate(zip(entries, passed, strict=False)):
            read = entry["model_conds"].get("c_crossattn")
            if read is None or not torch.equal(read.cond, filled_up(text.to(read.cond), read.cond)):
                raise ValueError(
                    f"{family} does not read its {name} prompt as one plain embedding, so it cannot be rewritten here. "
                    f"Use a model of the kind of {PICTURES}."
                )
            if "txt_byt5" in entry["model_conds"]:
                raise ValueError(
                    f"{family} reads quoted words of its {name} prompt by an encoder of their own, which cannot be "
                    "rewritten. Write the prompt without quotation marks."
                )
            self.parts[id(read)] = options.get(PART, k)

    @property
    def embedding(self) -> Tensor:
        """[B or 1, tokens, width] the text as it was given, on the model's device, float32."""
        return self.given.to(self.entries[0]["model_conds"]["c_crossattn"].cond.device, torch.float32, copy=True)

    def saying(self, embedding: Tensor, sigma: Tensor | None = None) -> Entries:
        """The host's entries with the texts of `embedding` [B or 1, tokens, width]; of this level's only, if given."""
        texts = split(embedding, self.tokens)
        made = {}
        entries = self.entries if sigma is None else read_at(self.entries, sigma)
        for entry in entries:
            read = entry["model_conds"]["c_crossattn"]
            if id(read) not in made:
                made[id(read)] = type(read)(filled_up(texts[self.parts[id(read)]], read.cond))
        return [reading(entry, made[id(entry["model_conds"]["c_crossattn"])]) for entry in entries]


def filled_up(text: Tensor, read: Tensor) -> Tensor:
    """The text with zeros before it to the length that the host made `read` of: Flux2's texts have one length."""
    missing = read.shape[1] - text.shape[1]
    return torch.nn.functional.pad(text, (0, 0, missing, 0)) if missing > 0 else text


def reading(entry: dict, text) -> dict:
    """A processed entry with another text object."""
    return {**entry, "model_conds": {**entry["model_conds"], "c_crossattn": text}}


def active(prompt: Entries | None, level: float) -> Entries:
    """The entries of a processed prompt that are read at this level, by the host's own rule: both ends included."""
    return [
        entry for entry in prompt or []
        if entry.get("timestep_end", -1.0) <= level <= entry.get("timestep_start", float("inf"))
    ]


def read_at(prompt: Entries | None, sigma: Tensor) -> Entries | None:
    """`active`, for prompts of many parts: the host prepares each part before it looks whether it is read.

    One part is left to the host, since to look at a level on a GPU is to wait for it.
    """
    several = prompt is not None and len(prompt) > 1 and any("timestep_start" in entry for entry in prompt)
    return active(prompt, float(sigma)) if several else prompt


def same(one: Entries | None, other: Entries | None) -> bool:
    """Whether two processed prompts ask the network the same, part by part."""
    if one is None or other is None or len(one) != len(other):
        return one is other
    return all(is_equal(_asked(a), _asked(b)) for a, b in zip(one, other, strict=True))


def _asked(entry: dict) -> dict:
    """What an entry asks: what the host made of its text, and where and when that is read."""
    rest = {name: value for name, value in entry.items() if name not in ("uuid", "cross_attn", "pooled_output")}
    return {**rest, "model_conds": {name: read.cond for name, read in entry["model_conds"].items()}}
