"""The shipped graphs, written in Python: `python run.py graphs` makes workflows/*.json of them. One file a family."""
from __future__ import annotations

import argparse
import importlib
import inspect
import json
import pkgutil
from pathlib import Path

import numpy as np

from harness.environment import ROOT

from . import help
from .box import box

IMAGES = ROOT / "web" / "docs" / "images"
AS_SEED = "from the seed"       # an attribute that the scene's seed decides


def _templates() -> list:
    """The functions of this folder's files that `parts.template` gave a title, by their numbers."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    made = {make for module in modules for _, make in inspect.getmembers(module, inspect.isfunction)}
    return sorted((make for make in made if hasattr(make, "title")), key=lambda make: make.title)


SHEETS = {make.__name__: make for make in _templates()}
# The template browser shows a file's name as title and as description, and most systems list files by name.
FILES = {name: make.title for name, make in SHEETS.items()}


def main(argv: list[str]) -> int:
    """Write workflows/*.json from the sheets, and the pictures of templates and help pages: all, or those named."""
    from harness.boot import boot
    parser = argparse.ArgumentParser(prog="run.py graphs", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of: " + ", ".join([*SHEETS, *help.PICTURES]))
    parser.add_argument("--no-thumbnails", action="store_true", help="leave out the pictures, which take minutes")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.names if name not in {**SHEETS, **help.PICTURES}]:
        parser.error(f"there is no sheet {', '.join(unknown)}; there are {', '.join([*SHEETS, *help.PICTURES])}")
    host, drawn = boot(), not options.no_thumbnails
    for name in SHEETS:
        if name in options.names or not options.names:
            print(f"wrote {write_template(host, name, drawn)}", flush=True)
    for name, draw in help.PICTURES.items():
        if drawn and (name in options.names or not options.names):
            _picture(draw(host)).save(IMAGES / f"{name}.jpg", quality=85)
            print(f"drew {IMAGES / name}.jpg", flush=True)
    if not options.names:
        write_box(host)
    return 0


def write_template(host, name: str, drawn: bool) -> Path:
    """Write a sheet's JSON and, if they are to be drawn, its pictures; the path of the JSON."""
    from harness.editor import to_ui
    path, workflow = ROOT / "workflows" / f"{FILES[name]}.json", to_ui(shipped(name), host.object_info())
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")
    if drawn:
        small, sheet = pictures(host, host.ui_to_api(workflow))
        small.save(path.with_suffix(".jpg"), quality=90)
        sheet.save(IMAGES / f"{name}.jpg", quality=85)
    return path


def write_box(host) -> None:
    """Write the one box, a subgraph blueprint."""
    from harness.blueprint import to_blueprint
    sheet, shown = box()
    path = ROOT / "subgraphs" / f"{shown.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(to_blueprint(sheet, shown, host.object_info()), indent=1) + "\n", encoding="utf-8")


def shipped(name: str):
    """The sheet as the editor gets it: with the words of its scene written into the widgets that ask for them."""
    sheet = SHEETS[name]()
    for entry in sheet.graph.values():
        for key, value in entry["inputs"].items():
            source = sheet.graph[value[0]] if isinstance(value, list) else {"class_type": None}
            if source["class_type"] == "MirrorDemoScene" and value[1] in (1, 4):
                entry["inputs"][key] = scene_words(source["inputs"])[value[1]]
    return sheet


def scene_words(inputs: dict) -> dict[int, str]:
    """What MirrorDemoScene gives as captions, by its outputs' places, for these inputs."""
    from ..scene import ATTRIBUTES, caption, scene
    named = {name: inputs[name] for name in ATTRIBUTES if inputs.get(name, AS_SEED) != AS_SEED}
    before = scene(inputs["seed"]).with_(**named)
    return {1: caption(before), 4: caption(before.with_(**{inputs["edit"]: inputs["edit.to"]}))}


def at_seed(graph: dict, seed: int) -> dict:
    """A copy of a shipped graph (API form) on the scene of another seed, with that scene's words."""
    graph, said = json.loads(json.dumps(graph)), {}
    for entry in graph.values():
        if entry["class_type"] == "MirrorDemoScene":
            before = scene_words(entry["inputs"])
            entry["inputs"]["seed"] = seed
            said |= {before[slot]: words for slot, words in scene_words(entry["inputs"]).items()}
    for entry in graph.values():
        entry["inputs"] = {name: said.get(value, value) if isinstance(value, str) else value
                           for name, value in entry["inputs"].items()}
    return graph


def pictures(host, graph: dict) -> tuple:
    """(thumbnail, sheet) of a graph's result.

    The thumbnail is square, as the template browser shows it, with the picture it began with in a corner. The sheet is
    Mirror Compare's, for the help pages.
    """
    from PIL import Image, ImageOps
    run = host.run_graph(graph)
    compare, shown = next((key, entry["inputs"]) for key, entry in graph.items()
                          if entry["class_type"] == "MirrorCompare")
    before, after = (_picture(run.outputs[key][slot][0]) for key, slot in (shown["reference"], shown["images.image0"]))
    made = after.resize((384, 384), Image.Resampling.LANCZOS)
    made.paste(ImageOps.expand(before.resize((120, 120), Image.Resampling.LANCZOS), 4, "white"), (8, 248))
    return made, _picture(run.outputs[compare][0][0])


def _picture(pixels):
    from PIL import Image
    return Image.fromarray((np.asarray(pixels).clip(0, 1) * 255).round().astype(np.uint8))
