"""Figures of a picture and its result, against pictures whose change is known."""
import math

import pytest
import torch

from folders.figures import failures, figures, table


def test_a_known_change_in_a_known_region():
    before = torch.full((1, 20, 20, 3), .5)
    after, region = before.clone(), torch.zeros(1, 20, 20)
    after[:, :10, :10] = 1.0
    region[:, :10, :5] = 1
    found = figures(before, after, region)
    assert found["region"] == pytest.approx(.125) and found["outside"] == pytest.approx(50 / 350)
    assert found["psnr"] == pytest.approx(10 * math.log10(1 / (.25 * .25)), abs=1e-3)
    assert figures(before, after)["region"] == pytest.approx(.25) and figures(before, after)["outside"] == 0


def test_equal_pictures_and_pictures_of_another_size():
    before = torch.rand(1, 16, 24, 3)
    assert figures(before, before) == {"region": 0, "outside": 0, "psnr": math.inf}
    flat = torch.full((1, 16, 24, 3), .25)
    assert figures(flat, torch.full((1, 32, 48, 4), .25))["region"] == 0


def test_a_region_that_covers_all_leaves_nothing_outside():
    assert figures(torch.zeros(1, 4, 4, 3), torch.ones(1, 4, 4, 3), torch.ones(1, 4, 4))["outside"] == 0


def test_tables_keep_results_and_failures_apart():
    rows = [{"name": "a.png", "result": "a.png", "seed": 1, "region": .5, "outside": 0., "psnr": 30., "seconds": 1.,
             "cpu_seconds": .5, "at": 0}, {"name": 'b,"c".png', "error": "broken"}]
    assert table(rows).splitlines() == ["name,result,seed,region,outside,psnr,seconds,cpu_seconds",
                                        "a.png,a.png,1,0.5,0.0,30.0,1.0,0.5"]
    assert failures(rows) == 'name,error\n"b,""c"".png",broken\n'
