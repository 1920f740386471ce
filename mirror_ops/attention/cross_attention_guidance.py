"""Cross-attention guidance: keeps the edit's attention near the source's, by a gradient step on the noisy latent.

pix2pix-zero (Parmar et al., SIGGRAPH 2023, section 3.3): before each prediction x_t descends L_xa, the distance of the
edit's cross-attention maps M from those of the reconstruction at the same step, M_ref. The paper writes a norm; the
official code, followed here, squares it. MirrorDiffusion (Xue et al., IEEE SPL 2024) adds a cycle loss at a few steps.
Its code also compares the keys and values of cross-attention: those are functions of the text alone, so their gradient
on x_t is zero, and they are left out.
"""

import torch
from torch import Tensor

HALVES = 2  # of the batch in the official code: the loss is a mean over its rows and heads
CYCLE_AT = (1 / 6, 1 / 4, 1 / 3, 5 / 12)  # of the walk: steps 10, 15, 20 and 25 of MirrorDiffusion's 60
CYCLE_FIRST, CYCLE_DECAY = 0.9, 0.8


def map_loss(maps: Tensor, reference: Tensor) -> Tensor:
    """L_xa of one layer: the sum over pixels and tokens of (M - M_ref)^2, averaged over 2 x heads rows.

    maps and reference [B or 1, heads, pixels, tokens] belong to one half of the guidance; the losses of both halves and
    of all layers add up. Summed over the pictures of a batch, so that each has the gradient that it has alone.
    """
    return (maps - reference).square().sum() / (HALVES * maps.shape[1])


def descend(x: Tensor, gradient: Tensor, amount: float, scale: Tensor | float) -> Tensor:
    """The model-space latent after a gradient step of `amount` on scale * x, the network's input (the paper's x_t).

    gradient [B, C, H, W] is with respect to x itself, hence the square.
    """
    return x - amount / scale**2 * gradient


def carried(denoised: Tensor, shift: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """What a sampler that stands at x must be told so that its Euler step arrives where that from x + shift would.

    denoised is the prediction at x + shift. The step from there is (x + shift) + (s' - s) (x + shift - D) / s, which
    is the step from x with D + shift * s' / (s - s'). Without this only the prediction would see the shift.
    """
    return denoised + sigma_next / (sigma - sigma_next) * shift


def cycle_weights(steps: int) -> dict[int, float]:
    """{step: weight} of MirrorDiffusion's cycle loss in a walk of `steps`, its four steps scaled to that number."""
    at = [round(part * steps) for part in CYCLE_AT]
    weights = [CYCLE_FIRST * CYCLE_DECAY**k for k in range(len(at))]
    return {step: weight for step, weight in reversed(list(zip(at, weights, strict=True))) if step < steps}


def loss_scale(loss: Tensor) -> Tensor:
    """The power of two by which a loss is multiplied for its backward pass, and its gradient divided after it.

    In half precision the gradients of small differences vanish; this brings the root of the loss to about 1024, far
    from both ends. Exact, whatever the loss is. 1 for a loss of 0.
    """
    return torch.where(loss > 0, torch.exp2(10 - loss.clamp(min=1e-30).log2().div(2).round()), torch.ones_like(loss))
