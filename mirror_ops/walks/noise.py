"""A picture under noise, and noise that is the same on every machine.

At level sigma a latent is x = a x0 + sigma n: `signal` is a, `noised` is x, and n is drawn from seeded generators.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor


def signal(sigma: Tensor, flow: bool) -> Tensor | float:
    """How much of the picture a noised latent of this level holds: 1, or 1 - sigma for a flow model."""
    return 1 - sigma if flow else 1.0


def noised(picture: Tensor, noise: Tensor, sigma: Tensor, flow: bool) -> Tensor:
    """The picture at level sigma under the given unit noise."""
    return signal(sigma, flow) * picture + sigma * noise


def seeded(seed: int) -> Generator:
    """A generator on the CPU. Seeds as large as any begin again at 2^64."""
    return Generator().manual_seed(seed % 2**64)


def draw(x: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Unit noise in the shape of x [B, ...], each picture's from its own generator, drawn in float32 on the CPU: the
    same on every machine, and whatever else is in the batch."""
    return torch.stack([torch.randn(one.shape, generator=g) for one, g in zip(x, generators, strict=True)]).to(x)


def picture_generators(seed: int, places: Sequence[int]) -> list[Generator]:
    """A generator for each picture: that of `seed` + its place in the batch it belongs to."""
    return [seeded(seed + place) for place in places]


def noise_of(generators: Sequence[Generator], like: Tensor, antithetic: bool) -> Iterator[Tensor]:
    """Unit noises [B, C, H, W] without end, each picture's from its own generator, drawn on the CPU: the same on every
    device. `antithetic` ones are each followed by their opposite."""
    while True:
        drawn = [torch.randn(like.shape[1:], generator=g, dtype=like.dtype) for g in generators]
        noise = torch.stack(drawn).to(like.device)
        yield noise
        if antithetic:
            yield -noise
