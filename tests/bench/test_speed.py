"""How the speed bench compares two sides whose machine gets slower meanwhile."""

from types import SimpleNamespace

import pytest


def test_each_run_of_ours_is_divided_by_the_two_that_it_stands_between(host, monkeypatch):
    from bench import speed
    clock, order = [0.0], []

    def side(name, seconds):
        def work(k):
            order.append(name)
            clock[0] += seconds * (1 + clock[0] / 100)  # slower and slower
        return work

    monkeypatch.setattr(speed.time, "process_time", lambda: clock[0])
    times = speed.in_turns(side("ours", 2.0), side("theirs", 1.0), 5)
    assert order == ["ours", "theirs"] + ["theirs"] + ["ours", "theirs"] * 5, "the first of each do not count"
    assert times.quotients == pytest.approx([2.0] * 5, rel=0.01)
    found = speed.row("ours", "theirs", times, passes=10)
    assert found["ratio"] == pytest.approx(2.0, rel=0.01) and found["ms_added_a_pass"] > 100


def test_figures_that_need_diffusers_are_told_at_the_end(host, monkeypatch, capsys):
    from bench import speed
    from harness.environment import SetupError

    def without(*args):
        raise SetupError("`--install-diffusers` puts it there.")

    monkeypatch.setattr(speed, "world", lambda: SimpleNamespace(host=None))
    monkeypatch.setattr(speed, "same_attention", lambda host: None)
    monkeypatch.setattr(speed, "Walks", lambda w, steps: None)
    monkeypatch.setattr(speed, "overhead", lambda w, scene, name, *rest: ({"graph": name, "ratio": 1.0}, [1.0]))
    monkeypatch.setattr(speed, "pairs", without)
    assert speed.main([]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("cyclediffusion_ratio and pix2pix_zero_ratio are left out.") and "--install-diff" in last
