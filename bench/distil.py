"""A distilled edit against its teacher: as right, as sharp, and how much faster.

Held-out scenes, edited by the graph that taught the network (the same words for all pictures) and by the network as
stock Upscale Image (using Model) runs it. inside, outside: PSNR in dB against the exact answer where it differs from
the picture, and against the picture elsewhere; hit: the classifier sees what was asked for; sharpness: energy of the
finest band inside the region, against the exact answer's (`sharpness_within`). Times are processor time of one thread,
after one picture that loads the models.

`network, pasted` is what Mirror Apply Edit makes of it. `smallest network` is one of width 2 and the same depth,
untaught: what running any network of this kind takes. `seams` is how far the stock node's tiles of a large picture,
made of the held-out ones side by side, are from the whole picture in one piece, and Mirror Apply Edit's.

Rows beside the shipped file are trained by --train: the same network on the renderer's exact pairs (the bound), without
the adversarial loss, and one half as wide. --base trains a base on other edits at once and then, on exact pairs and
in so many steps, the edit alone, from the base, and only a small part of the base.
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mirror_ops.distillation import network
from mirror_ops.measure.within import psnr_within, sharpness_within

from .fingerprint import fingerprint
from .table import show, write
from .world import world

SHIPPED = ("fox", "dog")
OTHERS, BASE_STEPS = (("cat", "rabbit"), ("rabbit", "bear"), ("bear", "dog"), ("dog", "cat")), 1500


def main(argv: list[str]) -> int:
    args = parse(argv)
    distil = world().host.pack_module("demo.distil")
    seeds = range(world().scene.HELD_OUT, world().scene.HELD_OUT + args.scenes)
    before, answer, region = scenes(distil, seeds)
    teacher, teacher_seconds = taught(distil, before, seeds)
    rows = [row("teacher", teacher, before, answer, region, teacher_seconds)]
    files = {"network": distil.EDITS / f"{SHIPPED[0]}_to_{SHIPPED[1]}.safetensors",
             **others(distil, args), **of_base(distil, args)}
    for name, file in files.items():
        if file.is_file():
            made, seconds = run_network(file, before)
            rows.append(row(name, made, before, answer, region, seconds))
            if name == "network":
                rows.append(row("network, pasted", pasted(before, made), before, answer, region, seconds))
    _, seconds = run_network(smallest(args.folder), before)
    rows.append({"row": "smallest network", "seconds": seconds})
    rows.append(row("no edit", before, before, answer, region, 0.0))
    show([{k: v if isinstance(v, str) else round(v, 3) for k, v in r.items()} for r in rows],
         f"{SHIPPED[0]} to {SHIPPED[1]}, {len(seeds)} held-out pictures")
    figures, seams = summary(rows, files["network"]), seams_of(files["network"], before)
    show([figures], "the shipped file")
    show(seams, "its tiles against the whole picture")
    write(args.json or Path("output", "distil.json"), {"rows": rows, "figures": figures, "seams": seams})
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    from harness.environment import cache_root
    parser = argparse.ArgumentParser(prog="run.py bench distil", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=32, help="held-out pictures (default 32)")
    parser.add_argument("--train", type=int, metavar="STEPS", help="also train the rows beside the shipped file")
    parser.add_argument("--base", type=int, metavar="STEPS", help="also train a base and from it, in so many steps")
    parser.add_argument("--folder", type=Path, default=cache_root() / "distil", help="of the rows trained here")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


def scenes(distil, seeds: range) -> tuple[Tensor, Tensor, Tensor]:
    """(pictures, exact answers [B, 3, H, W] in [0, 1], where they differ [B, 1, H, W])."""
    pairs = distil.exact_pairs(seeds, *SHIPPED)
    return tuple(torch.stack([getattr(pair, part) for pair in pairs]).float() / 255
                 for part in ("before", "after", "region"))


def taught(distil, before: Tensor, seeds: range) -> tuple[Tensor, float]:
    """(the teacher's edits of held-out pictures, seconds of each): the graph itself, in this process."""
    from PIL import Image

    from folders.runner import Runner
    host = world().host
    runner = Runner(distil.teacher(host, *SHIPPED), host)

    def edit(picture: Tensor, seed: int) -> Tensor:
        content = png(Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()))
        return runner(content, ".png", seed).after[0, ..., :3].movedim(-1, 0)

    edit(before[0].flip(-1), seeds[0])  # loads the models
    started = time.process_time()
    made = [edit(picture, seed) for picture, seed in zip(before, seeds, strict=True)]
    return torch.stack(made), (time.process_time() - started) / len(seeds)


def png(image) -> bytes:
    import io
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def run_network(file: Path, before: Tensor) -> tuple[Tensor, float]:
    """(the network's edits, seconds of each), picture by picture."""
    training = world().host.pack_module("nodes.host.training")
    model = training.as_upscale_model(file)
    training.upscaled(model, before[:1].movedim(1, -1))
    started = time.process_time()
    made = [training.upscaled(model, picture[None].movedim(1, -1)).movedim(-1, 1) for picture in before]
    return torch.cat(made), (time.process_time() - started) / len(before)


def smallest(folder: Path) -> Path:
    """The file of a network of width 2 and the usual depth, at its beginning."""
    file = folder / "bench smallest.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    network.save(network.make(network.Shape(2)), file, {})
    return file


def seams_of(file: Path, before: Tensor, across: int = 8, down: int = 5) -> list[dict]:
    """Rows of the tiles of stock Upscale Image and of Mirror Apply Edit: the largest difference from the whole picture,
    and the share of pixels that differ by more than 8/255."""
    training, edit = world().host.pack_module("nodes.host.training"), network.load(file)
    picture = side_by_side(before, across, down)
    with torch.no_grad():
        whole = edit(picture).clamp(0, 1)
    rows = []
    for name, run in {"stock": training.upscaled, "Mirror Apply Edit": training.edited}.items():
        made = run(training.as_upscale_model(file), picture.movedim(1, -1)).movedim(-1, 1)
        apart = (made - whole).abs().amax(dim=1)
        rows.append({"row": name, "size": f"{picture.shape[3]} x {picture.shape[2]}", "largest": float(apart.max()),
                     "share_above_8": float((apart > 8 / 255).float().mean())})
    return rows


def side_by_side(pictures: Tensor, across: int, down: int) -> Tensor:
    """One picture [1, 3, down * H, across * W] of these [B, 3, H, W], from the first again where they don't last."""
    rows = [[pictures[(row * across + column) % len(pictures)] for column in range(across)] for row in range(down)]
    return torch.cat([torch.cat(row, dim=2) for row in rows], dim=1)[None]


def pasted(before: Tensor, made: Tensor) -> Tensor:
    """The edits as Mirror Apply Edit gives them: in the region where the network changed the picture."""
    found = world().host.pack_module("mirror_ops.regions.found")
    return before + found.picture_region(before, made) * (made - before)


def others(distil, args) -> dict[str, Path]:
    """{row: file} of the networks that are there to compare with; --train makes them."""
    if not args.train:
        return {}
    kinds = {"on exact pairs (bound)": ("--exact",), "without the adversarial loss": ("--loss", "pixels"),
             "half the width": ("--width", "4")}
    files = {name: trained_here(args, f"{k} {args.train}") for k, name in enumerate(kinds)}
    for name, options in kinds.items():
        train(distil, files[name], *options, "--steps", str(args.train))
    return files


def trained_here(args, name: str) -> Path:
    """The file of a row that is trained here, by these sources and weights."""
    return args.folder / f"bench {name} {fingerprint(('distil',), ('model', 'classifier'))}.safetensors"


def train(distil, file: Path, *options: str) -> None:
    """A network by `run.py distil`, unless it is there. Raises SystemExit if that fails."""
    if not file.is_file() and (failed := distil.main([*options, "--out", str(file)])):
        raise SystemExit(failed)


def of_base(distil, args) -> dict[str, Path]:
    """{row: file} of the base, and of the edit in few steps without and with it; --base makes them."""
    if not args.base:
        return {}
    base = trained_here(args, "base")
    kinds = {f"alone, {args.base} steps": (), f"from the base, {args.base} steps": ("--base", str(base)),
             f"a part of the base, {args.base} steps": ("--base", str(base), "--part")}
    files = {name: trained_here(args, f"base {args.base} {k}") for k, name in enumerate(kinds)}
    exact, (sources, targets) = ("--exact", "--loss", "pixels"), zip(*OTHERS, strict=True)
    train(distil, base, *exact, "--steps", str(BASE_STEPS), "--source", *sources, "--target", *targets)
    for name, options in kinds.items():
        train(distil, files[name], *exact, "--steps", str(args.base), *options)
    return {"the base itself": base, **files}


def row(name: str, made: Tensor, before: Tensor, answer: Tensor, region: Tensor, seconds: float) -> dict:
    seen = world().attributes(made.movedim(1, -1))
    return {
        "row": name, "hit": float(np.mean([s["species"] == SHIPPED[1] for s in seen])),
        "inside": float(psnr_within(made, answer, region).mean()),
        "outside": float(psnr_within(made, before, 1 - region).clamp(max=99).mean()),
        "sharpness": float(sharpness_within(made, answer, region).mean()), "seconds": seconds,
    }


def summary(rows: list[dict], file: Path) -> dict:
    """The shipped file's figures."""
    teacher, made = (next((r for r in rows if r["row"] == name), None) for name in ("teacher", "network"))
    if made is None:
        return {}
    minutes = network.about(file)["minutes"]
    return {
        "hit_ratio": made["hit"] / max(teacher["hit"], 1e-9), "inside_gain": made["inside"] - teacher["inside"],
        "outside": made["outside"], "speedup": teacher["seconds"] / made["seconds"],
        "pictures_per_second": 1 / made["seconds"], "file_mb": file.stat().st_size / 1e6,
        "minutes": sum(minutes.values()),
    }
