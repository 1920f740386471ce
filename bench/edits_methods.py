"""The methods that are measured, each as the graph that a user would build. To add one: a function and a line below.

A method is `build(g, w, **settings) -> Made`: it adds nodes to the graph `g`, on the wires `w`. METHODS holds the
settings of its publication; `tries` are the others that `--tune` compares on training scenes, the same number for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch

from demo.graphs import mirror_demo
from harness.boot import Host
from harness.tiny import Graph, node

STEPS = 50
CURRENT = "current (pix2pix-zero family)"


class Wires(NamedTuple):
    """What a graph starts from: links, and the number of steps where it isn't the method's own."""
    model: list
    clip: list
    vae: list
    image: list
    answer: list            # IMAGE of the exact counterfactual, for the ceiling only
    before: list            # CONDITIONING of the picture's caption
    after: list             # of the edited picture's caption
    empty: list             # of no words
    direction: list         # MIRROR_DIRECTION from many captions with the one value to as many with the other
    words_before: list      # STRING; a graph that uses these two is run on one picture at a time
    words_after: list
    host: Host
    steps: int = STEPS

    def latent(self, g: Graph) -> list:
        return g.add("VAEEncode", pixels=self.image, vae=self.vae)()


class Made(NamedTuple):
    edited: list            # link to the edited LATENT
    mirror: list | None = None


@dataclass(frozen=True)
class Method:
    build: Callable[..., Made]
    published: dict = field(default_factory=dict)
    tries: tuple[dict, ...] = ()
    about: str = ""


# ---- bounds ----

def floor(g: Graph, w: Wires) -> Made:
    return Made(w.latent(g))


def ceiling(g: Graph, w: Wires) -> Made:
    return Made(g.add("VAEEncode", pixels=w.answer, vae=w.vae)())


# ---- inversion, a mirror, and MirrorSample ----

PAPER = {"method": "paper", "method__inner_steps": 10, "method__learning_rate": .01, "method__early_stop": True}
NULL_TEXT = {**PAPER, "method": "null text"}
NONE, NEGATIVE = {"method": "none"}, {"method": "negative prompt"}


def invert(g: Graph, w: Wires, rewriter: dict, cfg: float = 1.0, **changes):
    """RedescribedDDIMInvert; a cfg other than 1 is guided away from the empty prompt."""
    inputs = {"model": w.model, "positive": w.before, "latent": w.latent(g), "cfg": cfg, **changes}
    if cfg != 1:
        inputs["negative"] = w.empty
    grid = {"steps": w.steps, "scheduler": "ddim_uniform"}
    return g.add("RedescribedDDIMInvert", **inputs, **grid, rewriter=g.add("PromptRewriteOptimizer", **rewriter)())


def sample(g: Graph, w: Wires, mirror, positive: list, cfg: float, exact: str = "source", **changes) -> Made:
    """MirrorSample without what is our own in it; with exact "source" its source branch costs nothing, and the edit
    doesn't depend on it."""
    inputs = {"model": w.model, "mirror": mirror(2), "positive": positive, "strength": 1.0, "cfg": cfg, "exact": exact}
    return Made(g.add("MirrorSample", **{**inputs, "locality": "everywhere", **changes})(), mirror(2))


def ddim(g: Graph, w: Wires, cfg: float) -> Made:
    """DDIM inversion, then the other caption."""
    mirror = invert(g, w, NONE, cfg)
    return sample(g, w, mirror, w.after, cfg, **({} if cfg == 1 else {"negative": w.empty}))


def null_text(g: Graph, w: Wires, cfg: float) -> Made:
    return sample(g, w, invert(g, w, NULL_TEXT, cfg), w.after, cfg, negative=w.empty)


def negative_prompt(g: Graph, w: Wires, cfg: float) -> Made:
    return sample(g, w, invert(g, w, NEGATIVE, cfg), w.after, cfg)


def direct(g: Graph, w: Wires, cfg: float) -> Made:
    """What the source branch misses the recording by is given to the edit as well."""
    return sample(g, w, invert(g, w, NONE, cfg), w.after, cfg, exact="source and edit", negative=w.empty)


def pix2pix_zero_swap(g: Graph, w: Wires, cfg: float) -> Made:
    """Configuration C of pix2pix-zero's ablation: regularised inversion, the other caption."""
    return sample(g, w, pix2pix_zero_inversion(g, w), w.after, cfg)


def pix2pix_zero_direction(g: Graph, w: Wires, cfg: float, strength: float = 1.0) -> Made:
    """Configuration D: regularised inversion, an edit direction; no cross-attention guidance."""
    mirror = pix2pix_zero_inversion(g, w)
    return sample(g, w, mirror, w.before, cfg, direction=w.direction, strength=strength)


def pix2pix_zero_inversion(g: Graph, w: Wires):
    return invert(g, w, NONE, regularise="pix2pix-zero", label=CURRENT)


def mirror_paper(g: Graph, w: Wires, cfg: float, strength: float = 1.0) -> Made:
    """MirrorDiffusion: the rewritten prompt + direction, guided away from the rewritten prompt."""
    return sample(g, w, invert(g, w, PAPER), w.before, cfg, direction=w.direction, strength=strength)


def mirror_caption(g: Graph, w: Wires, cfg: float, strength: float = 1.0) -> Made:
    """The same with the difference of the two captions as direction."""
    return sample(g, w, invert(g, w, PAPER), w.after, cfg, strength=strength)


# ---- stock and stochastic samplers ----

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


# ---- ours ----

def shipped(g: Graph, w: Wires, **changes) -> Made:
    """The edit of the shipped graph `mirror_demo`, whatever it holds, on this scene; `changes` to its MirrorSample."""
    graph, made = mirror_demo().graph, {}
    kinds = {key: entry["class_type"] for key, entry in graph.items()}
    given = {"MirrorDemoModel": {0: w.model, 1: w.clip, 2: w.vae},
             "MirrorDemoScene": {0: w.image, 1: w.words_before, 4: w.words_after}}
    captions = {1: w.before, 4: w.after}

    def copy(value):
        if not (isinstance(value, list) and len(value) == 2 and value[0] in graph):
            return value
        key, slot = value
        inputs = graph[key]["inputs"]
        if kinds[key] in given:
            return given[kinds[key]][slot]
        if kinds[key] == "CLIPTextEncode" and (isinstance(inputs["text"], list) or not inputs["text"]):
            return captions[inputs["text"][1]] if inputs["text"] else w.empty
        if key not in made:
            own = changes if kinds[key] == "MirrorSample" else {}
            made[key] = g.add(kinds[key], **{name: copy(wire) for name, wire in inputs.items()} | own)
            if w.steps != STEPS and "steps" in inputs:
                g[made[key].id]["inputs"]["steps"] = w.steps
        return made[key](slot)

    saved = next(e for e in graph.values() if e["inputs"].get("filename_prefix") == "mirror/edit")
    edited = copy(graph[saved["inputs"]["images"][0]]["inputs"]["samples"])
    mirror = next((made[key](2) for key in made if kinds[key] == "RedescribedDDIMInvert"), None)
    return Made(edited, mirror)


def each(cfgs: tuple[float, ...], **others) -> tuple[dict, ...]:
    """Settings that differ in guidance."""
    return tuple({"cfg": cfg, **others} for cfg in cfgs)


# Six settings each: what `--tune` compares, besides the published one.
CFGS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.5)
HIGHER = CFGS[1:]
STRENGTHS = each((1.0, 1.5, 2.0, 3.0), strength=1.0) + each((1.0, 1.5), strength=1.5)

METHODS = {
    "floor": Method(floor, about="no edit: the autoencoder's round trip of the picture"),
    "ceiling": Method(ceiling, about="the autoencoder's round trip of the exact answer"),
    "ddim": Method(ddim, {"cfg": 5.0}, each(CFGS), "DDIM inversion, the other caption at cfg 5 against no words"),
    "ddim-cfg1": Method(ddim, {"cfg": 1.0}, about="the same without guidance"),
    "sdedit": Method(sdedit, {"denoise": .75, "cfg": 5.0},
                     each((2.0, 5.0), denoise=.3) + each((2.0, 5.0), denoise=.5) + each((2.0, 3.0), denoise=.75),
                     "noise to strength 0.75, the other caption at cfg 5"),
    "pix2pix-zero-C": Method(pix2pix_zero_swap, {"cfg": 5.0}, each(CFGS), "ablation C: regularised inversion, caption"),
    "pix2pix-zero-D": Method(pix2pix_zero_direction, {"cfg": 5.0}, STRENGTHS,
                             "ablation D: regularised inversion, edit direction, no cross-attention guidance"),
    "nti": Method(null_text, {"cfg": 7.5}, each((*HIGHER, 4.0)), "null-text inversion, the other caption at cfg 7.5"),
    "npi": Method(negative_prompt, {"cfg": 7.5}, each((*HIGHER, 4.0)), "negative-prompt inversion, the same"),
    "direct": Method(direct, {"cfg": 7.5}, each((*HIGHER, 4.0)), "source residual given to the edit, cfg 7.5"),
    "cyclediffusion": Method(cycle, {"denoise": .7, "cfg": 3.0},
                             each((1.0, 2.0, 5.0), denoise=.7) + each((1.0, 2.0, 3.0), denoise=.85),
                             "the last 35 of 50 steps, eta 0.1, cfg 3; one draw, not the best of 540"),
    "edit-friendly": Method(edit_friendly, {"source_cfg": 3.5, "cfg": 15.0},
                            each((1.0, 2.0, 3.5), source_cfg=1.0) + each((2.0, 5.0, 7.5), source_cfg=1.0, denoise=.5),
                            "100 steps, 36 skipped, cfg 3.5 and 15"),
    "mirror-paper": Method(mirror_paper, {"cfg": 5.0}, STRENGTHS,
                           "prompt rewritten at cfg 1, + direction, cfg 5 against the rewritten prompt"),
    "mirror-caption": Method(mirror_caption, {"cfg": 5.0}, STRENGTHS, "the same with the difference of two captions"),
    "ours": Method(shipped, {}, each((1.0, 2.0, 2.5, 3.0, 4.0, 5.0)), "the shipped graph mirror_demo as it is"),
    "ours-everywhere": Method(shipped, {"locality": "everywhere"}, about="the same, free to change the whole picture"),
}
