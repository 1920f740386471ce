"""What the host and this pack add to the network's own time, and our graphs beside diffusers' pipelines.

`overhead` compares a graph with its own passes through the network, recorded once and run again bare; the stock
KSampler's row tells how much of that is the host's. The pairs run CycleDiffusion and pix2pix-zero (both halves of
guidance, as its code does) on the same weights, prompts, steps and guidance, from latents to latents. All on one thread
and in CPU time. Runs of both sides take turns, and each of ours is divided by the mean of the two it stands between,
so that a machine that gets slower or quicker does not count; shown are the medians of these quotients and their
quartiles. About 10 minutes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from harness.boot import Host
from harness.environment import SetupError
from harness.graph import Graph, give

from . import diffusers_pipelines as pipelines
from .table import show, write
from .world import World, world

SOURCE, TARGET = "a photo of a red cat on grass", "a photo of a red dog on grass"
REWRITER = "fixed point + negative prompt"
CFG, ETA, AMOUNT = 3.0, 0.1, 0.1


class Walks(Graph):
    """A graph on the embedded model whose prompts, latent and mirror are made once: the host keeps them."""

    def __init__(self, w: World, steps: int):
        super().__init__()
        self.model = self.add("MirrorDemoModel")
        texts = (SOURCE, TARGET, "")
        self.texts = {text: self.add("CLIPTextEncode", clip=self.model(1), text=text)() for text in texts}
        latent = w.vae.encode(w.image(w.scene.scene(w.scene.HELD_OUT)))
        self.latent = self.add(give(lambda: {"samples": latent}, "LATENT"))()
        self.grid = {"steps": steps, "scheduler": "ddim_uniform"}
        self.rewriter = self.add("PromptRewriteOptimizer", method=REWRITER, method__iterations=2)()
        self.mirror = self.invert(0)
        self.kept = len(self)

    def invert(self, k: int):
        return self.add("RedescribedDDIMInvert", model=self.model(), positive=self.texts[SOURCE], latent=self.latent,
                        rewriter=self.rewriter, cfg=1.0, denoise=1 - 1e-7 * k, **self.grid)

    def trial(self, walk: Callable[[Walks, int], None], k: int) -> Walks:
        """The graph with this walk alone, made different by k, so that the host does not take it from its cache."""
        for name in list(self)[self.kept:]:
            del self[name]
        walk(self, k)
        return self


def inverted(scene: Walks, k: int) -> None:
    scene.invert(k)


def sampled(scene: Walks, k: int) -> None:
    scene.add("MirrorSample", model=scene.model(), mirror=scene.mirror(2), positive=scene.texts[TARGET], strength=1.0,
              cfg=CFG + 1e-6 * k, region="auto")


def edited(scene: Walks, k: int) -> None:
    scene.add("CycleDiffusionEdit", model=scene.model(), source=scene.texts[SOURCE], target=scene.texts[TARGET],
              latent=scene.latent, encoder="dpm-encoder", encoder__seed=k, encoder__eta=ETA, denoise=1.0,
              source_cfg=1.0, cfg=CFG, negative=scene.texts[""], **scene.grid)


def guided(scene: Walks, k: int) -> None:
    model = scene.add("MirrorCrossAttentionGuidance", model=scene.model(), mirror=scene.mirror(2),
                      amount=AMOUNT + 1e-6 * k, latents="two latents (official code)")()
    scene.add("KSamplerAdvanced", model=model, add_noise="disable", noise_seed=0, cfg=CFG, sampler_name="euler",
              positive=scene.texts[TARGET], negative=scene.texts[""], latent_image=scene.mirror(0), start_at_step=0,
              end_at_step=10000, return_with_leftover_noise="disable", **scene.grid)


def edited_at_once(scene: Walks, k: int) -> None:
    scene.add("MirrorEdit", model=scene.model(), source=scene.texts[SOURCE], target=scene.texts[TARGET],
              latent=scene.latent, settings="balanced", strength=1.0, seed=k, region="auto", **scene.grid)


def stock(scene: Walks, k: int) -> None:
    scene.add("KSampler", model=scene.model(), seed=k, cfg=CFG, sampler_name="euler", positive=scene.texts[TARGET],
              negative=scene.texts[""], latent_image=scene.latent, denoise=1.0, **scene.grid)


# The walks whose overhead is measured, by the name of their row.
OURS = {"inversion": inverted, "edit of the mirror": sampled, "CycleDiffusion edit": edited,
        "Edit Picture": edited_at_once}
STOCK = {"stock KSampler": stock}


def same_attention(host: Host) -> None:
    """The host's attention as with --use-pytorch-cross-attention: diffusers' pipelines use torch's own too."""
    import comfy.ldm.modules.attention as attention
    for module in (attention, host.pack_module("nodes.host.attention")):
        module.optimized_attention = attention.attention_pytorch


def cpu_time(work: Callable[[], object]) -> float:
    """Seconds of this process's CPU."""
    start = time.process_time()
    work()
    return time.process_time() - start


@contextmanager
def recorded(network: torch.nn.Module):
    """While open, collects the arguments of the network's passes: (x, timesteps, context)."""
    calls = []

    def see(module, args, kwargs):
        calls.append((args[0].clone(), args[1].clone(), kwargs["context"].clone()))

    hook = network.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


class Times(NamedTuple):
    """CPU seconds of both sides: T of ours, and the T + 1 of theirs that they stand between."""

    ours: list[float]
    theirs: list[float]

    @property
    def means(self) -> list[float]:
        """Of the two that each of ours stands between."""
        return [(before + after) / 2 for before, after in zip(self.theirs, self.theirs[1:], strict=False)]

    @property
    def quotients(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.means, strict=True)]


def in_turns(ours: Callable[[int], object], theirs: Callable[[int], object], trials: int) -> Times:
    """Both sides measured in turns; the first runs do not count."""
    ours(trials + 1)
    theirs(trials + 1)
    times = Times([], [cpu_time(lambda: theirs(0))])
    for k in range(1, trials + 1):
        times.ours.append(cpu_time(lambda k=k: ours(k)))
        times.theirs.append(cpu_time(lambda k=k: theirs(k)))
    return times


def row(name: str, against: str, times: Times, passes: int | None = None) -> dict:
    low, middle, high = statistics.quantiles(times.quotients, n=4)
    print(f"{name} over {against}: {middle:.3f}", flush=True)
    added = [1000 * (a - b) for a, b in zip(times.ours, times.means, strict=True)]
    return {"graph": name, "over": against, "ratio": middle, "quartiles": f"{low:.3f} to {high:.3f}",
            "ms_added_a_pass": statistics.median(added) / passes if passes else ""}


def overhead(w: World, scene: Walks, name: str, walk: Callable, trials: int) -> tuple[dict, list[float]]:
    """The row and the quotients of one graph over its own passes."""
    model = w.host.run_graph(scene.trial(walk, 0), cached=True).outputs[scene.model.id][0]
    network = model.model.diffusion_model
    with recorded(network) as calls:
        w.host.run_graph(scene.trial(walk, 10**3), cached=True)

    def bare(k: int) -> None:
        with torch.inference_mode():
            for x, t, context in calls:
                network(x, t, context=context, transformer_options={})

    times = in_turns(lambda k: w.host.run_graph(scene.trial(walk, k), cached=True), bare, trials)
    return row(name, f"{len(calls)} bare passes", times, len(calls)), times.quotients


def pairs(w: World, scene: Walks, steps: int, trials: int) -> dict[str, Times]:
    """{figure: times} of our graphs over diffusers' pipelines. Raises SetupError without diffusers."""
    pipelines.load()
    outputs = w.host.run_graph(scene.trial(guided, 0), cached=True).outputs
    texts = {text: outputs[link[0]][0][0][0].clone() for text, link in scene.texts.items()}
    model, latent = outputs[scene.model.id][0], outputs[scene.latent[0]][0]["samples"].clone()
    noise = outputs[scene.mirror.id][0]["samples"].clone()
    network = model.model.diffusion_model
    unet = pipelines.unet_of(network, w.host.pack_module("demo.model").UNET)
    check_same(network, unet, latent, texts[SOURCE])
    cycle = pipelines.cycle_diffusion(unet, texts, latent)
    zero = pipelines.pix2pix_zero(unet, texts, texts[TARGET] - texts[SOURCE])
    return {
        "cyclediffusion_ratio": in_turns(lambda k: w.host.run_graph(scene.trial(edited, k), cached=True),
                                         lambda k: cycle(SOURCE, TARGET, steps, CFG, k), trials),
        "pix2pix_zero_ratio": in_turns(lambda k: w.host.run_graph(scene.trial(guided, k), cached=True),
                                       lambda k: zero(SOURCE, noise, steps, CFG, AMOUNT), trials),
    }


def check_same(network: torch.nn.Module, unet: torch.nn.Module, x: torch.Tensor, text: torch.Tensor) -> None:
    """Raises ValueError unless both networks compute the same."""
    with torch.inference_mode():
        t = torch.tensor([500.0])
        ours, theirs = network(x, t, context=text, transformer_options={}), unet(x, t, text).sample
    if not torch.allclose(ours, theirs, atol=1e-4):
        raise ValueError(f"diffusers' network differs from ours by {(ours - theirs).abs().max():.3g}.")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench speed", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--trials", type=int, default=9)
    parser.add_argument("--install-diffusers", action="store_true", help="into a folder of its own in the cache, 10 MB")
    args = parser.parse_args(argv)
    if args.install_diffusers:
        pipelines.install()
    torch.set_num_threads(1)
    w = world()
    same_attention(w.host)
    scene = Walks(w, args.steps)
    made = {name: overhead(w, scene, name, walk, args.trials) for name, walk in {**OURS, **STOCK}.items()}
    rows = [found for found, _ in made.values()]
    figures = {figure: statistics.median(q for name in names for q in made[name][1])
               for figure, names in (("overhead", OURS), ("stock_overhead", STOCK))}
    left_out = ""
    try:
        compared = pairs(w, scene, args.steps, args.trials)
    except SetupError as error:
        compared, left_out = {}, f"cyclediffusion_ratio and pix2pix_zero_ratio are left out. {error}"
    for name, found in compared.items():
        rows.append(row(name.removesuffix("_ratio"), "diffusers' pipeline", found))
        figures[name] = statistics.median(found.quotients)
    show(rows, f"CPU time, {args.steps} steps, medians of {args.trials} trials, one thread")
    write(args.json, {"rows": rows, "figures": figures})
    if left_out:
        print(left_out)
    return 0
