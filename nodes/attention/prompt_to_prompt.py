"""MirrorPromptToPrompt: the edited words draw as much attention, and in the same places, as the source's did."""

import math
from collections.abc import Callable
from functools import cache

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.attention.prompt_to_prompt import (
    paired,
    refined,
    refinement,
    replaced,
    replacement,
    reweighting,
    schedule,
)
from ...mirror_ops.walks.trajectory import Mirror, cpu
from ..host.attach import attach, get_reference
from ..host.blocked import unknown
from ..host.branches import Branch
from ..host.denoiser import run
from ..host.prompt_control import LocalBlend, PromptControl
from ..host.walk import Walk
from ..host.word_maps import Texts, WordHeat, names
from ..host.words import positions, tokenized
from ..types import category, mirror_input

AUTO, REPLACE, REFINE = "auto", "replace", "refine"
LOOKS = 10  # steps of the recording at which the mask is read


class MirrorPromptToPrompt(io.ComfyNode):
    """Patches a model so that an edit of the prompt keeps the attention maps of the mirror's picture."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorPromptToPrompt",
            display_name="Mirror Prompt-to-Prompt",
            category=category(__name__),
            description=(
                "Prompt-to-prompt: while the edited caption is sampled, its words take over the attention maps of the "
                "picture, word by word, for the first part of the walk. Swap words, add words, make a word weigh more. "
                "Works in Mirror Sample, in edits under shared noise, and with a mirror in stock samplers."
            ),
            search_aliases=["p2p", "attention control", "word swap", "attention reweight", "local blend"],
            inputs=[
                io.Model.Input("model", tooltip="Other packs' attention patches come before this."),
                io.Clip.Input("clip", tooltip="The one that encoded both texts."),
                io.String.Input("source_text", multiline=True, tooltip="The picture's prompt, as it was encoded."),
                io.String.Input("target_text", multiline=True, tooltip="The edited prompt, as the sampler gets it."),
                io.Combo.Input(
                    "mode", options=[AUTO, REPLACE, REFINE], default=AUTO,
                    tooltip="replace: words stand in place of words. refine: words were added or removed; new words "
                    "keep their own maps. auto: replace if the words can be paired, else refine.",
                ),
                io.Float.Input(
                    "cross_until", default=0.4, min=0.0, max=1.0, step=0.05,
                    tooltip="The part of the walk in which words take over the source's maps. More keeps more.",
                ),
                io.Float.Input(
                    "self_until", default=0.6, min=0.0, max=1.0, step=0.05,
                    tooltip="The same for self-attention, which holds the layout. 0 lets shapes change freely.",
                ),
                mirror_input(),
                io.Float.Input(
                    "cross_weight", default=1.0, min=0.0, max=1.0, step=0.05, optional=True,
                    tooltip="How much of the source's maps: 1 takes their place. 0.3 through the whole walk "
                    "(cross_until 1, self_until 0) holds the structure gently under shared noise, for no pass more.",
                ),
                *_word_inputs(),
                *_advanced_inputs(),
            ],
            outputs=[
                io.Model.Output(tooltip="For Mirror Sample, or a stock sampler with the mirror's noise and steps."),
                io.Mask.Output(
                    display_name="mask", tooltip="Where the blend words look in the recorded walk, a value for each "
                    "latent cell; everywhere if there are none. Needs `mirror`.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, clip, source_text, target_text, mode, cross_until, self_until, mirror: Mirror | None = None,
        cross_weight=1.0, reweight="", windows="", blend_words="", subtract_words="", cross_from=0.0, blend_from=0.2,
        blend_threshold=0.3, self_largest=32, parity=False, source=None,
    ) -> io.NodeOutput:
        texts = Texts.of(clip, source_text, target_text)
        control = PromptControl(
            edit=_edit(texts, mode, cross_weight, _settings(reweight, 1, "reweight", "cat: 2"), parity),
            lengths=(texts.length, texts.target_length),
            alpha=_schedule(texts, (cross_from, cross_until), _settings(windows, 2, "windows", "cat: 0 0.2")),
            own_until=self_until,
            own_pixels=self_largest**2,
            blend=_blend(texts, names(blend_words), names(subtract_words), blend_from, blend_threshold),
            injected_heat=parity,
        )
        model = model.clone()
        attach(model, mirror, source, check=lambda steps, *prompts: texts.check(*prompts))
        control.patch(model)
        if mirror is None:
            return io.NodeOutput(model, unknown("The mask is read in a recorded walk: connect `mirror` to this node."))
        return io.NodeOutput(model, _recorded_mask(model, mirror, texts, control.blend))


def _word_inputs() -> list:
    return [
        io.String.Input("reweight", default="", multiline=True, optional=True, tooltip=(
            "Words of the target that weigh more or less, one a line with a factor: `smiling: 2`.")),
        io.String.Input("blend_words", default="", multiline=True, optional=True, tooltip=(
            "Local blend: words of either text outside of whose area the picture stays as it was: `cat, dog`. Exact "
            "with euler and ddim.")),
        io.String.Input("subtract_words", default="", multiline=True, optional=True, tooltip=(
            "Words whose area is left alone even so.")),
    ]


def _advanced_inputs() -> list:
    return [
        io.String.Input("windows", default="", multiline=True, optional=True, advanced=True, tooltip=(
            "Words of the target with a window of their own, one a line, as parts of the walk: `dog: 0 0.2`.")),
        io.Float.Input("cross_from", default=0.0, min=0.0, max=1.0, step=0.05, optional=True, advanced=True, tooltip=(
            "Where the window of cross-attention begins.")),
        io.Float.Input("blend_from", default=0.2, min=0.0, max=1.0, step=0.05, optional=True, advanced=True, tooltip=(
            "The part of the walk after which local blend begins.")),
        io.Float.Input("blend_threshold", default=0.3, min=0.0, max=1.0, step=0.05, optional=True, advanced=True,
                       tooltip="Of the most that a word draws anywhere: less counts as outside."),
        io.Int.Input("self_largest", default=32, min=1, max=256, optional=True, advanced=True, tooltip=(
            "Self-attention is taken over in layers of at most this size squared: 32 (16 in the first publication).")),
        io.Boolean.Input("parity", default=False, optional=True, advanced=True, tooltip=(
            "As the published code: tokens after a swapped word of another length are not moved along, and local blend "
            "sees the maps after they were taken over.")),
        io.Conditioning.Input("source", optional=True, tooltip=(
            "The mirror's own prompt, if it carries more than text (ControlNet, sizes).")),
    ]


def _edit(texts: Texts, mode: str, weight: float, factors: list[tuple[str, list[float]]], parity: bool):
    """(source maps, target maps) -> the maps that the edit gets. ValueError for words that cannot be paired."""
    before, after = (tokenized(texts.clip, text) for text in (texts.source, texts.target))
    lengths = texts.length, texts.target_length
    found = [(positions(texts.clip, texts.target, [word])[0], factor) for word, (factor,) in factors]
    scale = reweighting(found, texts.target_length)
    if mode == AUTO:
        mode = REPLACE if _can_be_paired(before, after) else REFINE
    if mode == REPLACE:
        mapping = replacement(*paired(before, after), *lengths, parity=parity)
        return lambda source, target: torch.lerp(target, replaced(source, mapping), weight) * scale.to(source)
    mapper, known = refinement(before, after, *lengths)
    return lambda source, target: torch.lerp(target, refined(source, target, mapper, known), weight) * scale.to(source)


def _can_be_paired(before, after) -> bool:
    try:
        paired(before, after)
    except ValueError:
        return False
    return True


def _schedule(texts: Texts, window: tuple, own: list[tuple[str, list[float]]]) -> Callable[[int], Tensor]:
    """steps T -> [T, target length] 1 where the source's maps are taken over. ValueError for windows that are none."""
    found = [(positions(texts.clip, texts.target, [word])[0], tuple(window)) for word, window in own]
    schedule(1, window, found, texts.target_length)  # raises what is to be raised
    return cache(lambda steps: schedule(steps, window, found, texts.target_length))


def _blend(texts: Texts, words: list[str], left: list[str], begin: float, threshold: float):
    if not words:
        if left:
            raise ValueError("`subtract_words` takes away from the area of `blend_words`, which is empty. Name some.")
        return None
    rows = [texts.masks(words), texts.masks(left)]
    heat = WordHeat(*(torch.stack([row[side] for row in rows]) for side in (0, 1)))
    return LocalBlend(heat, begin, threshold, bool(left))


def _settings(text: str, count: int, name: str, example: str) -> list[tuple[str, list[float]]]:
    """[(word, its numbers)] of lines `word: number ...`. ValueError for any other line."""
    read = []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, numbers = line.rpartition(":")
        try:
            values = [float(number) for number in numbers.split()]
        except ValueError:
            values = []
        if not word.strip() or len(values) != count or not all(map(math.isfinite, values)):
            raise ValueError(f"`{name}`: a line is a word, a colon and {count} number(s) (`{example}`), not `{line}`.")
        read.append((word.strip(), values))
    return read


def _recorded_mask(model, mirror: Mirror, texts: Texts, blend: LocalBlend | None) -> Tensor:
    """[B, H, W] the blend's mask on the recorded walk, or ones.

    The blend's own mask is not known before the edit is sampled, and changes with each step; this one can be known now,
    and serves to composite.
    """
    shape = mirror.latents.shape
    if blend is None:
        return torch.ones(shape[1], *shape[-2:])
    target = texts.clip.encode_from_tokens_scheduled(texts.clip.tokenize(texts.target))
    looks = range(0, mirror.steps, math.ceil(mirror.steps / LOOKS))

    def algorithm(walk: Walk) -> Tensor:
        for n, i in enumerate(looks):
            latent = mirror.latents[i].to(walk.device)
            walk.denoise(latent, walk.sigmas[i], walk.prompts["positive"].entries, branch=Branch.PROBE)
            walk.progress.reached(n + 1, walk.denoised)
        return blend.mask(get_reference(walk.model_options["transformer_options"]), mirror.steps, probed=True)

    prompts = {"positive": target}
    mask, _ = run(
        model, mirror.latents[-1], mirror.sigmas, prompts, algorithm, evaluations=len(looks), reference=mirror
    )
    return cpu(mask)[:, 0]
