"""Training of a distilled edit: resumable at every step, and the same however often it was stopped.

What a step draws depends on the seed and the step's number alone, so a training that is taken up again goes on to the
very weights that it would have reached.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import cos, pi
from pathlib import Path

import torch
from torch import Tensor, nn

from .losses import (
    Discriminator,
    adversarial_loss,
    discriminator_loss,
    gradient_loss,
    pixel_loss,
    target,
)
from .network import Shape, learn_part, learnt, make
from .pairs import Pair

WARM_UP, DECAY = 50, 0.999  # steps of rising rate; of the averaged weights that are kept in the end


@dataclass(frozen=True)
class Plan:
    """How an edit is trained. `adversarial` is that loss's weight, in the second half; 0 leaves it out. `base` names
    the weights that it starts from, if any, and with `part` only a small part of them is changed (E2GAN's idea, Gong et
    al. 2024: one base, a hundredth of it for each edit)."""

    steps: int = 4000
    batch: int = 8
    size: int = 128  # of the square crops, at most the smallest picture's side
    rate: float = 2e-3
    gradient: float = 1.0
    adversarial: float = 0.01
    seed: int = 0
    shape: Shape = field(default_factory=Shape)
    base: str = ""
    part: bool = False

    def rate_at(self, step: int) -> float:
        return self.rate * min(1.0, (step + 1) / WARM_UP) * (1 + cos(pi * step / self.steps)) / 2


class State:
    """A training at a step: the network, its averaged weights, the discriminator, and both optimisers' moments."""

    def __init__(self, plan: Plan, device: torch.device | str = "cpu", base: nn.Module | None = None):
        """`base` is a network of the plan's shape, whose weights are copied."""
        self.plan, self.device, self.step = plan, torch.device(device), 0
        self.network = make(plan.shape, plan.seed).to(self.device)
        if base is not None:
            self.network.load_state_dict(base.state_dict())
        if plan.part:
            learn_part(self.network)
        self.average = {name: weight.detach().clone() for name, weight in learnt(self.network).items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed + 1)
            self.judge = Discriminator().to(self.device)
        weights = list(learnt(self.network).values())
        self.optimiser = torch.optim.AdamW(weights, lr=plan.rate, betas=(0.9, 0.95), weight_decay=1e-4)
        self.judge_optimiser = torch.optim.AdamW(self.judge.parameters(), lr=plan.rate / 4, betas=(0.5, 0.95))

    def _parts(self) -> dict:
        return {"network": self.network, "judge": self.judge, "optimiser": self.optimiser,
                "judge_optimiser": self.judge_optimiser}

    def save(self, path: Path) -> None:
        """The file appears whole or not at all. Raises OSError if it can't be written."""
        partial = path.with_name(path.name + ".partial")
        kept = {name: part.state_dict() for name, part in self._parts().items()}
        try:
            torch.save({"plan": repr(asdict(self.plan)), "step": self.step, "average": self.average, **kept}, partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, plan: Plan, device: torch.device | str = "cpu") -> State | None:
        """The training that was stopped here, or None: no file, a damaged one, or one of another plan."""
        state = cls(plan, device)
        try:
            kept = torch.load(path, map_location=state.device, weights_only=True)
            if kept["plan"] != repr(asdict(plan)):
                return None
            for name, part in state._parts().items():
                part.load_state_dict(kept[name])
            state.average, state.step = kept["average"], kept["step"]
        except Exception:  # whatever a damaged file makes torch raise: begin anew
            return None
        return state

    def averaged(self):
        """A network with the averaged weights: the result."""
        network = make(self.plan.shape)
        network.load_state_dict({**self.network.state_dict(), **self.average})
        return network.eval()


def train(state: State, pairs: list[Pair], on_step: Callable[[State, dict], None] | None = None) -> None:
    """Trains `state` to its plan's last step. `on_step(state, losses)` is called after each; it may raise to stop."""
    while state.step < state.plan.steps:
        losses = one_step(state, pairs)
        if on_step is not None:
            on_step(state, losses)


def one_step(state: State, pairs: list[Pair]) -> dict[str, float]:
    """{"pixel", "gradient", "adversarial"} of one step of the network, after one of the discriminator."""
    plan = state.plan
    before, wanted, region = drawn(pairs, plan, state.step, state.device)
    made = state.network(before)
    losses = {"pixel": pixel_loss(made, wanted, region), "gradient": plan.gradient * gradient_loss(made, wanted)}
    if plan.adversarial and state.step >= plan.steps // 2:
        _descend(state.judge_optimiser, discriminator_loss(state.judge, before, made, wanted), plan, state.step, 0.25)
        losses["adversarial"] = plan.adversarial * adversarial_loss(state.judge, before, made)
    _descend(state.optimiser, sum(losses.values()), plan, state.step)
    state.step += 1
    decay = min(DECAY, state.step / (state.step + 10))
    with torch.no_grad():
        for name, weight in learnt(state.network).items():
            state.average[name].lerp_(weight, 1 - decay)
    return {name: float(loss.detach()) for name, loss in losses.items()}


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor, plan: Plan, step: int, share: float = 1.0) -> None:
    for group in optimiser.param_groups:
        group["lr"] = share * plan.rate_at(step)
    optimiser.zero_grad()
    loss.backward()
    for group in optimiser.param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimiser.step()


def drawn(pairs: list[Pair], plan: Plan, step: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(before, target, region) of a step: `batch` crops, half of them mirrored left to right.

    The pairs are taken in a new order in each round, all before any comes again.
    """
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
    parts = []
    for k in range(step * plan.batch, (step + 1) * plan.batch):
        turn, place = divmod(k, len(pairs))
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(plan.seed * 1_000_033 + turn))
        parts.append(_crop(pairs[int(order[place])], plan.size, generator))
    before, after, region = (torch.stack(part).to(device).float() / 255 for part in zip(*parts, strict=True))
    return before, target(before, after, region), region


def _crop(pair: Pair, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    height, width = pair.before.shape[1:]
    top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for side in (height, width))
    crops = [part[:, top:top + size, left:left + size] for part in (pair.before, pair.after, pair.region)]
    if torch.rand((), generator=generator) < 0.5:
        crops = [part.flip(-1) for part in crops]
    return tuple(crops)
