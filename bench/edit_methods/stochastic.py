"""Methods with noise: SDEdit, CycleDiffusion, edit-friendly DDPM."""

from __future__ import annotations

from functools import partial

import torch

from harness.boot import Host
from harness.tiny import Graph, node

from .parts import STEPS, Made, Method, Wires, each


def sdedit(g: Graph, w: Wires, denoise: float, cfg: float) -> Made:
    """Noise added, then the other caption, by the stock KSampler."""
    inputs = {"model": w.model, "positive": w.after, "negative": w.empty, "latent_image": w.latent(g), "cfg": cfg}
    grid = {"steps": round(w.steps * denoise), "scheduler": "ddim_uniform", "denoise": denoise}
    return Made(g.add("KSampler", **inputs, **grid, seed=0, sampler_name="euler")())


def cycle(g: Graph, w: Wires, denoise: float, cfg: float, eta: float = .1) -> Made:
    """DPM-encoder under the one caption, decoder under the other. denoise 0.7: the last 35 of 50 steps."""
    name = node(partial(cycle_diffusion, w.host), ("LATENT",), CYCLE_TAKES)
    settings = {"steps": round(w.steps * denoise), "denoise": denoise, "cfg": cfg, "eta": eta}
    links = {"model": w.model, "before": w.before, "after": w.after, "empty": w.empty, "latent": w.latent(g)}
    return Made(g.add(name, **links, settings=settings)())


CYCLE_TAKES = {"model": "MODEL", "before": "CONDITIONING", "after": "CONDITIONING", "empty": "CONDITIONING",
               "latent": "LATENT", "settings": "*"}


def cycle_diffusion(host: Host, model, before, after, empty, latent, settings):
    """CycleDiffusion on the pack's own denoiser, as a node, because the pack has none for it yet."""
    families, denoiser = (host.pack_module(f"nodes.host.{name}") for name in ("families", "denoiser"))
    encoding = host.pack_module("mirror_ops.dpm_encoder")
    sigmas = families.noise_levels(model, "ddim_uniform", settings["steps"], settings["denoise"])

    def algorithm(walk):
        def encoder(x, sigma, cond):
            return walk.denoise(x, sigma, walk.prompts["before"].entries)

        def decoder(x, sigma, cond):
            return walk.denoise(x, sigma, walk.prompts["after"].entries, walk.prompts["empty"].entries, settings["cfg"])

        picture, generator = walk.latent_in(latent["samples"]), torch.Generator().manual_seed(0)
        return encoding.cycle_diffusion(encoder, decoder, picture, walk.sigmas, None, None, settings["eta"], generator,
                                        families.is_flow(model))

    prompts = {"before": before, "after": after, "empty": empty}
    evaluations = 2 * (len(sigmas) - 1)
    edited, _ = denoiser.run(model, latent["samples"], sigmas, prompts, algorithm, evaluations=evaluations)
    return {"samples": model.model.process_latent_out(edited)}


def edit_friendly(g: Graph, w: Wires, source_cfg: float, cfg: float, steps: int = 100, denoise: float = .64) -> Made:
    """Edit-friendly noises, then the other caption in the stock SamplerCustom. denoise 0.64: skips 36 of 100 steps."""
    inputs = {"model": w.model, "positive": w.before, "latent": w.latent(g), "method": "edit-friendly",
              "method__seed": 0, "method__eta": 1.0, "steps": round(steps * denoise * w.steps / STEPS),
              "scheduler": "ddim_uniform", "cfg": source_cfg, "denoise": denoise, "negative": w.empty}
    code = g.add("MirrorExactInvert", **inputs)
    sampled = g.add("SamplerCustom", model=w.model, add_noise=False, noise_seed=0, cfg=cfg, positive=w.after,
                    negative=w.empty, sampler=code(1), sigmas=code(2), latent_image=code(0))
    return Made(sampled())


METHODS = {
    "sdedit": Method(sdedit, {"denoise": .75, "cfg": 5.0},
                     each((2.0, 5.0), denoise=.3) + each((2.0, 5.0), denoise=.5) + each((2.0, 3.0), denoise=.75),
                     "noise to strength 0.75, the other caption at cfg 5"),
    "cyclediffusion": Method(cycle, {"denoise": .7, "cfg": 3.0},
                             each((1.0, 2.0, 5.0), denoise=.7) + each((1.0, 2.0, 3.0), denoise=.85),
                             "the last 35 of 50 steps, eta 0.1, cfg 3; one draw, not the best of 540"),
    "edit-friendly": Method(edit_friendly, {"source_cfg": 3.5, "cfg": 15.0},
                            each((1.0, 2.0, 3.5), source_cfg=1.0) + each((2.0, 5.0, 7.5), source_cfg=1.0, denoise=.5),
                            "100 steps, 36 skipped, cfg 3.5 and 15"),
}
