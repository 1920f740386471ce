"""Figures of edits against formulas written out another way: numpy and scipy in float64, one pixel at a time."""

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d, gaussian_filter

from mirror_ops.measure.image_grid import difference_heat, draw_sheet, outlined
from mirror_ops.measure.metrics import psnr, relative_displacement, ssim
from mirror_ops.measure.perceptual import clip_score, directional_similarity, prefers_target, structure_distance
from mirror_ops.measure.report import change
from mirror_ops.measure.within import (
    intersection_over_union,
    leak_within,
    psnr_blackened,
    psnr_within,
    sharpness_within,
    ssim_within,
)


@pytest.fixture
def pair():
    """(pictures, references) [2, 3, 24, 20] in [0, 1] and a mask [2, 1, 24, 20]."""
    rng = np.random.default_rng(0)
    a = rng.random((2, 3, 24, 20))
    b = np.clip(a + rng.normal(0, .1, a.shape), 0, 1)
    mask = np.zeros((2, 1, 24, 20))
    mask[0, :, 3:15, 6:18] = 1
    mask[1, :, 8:, :11] = 1
    return tuple(map(torch.from_numpy, (a, b, mask)))


def ssim_by_scipy(a, b):
    """[H, W] SSIM of one channel, borders of five pixels wrong."""
    def blur(y):
        return gaussian_filter(y, 1.5, truncate=3.4, mode="constant")      # radius 5

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, both = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    return ((2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)) / (
        (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))


def test_psnr_of_a_region_is_that_of_its_pixels(pair):
    a, b, mask = pair
    for k in range(2):
        where = mask[k, 0].numpy() > 0
        inside = (a[k].numpy() - b[k].numpy())[:, where]
        outside = (a[k].numpy() - b[k].numpy())[:, ~where]
        assert psnr_within(a, b, mask)[k].item() == pytest.approx(-10 * np.log10(np.mean(inside**2)))
        assert psnr_within(a, b, 1 - mask)[k].item() == pytest.approx(-10 * np.log10(np.mean(outside**2)))
        black = -10 * np.log10(np.sum(inside**2) / a[k].numel())
        assert psnr_blackened(a, b, mask)[k].item() == pytest.approx(black)
    assert torch.allclose(psnr_within(a, b, torch.ones(1, 1, 24, 20)), psnr(a, b))
    assert psnr_within(a, b, torch.zeros(1, 1, 24, 20)).isnan().all()


def test_ssim_of_a_region_is_the_mean_of_its_windows(pair):
    a, b, mask = pair
    for k in range(2):
        each = np.stack([ssim_by_scipy(a[k, c].numpy(), b[k, c].numpy())[5:-5, 5:-5] for c in range(3)])
        where = mask[k, 0, 5:-5, 5:-5].numpy() > 0
        assert ssim(a, b)[k].item() == pytest.approx(each.mean(), abs=1e-9)
        assert ssim_within(a, b, mask)[k].item() == pytest.approx(each[:, where].mean(), abs=1e-9)
        assert ssim_within(a, b, 1 - mask)[k].item() == pytest.approx(each[:, ~where].mean(), abs=1e-9)


def test_ssim_and_psnr_are_torchmetrics(pair):
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
    a, b, _ = pair
    for k in range(2):
        one, other = a[k:k + 1], b[k:k + 1]
        _, windows = structural_similarity_index_measure(one, other, data_range=1.0, return_full_image=True)
        assert ssim(one, other).item() == pytest.approx(windows[..., 5:-5, 5:-5].mean().item(), abs=1e-9)
        assert psnr(one, other).item() == pytest.approx(peak_signal_noise_ratio(one, other, data_range=1.0).item())


def test_structure_distance_is_written_out_pair_by_pair():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 5, 3, generator=generator, dtype=torch.float64) for _ in range(2))

    def cosine(x, y):
        return float(np.dot(x, y) / np.sqrt(np.dot(x, x) * np.dot(y, y)))

    for k in range(2):
        x, y = a[k].numpy(), b[k].numpy()
        total = sum((cosine(x[i], x[j]) - cosine(y[i], y[j])) ** 2 for i in range(5) for j in range(5))
        assert structure_distance(a, b)[k].item() == pytest.approx(total / 25)
    assert structure_distance(a, 3 * a).max() < 1e-15, "scale does not count"


def test_clip_figures_by_hand():
    image, other = torch.tensor([[3., 4.]]), torch.tensor([[4., -3.]])
    text, target = torch.tensor([[0., 2.]]), torch.tensor([[5., 0.]])
    assert clip_score(image, text).item() == pytest.approx(80)
    assert clip_score(other, text).item() == 0
    change, words = np.array([.8 - .6, -.6 - .8]), np.array([1., -1.])
    by_hand = change @ words / np.linalg.norm(change) / np.linalg.norm(words)
    assert directional_similarity(image, other, text, target).item() == pytest.approx(by_hand)
    assert prefers_target(torch.cat([image, other]), text, target).tolist() == [False, True]


def test_a_sheet_holds_every_picture_where_it_belongs():
    rng = np.random.default_rng(1)
    rows = [[rng.integers(0, 256, (16, 12, 3), dtype=np.uint8) for _ in range(3)] for _ in range(2)]
    sheet = draw_sheet(rows, ["a", "b", "c"], ["first", "second"], [[None, (255, 0, 0), None], [None] * 3])
    left, top = sheet.shape[1] - 12, sheet.shape[0] - 16
    assert (sheet[top:, left:] == rows[1][2]).all()
    assert (sheet[top - 20:top - 4, left - 32:left - 20] == rows[0][0]).all()
    assert (sheet[top - 20, left - 16:left - 4] == (255, 0, 0)).all()
    assert (sheet[:20] < 200).any() and (sheet[30:, :30] < 200).any(), "titles and labels"


def test_heat_is_dark_where_nothing_changed():
    reference = np.full((8, 8, 3), 100, np.uint8)
    changed = reference.copy()
    changed[2:4, 2:4] = 164
    heat = difference_heat(changed, reference).astype(int).sum(-1)
    assert len(np.unique(heat[4:])) == 1 and heat[2, 2] > 3 * heat[7, 7]
    mask = np.zeros((8, 8))
    mask[2:7, 2:7] = 1
    drawn = (outlined(reference, mask) == 255).all(-1)
    assert drawn.sum() == 16 and not drawn[4, 4] and drawn[2, 4]


def test_leak_is_the_part_of_the_old_picture_that_is_left(pair):
    answer, source, mask = pair
    assert leak_within(source, source, answer, mask).tolist() == pytest.approx([1, 1])
    assert leak_within(answer, source, answer, mask).abs().max() < 1e-12
    mixed = .7 * answer + .3 * source
    outside = torch.where(mask > 0, mixed, torch.rand_like(mixed))
    assert leak_within(outside, source, answer, mask).tolist() == pytest.approx([.3, .3])


def test_sharpness_is_the_energy_that_a_small_blur_takes_away(pair):
    a, b, mask = pair
    taps = np.array([1., 4, 6, 4, 1]) / 16

    def fine(y):
        rows = convolve1d(y, taps, axis=0, mode="mirror")
        return y - convolve1d(rows, taps, axis=1, mode="mirror")

    for k in range(2):
        where = mask[k, 0].numpy() > 0
        energy = [sum((fine(x[k, c].numpy()) ** 2)[where].sum() for c in range(3)) for x in (a, b)]
        assert sharpness_within(a, b, mask)[k].item() == pytest.approx(energy[0] / energy[1])
    assert sharpness_within(.5 * a + .2, a, mask).tolist() == pytest.approx([.25, .25])


def test_region_iou_counts_cells():
    region, mask = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    region[..., :2] = .8
    mask[..., 1:] = 1
    assert intersection_over_union(region, mask).item() == pytest.approx(4 / 16)
    assert intersection_over_union(torch.zeros_like(mask), torch.zeros_like(mask)).isnan()


def test_the_change_of_an_edit_is_that_of_each_picture_and_finite():
    near, flat = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(1, 4, 8, 8)
    both = torch.cat([near, 100 * near])
    moved = torch.cat([near, 0 * near])         # the first by its own size, the second not at all
    wanted = 0.5 * np.sqrt(np.square(near.numpy()).mean()) / near.numpy().std(ddof=1)
    assert change(both + moved, both) == pytest.approx(wanted, rel=1e-5)
    assert 0 < change(flat + 1, flat) < 1e3
    assert relative_displacement(flat, 0 * flat).isfinite().all()
