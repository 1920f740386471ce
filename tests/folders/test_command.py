"""`run.py translate` as a user meets it, in this process: what it makes, how it goes on, what it refuses."""
import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from folders import command, results, sheet, worker

from .graphs import TINY, draw, tiny, written


@pytest.fixture
def translate(host, tmp_path):
    """translate(options) -> exit code of the command on the tiny graph; tmp_path/in -> tmp_path/out."""
    written(tmp_path, TINY)

    def translate(*options, graph="graph.json", out="out"):
        arguments = [str(tmp_path / "in"), str(tmp_path / out), "--workflow", str(tmp_path / graph), "--cpu", *options]
        return command.main(arguments)
    return translate


def pixels(file) -> np.ndarray:
    return np.asarray(Image.open(file))


def made(folder) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*.png"))}


def worked(monkeypatch) -> list[str]:
    """Names of the pictures on which the graph ran from now on."""
    names, run = [], worker.Worker._made
    monkeypatch.setattr(worker.Worker, "_made", lambda self, row, content: names.append(row["name"])
                        or run(self, row, content))
    return names


def test_a_folder_is_translated_as_the_graph_itself_would(translate, tmp_path, host):
    draw(tmp_path / "in", "a.png", "b/c.jpg", "b/d.bmp")
    assert translate() == 0
    out = tmp_path / "out"
    assert set(made(out)) == {"a.png", "b/c.png", "b/d.png"}
    prompt = json.loads(Image.open(out / "a.png").info["prompt"])
    assert prompt["2"]["inputs"]["image"] == "a.png" and prompt["5"]["inputs"]["seed"] != 3
    shutil.copy(tmp_path / "in" / "a.png", host.base / "input" / "a.png")
    run = host.run_graph({**prompt, "7": TINY["7"]})
    saved = host.base / "output" / run.ui["7"]["images"][0]["filename"]
    assert np.array_equal(pixels(saved), pixels(out / "a.png"))
    rows = list(csv.DictReader(open(out / "figures.csv")))
    assert [row["name"] for row in rows] == ["a.png", "b/c.jpg", "b/d.bmp"] and float(rows[0]["psnr"]) > 20
    assert Image.open(out / "contact-sheet.jpg").width > 300


def test_names_with_a_line_break_go_through_all_reports(translate, tmp_path, capsys):
    draw(tmp_path / "in", "a\nb.png")
    (tmp_path / "in" / "c\nd.png").write_bytes(b"no picture")
    assert translate() == 1
    out = tmp_path / "out"
    assert set(made(out)) == {"a\nb.png"} and Image.open(out / "contact-sheet.jpg").width > 300
    for report, name in (("figures.csv", "a\nb.png"), ("failed.csv", "c\nd.png")):
        with open(out / report, newline="") as file:
            assert [row["name"] for row in csv.DictReader(file)] == [name]
    assert "the first: c d.png: " in capsys.readouterr().out.splitlines()[-1]


def test_pairs_of_the_folder_are_kept_in_it(translate, tmp_path, host):
    """Mirror Save Pair hangs on the picture beside what is saved; its pairs do not vanish with the host's own files."""
    draw(tmp_path / "in", "a.png", "b.png")
    pair = {"class_type": "MirrorSavePair", "inputs": {
        "before": ["2", 0], "after": ["6", 0], "region": ["2", 1], "folder": "redrawn", "least_region": 0.0,
        "most_region": 1.0, "outside": 0.0}}
    (tmp_path / "graph.json").write_text(json.dumps(tiny(**{"9": pair})))
    output = host.folder_paths.get_output_directory()
    assert translate() == 0
    kept = tmp_path / "out" / "mirror" / "pairs" / "redrawn"
    assert {len(list((kept / kind).iterdir())) for kind in ("before", "after", "region", "figures")} == {2}
    assert host.folder_paths.get_output_directory() == output


def test_results_do_not_depend_on_the_others(translate, tmp_path):
    draw(tmp_path / "in", "a.png", "b.png", "c.png")
    assert translate() == 0
    together = made(tmp_path / "out")
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).unlink()
    assert translate(out="alone") == 0
    assert made(tmp_path / "alone") == {"c.png": together["c.png"]}
    assert translate("--seed", "1", out="reseeded") == 0
    assert not np.array_equal(pixels(tmp_path / "reseeded" / "c.png"), pixels(tmp_path / "out" / "c.png"))


def test_it_goes_on_where_it_was(translate, tmp_path, monkeypatch):
    draw(tmp_path / "in", "a.png", "b.png", "c.png", "d.png")
    assert translate() == 0
    before, out = made(tmp_path / "out"), tmp_path / "out"
    names = worked(monkeypatch)
    assert translate() == 0 and names == []
    (out / "b.png").unlink()                                                # a result that was deleted
    draw(tmp_path / "other", "x.png", "y.png")
    shutil.copy(tmp_path / "other" / "y.png", tmp_path / "in" / "d.png")       # a picture that changed
    assert translate() == 0 and names == ["b.png", "d.png"]
    after = made(out)
    assert after["b.png"] == before["b.png"] and after["d.png"] != before["d.png"]
    assert {name: after[name] for name in ("a.png", "c.png")} == {name: before[name] for name in ("a.png", "c.png")}


def test_a_kill_between_result_and_row_does_nothing_twice(translate, tmp_path, monkeypatch):
    """The result is there, its row is not, or was cut short: the row is written again, the graph does not run."""
    draw(tmp_path / "in", "a.png", "b.png")
    assert translate() == 0
    (ledger,) = (tmp_path / "out").glob(".translate/*/*.jsonl")
    figures = (tmp_path / "out" / "figures.csv").read_text().splitlines()
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(lines[0] + lines[1][:40])
    names = worked(monkeypatch)
    assert translate() == 0 and names == []
    (row,) = [json.loads(line) for file in ledger.parent.glob("*.jsonl") if file != ledger for line in open(file)]
    assert row["name"] == "b.png" and row["found"]
    again = (tmp_path / "out" / "figures.csv").read_text().splitlines()
    assert [line.split(",")[:6] for line in again] == [line.split(",")[:6] for line in figures]     # all but times


def test_broken_pictures_are_listed_and_retried_only_when_asked(translate, tmp_path, monkeypatch, capsys):
    draw(tmp_path / "in", "a.png", "b.png", "cut.png")
    whole = (tmp_path / "in" / "cut.png").read_bytes()
    (tmp_path / "in" / "cut.png").write_bytes(whole[:2000])
    (tmp_path / "in" / "empty.jpg").write_bytes(b"")
    assert translate() == 1
    (first, second) = csv.DictReader(open(tmp_path / "out" / "failed.csv"))
    assert (first["name"], second["name"]) == ("cut.png", "empty.jpg") and "truncated" in first["error"]
    names = worked(monkeypatch)
    assert translate() == 1 and names == [] and "2 failed before" in capsys.readouterr().out
    assert translate("--retry-failed") == 1 and names == ["cut.png", "empty.jpg"]
    (tmp_path / "in" / "cut.png").write_bytes(whole)
    (tmp_path / "in" / "empty.jpg").unlink()
    assert translate() == 0 and set(made(tmp_path / "out")) == {"a.png", "b.png", "cut.png"}


def test_a_link_to_nothing_is_listed(translate, tmp_path):
    draw(tmp_path / "in", "a.png")
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert translate() == 1 and translate() == 1
    (row,) = csv.DictReader(open(tmp_path / "out" / "failed.csv"))
    assert row["name"] == "gone.png" and "No such file" in row["error"]


def test_a_graph_that_fails_on_one_picture_goes_on_with_the_next(translate, tmp_path):
    crop = {"class_type": "ImageBatch", "inputs": {"image1": ["2", 0], "image2": ["2", 0]}}
    written(tmp_path, tiny(**{"6": crop}))
    draw(tmp_path / "in", "a.png", "b.png")
    assert translate() == 1
    rows = list(csv.DictReader(open(tmp_path / "out" / "failed.csv")))
    assert [row["name"] for row in rows] == ["a.png", "b.png"] and "made 2 pictures" in rows[0]["error"]


def test_another_graph_or_setting_is_another_job(translate, tmp_path, capsys):
    draw(tmp_path / "in", "a.png")
    assert translate() == 0
    before = made(tmp_path / "out")
    assert translate("--set", "5.denoise=0.5") == 1
    assert "another job: the graph changed" in capsys.readouterr().err
    assert translate("--seed", "9") == 1 and "the seed changed" in capsys.readouterr().err
    assert made(tmp_path / "out") == before
    assert translate("--set", "5.denoise=0.5", "--replace") == 0
    after = made(tmp_path / "out")
    assert after != before
    assert translate("--replace") == 0 and made(tmp_path / "out") == before     # its old rows speak of nothing now


def test_a_dry_run_checks_and_makes_nothing(translate, tmp_path, capsys):
    draw(tmp_path / "in", "a.png", "b.png")
    assert translate("--dry-run") == 0
    assert "2 to do" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert translate("--dry-run", out="graph.json/out") == 1        # below a file: nothing can be written there
    assert "can't be written to: Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-3", "two"])
def test_workers_are_one_or_more(capsys, number):
    with pytest.raises(SystemExit):
        command.main(["in", "out", "--workflow", "graph.json", "--ray", "--workers", number])
    assert f"{number} is no number of workers; give 1 or more" in capsys.readouterr().err


def test_workers_without_ray_are_refused(tmp_path, capsys):
    assert command.main([str(tmp_path), str(tmp_path / "out"), "--workflow", "graph.json", "--workers", "2"]) == 1
    assert "give --ray too" in capsys.readouterr().err


def test_notes_that_may_not_be_read_are_told_in_a_sentence(monkeypatch, capsys):
    def closed(options):
        raise PermissionError(13, "Permission denied", "out/.translate/x/job.json")
    monkeypatch.setattr(command, "translate", closed)
    assert command.main(["in", "out", "--workflow", "graph.json"]) == 1
    assert "out/.translate/x/job.json: Permission denied." in capsys.readouterr().err


def test_a_stop_leaves_whole_results_and_the_rest_to_do(translate, tmp_path, monkeypatch, capsys):
    draw(tmp_path / "in", "a.png", "b.png", "c.png")
    assert translate(out="whole") == 0
    write = results.write

    def stop_at_b(image, target, *rest):
        if target.name == "b.png":
            raise KeyboardInterrupt
        write(image, target, *rest)
    monkeypatch.setattr(results, "write", stop_at_b)
    with pytest.raises(KeyboardInterrupt):
        translate()
    assert set(made(tmp_path / "out")) == {"a.png"} and "the same command goes on" in capsys.readouterr().out
    monkeypatch.undo()
    assert translate() == 0 and made(tmp_path / "out") == made(tmp_path / "whole")


def test_a_disk_that_fills_up_stops_the_job_with_a_sentence(translate, tmp_path, monkeypatch, capsys):
    draw(tmp_path / "in", "a.png", "b.png", "c.png")
    real, real_write, calls = os.fsync, sheet.write, []

    def full(number):       # a file system that is full from here on; fsync is where Linux says so at the latest
        calls.append(number)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        real(number)
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(sheet, "write", lambda content, file: real_write(content, file) if len(calls) <= 4 else full(0))
    assert translate() == 1
    said = capsys.readouterr().err
    assert "No space left on device. What was done is kept" in said and "reports could not be written" in said
    assert not list((tmp_path / "out").rglob("*.part"))
    monkeypatch.undo()
    assert translate() == 0 and set(made(tmp_path / "out")) == {"a.png", "b.png", "c.png"}


def test_bad_folders_are_refused_before_any_work(translate, tmp_path, capsys):
    def said(*options, **where) -> str:
        assert translate(*options, **where) == 1
        return capsys.readouterr().err
    assert "There is no folder" in said()
    (tmp_path / "in").mkdir()
    assert "There are no pictures" in said()
    draw(tmp_path / "in", "a.png")
    assert "lie in each other" in said(out="in") and "lie in each other" in said(out="in/out")
    assert "lie in each other" in said(out=".")
    assert "is a file" in said(out="graph.json")
    draw(tmp_path / "in", "a.jpg")
    assert "would both become a.png" in said()
    (tmp_path / "in" / "a.jpg").unlink()
    draw(tmp_path / "out", "a.png")
    assert "no result of this job" in said()
    (tmp_path / "in" / "a.png").write_bytes(b"no picture")
    assert "None of the 1 pictures" in said(out="new")


def test_a_graph_that_the_host_refuses_is_refused_before_any_work(translate, tmp_path, capsys):
    draw(tmp_path / "in", "a.png")
    assert translate("--set", "5.sampler_name=nosuch") == 1
    assert "would not run the graph" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(one, other):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        sheet.write("a,b", tmp_path / "figures.csv")
    assert not list(tmp_path.iterdir())


def test_another_commands_unfinished_file_may_vanish_under_our_hands(tmp_path, monkeypatch):
    part = tmp_path / "job" / "other.part"
    part.parent.mkdir()
    part.touch()
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: [part.unlink() or part])
    command.remove_old_parts(tmp_path)


def test_what_a_graph_names_beside_its_picture_is_found_where_the_user_has_it(translate, tmp_path, host, monkeypatch):
    """A mask below a folder, as the mask editor writes its name, and a direction that was saved."""
    user = tmp_path / "user"
    draw(user / "input", "clipspace/mask.png")
    draw(tmp_path / "in", "a.png")
    monkeypatch.setattr("folders.runner.available_host", lambda: user)
    monkeypatch.setattr("folders.runner.cache_root", lambda: tmp_path / "cache")
    mask = {"class_type": "LoadImageMask", "inputs": {"image": "clipspace/mask.png [input]", "channel": "red"}}
    masked = {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["3", 0], "mask": ["9", 0]}}
    graph = tiny(**{"9": mask, "10": masked})
    graph["5"]["inputs"]["latent_image"] = ["10", 0]
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    assert translate() == 0 and set(made(tmp_path / "out")) == {"a.png"}
    (user / "input" / "clipspace" / "mask.png").unlink()
    assert translate("--replace") == 1
