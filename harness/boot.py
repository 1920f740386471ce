"""The real host in this process: its nodes, its executor, in inference mode as in the server, without a web server."""
import asyncio
import atexit
import contextlib
import functools
import importlib
import inspect
import logging
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .convert import convert
from .demo_files import LOADER, provide
from .environment import ROOT, SetupError, available_host
from .results import GraphFailed, GraphRejected, Run

SINK = "HarnessSink"
PREVIEW_EVENTS = (1, 2, 4)      # the host's binary event types that carry preview pictures


def boot(cpu: bool = True, pack: Path | None = ROOT) -> "Host":
    """Start the host in this process, once, with the pack loaded as ComfyUI loads it. cpu=False: a GPU if there is one.

    Takes about 10 s. Raises SetupError when there is no host or the pack does not load.
    """
    return _booted(cpu, pack)


@functools.cache
def _booted(cpu: bool, pack: Path | None) -> "Host":
    if Host.running:
        raise SetupError("The host already runs in this process, on other terms.")
    return Host(available_host(), cpu, pack)


@contextlib.contextmanager
def quiet():
    """Nothing is logged inside: what matters of it comes back as a value."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


class Sink:
    """Output node that takes anything: ends every open branch of a graph, so that all its nodes run."""
    RETURN_TYPES = ()
    FUNCTION = "take"
    OUTPUT_NODE = True
    CATEGORY = "harness"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"value": ("*",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types) -> bool:      # naming input_types switches the host's type check off
        return True

    def take(self, value) -> dict:
        return {}


class Listener:
    """What the executor asks of its server: it takes the events."""
    last_node_id = None
    last_prompt_id = None
    client_id = None
    sockets_metadata: dict = {}

    def __init__(self) -> None:
        self.receive: Callable[[Any, Any], None] = lambda event, data: None

    def send_sync(self, event, data, sid=None) -> None:
        self.receive(event, data)


class Host:
    """The running host. `folder`, `base` (its temporary input/, output/, temp/, models/), `pack_nodes` (node ids)."""
    running = False

    def __init__(self, folder: Path, cpu: bool, pack: Path | None) -> None:
        self.folder = folder
        self.base = Path(tempfile.mkdtemp(prefix="mirror-host-"))
        atexit.register(shutil.rmtree, self.base, ignore_errors=True)
        self.loop = asyncio.new_event_loop()
        self._import(cpu)
        self.listener = Listener()
        self._report_progress()
        self.shared = self.executor()
        self._load_extras()
        self.nodes.NODE_CLASS_MAPPINGS[SINK] = Sink
        self.pack_nodes: set[str] = set()
        if pack:
            self.load_pack(pack)
            provide(self.base)
            self.loop.run_until_complete(self.nodes.load_custom_node(str(LOADER)))
        Host.running = True

    def _import(self, cpu: bool) -> None:
        """Import the host's modules and send its files to `base`. The pack has `nodes` too, so the host goes first."""
        sys.path.insert(0, str(self.folder))
        if not str(getattr(sys.modules.get("nodes"), "__file__", self.folder)).startswith(str(self.folder)):
            raise SetupError("Another module called `nodes` was imported before the host; boot the host first.")
        importlib.import_module("comfy.options")
        args = importlib.import_module("comfy.cli_args").args
        args.cpu = cpu or not importlib.import_module("torch").cuda.is_available()
        importlib.import_module("utils.extra_config")   # before nodes, which puts comfy/ and its utils.py on the path
        self.execution = importlib.import_module("execution")
        self.nodes = importlib.import_module("nodes")
        self.folder_paths = importlib.import_module("folder_paths")
        for kind in ("input", "output", "temp", "user"):
            (self.base / kind).mkdir()
            getattr(self.folder_paths, f"set_{kind}_directory")(str(self.base / kind))
        for kind in ("checkpoints", "loras", "vae", "controlnet", "clip_vision"):
            (self.base / "models" / kind).mkdir(parents=True)
            self.folder_paths.add_model_folder_path(kind, str(self.base / "models" / kind))

    def _load_extras(self) -> None:
        """Load the nodes of comfy_extras, all but those that need a web server."""
        with quiet():
            extras = self.nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
            failed = set(self.loop.run_until_complete(extras) or ()) - {"nodes_replacements.py"}
        if failed:
            logging.warning("These nodes of the host did not load: %s", ", ".join(sorted(failed)))

    def executor(self, keep: int = 0):
        """An executor; with `keep` one that keeps the outputs of the so many nodes used last, of whatever graphs."""
        cache = {"lru": keep, "ram": 2.0, "ram_inactive": 8.0}
        kind = self.execution.CacheType.LRU if keep else self.execution.CacheType.CLASSIC
        return self.execution.PromptExecutor(self.listener, kind, cache)

    def _report_progress(self) -> None:
        """Send progress bars to the listener and heed interrupts there, as main.py does."""
        management = importlib.import_module("comfy.model_management")
        context = importlib.import_module("comfy_execution.utils").get_executing_context
        progress = importlib.import_module("comfy_execution.progress").get_progress_state

        def hook(value, total, preview, prompt_id=None, node_id=None):
            where = context()
            node_id = node_id or (where.node_id if where else None)
            management.throw_exception_if_processing_interrupted()
            progress().update_progress(node_id, value, total, preview)
            self.listener.send_sync("progress", {"value": value, "max": total, "node": node_id})
            if preview is not None:
                self.listener.send_sync("preview", preview)
        importlib.import_module("comfy.utils").set_progress_bar_global_hook(hook)

    def load_pack(self, folder: Path) -> None:
        """Load a pack the way ComfyUI does; SetupError with the host's own words unless its nodes are really there."""
        words: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: words.append(record.getMessage())
        logging.getLogger().addHandler(handler)
        try:
            load = self.nodes.load_custom_node(str(folder), ignore=set(self.nodes.NODE_CLASS_MAPPINGS))
            loaded = self.loop.run_until_complete(load)
        finally:
            logging.getLogger().removeHandler(handler)
        module = f"custom_nodes.{self.nodes.get_module_name(str(folder))}"
        classes = self.nodes.NODE_CLASS_MAPPINGS.items()
        found = {name for name, node in classes if getattr(node, "RELATIVE_PYTHON_MODULE", "") == module}
        if not loaded or not found:
            raise SetupError("The pack did not load:\n" + "\n".join(words))
        self.pack_folder, self.pack_nodes = folder, found

    def pack_module(self, name: str):
        """A module of the pack as the host loaded it, e.g. "mirror_ops.walks.trajectory". Its classes are those that
        nodes use; a plain `import mirror_ops` in a test is another copy of the same code."""
        return importlib.import_module(str(self.pack_folder).replace(".", "_x_") + "." + name)

    def object_info(self) -> dict[str, dict]:
        """Node id -> its description, with the fields of GET /object_info that conversion of graphs needs."""
        titles = self.nodes.NODE_DISPLAY_NAME_MAPPINGS
        return {name: describe(name, node, titles.get(name, name))
                for name, node in self.nodes.NODE_CLASS_MAPPINGS.items() if name != SINK}

    def ui_to_api(self, workflow: dict) -> dict[str, dict]:
        """A graph as the editor saves it -> the graph the executor takes."""
        return convert([workflow], self.object_info())[0]

    def run_graph(self, graph: dict[str, dict], *, cached: bool = False, previews: bool = False,
                  interrupt_when: Callable[[str, Any], bool] | None = None, executor=None) -> Run:
        """Validate and run a graph (API format) through the host's executor, all nodes, open branches too.

        cached: keep node outputs from one call to the next, as a server does; else every node runs anew.
        previews: ask samplers for preview pictures (events "preview").
        interrupt_when(event, data): once it says True the run is interrupted, as by the Cancel button.
        executor: one that `executor` made, whose kept outputs serve this run.
        Raises GraphRejected if any node fails validation, GraphFailed if a node raises.
        """
        return self.loop.run_until_complete(self._run(graph, cached, previews, interrupt_when, executor))

    def check_graph(self, graph: dict[str, dict]) -> None:
        """Raises GraphRejected if any node of a graph (API format) fails the host's validation."""
        self.loop.run_until_complete(self._validate(str(uuid.uuid4()), self._closed(graph)))

    async def _run(self, graph, cached, previews, interrupt_when, executor) -> Run:
        graph = self._closed(graph)
        prompt_id, run = str(uuid.uuid4()), Run()
        checked = await self._validate(prompt_id, graph)

        def receive(event, data):
            run.events.append(("preview" if event in PREVIEW_EVENTS else event, data))
            if interrupt_when and interrupt_when(*run.events[-1]):
                self.nodes.interrupt_processing(True)
        executor = executor or (self.shared if cached else self.executor())
        self.listener.receive = receive
        extra = {"client_id": "harness"} | ({"preview_method": "latent2rgb"} if previews else {})
        try:
            await executor.execute_async(graph, prompt_id, extra, checked[2])
        finally:
            self.listener.receive = lambda event, data: None
            self.nodes.interrupt_processing(False)
        for data in run.named("execution_error"):
            raise GraphFailed(data)
        run.interrupted = bool(run.named("execution_interrupted"))
        run.ui = {node: ui for node, ui in executor.history_result["outputs"].items() if node in graph}
        for node in graph:
            entry = executor.caches.outputs.get(node)
            entry = await entry if inspect.isawaitable(entry) else entry
            if entry is not None and graph[node]["class_type"] != SINK:
                run.outputs[node] = [slot[0] if len(slot) == 1 else slot for slot in entry.outputs]
        return run

    async def _validate(self, prompt_id: str, graph: dict) -> tuple:
        """The executor's own validation; what it logs about a bad graph comes back in the exception instead."""
        with quiet():
            checked = await self.execution.validate_prompt(prompt_id, graph, None)
        if not checked[0] or checked[3]:
            raise GraphRejected(checked[1], checked[3])
        return checked

    def _closed(self, graph: dict[str, dict]) -> dict[str, dict]:
        """The graph with a Sink on every node that has outputs, none of which is used."""
        links = [value for node in graph.values() for value in node.get("inputs", {}).values()]
        used = {str(link[0]) for link in links if isinstance(link, list) and len(link) == 2}
        closed = {str(node): entry for node, entry in graph.items()}
        for node, entry in graph.items():
            node_class = self.nodes.NODE_CLASS_MAPPINGS.get(entry.get("class_type"))
            if str(node) in used or node_class is None or getattr(node_class, "OUTPUT_NODE", False):
                continue
            closed[f"sink of {node}"] = {"class_type": SINK, "inputs": {"value": [str(node), 0]}}
        return closed


def describe(name: str, node: type, title: str) -> dict:
    """One entry of object_info (the server builds the same in a closure that can't be imported)."""
    if hasattr(node, "GET_NODE_INFO_V1"):
        return node.GET_NODE_INFO_V1()
    inputs = node.INPUT_TYPES()
    return {"name": name, "display_name": title, "input": inputs,
            "input_order": {kind: list(entries) for kind, entries in inputs.items()},
            "output": list(node.RETURN_TYPES), "output_name": list(getattr(node, "RETURN_NAMES", node.RETURN_TYPES)),
            "output_node": bool(getattr(node, "OUTPUT_NODE", False)),
            "output_is_list": list(getattr(node, "OUTPUT_IS_LIST", [False] * len(node.RETURN_TYPES)))}
