"""The graphs and the pictures of `run.py bench folders`."""
from __future__ import annotations

from pathlib import Path

from demo.graphs.parts import Graph
from demo.render import render
from demo.scene import HELD_OUT, scene

BROKEN = 100        # every hundredth picture is cut short


def tiny() -> dict[str, dict]:
    """One step of a sampler: as little as a graph with a seed can do."""
    g = Graph()
    world, loaded = g.add("MirrorDemoModel"), g.add("LoadImage", image="example.png")
    image = g.add("VAEEncode", pixels=[loaded, 0], vae=[world, 2])
    said = g.add("CLIPTextEncode", clip=[world, 1], text="a cat")
    drawn = g.add("KSampler", model=[world, 0], positive=[said, 0], negative=[said, 0], latent_image=[image, 0], seed=0,
                  steps=1, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=.3)
    g.add("SaveImage", images=[g.add("VAEDecode", samples=[drawn, 0], vae=[world, 2]), 0], filename_prefix="tiny")
    return g.nodes


def edit(steps: int) -> dict[str, dict]:
    """Edit Picture as it ships, with so many steps."""
    g = Graph()
    world, loaded = g.add("MirrorDemoModel"), g.add("LoadImage", image="example.png")
    image = g.add("VAEEncode", pixels=[loaded, 0], vae=[world, 2])
    before, after = (g.add("CLIPTextEncode", clip=[world, 1], text=f"a {word}") for word in ("animal", "dog"))
    edited = g.add("MirrorEdit", model=[world, 0], source=[before, 0], target=[after, 0], latent=[image, 0],
                   settings="balanced", steps=steps, scheduler="ddim_uniform", strength=1.0, seed=0, region="auto")
    g.add("SaveImage", images=[g.add("VAEDecode", samples=[edited, 0], vae=[world, 2]), 0], filename_prefix="edit")
    return g.nodes


def draw(folder: Path, count: int, broken: int = 0) -> list[str]:
    """Held-out scenes in folders of a hundred, every so manieth cut short (0: none); the names of the broken ones."""
    cut = []
    for i in range(count):
        file = folder / f"{i // 100:03}" / f"{i:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        render(scene(HELD_OUT + i)).save(file)
        if broken and i % broken == broken // 2:
            file.write_bytes(file.read_bytes()[:2000])
            cut.append(file.relative_to(folder).as_posix())
    return cut
