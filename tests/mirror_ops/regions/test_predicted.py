"""The region that an edit acts on, found from predictions."""
import torch

from mirror_ops.regions.finders import otsu, otsu_region
from mirror_ops.regions.found import LATENT_RAMP
from mirror_ops.regions.predicted import FIRST_RAMP, edited_region, probes, walked_region


def test_otsu_finds_the_valley_between_two_hills_for_each_row():
    g = torch.Generator().manual_seed(0)
    low, high = torch.randn(3, 300, generator=g), torch.randn(3, 80, generator=g) + 8
    shifts = torch.tensor([0.0, 5.0, -3.0])[:, None]
    threshold, distance = otsu(torch.cat([low, high], 1)[:, torch.randperm(380, generator=g)] + shifts)
    assert ((threshold - shifts[:, 0]) - 4).abs().max() < 1.5 and (distance - 8).abs().max() < 0.5


def test_otsu_agrees_with_the_direct_search():
    values = torch.rand(2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) ** 3
    threshold, _ = otsu(values)
    for row, found in zip(values, threshold, strict=True):
        def between(t, row=row):
            a, b = row[row <= t], row[row > t]
            return len(a) * len(b) * (a.mean() - b.mean()) ** 2
        best = max(row.sort().values[:-1], key=between)
        assert between(found) == between(best)


def blot(strength: float, spill: float):
    """Predictions that differ by `strength` in a square and by `spill` elsewhere."""
    def look(x, sigma, i):
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(i)) + 0.5
        change = torch.full_like(x, spill) * noise
        change[..., 4:9, 6:12] = strength * noise[..., 4:9, 6:12]
        return 0.5 * x, 0.5 * x + change
    return look


def test_the_region_is_found_whatever_its_strength():
    latents, sigmas = torch.randn(21, 2, 4, 16, 16), torch.linspace(10, 0, 21)
    truth = torch.zeros(1, 1, 16, 16)
    truth[..., 4:9, 6:12] = 1
    for strength in (0.1, 1.0, 30.0):
        region = edited_region(blot(strength, strength / 12), sigmas, latents)
        assert region.shape == (2, 1, 16, 16) and (region - truth).abs().max() < 0.3


def test_a_lone_cell_is_noise_and_a_hole_is_closed():
    change = torch.ones(1, 1, 16, 16)
    change[..., 4:11, 4:11] = 10
    clean = otsu_region(change, FIRST_RAMP)
    change[..., 7, 7], change[..., 1, 14] = 3, 5
    region = otsu_region(change, FIRST_RAMP)
    assert clean[..., 7, 7] == 1 and region[..., 7, 7] > 0.6 and region[..., 1, 14] < 0.1


def test_no_edit_gives_no_region():
    latents, sigmas = torch.randn(11, 1, 4, 8, 8), torch.linspace(10, 0, 11)
    assert edited_region(lambda x, sigma, i: (0.5 * x, 0.5 * x), sigmas, latents).max() == 0
    assert otsu_region(torch.ones(1, 1, 4, 4), LATENT_RAMP).max() == 0


def test_rounding_is_no_edit_beside_an_edit_that_is():
    """Values larger on one side than on the other, as a picture's are, round more there."""
    latents, sigmas = torch.randn(11, 2, 4, 16, 16), torch.linspace(10, 0, 11)
    slope = torch.linspace(0.2, 3.0, 16)

    def look(x, sigma, i):
        before = slope * torch.randn(x.shape, generator=torch.Generator().manual_seed(i))
        after = before * (1 + 1e-7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(99 + i)))
        after[1, :, 4:9, 6:12] += 1
        return before, after

    rounded, edited = edited_region(look, sigmas, latents)
    assert rounded.max() == 0 and edited[:, 5:8, 7:11].min() == 1


def test_once_the_edit_stands_the_region_is_what_it_changes_itself():
    first = torch.zeros(2, 1, 16, 16)
    first[..., 4:9, 6:12] = 1
    truth = torch.zeros(1, 1, 16, 16)
    truth[..., 4:9, 9:14] = 1       # joins on the right, leaves on the left
    difference = (0.05 + truth) * (torch.rand(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.5)
    region = walked_region(first, torch.ones(2, 4, 16, 16), steps=20)
    assert torch.equal(region(13, difference), first)
    assert (region(14, difference) - truth).abs().max() < 0.3
    assert torch.equal(region(14, 100 * difference), region(14, difference)), "whatever its strength"


def test_where_nothing_is_asked_for_nothing_is_changed_later_either():
    first = torch.zeros(2, 1, 16, 16)
    first[1, ..., 4:9, 6:12] = 1
    drift = torch.zeros(2, 4, 16, 16)
    drift[..., 2:5, 2:5] = 1
    region = walked_region(first, torch.ones(2, 4, 16, 16), steps=20)(19, drift)
    assert region[0].max() == 0 and region[1].max() == 1


def test_probes_lie_in_the_walk():
    for steps in (1, 2, 5, 50, 1000):
        assert all(0 <= i < steps for i in probes(steps)) and len(probes(steps)) >= 1
