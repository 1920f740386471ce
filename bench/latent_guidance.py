"""Latent guidance: captions that do not name the species, and the share of pictures that show the one looked for.

Rows: `unguided`, the pictures that the walk begins with; `latent guidance`, those it finds, drawn in as few steps;
`the same, 50 steps`, found noises drawn by a stock sampler. seen, p: how often, and with what mean probability, the
attribute classifier sees the species; it also led the walk, so it is no judge. told: how often the diffusion model
itself finds the picture likeliest under the caption with that species (of five captions, least error in predicting the
noise; Li et al., "Your Diffusion Model is Secretly a Zero-Shot Classifier", ICCV 2023). noises: mean square of the
kept noises, 1 if Gaussian. Writes the pictures beside the JSON, or to output/latent-guidance.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from harness.graph import Graph, give

from .table import show, write
from .world import grid, save, world

LEVELS, DRAWS = (0.8, 0.6, 0.4, 0.25), 2          # parts of the table of timesteps, and noises at each, for `told`


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench latent-guidance", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--species", default="dog")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--weight", type=float, default=20.)
    parser.add_argument("--step", type=float, default=.05)
    args = parser.parse_args(argv)
    out = args.json.parent if args.json else Path("output", "latent-guidance")
    started = time.perf_counter()
    with torch.inference_mode():
        scenes = [world().scene.scene(world().scene.HELD_OUT + 200 + i) for i in range(args.scenes)]
        latents, noises = guide(scenes, args)
        seconds = time.perf_counter() - started
        pictures = {name: world().vae.decode(latent) for name, latent in latents.items()}
        rows = [{"pictures": name, **figures(pictures[name], latents[name], scenes, args.species)} for name in latents]
    save(grid([list(p) for p in pictures.values()]), out / "pictures.png")
    show(rows, f"{args.species}, {args.scenes} captions without a species, {args.iterations} iterations, weight "
               f"{args.weight:g}, step {args.step:g}: noises {noises:.3f}, {seconds:.0f} s")
    write(args.json or out / "latent-guidance.json",
          {"rows": rows, "noises": noises, "seconds": seconds, "settings": {**vars(args), "json": str(args.json)}})
    return 0


def neutral(scene) -> str:
    return world().host.pack_module("demo.domains").neutral_caption(scene)


def prompts(captions: list[str]) -> list:
    """CONDITIONING of a caption for each picture."""
    return [[torch.cat([world().prompt(caption)[0][0] for caption in captions]), {}]]


def guide(scenes: list, args) -> tuple[dict[str, torch.Tensor], float]:
    """LATENT samples of each row, and the mean square of the noises found."""
    w, g = world(), Graph()
    model, vae = g.add(give(lambda: w.model, "MODEL"))(), g.add(give(lambda: w.vae, "VAE"))()
    words = g.add(give(lambda: prompts([neutral(s) for s in scenes]), "CONDITIONING"))()
    empty = g.add(give(lambda: {"samples": torch.zeros(len(scenes), w.vae.latent_channels, 16, 16)}, "LATENT"))()
    energy = g.add("MirrorDemoEnergy", attribute="species", attribute__value=args.species, weight=args.weight)
    found = g.add("MirrorLatentGuidance", model=model, positive=words, vae=vae, latent=empty, energy=energy(), steps=5,
                  scheduler="ddim_uniform", cfg=1.0, eta=0.0, iterations=args.iterations, step=args.step, seed=0)
    sigmas = g.add("BasicScheduler", model=model, scheduler="ddim_uniform", steps=50, denoise=1.0)
    guider, euler = g.add("BasicGuider", model=model, conditioning=words), g.add("KSamplerSelect", sampler_name="euler")
    final = g.add("SamplerCustomAdvanced", noise=found(2), guider=guider(), sampler=euler(), sigmas=sigmas(),
                  latent_image=empty)
    run = w.host.run_graph(g)
    latent, unguided, noise, _ = run.outputs[found.id]
    latents = {"unguided": unguided["samples"], "latent guidance": latent["samples"],
               "the same, 50 steps": run.outputs[final.id][0]["samples"]}
    return latents, float(noise.noise.square().mean())


def figures(pictures: torch.Tensor, latent: torch.Tensor, scenes: list, species: str) -> dict:
    w = world()
    index = w.scene.ATTRIBUTES["species"].index(species)
    p = w.classifier(2 * pictures.movedim(-1, 1) - 1)["species"].softmax(1)
    told = likeliest(latent, scenes) == index
    return {"seen": float((p.argmax(1) == index).float().mean()), "p": float(p[:, index].mean()),
            "told": float(told.float().mean())}


def likeliest(latent: torch.Tensor, scenes: list) -> torch.Tensor:
    """[B] index of the species under whose caption the model predicts noise added to each picture best."""
    w = world()
    species = w.scene.ATTRIBUTES["species"]
    named = {s: prompts([neutral(scene).replace(" animal ", f" {s} ") for scene in scenes]) for s in species}
    table = w.model.get_model_object("model_sampling").sigmas
    levels = torch.stack([table[int(part * (len(table) - 1))] for part in LEVELS]).float()

    def algorithm(walk):
        x0, generator = walk.latent_in(latent), torch.Generator().manual_seed(0)
        error = torch.zeros(len(species), len(latent))
        for sigma in levels.to(walk.device):
            for _ in range(DRAWS):
                x = x0 + sigma * torch.randn(x0.shape, generator=generator).to(x0)
                for k, name in enumerate(species):
                    missed = walk.denoise(x, sigma, walk.prompts[name].entries) - x0
                    error[k] += (missed / sigma).square().mean(dim=(1, 2, 3)).cpu()
        return error

    run = w.host.pack_module("nodes.host.denoiser").run
    evaluations = len(LEVELS) * DRAWS * len(species)
    error, _ = run(w.model, latent, torch.cat([levels, levels.new_zeros(1)]), named, algorithm, evaluations=evaluations)
    return error.argmin(dim=0)
