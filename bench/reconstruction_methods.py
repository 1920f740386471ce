"""The methods that the reconstruction bench compares, as a user would run them.

Each takes a Walk and returns the reconstruction and what it should be, latents [B, C, H, W].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch

from .world import world

FIRST = 200_000  # scenes that no other bench looks at
SCHEDULER = "ddim_uniform"


class Batch(NamedTuple):
    """Some scenes, ready to be inverted."""

    numbers: list[int]
    images: torch.Tensor  # [B, H, W, 3]
    latent: dict
    positive: list  # one caption each
    negative: list  # the empty prompt


def batch_of(numbers: list[int]) -> Batch:
    """Scenes by number, drawn, encoded and captioned."""
    w = world()
    scenes = [w.scene.scene(w.scene.HELD_OUT + FIRST + i) for i in numbers]
    images = torch.cat([w.image(s) for s in scenes])
    captions = torch.cat([w.prompt(w.scene.caption(s))[0][0] for s in scenes])
    return Batch(numbers, images, {"samples": w.vae.encode(images)}, [[captions, {}]], w.prompt(""))


class Walk(NamedTuple):
    """One measurement's settings."""

    model: object
    batch: Batch
    cfg: float
    steps: int


def call(node: str, **inputs) -> tuple:
    """The outputs of a node."""
    return world().host.nodes.NODE_CLASS_MAPPINGS[node].execute(**inputs).args


def defaults(inputs: list) -> dict:
    """What a node's inputs are set to unless someone changes them."""
    return {entry.id: entry.default for entry in inputs}


@cache
def rewriters() -> dict:
    """PromptRewriteOptimizer's methods."""
    return world().host.pack_module("nodes.mirror.rewriter").METHODS


def inverted(walk: Walk, rewriter: str, settings: dict | None = None, **inputs) -> tuple:
    """The outputs of RedescribedDDIMInvert."""
    choice = {"method": rewriter, **defaults(rewriters()[rewriter][0]()), **(settings or {})}
    made, = call("PromptRewriteOptimizer", method=choice)
    return call("RedescribedDDIMInvert", model=walk.model, positive=walk.batch.positive, latent=walk.batch.latent,
                steps=walk.steps, scheduler=SCHEDULER, cfg=walk.cfg, negative=walk.batch.negative, rewriter=made,
                **inputs)


def mirror(walk: Walk, rewriter: str = "none", settings: dict | None = None, **inputs):
    """The way back that a mirror was made with."""
    return inverted(walk, rewriter, settings, **inputs)[4]["samples"], walk.batch.latent["samples"]


def of_the_negative(walk: Walk, rewriter: str):
    """As `mirror`; at cfg 1, where the negative prompt is not read, plain DDIM."""
    return mirror(walk, rewriter if walk.cfg != 1 else "none")


def recorded(walk: Walk):
    """The recorded latents take over after each step of MirrorSample's source branch."""
    made = inverted(walk, "none")[2]
    _, kept, *_ = call("MirrorSample", model=walk.model, mirror=made, positive=walk.batch.positive, strength=0.0,
                       cfg=1.0, negative=walk.batch.negative, exact="source")
    return kept["samples"], walk.batch.latent["samples"]


def exact(walk: Walk, method: str):
    """MirrorExactInvert, and its sampler in the stock SamplerCustom."""
    inputs, _ = world().host.pack_module("nodes.mirror.exact").METHODS[method]
    prompts = {"positive": walk.batch.positive, "negative": walk.batch.negative, "cfg": walk.cfg}
    noise, sampler, sigmas = call(
        "MirrorExactInvert", model=walk.model, latent=walk.batch.latent, steps=walk.steps, scheduler=SCHEDULER,
        method={"method": method, **defaults(inputs())}, **prompts)
    back = call("SamplerCustom", model=walk.model, add_noise=False, noise_seed=0, sampler=sampler, sigmas=sigmas,
                latent_image=noise, **prompts)
    return back[0]["samples"], walk.batch.latent["samples"]


def exact_float64(walk: Walk, method: str):
    """Both directions of MirrorExactInvert with the network in float64; a sampler's result on a wire is float32."""
    nodes = world().host.pack_module("nodes.mirror.exact")
    inputs, make = nodes.METHODS[method]
    chosen, model = make(defaults(inputs()), walk.batch.latent), walk.model.clone()
    model.set_model_compute_dtype(torch.float64)
    sigmas = nodes.families.noise_levels(model, SCHEDULER, walk.steps)

    def both_ways(inside):
        predict, on = nodes.denoiser_of(inside, walk.cfg), nodes.solver_context(inside, model, sigmas)
        picture = inside.latent_in(walk.batch.latent["samples"]).cpu().double()
        state = chosen.encode(predict, picture, on)
        return chosen.decode(predict, state, on, lambda i, x: None), picture

    prompts = nodes.prompts_at(walk.cfg, walk.batch.positive, walk.batch.negative, len(walk.batch.numbers))
    evaluations = 2 * chosen.calls * walk.steps
    latent = walk.batch.latent["samples"]
    result, _ = nodes.run(model, latent, sigmas, prompts, both_ways, evaluations=evaluations)
    return result


METHODS: dict[str, Callable] = {
    "ddim": mirror,
    "refine 1": partial(mirror, refine=1),
    "refine 3": partial(mirror, refine=3),
    "refine 5": partial(mirror, refine=5),
    "anderson": partial(mirror, refine=5, mixing="anderson"),
    "edict": partial(exact, method="edict"),
    "edict float64": partial(exact_float64, method="edict"),
    "bdia": partial(exact, method="bdia"),
    "bdia float64": partial(exact_float64, method="bdia"),
    "edit-friendly": partial(exact, method="edit-friendly"),
    "paper": partial(mirror, rewriter="paper"),
    "paper full": partial(mirror, rewriter="paper", settings={"early_stop": False}),
    "null text": partial(of_the_negative, rewriter="null text"),
    "negative prompt": partial(of_the_negative, rewriter="negative prompt"),
    "ours": partial(mirror, rewriter="fixed point + negative prompt"),
    "exact": recorded,
}
