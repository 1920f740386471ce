"""The source side of one step of an edit: its latents, and what attention layers kept while it was evaluated.

`Recorded` reads a mirror, `Shared` the other side of a walk under shared noise. Controls get the one of the sampling
that runs from nodes/host/attach.py, which says how to use it, and need not know which it is.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...mirror_ops.walks.ddim import euler
from ...mirror_ops.walks.trajectory import Mirror
from .branches import Branch, marked
from .processed import active

POSITIVE, NEGATIVE = 0, 1
PROMPT = "mirror source"  # among a guider's processed prompts
NEAR = 1e-3  # relative distance of two noise levels that are taken for the same
# (steps, the source's text [B or 1, tokens, width], the edited one as it was encoded; None if not known) -> ValueError
Check = Callable[[int, Tensor | None, Tensor | None], None]


class ReferencePass:
    """The source side during one sampling. What is kept is of one step; the next step's takes its place."""

    def __init__(self, wanted: frozenset[int], guider: comfy.samplers.CFGGuider, sigmas: Tensor, size: tuple[int, int]):
        self.wanted, self.guider = wanted, guider
        self.sigmas, self.size = sigmas, size  # [T+1] of the source's walk; (H, W) of its latents
        self.recording = False
        self.step: int | None = None  # of the source's walk, found by sigma
        self.notes: dict[Any, dict] = {}  # what a control gathers during the whole sampling, by control
        self._kept: dict[tuple, Any] = {}
        self._done: frozenset[int] = frozenset()
        self._alike = False  # whether the sampler's negative is the source's prompt
        self._sides: list[int | None] = [POSITIVE, NEGATIVE]  # of the prompts that are evaluated together

    @property
    def steps(self) -> int:
        """T of the source's walk."""
        return len(self.sigmas) - 1

    @property
    def prompt(self) -> list[dict]:
        """The source's own prompt as the host processed it."""
        raise NotImplementedError

    def latent(self, x: Tensor) -> Tensor:
        """[B or 1, C, H, W] the source at this step's level, like x."""
        raise NotImplementedError

    def arrival(self, x: Tensor) -> Tensor:
        """[B or 1, C, H, W] the source at the level at which this step arrives, like x."""
        raise NotImplementedError

    def picture(self, x: Tensor) -> Tensor:
        """[B or 1, C, H, W] the source's picture as this step has it, like x."""
        raise NotImplementedError

    def _enter(self, step: int) -> None:
        """Readies for a step; the last one's is forgotten unless it is the same."""
        raise NotImplementedError

    def record(self, model, conds: list, x: Tensor, sigma: Tensor, model_options: dict) -> None:
        """Evaluates what is still missing of the source at the step of this sigma.

        conds: lists of processed prompts, as for comfy.samplers.calc_cond_batch; x [B, C, H, W] the edit's latent.
        Raises ValueError for a sigma that is not on the source's grid, other shapes, or a prompt of several parts.
        """
        self._enter(step_of(self.sigmas, sigma))
        level, self._sides = float(sigma.flatten()[0]), self._named(conds)
        given = {side: prompt for side, prompt in zip(self._sides, conds, strict=True) if prompt and side is not None}
        for side in self.wanted & given.keys():
            _check_one_part(given[side], level)
        sides = (self.wanted & ({POSITIVE} | given.keys())) - self._done
        if NEGATIVE in sides and says_the_same(self.prompt, given[NEGATIVE], level):
            self._alike, sides, self._done = True, sides - {NEGATIVE}, self._done | {NEGATIVE}
        if not sides:
            return
        prompts = [self.prompt if POSITIVE in sides else None, given[NEGATIVE] if NEGATIVE in sides else None]
        latent, options = self.latent(x), marked(model_options, Branch.REFERENCE)
        level = sigma.flatten()[:1].expand(len(latent))
        self.recorded(sides, lambda: comfy.samplers.calc_cond_batch(model, prompts, latent, level, options))

    def recorded(self, sides: Iterable[int], evaluate: Callable[[], Any]) -> Any:
        """evaluate()'s result; what layers keep meanwhile is of these sides."""
        named, self._sides = self._sides, [side if side in sides else None for side in (POSITIVE, NEGATIVE)]
        self.recording = True
        try:
            with torch.no_grad():
                result = evaluate()
        finally:
            self.recording, self._sides = False, named
        self._done = self._done | frozenset(sides)
        return result

    def _forget(self, step: int) -> None:
        self.step, self._kept, self._done, self._alike = step, {}, frozenset(), False

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

    def keep(self, name: Any, extra_options: dict, what: Callable[[slice], Any]) -> None:
        """Keeps what(rows) of each side of this layer, for this step. Call it while `recording`."""
        total = extra_options["activations_shape"][0]
        for side, rows in self.rows(extra_options, total):
            self._kept[(name, side, *layer_of(extra_options))] = what(rows)

    def read(self, name: Any, extra_options: dict, side: int) -> Any:
        """What this layer kept at this step, or None."""
        return self._kept.get((name, POSITIVE if self._alike else side, *layer_of(extra_options)))


class Recorded(ReferencePass):
    """The source is a mirror's recording."""

    def __init__(self, mirror: Mirror, wanted: frozenset[int], guider: comfy.samplers.CFGGuider):
        super().__init__(wanted, guider, mirror.sigmas, tuple(mirror.latents.shape[-2:]))
        self.mirror = mirror

    @property
    def prompt(self) -> list[dict]:
        """The mirror's own prompt, a window for each step."""
        return self.guider.conds[PROMPT]

    def latent(self, x: Tensor) -> Tensor:
        """The recorded latent of this level. Raises ValueError for an x that the mirror does not fit."""
        return check_shape(self.mirror, x.shape)[self.step].to(x)

    def arrival(self, x: Tensor) -> Tensor:
        """The recorded latent of the next level."""
        return self.mirror.latents[self.step + 1].to(x)

    def picture(self, x: Tensor) -> Tensor:
        """The picture that was inverted."""
        return self.mirror.latents[-1].to(x)

    def _enter(self, step: int) -> None:
        if step != self.step:
            self._forget(step)


class Shared(ReferencePass):
    """The source is the other side of a walk under shared noise, evaluated just before the edit's side."""

    def __init__(
        self, wanted: frozenset[int], guider: comfy.samplers.CFGGuider, sigmas: Tensor, size: tuple[int, int],
        checks: tuple[Check, ...] = (),
    ):
        super().__init__(wanted, guider, sigmas, size)
        self.checks = checks
        self._latent = self._denoised = self._prompt = None

    @property
    def prompt(self) -> list[dict]:
        """What the source side was told at this step."""
        return self._prompt

    def latent(self, x: Tensor) -> Tensor:
        """The noised picture that the source side was shown at this step."""
        return self._latent.to(x)

    def arrival(self, x: Tensor) -> Tensor:
        """Where the source side's own prediction would take it."""
        sigma, sigma_next = (self.sigmas[n].to(x) for n in (self.step, self.step + 1))
        return euler(self._latent.to(x), self._denoised.to(x), sigma, sigma_next)

    def picture(self, x: Tensor) -> Tensor:
        """What the source side predicts of the picture at this step."""
        return self._denoised.to(x)

    def _enter(self, step: int) -> None:
        if step != self.step or self._denoised is None:
            raise RuntimeError("A walk under shared noise evaluates its source side first, at each step.")

    def evaluate(self, executor, x: Tensor, sigma: Tensor, model_options: dict, seed) -> Tensor:
        """The prediction of the source side, which the controls record."""
        self._forget(step_of(self.sigmas, sigma))
        self._latent, self._denoised, self._prompt = x, None, self.guider.conds["positive"]
        if self.wanted:
            _check_one_part(self._prompt, float(sigma.flatten()[0]))
        for check in self.checks:
            check(self.steps, self._prompt[0]["model_conds"]["c_crossattn"].cond, None)
        self.checks = ()  # the text stays the same
        options = marked(model_options, Branch.REFERENCE)
        self._denoised = self.recorded((POSITIVE,), lambda: executor(x, sigma, options, seed))
        return self._denoised


def layer_of(extra_options: dict) -> tuple[str, int, int]:
    """(part, block, transformer) of the layer that calls, as the host's attention patches name it."""
    return (*extra_options["block"], extra_options["block_index"])


def step_of(sigmas: Tensor, sigma: Tensor) -> int:
    """The step of a walk sigmas [T+1] at this noise level. Raises ValueError, saying what to do, if there is none."""
    level = float(sigma.flatten()[0])
    distances = (sigmas[:-1] - level).abs() / max(level, 1e-12)
    nearest = int(distances.argmin())
    if distances[nearest] > NEAR:
        raise ValueError(
            f"The sampler looks at noise level {level:.4g}, which is not one of the mirror's {len(sigmas) - 1} steps "
            f"({float(sigmas[0]):.4g} to {float(sigmas[-2]):.4g}). Give the sampler the mirror's steps, "
            "scheduler and denoise, and one look a step (euler, ddim, dpmpp_2m)."
        )
    return nearest


def check_shape(mirror: Mirror, shape: torch.Size) -> Tensor:
    """The mirror's latents [T+1, B, C, H, W]. Raises ValueError unless they can stand beside latents of `shape`."""
    latents = mirror.latents
    if latents.shape[2:] != shape[1:] or latents.shape[1] not in (1, shape[0]):
        raise ValueError(
            f"The latent is {list(shape)} and the mirror's pictures {list(latents.shape[1:])}. Sample from the "
            "mirror's own noise: `inverted` of Redescribed DDIM Invert, `noise` of CycleDiffusion Encode."
        )
    return latents


def says_the_same(prompt: list[dict], other: list[dict], level: float) -> bool:
    """Whether two processed prompts of one part each read the same at this level."""
    one, two = (active(entries, level) for entries in (prompt, other))
    if len(one) != 1 or len(two) != 1 or one[0].get("control") is not two[0].get("control"):
        return False
    read = [
        {name: cond.cond for name, cond in entry["model_conds"].items() if isinstance(cond.cond, Tensor)}
        for entry in (one[0], two[0])
    ]
    return read[0].keys() == read[1].keys() and all(torch.equal(cond, read[1][name]) for name, cond in read[0].items())


def _check_one_part(prompt: list[dict] | None, level: float) -> None:
    """Raises ValueError if several parts of a processed prompt, or only an area of it, are read at this level."""
    read = active(prompt, level)
    if len(read) > 1 or any(entry.get("area") is not None for entry in read):
        raise ValueError(
            "Attention control reads one prompt for the whole picture; this one has several parts or areas. Use a "
            "single text, and masks of the edit instead of areas."
        )
