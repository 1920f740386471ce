"""PIE-Bench, or any folder laid out like it, with a checkpoint of yours: all methods, the published figures.

FOLDER holds mapping_file.json (image_path, original_prompt, editing_prompt and mask of each picture) and
annotation_images/. Methods are those of `bench edits`, with the caption difference as edit direction. Columns are those
of the published tables: psnr, mse, ssim, lpips of the background, dist (DINO structure distance), clip_whole,
clip_edited. Where the official code errs both readings are given: psnr counts the blackened region as equal, psnr_true
doesn't; dist feeds DINO numbers up to 255, dist_true up to 1. Without a network in --weights its columns are left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from harness.boot import boot

from . import pie_metrics
from .edit_methods import METHODS
from .edits_measure import Book, Stage, alone, fingerprint
from .table import show, write

ANNOTATIONS, PICTURES = "mapping_file.json", "annotation_images"
EXCLUDED = ("ceiling",)         # there is no exact answer here
PARTS = ("pie", "pie_metrics", "edits_measure", "edit_methods")


@dataclass(frozen=True)
class Entry:
    """One picture and its edit. Offers what a scene of the embedded world offers."""
    key: str
    path: Path
    captions: tuple[str, str]
    spans: tuple[int, ...]
    size: int
    shown: bool = True

    @property
    def place(self) -> list[str]:
        return [self.key]

    @property
    def sentences(self) -> tuple[str, str]:
        return self.captions

    def pictures(self) -> tuple[Tensor, Tensor, Tensor]:
        """(picture [1, H, W, 3], itself, mask [1, 1, H, W]); a longer side is cropped at both ends."""
        image = ImageOps.fit(Image.open(self.path).convert("RGB"), (self.size, self.size), Image.Resampling.LANCZOS)
        picture = torch.from_numpy(np.asarray(image, np.float32) / 255)[None]
        mask = pie_metrics.decoded_mask(list(self.spans))
        if self.size != mask.shape[-1]:
            mask = torch.nn.functional.interpolate(mask, (self.size, self.size))
        return picture, picture, mask


def main(argv: list[str]) -> int:
    args = parse(argv)
    problem = wrong(args)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    out = args.json.parent if args.json else Path("output", "pie")
    figures, missing = pie_metrics.available(args.weights)
    print("\n".join(missing))
    host = boot(cpu=args.cpu)
    stage = Stage(host, *load(args.checkpoint), args.steps)
    rows = measured(stage, args, figures, out)
    show(rows, f"{args.folder.name}, {args.checkpoint.name}")
    write(args.json or out / "pie.json", {"rows": rows, "missing": missing, "steps": args.steps})
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    names = [name for name in METHODS if name not in EXCLUDED]
    parser = argparse.ArgumentParser(prog="run.py bench pie", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a file with model, text encoder and VAE")
    parser.add_argument("--weights", type=Path, help="folder of networks for the figures: see bench/pie_metrics.py")
    parser.add_argument("--methods", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--count", type=int, help="only the first pictures")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs measured")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


def wrong(args: argparse.Namespace) -> str:
    """What is wrong with the paths given; empty if nothing is."""
    if not (args.folder / ANNOTATIONS).is_file():
        return f"{args.folder} has no {ANNOTATIONS}: give a folder in PIE-Bench's layout."
    if not args.checkpoint.is_file():
        return f"There is no checkpoint {args.checkpoint}."
    return ""


def entries(folder: Path, count: int | None, size: int) -> list[Entry]:
    """The annotated pictures, in the file's order. Raises FileNotFoundError for one that isn't there."""
    annotations = json.loads((folder / ANNOTATIONS).read_text(encoding="utf-8"))
    found = []
    for key, entry in list(annotations.items())[:count]:
        path = folder / PICTURES / entry["image_path"]
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, which {ANNOTATIONS} names under {key}")
        words = tuple(entry[side].replace("[", "").replace("]", "") for side in ("original_prompt", "editing_prompt"))
        found.append(Entry(key, path, words, tuple(entry["mask"]), size))
    return found


def load(checkpoint: Path) -> tuple:
    """MODEL, CLIP and VAE of a file, as Load Checkpoint makes them."""
    read = importlib.import_module("comfy.sd").load_checkpoint_guess_config
    return read(str(checkpoint), output_vae=True, output_clip=True)[:3]


@torch.inference_mode()
def measured(stage: Stage, args, figures: list, out: Path) -> list[dict]:
    """One row a method: means over pictures. Each picture is run by itself, so costs are what they are."""
    weight = args.checkpoint.stat()
    state = [fingerprint(PARTS, []), args.checkpoint.name, weight.st_size, weight.st_mtime, args.size, args.steps]
    book, pictures, rows = Book(out, state, args.fresh), entries(args.folder, args.count, args.size), []
    started = time.time()
    for name in args.methods:
        for k, entry in enumerate(pictures):
            print(f"\r\033[K{name}: {k}/{len(pictures)}, {time.time() - started:.0f} s", end="", flush=True)
            method, settings = METHODS[name], METHODS[name].published
            if book.find(name, settings, [entry]) is None:
                edited, spent = alone(stage, method, settings, entry)
                book.keep(name, [entry], edited)
                book.add(name, settings, [entry], [{**judged(edited, entry, figures), **spent}])
        records = [book.find(name, METHODS[name].published, [entry])[0] for entry in pictures]
        rows.append({"method": name, "pictures": len(records), **means(records)})
    print("\r\033[K", end="")
    return rows


def judged(edited: Tensor, entry: Entry, figures: list) -> dict[str, float]:
    """All figures of one edit. The evaluator reads pictures from files, so both are rounded to bytes first."""
    source, _, mask = entry.pictures()
    x, truth = ((255 * p.float()).round().movedim(-1, 1) / 255 for p in (edited.clamp(0, 1), source))
    return {name: value for figure in figures for name, value in figure(x, truth, mask, entry.captions).items()}


def means(records: list[dict]) -> dict[str, float]:
    """Of each figure over the pictures that have it: where the mask covers all there is no background."""
    names = dict.fromkeys(name for record in records for name in record)
    return {name: float(np.nanmean([record.get(name, np.nan) for record in records])) for name in names}
