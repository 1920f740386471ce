"""Bounds, plain DDIM, and the mirror."""

from __future__ import annotations

from demo.graphs import SHEETS
from harness.graph import Graph

from .parts import NONE, PAPER, STEPS, Made, Method, Wires, each, invert, sample
from .pix2pix_zero import CODE

CODES_OWN = {"amount": .1, "strength": .65, "ramp": 1.2}      # MirrorDiffusion's official code
STRENGTHS = tuple({"cfg": cfg, "strength": strength} for cfg, strength in ((1.0, 1.5), (1.5, 1.0), (2.0, 1.0)))


def floor(g: Graph, w: Wires) -> Made:
    return Made(w.latent(g))


def ceiling(g: Graph, w: Wires) -> Made:
    return Made(g.add("VAEEncode", pixels=w.answer, vae=w.vae)())


def ddim(g: Graph, w: Wires, cfg: float) -> Made:
    """DDIM inversion, then the other caption."""
    mirror = invert(g, w, NONE, cfg)
    return sample(g, w, mirror, w.after, cfg, **({} if cfg == 1 else {"negative": w.empty}))


def mirror_paper(g: Graph, w: Wires, cfg: float, amount: float, strength: float, ramp: float) -> Made:
    """MirrorDiffusion as its authors run it: the prompt rewritten, a direction that grows for two thirds of the walk,
    cross-attention guidance of both halves' latents with the cycle loss, cfg against the rewritten prompt."""
    mirror = invert(g, w, PAPER)
    model = g.add("MirrorCrossAttentionGuidance", model=w.model, mirror=mirror(2), amount=amount, latents=CODE,
                  cycle=True)
    return sample(g, w, mirror, w.before, cfg, model=model(), direction=w.direction, strength=strength, ramp=ramp,
                  ramp_until=2 / 3)


def mirror_plain(g: Graph, w: Wires, cfg: float, strength: float = 1.0) -> Made:
    """The same by the paper's equations alone: no cross-attention guidance, no ramp, no cycle."""
    return sample(g, w, invert(g, w, PAPER), w.before, cfg, direction=w.direction, strength=strength)


def mirror_caption(g: Graph, w: Wires, cfg: float, strength: float = 1.0) -> Made:
    """The equations alone, with the difference of the two captions as direction."""
    return sample(g, w, invert(g, w, PAPER), w.after, cfg, strength=strength)


def shipped(g: Graph, w: Wires, paste: bool = True, **changes) -> Made:
    """The edit of the shipped graph `mirror_demo`, whatever it holds, on this scene, with the `changes` of `altered`.
    Without `paste` the original's pixels are not put back outside the region."""
    graph, made = altered(SHEETS["mirror_demo"]().graph, **changes), {}
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
            made[key] = g.add(kinds[key], **{name: copy(wire) for name, wire in inputs.items()})
            if w.steps != STEPS and "steps" in inputs:
                g[made[key].id]["inputs"]["steps"] = w.steps
        return made[key](slot)

    saved = next(e for e in graph.values() if e["inputs"].get("filename_prefix") == "mirror/edit")
    pasted = saved["inputs"]["images"]
    picture = copy(pasted if paste else graph[pasted[0]]["inputs"]["edited"])
    mirror = next((made[key](2) for key in made if kinds[key] == "RedescribedDDIMInvert"), None)
    region = next((made[key](3) for key in made if kinds[key] == "MirrorSample"), None)
    return Made(None, mirror, picture, region)


def altered(graph: dict, rewriter: dict | None = None, guidance: float | None = None, **changes) -> dict:
    """The graph with another rewriter, cross-attention guidance of this amount, and `changes` to MirrorSample."""
    for entry in list(graph.values()):
        if entry["class_type"] == "RedescribedDDIMInvert" and rewriter is not None:
            graph["rewriter"] = {"class_type": "PromptRewriteOptimizer", "inputs": rewriter}
            entry["inputs"]["rewriter"] = ["rewriter", 0]
        if entry["class_type"] == "MirrorSample":
            inputs = entry["inputs"]
            inputs.update(changes)
            if guidance is not None:
                own = {"model": inputs["model"], "mirror": inputs["mirror"], "amount": guidance}
                graph["guidance"] = {"class_type": "MirrorCrossAttentionGuidance", "inputs": own}
                inputs["model"] = ["guidance", 0]
    return graph


METHODS = {
    "floor": Method(floor, about="no edit: the autoencoder's round trip of the picture"),
    "ceiling": Method(ceiling, about="the autoencoder's round trip of the exact answer"),
    "ddim": Method(ddim, {"cfg": 5.0}, each((1.0, 1.5, 2.0)), "DDIM inversion, the other caption at cfg 5 against no "
                   "words"),
    "ddim-cfg1": Method(ddim, {"cfg": 1.0}, about="the same without guidance"),
    "mirror-paper": Method(mirror_paper, {"cfg": 5.0, **CODES_OWN}, each((1.5, 3.0), **CODES_OWN)
                           + each((1.5,), **{**CODES_OWN, "amount": .5}),
                           "MirrorDiffusion as its authors' code: direction .65 and growing, cross-attention guidance "
                           "with the cycle loss, cfg 5 against the rewritten prompt"),
    "mirror-paper-plain": Method(mirror_plain, {"cfg": 5.0}, STRENGTHS,
                                 "the same without guidance by attention, ramp and cycle: direction 1, cfg 5"),
    "mirror-caption": Method(mirror_caption, {"cfg": 5.0}, STRENGTHS, "the same with the difference of two captions"),
    "mirror": Method(shipped, {}, ({"cfg": 1.5}, {"cfg": 3.0}, {"strength": 1.0}),
                     "the shipped graph mirror_demo as it is"),
    "mirror-decoded": Method(shipped, {"paste": False}, about="the same without the original's pixels put back"),
    "mirror-unwritten": Method(shipped, {"rewriter": NONE}, about="the same with the prompt as it is: no gradients"),
    "mirror-guided": Method(shipped, {"guidance": .1}, about="the same under cross-attention guidance"),
    "mirror-everywhere": Method(shipped, {"region": "everywhere", "paste": False},
                                about="free to change the whole picture"),
}
