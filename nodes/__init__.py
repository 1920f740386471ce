"""The nodes: schema, a few lines of wiring, return. One family a file; a folder here is a sub-category of the menu.

A new node needs no list: every io.ComfyNode that is defined in a file of these folders is found. `host` holds no nodes:
it is the only place that reaches into ComfyUI's internals. Every node's inputs are checked before it runs
(`host.values`).
"""

import importlib
import inspect
import pkgutil

from comfy_api.latest import ComfyExtension, io

from .host.training import show_shipped_edits
from .host.values import guarded

FOLDERS = ("edit", "mirror", "guidance", "attention", "cycle", "measure", "files", "distil", "demo")  # as in the docs


def found() -> list[type[io.ComfyNode]]:
    """All nodes, folder by folder and file by file, in the order in which the files define them."""
    return [kind for folder in FOLDERS for module in _modules(folder) for kind in _defined(module)]


def _modules(folder: str):
    package = importlib.import_module(f"{__name__}.{folder}")
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        yield importlib.import_module(f"{package.__name__}.{module.name}")


def _defined(module) -> list[type[io.ComfyNode]]:
    kinds = [kind for kind in vars(module).values() if inspect.isclass(kind) and issubclass(kind, io.ComfyNode)]
    return [guarded(kind) for kind in kinds if kind.__module__ == module.__name__]


class MirrorExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes, each checking its inputs before it runs."""
        return found()


async def comfy_entrypoint() -> MirrorExtension:
    """The extension, as ComfyUI asks for it once; the edits that come with the pack are among its models from then on.
    """
    show_shipped_edits()
    return MirrorExtension()
