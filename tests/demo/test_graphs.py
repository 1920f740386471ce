"""The shipped graphs: as their Python says, small and laid out to be read, convertible, and running as they are."""
import copy
import json

import pytest
import torch

from demo.graphs import FILES, SHEETS, shipped
from demo.graphs.box import box
from harness.blueprint import to_blueprint
from harness.convert import convert
from harness.editor import READABLE, SCREEN, to_ui
from harness.environment import ROOT
from mirror_ops.measure.metrics import psnr

FOLDER = ROOT / "workflows"
FEW = {"steps": 3, "first_step": 1, "iterations": 2, "method.inner_steps": 2}
GUIDED = ("mirror_stock_ksampler", "null_text_edit", "proximal_edit", "compare_ways_back")     # mirrors at cfg > 1
MOST = 12       # nodes of a template


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{FILES[name]}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def converted(host):
    """converted(name) -> the API graph that the editor makes of a template's file."""
    graphs = convert([read(name) for name in SHEETS], host.object_info())
    return dict(zip(SHEETS, graphs, strict=True)).__getitem__


@pytest.fixture(scope="module")
def object_info(host):
    return host.object_info()


def links(inputs: dict) -> dict:
    return {k: [str(v[0]), v[1]] if isinstance(v, list) else v for k, v in inputs.items()}


def notes(workflow: dict) -> list[dict]:
    return [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]


def test_every_graph_has_a_file_and_a_thumbnail_and_nothing_else_lies_there():
    assert [title.split()[0] for title in FILES.values()] == [f"{n:02}" for n in range(1, len(FILES) + 1)]
    assert {p.name for p in FOLDER.iterdir()} == {f"{n}{e}" for n in FILES.values() for e in (".json", ".jpg")}


@pytest.mark.parametrize("name", SHEETS)
def test_the_file_is_what_its_python_says(name, object_info):
    """If this fails: python run.py graphs"""
    assert read(name) == json.loads(json.dumps(to_ui(shipped(name), object_info)))


def test_the_one_box_is_what_its_python_says(object_info):
    """If this fails: python run.py graphs"""
    sheet, shown = box()
    file = ROOT / "subgraphs" / f"{shown.name}.json"
    made = to_blueprint(sheet, shown, object_info)
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(json.dumps(made))


@pytest.mark.parametrize("name", SHEETS)
def test_a_template_is_small_and_readable_where_it_opens(name):
    workflow = read(name)
    nodes = [node for node in workflow["nodes"] if node["type"] != "MarkdownNote"]
    assert len(nodes) <= MOST
    scale, (x, y) = (workflow["extra"]["ds"][key] for key in ("scale", "offset"))
    assert scale >= READABLE
    for node in workflow["nodes"]:
        right, bottom = ((node["pos"][i] + node["size"][i] + (x, y)[i]) * scale for i in (0, 1))
        assert right <= SCREEN[0] and bottom <= SCREEN[1], node["type"]
    assert [group["title"][0] for group in workflow["groups"]] == sorted(g["title"][0] for g in workflow["groups"])
    assert max(nodes, key=lambda node: node["pos"])["type"] == nodes[-1]["type"] == "MirrorCompare"


@pytest.mark.parametrize("name", SHEETS)
def test_a_template_has_one_short_note_and_words_that_can_be_read_and_changed(name):
    workflow = read(name)
    [note] = notes(workflow)
    [text] = note["widgets_values"]
    assert text.endswith("**Press Run.**") and len(text.split()) <= 100
    for node in workflow["nodes"]:
        if node["type"] == "CLIPTextEncode":
            assert [slot["link"] for slot in node["inputs"] if slot["name"] == "text"] == [None]


@pytest.mark.parametrize("name", SHEETS)
def test_the_editors_form_converts_back_to_the_graph(name, converted):
    sheet, back = shipped(name), converted(name)
    graph = {key: entry for key, entry in sheet.graph.items() if key not in sheet.muted_nodes()}
    assert set(back) == set(graph)
    for key, entry in graph.items():
        inputs = links(back[key]["inputs"])
        assert back[key]["class_type"] == entry["class_type"]
        assert {k: inputs[k] for k in entry["inputs"]} == links(entry["inputs"])


@pytest.mark.parametrize("name", SHEETS)
def test_edits_are_put_back_by_the_packs_own_paste(name):
    assert "ImageCompositeMasked" not in {entry["class_type"] for entry in SHEETS[name]().graph.values()}


def pictures_of(run, graph: dict) -> None:
    """Every picture of a run is whole, finite and not blank."""
    for key, entry in graph.items():
        if entry["class_type"] == "VAEDecode":
            picture = run.outputs[key][0]
            assert picture.shape == (1, 128, 128, 3) and torch.isfinite(picture).all() and picture.std() > .05
        if entry["class_type"] == "MirrorCompare":
            assert run.outputs[key][0].std() > .05


@pytest.mark.every_host
@pytest.mark.parametrize("name", SHEETS)
def test_the_graph_runs_and_gives_pictures(name, converted, run_graph):
    """Whole, but for the number of steps and of iterations in each."""
    graph = copy.deepcopy(converted(name))
    for entry in graph.values():
        for setting, few in FEW.items():
            if setting in entry["inputs"]:
                entry["inputs"][setting] = min(entry["inputs"][setting], few)
    run = run_graph(graph)
    pictures_of(run, graph)
    kinds = {entry["class_type"]: key for key, entry in graph.items()}
    if name == "compare_stock_ksampler":
        ours = run.outputs[kinds["RedescribedDDIMInvert"]][4]["samples"]
        theirs = run.outputs[kinds["KSamplerAdvanced"]][0]["samples"]
        assert (ours - theirs).abs().max() < 1e-4, "the stock sampler reconstructs as the mirror does"
        assert psnr(ours, theirs, peak=2.0).min() > 80


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDED)
def test_the_graph_runs_as_it_is_and_its_mirror_holds(name, converted, run_graph):
    graph = converted(name)
    run = run_graph(graph)
    pictures_of(run, graph)
    for key, entry in graph.items():
        if entry["class_type"] == "RedescribedDDIMInvert":
            mirror, source = run.outputs[key][2], entry["inputs"].get("rewriter")
            rewritten = source is None or graph[source[0]]["inputs"]["method"] != "none"
            assert (mirror.displacement[-1].mean() < .15) == rewritten


def test_words_are_written_out_as_the_scene_would_say_them(run_graph):
    sheet, wired = shipped("edit_picture"), SHEETS["edit_picture"]()
    scene = next(key for key, entry in wired.graph.items() if entry["class_type"] == "MirrorDemoScene")
    run = run_graph({scene: {**wired.graph[scene], "inputs": {
        **dict.fromkeys(("coat", "pattern", "glasses", "hat", "background"), "from the seed"),
        **wired.graph[scene]["inputs"]}}})
    written = [entry["inputs"]["text"] for entry in sheet.graph.values() if entry["class_type"] == "CLIPTextEncode"]
    assert written == [run.outputs[scene][1], run.outputs[scene][4]]
