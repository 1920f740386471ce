"""The shipped graphs: as their Python says, convertible, and running in the real executor on the embedded world."""
import json

import pytest
import torch

from demo.graphs import SHEETS, embedded
from harness.editor import to_ui
from harness.environment import ROOT
from mirror_ops.measure.metrics import psnr

FOLDER = ROOT / "workflows"


def shipped(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def links(inputs: dict) -> dict:
    return {k: [str(v[0]), v[1]] if isinstance(v, list) else v for k, v in inputs.items()}


def test_every_graph_has_a_thumbnail_and_nothing_else_lies_there():
    assert {p.name for p in FOLDER.iterdir()} == {f"{n}{e}" for n in SHEETS for e in (".json", ".jpg")}


@pytest.mark.parametrize("name", SHEETS)
def test_the_file_is_what_its_python_says(name, host):
    """If this fails: python run.py graphs"""
    assert shipped(name) == json.loads(json.dumps(to_ui(SHEETS[name](), host.object_info())))


@pytest.mark.parametrize("name", SHEETS)
def test_the_editors_form_converts_back_to_the_graph(name, ui_to_api):
    graph, back = SHEETS[name]().graph, ui_to_api(shipped(name))
    assert set(back) == set(graph)
    for key, entry in graph.items():
        inputs = links(back[key]["inputs"])
        assert back[key]["class_type"] == entry["class_type"]
        assert {k: inputs[k] for k in entry["inputs"]} == links(entry["inputs"])


@pytest.mark.parametrize("name", SHEETS)
def test_the_graph_runs_and_gives_the_picture_back(name, ui_to_api, run_graph):
    graph = embedded(ui_to_api(shipped(name)))
    run = run_graph(graph)
    inverts = [k for k, v in graph.items() if v["class_type"] == "RedescribedDDIMInvert"]
    for key in inverts:
        mirror = run.outputs[key][2]
        rewritten = graph[graph[key]["inputs"]["rewriter"][0]]["inputs"]["method"] != "none"
        assert (mirror.displacement[-1].mean() < .15) == rewritten or graph[key]["inputs"]["cfg"] == 1
    for entry in graph.values():
        if entry["class_type"] == "SaveImage":
            picture = run.outputs[entry["inputs"]["images"][0]][0]
            assert picture.shape == (1, 128, 128, 3) and torch.isfinite(picture).all() and picture.std() > .05


def test_stock_samplers_reconstruct_as_the_mirror_does(ui_to_api, run_graph):
    graph = ui_to_api(shipped("mirror_stock_ksampler"))
    run = run_graph(graph)
    mirror = next(k for k, v in graph.items() if v["class_type"] == "RedescribedDDIMInvert")
    stock = next(k for k, v in graph.items() if v["class_type"] == "KSamplerAdvanced"
                 and v["inputs"]["positive"] == [mirror, 1])
    ours, theirs = run.outputs[mirror][4]["samples"], run.outputs[stock][0]["samples"]
    assert (ours - theirs).abs().max() < 1e-4
    assert psnr(ours, theirs, peak=2.0).min() > 80
