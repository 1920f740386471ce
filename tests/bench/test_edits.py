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


def test_a_task_changes_its_attributes_and_its_mask_holds_the_difference(host):
    from bench.edits_tasks import TASKS, cases_of
    for task in TASKS.values():
        found = [case for held_out in (True, False) for case in cases_of(task, 5, held_out)]
        assert sorted(case.seed for case in found) == [0, 1, 2, 3, 4, *range(1_000_000, 1_000_005)]
        for case in found[::3]:
            before, after = case.scenes
            for name in task.attributes:
                assert getattr(before, name) == case.change.before[name] != case.change.after[name]
            assert before.with_(**case.change.after) == after
            picture, answer, mask = case.pictures()
            changed = ((picture - answer).abs().amax(-1) > 13 / 255)[:, None]
            assert changed.any() and not (changed & (mask == 0)).any() and mask.mean() < .95
            words = [word for word in case.blend_words.split(", ")]
            assert words and all(any(word in caption for caption in case.captions) for word in words)


def test_tasks_that_are_reported_alone_share_no_change_with_those_that_settings_are_chosen_on(host, capsys):
    from bench import edits
    from bench.edits_tasks import OTHER, SEVERAL, TUNED

    def changes(tasks):
        return {(name, change.before[name], change.after[name]) for task in tasks for change in task.changes
                for name in task.attributes}

    assert len(OTHER) == 8 and not changes(OTHER) & changes(TUNED)
    assert not changes(SEVERAL) & changes(TUNED) and {len(task.attributes) for task in SEVERAL} == {2, 3}
    assert edits.main(["--tune", "--tasks", "other"]) == 2
    assert "chosen on the tasks `tuned` only" in capsys.readouterr().err


def test_every_method_is_tuned_with_the_same_budget(host):
    from bench.edit_methods import METHODS
    from bench.edit_methods.parts import TRIES
    untuned = (
        "floor", "ceiling", "ddim-cfg1", "pix2pix-zero-A", "pix2pix-zero-B", "pix2pix-zero-C", "pix2pix-zero-D",
        "pix2pix-zero-code", *(name for name in METHODS if name.startswith(("ours-", "ours+", "mirror-")) and not
                               name.startswith(("mirror-paper", "mirror-caption", "ours+guidance"))))
    own = {"first_step", "strength", "cfg", "settings", "region", "steps"}
    for name, method in METHODS.items():
        if name in untuned:
            assert not method.tries, name
        else:
            tries = METHODS[method.tuned_as].tries if method.tuned_as else method.tries
            assert len(tries) == TRIES and all(set(one) <= set(method.published) | own for one in tries), name


def test_rivals_are_what_their_authors_run(host):
    """Each of these rows was once something else, and better or worse for it."""
    from bench.edit_methods import METHODS
    from bench.edits_measure import TYPES, Wires
    from harness.graph import Graph

    def nodes(name, **kind):
        graph = Graph()
        METHODS[name].build(graph, Wires(*(["given", k] for k in range(len(TYPES))), host=host, **kind),
                            **METHODS[name].published)
        return {entry["class_type"]: entry["inputs"] for entry in graph.values()}

    for name in ("direct", "direct+p2p"):
        assert nodes(name)["MirrorSample"]["exact"] == "source"
    for name in METHODS:
        if name.endswith("+p2p") and not name.startswith("ours"):
            assert nodes(name)["MirrorPromptToPrompt"]["self_largest"] == 8
            assert nodes(name, cells=64)["MirrorPromptToPrompt"]["self_largest"] == 32, "as on Stable Diffusion"
    from demo.graphs import SHEETS
    template = SHEETS["prompt_to_prompt_edit"]().graph.values()
    assert [e["inputs"]["self_largest"] for e in template if e["class_type"] == "MirrorPromptToPrompt"] == [8]
    paper, plain = nodes("mirror-paper"), nodes("mirror-paper-plain")
    guidance = paper["MirrorCrossAttentionGuidance"]
    assert guidance["cycle"] is True and guidance["amount"] == .1 and guidance["latents"].startswith("two latents")
    assert (paper["MirrorSample"]["strength"], paper["MirrorSample"]["ramp"]) == (.65, 1.2)
    assert "MirrorCrossAttentionGuidance" not in plain and plain["MirrorSample"]["strength"] == 1
    pull = nodes("proxnpi")["MirrorInversionGuidance"]
    assert (pull["step_size"], pull["first_timestep"]) == (.5, 600)
    assert "MirrorInversionGuidance" not in nodes("proxnpi-unpulled")


def test_shared_nodes_run_once_and_give_what_they_give_alone(stage, cases):
    from bench.edit_methods import Method
    from bench.edit_methods.parts import NONE, invert, sample
    plain = Method(lambda g, w, cfg: sample(g, w, invert(g, w, NONE), w.after, cfg, negative=w.empty))
    first, second = {"cfg": 1.5}, {"cfg": 3.0}
    alone = [stage.run(plain, settings, cases).pictures for settings in (first, second)]
    stage.share(cases)
    try:
        together = [stage.run(plain, first, cases).pictures]
        counted = stage.count.forwards
        together.append(stage.run(plain, second, cases).pictures)
        assert stage.count.forwards - counted == 2 * STEPS * len(cases), "no inversion"
        other = stage.run(plain, second, cases[1:]).pictures
    finally:
        stage.shared = None
    for one, two in zip(alone, together, strict=True):
        assert torch.equal(one, two)
    assert (other - together[1][1:]).abs().max() < .02, "other cases are not served what was kept of these"


def ancestors(graph, key):
    """The part of a graph that a node needs, itself included."""
    found, left = {}, [key]
    while left:
        key = left.pop()
        found[key] = graph[key]
        left += [value[0] for value in graph[key]["inputs"].values() if isinstance(value, list)]
    return found


@pytest.mark.slow
def test_the_mirror_is_the_shipped_graph(stage, cases, host):
    from demo.graphs import FILES, at_seed
    from harness.environment import ROOT
    graph = host.ui_to_api(json.loads((ROOT / "workflows" / f"{FILES['mirror_demo']}.json").read_text()))
    graph = at_seed(graph, cases[1].seed)
    for entry in graph.values():
        if "steps" in entry["inputs"]:
            entry["inputs"]["steps"] = STEPS
    saved = next(key for key, e in graph.items() if e["inputs"].get("filename_prefix") == "mirror/edit")
    graph, saved = ancestors(graph, saved), graph[saved]
    [scene] = [key for key, entry in graph.items() if entry["class_type"] == "MirrorDemoScene"]
    run = host.run_graph(graph)
    edited, moved, region = edit(stage, "mirror", cases)
    before, answer, mask = cases[1].pictures()
    assert torch.equal(run.outputs[scene][0], before) and torch.equal(run.outputs[scene][2], answer)
    assert torch.equal(run.outputs[scene][3], mask[0]) and run.outputs[scene][1] == cases[1].captions[0]
    assert (run.outputs[saved["inputs"]["images"][0]][0][0] - edited[1]).abs().max() < .02
    assert len(moved) == 2 and moved.min() > 0 and region.shape == (2, 1, 128, 128)


def own_steps(host):
    """The steps that Edit Picture comes with, as many fewer as this bench takes."""
    inputs = host.nodes.NODE_CLASS_MAPPINGS["MirrorEdit"].define_schema().inputs
    return round(next(entry.default for entry in inputs if entry.id == "steps") * STEPS / 50)


def test_ours_is_edit_picture_as_it_comes(stage, cases, host):
    """Both nodes with nothing set, as a user puts them into a graph, but in proportion to the bench's few steps."""
    edit_node, paste = (host.nodes.NODE_CLASS_MAPPINGS[name] for name in ("MirrorEdit", "MirrorPaste"))
    model, _, vae, before, _, source, target, *_ = stage._values(cases)
    latent = {"samples": vae.encode(before)}

    def default(node, name):
        entry = next(one for one in node.define_schema().inputs if one.id == name)
        return entry.default if entry.default is not None else entry.options[0]

    preset = next(one for one in edit_node.define_schema().inputs if one.id == "settings").options[0].key
    plain = {name: default(edit_node, name) for name in ("scheduler", "strength", "seed", "region")}
    edited, *_ = edit_node.execute(model=model, source=source, target=target, latent=latent,
                                   settings={"settings": preset}, steps=own_steps(host), **plain).args
    edge = {name: default(paste, name) for name in ("widen", "soften")}
    picture, region = paste.execute(original=before, edited=vae.decode(edited["samples"]), vae=vae, **edge).args
    ours = edit(stage, "ours", cases)
    assert (ours.pictures - picture).abs().max() < .01 and (ours.region[:, 0] - region).abs().max() < .05
    decoded = edit(stage, "ours-decoded", cases).pictures
    assert (ours.pictures - before).abs().amax(-1)[region == 0].max() == 0 < (decoded - before).abs().amax(-1)[
        region == 0].min()


def test_every_control_acts_on_ours_at_no_reference_pass(stage, cases, host):
    from bench.edit_methods import METHODS
    from bench.edits_measure import alone
    plain = edit(stage, "ours", cases[:1]).pictures
    for name in (name for name in METHODS if name.startswith("ours+")):
        picture, found = alone(stage, METHODS[name], METHODS[name].published, cases[0])
        gradients = own_steps(host) if name == "ours+guidance" else 0
        assert found["backwards"] == gradients and found["forwards"] == 3 * own_steps(host) + gradients, name
        assert (picture - plain).abs().max() > 1e-3, name


def test_several_edits_in_turn_are_one_edit_for_each_attribute(stage, cases):
    from bench.edit_methods import METHODS
    from bench.edits_measure import alone
    from bench.edits_tasks import TASKS, cases_of
    both, = cases_of(TASKS["coat and glasses"], 1, held_out=True)
    assert both.in_turn == (both.captions[0], both.in_turn[1], both.captions[1]) and len(set(both.in_turn)) == 3
    forwards = {name: alone(stage, METHODS[name], {}, both)[1]["forwards"] for name in ("ours", "ours-in-turn")}
    assert forwards["ours-in-turn"] == 2 * forwards["ours"]
    assert torch.equal(edit(stage, "ours-in-turn", cases).pictures, edit(stage, "ours", cases).pictures)


def test_flowedit_and_infedit_take_as_many_passes_as_published(stage, cases, host):
    """What they compute is held to algorithm 1 of each by tests/mirror_ops/test_golden.py."""
    from bench.edit_methods import METHODS
    from bench.edits_measure import alone
    for name, passes in (("flowedit", 4 * round(.66 * STEPS)), ("infedit", 3 * STEPS), ("ours", 3 * own_steps(host)),
                         ("ours-50", 3 * STEPS)):
        assert alone(stage, METHODS[name], METHODS[name].published, cases[0])[1]["passes"] == passes, name


@pytest.mark.parametrize("name", ["ddim", pytest.param("mirror-paper", marks=pytest.mark.slow)])
def test_a_scene_is_edited_in_a_batch_as_alone(stage, name):
    from bench.edits_tasks import TASKS, cases_of
    cases = [cases_of(TASKS["fox to dog"], 1, held_out=True)[0], cases_of(TASKS["hat added"], 2, held_out=True)[1]]
    together, alone = edit(stage, name, cases).pictures, edit(stage, name, cases[1:]).pictures
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
        assert record["displacement"] is None and record["region_iou"] is None and 0 <= record["kept"] <= 1
        assert record["leak"] == pytest.approx(1 if name == "floor" else 0, abs=.1) and 0 < record["sharpness"] < 1.5


def test_network_rows_are_counted_a_picture(stage, cases):
    from bench.edit_methods import METHODS
    from bench.edits_measure import alone
    plain = {"ddim": 5 * STEPS, "ddim-cfg1": 3 * STEPS, "npi": 5 * STEPS, "cyclediffusion": 3 * round(.7 * STEPS)}
    for name, forwards in plain.items():
        _, found = alone(stage, METHODS[name], METHODS[name].published, cases[0])
        assert (found["forwards"], found["backwards"]) == (forwards, 0) and found["seconds"] > 0, name
    _, found = alone(stage, METHODS["mirror-paper-plain"], {"cfg": 5.0}, cases[0])
    assert found["backwards"] <= 10 * STEPS < found["forwards"] == 4 * STEPS + found["backwards"]
    assert found["passes"] == found["forwards"] + 2 * found["backwards"]


def test_gradients_that_end_in_attention_maps_are_counted(stage, cases):
    from bench.edit_methods import METHODS
    from bench.edits_measure import alone
    for name, latents in (("pix2pix-zero", 1), ("pix2pix-zero-code", 2)):
        _, found = alone(stage, METHODS[name], METHODS[name].published, cases[0])
        assert found["backwards"] == latents * STEPS, name


def test_cyclediffusion_under_the_same_caption_gives_the_picture_back(stage, cases):
    from bench.edit_methods import METHODS, Made, Method

    def same(g, w, **settings):
        return METHODS["cyclediffusion"].build(g, w._replace(after=w.before), **settings)

    def back(g, w):
        return Made(w.latent(g))

    settings = {"denoise": .7, "cfg": 1.0}
    kept, round_trip = stage.run(Method(same), settings, cases)[0], stage.run(Method(back), {}, cases)[0]
    changed = edit(stage, "cyclediffusion", cases, **settings).pictures
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
                "seconds", "leak", "sharpness", "region_iou", "passes", "inside_psnr_error"} <= set(row)
        assert (row["task"], row["scenes"]) == ("hat added", 2)
    book = tmp_path / "measured.jsonl"
    lines = book.read_text().splitlines()
    assert len(lines) == 3 * 2 + 3      # two scenes and a cost each
    book.write_text("\n".join(lines[:4]) + "\n" + lines[4][:40])
    assert edits.main(asked) == 0
    again = json.loads(file.read_text())["rows"]
    assert len(book.read_text().splitlines()) > 8 and "measured before" in capsys.readouterr().out
    for old, new in zip(first, again, strict=True):
        assert new["inside_psnr"] == pytest.approx(old["inside_psnr"], abs=1e-3)
    assert "| `ddim`" in (tmp_path / "table.md").read_text() and "| leak" in (tmp_path / "table.md").read_text()
    for name in ("table.txt", "table.csv", "sheet-hat-added.png", "overview.png", "plot-cost.png", "plot-locality.png"):
        assert (tmp_path / name).stat().st_size > 200
    assert edits.main(["--methods", "magic"]) == 2


def test_several_attributes_are_each_measured_in_their_own_area(stage):
    from bench.edit_methods import METHODS
    from bench.edits_measure import measure
    from bench.edits_tasks import TASKS, cases_of
    cases = cases_of(TASKS["coat and glasses"], 1, held_out=True)
    answer, picture = (measure(stage, name, METHODS[name], {}, cases)[0][0] for name in ("ceiling", "floor"))
    assert set(answer["each"]) == {"coat", "glasses"} and answer["success"] == 1 and picture["success"] == 0
    for name in answer["each"]:
        assert abs(answer["each"][name]["leak"]) < .15 < .85 < picture["each"][name]["leak"]
        assert answer["each"][name]["inside_psnr"] > picture["each"][name]["inside_psnr"] + 5
    areas = cases[0].areas()
    assert areas["glasses"].mean() < .5 * areas["coat"].mean(), "each has its own"


def test_errors_of_means():
    from bench.edits import error_of_mean, standard_error
    assert standard_error([1.0, 2.0, 3.0, 6.0]) == pytest.approx((14 / 3) ** .5 / 2) and standard_error([1.0]) is None
    assert error_of_mean([.3, .4]) == pytest.approx(.25) and error_of_mean([.3, None]) is None
