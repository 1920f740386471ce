"""The editor as a user meets it: a real Chromium on a real server, in classic nodes and in Nodes 2.0.

`python run.py test -m browser`; the screenshots lie in output/browser, and figures.txt with what was measured.
"""
import json
import time

import pytest

from demo.graphs import FILES
from demo.graphs.box import NAME as BOX
from harness.cache import PACK_NAME, SetupError
from harness.editor import READABLE, SCREEN
from harness.environment import ROOT

pytestmark = pytest.mark.browser
SHOTS = ROOT / "output" / "browser"
FLAGSHIP, MIRROR = "edit_picture", "mirror_demo"
MODES = pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes-2"], scope="module")
NODES_2 = pytest.mark.parametrize("nodes_2", [True], ids=["nodes-2"], scope="module")
CLASSIC = pytest.mark.parametrize("nodes_2", [False], ids=["classic"], scope="module")
FEW = {"steps": 6, "method.inner_steps": 1, "iterations": 2}      # what a short run of a template takes at most
SHORTEN = """(few) => app.graph.nodes.flatMap((node) => node.widgets ?? []).forEach((widget) => {
    if (widget.name in few) widget.value = Math.min(widget.value, few[widget.name]);
})"""


@pytest.fixture(scope="module")
def server(chromium):
    """The server of `run.py serve`, on a fresh folder; `started` says when it was asked for, in seconds."""
    from harness.server import FOR_THE_EDITOR, Server
    started = time.monotonic()
    with Server(options=FOR_THE_EDITOR) as running:
        running.started = (started, time.monotonic())
        yield running


@pytest.fixture(scope="module")
def chromium():
    from harness.browser import browser, playwright
    try:
        playwright()
        with browser() as running:
            yield running
    except SetupError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def figures():
    """Lines of what the tests measure, kept beside the screenshots."""
    lines: list[str] = []
    yield lines
    SHOTS.mkdir(parents=True, exist_ok=True)
    (SHOTS / "figures.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def page(chromium, server, nodes_2):
    """The editor, loaded once a mode."""
    from harness.browser import Editor
    with Editor(chromium, server, nodes_2, SHOTS) as opened:
        yield opened


@pytest.fixture
def editor(page):
    """The same, which must not have logged an error when the test ends."""
    page.errors.clear()
    yield page
    assert page.errors == []


def template(server, name: str) -> dict:
    return server.template(FILES[name])


def outside(node: dict, view: dict) -> bool:
    """Whether a part of the node is not on the screen."""
    corners = [[at + more for at, more in zip(node["at"], size, strict=True)] for size in ((0, -30), node["size"])]
    seen = [[(c + o) * view["scale"] for c, o in zip(corner, view["offset"], strict=True)] for corner in corners]
    return min(seen[0]) < 0 or any(pixel > most for pixel, most in zip(seen[1], SCREEN, strict=True))


def overlapping(nodes: list[dict]) -> list[tuple[str, str]]:
    """Titles of nodes that lie on one another."""
    def apart(one, other):
        return any(one["at"][i] + one["size"][i] <= other["at"][i] - 30 * i for i in (0, 1))
    pairs = [(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1:]]
    return [(a["title"], b["title"]) for a, b in pairs if not apart(a, b) and not apart(b, a)]


@MODES
def test_every_template_opens_readable_and_whole(editor, server, figures):
    for name in FILES:
        workflow = template(server, name)
        editor.open(workflow)
        nodes, view = editor.nodes(), editor.view()
        editor.shot(f"template-{FILES[name][:2]}")
        kinds = [node["type"] for node in nodes if node["type"] != "MarkdownNote"]
        assert len(nodes) == len(workflow["nodes"]), name
        assert [node["type"] for node in nodes if node["red"] or not node["known"]] == [], name
        assert view["scale"] >= READABLE, (name, view)
        assert [node["title"] for node in nodes if outside(node, view)] == [], name
        assert overlapping(nodes) == [], name
        assert editor.errors == [], name
        assert editor.prompt() == server.ui_to_api(workflow), name
        figures.append(f"{FILES[name]}: {len(kinds)} nodes at {view['scale']:.0%}, nodes 2.0 {editor.nodes_2}")


@CLASSIC
@pytest.mark.parametrize("name", FILES)
def test_every_template_runs_by_pressing_run(editor, server, figures, name):
    """As it is but for fewer steps; tests/demo/test_graphs.py runs what the editor sends at full length."""
    editor.open(template(server, name))
    editor.page.evaluate(SHORTEN, FEW)
    begun = time.monotonic()
    run = editor.run()
    seconds = time.monotonic() - begun
    editor.shot(f"run-{FILES[name][:2]}")
    assert run["ended"] == "execution_success"
    assert _pictures(server, editor, "MirrorCompare")
    figures.append(f"{FILES[name]}: ran in {seconds:.1f} s with few steps")


@MODES
def test_the_flagship_runs_by_pressing_run_and_shows_what_it_found(editor, server):
    editor.open(template(server, FLAGSHIP))
    editor.set("MirrorEdit", "seed", 70 + editor.nodes_2)       # what is cached is not shown again
    run = editor.run()
    editor.shot("flagship-run")
    assert run["ended"] == "execution_success" and run["previews"] > 5      # of the edit, while it is made
    assert "passes" in editor.node("MirrorEdit")["widgets"]["report"]
    assert overlapping(editor.nodes()) == []
    for kind in ("SaveImage", "MirrorCompare"):
        assert _pictures(server, editor, kind), kind


def _pictures(server, editor, kind: str) -> list:
    """What the newest run in the server's history shows on the node of this class."""
    newest = max(server.get("/history").values(), key=lambda entry: entry["prompt"][0])
    return newest["outputs"].get(editor.node(kind)["id"], {}).get("images", [])


@MODES
def test_mirror_report_shows_its_words_and_its_curve(editor, server):
    workflow = template(server, MIRROR)
    editor.open(workflow)
    editor.set("RedescribedDDIMInvert", "steps", 4)
    editor.run()
    editor.shot("mirror-run")
    assert "displacement" in editor.node("MirrorReport")["widgets"]["report"]
    assert "displacement" in editor.page.locator("textarea").evaluate_all("(all) => all.map((e) => e.value).join()")
    assert _pictures(server, editor, "MirrorReport")


def test_from_the_template_browser_to_the_first_edit_in_three_clicks(chromium, server, figures):
    """As a newcomer does it: no settings, the templates open by themselves."""
    from harness.browser import Editor
    server.post("/free", {"unload_models": True, "free_memory": True})      # as if it had just been started
    begun = time.monotonic()
    with Editor(chromium, server, False, SHOTS, **{"Comfy.TutorialCompleted": False}) as editor:
        editor.page.get_by_text(PACK_NAME, exact=True).first.click()
        editor.page.get_by_text(FILES[FLAGSHIP], exact=True).first.wait_for()
        editor.settle()
        editor.shot("template-browser")
        lines = list(dict.fromkeys(line for line in editor.text().splitlines() if line in FILES.values()))
        assert lines == list(FILES.values())[:len(lines)] and lines     # more come as one scrolls
        editor.page.get_by_text(FILES[FLAGSHIP], exact=True).first.click()
        editor.page.wait_for_function("() => app.graph.nodes.some((node) => node.type === 'MirrorEdit')")
        editor.settle()
        editor.run()
        ended = time.monotonic()
        editor.shot("first-edit")
        assert _pictures(server, editor, "SaveImage") and "passes" in editor.node("MirrorEdit")["widgets"]["report"]
        nodes, view = editor.nodes(), editor.view()
        assert view["scale"] >= READABLE and [node["title"] for node in nodes if outside(node, view)] == []
        assert editor.errors == []
    asked, ready = server.started
    figures.append(f"serve to the first edit: {ready - asked:.0f} s until the server answers, {ended - begun:.0f} s "
                   "in the editor, 3 clicks; 0 errors in the console")


@MODES
def test_an_error_is_told_in_its_sentence(editor, server):
    from PIL import Image
    Image.new("RGB", (512, 384), "olive").save(server.base / "input" / "photo.png")
    editor.open(template(server, "edit_own_picture"))
    editor.set("LoadImage", "image", "photo.png")
    editor.run()
    editor.page.get_by_role("button", name="View details").click()
    editor.page.get_by_text("only knows cartoon animals of 128 x 128").first.wait_for(timeout=10_000)
    editor.shot("error")
    editor.page.keyboard.press("Escape")
    editor.errors.clear()       # the editor logs the error that it shows


@MODES
def test_interrupt_and_run_again(editor, server):
    editor.open(template(server, FLAGSHIP))
    editor.set("MirrorEdit", "seed", 78 + editor.nodes_2)
    editor.set("MirrorEdit", "steps", 500)
    editor.press_run()
    editor.wait_for("steps")
    server.interrupt()
    assert editor.wait_for("ended")["ended"] == "execution_interrupted"
    editor.set("MirrorEdit", "steps", 4)
    editor.run()
    editor.shot("interrupted-and-run-again")
    assert "4 steps" in editor.node("MirrorEdit")["widgets"]["report"]


@MODES
def test_a_saved_picture_brings_its_graph_back(editor, server, tmp_path):
    editor.open(template(server, FLAGSHIP))
    editor.set("MirrorEdit", "steps", 4)
    editor.run()
    picture = tmp_path / "edit.png"
    picture.write_bytes(server.view(_pictures(server, editor, "SaveImage")[0]))
    editor.page.evaluate("() => app.graph.clear()")
    assert editor.nodes() == []
    _drop(editor, picture)
    editor.page.wait_for_function("() => app.graph.nodes.length")
    editor.settle()
    editor.shot("dropped")
    assert editor.node("MirrorEdit")["widgets"]["steps"] == 4


def _drop(editor, picture) -> None:
    """Drop a file on the canvas."""
    editor.page.evaluate("""async (bytes) => {
        const file = new File([new Uint8Array(bytes)], 'edit.png', { type: 'image/png' });
        await app.handleFile(file);
    }""", list(picture.read_bytes()))


LABELS = """(type) => {
    const node = app.graph.nodes.find((node) => node.type === type), kind = LiteGraph.registered_node_types[type];
    const label = (slot) => slot.label || slot.localized_name || slot.name;
    const labels = (slots) => Object.fromEntries((slots ?? []).map((slot) => [slot.name, label(slot)]));
    return { title: kind.title, category: kind.category, inputs: labels(node.inputs), widgets: labels(node.widgets),
             outputs: (node.outputs ?? []).map(label) };
}"""


def test_the_editor_in_chinese(chromium, server):
    """Titles, inputs behind a choice too, outputs and menu categories are the ones of locales/zh."""
    from harness.browser import Editor
    said = {name: json.loads((ROOT / "locales" / "zh" / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("main", "nodeDefs")}
    words = said["nodeDefs"]["MirrorEdit"]
    try:
        with Editor(chromium, server, False, SHOTS, **{"Comfy.Locale": "zh"}) as editor:
            editor.open(template(server, FLAGSHIP))
            editor.set("MirrorEdit", "settings", "custom")
            editor.page.keyboard.press("n")
            editor.page.get_by_text(said["main"]["nodeCategories"]["mirror"], exact=True).last.click()
            editor.settle()
            editor.shot("chinese")
            menu = editor.text()
            seen = editor.page.evaluate(LABELS, "MirrorEdit")
    finally:
        server.post("/settings", {"Comfy.Locale": "en"})
    assert seen["title"] == words["display_name"]
    assert seen["category"].split("/")[-1] == said["main"]["nodeCategories"]["edit"]
    assert [name for name in said["main"]["nodeCategories"].values() if name not in menu] == []
    labels = seen["inputs"] | seen["widgets"]
    behind = {name for name in labels if name.startswith("settings.")}
    assert behind
    for name in behind | {"source", "target", "latent", "steps"}:
        assert labels[name] == words["inputs"][name.replace(".", "_")]["name"], name
    assert seen["outputs"] == [words["outputs"][str(k)]["name"] for k in range(len(seen["outputs"]))]


@MODES
def test_the_one_box_runs(editor, server):
    box = json.loads((ROOT / "subgraphs" / f"{BOX}.json").read_text(encoding="utf-8"))
    listed = {entry["name"] for entry in server.get("/global_subgraphs").values()}
    assert BOX in listed
    editor.open(boxed(box))
    editor.run()
    editor.shot("one-box")
    assert _pictures(server, editor, "SaveImage")


def boxed(blueprint: dict) -> dict:
    """The box between Load Image and Save Image."""
    from demo.graphs.parts import EXAMPLE
    [box] = json.loads(json.dumps(blueprint["nodes"]))
    box |= {"id": 2, "pos": [400, 0]}
    box["inputs"][0]["link"], box["outputs"][0]["links"] = 1, [2]
    load = {"id": 1, "type": "LoadImage", "pos": [0, 0], "size": [320, 320], "flags": {}, "order": 0, "mode": 0,
            "inputs": [], "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]},
                                      {"name": "MASK", "type": "MASK", "links": []}],
            "properties": {}, "widgets_values": [EXAMPLE, "image"]}
    save = {"id": 3, "type": "SaveImage", "pos": [860, 0], "size": [320, 320], "flags": {}, "order": 2, "mode": 0,
            "inputs": [{"name": "images", "type": "IMAGE", "link": 2}], "outputs": [], "properties": {},
            "widgets_values": ["mirror/box"]}
    return {**blueprint, "last_node_id": 3, "last_link_id": 2, "nodes": [load, box, save],
            "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]]}


@NODES_2
def test_the_flagship_as_an_app(editor, server):
    workflow = template(server, FLAGSHIP)
    workflow["extra"]["linearMode"] = True
    editor.open(workflow)
    editor.shot("app")
    editor.run()
    editor.shot("app-run")
