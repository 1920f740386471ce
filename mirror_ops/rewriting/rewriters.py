"""How one step's prompt is rewritten. Each rewriter is a small frozen value, called once per step:

    rewrite(move, target, embedding, progress) -> Rewritten        (see `redescribe`)

`side` says which prompt it rewrites; `start` which prompt it starts from; `most` bounds the
evaluations of one step; `refine` is how many fixed-point iterations its inversion needs at least. To add a method, add
a subclass of `Keep`; nothing else needs to know of it but the node that offers it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..walks.provenance import Side
from .redescribe import Rewritten, mean_square

Move = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Keep:
    """`none`: the prompt stays as it is. The walk is plain DDIM sampling and shows what there is to repair."""

    name: str = "none"
    side: Side = Side.POSITIVE
    start: Side = Side.POSITIVE
    refine: int = 0

    @property
    def most(self) -> int:
        return 0

    def at(self, cfg: float) -> "Keep":
        """The rewriter to use at this guidance."""
        return self

    def __call__(self, move: Move, target: Tensor, embedding: Tensor, progress: float) -> Rewritten:
        return Rewritten(embedding, None, 0)


@dataclass(frozen=True)
class NegativePrompt(Keep):
    """`negative prompt`: the negative becomes the source prompt itself, so that guidance cancels.

    Negative-prompt inversion (Miyake et al. 2023): the closed form of null-text inversion for the source picture.
    `interpolation` is how far along the arc to the given negative it goes instead (`slerp`): 0 none, 1 all the way.
    """

    name: str = "negative prompt"
    side: Side = Side.NEGATIVE
    interpolation: float = 0.0


@dataclass(frozen=True)
class FixedPoint(NegativePrompt):
    """`fixed point + negative prompt`: an inversion that sampling undoes, and a guidance with nothing to undo.

    What rewriting has to repair has two parts. The slope read at the wrong end of each inversion move is repaired by
    solving for the right one (`refine`). The pull of guidance, which grows with cfg, is repaired in closed form by the
    negative prompt. No gradient is taken, and the displacement does not depend on cfg.
    """

    name: str = "fixed point + negative prompt"
    refine: int = 2

    def at(self, cfg: float) -> "FixedPoint":
        return replace(self, side=Side.POSITIVE if cfg == 1 else Side.NEGATIVE)


@dataclass(frozen=True)
class Adam(Keep):
    """`paper` (side positive: MirrorDiffusion) and `null text` (side negative: Mokady et al. 2023).

    Up to `steps` Adam steps on the mean squared distance to the recorded latent, with a fresh optimiser state at each
    step of the walk, learning rate `rate` * (1 - progress / 2), and an early stop once the loss, as it was before the
    update, is below `tolerance` * (1 + 100 * progress). At 50 steps these are the official 1e-2 (1 - i / 100) and
    1e-5 + 2e-5 i. The official MirrorDiffusion code aims its last two steps at the two noisiest latents (a wrapped
    index); here each step aims at its own.

    Each picture of a batch has its own embedding, loss and stop, so a batch gives what its pictures give one by one.
    """

    name: str = "paper"
    steps: int = 10
    rate: float = 1e-2
    tolerance: float = 1e-5
    early_stop: bool = True

    @property
    def most(self) -> int:
        return self.steps

    def __call__(self, move: Move, target: Tensor, embedding: Tensor, progress: float) -> Rewritten:
        rate = self.rate * (1 - progress / 2)
        enough = self.tolerance * (1 + 100 * progress)
        first, second = torch.zeros_like(embedding), torch.zeros_like(embedding)
        open_rows = torch.ones(len(embedding), dtype=torch.bool, device=embedding.device)
        evaluations = 0
        for k in range(1, self.steps + 1):
            losses, gradient = loss_gradient(move, target, embedding)
            evaluations += 1
            update, first, second = adam_update(gradient, first, second, k)
            embedding = torch.where(open_rows[:, None, None], embedding - rate * update, embedding)
            if self.early_stop:
                open_rows = open_rows & (losses >= enough)
                if not open_rows.any():
                    break
        return Rewritten(embedding, None, evaluations)


def null_text(**settings) -> Adam:
    """Null-text inversion: the same optimiser on the negative prompt."""
    return Adam(name="null text", side=Side.NEGATIVE, start=Side.NEGATIVE, **settings)


def loss_gradient(move: Move, target: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
    """([B] mean squared distances of move(embedding) to target, [B, tokens, width] their gradients)."""
    with torch.enable_grad():
        leaf = embedding.detach().clone().requires_grad_(True)
        losses = mean_square(move(leaf) - target)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient


def adam_update(gradient: Tensor, first: Tensor, second: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """(update, first moment, second moment) of Adam's k-th step, k from 1 (Kingma & Ba 2015, algorithm 1)."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    first = torch.lerp(gradient, first, beta1)
    second = torch.lerp(gradient.square(), second, beta2)
    mean = first / (1 - beta1**k)
    spread = (second / (1 - beta2**k)).sqrt()
    return mean / (spread + eps), first, second
