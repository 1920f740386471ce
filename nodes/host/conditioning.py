"""CONDITIONING as tensors and back.

A CONDITIONING is a list of entries [text, options]: several of them for areas, masks and ControlNets. Rewriting sees
one embedding [B or 1, tokens, width], the texts of all entries side by side along the tokens; whatever else an entry
holds (area, mask, pooled output, ControlNet, hooks, sizes) stays where it is.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...mirror_ops.walks.schedules import windows

Conditioning = list
Windows = list[tuple[float, float]]
CHUNK = 77  # tokens
# Options with which the host may make something else of an entry for each step than of one: it looks for entries of
# the same area, shares ControlNets out among them, and an entry may have a window already.
NOT_PLAIN = frozenset({
    "area", "mask", "control", "gligen", "hooks", "default", "start_percent", "end_percent", "clip_start_percent",
})
STEP, PART = "mirror_step", "mirror_part"  # options of stepwise entries: which step, and which entry of the original


def text_of(conditioning: Conditioning, name: str = "positive") -> Tensor:
    """[B or 1, tokens, width] the texts of all entries, joined along the tokens.

    Raises ValueError if there is no entry, an entry has no text, or texts of different widths or batches.
    """
    texts = [entry[0] for entry in conditioning]
    if not texts or any(text is None or text.ndim != 3 for text in texts):
        raise ValueError(f"The {name} prompt has no text embedding to rewrite. Connect a CLIPTextEncode.")
    return join(texts)


def join(texts: Sequence[Tensor]) -> Tensor:
    """[B or 1, sum of tokens, width] from several [B or 1, tokens, width]."""
    batch = max(len(text) for text in texts)
    if len({text.shape[2] for text in texts}) > 1 or any(len(text) not in (1, batch) for text in texts):
        raise ValueError(f"The prompt's entries do not fit together: {[list(text.shape) for text in texts]}.")
    return torch.cat([text.expand(batch, -1, -1) for text in texts], dim=1)


def split(embedding: Tensor, tokens: Sequence[int]) -> tuple[Tensor, ...]:
    """The inverse of `join` for entries of these lengths; ValueError if the lengths do not add up."""
    if embedding.shape[1] != sum(tokens):
        raise ValueError(
            f"The prompt has {sum(tokens)} tokens in {len(tokens)} part(s), but {embedding.shape[1]} were expected: "
            "use a prompt of the same length and the same parts as the one that the mirror was made with."
        )
    return embedding.split(list(tokens), dim=1)


def token_counts(conditioning: Conditioning) -> list[int]:
    """[entries] number of tokens of each entry."""
    return [entry[0].shape[1] for entry in conditioning]


def common_tokens(one: Conditioning, other: Conditioning) -> tuple[Conditioning, Conditioning]:
    """Two prompts with texts of one length, see `lengthened`, and the masks of their tokens with them. Raises
    ValueError for other numbers of parts or widths."""
    if len(one) != len(other) or text_of(one).shape[2] != text_of(other).shape[2]:
        raise ValueError(
            f"The two prompts have {len(one)} and {len(other)} parts, of width {text_of(one).shape[2]} and "
            f"{text_of(other).shape[2]}: use the same CLIP and as many parts for both."
        )
    pairs = zip(token_counts(one), token_counts(other), strict=True)
    lengths = [max(pair) if any(n % CHUNK for n in pair) else math.lcm(*pair) for pair in pairs]
    return tuple(
        [_lengthened_entry(*entry, length) for entry, length in zip(prompt, lengths, strict=True)]
        for prompt in (one, other)
    )


def lengthened(text: Tensor, length: int) -> Tensor:
    """[..., length, width] from a shorter text [..., tokens, width].

    CLIP's chunks are repeated, as stock samplers do it to batch them: that changes nothing in cross-attention. Texts of
    any length, which other encoders make, get their last token again: models that read them together with the picture
    would read whole repetitions as a longer text.
    """
    tokens = text.shape[-2]
    if tokens % CHUNK == 0 and length % tokens == 0:
        return torch.cat([text] * (length // tokens), dim=-2)
    return torch.cat([text, text[..., -1:, :].expand(*text.shape[:-2], length - tokens, -1)], dim=-2)


def _lengthened_entry(text: Tensor, options: dict, length: int) -> list:
    mask = options.get("attention_mask")
    if mask is not None and mask.shape[-1] == text.shape[1]:
        options = {**options, "attention_mask": lengthened(mask[..., None], length)[..., 0]}
    return [lengthened(text, length), options]


def with_text(conditioning: Conditioning, embedding: Tensor) -> Conditioning:
    """The same entries with other texts, `embedding` [B or 1, tokens, width]."""
    texts = split(embedding, token_counts(conditioning))
    return [[text, options] for text, (_, options) in zip(texts, conditioning, strict=True)]


def pooled_of(conditioning: Conditioning) -> Tensor | None:
    """[entries, B or 1, pooled width], or None if some entry has no pooled output."""
    pooled = [options.get("pooled_output") for _, options in conditioning]
    if any(p is None for p in pooled):
        return None
    batch = max(len(p) for p in pooled)
    return torch.stack([p.expand(batch, -1) for p in pooled])


def with_pooled(conditioning: Conditioning, pooled: Tensor | None) -> Conditioning:
    """The same entries with other pooled outputs, [entries, B or 1, pooled width]; unchanged for None."""
    if pooled is None:
        return conditioning
    return [[text, {**options, "pooled_output": p}] for (text, options), p in zip(conditioning, pooled, strict=True)]


def as_negative(conditioning: Conditioning) -> Conditioning:
    """The same entries read as a negative prompt, whatever they are passed as: SDXL's refiner tells those a lower
    aesthetic score."""
    return [[text, {"prompt_type": "negative", **options}] for text, options in conditioning]


def check_batch(embedding: Tensor, batch: int) -> None:
    """Raises ValueError unless a prompt is one for all pictures, or one for each."""
    if len(embedding) not in (1, batch):
        raise ValueError(f"There are {len(embedding)} prompts for {batch} pictures; give one prompt, or one each.")


def step_windows(sigmas: Tensor, sampling) -> Windows:
    """The part of the walk that each step of the grid sigmas [T+1] has to itself.

    A sampler that evaluates once a step, at these very sigmas, sees exactly one window (euler, ddim, dpmpp_2m; not heun
    or the sde samplers). Raises ValueError if the model cannot tell two steps apart.
    """
    return windows(sigmas[:-1].tolist(), sampling.percent_to_sigma)


def stepwise(conditioning: Conditioning, sigmas: Tensor, sampling, steps: Windows | None = None) -> Conditioning:
    """The entries once for each step of the grid sigmas [T+1], in adjoining windows, so that texts can differ by step.

    steps: the grid's `step_windows`, if they are known. Entries with windows of their own appear in the steps at which
    they are active. Options STEP and PART tell where an entry's text comes from. Raises ValueError if the model cannot
    tell two steps apart, or if no entry is active at some step.
    """
    steps, result = step_windows(sigmas, sampling) if steps is None else steps, []
    for i, (sigma, (start, end)) in enumerate(zip(sigmas[:-1].tolist(), steps, strict=True)):
        active = [
            [text, {**options, "start_percent": start, "end_percent": end, STEP: i, PART: k}]
            for k, (text, options) in enumerate(conditioning)
            if _is_active(sigma, options.get("start_percent", 0.0), options.get("end_percent", 1.0), sampling)
        ]
        if not active:
            raise ValueError(f"No part of the prompt is active at step {i} of {len(steps)}: close that gap.")
        result += active
    return result


def is_plain(conditioning: Conditioning) -> bool:
    """Whether this is one text for the whole picture and the whole walk. Where all prompts are, the host makes the same
    of one as of its `stepwise` entries."""
    return len(conditioning) == 1 and NOT_PLAIN.isdisjoint(conditioning[0][1])


def scheduled(
    conditioning: Conditioning, embeddings: Tensor, sigmas: Tensor, sampling, steps: Windows | None = None
) -> Conditioning:
    """`stepwise`, each step with its own text of `embeddings` [T, B or 1, tokens, width]."""
    texts = [split(embedding, token_counts(conditioning)) for embedding in embeddings]
    entries = stepwise(conditioning, sigmas, sampling, steps)
    return [[texts[options[STEP]][options[PART]], options] for _, options in entries]


def with_pooled_by_step(conditioning: Conditioning, pooled: Tensor) -> Conditioning:
    """`stepwise` entries, each with its own pooled output of `pooled` [T, entries, B or 1, pooled width]."""
    own = [pooled[options[STEP], options[PART]] for _, options in conditioning]
    return [[text, {**options, "pooled_output": p}] for (text, options), p in zip(conditioning, own, strict=True)]


def _is_active(sigma: float, start: float, end: float, sampling) -> bool:
    """The host's own rule: both ends included."""
    return (start <= 0 and end >= 1) or sampling.percent_to_sigma(end) <= sigma <= sampling.percent_to_sigma(start)
