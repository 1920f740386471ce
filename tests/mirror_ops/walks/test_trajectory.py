"""Schedules, metrics, directions and the values that are saved, without a host."""

import dataclasses
import math

import pytest
import torch
from support.toys import provenance, scaled_linear_sigmas

from mirror_ops.directions import direction as directions
from mirror_ops.directions.direction import SentenceMean
from mirror_ops.directions.sentences import QUALITIES, THINGS, fill
from mirror_ops.measure.curve import draw_curves
from mirror_ops.measure.metrics import psnr, relative_displacement, ssim
from mirror_ops.walks import trajectory
from mirror_ops.walks.schedules import (
    check_grid,
    current_labels,
    paper_grid,
    paper_timesteps,
    target_labels,
    windows,
)
from mirror_ops.walks.trajectory import Mirror, load_mirror, save_mirror


def test_the_papers_grid_and_table():
    table = scaled_linear_sigmas()
    assert table.dtype == torch.float64
    assert [round(table[t].item(), 4) for t in (0, 999)] == [0.0292, 14.6146]
    assert paper_timesteps(50)[:3] == [1, 21, 41] and paper_timesteps(50)[-1] == 981
    assert paper_timesteps(60)[-1] == 945
    grid = paper_grid(table, 50)
    assert len(grid) == 51 and torch.equal(grid[-1], table[0]) and torch.equal(grid[0], table[981])
    assert round(grid[0].item(), 3) == 13.120


def test_labels_are_the_noisier_or_the_cleaner_level():
    sigmas = torch.tensor([3.0, 2.0, 1.0, 0.0])
    assert target_labels(sigmas).tolist() == [3.0, 2.0, 1.0]
    assert current_labels(sigmas, 0.03).tolist() == [2.0, 1.0, pytest.approx(0.03)]


BAD_GRIDS = [[1.0], [0.0, 1.0, 2.0], [2.0, 2.0, 0.0], [2.0, float("nan")], [1.0, -1.0], [[1.0, 0.0]]]


@pytest.mark.parametrize("bad", BAD_GRIDS)
def test_grids_that_do_not_fall_are_refused(bad):
    with pytest.raises(ValueError, match="noise levels"):
        check_grid(torch.tensor(bad))
    check_grid(torch.tensor([2.0, 1.0, 0.0]))


def test_each_level_lies_in_exactly_one_window():
    def level_at(fraction):
        asked.append(fraction)
        return 15 * (1 - fraction) ** 3

    for levels in ([14.0, 5.0, 1.0, 0.2], [15 * (1 - k / 50) ** 3 for k in range(50)]):
        asked = []
        made = windows(levels, level_at)
        assert len(asked) < 8 * len(levels), "a few looks each: a model's answer takes as long as a small layer"
        assert made[0][0] == 0.0 and made[-1][1] == 1.0
        assert [a for a, _ in made[1:]] == [b for _, b in made[:-1]]
        inside = [[level_at(b) <= level <= level_at(a) or (a, b) == (0, 1) for a, b in made] for level in levels]
        assert [row.index(True) for row in inside] == list(range(len(levels))) and all(sum(row) == 1 for row in inside)
    assert windows([0.5], level_at) == [(0.0, 1.0)]
    with pytest.raises(ValueError, match="Steps 1 and 2 lie too close"):
        windows([9.0, 5.0, 5.0], level_at)


def test_relative_displacement_and_psnr():
    x, y = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    x[1] = 0.9
    assert relative_displacement(x, y).tolist() == [1.0, pytest.approx(0.1)]
    assert psnr(x, y).tolist() == [0.0, pytest.approx(20.0, abs=1e-4)]


def test_ssim_equals_its_definition_window_by_window():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 2, 13, 12, generator=generator, dtype=torch.float64)
    y = (x + 0.2 * torch.rand(x.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    bell = torch.tensor([[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in range(11)] for i in range(11)])
    bell = (bell / bell.sum()).double()
    values = []
    for c in range(2):
        for i in range(3):
            for j in range(2):
                a, b = (p[0, c, i : i + 11, j : j + 11] for p in (x, y))
                ma, mb = (bell * a).sum(), (bell * b).sum()
                va, vb = (bell * (a - ma) ** 2).sum(), (bell * (b - mb) ** 2).sum()
                cov = (bell * (a - ma) * (b - mb)).sum()
                values.append(
                    (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    assert ssim(x, y).item() == pytest.approx(torch.stack(values).mean().item(), abs=1e-6)
    assert ssim(x, x).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least 11"):
        ssim(x[..., :10], y[..., :10])


def test_the_curve_is_drawn_where_its_values_are():
    picture = draw_curves([[1.0, 0.1, 0.001], [0.5, 0.5, 0.5]], "a title")
    assert picture.shape == (360, 640, 3)
    blue = (picture == (31, 119, 180)).all(axis=-1)
    rows = [blue[:, x].nonzero()[0].mean() for x in (70, 340, 620)]
    assert rows[0] < rows[1] < rows[2], "falling values must be drawn lower and lower"


def test_there_are_frames_enough_and_they_name_the_word():
    for bank in (THINGS, QUALITIES):
        assert len(set(bank)) == len(bank) >= 60
        assert all("owl" in sentence for sentence in fill(bank, ["owl"]))
    assert fill(("{a} {word} here",), ["owl", "cat"]) == ["an owl here", "a cat here"]


def test_other_braces_of_a_frame_stay_and_those_of_a_word_too():
    frame = 'Answer as {"text": ...}, with {} or {0}: {a} {word}.'
    assert fill((frame,), ["owl {a}"]) == ['Answer as {"text": ...}, with {} or {0}: an owl {a}.']


@pytest.mark.parametrize("bank", [THINGS, QUALITIES])
def test_halves_of_the_sentences_have_the_same_words(bank):
    """An encoder without noise, of which a sentence is only its word: the halves agree."""
    code = {word: vector[None] for word, vector in zip(("cat", "lion", "dog", "wolf"), torch.eye(4), strict=True)}
    sides = [
        SentenceMean(code[next(word for word in code if word in sentence.split())] for sentence in fill(bank, words))
        for words in (["cat", "lion"], ["dog", "wolf"])
    ]
    assert directions.agreement(*sides) > 0.99


def test_no_encoding_is_kept():
    encodings = [torch.randn(1, 77, 64) for _ in range(50)]
    mean = SentenceMean(encodings)
    held = [value for value in (mean.first, *mean._sums) if isinstance(value, torch.Tensor)]
    assert sum(value.numel() for value in held) == 3 * 77 * 64 and mean.count == 50
    assert torch.allclose(SentenceMean(encodings[:1]).to(mean), sum(encodings) / 50 - encodings[0], atol=1e-6)

def encodings(seed, offset=0.0, count=6):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 7, 4, generator=generator) + offset for _ in range(count)]


def test_a_direction_is_the_difference_of_means_and_its_halves_tell_noise_from_signal():
    source, target = encodings(0), encodings(1, offset=3.0)
    means = SentenceMean(source), SentenceMean(target)
    delta = means[0].to(means[1])
    assert torch.allclose(delta, torch.cat(target).mean(0, keepdim=True) - torch.cat(source).mean(0, keepdim=True))
    signal, noise = directions.agreement(*means), directions.agreement(*map(SentenceMean, (encodings(2), encodings(3))))
    assert signal > 0.9 and abs(noise) < 0.5
    made = directions.EditDirection(delta, meta={"source": "cat", "target": "dog", "sentences": 6})
    assert "WARNING" in directions.direction_report(made, noise)
    assert "WARNING" not in directions.direction_report(made, signal)
    alone = directions.agreement(*map(SentenceMean, (source[:1], target[:1])))
    assert "no halves" in directions.direction_report(made, alone)
    with pytest.raises(ValueError, match="shorter sentences"):
        means[0].to(SentenceMean([torch.zeros(1, 14, 4)]))


def test_a_direction_fits_longer_prompts_in_their_first_chunk_and_refuses_other_encoders():
    made = directions.EditDirection(torch.ones(1, 7, 4))
    padded = made.for_tokens(14, 4)
    assert padded[:, :7].eq(1).all() and padded[:, 7:].eq(0).all()
    with pytest.raises(ValueError, match="different text encoders"):
        made.for_tokens(7, 5)
    with pytest.raises(ValueError, match="only 6"):
        made.for_tokens(6, 4)


def test_directions_are_saved_and_loaded_equal(tmp_path):
    made = directions.EditDirection(torch.randn(1, 7, 4), torch.randn(1, 4), {"source": "cat", "target": "dog"})
    directions.save_direction(made, tmp_path / "d.safetensors")
    read = directions.load_direction(tmp_path / "d.safetensors")
    assert torch.equal(read.delta, made.delta) and torch.equal(read.pooled, made.pooled) and read.meta == made.meta
    with pytest.raises(ValueError, match="not a saved mirror"):
        load_mirror(tmp_path / "d.safetensors")


def test_pt_pairs_are_read_as_weights_only(tmp_path):
    torch.save(torch.zeros(1, 7, 4), tmp_path / "cat.pt")
    torch.save(torch.ones(7, 4), tmp_path / "dog.pt")
    made = directions.load_pt_pair(tmp_path / "cat.pt", tmp_path / "dog.pt")
    assert made.delta.eq(1).all() and made.meta["source"] == "cat" and made.meta["target"] == "dog"
    torch.save({"not": "a tensor"}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="one tensor"):
        directions.load_pt_pair(tmp_path / "cat.pt", tmp_path / "other.pt")

    class Sly:
        def __reduce__(self):
            return (tmp_path.joinpath("touched").touch, ())

    torch.save(Sly(), tmp_path / "sly.pt")
    with pytest.raises(ValueError, match="more than tensors"):
        directions.load_pt_pair(tmp_path / "sly.pt", tmp_path / "dog.pt")
    assert not (tmp_path / "touched").exists()


def mirror(steps=3, batch=2, **changes):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(steps + 1, batch, 4, 5, 6, generator=generator)
    values = {
        "sigmas": torch.linspace(3, 0, steps + 1),
        "latents": latents,
        "reconstruction": latents + 0.1,
        "source": torch.randn(1, 7, 4, generator=generator),
        "embeddings": torch.randn(steps, batch, 7, 4, generator=generator),
        "pooled": torch.randn(1, 1, 4, generator=generator),
        "mask": None,
        "provenance": provenance(losses=((0.1, 0.2),)),
    }
    return Mirror(**{**values, **changes})


def test_mirrors_are_saved_and_loaded_equal(tmp_path):
    made = mirror()
    save_mirror(made, tmp_path / "m.safetensors")
    read = load_mirror(tmp_path / "m.safetensors")
    assert read.provenance == made.provenance and read.mask is None and read.same_as(made)
    for name in ("sigmas", "latents", "reconstruction", "source", "embeddings", "pooled"):
        assert torch.equal(getattr(read, name), getattr(made, name))
    assert read.steps == 3 and read.displacement.shape == (4, 2)


def test_mirrors_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 steps cannot hold latents"):
        mirror(sigmas=torch.linspace(3, 0, 3))
    with pytest.raises(ValueError, match="cannot hold prompts"):
        mirror(embeddings=torch.zeros(2, 1, 7, 4))


def test_files_of_a_later_version_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(trajectory, "FILE", dataclasses.replace(trajectory.FILE, version=2))
    save_mirror(mirror(), tmp_path / "m.safetensors")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="version 2.*reads up to 1"):
        load_mirror(tmp_path / "m.safetensors")
