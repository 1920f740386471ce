"""What the measured methods are made of.

A method is `build(g, w, **settings) -> Made`: it adds nodes to the graph `g`, on the wires `w`. `published` holds the
settings of its publication; `tries` are the others that `--tune` compares on training scenes: TRIES for every method,
its own region among them where it has one, none for bounds and ablations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from harness.boot import Host
from harness.graph import Graph

STEPS = 50

PAPER = {"method": "paper", "method__inner_steps": 10, "method__learning_rate": .01, "method__early_stop": True}
NULL_TEXT = {**PAPER, "method": "null text"}
NONE, NEGATIVE = {"method": "none"}, {"method": "negative prompt"}


def each(cfgs: tuple[float, ...], **others) -> tuple[dict, ...]:
    """Settings that differ in guidance."""
    return tuple({"cfg": cfg, **others} for cfg in cfgs)


TRIES = 3                       # settings besides the published one


class Wires(NamedTuple):
    """What a graph starts from: links, and the number of steps where it isn't the method's own."""
    model: list
    clip: list
    vae: list
    image: list
    answer: list            # IMAGE of the exact counterfactual, for the ceiling only
    before: list            # CONDITIONING of the picture's caption
    after: list             # of the edited picture's caption
    between: list           # of the caption with the first of several changes; with one change: `after`
    further: list           # with the first two
    empty: list             # of no words
    direction: list         # MIRROR_DIRECTION from many captions with the one value to as many with the other
    words_before: list      # STRING; a graph that uses these three is run on one picture at a time
    words_after: list
    words_blend: list       # STRING of the words that stand where the picture changes; likewise
    host: Host
    changes: int = 1        # the most attributes that one of the pictures changes: up to three
    steps: int = STEPS
    cells: int = 16         # the latent's side
    decoder: int = 3        # the first self-attention layer of the decoder's last two sizes

    def latent(self, g: Graph) -> list:
        return g.add("VAEEncode", pixels=self.image, vae=self.vae)()


class Made(NamedTuple):
    edited: list | None             # link to the edited LATENT
    mirror: list | None = None
    picture: list | None = None     # link to the edited IMAGE, where the graph does more than decode
    region: list | None = None      # link to the MASK that the method found for its edit


@dataclass(frozen=True)
class Method:
    build: Callable[..., Made]
    published: dict = field(default_factory=dict)
    tries: tuple[dict, ...] = ()
    about: str = ""
    tuned_as: str = ""      # the method whose chosen setting this one takes: its closed form, or its equal


def defaults_of(w: Wires, node: str) -> dict:
    """What a node's required inputs are set to when it is put into a graph."""
    return defaults(w.host.nodes.NODE_CLASS_MAPPINGS[node].define_schema().inputs)


def defaults(inputs: list) -> dict:
    """The same of a list of inputs: a choice's own inputs are named `choice__input`, wires are left out."""
    found = {}
    for entry in inputs:
        options, value = getattr(entry, "options", None) or [], getattr(entry, "default", None)
        if value is None and options:
            value = getattr(options[0], "key", options[0])
            chosen = defaults(getattr(options[0], "inputs", []))
            found |= {f"{entry.id}__{name}": default for name, default in chosen.items()}
        if value is not None and not entry.optional:
            found[entry.id] = value
    return found


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
    inputs = {"model": w.model, "mirror": mirror(2), "positive": positive, "strength": 1.0, "cfg": cfg, "exact": exact,
              "cfg_until": 1.0, "region": "everywhere"}
    return Made(g.add("MirrorSample", **{**inputs, **changes})(), mirror(2))
