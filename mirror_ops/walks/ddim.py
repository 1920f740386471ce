"""One deterministic DDIM move, for every kind of prediction at once.

In the variance-exploding form X = x / sqrt(alpha_bar), sigma = sqrt((1 - alpha_bar) / alpha_bar), the DDIM update
(Song et al., "Denoising Diffusion Implicit Models", eq. 12 with eta = 0) is Euler's step on the probability-flow ODE
dX = eps dsigma. The same line moves a flow model, whose (x - denoised) / sigma is the velocity.
"""

from collections.abc import Callable, Iterator

from torch import Tensor

InputScale = Callable[[Tensor], Tensor | float]


def to_d(x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """dX / dsigma at (x, sigma): the predicted noise eps (eps- and v-prediction) or the velocity (flow). sigma > 0."""
    return (x - denoised) / sigma


def euler(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The latent at `sigma_next`, from the latent at `sigma` > 0 and its prediction. Moves up as well as down."""
    return x + (sigma_next - sigma) * to_d(x, denoised, sigma)


def implied_denoised(x: Tensor, x_next: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The prediction with which Euler's move from x at `sigma` arrives at x_next at `sigma_next`."""
    return x - sigma * (x_next - x) / (sigma_next - sigma)


def moves(sigmas: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(i, sigma_i, sigma_{i+1}) for the T moves of a grid [T+1], in the grid's own order."""
    for i in range(len(sigmas) - 1):
        yield i, sigmas[i], sigmas[i + 1]


def variance_preserving(sigma: Tensor) -> Tensor:
    """c_in = 1 / sqrt(1 + sigma^2) = sqrt(alpha_bar): model space to the unit variance that eps- and v-networks see.

    This is the `input_scale` of those models. A flow model's is the constant 1: `unscaled`.
    """
    return (1 + sigma**2) ** -0.5


def unscaled(sigma: Tensor) -> float:
    """The input scale of flow models, whose latents have unit variance at every level already."""
    return 1.0
