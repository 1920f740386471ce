"""The walk of a picture and its edit under shared noise, in the host: with one model, or one for each side."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...mirror_ops.measure.report import change
from ...mirror_ops.regions.found import late_region, latent_region
from ...mirror_ops.walks.edit_schedule import guidance
from ...mirror_ops.walks.noise import noise_of, picture_generators
from ...mirror_ops.walks.polish import polished
from ...mirror_ops.walks.sample import PredictBoth
from ...mirror_ops.walks.shared_noise import coarse, shared_noise
from ...mirror_ops.walks.trajectory import cpu
from ..host.attach import SHARED_NOISE
from ..host.branches import Branch
from ..host.count import Count
from ..host.denoiser import run
from ..host.walk import Asked, Walk

Ask = Callable[[Tensor, int], Asked]  # of a side: its latent, the step


class Guidance(NamedTuple):
    """How strongly the edit is asked for along the walk, and by which form of it.

    `cfg` until `until`, where it is decided what is there; `after` from then on. The rest as in `shared_noise` and
    `coarse`.
    """

    cfg: float
    until: float
    after: float
    source_cfg: float = 1.0
    draws: int = 1
    jump: bool = False
    coarse: bool = True
    antithetic: bool = True

    def at(self, steps: int) -> tuple[float, ...]:
        """[T] the cfg of each step."""
        return guidance(steps, self.cfg, self.until, self.after)


class Plan(NamedTuple):
    """How both sides are walked."""

    sigmas: Tensor
    guidance: Guidance
    seed: int
    places: list[int]  # of the pictures in the batch they came from
    allowed: Tensor | None  # [B or 1, 1, H, W]
    local: bool
    flow: bool
    polish: int = 0  # last steps that are walked again by the edit alone

    @property
    def steps(self) -> int:
        """T, the moves from the first level to the last."""
        return len(self.sigmas) - 1

    def walk(self, predict: PredictBoth, picture: Tensor, **more) -> Tensor:
        """The edited picture [B, C, H, W], by the predictions of both sides."""
        return shared_noise(
            predict, picture, self.sigmas.to(picture), picture_generators(self.seed, self.places), flow=self.flow,
            draws=self.guidance.draws, jump=self.guidance.jump, antithetic=self.guidance.antithetic, **more,
        )


class Made(NamedTuple):
    """An edit, in model space on the CPU."""

    picture: Tensor
    edited: Tensor
    region: Tensor  # [B, 1, H, W] where it acted
    changes: list[float]  # how far the edit is from the picture after each step
    count: Count


def walked(model, samples: Tensor, prompts: dict, plan: Plan) -> Made:
    """Both sides with one model, the source first at each step, or both at once."""

    def algorithm(walk: Walk) -> tuple:
        source, edit = _source(walk, plan), _edit(walk, plan)
        return _edited(
            walk, samples, lambda x, y, sigma, i: walk.denoise_pair(source(x, i), edit(y, i), sigma), plan
        )

    evaluations = 2 * plan.steps * plan.guidance.draws + plan.polish
    made, count = run(
        model, samples, plan.sigmas, prompts, algorithm, evaluations=evaluations, reference=SHARED_NOISE
    )
    return Made(*made, count)


def walked_apart(model, edit_model, samples: Tensor, prompts: dict, plan: Plan) -> Made:
    """The whole source side first, which does not depend on the edit, then the other model: each is loaded once."""
    seen: list[Tensor] = []
    evaluations = plan.steps * plan.guidance.draws

    def look(walk: Walk) -> None:
        source = _source(walk, plan)

        def kept(x: Tensor, y: Tensor, sigma: Tensor, i: int) -> tuple[Tensor, Tensor]:
            seen.append(cpu(walk.asked(source(x, i), sigma)))
            return x, y

        plan.walk(kept, walk.latent_in(samples))

    def algorithm(walk: Walk) -> tuple:
        edit, before = _edit(walk, plan), iter(seen)
        return _edited(
            walk, samples, lambda x, y, sigma, i: (next(before).to(x), walk.asked(edit(y, i), sigma)), plan
        )

    on_source = {name: prompts[name] for name in prompts if name != "target"}
    _, first = run(model, samples, plan.sigmas, on_source, look, evaluations=evaluations)
    made, second = run(edit_model, samples, plan.sigmas, prompts, algorithm, evaluations=evaluations + plan.polish)
    return Made(*made, first + second)


def _source(walk: Walk, plan: Plan) -> Ask:
    prompt, against = walk.prompts["source"].entries, _against(walk)
    return lambda x, i: Asked(x, prompt, against, plan.guidance.source_cfg, Branch.SOURCE)


def _edit(walk: Walk, plan: Plan) -> Ask:
    prompt, against, cfgs = walk.prompts["target"].entries, _against(walk), plan.guidance.at(plan.steps)
    return lambda x, i: Asked(x, prompt, against, cfgs[i], Branch.EDIT)


def _against(walk: Walk) -> list:
    return (walk.prompts.get("negative") or walk.prompts["source"]).entries


def _edited(
    walk: Walk, samples: Tensor, predict: PredictBoth, plan: Plan
) -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """(picture, edited, region, change after each step)."""
    picture, changes = walk.latent_in(samples), []
    allowed, found = None if plan.allowed is None else plan.allowed.to(picture), late_region(picture, plan.steps)

    def keep(i: int, moved: Tensor) -> Tensor:
        if plan.guidance.coarse:
            moved = coarse(moved, plan.sigmas[i], plan.flow)
        return _within(allowed, found(i, moved) * moved if plan.local else moved)

    def on_step(i: int, edited: Tensor) -> None:
        changes.append(change(edited, picture))
        walk.progress.reached(round((i + 1) / plan.steps * (walk.progress.total - plan.polish)), edited)

    edited = plan.walk(predict, picture, keep=keep, on_step=on_step)
    acted = _within(allowed, latent_region(edited - picture, picture))
    again = acted if plan.local else _within(allowed, torch.ones_like(acted))
    if plan.polish and not torch.equal(edited, picture) and again.any():
        edited = _polished(walk, picture, edited, again, plan)
    return cpu(picture), cpu(edited), cpu(acted), changes


def _polished(walk: Walk, picture: Tensor, edited: Tensor, region: Tensor, plan: Plan) -> Tensor:
    prompt = walk.prompts["target"].entries
    noise = next(noise_of(picture_generators(plan.seed, plan.places), picture, antithetic=False))

    def branch(x: Tensor, sigma: Tensor, i: int) -> Tensor:
        return walk.denoise(x, sigma, prompt, branch=Branch.POLISH)

    return polished(branch, edited, picture, region, noise, plan.sigmas[-1 - plan.polish:].to(picture), plan.flow)


def _within(allowed: Tensor | None, x: Tensor) -> Tensor:
    return x if allowed is None else x * allowed
