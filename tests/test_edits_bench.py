"""The edits bench: it measures what the shipped graphs do, counts what the network does, and goes on where it was."""

import json

import pytest
import torch

from mirror_ops.measure.metrics import psnr

STEPS = 3


@pytest.fixture(scope="module")
def stage(host):
    from bench.edits_measure import embedded
    with torch.inference_mode():
        yield embedded(STEPS)


@pytest.fixture(scope="module")
def cases(host):
    from bench.edits_tasks import TASKS, cases_of
    return cases_of(TASKS["fox to dog"], 2, held_out=True)


def edit(stage, name, cases, **settings):
    from bench.edit_methods import METHODS
    method = METHODS[name]
    return stage.run(method, {**method.published, **settings}, cases)


def test_a_task_changes_one_attribute_and_its_mask_holds_the_difference(host):
    from bench.edits_tasks import TASKS, cases_of
    for task in TASKS.values():
        found = [case for held_out in (True, False) for case in cases_of(task, 5, held_out)]
        assert sorted(case.seed for case in found) == [0, 1, 2, 3, 4, *range(1_000_000, 1_000_005)]
        for case in found[::3]:
            before, after = case.scenes
            assert (getattr(before, task.attribute), getattr(after, task.attribute)) == case.change
            assert before.with_(**{task.attribute: case.change[1]}) == after and case.change[0] != case.change[1]
            picture, answer, mask = case.pictures()
            changed = ((picture - answer).abs().amax(-1) > 13 / 255)[:, None]
            assert changed.any() and not (changed & (mask == 0)).any() and mask.mean() < .95


def ancestors(graph, key):
    """The part of a graph that a node needs, itself included."""
    found, left = {}, [key]
    while left:
        key = left.pop()
        found[key] = graph[key]
        left += [value[0] for value in graph[key]["inputs"].values() if isinstance(value, list)]
    return found


def test_ours_is_the_shipped_graph(stage, cases, host):
    from harness.environment import ROOT
    graph = host.ui_to_api(json.loads((ROOT / "workflows" / "mirror_demo.json").read_text()))
    for entry in graph.values():
        if entry["class_type"] == "MirrorDemoScene":
            entry["inputs"]["seed"] = cases[1].seed
        if "steps" in entry["inputs"]:
            entry["inputs"]["steps"] = STEPS
    saved = next(key for key, e in graph.items() if e["inputs"].get("filename_prefix") == "mirror/edit")
    graph, saved = ancestors(graph, saved), graph[saved]
    [scene] = [key for key, entry in graph.items() if entry["class_type"] == "MirrorDemoScene"]
    run = host.run_graph(graph)
    edited, moved = edit(stage, "ours", cases)
    before, answer, mask = cases[1].pictures()
    assert torch.equal(run.outputs[scene][0], before) and torch.equal(run.outputs[scene][2], answer)
    assert torch.equal(run.outputs[scene][3], mask[0]) and run.outputs[scene][1] == cases[1].captions[0]
    assert (run.outputs[saved["inputs"]["images"][0]][0][0] - edited[1]).abs().max() < .02
    assert len(moved) == 2 and moved.min() > 0


@pytest.mark.parametrize("name", ["ddim", "mirror-paper"])
def test_a_scene_is_edited_in_a_batch_as_alone(stage, name):
    from bench.edits_tasks import TASKS, cases_of
    cases = [cases_of(TASKS["fox to dog"], 1, held_out=True)[0], cases_of(TASKS["hat added"], 2, held_out=True)[1]]
    together, _ = edit(stage, name, cases)
    alone, _ = edit(stage, name, cases[1:])
    assert (together[1:] - alone).abs().max() < .02
    assert (together[0] - together[1]).abs().max() > .2


def test_bounds_are_the_autoencoder_alone(stage, cases):
    from bench.edit_methods import METHODS
    from bench.edits_measure import measure
    vae = stage._values(cases)[2]
    before, answer, mask = cases[0].pictures()
    for name, image in (("floor", before), ("ceiling", answer)):
        [record, _], edited = measure(stage, name, METHODS[name], {}, cases)
        assert psnr(edited[:1], vae.decode(vae.encode(image))) > 50
        error = ((edited[0] - answer[0]) ** 2)[mask[0, 0] == 0].mean()
        assert record["outside_psnr"] == pytest.approx(float(-10 * error.log10()), abs=1e-3)
        assert record["displacement"] is None and 0 <= record["kept"] <= 1


def test_network_rows_are_counted_a_picture(stage, cases):
    from bench.edit_methods import METHODS
    from bench.edits_measure import alone
    plain = {"ddim": 5 * STEPS, "ddim-cfg1": 3 * STEPS, "npi": 5 * STEPS, "cyclediffusion": 3 * round(.7 * STEPS)}
    for name, forwards in plain.items():
        _, found = alone(stage, METHODS[name], METHODS[name].published, cases[0])
        assert (found["forwards"], found["backwards"]) == (forwards, 0) and found["seconds"] > 0, name
    _, found = alone(stage, METHODS["mirror-paper"], {"cfg": 5.0}, cases[0])
    assert found["backwards"] <= 10 * STEPS < found["forwards"] == 4 * STEPS + found["backwards"]


def test_cyclediffusion_under_the_same_caption_gives_the_picture_back(stage, cases):
    from bench.edit_methods import METHODS, Made, Method

    def same(g, w, **settings):
        return METHODS["cyclediffusion"].build(g, w._replace(after=w.before), **settings)

    def back(g, w):
        return Made(w.latent(g))

    settings = {"denoise": .7, "cfg": 1.0}
    kept, round_trip = stage.run(Method(same), settings, cases)[0], stage.run(Method(back), {}, cases)[0]
    changed, _ = edit(stage, "cyclediffusion", cases, **settings)
    assert psnr(kept, round_trip).min() > 60
    assert (changed - round_trip).abs().max() > 10 * (kept - round_trip).abs().max()


def test_a_stopped_run_goes_on_and_writes_what_was_asked_for(host, tmp_path, capsys):
    from bench import edits
    file = tmp_path / "edits.json"
    asked = ["--methods", "floor", "ceiling", "ddim", "--tasks", "hat added", "--scenes", "2", "--steps", str(STEPS),
             "--json", str(file)]
    assert edits.main(asked) == 0
    first = json.loads(file.read_text())["rows"]
    assert [row["method"] for row in first] == ["floor", "ceiling", "ddim"]
    for row in first:
        assert {"method", "task", "scenes", "inside_psnr", "outside_psnr", "success", "kept", "forwards", "backwards",
                "seconds"} <= set(row)
        assert (row["task"], row["scenes"]) == ("hat added", 2)
    book = tmp_path / "measured.jsonl"
    lines = book.read_text().splitlines()
    assert len(lines) == 3 * 2
    book.write_text("\n".join(lines[:3]) + "\n" + lines[3][:40])
    assert edits.main(asked) == 0
    again = json.loads(file.read_text())["rows"]
    assert len(book.read_text().splitlines()) > 6 and "measured before" in capsys.readouterr().out
    for old, new in zip(first, again, strict=True):
        assert new["inside_psnr"] == pytest.approx(old["inside_psnr"], abs=1e-3)
    for name in ("table.txt", "table.csv", "sheet-hat-added.png", "overview.png", "plot-cost.png", "plot-locality.png"):
        assert (tmp_path / name).stat().st_size > 200
    assert edits.main(["--methods", "magic"]) == 2
