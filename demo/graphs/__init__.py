"""The shipped graphs, written in Python: `python run.py graphs` makes workflows/*.json of them. One file a family."""
from __future__ import annotations

from ..scene import ATTRIBUTES
from . import attention_control, cycle, mirror, pix2pix_zero, proxedit
from .parts import EXAMPLE, SEED

SHEETS = {**mirror.SHEETS, **cycle.SHEETS, **pix2pix_zero.SHEETS, **proxedit.SHEETS, **attention_control.SHEETS}

CAT = {**dict.fromkeys(ATTRIBUTES, "from the seed"), "seed": SEED + 1, "species": "cat", "edit": "species",
       "edit.to": "dog"}


def main(argv: list[str]) -> int:
    """Write workflows/*.json from the sheets, or those named, as the host that runs here describes its nodes."""
    import argparse
    import json

    from harness.boot import boot
    from harness.editor import to_ui
    from harness.environment import ROOT
    parser = argparse.ArgumentParser(prog="run.py graphs", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of: " + ", ".join(SHEETS))
    names = parser.parse_args(argv).names or list(SHEETS)
    if unknown := [name for name in names if name not in SHEETS]:
        parser.error(f"there is no sheet {', '.join(unknown)}; there are {', '.join(SHEETS)}")
    host = boot()
    info, folder = host.object_info(), ROOT / "workflows"
    folder.mkdir(exist_ok=True)
    for name in names:
        path, workflow = folder / f"{name}.json", to_ui(SHEETS[name](), info)
        path.write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")
        thumbnail(host, embedded(host.ui_to_api(workflow))).save(path.with_suffix(".jpg"), quality=90)
        print(f"wrote {path} and its thumbnail")
    return 0


def embedded(graph: dict) -> dict:
    """The graph with the embedded model and a scene in place of files that users have."""
    graph = {key: {**entry, "inputs": dict(entry["inputs"])} for key, entry in graph.items()}
    for entry in graph.values():
        if entry["class_type"] == "CheckpointLoaderSimple":
            entry.update(class_type="MirrorDemoModel", inputs={})
        if entry["class_type"] == "LoadImage":
            entry.update(class_type="MirrorDemoScene", inputs=CAT)
        if entry["class_type"] == "EmptyLatentImage":
            entry["inputs"].update(width=128, height=128)
    scene = next((k for k, v in graph.items() if v["class_type"] == "MirrorDemoScene"), None)
    examples = [entry for entry in graph.values() if entry["inputs"].get("text") == EXAMPLE]
    if examples and scene is None:
        scene = "scene"     # a picture that is sampled: only the scene's words are read
        graph[scene] = {"class_type": "MirrorDemoScene", "inputs": CAT}
    for entry in examples:
        entry["inputs"]["text"] = [scene, 1]
    return graph


def thumbnail(host, graph: dict):
    """The picture that went in, or was there before, beside the edit that came out, run on the embedded world."""
    import numpy as np
    from PIL import Image
    run = host.run_graph(graph)
    saved = {v["inputs"]["filename_prefix"]: v["inputs"]["images"] for v in graph.values()
             if v["class_type"] == "SaveImage"}
    scene = next((k for k, v in graph.items() if v["class_type"] == "MirrorDemoScene"), None)
    pair = [run.outputs[link[0]][link[1]][0] for link in (saved.get("mirror/before", [scene, 0]), saved["mirror/edit"])]
    both = np.concatenate([np.asarray(p) for p in pair], 1)
    picture = Image.fromarray((both.clip(0, 1) * 255).round().astype(np.uint8))
    return picture.resize((512, 256), Image.Resampling.LANCZOS)
