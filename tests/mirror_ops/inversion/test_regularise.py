import math

import pytest
import torch
from support.toys import pictures
from torch.nn.functional import avg_pool2d

from mirror_ops.inversion.regularise import autocorrelation_gradient, divergence_gradient, draw_shifts, regularise


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def pair_loss(noise, shifts):
    """L_pair of one picture [C, H, W], spelled out pixel by pixel of the formula: no rolls, no closed gradient."""
    loss = 0
    for channel in range(noise.shape[0]):
        n = noise[channel]
        for level in shifts:
            s = level[channel]
            loss = loss + (n * torch.cat([n[-s:], n[:-s]], 0)).mean() ** 2
            loss = loss + (n * torch.cat([n[:, -s:], n[:, :-s]], 1)).mean() ** 2
            n = avg_pool2d(n[None, None], 2)[0, 0]
    return loss


def kl_loss(noise):
    mean = noise.sum() / noise.numel()
    var = ((noise - mean) ** 2).sum() / (noise.numel() - 1)
    return var + mean**2 - 1 - (var + 1e-7).log()


def descend(noise, loss, rate):
    leaf = noise.clone().requires_grad_(True)
    loss(leaf).backward()
    return noise - rate * leaf.grad


def correlated(height=32, width=32, seed=1):
    """A noise as inversion predicts it: smooth in part, too quiet, off centre."""
    noise = pictures(2, height, width, seed=seed)
    return 0.05 + 0.3 * noise + 0.2 * (noise.roll(1, 2) + noise.roll(1, 3))


@pytest.mark.parametrize("height, width", [(32, 32), (16, 16), (24, 40), (9, 13), (4, 7)])
def test_matches_the_formulas_given_the_same_shifts(height, width):
    eps = correlated(height, width)
    generator = seeded()
    expected = eps.clone()
    for _ in range(5):
        for _ in range(5):
            shifts = draw_shifts(eps.shape, generator)
            for b in range(2):
                expected[b] = descend(expected[b], lambda n, shifts=shifts: pair_loss(n, shifts), 20 / 5)
        for b in range(2):
            expected[b] = descend(expected[b], kl_loss, 20)
    moved = regularise(eps, seeded())
    assert (moved - expected).abs().max() < 1e-10
    assert (moved - eps).abs().max() > 1e-3


def test_divergence_alone():
    eps, expected = correlated(), correlated()
    for _ in range(5):
        for b in range(2):
            expected[b] = descend(expected[b], kl_loss, 20)
    assert (regularise(eps, autocorrelation=0) - expected).abs().max() < 1e-10


def test_divergence_step_at_the_official_size():
    """On 4 x 64 x 64 each step scales deviations by 1 - 40 / 16383 (1 - 1 / var): a nudge, 0.25 to 0.268 in five."""
    unit = pictures(1, 64, 64)
    unit = (unit - unit.mean()) / unit.std()
    for before in (0.25, 1.69):
        var = before
        for _ in range(5):
            var *= (1 - 40 / 16383 * (1 - 1 / var)) ** 2
        assert abs(regularise(math.sqrt(before) * unit, autocorrelation=0).var().item() - var) < 1e-6
        assert before != 0.25 or abs(var - 0.268) < 5e-4


def test_lowers_both_losses():
    eps = correlated()
    apart = regularise(eps, seeded(), divergence=0, rounds=40)
    spread = regularise(eps, autocorrelation=0)
    everywhere = [[[a] * 4, [b] * 4, [c] * 4] for a in range(1, 16) for b in (1, 4, 7) for c in (1, 2, 3)]
    for b in range(2):
        before, after = (sum(pair_loss(n[b], shifts) for shifts in everywhere) for n in (eps, apart))
        assert after < 0.9 * before
        assert kl_loss(spread[b]) < 0.8 * kl_loss(eps[b])


def test_gradients_vanish_where_they_should():
    unit = pictures(1, 64, 64)
    unit = (unit - unit.mean()) / unit.std()
    assert divergence_gradient(unit).abs().max() < 1e-9
    flat = torch.zeros(1, 4, 16, 16, dtype=torch.float64)
    flat[:, :, 0, 0] = 1  # one point: its shifted copy never meets it, at any size
    assert autocorrelation_gradient(flat, [[3] * 4, [2] * 4]).abs().max() == 0


def test_shifts_are_in_range_and_cover_it():
    generator, seen = seeded(), set()
    for _ in range(200):
        shifts = draw_shifts((2, 4, 64, 80), generator)
        assert [len(level) for level in shifts] == [4, 4, 4, 4]
        for side, level in zip((64, 32, 16, 8), shifts, strict=True):
            assert all(1 <= s <= side // 2 - 1 for s in level)
        seen.update(shifts[-1])
    assert seen == {1, 2, 3}


def test_batch_inference_mode_and_seed():
    eps = correlated()
    with torch.inference_mode():
        together = regularise(eps.clone(), seeded())
    assert torch.allclose(together[1:], regularise(eps[1:], seeded()), rtol=0, atol=1e-14)
    assert torch.equal(together, regularise(eps, seeded()))
    assert not torch.equal(together, regularise(eps, seeded(4)))
    assert torch.equal(eps, correlated())


def test_refuses_missing_generator_and_tiny_latents():
    with pytest.raises(ValueError, match="generator"):
        regularise(correlated())
    with pytest.raises(ValueError, match="at least 4 x 4"):
        regularise(correlated(3, 8), seeded())
