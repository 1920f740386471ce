"""The editor in a real Chromium, for tests: opens graphs, presses Run, and reads what a user would see.

Playwright drives it. Its package is fetched on first use into a folder of its own and brings no browser along: Chromium
is the system's (`apt-get install chromium`) or the one in MIRROR_CHROMIUM.
"""
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from .cache import SetupError, cache_key, cache_root, made
from .pip import pip
from .server import Server

PLAYWRIGHT = ("playwright==1.65.2",)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")
SIZE = {"width": 1600, "height": 1000}
OF_THE_HOST = ("404 (Not Found)", "accessed before initialization", "huggingface.co")  # on an empty canvas, without us
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.RightSidePanel.IsOpen": False,
            "LiteGraph.Canvas.MaximumFps": 5}   # without a GPU, drawing takes more of a core than sampling
READY = "window.app?.graph && window.app.vueAppReady"
LISTEN = """() => {
    window.seen = { ended: null, steps: 0, previews: 0 };
    for (const end of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(end, () => { window.seen.ended = end; });
    app.api.addEventListener('progress', () => { window.seen.steps += 1; });
    app.api.addEventListener('b_preview', () => { window.seen.previews += 1; });
}"""
STILL = """() => {
    const nodes = app.graph.nodes.map((node) => [...node.pos, ...node.size, node.widgets?.length, node.imgs?.length]);
    const { scale, offset } = app.canvas.ds, drawn = [...document.images].every((image) => image.complete);
    const now = JSON.stringify([nodes, scale, [...offset], document.querySelectorAll('*').length, drawn]);
    window.still = now === window.before && drawn ? window.still + 1 : 0;
    window.before = now;
    return window.still >= 3;
}"""
NODES = """() => app.graph.nodes.map((node) => ({
    id: String(node.id), type: node.type, title: node.title, red: Boolean(node.has_errors), size: [...node.size],
    at: [...node.pos], known: Boolean(LiteGraph.registered_node_types[node.type] || node.subgraph),
    images: (node.imgs ?? []).length, widgets: Object.fromEntries((node.widgets ?? []).map((w) => [w.name, w.value])),
}))"""


def chromium() -> str:
    """The browser's program; SetupError if there is none."""
    named = os.environ.get("MIRROR_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise SetupError("There is no Chromium here: install it from the system's packages, or set MIRROR_CHROMIUM.")
    return found


def playwright():
    """The module playwright.sync_api; SetupError if it can't be fetched."""
    def make(folder: Path) -> None:
        pip(Path(sys.executable), "install", "--target", str(folder / "packages"), *PLAYWRIGHT,
            log=folder / "install.log")

    folder = made(cache_root() / f"browser-{cache_key(PLAYWRIGHT, sys.version_info[:2], sys.platform)}", make,
                  "browser driver")
    packages = str(folder / "packages")
    if packages not in sys.path:
        sys.path.append(packages)           # last: what the environment has stays as it is
    from playwright import sync_api
    return sync_api


@contextlib.contextmanager
def browser() -> Iterator:
    """A running Chromium without windows."""
    with playwright().sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium(), headless=True, args=list(FLAGS))
        yield running
        running.close()


class Editor:
    """The editor of a server in a fresh profile of the browser. `errors` are those of the console and of the page."""

    def __init__(self, running, server: Server, nodes_2: bool, shots: Path, **settings) -> None:
        self.server, self.nodes_2, self.shots = server, nodes_2, shots
        self.errors: list[str] = []
        server.post("/settings", {**SETTINGS, "Comfy.VueNodes.Enabled": nodes_2, **settings})
        self.page = running.new_page(viewport=SIZE)
        self.page.set_default_timeout(180_000)  # cores may be busy
        self.page.on("console", lambda message: self._note(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self._note(str(error)))
        self.page.goto(server.url)
        self.page.wait_for_function(READY)
        self.page.evaluate(LISTEN)
        self.settle()
        self.errors.clear()                 # those of the host itself, before anything of ours is open

    def _note(self, text: str) -> None:
        if not any(part in text for part in OF_THE_HOST):
            self.errors.append(text)

    def __enter__(self) -> "Editor":
        return self

    def __exit__(self, *_) -> None:
        self.page.close()

    def settle(self) -> None:
        """Wait until the page stands still: nodes, view and pictures as they were three times in a row."""
        self.page.evaluate("() => { window.still = 0; }")
        self.page.wait_for_function(STILL, polling=100)

    def shot(self, name: str) -> Path:
        """A picture of the page."""
        self.shots.mkdir(parents=True, exist_ok=True)
        path = self.shots / f"{name}-{'nodes-2' if self.nodes_2 else 'classic'}.png"
        self.page.screenshot(path=str(path))
        return path

    def open(self, workflow: dict) -> None:
        """Open a graph as a file's would be, in the view that it was saved with."""
        self.page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
        self.settle()

    def prompt(self) -> dict[str, dict]:
        """The graph on the canvas as Run sends it."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def nodes(self) -> list[dict]:
        """What is on the canvas: id, type, title, red, known, size, at, images, widgets (name -> value)."""
        return self.page.evaluate(NODES)

    def node(self, kind: str) -> dict:
        return next(node for node in self.nodes() if node["type"] == kind)

    def view(self) -> dict:
        """{"scale", "offset"} of the canvas."""
        return self.page.evaluate("() => ({scale: app.canvas.ds.scale, offset: [...app.canvas.ds.offset]})")

    def press_run(self) -> None:
        self.page.evaluate("() => { window.seen = { ended: null, steps: 0, previews: 0 }; }")
        self.page.get_by_role("button", name="Run", exact=True).first.click()

    def run(self) -> dict:
        """Press Run and wait for the end; {"ended", "steps", "previews"}: the last event, and how many of each came."""
        self.press_run()
        return self.wait_for("ended")

    def wait_for(self, event: str) -> dict:
        """Wait until "ended", "steps" or "previews" of the run have been seen, and what followed them is drawn."""
        self.page.wait_for_function(f"window.seen.{event}", polling=100)
        if event == "ended":
            self.settle()
        return self.page.evaluate("() => window.seen")

    def text(self) -> str:
        """All text of the page."""
        return self.page.inner_text("body")

    def set(self, kind: str, widget: str, value) -> None:
        """Change a widget of the node of this class, as typing does."""
        found = self.page.evaluate(
            """([kind, name, value]) => {
                const widget = app.graph.nodes.find((node) => node.type === kind)?.widgets.find((w) => w.name === name);
                if (widget) { widget.value = value; widget.callback?.(value); }
                return Boolean(widget);
            }""", [kind, widget, value])
        if not found:
            raise KeyError(f"No widget `{widget}` on {kind}: {json.dumps(self.nodes())[:500]}")
