"""How exactly each method gives pictures back: displacement, PSNR, passes through the network, seconds a picture.

Held-out scenes are inverted under their caption and walked back at each guidance against the empty prompt, by the
pack's nodes with their defaults and the host's own samplers. Passes are rows of the network's batch, from the encoded
picture to the reconstruction. Displacement is rms(z' - z) / rms(z) of the latent, its mean over pictures and the worst.
With --json every finished batch is kept, and --resume goes on from there, unless sources or weights have changed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mirror_ops.measure.metrics import psnr, relative_displacement
from mirror_ops.storage.whole_file import write_whole

from .fingerprint import fingerprint
from .reconstruction_methods import METHODS, SCHEDULER, Batch, Walk, batch_of
from .table import show
from .world import world

PARTS, WEIGHTS = ("reconstruction", "reconstruction_methods"), ("model",)    # what figures depend on, the pack apart
MOST_DB = 200.0  # what equal latents are given, which have no PSNR
DISPLACEMENT_EXACT, DISPLACEMENT_FLOAT64 = 1e-4, 1e-8


def measure(method: str, cfg: float, steps: int, batch: Batch) -> list[dict]:
    """One record a picture."""
    w, count = world(), world().host.pack_module("nodes.host.denoiser").Count()
    model, size = w.model.clone(), len(batch.numbers)
    count.attach(model)
    start = time.perf_counter()
    back, truth = METHODS[method](Walk(model, batch, cfg, steps))
    seconds = (time.perf_counter() - start) / size
    low, high = (f(truth, dim=(1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    figures = {
        "displacement": relative_displacement(back, truth),
        "latent_psnr": psnr((back - low) / (high - low), (truth - low) / (high - low)).clamp(max=MOST_DB),
        "psnr": psnr(w.vae.decode(back.float()), batch.images),
    }
    shared = {"forwards": count.forwards / size, "backwards": count.backwards / size, "seconds": seconds}
    return [{"method": method, "cfg": cfg, "scene": n, **{k: float(v[b]) for k, v in figures.items()}, **shared}
            for b, n in enumerate(batch.numbers)]


def rows_of(pictures: list[dict], scenes: int) -> list[dict]:
    """The mean over pictures of each method and guidance that is complete, in the order of METHODS."""
    rows = []
    for cfg in sorted({p["cfg"] for p in pictures}):
        for method in METHODS:
            mine = [p for p in pictures if (p["method"], p["cfg"]) == (method, cfg)]
            if len(mine) < scenes:
                continue
            row = {"method": method, "cfg": cfg}
            for name in ("displacement", "psnr", "latent_psnr", "forwards", "backwards", "seconds"):
                row[name] = sum(p[name] for p in mine) / len(mine)
            rows.append({**row, "worst": max(p["displacement"] for p in mine)})
    return rows


def claims_of(rows: list[dict]) -> list[dict]:
    """What is claimed of the methods, and whether these rows bear it out. Claims about absent rows are left out."""
    at = {(row["method"], row["cfg"]): row for row in rows}
    claims = []

    def claim(text: str, needed: list, measure: Callable, limit: float) -> None:
        if all(key in at for key in needed):
            value = measure(*(at[key] for key in needed))
            claims.append({"claim": text, "measured": value, "limit": limit, "holds": value <= limit})

    def ratio(row: dict, base: dict) -> float:
        return row["displacement"] / base["displacement"]

    def extra(row: dict, full: dict, base: dict) -> float:
        cost = [r["forwards"] + r["backwards"] for r in (row, full, base)]
        return (cost[0] - cost[2]) / (cost[1] - cost[2])

    for cfg in sorted({row["cfg"] for row in rows}):
        for method in ("edict", "bdia", "exact"):
            claim(f"{method}, cfg {cfg:g}: worst displacement", [(method, cfg)], lambda r: r["worst"],
                  DISPLACEMENT_EXACT)
        for method in ("edict float64", "bdia float64"):
            claim(f"{method}, cfg {cfg:g}: worst displacement", [(method, cfg)], lambda r: r["worst"],
                  DISPLACEMENT_FLOAT64)
        if cfg == 1:
            claim("refine 5 to ddim, cfg 1", [("refine 5", 1), ("ddim", 1)], ratio, 1 / 20)
        else:
            claim(f"paper to ddim, cfg {cfg:g}", [("paper", cfg), ("ddim", cfg)], ratio, 1 / 10)
            claim(f"paper full to paper, cfg {cfg:g}", [("paper full", cfg), ("paper", cfg)], ratio, 1)
        claim(f"ours to paper full, cfg {cfg:g}", [("ours", cfg), ("paper full", cfg)], ratio, 1)
        claim(f"extra passes of ours to those of paper full, cfg {cfg:g}",
              [("ours", cfg), ("paper full", cfg), ("ddim", cfg)], extra, 1 / 4)
    return claims


def main(argv: list[str]) -> int:
    args = arguments(argv)
    with torch.inference_mode():  # as the executor runs nodes
        run(args)
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure what is asked for and not there yet."""
    methods = args.methods
    settings = {"scenes": args.scenes, "steps": args.steps, "batch": args.batch, "sources": fingerprint(PARTS, WEIGHTS)}
    state = {"settings": settings, "pictures": kept(args.json, settings) if args.resume else []}
    done = {(p["method"], p["cfg"], p["scene"]) for p in state["pictures"]}
    groups = [list(range(args.scenes))[i : i + args.batch] for i in range(0, args.scenes, args.batch)]
    plan = [(m, cfg, group) for group in groups for cfg in args.cfg for m in methods if (m, cfg, group[0]) not in done]
    batch = None
    for k, (method, cfg, group) in enumerate(plan):
        say(f"{k}/{len(plan)}  {method}, cfg {cfg:g}, pictures {group[0]} to {group[-1]}")
        batch = batch_of(group) if batch is None or batch.numbers != group else batch
        state["pictures"] += measure(method, cfg, args.steps, batch)
        keep(args.json, {"rows": rows_of(state["pictures"], args.scenes), **state})
    report(state, args)


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py bench reconstruction", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD",
                        help=f"of: {', '.join(METHODS)}")
    parser.add_argument("--cfg", nargs="+", type=float, default=[1.0, 5.0, 7.5])
    parser.add_argument("--batch", type=int, default=8, help="pictures that walk together")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--resume", action="store_true", help="go on with the batches that --json's file lacks")
    args = parser.parse_args(argv)
    if args.resume and not args.json:
        parser.error("--resume needs --json")
    return args


def kept(path: Path, settings: dict) -> list[dict]:
    """The records of an earlier, unfinished run with the same settings; else none, and says so."""
    if not path.exists():
        return []
    earlier = json.loads(path.read_text())
    if earlier["settings"] != settings:
        print(f"{path} was measured with other settings, sources or weights: measuring all anew")
        return []
    return earlier["pictures"]


def keep(path: Path | None, content: dict) -> None:
    """Write the JSON in one go, so that an interrupted run leaves a whole file."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, indent=1).encode())


def say(text: str) -> None:
    """One line of progress: in place on a terminal, else one after the other."""
    print(f"\r{text:78}" if sys.stdout.isatty() else text, end="" if sys.stdout.isatty() else "\n", flush=True)


def report(state: dict, args: argparse.Namespace) -> None:
    """Print the tables and complete the JSON."""
    pictures, scenes = state["pictures"], args.scenes
    rows = rows_of(pictures, scenes)
    ceiling = torch.cat([psnr(world().vae.decode(b.latent["samples"]), b.images) for b in map(
        batch_of, (list(range(scenes))[i : i + args.batch] for i in range(0, scenes, args.batch)))]).mean().item()
    print()
    show(rows, f"reconstruction of {scenes} held-out scenes, {args.steps} steps ({SCHEDULER}), means a picture")
    print(f"The autoencoder's own round trip, the most that psnr can reach: {ceiling:.2f} dB")
    print("At cfg 1 the negative prompt is not read: null text and negative prompt are ddim there.")
    claims = claims_of(rows)
    if claims:
        show([{**c, "holds": "yes" if c["holds"] else "NO"} for c in claims], "claims")
    keep(args.json, {"rows": rows, "claims": claims, "vae_psnr": ceiling, **state})
    if args.json:
        print(f"wrote {args.json}")
