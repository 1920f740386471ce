"""A graph in the host, one picture after the other: models stay loaded, only what depends on the picture runs anew."""
from __future__ import annotations

import contextlib
import hashlib
import importlib
import shutil
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from harness.boot import Host, boot, describe
from harness.environment import SetupError, available_host, cache_root
from harness.results import GraphFailed, GraphRejected

from . import JobError
from .disk import writing_to
from .graph import LOADER, Graph, is_wire, upload_input


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
        for (kind, name), file in other_files(graph, host).items():
            place = Path(getattr(host.folder_paths, f"get_{kind}_directory")(), name)
            with writing_to(place.parent):
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)

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


def other_files(graph: Graph, host: Host) -> dict[tuple[str, str], Path]:
    """(input or output, name there) -> the user's file of that name, for all that the graph names beside its picture:
    other pictures, masks, and what nodes saved and load again. Raises JobError for a picture that is nowhere."""
    classes, found = classes_of(graph.nodes, host), {}
    for node, entry in graph.nodes.items():
        upload = None if node == graph.picture[0] else upload_input(entry, classes)
        for name, value in entry["inputs"].items():
            if not isinstance(value, str) or not value:
                continue
            plain, kinds = places_named(value)
            files = {(kind, plain): file for kind in kinds for file in users_files(kind, plain)}
            if name == upload and not files:
                where = " or ".join(str(folder / kinds[0]) for folder in users_folders())
                raise JobError(f"The graph also loads {plain}, which is not in {where}. Put it there.")
            found |= dict(list(files.items())[:1])
    return found


def places_named(value: str) -> tuple[str, tuple[str, ...]]:
    """(name, the folders that it may lie in) of an input's value; the editor writes "a.png [output]"."""
    for kind in ("input", "output"):
        if value.endswith(f" [{kind}]"):
            return value.removesuffix(f" [{kind}]"), (kind,)
    return value, ("input", "output")


def users_files(kind: str, name: str) -> list[Path]:
    """The file of this name in the input or output folder of the ComfyUI that is used, or of `run.py serve`."""
    found = []
    for folder in (folder / kind for folder in users_folders()):
        file = folder / name
        with contextlib.suppress(OSError, ValueError):      # a text may be no file's name
            if file.is_file() and file.resolve().is_relative_to(folder.resolve()):
                found.append(file)
    return found[:1]


def users_folders() -> tuple[Path, ...]:
    return available_host(), cache_root() / "serve"


def model_files(graph: Graph, host: Host) -> dict[str, Path]:
    """Value of an input -> the model file that it names in one of the host's folders, and `other_files`."""
    values = {value for entry in graph.nodes.values() for value in entry["inputs"].values()
              if isinstance(value, str) and not is_wire(value) and Path(value).suffix}
    found = {}
    for value in sorted(values):
        for kind in host.folder_paths.folder_names_and_paths:
            path = host.folder_paths.get_full_path(kind, value) if kind != "custom_nodes" else None
            if path:
                found[f"{kind}/{value}"] = Path(path)
    return found | {"/".join(place): file for place, file in other_files(graph, host).items()}


def reason(error: Exception) -> str:
    """Why a picture failed, in one line."""
    if isinstance(error, GraphFailed):
        return f"{error.node_type}: {error.text}".replace("\n", " ")
    return f"{type(error).__name__}: {error}".replace("\n", " ")
