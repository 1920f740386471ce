"""The pack in a real server: loaded, described, its graphs listed; graphs run over HTTP and websocket, and stop."""
import io
import json
import tempfile
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from demo.graphs import FILES
from harness.cache import PACK_NAME, SetupError
from harness.environment import ROOT
from harness.results import GraphFailed, GraphRejected
from harness.server import Server

RED = 0xC02010


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


PAPER = node("PromptRewriteOptimizer", method="paper",
             **{"method.inner_steps": 2, "method.learning_rate": 0.01, "method.early_stop": True})


def red_picture(width: int = 24, height: int = 16) -> dict:
    return node("EmptyImage", width=width, height=height, batch_size=1, color=RED)


def blurred(times: int) -> dict:
    """A graph of `times` slow nodes in a row."""
    graph = {"0": red_picture(512, 512)}
    for i in range(times):
        graph[str(i + 1)] = node("ImageBlur", image=[str(i), 0], blur_radius=31, sigma=10.0)
    return graph | {"show": node("PreviewImage", images=[str(times), 0])}


def test_the_server_has_the_nodes_that_the_pack_has_in_process(server, host):
    assert server.pack_nodes() == host.pack_nodes
    ours, theirs = host.object_info(), server.object_info()
    for name in host.pack_nodes:
        for key in ("input_order", "output", "output_name", "output_node"):
            assert theirs[name][key] == json.loads(json.dumps(ours[name][key])), (name, key)


def test_every_node_has_a_help_page(server):
    written = {file.stem for file in (ROOT / "web" / "docs").glob("*.md")}
    assert server.pack_nodes() - written == set()
    for name in written:
        text = server.get_bytes(f"/extensions/{PACK_NAME}/docs/{name}.md").decode()
        assert len(text) > 200, f"the help page of {name} says nothing"


def test_the_templates_are_listed_and_served_with_thumbnails(server):
    names = server.templates()
    assert set(names) == set(FILES.values())
    assert {file.stem for file in (ROOT / "workflows").glob("*.jpg")} == set(names)
    for name in names:
        assert server.template(name) == json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        picture = server.get_bytes(f"/api/workflow_templates/{PACK_NAME}/{quote(name)}.jpg")
        width, height = Image.open(io.BytesIO(picture)).size
        assert width == height >= 256       # the template browser shows them square


def test_a_graph_runs_with_events_in_order_and_its_picture_can_be_fetched(server):
    run = server.run_graph({"1": red_picture(), "2": node("PreviewImage", images=["1", 0])})
    events = [event for event, _ in run.events if event in ("execution_start", "executing", "executed",
                                                           "execution_success")]
    assert events == ["execution_start", "executing", "executing", "executed", "execution_success"]
    picture = np.asarray(Image.open(io.BytesIO(server.view(run.ui["2"]["images"][0]))))
    assert picture.shape == (16, 24, 3)
    assert (picture == [RED >> 16, RED >> 8 & 255, RED & 255]).all()


def test_the_same_graph_again_comes_from_the_cache(server):
    graph = {"1": red_picture(40, 40), "2": node("PreviewImage", images=["1", 0])}
    first, second = server.run_graph(graph), server.run_graph(graph)
    assert second.named("execution_cached")[0]["nodes"] == ["1", "2"]
    assert second.ui == first.ui


def test_a_bad_graph_is_rejected_with_the_node_and_the_input(server):
    graph = {"1": red_picture(width=-5), "2": node("PreviewImage", images=["1", 0]),
             "3": red_picture(), "4": node("PreviewImage", images=["3", 0])}     # valid: must not hide the bad one
    with pytest.raises(GraphRejected, match="node 1 .EmptyImage.: Value -5 smaller than min") as caught:
        server.run_graph(graph)
    assert set(caught.value.node_errors) == {"1"}


def test_a_node_that_raises_is_named_with_its_message(server):
    graph = {"1": red_picture(), "4": node("SaveImage", images=["1", 0], filename_prefix="../../outside")}
    with pytest.raises(GraphFailed) as caught:
        server.run_graph(graph)
    assert caught.value.node_id == "4" and caught.value.node_type == "SaveImage"
    assert "outside the output folder" in caught.value.text


SCENE = node("MirrorDemoScene", seed=1_000_003, species="fox", coat="from the seed", pattern="from the seed",
             glasses="no", hat="from the seed", background="from the seed", edit="species", **{"edit.to": "dog"})


def test_a_node_of_the_pack_gives_the_same_as_in_process(server, run_graph):
    graph = {"1": SCENE, "2": node("PreviewImage", images=["1", 0]), "3": node("PreviewAny", source=["1", 1])}
    theirs, ours = server.run_graph(graph), run_graph(graph)
    picture = np.asarray(Image.open(io.BytesIO(server.view(theirs.ui["2"]["images"][0]))))
    assert (picture == (ours.outputs["1"][0][0].numpy() * 255).astype(np.uint8)).all() and picture.std() > 10
    assert theirs.ui["3"]["text"] == [ours.outputs["1"][1]] and "fox" in ours.outputs["1"][1]


def inversion(steps: int) -> dict:
    """The demo picture inverted with its prompt rewritten; shows how good the mirror is."""
    return {"world": node("MirrorDemoModel"), "scene": SCENE, "rewriter": PAPER,
            "latent": node("VAEEncode", pixels=["scene", 0], vae=["world", 2]),
            "prompt": node("CLIPTextEncode", clip=["world", 1], text=["scene", 1]),
            "invert": node("RedescribedDDIMInvert", model=["world", 0], positive=["prompt", 0], latent=["latent", 0],
                           steps=steps, scheduler="ddim_uniform", cfg=1.0, rewriter=["rewriter", 0]),
            "decode": node("VAEDecode", samples=["invert", 4], vae=["world", 2]),
            "show": node("PreviewImage", images=["decode", 0])}


def progress_of_inversion(event, data) -> bool:
    return event == "progress" and data["node"] == "invert" and data["value"] >= 3


def test_an_inversion_runs_with_progress_and_gives_a_picture(server):
    run = server.run_graph(inversion(4))
    bar = [(data["value"], data["max"]) for data in run.named("progress") if data["node"] == "invert"]
    assert len(bar) >= 4 and bar == sorted(bar) and bar[-1][0] == bar[-1][1]
    picture = np.asarray(Image.open(io.BytesIO(server.view(run.ui["show"]["images"][0]))))
    assert picture.shape == (128, 128, 3) and picture.std() > 10


def test_an_interrupted_inversion_leaves_the_next_one_as_it_would_be(server):
    before = server.view(server.run_graph(inversion(3)).ui["show"]["images"][0])
    run = server.run_graph(inversion(50), interrupt_when=progress_of_inversion)
    assert run.interrupted and "show" not in run.ui
    assert max(data["value"] for data in run.named("progress")) < 40
    server.post("/free", {"unload_models": True, "free_memory": True})      # nothing may come from the cache
    assert server.view(server.run_graph(inversion(3)).ui["show"]["images"][0]) == before


def test_an_interrupt_stops_the_graph_and_leaves_the_server_well(server):
    def third_node(event, data):
        return event == "executing" and data["node"] == "3"
    run = server.run_graph(blurred(300), interrupt_when=third_node, seconds=60)
    started = [data["node"] for data in run.named("executing") if data["node"]]
    assert run.interrupted and "show" not in run.ui
    assert 3 <= len(started) < 100
    assert server.run_graph(blurred(1)).ui["show"]["images"]


BROKEN = '''
raise RuntimeError("this pack is broken on purpose")
'''


@pytest.mark.slow
def test_a_pack_that_does_not_import_is_noticed_although_the_server_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))     # where the server's log is kept
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "__init__.py").write_text(BROKEN)
    server = Server(pack=pack)
    with pytest.raises(SetupError, match="did not load(.|\n)*this pack is broken on purpose"):
        server.start()
    assert server.process.returncode is not None and not server.base.exists()
    assert [file.name for file in tmp_path.glob("*.log")] == [f"{PACK_NAME}-server-{server.port}.log"]
