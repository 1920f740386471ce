"""A graph in the host, one picture after the other: models stay loaded, only what depends on the picture runs anew."""
from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from harness.boot import Host, boot, describe
from harness.environment import SetupError, available_host, cache_root
from harness.results import GraphFailed, GraphRejected

from . import JobError
from .disk import writing_to
from .graph import LOADER, Graph, is_wire, loaders, upload_input


class Pictures(NamedTuple):
    """The picture as the host loaded it and what the graph saves, [B, H, W, C]; the region of the edit, [B, H, W]."""
    before: Tensor
    after: Tensor
    region: Tensor | None


def start(cpu: bool, packs: tuple[str, ...]) -> Host:
    """The host in this process with further packs, and the models of `run.py serve`. Raises JobError."""
    try:
        host = boot(cpu)
        for pack in packs:
            host.load_pack(Path(pack).absolute())
    except SetupError as error:
        raise JobError(str(error)) from error
    importlib.import_module("comfy.utils").set_progress_bar_enabled(False)     # of samplers: the job has one of its own
    served = cache_root() / "serve" / "models"
    for folder in served.iterdir() if served.is_dir() else ():
        host.folder_paths.add_model_folder_path(folder.name, str(folder))
    return host


def classes_of(nodes: dict, host: Host) -> dict[str, dict]:
    """object_info of the classes of a graph, and of Load Image."""
    kinds = {entry["class_type"] for entry in nodes.values()} | {LOADER}
    return {kind: describe(kind, host.nodes.NODE_CLASS_MAPPINGS[kind], kind) for kind in kinds}


class Runner:
    """Runs a graph on pictures given as file contents."""

    def __init__(self, graph: Graph, host: Host):
        self.graph, self.host = graph, host
        self.inputs = Path(host.folder_paths.get_input_directory())
        for file in other_pictures(graph, host):
            content = file.read_bytes()
            with writing_to(self.inputs):
                (self.inputs / file.name).write_bytes(content)

    def __call__(self, content: bytes, suffix: str, seed: int) -> Pictures:
        """Raises GraphRejected or GraphFailed; JobError if the picture can't be put where the host looks for it."""
        # The host tells pictures apart by their files' names: equal names must mean equal pictures.
        file = self.inputs / f"{hashlib.sha256(content).hexdigest()[:32]}{suffix}"
        try:
            with writing_to(self.inputs):
                file.write_bytes(content)
            run = self.host.run_graph(self.graph.filled(file.name, seed), cached=True)
        finally:
            file.unlink(missing_ok=True)
        region = self.graph.region and run.outputs[self.graph.region[0]][self.graph.region[1]]
        before = next(out for out in run.outputs[self.graph.picture[0]] if getattr(out, "ndim", 0) == 4)
        return Pictures(before, run.outputs[str(self.graph.saved[0])][self.graph.saved[1]], region)

    def check(self, content: bytes, suffix: str) -> None:
        """Raises JobError if the host would not run the graph on a picture."""
        file = self.inputs / f"check{suffix}"
        try:
            with writing_to(self.inputs):
                file.write_bytes(content)
            self.host.check_graph(self.graph.filled(file.name, 0))
        except GraphRejected as error:
            raise JobError(f"ComfyUI would not run the graph: {error}") from error
        finally:
            file.unlink(missing_ok=True)


def other_pictures(graph: Graph, host: Host) -> list[Path]:
    """Files of the graph's other picture loaders, which lie in the ComfyUI's own input folder. Raises JobError."""
    classes = classes_of(graph.nodes, host)
    names = [graph.nodes[node]["inputs"][upload_input(graph.nodes[node], classes)]
             for node in loaders(graph.nodes, classes) if node != graph.picture[0]]
    files = [available_host() / "input" / name for name in names]
    for file in files:
        if not file.is_file():
            raise JobError(f"The graph also loads {file.name}, which is not in {file.parent}. Put it there.")
    return files


def model_files(graph: Graph, host: Host) -> dict[str, Path]:
    """Value of an input -> the model file that it names in one of the host's folders, and other pictures' files."""
    values = {value for entry in graph.nodes.values() for value in entry["inputs"].values()
              if isinstance(value, str) and not is_wire(value) and Path(value).suffix}
    found = {}
    for value in sorted(values):
        for kind in host.folder_paths.folder_names_and_paths:
            path = host.folder_paths.get_full_path(kind, value) if kind != "custom_nodes" else None
            if path:
                found[f"{kind}/{value}"] = Path(path)
    return found | {f"input/{file.name}": file for file in other_pictures(graph, host)}


def reason(error: Exception) -> str:
    """Why a picture failed, in one line."""
    if isinstance(error, GraphFailed):
        return f"{error.node_type}: {error.text}".replace("\n", " ")
    return f"{type(error).__name__}: {error}".replace("\n", " ")
