"""Graphs made ready for a folder: what is found in them, what is refused."""
import json

import pytest

from demo.graphs import FILES
from folders import JobError
from folders.graph import prepare, read
from folders.runner import classes_of
from harness.environment import ROOT

from .graphs import TINY, tiny, written


@pytest.fixture
def ready(host):
    def ready(nodes=TINY, *arguments, **options):
        return prepare(nodes, classes_of(nodes, host), *arguments, **options)
    return ready


def test_the_picture_the_result_and_the_seeds_are_found_and_previews_dropped(ready):
    graph = ready()
    assert (graph.picture, graph.saved, graph.seeds) == (("2", "image"), ["6", 0], [("5", "seed")])
    assert set(graph.nodes) == {"1", "2", "3", "4", "5", "6"}
    filled = graph.filled("a.png", 7)
    assert (filled["2"]["inputs"]["image"], filled["5"]["inputs"]["seed"]) == ("a.png", 7)
    assert graph.nodes["5"]["inputs"]["seed"] == 3


def test_seeds_inside_a_choice_are_found_and_wired_ones_left_alone(ready):
    encode = {"class_type": "CycleDiffusionEdit", "inputs": {
        "model": ["1", 0], "source": ["4", 0], "target": ["4", 0], "latent": ["3", 0], "encoder": "dpm-encoder",
        "encoder.seed": 0, "encoder.eta": .1, "steps": 4, "scheduler": "ddim_uniform", "denoise": .5, "source_cfg": 1.,
        "cfg": 1.}}
    assert ready(tiny(**{"5": encode})).seeds == [("5", "encoder.seed")]
    wired = tiny(**{"9": {"class_type": "PrimitiveInt", "inputs": {"value": 5}}})
    wired["5"]["inputs"]["seed"] = ["9", 0]
    assert ready(wired).seeds == []


PAIR = {"class_type": "MirrorSavePair", "inputs": {"before": ["2", 0], "after": ["6", 0], "region": ["2", 1],
                                                   "folder": "x", "least_region": 0.0, "most_region": 1.0,
                                                   "outside": 0.0}}


def test_pairs_of_the_picture_are_kept_too_and_others_dropped(ready):
    graph = ready(tiny(**{"9": PAIR}))
    assert graph.saved == ["6", 0] and set(graph.nodes) == {"1", "2", "3", "4", "5", "6", "9"}
    scene = {"class_type": "MirrorDemoScene", "inputs": {}}
    elsewhere = {**PAIR, "inputs": {**PAIR["inputs"], "before": ["10", 0], "after": ["10", 0], "region": ["10", 3]}}
    assert set(ready(tiny(**{"9": elsewhere, "10": scene})).nodes) == {"1", "2", "3", "4", "5", "6"}


def test_a_graph_that_saves_nothing_but_pairs_saves_their_edits(ready):
    graph = ready(tiny(**{"7": None, "9": PAIR}))
    assert graph.saved == ["6", 0] and "9" in graph.nodes
    assert ready(tiny(**{"9": PAIR}), save="MirrorSavePair").saved == ["6", 0]


def test_pairs_of_a_scene_are_made_of_the_folders_pictures(host, ready):
    nodes = read(ROOT / "workflows" / f"{FILES['distil_edit']}.json", host)
    graph = ready(nodes, picture="Mirror Demo Scene")
    kinds = {entry["class_type"] for entry in graph.nodes.values()}
    assert {"LoadImage", "MirrorEdit", "MirrorSavePair"} <= kinds and "MirrorDemoScene" not in kinds
    assert graph.nodes[graph.region[0]]["class_type"] == "MirrorEdit"


def test_the_region_of_an_edit_is_found(ready):
    graph = ready(tiny(**{"9": {"class_type": "MirrorDemoScene", "inputs": {}},
                          "6": {"class_type": "ImageCompositeMasked", "inputs": {
                              "destination": ["2", 0], "source": ["2", 0], "mask": ["9", 3]}}}))
    assert graph.region == ["9", 3]


def test_of_two_regions_the_one_nearest_to_the_result_is_taken(ready):
    def scene():
        return {"class_type": "MirrorDemoScene", "inputs": {}}

    def composite(mask, source):
        inputs = {"destination": ["2", 0], "source": source, "mask": mask}
        return {"class_type": "ImageCompositeMasked", "inputs": inputs}
    nodes = tiny(**{"9": scene(), "10": scene(), "11": composite(["10", 3], ["2", 0]),
                    "6": composite(["9", 3], ["11", 0])})
    assert ready(nodes).region == ["9", 3]


@pytest.mark.parametrize("setting, value", [("5.steps=9", 9), ("redraw.steps=9", 9), ("KSampler.steps=9", 9),
                                            ("5.denoise=1", 1.0), ("5.sampler_name=heun", "heun")])
def test_values_are_set_by_id_title_or_class(ready, setting, value):
    name = setting.partition("=")[0].partition(".")[2]
    assert ready(TINY, [setting]).nodes["5"]["inputs"][name] == value
    assert type(ready(TINY, [setting]).nodes["5"]["inputs"][name]) is type(value)


def test_a_seed_that_is_set_stays(ready):
    graph = ready(TINY, ["5.seed=42"])
    assert graph.seeds == [] and graph.filled("a.png", 7)["5"]["inputs"]["seed"] == 42


@pytest.mark.parametrize("setting, words", [
    ("99.steps=9", "no such node"), ("5.steps", "no such node"), ("5.stepz=9", "has no value `stepz`"),
    ("5.model=9", "has no value `model`"), ("5.steps=many", "not a value of type INT"),
    ("5.steps=9.5", "not a value of type INT")])
def test_settings_that_fit_nothing_are_refused(ready, setting, words):
    with pytest.raises(JobError, match=words):
        ready(TINY, [setting])


@pytest.mark.parametrize("changes, words", [
    ({"9": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}}}, "More than one node .* saves a picture"),
    ({"7": None}, "No node of the graph saves a picture"),
    ({"2": {"class_type": "EmptyImage", "inputs": {}}}, "No node of the graph loads the picture"),
    ({"6": {"class_type": "ImageBatch", "inputs": {"image1": ["2", 0], "image2": ["9", 0]}},
      "9": TINY["2"]}, "More than one node .* loads the picture")])
def test_graphs_that_leave_it_open_are_refused(ready, changes, words):
    with pytest.raises(JobError, match=words):
        ready(tiny(**changes))


def test_where_there_are_several_one_is_named(ready):
    two = tiny(**{"9": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}}})
    assert ready(two, save="9").saved == ["2", 0]
    both = tiny(**{"6": {"class_type": "ImageBatch", "inputs": {"image1": ["2", 0], "image2": ["9", 0]}},
                   "9": TINY["2"]})
    assert ready(both, picture="9").picture == ("9", "image")
    with pytest.raises(JobError, match="no node of that name loads"):
        ready(picture="3")


def test_pictures_come_in_the_place_of_a_scene(host, ready):
    """The shipped translation by two models draws its picture; a folder brings pictures. Words that the scene gives
    have to be said."""
    nodes = read(ROOT / "workflows" / "15 From one model's world to another's (CycleDiffusion).json", host)
    [scene] = [key for key, entry in nodes.items() if entry["class_type"] == "MirrorDemoScene"]
    [told] = [key for key, entry in nodes.items() if entry["class_type"] == "CLIPTextEncode"]
    nodes[told]["inputs"]["text"] = [scene, 1]
    with pytest.raises(JobError, match="also gives .*--set"):
        ready(nodes, picture="Mirror Demo Scene", save="edit")
    graph = ready(nodes, ["what both are told.text=an animal"], picture="MirrorDemoScene", save="edit")
    loader = graph.nodes[graph.picture[0]]
    assert loader == {"class_type": "LoadImage", "inputs": {"image": ""}} and "DemoScene" not in str(graph.nodes)
    assert "an animal" in str(graph.nodes)


@pytest.mark.parametrize("content, words", [
    ("no graph", "holds no JSON"), ("[]", "has no nodes"), ("{}", "has no nodes"), ('{"a": 1}', "has no nodes"),
    (json.dumps({"1": {"class_type": "NoSuchNode", "inputs": {}}}), "does not know: NoSuchNode"),
    (json.dumps({"nodes": [{"id": 1, "type": "NoSuchNode", "mode": 0}], "links": []}), "does not know: NoSuchNode")])
def test_what_is_no_graph_is_refused(host, tmp_path, content, words):
    with pytest.raises(JobError, match=words):
        read(written(tmp_path, content), host)
    with pytest.raises(JobError, match="can't be read"):
        read(tmp_path / "nowhere.json", host)


def test_a_shipped_graph_of_the_editor_is_read(host, ready):
    nodes = read(ROOT / "workflows" / f"{FILES['mirror_edit']}.json", host)
    savers = [node for node, entry in nodes.items() if entry["class_type"] == "SaveImage"]
    graph = ready(nodes, save=savers[0])
    assert nodes[graph.picture[0]]["class_type"] == "LoadImage"
