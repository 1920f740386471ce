"""The source branch beside an edit: what the network does for the picture as it was, at the very step of the edit.

Attention control (prompt-to-prompt, MasaCtrl) and cross-attention guidance (pix2pix-zero) need what the attention
layers compute for the source while the edit is sampled. `attach` makes a cloned patcher do that in any sampler: at each
evaluation the step i of the mirror is found by its sigma, the network is evaluated on mirror.latents[i] with the
mirror's own prompt of that step (as in Direct Inversion, Ju et al., ICLR 2024, the source branch is the recording), and
what attention replacements then `keep` is there to `read` while the edit is evaluated:

    attach(patcher, mirror, sides=(POSITIVE,))

    def attend(q, k, v, extra_options, onward):          # see attention.replace_attention
        reference = active_reference(extra_options)
        if reference is None:
            return onward(q, k, v, extra_options)
        if reference.recording:
            reference.keep("mine", extra_options, lambda rows: (q[rows], k[rows]))
            return onward(q, k, v, extra_options)
        for side, rows in reference.rows(extra_options, len(q)):
            q_source, k_source = reference.read("mine", extra_options, side)
            ...

    replace_attention(patcher, "attn1", attend)

Several nodes attach to one model: the source is evaluated once for all of them. Whoever needs the source before the
evaluation (a PREDICT_NOISE wrapper, which has its transformer options in model_options) calls `ReferencePass.record`
first.
MirrorSample marks its branches in the transformer options: BRANCH is "source" or "edit", or "look" where it compares
the edit's prediction with the source's on the recording, to find where the edit acts; it is "source" too while the
source is evaluated here.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...mirror_ops.walks.trajectory import Mirror
from . import families
from .conditioning import Conditioning, scheduled, text_of, with_pooled

POSITIVE, NEGATIVE = 0, 1
BRANCH = "mirror_branch"
_DECLARED, _BESIDE, _PROMPT = "mirror_source", "mirror_beside", "mirror source"
NEAR = 1e-3  # relative distance of two noise levels that are taken for the same


@dataclass(frozen=True)
class Source:
    """What a patched model carries: the mirror, its CONDITIONING, and the sides (prompts) to be evaluated."""

    mirror: Mirror
    conditioning: Conditioning
    sides: frozenset[int]


def attach(
    patcher: ModelPatcher, mirror: Mirror, conditioning: Conditioning | None = None, sides: Iterable[int] = (POSITIVE,)
) -> None:
    """Evaluates the mirror's source beside whatever is sampled with this cloned patcher.

    conditioning: the CONDITIONING that the mirror was made with, if it holds more than text (ControlNet, sizes); its
    text is replaced by the mirror's. sides: POSITIVE, the mirror's prompt, and NEGATIVE, the sampler's own negative
    prompt, which costs a row more and is left out where the sampler leaves it out (cfg 1).
    Raises ValueError for a mirror of another model, a conditioning of another length, and for two mirrors on one model.
    """
    mirror.require_model(families.describe(patcher))
    options = patcher.model_options.setdefault("transformer_options", {})
    earlier: Source | None = options.get(_DECLARED)
    if earlier is None:
        patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _DECLARED, _around_sampling)
        patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, _DECLARED, _around_evaluation)
        options[_DECLARED] = Source(mirror, _prompt(mirror, conditioning), frozenset(sides))
        return
    if earlier.mirror is not mirror:
        raise ValueError("This model already has attention control by another mirror. Connect the same mirror to both.")
    prompt = earlier.conditioning if conditioning is None else _prompt(mirror, conditioning)
    options[_DECLARED] = Source(mirror, prompt, earlier.sides | frozenset(sides))


def get_reference(transformer_options: dict) -> "ReferencePass | None":
    """The source branch of the sampling that runs, from an attention patch's extra options or the model options'."""
    return transformer_options.get(_BESIDE)


def active_reference(transformer_options: dict) -> "ReferencePass | None":
    """`get_reference`, unless the controls are to keep still: outside of samplings, and in a source branch."""
    reference = get_reference(transformer_options)
    if reference is None or reference.step is None or (is_source(transformer_options) and not reference.recording):
        return None
    return reference


def is_source(transformer_options: dict) -> bool:
    """Whether a source branch is being evaluated: ours, or MirrorSample's."""
    return transformer_options.get(BRANCH) == "source"


def marked(model_options: dict, branch: str) -> dict:
    """Model options that say which branch is evaluated."""
    return {**model_options, "transformer_options": {**model_options.get("transformer_options", {}), BRANCH: branch}}


class ReferencePass:
    """The source branch during one sampling. What is kept is of one step; the next step's takes its place."""

    def __init__(self, source: Source, guider: comfy.samplers.CFGGuider):
        self.source, self.guider = source, guider
        self.recording = False
        self.step: int | None = None  # of the mirror, found by sigma
        self._done: frozenset[int] = frozenset()
        self._kept: dict[tuple, Any] = {}
        self.notes: dict[Any, dict] = {}  # what a control gathers during the whole sampling, by control
        self._sides: list[int | None] = [POSITIVE, NEGATIVE]  # of the prompts that are evaluated together

    @property
    def steps(self) -> int:
        return self.source.mirror.steps

    @property
    def prompt(self) -> list[dict]:
        """The mirror's own prompt as the host processed it, a window for each step."""
        return self.guider.conds[_PROMPT]

    def record(self, model, conds: list, x: Tensor, sigma: Tensor, model_options: dict) -> None:
        """Evaluates the source at the mirror's step of this sigma, unless that is done.

        conds: lists of processed prompts, as for comfy.samplers.calc_cond_batch; x [B, C, H, W] the edit's latent.
        Raises ValueError for a sigma that is not on the mirror's grid, other shapes, or a prompt of several parts.
        """
        step, level = step_of(self.source.mirror, sigma), float(sigma.flatten()[0])
        self._sides = self._named(conds)
        sides = self.source.sides & {POSITIVE, *(s for s, c in zip(self._sides, conds, strict=True) if c)}
        for side, prompt in zip(self._sides, conds, strict=True):
            if side in self.source.sides:
                _check_one_part(prompt, level)
        if step == self.step and sides <= self._done:
            return
        latent = check_shape(self.source.mirror, x.shape)[step].to(x)
        prompts = [self.guider.conds[_PROMPT], self.guider.conds.get("negative") if NEGATIVE in sides else None]
        named, self._sides = self._sides, [POSITIVE, NEGATIVE]
        self.step, self._kept, self._done, self.recording = step, {}, frozenset(), True
        try:
            with torch.no_grad():
                options = marked(model_options, "source")
                comfy.samplers.calc_cond_batch(model, prompts, latent, sigma.flatten()[:1].expand(len(latent)), options)
        finally:
            self.recording, self._sides = False, named
        self._done = sides

    def _named(self, conds: list) -> list[int | None]:
        """Which side each prompt is. Guiders with more than two prompts order them in their own way."""
        known = {id(self.guider.conds.get(name)): side for side, name in enumerate(("positive", "negative"))}
        named = [None if prompt is None else known.get(id(prompt)) for prompt in conds]
        return named if POSITIVE in named or NEGATIVE in named else [POSITIVE, NEGATIVE, *named][: len(conds)]

    def rows(self, extra_options: dict, rows: int) -> Iterator[tuple[int, slice]]:
        """(side, its rows) in the network's batch of `rows`, for each prompt in it."""
        order = extra_options["cond_or_uncond"]
        each = rows // len(order)
        for n, index in enumerate(order):
            if self._sides[index] is not None:
                yield self._sides[index], slice(n * each, (n + 1) * each)

    def keep(self, name: str, extra_options: dict, what: Callable[[slice], Any]) -> None:
        """Keeps what(rows) of each side of this layer, for this step. Call it while `recording`."""
        total = extra_options["activations_shape"][0]
        for side, rows in self.rows(extra_options, total):
            self._kept[(name, side, *layer_of(extra_options))] = what(rows)

    def read(self, name: str, extra_options: dict, side: int) -> Any:
        """What this layer kept at this step, or None."""
        return self._kept.get((name, side, *layer_of(extra_options)))

    def all_kept(self, name: str, side: int = POSITIVE) -> dict[tuple[str, int, int], Any]:
        """{(part, block, transformer): what it kept} at this step."""
        return {key[2:]: value for key, value in self._kept.items() if key[:2] == (name, side)}


def layer_of(extra_options: dict) -> tuple[str, int, int]:
    """(part, block, transformer) of the layer that calls, as the host's attention patches name it."""
    return (*extra_options["block"], extra_options["block_index"])


def step_of(mirror: Mirror, sigma: Tensor) -> int:
    """The mirror's step at this noise level. Raises ValueError, saying what to do, if there is none."""
    level = float(sigma.flatten()[0])
    distances = (mirror.sigmas[:-1] - level).abs() / max(level, 1e-12)
    nearest = int(distances.argmin())
    if distances[nearest] > NEAR:
        raise ValueError(
            f"The sampler looks at noise level {level:.4g}, which is not one of the mirror's {mirror.steps} steps "
            f"({float(mirror.sigmas[0]):.4g} to {float(mirror.sigmas[-2]):.4g}). Give the sampler the mirror's steps, "
            "scheduler and denoise, and one look a step (euler, ddim, dpmpp_2m)."
        )
    return nearest


def _check_grid(mirror: Mirror, sigmas: Tensor) -> None:
    """Raises ValueError unless the sampler takes the mirror's own steps, one after the other."""
    steps = [step_of(mirror, sigma) for sigma in sigmas[:-1]]
    ends = mirror.sigmas[steps[-1] + 1]
    if steps != list(range(steps[0], steps[0] + len(steps))) or abs(float(sigmas[-1] - ends)) > NEAR * float(sigmas[0]):
        raise ValueError("The sampler leaves out steps of the mirror. Give it the mirror's own steps and scheduler.")


def check_shape(mirror: Mirror, shape: torch.Size) -> Tensor:
    """The mirror's latents [T+1, B, C, H, W]. Raises ValueError unless they can stand beside latents of `shape`."""
    latents = mirror.latents
    if latents.shape[2:] != shape[1:] or latents.shape[1] not in (1, shape[0]):
        raise ValueError(
            f"The latent is {list(shape)} and the mirror's pictures {list(latents.shape[1:])}. Sample from the "
            "mirror's own noise: the `noise` output of the node that made it."
        )
    return latents


def _prompt(mirror: Mirror, conditioning: Conditioning | None) -> Conditioning:
    if conditioning is None:
        entries = [[mirror.source, {}]]
        return entries if mirror.pooled is None else with_pooled(entries, mirror.pooled[:1])
    if text_of(conditioning, "source").shape[1:] != mirror.source.shape[1:]:
        raise ValueError("`source` is not the prompt that the mirror was made with: its text has another length.")
    if any("hooks" in options for _, options in conditioning):
        raise ValueError("`source` has LoRA or model hooks, which a source branch cannot follow. Connect it without.")
    return with_pooled(conditioning, mirror.pooled)


def _check_one_part(prompt: list[dict] | None, level: float) -> None:
    """Raises ValueError if several parts of a processed prompt, or only an area of it, are read at this level."""
    active = [
        entry for entry in prompt or []
        if entry.get("timestep_end", -1.0) <= level <= entry.get("timestep_start", float("inf"))
    ]
    if len(active) > 1 or any(entry.get("area") is not None for entry in active):
        raise ValueError(
            "Attention control reads one prompt for the whole picture; this one has several parts or areas. Use a "
            "single text, and masks of the edit instead of areas."
        )


def _around_sampling(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """Adds the source's prompt to those that the host processes. Raises ValueError for another grid, before work."""
    guider = executor.class_obj
    options = guider.model_options["transformer_options"]
    source: Source = options[_DECLARED]
    check_shape(source.mirror, noise.shape)
    _check_grid(source.mirror, sigmas)
    sampling = guider.model_patcher.get_model_object("model_sampling")
    mirror = source.mirror
    texts = mirror.embeddings if mirror.meta["side"] == "positive" else mirror.source.expand(mirror.steps, -1, -1, -1)
    prompt = scheduled(source.conditioning, texts, mirror.sigmas, sampling)
    guider.conds = {**guider.conds, _PROMPT: comfy.sampler_helpers.convert_cond(prompt)}
    options[_BESIDE] = ReferencePass(source, guider)
    return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)


def _around_evaluation(executor, model, conds, x, sigma, model_options):
    reference, options = get_reference(model_options["transformer_options"]), model_options["transformer_options"]
    if reference is not None and not is_source(options):
        reference.record(model, conds, x, sigma, model_options)
    return executor(model, conds, x, sigma, model_options)
