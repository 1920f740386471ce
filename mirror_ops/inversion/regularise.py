"""Noise regularisation during inversion: nudges a predicted noise towards uncorrelated unit Gaussian noise.

pix2pix-zero (Parmar et al., SIGGRAPH 2023, section 3.2) descends L_auto = L_pair + lambda L_KL on the predicted noise,
never through the network. L_pair penalises the correlation of the noise with shifted copies of itself, over a pyramid
of sizes; its sum over all shifts is estimated by one random shift per channel and size, drawn anew at each descent.
MirrorDiffusion uses L_KL alone: `autocorrelation=0`.

The nudge is small: on latents of 4 x 64 x 64 the official weights take a variance of 0.25 to 0.27. It is meant for
noise of unit variance, so give it the predicted eps; a flow model's velocity, noise minus picture, is not one.
Gradients are written out, so this runs in inference mode.
"""

import torch
from torch import Generator, Tensor
from torch.nn.functional import avg_pool2d, pad

Shifts = list[list[int]]

SMALLEST = 8  # the pyramid ends with the first size whose smaller side is at most this


def regularise(
    eps: Tensor,
    generator: Generator | None = None,
    *,
    rounds: int = 5,
    rolls: int = 5,
    autocorrelation: float = 20.0,
    divergence: float = 20.0,
) -> Tensor:
    """The nudged noise [B, C, H, W]; `eps` itself is not changed. Each picture of a batch by itself.

    Each of `rounds` rounds makes `rolls` gradient steps of size `autocorrelation` / `rolls` on L_pair, each with fresh
    shifts from `generator`, and one of size `divergence` on L_KL. Defaults are the official constants. Raises
    ValueError if shifts are needed and there is no generator, or the latent's smaller side is below 4.
    """
    if autocorrelation and generator is None:
        raise ValueError("The autocorrelation term draws random shifts: give a generator, or set autocorrelation to 0.")
    for _ in range(rounds):
        if autocorrelation:
            for _ in range(rolls):
                shifts = draw_shifts(eps.shape, generator)
                eps = eps - autocorrelation / rolls * autocorrelation_gradient(eps, shifts)
        eps = eps - divergence * divergence_gradient(eps)
    return eps


def draw_shifts(shape: torch.Size, generator: Generator) -> Shifts:
    """One shift for each size of the pyramid and each channel, uniform in 1 ... S/2 - 1 with S the smaller side.

    The same shift serves both axes and all pictures of a batch. (Older copies of the official code also drew 0, which
    penalises the variance.)
    """
    channels, height, width = shape[-3:]
    side = min(height, width)
    if side < 4:
        raise ValueError(f"Noise regularisation needs latents of at least 4 x 4, not {height} x {width}.")
    shifts = []
    while True:
        drawn = torch.randint(1, side // 2, (channels,), generator=generator, device=generator.device)
        shifts.append(drawn.tolist())
        if side <= SMALLEST:
            return shifts
        side //= 2


def autocorrelation_gradient(eps: Tensor, shifts: Shifts) -> Tensor:
    """d/d eps of L_pair = sum over sizes, channels and both axes of mean(n * roll(n, shift))^2.

    eps [B, C, H, W]; shifts[k][c] belongs to channel c after k halvings by 2 x 2 averaging.
    """
    gradient = _pair_gradient(eps, shifts[0])
    if len(shifts) == 1:
        return gradient
    return gradient + _unpool(autocorrelation_gradient(avg_pool2d(eps, 2), shifts[1:]), eps.shape)


def _pair_gradient(noise: Tensor, shifts: list[int]) -> Tensor:
    """The gradient of one size: 2 m (roll(n, s) + roll(n, -s)) / HW with m = mean(n * roll(n, s)), for both axes."""
    gradient = torch.zeros_like(noise)
    for channel, shift in enumerate(shifts):
        n = noise[:, channel]  # [B, H, W]
        for axis in (1, 2):
            ahead = n.roll(shift, axis)
            mean = (n * ahead).mean(dim=(1, 2), keepdim=True)
            gradient[:, channel] += 2 * mean / n[0].numel() * (ahead + n.roll(-shift, axis))
    return gradient


def _unpool(gradient: Tensor, shape: torch.Size) -> Tensor:
    """The adjoint of 2 x 2 averaging: a quarter to each of the four; an odd last row or column was not read."""
    spread = gradient.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2) / 4
    return pad(spread, (0, shape[-1] - spread.shape[-1], 0, shape[-2] - spread.shape[-2]))


def divergence_gradient(eps: Tensor) -> Tensor:
    """d/d eps of L_KL = var + mean^2 - 1 - log(var + 1e-7) over all elements of each picture, var unbiased."""
    n = eps[0].numel()
    var, mean = torch.var_mean(eps, dim=(1, 2, 3), keepdim=True)
    return (1 - 1 / (var + 1e-7)) * 2 * (eps - mean) / (n - 1) + 2 * mean / n
