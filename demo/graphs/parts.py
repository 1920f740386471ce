"""What the shipped graphs are made of.

A graph is a dict in the executor's form: node id -> class and inputs, where [id, slot] is a wire.
"""
from __future__ import annotations

SEED = 1_000_000
EXAMPLE = "a photo of a cat sitting on a chair"  # the caption of graphs on the user's own picture
PAPER = {"method": "paper", "method__inner_steps": 10, "method__learning_rate": .01, "method__early_stop": True}


class Graph:
    """Collects nodes; `add` returns the id, so that a graph reads top to bottom."""

    def __init__(self):
        self.nodes: dict[str, dict] = {}
        self.titles: dict[str, str] = {}

    def add(self, node: str, title: str | None = None, **inputs) -> str:
        key = str(len(self.nodes) + 1)
        self.nodes[key] = {"class_type": node, "inputs": {k.replace("__", "."): v for k, v in inputs.items()}}
        if title:
            self.titles[key] = title
        return key

    def since(self, mark: int) -> list[str]:
        """Ids of the nodes added after the first `mark`."""
        return list(self.nodes)[mark:]


def invert(model, positive, latent, cfg: float = 1.0) -> dict:
    """RedescribedDDIMInvert's inputs as the graphs ship them."""
    return {"model": model, "positive": positive, "latent": latent, "steps": 50, "scheduler": "ddim_uniform",
            "cfg": cfg, "denoise": 1.0, "refine": 0}


def sample(model, mirror, positive, cfg: float) -> dict:
    """MirrorSample's inputs as other methods have them: guided throughout, free to change the whole picture."""
    return {"model": model, "mirror": mirror, "positive": positive, "strength": 1.0, "cfg": cfg, "exact": "source",
            "locality": "everywhere"}


def sample_locally(model, mirror, positive) -> dict:
    """MirrorSample's inputs as we ship them, tuned on validation scenes of all edits."""
    return {**sample(model, mirror, positive, 2.0), "strength": 1.3, "cfg_until": 0.3, "locality": "auto"}


def stock(model, positive, negative, latent, cfg: float) -> dict:
    return {"model": model, "add_noise": "disable", "noise_seed": 0, "steps": 50, "cfg": cfg, "sampler_name": "euler",
            "scheduler": "ddim_uniform", "positive": positive, "negative": negative, "latent_image": latent,
            "start_at_step": 0, "end_at_step": 10000, "return_with_leftover_noise": "disable"}


def picture(g: Graph, image, title: str) -> None:
    g.add("PreviewImage", title, images=image)


def saved_in_place(g: Graph, edit: str, vae, original, title: str) -> None:
    """MirrorSample's picture in its region, the original's own pixels elsewhere: not even the VAE touches those."""
    decoded = g.add("VAEDecode", samples=[edit, 0], vae=vae)
    pasted = g.add("ImageCompositeMasked", "the original outside the region", destination=original,
                   source=[decoded, 0], x=0, y=0, resize_source=False, mask=[edit, 3])
    g.add("SaveImage", title, images=[pasted, 0], filename_prefix="mirror/" + title.replace(" ", "-"))


def saved(g: Graph, latent, vae, title: str) -> None:
    decoded = g.add("VAEDecode", samples=latent, vae=vae)
    g.add("SaveImage", title, images=[decoded, 0], filename_prefix="mirror/" + title.replace(" ", "-"))
