"""Training of a distilled edit: resumable at every step, and the same however often it was stopped.

What a step draws depends on the seed and the step's number alone, so a training that is taken up again goes on to the
very weights that it would have reached.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from io import BytesIO
from math import cos, pi
from pathlib import Path

import torch
from torch import Tensor, nn

from ..storage.whole_file import write_whole
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
    al. 2024: one base, a hundredth of it for each edit). `pairs` names what it learns from (`pairs.digest`)."""

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
    pairs: str = ""

    @property
    def digest(self) -> str:
        """A name of the plan: the same for equal ones."""
        return sha256(repr(asdict(self)).encode()).hexdigest()[:12]

    def rate_at(self, step: int) -> float:
        return self.rate * min(1.0, (step + 1) / WARM_UP) * (1 + cos(pi * step / self.steps)) / 2


class State:
    """A training at a step: the network, its averaged weights, the discriminator, and both optimisers' moments; and the
    seconds of processor time that its steps have taken, stops left out."""

    def __init__(self, plan: Plan, device: torch.device | str = "cpu", base: nn.Module | None = None):
        """`base` is a network of the plan's shape, whose weights are copied."""
        self.plan, self.device, self.step, self.spent = plan, torch.device(device), 0, 0.0
        self.whole = True  # False in the middle of a step
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

    @property
    def bytes(self) -> int:
        """About how large the file of `save` is: both networks, the average, two moments of each."""
        judge = sum(weight.numel() for weight in self.judge.parameters())
        return 4 * (4 * sum(weight.numel() for weight in self.network.parameters()) + 3 * judge)

    def save(self, path: Path) -> None:
        """The file appears whole or not at all. In the middle of a step, as after an error there, what was kept before
        stays, and its steps are taken again. Raises OSError, with a sentence, if it can't be written."""
        if not self.whole:
            return
        kept = {name: part.state_dict() for name, part in self._parts().items()}
        content = BytesIO()  # on a full disk torch's own writer raises no OSError
        torch.save({"plan": self.plan.digest, "step": self.step, "spent": self.spent, "average": self.average, **kept},
                   content)
        write_whole(path, content.getbuffer())

    @classmethod
    def load(cls, path: Path, plan: Plan, device: torch.device | str = "cpu") -> State | None:
        """The training that was stopped here, or None: no file, a damaged one, or one of another plan."""
        kept = _kept(path, device)
        if kept.get("plan") != plan.digest:
            return None
        state = cls(plan, device)
        try:
            for name, part in state._parts().items():
                part.load_state_dict(kept[name])
            state.average, state.step, state.spent = kept["average"], kept["step"], kept["spent"]
        except Exception:  # whatever a damaged file makes torch raise: begin anew
            return None
        return state

    def averaged(self):
        """A network with the averaged weights: the result."""
        network = make(self.plan.shape)
        network.load_state_dict({**self.network.state_dict(), **self.average})
        return network.eval()


def begun(path: Path, plan: Plan, device: torch.device | str = "cpu",
          base: nn.Module | None = None) -> tuple[State, str]:
    """(the training of this plan, in a sentence what was found at `path`; empty: nothing).

    One that was stopped goes on. What lies there of another plan (or damaged) is moved beside it, under the name of its
    plan, and goes on when that plan comes again. Raises OSError if it can't be moved.
    """
    state, said = State.load(path, plan, device), ""
    if state is None and path.exists():
        other = _kept(path, "cpu").get("plan")
        aside, what = _beside(path, other or "damaged"), "of other settings or pairs" if other else "damaged"
        os.replace(path, aside)
        said = f"The unfinished training that was here is {what}: it is kept as {aside.name}. "
    before = _beside(path, plan.digest)
    if state is None and (state := State.load(before, plan, device)) is not None:
        os.replace(before, path)
    if state is not None:
        said += f"An unfinished training goes on at step {state.step} of {plan.steps}."
    return state or State(plan, device, base), said.strip()


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}.{name}{path.suffix}")


def _kept(path: Path, device: torch.device | str) -> dict:
    """What `State.save` wrote; nothing if the file is not there or damaged."""
    try:
        kept = torch.load(path, map_location=device, weights_only=True)
        return kept if isinstance(kept.get("plan"), str) and re.fullmatch("[0-9a-f]{12}", kept["plan"]) else {}
    except Exception:  # whatever a damaged file makes torch raise
        return {}


def seconds_left(state: State, pairs: list[Pair]) -> float:
    """About how long the rest of this training takes by the clock: steps of a copy are timed, without the discriminator
    and with it, which comes in the second half."""
    plan = state.plan
    half = plan.steps // 2 if plan.adversarial else plan.steps
    rest = {0: max(0, half - state.step), half: plan.steps - max(half, state.step)}  # a step of each kind: how many
    trial, seconds = State(plan, state.device), 0.0
    one_step(trial, pairs)  # the first is slower
    for trial.step, count in rest.items():
        if count:
            started = time.monotonic()
            one_step(trial, pairs)
            seconds += count * (time.monotonic() - started)
    return seconds


def train(state: State, pairs: list[Pair], on_step: Callable[[State, dict], None] | None = None) -> None:
    """Trains `state` to its plan's last step. `on_step(state, losses)` is called after each; it may raise to stop."""
    while state.step < state.plan.steps:
        started = time.process_time()
        losses = one_step(state, pairs)
        state.spent += time.process_time() - started
        if on_step is not None:
            on_step(state, losses)


def one_step(state: State, pairs: list[Pair]) -> dict[str, float]:
    """{"pixel", "gradient", "adversarial"} of one step of the network, after one of the discriminator."""
    plan, state.whole = state.plan, False
    before, wanted, region = drawn(pairs, plan, state.step, state.device)
    made = state.network(before)
    losses = {"pixel": pixel_loss(made, wanted, region),
              "gradient": plan.gradient * gradient_loss(made, wanted, region)}
    if plan.adversarial and state.step >= plan.steps // 2:
        judged = discriminator_loss(state.judge, before, made, wanted, region)
        _descend(state.judge_optimiser, judged, plan, state.step, 0.25)
        losses["adversarial"] = plan.adversarial * adversarial_loss(state.judge, before, made, region)
    _descend(state.optimiser, sum(losses.values()), plan, state.step)
    state.step += 1
    decay = min(DECAY, state.step / (state.step + 10))
    with torch.no_grad():
        for name, weight in learnt(state.network).items():
            state.average[name].lerp_(weight, 1 - decay)
    state.whole = True
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
