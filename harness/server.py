"""The real host as a server of its own process, with only this pack, and a client for it over HTTP and websocket."""
import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cache import PACK_NAME, SetupError, explained, say
from .convert import convert
from .demo_files import LOADER, LOADER_NAME, provide
from .environment import ROOT, available_host
from .pip import clean_environ
from .results import GraphFailed, GraphRejected, Run

FOLDERS = ("custom_nodes", "models/checkpoints", "input", "output", "temp", "user")
FOR_THE_EDITOR = ("--preview-method", "auto")      # pictures on a node while it samples
ENDINGS = ("execution_success", "execution_error", "execution_interrupted")


class Server:
    """A running ComfyUI: `with Server() as server:`. Stopped at the end whatever happens; its log is kept on failure.

    port: None picks a free one. base: folder for its models, input, output and user files; None makes a temporary one.
    cpu: True forces the CPU, False uses an accelerator if torch has one. options: further options of the host.
    Attributes: url, port, base, log (its file).
    """

    def __init__(self, port: int | None = None, base: Path | None = None, cpu: bool = True, options: tuple = (),
                 pack: Path = ROOT) -> None:
        self.port = port or free_port()
        self.temporary = base is None
        temporary = Path(tempfile.gettempdir()) / f"mirror-server-{uuid.uuid4().hex}"
        self.base = Path(base or temporary).absolute()
        self.log = self.base / f"server-{self.port}.log"
        self.link = self.base / "servers" / str(self.port) / PACK_NAME
        self.paths = self.link.with_name("paths.yaml")
        self.url = f"http://127.0.0.1:{self.port}"
        self.cpu, self.options = cpu or not has_accelerator(), options
        self.packs = {PACK_NAME: pack, LOADER_NAME: LOADER}
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, kind, *_) -> None:
        self.stop(keep_log=kind is not None)

    # Life

    def start(self, seconds: float = 300) -> None:
        """Start the host and wait until it answers with the pack loaded. Raises SetupError with the log's end."""
        if not port_is_free(self.port):
            raise SetupError(f"Port {self.port} is taken by another program. Close that, or choose another: --port N.")
        with explained(self.base, "server's folder"):
            self.make_folders()
        say(f"starting ComfyUI on {self.url}, about 10 s")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=subprocess.STDOUT, cwd=self.base,
                                            env=clean_environ() | {"PYTHONUNBUFFERED": "1"})
        try:
            self.wait_until_ready(seconds)
        except BaseException:
            self.stop(keep_log=True)
            raise

    def make_folders(self) -> None:
        """The base folder, and the pack linked where this server alone looks for it; the rest clones share, with
        what the templates ask for."""
        for folder in (*FOLDERS, self.link.parent):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        remove_link(self.base / "custom_nodes" / PACK_NAME)
        for name, folder in self.packs.items():
            link_folder(self.link.with_name(name), folder)
        provide(self.base)
        self.paths.write_text(json.dumps({"pack": {"custom_nodes": str(self.link.parent)}}))     # JSON is YAML

    def command(self) -> list[str]:
        command = [sys.executable, str(available_host() / "main.py"), "--port", str(self.port), "--base-directory",
                   str(self.base), "--disable-all-custom-nodes", "--whitelist-custom-nodes", *self.packs,
                   "--extra-model-paths-config", str(self.paths), "--temp-directory", str(self.link.parent),
                   "--disable-api-nodes", "--disable-auto-launch", "--database-url", "sqlite:///:memory:"]
        return command + ["--cpu"] * self.cpu + list(self.options)

    def wait_until_ready(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.answers():
            if self.process.poll() is not None:
                raise SetupError(f"ComfyUI stopped while starting, exit code {self.process.returncode}:\n{self.tail()}")
            if time.monotonic() > end:
                raise SetupError(f"ComfyUI did not answer on {self.url} within {seconds:.0f} s:\n{self.tail()}")
            time.sleep(0.2)
        if f"(IMPORT FAILED): {self.link}" in self.text() or not self.pack_nodes():
            raise SetupError(f"ComfyUI runs, but the pack did not load:\n{self.tail(60)}")

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return "system" in self.get("/system_stats")
        return False

    def stop(self, keep_log: bool = False) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if not self.temporary:
            return
        for name in self.packs:
            remove_link(self.link.with_name(name))
        if keep_log and self.log.is_file():
            kept = Path(tempfile.gettempdir()) / f"{PACK_NAME}-server-{self.port}.log"
            shutil.copyfile(self.log, kept)
            print(f"The server's log is kept in {kept}", file=sys.stderr)
        shutil.rmtree(self.base, ignore_errors=True)

    def text(self) -> str:
        """The log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def tail(self, lines: int = 30) -> str:
        return "\n".join("    " + line for line in self.text().splitlines()[-lines:])

    # HTTP

    def get_bytes(self, path: str, **query: str) -> bytes:
        """Body of a GET. Raises urllib.error.HTTPError for an answer other than 200."""
        query_text = "?" + urllib.parse.urlencode(query) if query else ""
        with urllib.request.urlopen(self.url + path + query_text, timeout=60) as answer:
            return answer.read()

    def get(self, path: str, **query: str) -> Any:
        return json.loads(self.get_bytes(path, **query))

    def post(self, path: str, body: Any = None) -> Any:
        """JSON answer of a POST, or None if the answer is empty; also that of an error answer."""
        request = urllib.request.Request(self.url + path, json.dumps(body or {}).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read()
        return json.loads(text) if text else None

    def interrupt(self) -> None:
        self.post("/interrupt")

    def object_info(self) -> dict[str, dict]:
        return self.get("/object_info")

    def pack_nodes(self) -> set[str]:
        """Ids of the nodes that the server has from this pack."""
        module = f"custom_nodes.{PACK_NAME}"
        return {name for name, info in self.object_info().items() if info["python_module"] == module}

    def templates(self) -> list[str]:
        """Names of the pack's graphs in the template browser."""
        return sorted(self.get("/workflow_templates").get(PACK_NAME, []))

    def template(self, name: str) -> dict:
        """One of them, in UI format, as the browser gets it."""
        return self.get(f"/api/workflow_templates/{PACK_NAME}/{urllib.parse.quote(name)}.json")

    def ui_to_api(self, workflow: dict) -> dict[str, dict]:
        """A graph as the editor saves it -> the graph the executor takes."""
        return convert([workflow], self.object_info())[0]

    def view(self, picture: dict) -> bytes:
        """The file of an entry of Run.ui[node]["images"]."""
        return self.get_bytes("/view", **{key: picture[key] for key in ("filename", "subfolder", "type")})

    # Graphs

    def run_graph(self, graph: dict[str, dict], *, seconds: float = 1800, previews: bool = False,
                  interrupt_when: Callable[[str, Any], bool] | None = None,
                  on_event: Callable[[str, Any], None] | None = None) -> Run:
        """Queue a graph (API format) and follow it to its end over the websocket.

        Run.outputs stays empty: a server gives away only what nodes show (Run.ui, with `view` for pictures).
        interrupt_when(event, data): once it says True, POST /interrupt. on_event is called with every event.
        Raises GraphRejected if any node fails validation, GraphFailed if a node raises, TimeoutError.
        """
        return asyncio.run(asyncio.wait_for(self._run(graph, previews, interrupt_when, on_event), seconds))

    async def _run(self, graph, previews, interrupt_when, on_event) -> Run:
        import aiohttp  # the host has it; starting and stopping a server needs only the standard library

        client, run, interrupted = str(uuid.uuid4()), Run(), False
        address = f"{self.url}/ws?clientId={client}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket_:
            prompt_id = await self._queue(graph, client, previews)
            async for message in socket_:
                event, data = read_message(message)
                run.events.append((event, data))
                if on_event:
                    on_event(event, data)
                if interrupt_when and not interrupted and interrupt_when(event, data):
                    interrupted = True
                    await asyncio.to_thread(self.interrupt)
                if event in ENDINGS and data["prompt_id"] == prompt_id:
                    break
            else:
                raise ConnectionError(f"ComfyUI closed the connection in the middle of a graph:\n{self.tail()}")
        for data in run.named("execution_error"):
            raise GraphFailed(data)
        run.interrupted = bool(run.named("execution_interrupted"))
        run.ui = (await self._history(prompt_id))["outputs"]
        return run

    async def _queue(self, graph: dict, client: str, previews: bool) -> str:
        extra = {"preview_method": "latent2rgb"} if previews else {}
        answer = await asyncio.to_thread(self.post, "/prompt",
                                         {"prompt": graph, "client_id": client, "extra_data": extra})
        if answer.get("node_errors") or "error" in answer:
            if "prompt_id" in answer:       # other outputs were valid and are queued already
                await asyncio.to_thread(self.post, "/queue", {"delete": [answer["prompt_id"]]})
                await asyncio.to_thread(self.interrupt)
            raise GraphRejected(answer.get("error"), answer.get("node_errors", {}))
        return answer["prompt_id"]

    async def _history(self, prompt_id: str) -> dict:
        """The entry of a graph that ended; the server writes it a moment after the last event."""
        for _ in range(100):
            history = await asyncio.to_thread(self.get, f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            await asyncio.sleep(0.1)
        raise TimeoutError(f"ComfyUI ended graph {prompt_id} but has no record of it")


def read_message(message) -> tuple[str, Any]:
    """(event, data) of a websocket message; pictures come as ("preview", bytes)."""
    if isinstance(message.data, bytes):
        return ("preview" if int.from_bytes(message.data[:4], "big") in (1, 2, 4) else "binary"), message.data
    content = json.loads(message.data)
    return content["type"], content["data"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        if sys.platform != "win32":     # there the option means the opposite: to share a port that is in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def has_accelerator() -> bool:
    import torch
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def link_folder(link: Path, target: Path) -> None:
    """Make `link` stand for the folder `target`: a symbolic link, on Windows a junction (which needs no rights)."""
    remove_link(link)
    if sys.platform == "win32":
        import _winapi
        _winapi.CreateJunction(str(target), str(link))
    else:
        link.symlink_to(target, target_is_directory=True)


def remove_link(link: Path) -> None:
    if not os.path.lexists(link):
        return
    if sys.platform == "win32":
        os.rmdir(link)      # removes a junction and leaves what it points to
    else:
        link.unlink()
