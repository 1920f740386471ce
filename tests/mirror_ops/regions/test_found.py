"""Regions found in what changed, and the paste."""
import time

import pytest
import torch
from torch.nn.functional import avg_pool2d, max_pool2d, pad

from mirror_ops.regions.finders import (
    grown,
    min_max_region,
    otsu_region,
    quantile_sigmoid_region,
    similarity_region,
    softened,
)
from mirror_ops.regions.found import RULES, latent_region, pasted, picture_region


def scene(height=40, width=48, seed=0):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def edited(before, strength=.4, noise=.004):
    truth = torch.zeros(1, 1, *before.shape[-2:])
    truth[..., 10:24, 12:30] = 1
    wobble = noise * torch.randn(before.shape, generator=torch.Generator().manual_seed(9))
    return before + strength * truth + wobble, truth


def overlap(region, truth):
    region = region > .5
    return float((region & (truth > 0)).sum() / (region | (truth > 0)).sum())


@pytest.mark.parametrize("strength", [.05, .4])
def test_the_region_of_two_pictures_is_found_whatever_its_strength(strength):
    before = scene()
    after, truth = edited(before, strength)
    assert overlap(picture_region(before, after, widen=0, soften=0), grown(truth, 1)) > .85
    wide = picture_region(before, after)
    assert wide[truth > 0].min() == 1 and 0 < wide.mean() < .5
    assert ((wide > .1) & (wide < .9)).any()


def test_of_two_edits_the_weak_one_counts_and_the_decoder_around_them_does_not():
    before = scene(64, 64)
    strong, weak, beside = torch.zeros(3, 1, 1, 64, 64)
    strong[..., 8:24, 8:24], weak[..., 40:56, 8:24], beside[..., 8:56, 30:60] = 1, 1, 1
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(3))
    after = before + .5 * strong + .2 * weak + (.002 + .02 * beside) * noise
    region = picture_region(before, after, widen=0, soften=0)
    assert region[strong > 0].mean() > .95 and region[weak > 0].mean() > .9
    assert region[beside > 0].mean() < .05


def test_what_nobody_sees_is_no_region():
    before = scene()
    after, _ = edited(before, strength=0, noise=.001)
    assert picture_region(before, after).max() == 0 and picture_region(before, before).max() == 0
    latent = torch.randn(2, 4, 8, 8)
    assert latent_region(1e-5 * torch.randn(2, 4, 8, 8), latent).max() == 0
    assert latent_region(torch.zeros_like(latent), latent).max() == 0


def test_each_picture_of_a_batch_is_judged_by_itself():
    latent, change = torch.randn(2, 4, 12, 12), .01 * torch.randn(2, 4, 12, 12)
    change[0, :, 2:6, 3:9] += 1
    change[1, :, 2:6, 3:9] += .05
    both = latent_region(change, latent)
    assert torch.equal(both[:1], latent_region(change[:1], latent[:1]))
    assert both[:, :, 3:5, 4:8].min() > .9 and both[:, :, 8:].max() < .3


def test_the_published_rules_on_a_change_that_is_known():
    change = torch.linspace(1, 3, 100).reshape(1, 1, 10, 10)
    assert torch.allclose(min_max_region(change), (change - 1) / 2)
    sigmoid = quantile_sigmoid_region(change, closing=1)
    low, high = change.quantile(.05), change.quantile(.95)
    wanted = torch.sigmoid(15 * (((change - low) / (high - low)).clamp(0, 1) - .5))
    assert torch.allclose(sigmoid, wanted, atol=1e-6)
    kept = torch.full_like(change, 8.0)
    assert torch.equal(similarity_region(change, kept), (change > 2).float())      # 8 / (8 + 2) = .8


def test_closing_fills_a_hole_and_keeps_the_edge():
    change = torch.full((1, 1, 20, 20), .1)
    change[..., 5:15, 5:15] = 5
    whole = quantile_sigmoid_region(change)
    change[..., 9, 9] = .1
    assert torch.equal(quantile_sigmoid_region(change), whole)


def test_every_rule_finds_a_plain_square_better_than_chance():
    before = scene()
    after, truth = edited(before)
    for name in RULES:
        assert overlap(picture_region(before, after, 0, 0, name), truth) > 2 * float(truth.mean()), name


def test_otsu_has_a_hard_edge_unless_a_ramp_is_given():
    change = torch.full((1, 1, 16, 16), .01)
    change[..., 4:12, 4:12] = 1
    assert set(otsu_region(change, spread=0.).unique().tolist()) == {0., 1.}


@pytest.mark.parametrize("size", [(40, 48), (43, 55), (41, 48)])
def test_the_paste_keeps_the_originals_pixels_and_size(size):
    """A picture whose sides are no multiple of 8 is cropped in the middle by the autoencoder."""
    original = scene(*size, seed=4)
    top, left = (size[0] - 40) // 2, (size[1] - 48) // 2
    cropped = original[..., top:top + 40, left:left + 48]
    edit, truth = edited(cropped, noise=0)
    whole = pasted(edit, original, truth)
    assert whole.shape == original.shape
    changed = (whole != original).any(1)[0]
    assert torch.equal(changed.nonzero().min(0).values, torch.tensor([10 + top, 12 + left]))
    assert torch.equal(whole[..., top:top + 40, left:left + 48][..., truth[0, 0] > 0], edit[..., truth[0, 0] > 0])


def test_one_original_serves_several_edits_and_is_not_changed():
    original, edits = scene(), torch.rand(3, 3, 40, 48)
    before = original.clone()
    made = pasted(edits, original, torch.ones(3, 1, 40, 48))
    assert torch.equal(made, edits) and torch.equal(original, before)


@pytest.mark.parametrize("size", [(48, 48), (120, 48)])
def test_pictures_that_do_not_belong_together_are_refused(size):
    with pytest.raises(ValueError, match="48 x 40 and the original|one size"):
        pasted(scene(*size), scene(), torch.ones(1, 1, *size)) if size[0] < 100 else pasted(
            scene(), scene(*size), torch.ones(1, 1, 40, 48))


@pytest.mark.parametrize("by", [0, 1, 4, 60])
@pytest.mark.parametrize("size", [(17, 23), (1, 9), (24, 5)])
def test_rows_and_columns_in_turn_are_the_whole_window(by, size):
    """Borders included, also where the window is larger than the picture."""
    region, window = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(by)), 2 * by + 1
    assert torch.equal(grown(region, by), max_pool2d(region, window, stride=1, padding=by))
    wanted = avg_pool2d(pad(region.double(), (by,) * 4, mode="replicate"), window, stride=1)
    assert torch.allclose(softened(region, by).double(), wanted, rtol=0, atol=2e-6)


def test_the_cost_of_the_widest_edge_grows_with_the_windows_side_and_not_its_area():
    region, began = torch.rand(1, 1, 192, 192, generator=torch.Generator().manual_seed(0)), time.process_time()
    softened(grown(region, 256), 256)
    assert time.process_time() - began < 4


def test_softened_keeps_a_full_region_full():
    assert torch.allclose(softened(torch.ones(1, 1, 9, 9), 3), torch.ones(1, 1, 9, 9))
