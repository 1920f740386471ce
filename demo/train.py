"""`python run.py train`: remakes demo/weights from a seed. Each stage resumes where it stopped.

The trained files go to the folder's `weights/`; `--install` puts them in place of the shipped ones. (The tokenizer,
which is the same wherever it is made, is written in place.) LoRAs and preview are made of what is exported.
`--stages shipped diffusion export` trains the shipped diffusion model on, and leaves the others alone; with `decoder`
in its place the shipped decoder is what is trained on.
"""
from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

STAGES = ("tokenizer", "vae", "decoder", "diffusion", "classifier", "export", "lora", "preview")
SHIPPED = "shipped"                     # takes the shipped weights apart, in the place of the stages that made them
SCENES = 20_000
WORKERS = (1, 2, 4, 8)                  # by which every batch can be divided


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py train", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("training-runs"), help="pictures, latents and checkpoints")
    parser.add_argument("--workers", type=int, choices=WORKERS, help="processes, one core each",
                        default=max(n for n in WORKERS if n <= (os.cpu_count() or 1)))
    parser.add_argument("--scenes", type=int, default=SCENES,
                        help="training scenes; the diffusion model takes each also mirrored")
    parser.add_argument("--stages", nargs="+", choices=(*STAGES, SHIPPED), default=STAGES)
    parser.add_argument("--steps", type=int, help="training steps of each stage, for a trial run")
    parser.add_argument("--install", action="store_true", help="replace demo/weights by the result")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    for stage in args.stages:
        _run(stage, args)
    return 0


def _run(stage: str, args) -> None:
    from .training import boot
    boot()
    from . import classifier, domains, model
    from .training import classifier as read
    from .training import decoder, diffusion, lora, preview, tokenizer, vae
    from .training.export import export, take_apart
    out = {name: args.folder / f"{name}-final.pt" for name in ("vae", "diffusion", "classifier")}
    steps = {"steps": args.steps} if args.steps else {}
    made_in = args.folder / "weights"
    weights = made_in / model.WEIGHTS.name if "export" in args.stages else model.WEIGHTS
    if stage == "tokenizer":
        tokenizer.write(model.TOKENIZER, tokenizer.vocabulary())
    elif stage == SHIPPED:
        take_apart(model.WEIGHTS, classifier.WEIGHTS, **out)
    elif stage == "vae":
        vae.train(args.folder, out["vae"], args.workers, args.scenes, **steps)
    elif stage == "decoder":
        decoder.train(args.folder, out["vae"], out["vae"], args.workers, args.scenes, **steps)
    elif stage == "diffusion":
        diffusion.train(args.folder, out["diffusion"], out["vae"], args.workers, args.scenes,
                        start=out["diffusion"] if SHIPPED in args.stages else None, **steps)
    elif stage == "classifier":
        read.train(args.folder, out["classifier"], args.workers, args.scenes, **steps)
    elif stage == "lora":
        lora.train(args.folder, weights, domains.FOLDER if args.install else made_in, **steps)
    elif stage == "preview":
        explained = preview.fit(model.PREVIEW if args.install else made_in / model.PREVIEW.name, weights)
        print(f"preview colours: {explained:.0%} of the variance")
    else:
        made = [made_in / p.name for p in (model.WEIGHTS, classifier.WEIGHTS)]
        export(out["vae"], out["diffusion"], out["classifier"], *made)
        for new, shipped in zip(made, (model.WEIGHTS, classifier.WEIGHTS), strict=True):
            print(f"{new}: {new.stat().st_size / 1e6:.1f} MB")
            if args.install:
                shipped.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(new, shipped)
