"""What bounds an edit, and which rule finds its region: the two benches beside `bench edits`."""

import json

import pytest
import torch


def test_what_a_picture_leaves_open_is_found_and_bounds_the_answer(host):
    from bench import edits_bound
    from bench.edits_tasks import TASKS, cases_of
    glasses, dog, striped = (cases_of(TASKS[name], 1, held_out=True)[0] for name in
                             ("no glasses to glasses", "cat to dog", "plain to striped"))
    assert {"frame", "lens"} <= set(edits_bound.open_details(glasses)) and "x" not in edits_bound.open_details(glasses)
    assert "phase" in edits_bound.open_details(striped)
    found = {case.task.name: edits_bound.spread(case) for case in (glasses, dog, striped)}
    assert 0 < found["no glasses to glasses"]["mean"] < .05 > found["plain to striped"]["any"] > 0
    assert set(found["no glasses to glasses"]["open"]) == {"frame", "lens"}
    assert found["cat to dog"]["any"] == 0 and not found["cat to dog"]["open"], "a cat's picture says all of the dog's"
    for one in found.values():
        assert one["coded"] > one["any"]


@pytest.mark.slow
def test_the_bound_and_the_regions_are_written(host, tmp_path, capsys):
    from bench import edits_bound, edits_regions
    bound, regions = tmp_path / "bound.json", tmp_path / "regions.json"
    edits_bound.main(["--groups", "several", "--scenes", "1", "--seeds", "2", "--decoded", "--steps", "3",
                      "--json", str(bound)])
    row = json.loads(bound.read_text())["rows"][0]
    assert row["mean of noises"] > row["ours"] > 0 and row["any"] is None and row["coded"] > 20
    assert row["answer's cells"] > row["ours in them"] > row["ours decoded"] > 15
    edits_regions.main(["--groups", "several", "--scenes", "1", "--steps", "3", "--json", str(regions)])
    rows = {row["rule"]: row for row in json.loads(regions.read_text())["rows"]}
    assert rows["otsu"]["iou, of the answer"] > .6 and rows["otsu"]["outside"] > rows["otsu, logarithm"]["outside"]
    assert "in the walk" in capsys.readouterr().out


def test_regions_are_compared_with_the_true_masks(host):
    from bench.edits_tasks import TASKS, cases_of
    from mirror_ops.measure.within import intersection_over_union
    from mirror_ops.regions.found import picture_region
    [case] = cases_of(TASKS["hat recoloured"], 1, held_out=True)
    before, answer, mask = case.pictures()
    region = picture_region(before.movedim(-1, 1), answer.movedim(-1, 1))
    assert intersection_over_union(region, mask).item() > .8
    assert intersection_over_union(torch.roll(region, 40, -1), mask).item() < .4


@pytest.mark.parametrize("bench", ["edits-bound", "edits-regions"])
def test_they_are_listed(bench, capsys):
    from bench import run
    run.main([])
    assert bench in capsys.readouterr().out


def test_plots_hold_their_points_and_tables_their_numbers(tmp_path, capsys):
    import numpy as np
    from PIL import Image

    from bench.plots import Point, bars, scatter
    from bench.table import show
    scatter(tmp_path / "s.png", [Point("one", 0, 0, True), Point("two", 0, .01, False), Point("three", 1, 1, True)],
            "title", "x", "y")
    bars(tmp_path / "b.png", ["one", "two"], {"hit": [.5, 1], "kept": [1, 0]}, "title")
    for name in ("s.png", "b.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
        assert (np.abs(pixels - (0x1f, 0x77, 0xb4)).sum(-1) < 20).sum() > 40
    show([{"method": "a", "value": .001, "count": 2}, {"method": "longer", "value": 1.5, "count": 10}], "heading")
    title, *lines = capsys.readouterr().out.splitlines()[1:]
    assert title == "heading" and len({len(line) for line in lines}) == 1, "numbers end where their column ends"
    assert [line.split() for line in lines] == [
        ["method", "value", "count"], ["a", "1.00e-03", "2"], ["longer", "1.5", "10"]]
