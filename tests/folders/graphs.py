"""A tiny graph over a picture, and pictures of the embedded world, for the tests of folder jobs."""
import json
from pathlib import Path

from demo.render import render
from demo.scene import scene

TINY = {
    "1": {"class_type": "MirrorDemoModel", "inputs": {}},
    "2": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["2", 0], "vae": ["1", 2]}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["1", 1]}},
    "5": {"class_type": "KSampler", "_meta": {"title": "redraw"},
          "inputs": {"model": ["1", 0], "positive": ["4", 0], "negative": ["4", 0], "latent_image": ["3", 0], "seed": 3,
                     "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.3}},
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "x"}},
    "8": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
}


def tiny(**changes) -> dict:
    """The graph with nodes added, replaced, or (None) taken out."""
    nodes = json.loads(json.dumps({**TINY, **changes}))
    return {node: entry for node, entry in nodes.items() if entry is not None}


def written(folder: Path, graph) -> Path:
    file = folder / "graph.json"
    file.write_text(graph if isinstance(graph, str) else json.dumps(graph))
    return file


def draw(folder: Path, *names: str) -> Path:
    """Scenes saved under these names."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        render(scene(1_000_000 + i)).save(folder / name)
    return folder
