"""`python run.py demo`: shipped graphs in a real ComfyUI server, on held-out scenes, measured against the truth.

Writes to output/: each scene's pictures, one labelled strip of all scenes, and report.json.
"""
from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from harness.server import Server
from mirror_ops.measure.metrics import psnr

from . import classifier
from .graphs import FILES, at_seed
from .scene import ATTRIBUTES, describe, scene

ROOT = Path(__file__).parent.parent
SCENES, FIRST = 8, 1_000_000
COLUMNS = ("source", "VAE round trip", "DDIM at cfg 5", "mirror at cfg 5", "mirror edit", "edit", "exact answer")
EDIT, MIRROR, WAYS = "edit_picture", "mirror_demo", "compare_ways_back"    # the graphs that make them


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=SCENES, help="held-out scenes")
    parser.add_argument("--output", type=Path, default=ROOT / "output")
    args = parser.parse_args(argv)
    started = time.time()
    with Server() as server:
        print(f"ComfyUI is up at {server.url} ({time.time() - started:.0f} s)", flush=True)
        graphs = {name: server.ui_to_api(server.template(FILES[name])) for name in (EDIT, MIRROR, WAYS)}
        results = []
        for i in range(args.scenes):
            results.append(run_scene(server, graphs, FIRST + i, args.output))
            r = results[-1]["figures"]
            print(f"scene {FIRST + i}: DDIM {r['ddim_psnr']:.1f} dB, mirror {r['mirror_psnr']:.1f} dB of "
                  f"{r['vae_psnr']:.1f}; edit {'hit' if r['edit_success'] else 'missed'}, outside "
                  f"{r['edit_psnr_outside']:.1f} dB, {r['seconds']:.0f} s", flush=True)
    report = {"average": average([r["figures"] for r in results]), "scenes": [r["figures"] for r in results]}
    (args.output / "report.json").write_text(json.dumps(report, indent=1))
    strip([r["pictures"] for r in results]).save(args.output / "strip.png")
    print("\naverage of", len(results), "held-out scenes, fox to dog")
    for name, value in report["average"].items():
        print(f"  {name:22} {value:.4g}")
    print(f"\npictures and report.json: {args.output}   ({time.time() - started:.0f} s in all)")
    return 0


def run_scene(server: Server, graphs: dict[str, dict], seed: int, output: Path) -> dict:
    """Run the graphs on one scene: {"figures": the report's entry, "pictures": name -> [H, W, 3]}."""
    started, pictures, numbers = time.time(), {}, {}
    for name, graph in graphs.items():
        taps = Taps(at_seed(graph, seed))
        TAPPED[name](taps)
        run = server.run_graph(taps.graph)
        pictures |= {key: fetch(server, run.ui[node]["images"][0]) for key, node in taps.pictures.items()}
        numbers |= {key: float(run.ui[node]["text"][0]) for key, node in taps.numbers.items()}
    seconds = time.time() - started
    for name, picture in pictures.items():
        path = output / f"{seed}" / (name.replace(" ", "-") + ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(picture * 255).astype(np.uint8)).save(path)
    return {"figures": {"seed": seed, **figures(seed, pictures, numbers), "seconds": seconds}, "pictures": pictures}


class Taps:
    """A graph with previews added at what the report needs: `pictures` and `numbers` are name -> node."""

    def __init__(self, graph: dict) -> None:
        self.graph, self.pictures, self.numbers = graph, {}, {}

    def all(self, kind: str) -> list[str]:
        return [key for key, entry in self.graph.items() if entry["class_type"] == kind]

    def one(self, kind: str) -> str:
        return self.all(kind)[0]

    def inputs(self, kind: str) -> dict:
        return self.graph[self.one(kind)]["inputs"]

    def add(self, kind: str, **inputs) -> str:
        key = str(1000 + len(self.graph))
        self.graph[key] = {"class_type": kind, "inputs": inputs}
        return key

    def picture(self, name: str, image: list) -> None:
        self.pictures[name] = self.add("PreviewImage", images=image)

    def number(self, name: str, wire: list) -> None:
        self.numbers[name] = self.add("PreviewAny", source=wire)

    def decoded(self, latent: list) -> list:
        return [self.add("VAEDecode", samples=latent, vae=[self.one("MirrorDemoModel"), 2]), 0]

    def encoded(self, image: list) -> list:
        return [self.add("VAEEncode", pixels=image, vae=[self.one("MirrorDemoModel"), 2]), 0]


def tap_edit(taps: Taps) -> None:
    """The scene, its exact answer, what the autoencoder makes of both, and the edit by words."""
    scene_ = taps.one("MirrorDemoScene")
    taps.picture("source", [scene_, 0])
    taps.picture("VAE round trip", taps.decoded([taps.one("VAEEncode"), 0]))
    taps.picture("edit", taps.inputs("SaveImage")["images"])
    taps.picture("exact answer", [scene_, 2])
    taps.picture("ceiling", taps.decoded(taps.encoded([scene_, 2])))
    taps.picture("region", [taps.add("MaskToImage", mask=[scene_, 3]), 0])


def tap_mirror(taps: Taps) -> None:
    """The edit by a mirror, how well that holds, and what it cost."""
    report = taps.one("MirrorReport")
    taps.picture("mirror edit", taps.inputs("SaveImage")["images"])
    taps.number("edit_mirror_displacement", [report, 1])
    taps.number("edit_mirror_forwards", [report, 5])
    taps.number("edit_mirror_backwards", [report, 6])
    taps.number("edit_sample_forwards", [taps.one("MirrorSample"), 2])


def tap_ways(taps: Taps) -> None:
    """The ways back at cfg 5, without and with rewriting."""
    for key in taps.all("RedescribedDDIMInvert"):
        rewrites = taps.graph[taps.graph[key]["inputs"]["rewriter"][0]]["inputs"]["method"] != "none"
        name = "mirror" if rewrites else "ddim"
        report = taps.add("MirrorReport", mirror=[key, 2], vae=[taps.one("MirrorDemoModel"), 2])
        taps.picture(COLUMNS[3 if rewrites else 2], taps.decoded([key, 4]))
        taps.number(f"{name}_displacement", [report, 1])
        if rewrites:
            taps.number("mirror_forwards", [report, 5])
            taps.number("mirror_backwards", [report, 6])


TAPPED = {EDIT: tap_edit, MIRROR: tap_mirror, WAYS: tap_ways}


def fetch(server: Server, entry: dict) -> np.ndarray:
    """[H, W, 3] float32 in [0, 1]."""
    return np.asarray(Image.open(io.BytesIO(server.view(entry))).convert("RGB"), np.float32) / 255


def figures(seed: int, pictures: dict[str, np.ndarray], numbers: dict[str, float]) -> dict:
    """What report.json says of one scene."""
    source, answer, region = pictures["source"], pictures["exact answer"], pictures["region"][..., 0] > .5
    wanted = describe(scene(seed).with_(species="dog"))
    reader = classifier.load()

    def compare(name, truth, where=None):
        a, b = (torch.from_numpy(p if where is None else p[where])[None] for p in (pictures[name], truth))
        return float(psnr(a, b))

    def judged(picture, name):
        seen = classifier.attributes(reader, torch.from_numpy(pictures[picture])[None])[0]
        return {f"{name}_psnr_inside": compare(picture, answer, region),
                f"{name}_psnr_outside": compare(picture, answer, ~region),
                f"{name}_success": float(seen["species"] == wanted["species"]),
                f"{name}_others_kept": float(np.mean([seen[k] == wanted[k] for k in ATTRIBUTES if k != "species"]))}

    return {
        "vae_psnr": compare("VAE round trip", source), "ddim_psnr": compare("DDIM at cfg 5", source),
        "mirror_psnr": compare("mirror at cfg 5", source), **numbers,
        **judged("edit", "edit"), **judged("mirror edit", "mirror_edit"),
        "source_psnr_inside": compare("source", answer, region),
        "ceiling_psnr_inside": compare("ceiling", answer, region),
        "vae_psnr_outside": compare("VAE round trip", source, ~region),
    }


def average(rows: list[dict]) -> dict:
    return {k: float(np.mean([r[k] for r in rows])) for k in rows[0] if k != "seed"}


def strip(rows: list[dict[str, np.ndarray]], head: int = 22, gap: int = 4) -> Image.Image:
    """One row a scene, one labelled column a stage."""
    height, width = rows[0]["source"].shape[:2]
    sheet = Image.new("RGB", ((width + gap) * len(COLUMNS) - gap, head + (height + gap) * len(rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for x, name in enumerate(COLUMNS):
        draw.text(((width + gap) * x + width / 2, head / 2), name, fill=(30, 30, 30), font=font, anchor="mm")
        for y, row in enumerate(rows):
            picture = Image.fromarray(np.round(row[name] * 255).astype(np.uint8))
            sheet.paste(picture, ((width + gap) * x, head + (height + gap) * y))
    return sheet
