"""PIE-Bench, or any folder laid out like it, with a checkpoint of yours: all methods, the published figures.

FOLDER holds mapping_file.json (image_path, original_prompt, editing_prompt and mask of each picture) and
annotation_images/. Methods are those of `bench edits`, with the caption difference as edit direction. Columns are those
of the published tables: psnr, mse, ssim, lpips of the background, dist (DINO structure distance), clip_whole,
clip_edited; and of others directional and clip_acc. Where the official code errs both readings are given: psnr counts
the blackened region as equal, psnr_true doesn't; dist feeds DINO numbers up to 255, dist_true up to 1. Without a
network in --weights its columns are left out.

With --reference also fid and kid of each method's pictures as a set, as CycleDiffusion's tables have them, which mean
something where all edits of FOLDER lead to one domain, and are compared with hundreds of real pictures of it.

--weights holds dino-vitb8/ and clip-vit-large-patch14/ as transformers saves them, for lpips
hub/checkpoints/squeezenet1_1-b8a52dc0.pth, for fid and kid pt_inception-2015-12-05-6726825d.pth. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from harness.boot import boot

from . import pie_metrics, pie_sets
from .edit_methods import METHODS
from .edits_measure import Book, Stage, alone
from .fingerprint import fingerprint, stamp
from .pie_sets import Sets
from .table import show, write

ANNOTATIONS, PICTURES = "mapping_file.json", "annotation_images"
EXCLUDED = ("ceiling",)         # there is no exact answer here
SD_DECODER = 10     # of Stable Diffusion's 16 self-attention layers: where MasaCtrl begins
PARTS = ("pie", "pie_metrics", "pie_sets", "edits_measure", "edit_methods")


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
    def blend_words(self) -> str:
        """The words that are in one caption and not in the other."""
        before, after = (dict.fromkeys(caption.split()) for caption in self.captions)
        return ", ".join([*(word for word in before if word not in after), *(w for w in after if w not in before)])

    @property
    def in_turn(self) -> tuple[str, str]:
        return self.captions

    @property
    def sentences(self) -> tuple[str, str]:
        return self.captions

    def pictures(self) -> tuple[Tensor, Tensor, Tensor]:
        """(picture [1, H, W, 3], itself, mask [1, 1, H, W]); a longer side is cropped at both ends."""
        image = Image.open(self.path).convert("RGB")
        picture = pixels(ImageOps.fit(image, (self.size, self.size), Image.Resampling.LANCZOS))
        mask = pie_metrics.decoded_mask(list(self.spans))
        if self.size != mask.shape[-1]:
            mask = torch.nn.functional.interpolate(mask, (self.size, self.size))
        return picture, picture, mask


class Judges(NamedTuple):
    """What figures are computed by."""
    figures: list
    sets: Sets | None
    networks: str       # changes with the files that their weights come from


def pixels(image: Image.Image) -> Tensor:
    """[1, H, W, 3] in [0, 1]."""
    return torch.from_numpy(np.asarray(image, np.float32) / 255)[None]


def main(argv: list[str]) -> int:
    args = parse(argv)
    problem = wrong(args)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    found = entries(args.folder, args.count, args.size)
    figures, missing = pie_metrics.available(args.weights)
    sets, also_missing = pie_sets.available(args.weights, args.reference, len(found))
    judges = Judges(figures, sets, stamp(sorted(args.weights.rglob("*"))) if args.weights else "")
    missing += also_missing
    print("\n".join(missing))
    host = boot(cpu=args.cpu)
    stage = Stage(host, *load(args.checkpoint), args.steps, cells=args.size // 8, decoder=SD_DECODER)
    out = args.json.parent if args.json else Path("output", "pie")
    book = opened(args, out)
    rows = [row(stage, book, name, found, judges) for name in args.methods]
    show(rows, f"{args.folder.name}, {args.checkpoint.name}")
    write(args.json or out / "pie.json", {"rows": rows, "missing": missing, "steps": args.steps})
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    names = [name for name in METHODS if name not in EXCLUDED]
    parser = argparse.ArgumentParser(prog="run.py bench pie", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a file with model, text encoder and VAE")
    parser.add_argument("--weights", type=Path, help="folder of networks for the figures")
    parser.add_argument("--reference", type=Path, help="folder of real pictures of the target's domain: fid and kid")
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
    if args.reference and not args.reference.is_dir():
        return f"There is no folder {args.reference}, which --reference names."
    if args.size % 8:
        return f"--size is {args.size}: give a multiple of 8, as latents have a place for 8 by 8 pixels."
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


def opened(args: argparse.Namespace, out: Path) -> Book:
    """The book of this folder, checkpoint, size and steps, which lies beside the edited pictures that it tells of.

    It is begun anew where anything else that edits depend on has changed, as their pictures are overwritten then.
    """
    weight, folder = args.checkpoint.stat(), args.folder.resolve()
    state = [fingerprint(PARTS, files=[folder / ANNOTATIONS]), str(folder), weight.st_size, weight.st_mtime]
    own = out / f"{folder.name}, {args.checkpoint.stem}, {args.size}, {args.steps} steps"
    before = own / "state.json"
    changed = not before.exists() or json.loads(before.read_text()) != state
    book = Book(own, state, args.fresh or changed)
    before.write_text(json.dumps(state))
    return book


@torch.inference_mode()
def row(stage: Stage, book: Book, name: str, found: list[Entry], judges: Judges) -> dict:
    """A method's means over pictures, fid and kid if asked for, and what it costs. Each picture is run by itself."""
    values, costs, started = [], [], time.time()
    for k, entry in enumerate(found):
        print(f"\r\033[K{name}: {k}/{len(found)}, {time.time() - started:.0f} s", end="", flush=True)
        costs.append(edited(stage, book, name, entry))
        values.append(judged(book, name, entry, judges))
    of_set = compared(book, name, found, judges) if judges.sets else {}
    print("\r\033[K", end="")
    return {"method": name, "pictures": len(found), **means(values), **of_set, **means(costs)}


def edited(stage: Stage, book: Book, name: str, entry: Entry) -> dict[str, float]:
    """What the edit costs; its picture is in book.picture(name, entry) then."""
    settings = METHODS[name].published
    if not (book.find(name, settings, [entry]) and book.picture(name, entry).is_file()):
        picture, spent = alone(stage, METHODS[name], settings, entry)
        book.keep(name, [entry], picture)
        book.add(name, settings, [entry], [spent])
    return book.find(name, settings, [entry])[0]


def judged(book: Book, name: str, entry: Entry, judges: Judges) -> dict[str, float]:
    """All figures of one edit. As the evaluator does, they are computed from the file, and so from bytes."""
    names = [getattr(figure, "__name__", type(figure).__name__) for figure in judges.figures]
    by = {"figures": names, "networks": judges.networks}
    if book.find(name, by, [entry]) is None:
        source, _, mask = entry.pictures()
        x, truth = (p.movedim(-1, 1) for p in (pixels(Image.open(book.picture(name, entry))), source))
        each = [figure(x, truth, mask, entry.captions) for figure in judges.figures]
        book.add(name, by, [entry], [{column: value for values in each for column, value in values.items()}])
    return book.find(name, by, [entry])[0]


def compared(book: Book, name: str, found: list[Entry], judges: Judges) -> dict[str, float]:
    """fid and kid of all pictures of a method. The book has them under the first picture."""
    by = {"reference": judges.sets.identity(), "pictures": len(found), "networks": judges.networks}
    if book.find(name, by, found[:1]) is None:
        book.add(name, by, found[:1], [judges.sets([book.picture(name, entry) for entry in found], name)])
    return book.find(name, by, found[:1])[0]


def means(records: list[dict]) -> dict[str, float]:
    """Of each figure over the pictures that have it: where the mask covers all there is no background."""
    names = dict.fromkeys(name for record in records for name in record)
    return {name: float(np.nanmean([record.get(name, np.nan) for record in records])) for name in names}
