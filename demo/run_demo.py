"""`python run.py demo`: the shipped graph in a real ComfyUI server, on held-out scenes, measured against the truth.

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
from .scene import ATTRIBUTES, describe, scene

ROOT = Path(__file__).parent.parent
SCENES, FIRST = 8, 1_000_000
COLUMNS = ("source", "VAE round trip", "DDIM at cfg 5", "mirror at cfg 5", "edit", "exact answer")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=SCENES, help="held-out scenes")
    parser.add_argument("--output", type=Path, default=ROOT / "output")
    args = parser.parse_args(argv)
    started = time.time()
    with Server() as server:
        print(f"ComfyUI is up at {server.url} ({time.time() - started:.0f} s)", flush=True)
        graph = server.ui_to_api(server.template("mirror_demo"))
        results = []
        for i in range(args.scenes):
            results.append(run_scene(server, graph, FIRST + i, args.output))
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


def run_scene(server: Server, template: dict, seed: int, output: Path) -> dict:
    """Run the graph on one scene: {"figures": the report's entry, "pictures": name -> [H, W, 3]}."""
    graph, taps = tapped(template, seed)
    started = time.time()
    run = server.run_graph(graph)
    seconds = time.time() - started
    pictures = {name: fetch(server, run.ui[node]["images"][0]) for name, node in taps["pictures"].items()}
    numbers = {name: float(run.ui[node]["text"][0]) for name, node in taps["numbers"].items()}
    for name, picture in pictures.items():
        path = output / f"{seed}" / (name.replace(" ", "-") + ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(picture * 255).astype(np.uint8)).save(path)
    return {"figures": {"seed": seed, **figures(seed, pictures, numbers), "seconds": seconds}, "pictures": pictures}


def tapped(template: dict, seed: int) -> tuple[dict, dict]:
    """The shipped graph for one scene, with previews added at what the report needs; and where those stand."""
    graph = json.loads(json.dumps(template))
    node = {kind: [k for k, v in graph.items() if v["class_type"] == kind] for kind in
            ("MirrorDemoScene", "MirrorDemoModel", "VAEEncode", "RedescribedDDIMInvert", "MirrorSample",
             "MirrorReport")}
    world, drawn, encoded = node["MirrorDemoModel"][0], node["MirrorDemoScene"][0], node["VAEEncode"][0]
    graph[drawn]["inputs"]["seed"] = seed
    method = {k: graph[graph[k]["inputs"]["rewriter"][0]]["inputs"]["method"] for k in node["RedescribedDDIMInvert"]}
    at_cfg_5 = {method[k]: k for k in node["RedescribedDDIMInvert"] if graph[k]["inputs"]["cfg"] == 5}
    saved = next(v for v in graph.values() if v["inputs"].get("filename_prefix") == "mirror/edit")
    report_of = {graph[k]["inputs"]["mirror"][0]: k for k in node["MirrorReport"]}

    def add(kind, **inputs):
        key = str(1000 + len(graph))
        graph[key] = {"class_type": kind, "inputs": inputs}
        return key

    def decoded(latent):
        return [add("VAEDecode", samples=latent, vae=[world, 2]), 0]

    images = dict(zip(COLUMNS, ([drawn, 0], decoded([encoded, 0]), decoded([at_cfg_5["none"], 4]),
                                decoded([at_cfg_5["paper"], 4]), saved["inputs"]["images"], [drawn, 2]),
                      strict=True))
    answer = add("VAEEncode", pixels=[drawn, 2], vae=[world, 2])
    images |= {"ceiling": decoded([answer, 0]), "region": [add("MaskToImage", mask=[drawn, 3]), 0]}
    edited = graph[node["MirrorSample"][0]]["inputs"]["mirror"][0]
    numbers = {"ddim_displacement": [report_of[at_cfg_5["none"]], 1],
               "mirror_displacement": [report_of[at_cfg_5["paper"]], 1],
               "edit_mirror_displacement": [report_of[edited], 1],
               "mirror_forwards": [report_of[at_cfg_5["paper"]], 5],
               "mirror_backwards": [report_of[at_cfg_5["paper"]], 6],
               "edit_mirror_forwards": [report_of[edited], 5], "edit_mirror_backwards": [report_of[edited], 6],
               "edit_sample_forwards": [node["MirrorSample"][0], 2]}
    taps = {"pictures": {n: add("PreviewImage", images=wire) for n, wire in images.items()},
            "numbers": {n: add("PreviewAny", source=wire) for n, wire in numbers.items()}}
    return graph, taps


def fetch(server: Server, entry: dict) -> np.ndarray:
    """[H, W, 3] float32 in [0, 1]."""
    return np.asarray(Image.open(io.BytesIO(server.view(entry))).convert("RGB"), np.float32) / 255


def figures(seed: int, pictures: dict[str, np.ndarray], numbers: dict[str, float]) -> dict:
    """What report.json says of one scene."""
    source, answer, region = pictures["source"], pictures["exact answer"], pictures["region"][..., 0] > .5
    wanted = describe(scene(seed).with_(species="dog"))
    reader = classifier.load()
    seen = classifier.attributes(reader, torch.from_numpy(pictures["edit"])[None])[0]

    def compare(name, truth, where=None):
        a, b = (torch.from_numpy(p if where is None else p[where])[None] for p in (pictures[name], truth))
        return float(psnr(a, b))

    return {
        "vae_psnr": compare("VAE round trip", source), "ddim_psnr": compare("DDIM at cfg 5", source),
        "mirror_psnr": compare("mirror at cfg 5", source), **numbers,
        "edit_psnr_inside": compare("edit", answer, region), "edit_psnr_outside": compare("edit", answer, ~region),
        "source_psnr_inside": compare("source", answer, region),
        "ceiling_psnr_inside": compare("ceiling", answer, region),
        "vae_psnr_outside": compare("VAE round trip", source, ~region),
        "edit_success": float(seen["species"] == wanted["species"]),
        "others_kept": float(np.mean([seen[k] == wanted[k] for k in ATTRIBUTES if k != "species"])),
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
