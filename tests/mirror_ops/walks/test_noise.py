"""Noise that depends on the seed and on nothing else."""
import torch

from mirror_ops.walks.noise import draw, noise_of, picture_generators, seeded


def test_seeds_are_64_bit_and_the_last_one_has_neighbours():
    last = 2**64 - 1
    drawn = [torch.randn(4, generator=g) for g in [*picture_generators(last, [0, 1]), *picture_generators(0, [0])]]
    assert torch.equal(drawn[1], drawn[2]) and not torch.equal(drawn[0], drawn[1])


def test_a_picture_has_its_own_noise_whatever_it_is_batched_with():
    like = torch.zeros(3, 4, 5, 6)
    noises = noise_of(picture_generators(7, [0, 1, 2]), like, antithetic=True)
    first, opposite, second = next(noises), next(noises), next(noises)
    assert torch.equal(first, -opposite) and not torch.equal(first, second)
    assert torch.equal(next(noise_of(picture_generators(7, [2]), like[:1], antithetic=False)), first[2:])


def test_noise_is_drawn_in_single_precision_whatever_it_is_added_to():
    half, single, double = (draw(torch.zeros(1, 8, dtype=dtype), [seeded(3)]) for dtype in (
        torch.float16, torch.float32, torch.float64))
    assert double.dtype == torch.float64 and torch.equal(double.float(), single) and torch.equal(single.half(), half)
