"""`run.py distil`: what it refuses, what it counts, and how it goes on."""
import json
import os
import signal
from types import SimpleNamespace

import pytest

from demo import distil
from folders import JobError
from folders.ledger import FOLDER
from mirror_ops.distillation import network, training

SMALL = ["--exact", "--pictures", "8", "--steps", "2", "--batch", "1", "--width", "4"]


@pytest.mark.parametrize("options, message", [
    (["--source", "dragon"], "argument --source: invalid choice: 'dragon'"),
    (["--pictures", "7"], "--pictures 7: training takes 8 pairs or more"),
    (["--steps", "0"], "0 is no number of 1 or more"),
    (["--part"], "--part needs a --base"),
])
def test_what_can_not_be_is_told_before_any_work(capsys, options, message):
    with pytest.raises(SystemExit):
        distil.main(options)
    assert message in capsys.readouterr().err


def test_a_base_that_is_none_and_too_few_pairs_are_told_in_a_sentence(capsys, monkeypatch, tmp_path):
    assert distil.main(["--base", str(tmp_path / "nofile"), "--folder", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("run.py distil: nofile is not a readable safetensors file")
    monkeypatch.setattr(distil, "taught", lambda *_: [])
    assert distil.main(["--pictures", "10", "--folder", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "of 10 pictures 0 edits were good enough" in said and said.count("\n") == 1


def test_replace_goes_to_the_folder_job(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr("folders.command.translate", given.append)
    for replace in (False, True):
        distil.translate(tmp_path, tmp_path, "fox", "dog", replace)
    assert [options.replace for options in given] == [False, True] and all(o.retry_failed for o in given)


def test_a_picture_that_fails_costs_its_pair_and_no_more(monkeypatch, tmp_path, capsys):
    def all_but_one(options):
        for file in sorted(options.source.glob("*.png"))[1:]:
            options.target.mkdir(exist_ok=True)
            seed = int(file.stem)
            distil.render(distil.before_and_after(seed, "fox", "dog")[1]).save(options.target / file.name)
        return 1
    monkeypatch.setattr("folders.command.translate", all_but_one)
    monkeypatch.setattr(distil, "seconds_of", lambda *_: 0.0)
    args = distil.parse(["--pictures", "9", "--folder", str(tmp_path)])
    assert len(distil.taught(args, ("fox", "dog"), {})) == 8

    def refused(options):
        raise JobError("there is no room")
    monkeypatch.setattr("folders.command.translate", refused)
    assert distil.main(["--pictures", "9", "--folder", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "run.py distil: there is no room\n"


def test_minutes_are_those_of_all_runs(monkeypatch, tmp_path):
    folder = tmp_path / FOLDER / "job"
    folder.mkdir(parents=True)
    rows = [{"name": f"{k % 3:06}.png", "cpu_seconds": 10.0} for k in range(5)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert distil.seconds_of(tmp_path, 3) == 50 and distil.seconds_of(tmp_path, 1) == 20
    clock = iter(range(0, 100000, 60))
    monkeypatch.setattr(training, "time", SimpleNamespace(process_time=lambda: next(clock), monotonic=lambda: 0.0))
    for _ in range(2):      # the second finds the training at its end
        assert distil.main([*SMALL, "--folder", str(tmp_path), "--out", str(tmp_path / "edit.safetensors")]) == 0
        assert network.about(tmp_path / "edit.safetensors")["minutes"] == {"training": 2.0}


def test_other_pairs_of_the_same_number_are_another_training(tmp_path):
    pairs = distil.exact_pairs(range(8), "fox", "dog")
    args = distil.parse([*SMALL, "--folder", str(tmp_path)])
    for one in (pairs, pairs[::-1]):
        distil.trained(args, one, tmp_path)
    assert len(list(tmp_path.glob("training-*.pt"))) == 2


def test_ctrl_c_ends_between_two_steps(monkeypatch, tmp_path):
    """And the same command goes on to what it would have been."""
    pairs = distil.exact_pairs(range(8), "fox", "dog")
    step, steps = training.one_step, []

    def interrupted(state, pairs):
        steps.append(state.step)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(state, pairs)
    monkeypatch.setattr(training, "one_step", interrupted)
    monkeypatch.setattr(training, "seconds_left", lambda *_: 0.0)
    args = distil.parse([*SMALL, "--steps", "4", "--folder", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        distil.trained(args, pairs, tmp_path)
    assert steps == [0, 1]
    distil.trained(args, pairs, tmp_path)
    assert steps == [0, 1, 2, 3], "no step is taken twice"
