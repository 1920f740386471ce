"""Methods with noise: SDEdit, CycleDiffusion, edit-friendly DDPM."""

from __future__ import annotations

from harness.graph import Graph

from .parts import STEPS, Made, Method, Wires, each


def sdedit(g: Graph, w: Wires, denoise: float, cfg: float) -> Made:
    """Noise added, then the other caption, by the stock KSampler."""
    inputs = {"model": w.model, "positive": w.after, "negative": w.empty, "latent_image": w.latent(g), "cfg": cfg}
    grid = {"steps": round(w.steps * denoise), "scheduler": "ddim_uniform", "denoise": denoise}
    return Made(g.add("KSampler", **inputs, **grid, seed=0, sampler_name="euler")())


def cycle(g: Graph, w: Wires, denoise: float, cfg: float, eta: float = .1) -> Made:
    """DPM-encoder under the one caption, decoder under the other. denoise 0.7: the last 35 of 50 steps."""
    inputs = {"model": w.model, "source": w.before, "target": w.after, "negative": w.empty, "latent": w.latent(g)}
    noises = {"encoder": "dpm-encoder", "encoder__seed": 0, "encoder__eta": eta, "denoise": denoise}
    grid = {"steps": round(w.steps * denoise), "scheduler": "ddim_uniform", "source_cfg": 1.0, "cfg": cfg}
    return Made(g.add("CycleDiffusionEdit", **inputs, **noises, **grid)())


def edit_friendly(g: Graph, w: Wires, source_cfg: float, cfg: float, steps: int = 100, denoise: float = .64) -> Made:
    """Edit-friendly noises, then the other caption in the stock SamplerCustomAdvanced. denoise 0.64: skips 36 of 100
    steps."""
    inputs = {"model": w.model, "positive": w.before, "latent": w.latent(g), "negative": w.empty, "cfg": source_cfg}
    noises = {"encoder": "edit-friendly", "encoder__seed": 0, "encoder__eta": 1.0, "denoise": denoise}
    grid = {"steps": round(steps * denoise * w.steps / STEPS), "scheduler": "ddim_uniform"}
    code = g.add("CycleDiffusionEncode", **inputs, **noises, **grid)
    guider = g.add("CFGGuider", model=w.model, positive=w.after, negative=w.empty, cfg=cfg)
    replay = {"noise": code(0), "sampler": code(1), "sigmas": code(2), "latent_image": code(3)}
    return Made(g.add("SamplerCustomAdvanced", guider=guider(), **replay)())


METHODS = {
    "sdedit": Method(sdedit, {"denoise": .75, "cfg": 5.0},
                     ({"denoise": .5, "cfg": 5.0}, {"denoise": .75, "cfg": 3.0}, {"denoise": .9, "cfg": 3.0}),
                     "noise to strength 0.75, the other caption at cfg 5"),
    "cyclediffusion": Method(cycle, {"denoise": .7, "cfg": 3.0},
                             ({"denoise": .7, "cfg": 2.0}, *each((2.0, 3.0), denoise=.85)),
                             "the last 35 of 50 steps, eta 0.1, cfg 3; one draw, not the best of 540"),
    "edit-friendly": Method(edit_friendly, {"source_cfg": 3.5, "cfg": 15.0},
                            ({"source_cfg": 3.5, "cfg": 9.0}, *each((3.5, 7.5), source_cfg=1.0)),
                            "100 steps, 36 skipped, cfg 3.5 and 15"),
}
