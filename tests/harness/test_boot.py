"""The host in process behaves as the server does: inference mode, validation, events, interrupts, its own errors."""
import sys

import pytest
import torch

from harness.environment import ROOT, SetupError
from harness.results import GraphFailed, GraphRejected


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


EMPTY = node("EmptyLatentImage", width=64, height=48, batch_size=2)


def test_every_node_runs_and_gives_its_raw_outputs(run_graph):
    run = run_graph({"1": EMPTY, "2": node("LatentMultiply", samples=["1", 0], multiplier=2.0), "3": EMPTY})
    assert set(run.outputs) == {"1", "2", "3"}                          # open branches too
    assert run.outputs["2"][0]["samples"].shape == (2, 4, 6, 8)
    assert run.outputs["2"][0]["samples"].is_inference()                # nodes run in inference mode, as in the server
    assert not run.interrupted and run.named("execution_success")


def test_nodes_run_anew_unless_asked_to_keep_outputs(run_graph):
    graph = {"1": node("EmptyLatentImage", width=72, height=48, batch_size=1)}
    latents = [run_graph(graph, cached=cached).outputs["1"][0]["samples"] for cached in (False, False, True, True)]
    assert len({id(latent) for latent in latents}) == 3 and latents[2] is latents[3]


def test_a_graph_with_one_bad_branch_is_rejected_whole(run_graph):
    bad = node("EmptyLatentImage", width=64, height=48, batch_size=0)
    with pytest.raises(GraphRejected, match="node 2 .EmptyLatentImage.: Value 0 smaller than min of 1: batch_size"):
        run_graph({"1": EMPTY, "2": bad})
    with pytest.raises(GraphRejected, match="Nope"):
        run_graph({"1": EMPTY, "2": node("Nope")})


def test_a_wrong_type_on_a_wire_is_rejected(run_graph):
    with pytest.raises(GraphRejected, match="received_type.LATENT. mismatch input_type.IMAGE."):
        run_graph({"1": EMPTY, "2": node("PreviewImage", images=["1", 0])})


def test_a_node_that_raises_is_named_with_its_message_and_trace(run_graph):
    image = node("EmptyImage", width=8, height=8, batch_size=1, color=0)
    with pytest.raises(GraphFailed) as caught:
        run_graph({"1": image, "2": node("SaveImage", images=["1", 0], filename_prefix="../../outside")})
    assert (caught.value.node_id, caught.value.node_type) == ("2", "SaveImage")
    assert "outside the output folder" in caught.value.text and "folder_paths.py" in caught.value.trace


def test_an_interrupt_stops_a_graph_and_the_next_one_runs(run_graph):
    chain = {"0": EMPTY}
    chain |= {str(i): node("LatentMultiply", samples=[str(i - 1), 0], multiplier=1.5) for i in range(1, 9)}
    run = run_graph(chain, interrupt_when=lambda event, data: event == "executing" and data["node"] == "4")
    assert run.interrupted and "8" not in run.outputs and "3" in run.outputs
    assert torch.equal(run_graph(chain).outputs["8"][0]["samples"], torch.zeros(2, 4, 6, 8))


def editor_graph(extra: tuple = ()) -> dict:
    """The graph of an empty latent, doubled, as the editor saves it: widgets by position, wires by number."""
    latent = {"id": 1, "type": "EmptyLatentImage", "mode": 0, "inputs": [], "widgets_values": [64, 48, 2],
              "outputs": [{"name": "LATENT", "type": "LATENT", "links": [5]}]}
    reroute = {"id": 2, "type": "Reroute", "mode": 0, "inputs": [{"name": "", "type": "*", "link": 5}],
               "outputs": [{"name": "", "type": "LATENT", "links": [6]}]}
    double = {"id": 3, "type": "LatentMultiply", "mode": 0, "widgets_values": [2.0],
              "inputs": [{"name": "samples", "type": "LATENT", "link": 6}],
              "outputs": [{"name": "LATENT", "type": "LATENT", "links": []}]}
    note = {"id": 4, "type": "MarkdownNote", "mode": 0, "inputs": [], "outputs": [], "widgets_values": ["A note"]}
    return {"version": 0.4, "nodes": [latent, reroute, double, note, *extra],
            "links": [[5, 1, 0, 2, 0, "LATENT"], [6, 2, 0, 3, 0, "LATENT"]]}


def test_a_graph_of_the_editor_is_converted(ui_to_api, run_graph):
    graph = ui_to_api(editor_graph())
    assert {key: (entry["class_type"], entry["inputs"]) for key, entry in graph.items()} == {
        "1": ("EmptyLatentImage", {"width": 64, "height": 48, "batch_size": 2}),
        "3": ("LatentMultiply", {"multiplier": 2.0, "samples": ["1", 0]})}
    assert run_graph(graph).outputs["3"][0]["samples"].shape == (2, 4, 6, 8)


def test_a_graph_with_a_node_nobody_knows_is_not_converted(ui_to_api):
    with pytest.raises(ValueError, match="does not know: NodeOfAnotherPack"):
        ui_to_api(editor_graph(({"id": 9, "type": "NodeOfAnotherPack", "mode": 0, "widgets_values": []},)))


def test_pack_module_gives_the_modules_that_the_nodes_themselves_use(host):
    assert host.pack_nodes
    for name in host.pack_nodes:
        module = host.nodes.NODE_CLASS_MAPPINGS[name].__module__
        inside = module.removeprefix(str(ROOT).replace(".", "_x_") + ".")
        assert host.pack_module(inside) is sys.modules[module]


def test_a_pack_that_does_not_load_is_told_with_the_hosts_words(host, tmp_path):
    (tmp_path / "__init__.py").write_text("import a_module_that_is_not_there\n")
    with pytest.raises(SetupError, match="did not load:\n(.|\n)*a_module_that_is_not_there"):
        host.load_pack(tmp_path)
