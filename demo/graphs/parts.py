"""What the shipped graphs are made of.

A graph is a dict in the executor's form: node id -> class and inputs, where [id, slot] is a wire.
"""
from __future__ import annotations

from typing import NamedTuple

from harness.editor import Sheet

from ..scene import caption, scene

SEED = 1_000_000
FOX, DOG = (caption(scene(SEED).with_(species=species)) for species in ("fox", "dog"))
CHECKPOINT = "mirror_demo_cartoons.safetensors"     # the demo model as a checkpoint, which `run.py serve` provides
EXAMPLE = "mirror_demo_fox.png"                     # the scene that FOX describes, in the input folder by the same
PAPER = {"method": "paper", "method__inner_steps": 10, "method__learning_rate": .01, "method__early_stop": True}
PICTURE, WORDS, EDIT, COMPARE = "1 picture", "2 words", "3 edit", "4 compare"


def template(title: str):
    """A function that returns a Sheet is a template of this title: the name of its file, whose number is its place."""
    def titled(make):
        make.title = title
        return make
    return titled


class Graph:
    """Collects nodes in groups; `add` returns the id, so that a graph reads top to bottom."""

    def __init__(self):
        self.nodes: dict[str, dict] = {}
        self.titles: dict[str, str] = {}
        self.groups: dict[str, list[str]] = {}
        self.wide: dict[str, int] = {}
        self.labels: dict[tuple[str, str], str] = {}
        self.group = PICTURE

    def add(self, node: str, title: str | None = None, **inputs) -> str:
        key = str(len(self.nodes) + 1)
        self.nodes[key] = {"class_type": node, "inputs": {k.replace("__", "."): v for k, v in inputs.items()}}
        if title:
            self.titles[key] = title
        self.groups.setdefault(self.group, []).append(key)
        return key

    def sheet(self, note: str, **more) -> Sheet:
        return Sheet(self.nodes, self.titles, self.groups, [note], wide=self.wide, labels=self.labels, **more)


class Start(NamedTuple):
    """What most graphs begin with: nodes by id, wires as [id, slot]."""
    model: list
    clip: list
    vae: list
    picture: list
    latent: list
    scene: str


def start(g: Graph, seed: int = SEED, **scene) -> Start:
    """The demo model, a scene of its world, and that encoded."""
    world = g.add("MirrorDemoModel")
    drawn = g.add("MirrorDemoScene", seed=seed, **scene)
    latent = g.add("VAEEncode", pixels=[drawn, 0], vae=[world, 2])
    return Start([world, 0], [world, 1], [world, 2], [drawn, 0], [latent, 0], drawn)


def start_own(g: Graph) -> Start:
    """A checkpoint, a picture from a file, and that encoded."""
    loader = g.add("CheckpointLoaderSimple", "your checkpoint", ckpt_name=CHECKPOINT)
    loaded = g.add("LoadImage", "your picture", image=EXAMPLE)
    latent = g.add("VAEEncode", pixels=[loaded, 0], vae=[loader, 2])
    return Start([loader, 0], [loader, 1], [loader, 2], [loaded, 0], [latent, 0], loaded)


def words(g: Graph, clip: list, *texts: tuple[str, object]) -> list[list]:
    """A prompt for each (title, text)."""
    g.group = WORDS
    keys = [g.add("CLIPTextEncode", title, clip=clip, text=text) for title, text in texts]
    g.labels |= {(key, "text"): title for key, (title, _) in zip(keys, texts, strict=True)}
    return [[key, 0] for key in keys]


def before_and_after(g: Graph, s: Start) -> list[list]:
    """The captions of the scene and of its counterfactual. The editor's form has them as text (`written_out`)."""
    return words(g, s.clip, ("what is in the picture", [s.scene, 1]), ("what should be there", [s.scene, 4]))


def invert(model, positive, latent, cfg: float = 1.0) -> dict:
    """RedescribedDDIMInvert's inputs as the graphs ship them."""
    return {"model": model, "positive": positive, "latent": latent, "steps": 50, "scheduler": "ddim_uniform",
            "cfg": cfg, "denoise": 1.0, "refine": 0}


def sample(model, mirror, positive, cfg: float) -> dict:
    """MirrorSample's inputs as other methods have them: guided throughout, free to change the whole picture."""
    return {"model": model, "mirror": mirror, "positive": positive, "strength": 1.0, "cfg": cfg, "cfg_until": 1.0,
            "region": "everywhere"}


def sample_locally(model, mirror, positive) -> dict:
    """MirrorSample's inputs as we ship them, its defaults: tuned on validation scenes of all edits."""
    return {"model": model, "mirror": mirror, "positive": positive, "strength": 1.3, "cfg": 2.0}


def stock(model, positive, negative, latent, cfg: float) -> dict:
    return {"model": model, "add_noise": "disable", "noise_seed": 0, "steps": 50, "cfg": cfg, "sampler_name": "euler",
            "scheduler": "ddim_uniform", "positive": positive, "negative": negative, "latent_image": latent,
            "start_at_step": 0, "end_at_step": 10000, "return_with_leftover_noise": "disable"}


def decoded(g: Graph, latent, vae) -> list:
    return [g.add("VAEDecode", samples=latent, vae=vae), 0]


def pasted(g: Graph, edit: str, vae, original, region: int) -> list:
    """The edit in the region of its walk, the original's own pixels elsewhere: not even the VAE touches those."""
    return [g.add("MirrorPaste", original=original, edited=decoded(g, [edit, 0], vae), region=[edit, region], widen=2,
                  soften=2), 0]


def saved(g: Graph, picture, title: str = "edit") -> None:
    g.add("SaveImage", title, images=picture, filename_prefix="mirror/" + title.replace(" ", "-"))


def compared(g: Graph, reference, *pictures, labels: str, mask=None, wide: int = 520) -> None:
    """The last node: the pictures side by side, and what changed under them."""
    g.group = COMPARE
    images = {f"images__image{k}": picture for k, picture in enumerate(pictures)}
    key = g.add("MirrorCompare", reference=reference, **images, labels=labels.replace(", ", "\n"), gain=4.0, tile=384,
                **({} if mask is None else {"mask": mask}))
    g.wide[key] = wide
