"""Proximal guidance: keep only the large part of what guidance adds, and pull the rest back to the recorded picture.

ProxEdit (Han et al., WACV 2024, algorithm 1). Guidance adds s (eps_c - eps_u). Where the edit changes nothing this
difference is small but not zero, and it adds up. A proximal map with threshold tau removes it: the l1 norm's (`soft`)
or the l0 norm's (`hard`). The official code's option named 'l0' is the soft one, and all its results were made with it;
its option 'l1' is neither and can turn signs. Here names mean what they say.

Everything is written on denoised: D_c - D_u = -sigma (eps_c - eps_u), and for flow models -sigma times the difference
of velocities. Thresholds by quantile do not see this factor; a fixed tau, given for eps, is multiplied by sigma first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ..measure.quantile import quantile
from ..walks.ddim import euler
from ..walks.noise import signal

Prox = Callable[[Tensor, Tensor | float], Tensor]


def soft(delta: Tensor, tau: Tensor | float) -> Tensor:
    """sign(d) max(|d| - tau, 0): the proximal map of tau ||.||_1."""
    return delta.sign() * (delta.abs() - tau).clamp(min=0)


def hard(delta: Tensor, tau: Tensor | float) -> Tensor:
    """d where |d| > tau, else 0: the proximal map of tau^2 / 2 ||.||_0."""
    return torch.where(delta.abs() > tau, delta, torch.zeros_like(delta))


def quantile_threshold(delta: Tensor, q: float) -> Tensor:
    """[B, 1, 1, 1] the q-quantile of |delta| [B, C, H, W] of each picture, as in Prox-MasaCtrl. q in [0, 1].

    Give the branch that is edited. Raises ValueError for another q.
    """
    _check_quantile(q)
    return quantile(delta.abs().flatten(1), q).reshape(-1, 1, 1, 1)


def batch_quantile_threshold(delta: Tensor, q: float) -> Tensor:
    """The q-quantile of |delta| over a whole batch, a number: what the official ProxNPI code takes.

    Its batch holds the source branch too, where delta is 0, so that q acts as 2 q - 1 does on the edited branch alone
    (its default 0.7 as 0.4). Raises ValueError for q outside [0, 1].
    """
    _check_quantile(q)
    return quantile(delta.abs().flatten(), q)


@dataclass(frozen=True)
class Threshold:
    """How tau is found at each step: the `quantile` of |delta|, or, where that is None, `fixed`, in units of eps.

    The quantile is each picture's own. With `whole_batch` it is the published one, over all pictures at once.
    Raises ValueError for a quantile outside [0, 1] or a negative `fixed`.
    """

    quantile: float | None = 0.7
    fixed: float = 0.0
    whole_batch: bool = False

    def __post_init__(self):
        if self.quantile is not None:
            _check_quantile(self.quantile)
        if self.fixed < 0:
            raise ValueError(f"The threshold is at least 0, not {self.fixed:g}.")

    def __call__(self, delta: Tensor, sigma: Tensor, alone: bool = False) -> Tensor:
        """tau, broadcastable to delta = D_c - D_u [B, C, H, W]; sigma [B] or a number.

        `alone` says that delta is the edited branch by itself; the published batch has the source branch's zeros too.
        """
        if self.quantile is None:
            return self.fixed * sigma.reshape(-1, 1, 1, 1)
        if not self.whole_batch:
            return quantile_threshold(delta, self.quantile)
        batch = torch.cat([torch.zeros_like(delta), delta]) if alone else delta
        return batch_quantile_threshold(batch, self.quantile)


def proximal_guidance(cond: Tensor, uncond: Tensor, scale: float, tau: Tensor | float, prox: Prox = soft) -> Tensor:
    """D_u + scale * prox(D_c - D_u), all [B, C, H, W], tau in their units. At tau 0 classifier-free guidance."""
    return uncond + scale * prox(cond - uncond, tau)


def without_small(denoised: Tensor, delta: Tensor, scale: float, tau: Tensor | float, prox: Prox = soft) -> Tensor:
    """A guided prediction less what guidance added below the threshold: scale * (delta - prox(delta)).

    Of classifier-free guidance this makes `proximal_guidance`; what else was added to the prediction stays in it.
    """
    return denoised - scale * (delta - prox(delta, tau))


def edit_mask(delta: Tensor, tau: Tensor | float, dilation: int = 1) -> Tensor:
    """1 where |delta| > tau within `dilation` cells, else 0; per channel, [B, C, H, W] as delta.

    The official code gives prox(delta) here, so that only differences beyond 2 tau count and more is pulled back.
    """
    mask = (delta.abs() > tau).to(delta.dtype)
    return max_pool2d(mask, 2 * dilation + 1, stride=1, padding=dilation)


@dataclass(frozen=True)
class EditMask:
    """Where an edit is left alone: `edit_mask` at a threshold of its own. `published`: as the official code has it."""

    threshold: Threshold
    dilation: int = 1
    published: bool = False

    def __call__(self, delta: Tensor, sigma: Tensor, alone: bool = False) -> Tensor:
        """[B, C, H, W] as delta; arguments as those of `Threshold`. |soft(delta)| > tau is |delta| > 2 tau."""
        tau = self.threshold(delta, sigma, alone)
        return edit_mask(delta, 2 * tau if self.published else tau, self.dilation)


def inversion_guidance(x_next: Tensor, recorded: Tensor, mask: Tensor, rate: float) -> Tensor:
    """x - rate (x - x*) (1 - mask): after a step, a pull to the latent x* recorded at the same level.

    At rate 1 everything outside the mask is the recording.
    """
    return x_next - rate * (x_next - recorded) * (1 - mask)


def reconstruction_guidance(
    x: Tensor,
    denoised: Tensor,
    clean: Tensor,
    mask: Tensor,
    rate: float,
    sigma: Tensor,
    sigma_next: Tensor,
    flow: bool = False,
) -> Tensor:
    """The latent at sigma_next whose prediction D was pulled to the picture, D - rate (D - x0) (1 - mask).

    Noise is added back as it was predicted before the pull, so only the picture's share a D of the latent moves.
    """
    pull = -rate * (denoised - clean) * (1 - mask)
    return euler(x, denoised, sigma, sigma_next) + signal(sigma_next, flow) * pull


def _check_quantile(q: float) -> None:
    if not 0 <= q <= 1:
        raise ValueError(f"The threshold's quantile lies between 0 (all guidance) and 1 (none), not at {q}.")
