"""The inversion of pix2pix-zero's and MirrorDiffusion's official code to the letter: N - 2 moves up for N down.

Parmar et al. 2023 and Xue et al. 2024 walk the timesteps r+1, 2r+1, ..., (N-2)r+1 with r = 1000 // N: 48 moves for 50
steps. The move at timestep t goes from level t-1 to level t+r-1 and the network is told t; the encoded picture counts
as a latent of level r, not 0. The noise, of level (N-1)r, is then sampled as one of timestep (N-1)r+1, in N moves down
to level 0: the picture is denoised two moves further than it was noised, so no prompt retraces it exactly.

The official rewriting counts steps, not parts of the walk: its learning rate falls by 1 % and its stop rises by 2e-5 a
step whatever N is. Here both follow the part of the walk that is done, which is the same at 50 steps and nowhere else.

All of this holds for variance-preserving latents, so eps- and v-prediction models only.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..guidance.classifier_free import Denoiser
from ..inversion.invert import invert
from ..rewriting.redescribe import Rewriter, Rewritten
from .ddim import variance_preserving
from .schedules import paper_grid, paper_timesteps

RESTING = 2  # steps at the end of sampling that have no recorded latent to aim at


def parity_levels(table: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """([N-1] levels, [N-2] labels of the moves between them), in sampling order.

    `table` is the model's rising [1000] table of levels, `steps` is N. Raises ValueError for fewer than 3 steps.
    """
    if steps < 3:
        raise ValueError(f"The 48-move walk leaves out two of the steps and needs 3 or more, not {steps}.")
    stride, times = len(table) // steps, paper_timesteps(steps, len(table))[1:-1]
    levels = table[[times[0] - 1, *(t + stride - 1 for t in times)]]
    return levels.flip(0), table[times].flip(0)


def parity_invert(
    denoise: Denoiser,
    x: Tensor,
    table: Tensor,
    steps: int,
    cond: object,
    *,
    regularise: Callable[[Tensor], Tensor] | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """The trajectory [N+1, B, C, H, W] of the picture `x`, in model space, on the levels of `paper_grid(table, N)`.

    A recorded latent has the variance-preserving values that the official loops aim at, the last of them the picture's
    own; the RESTING entries after it, at which nothing aims, are the picture. `regularise` and `on_step` as in
    `invert`. Raises ValueError for fewer than 3 steps.
    """
    levels, labels = parity_levels(table, steps)
    seen = variance_preserving(levels)
    walk = invert(denoise, x / seen[-1], levels, cond, labels=labels, regularise=regularise, on_step=on_step)
    shift = seen / variance_preserving(paper_grid(table, steps)[: len(levels)])
    return torch.cat([walk * shift.reshape(-1, 1, 1, 1, 1), x.expand(RESTING, *x.shape)])


def resting(rewrite: Rewriter, steps: int) -> Rewriter:
    """`rewrite`, but the last RESTING of `steps` steps keep the prompt as it is.

    MirrorDiffusion's code aims these steps at its two noisiest latents, by an index that wraps around.
    """

    def rewrite_or_rest(move: Callable, target: Tensor, embedding: Tensor, progress: float) -> Rewritten:
        if round(progress * steps) >= steps - RESTING:
            return Rewritten(embedding, None, 0)
        return rewrite(move, target, embedding, progress)

    return rewrite_or_rest
