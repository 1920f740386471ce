"""The shipped graphs, written in Python: `python run.py graphs` makes workflows/*.json of them.

A graph is a dict in the executor's form: node id -> class and inputs, where [id, slot] is a wire.
"""
from __future__ import annotations

from harness.editor import Sheet

from .scene import ATTRIBUTES

SEED = 1_000_000
EXAMPLE = "a photo of a cat sitting on a chair"


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


def mirror_demo() -> Sheet:
    """The whole method on the embedded world, with the exact answer beside it."""
    g, groups = Graph(), {}
    world = g.add("MirrorDemoModel")
    scene = g.add("MirrorDemoScene", seed=SEED, species="fox", edit="species", edit__to="dog")
    image = g.add("VAEEncode", pixels=[scene, 0], vae=[world, 2])
    before = g.add("CLIPTextEncode", "what is in the picture", clip=[world, 1], text=[scene, 1])
    after = g.add("CLIPTextEncode", "what should be in it", clip=[world, 1], text=[scene, 4])
    picture(g, [scene, 0], "the picture")
    groups["A picture, and words for it"] = g.since(0)

    mark = len(g.nodes)
    mirror = g.add("RedescribedDDIMInvert", **invert([world, 0], [before, 0], [image, 0]),
                   rewriter=[g.add("PromptRewriteOptimizer", **OURS), 0])
    edit = g.add("MirrorSample", **sample([world, 0], [mirror, 2], [after, 0]))
    saved(g, [edit, 0], [world, 2], "edit")
    picture(g, [scene, 2], "the exact answer")
    g.add("MirrorReport", mirror=[mirror, 2], vae=[world, 2])
    groups["Invert, rewrite the prompt, edit"] = g.since(mark)

    mark = len(g.nodes)
    empty = g.add("CLIPTextEncode", "nothing", clip=[world, 1], text="")
    for title, method in (("DDIM at cfg 5", {"method": "none"}), ("mirror at cfg 5", PAPER)):
        way = g.add("RedescribedDDIMInvert", title, **invert([world, 0], [before, 0], [image, 0], cfg=5.0),
                    negative=[empty, 0], rewriter=[g.add("PromptRewriteOptimizer", **method), 0])
        saved(g, [way, 4], [world, 2], title)
        g.add("MirrorReport", title, mirror=[way, 2], vae=[world, 2])
    groups["What rewriting cures: the way back at normal guidance, without and with it"] = g.since(mark)
    return Sheet(g.nodes, g.titles, groups, [MIRROR_NOTE, DEMO_NOTE])


def mirror_edit() -> Sheet:
    """The same method on the user's own picture and checkpoint."""
    g, groups = Graph(), {}
    model = g.add("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly.safetensors")
    loaded = g.add("LoadImage", image="example.png")
    image = g.add("VAEEncode", pixels=[loaded, 0], vae=[model, 2])
    before = g.add("CLIPTextEncode", "what is in the picture", clip=[model, 1],
                   text=EXAMPLE)
    groups["Your checkpoint, your picture, and words for it"] = g.since(0)

    mark = len(g.nodes)
    mirror = g.add("RedescribedDDIMInvert", **invert([model, 0], [before, 0], [image, 0]),
                   rewriter=[g.add("PromptRewriteOptimizer", **PAPER), 0])
    direction = g.add("CLIPDomainDirection", clip=[model, 1], source="cat", target="dog",
                      sentences="template bank: things")
    edit = g.add("MirrorSample", **sample([model, 0], [mirror, 2], [before, 0]), direction=[direction, 0])
    saved(g, [edit, 0], [model, 2], "edit")
    saved(g, [edit, 1], [model, 2], "reconstruction")
    g.add("MirrorReport", mirror=[mirror, 2], vae=[model, 2])
    groups["Invert, rewrite the prompt, edit"] = g.since(mark)
    return Sheet(g.nodes, g.titles, groups, [MIRROR_NOTE, EDIT_NOTE])


def mirror_stock_ksampler() -> Sheet:
    """The rewritten prompt in stock samplers: ComfyUI's own nodes reconstruct and edit."""
    g, groups = Graph(), {}
    world = g.add("MirrorDemoModel")
    scene = g.add("MirrorDemoScene", seed=SEED, species="fox", edit="species", edit__to="dog")
    image = g.add("VAEEncode", pixels=[scene, 0], vae=[world, 2])
    before = g.add("CLIPTextEncode", "what is in the picture", clip=[world, 1], text=[scene, 1])
    empty = g.add("CLIPTextEncode", "nothing", clip=[world, 1], text="")
    mirror = g.add("RedescribedDDIMInvert", **invert([world, 0], [before, 0], [image, 0], cfg=5.0),
                   negative=[empty, 0], rewriter=[g.add("PromptRewriteOptimizer", **PAPER), 0])
    groups["Invert and rewrite the prompt at cfg 5"] = g.since(0)

    mark = len(g.nodes)
    back = g.add("KSamplerAdvanced", "stock: reconstruct",
                 **stock([world, 0], [mirror, 1], [empty, 0], [mirror, 0], 5.0))
    saved(g, [back, 0], [world, 2], "reconstruction")
    direction = g.add("CLIPDomainDirection", clip=[world, 1], source="fox", target="dog",
                      sentences="template bank: things")
    moved = g.add("MirrorApplyDirection", conditioning=[mirror, 1], direction=[direction, 0], strength=1.0, ramp=0.0)
    edit = g.add("KSamplerAdvanced", "stock: edit",
                 **stock([world, 0], [moved, 0], [empty, 0], [mirror, 0], 5.0))
    saved(g, [edit, 0], [world, 2], "edit")
    picture(g, [scene, 0], "the picture")
    groups["Stock samplers: euler, noise off, the same schedule, cfg and negative"] = g.since(mark)
    return Sheet(g.nodes, g.titles, groups, [STOCK_NOTE])


SHEETS = {"mirror_demo": mirror_demo, "mirror_edit": mirror_edit, "mirror_stock_ksampler": mirror_stock_ksampler}

OURS = {"method": "ours", "method__iterations": 2}
PAPER = {"method": "paper", "method__inner_steps": 10, "method__learning_rate": .01, "method__early_stop": True}


def invert(model, positive, latent, cfg: float = 1.0) -> dict:
    """RedescribedDDIMInvert's inputs as the graphs ship them."""
    return {"model": model, "positive": positive, "latent": latent, "steps": 50, "scheduler": "ddim_uniform",
            "cfg": cfg, "denoise": 1.0, "refine": 0}


def sample(model, mirror, positive) -> dict:
    """MirrorSample's inputs as the graphs ship them."""
    return {"model": model, "mirror": mirror, "positive": positive, "strength": 1.0, "cfg": 2.0, "exact": "source",
            "locality": "auto"}


def stock(model, positive, negative, latent, cfg: float) -> dict:
    return {"model": model, "add_noise": "disable", "noise_seed": 0, "steps": 50, "cfg": cfg, "sampler_name": "euler",
            "scheduler": "ddim_uniform", "positive": positive, "negative": negative, "latent_image": latent,
            "start_at_step": 0, "end_at_step": 10000, "return_with_leftover_noise": "disable"}


def picture(g: Graph, image, title: str) -> None:
    g.add("PreviewImage", title, images=image)


def saved(g: Graph, latent, vae, title: str) -> None:
    decoded = g.add("VAEDecode", samples=latent, vae=vae)
    g.add("SaveImage", title, images=[decoded, 0], filename_prefix="mirror/" + title.replace(" ", "-"))


MIRROR_NOTE = """## Edit a picture by saying what should be there instead

1. **Redescribed DDIM Invert** walks the picture back to noise and rewrites its prompt at every step, so that the way
   forward is a mirror of the way back.
2. **Mirror Sample** walks forward with the edit added. Everything not asked to change stays.
3. **Mirror Report** says how good the mirror is before you look at an edit.

**Edit too weak?** Raise `strength` or `cfg` of Mirror Sample a little. **Too much changed?** Lower them."""

DEMO_NOTE = """## The embedded world

This graph needs no download: the pack brings a small model that draws cartoon animals, and knows the exact answer of
every edit. Change `seed`, or what `edit` changes. For your own pictures open the template **mirror_edit**."""

EDIT_NOTE = """## With your own checkpoint

Pick any SD1.x, SD2 or SDXL checkpoint and a picture whose sides are multiples of 8 (512 x 512 for SD1.5). Say in
*what is in the picture* what you see, then name the change in **CLIP Domain Direction**: what is there, and what should
be there instead. LoRAs, ControlNet and other model patches go between the loader and both mirror nodes."""

STOCK_NOTE = """## No sampler of our own needed

The rewritten prompt is plain CONDITIONING: one text for each step, in adjoining timestep windows. With **euler**, noise
off, and the same steps, scheduler, cfg and negative, a stock sampler gives the picture back. Put the prompt through
**Mirror Apply Direction** and the same sampler edits it. Samplers that look at a step twice (heun, dpm_2, sde) do not
fit the windows."""


def main(argv: list[str]) -> int:
    """Write workflows/*.json from the sheets, as the host that runs here describes its nodes."""
    import json
    from pathlib import Path

    from harness.boot import boot
    from harness.editor import to_ui
    host = boot()
    info, folder = host.object_info(), Path(__file__).parent.parent / "workflows"
    folder.mkdir(exist_ok=True)
    for name, sheet in SHEETS.items():
        path, workflow = folder / f"{name}.json", to_ui(sheet(), info)
        path.write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")
        thumbnail(host, embedded(host.ui_to_api(workflow))).save(path.with_suffix(".jpg"), quality=90)
        print(f"wrote {path} and its thumbnail")
    return 0


def embedded(graph: dict) -> dict:
    """The graph with the embedded model and a scene in place of files that users have."""
    graph = {key: {**entry, "inputs": dict(entry["inputs"])} for key, entry in graph.items()}
    for entry in graph.values():
        if entry["class_type"] == "CheckpointLoaderSimple":
            entry.update(class_type="MirrorDemoModel", inputs={})
        if entry["class_type"] == "LoadImage":
            entry.update(class_type="MirrorDemoScene", inputs={
                **dict.fromkeys(ATTRIBUTES, "from the seed"), "seed": SEED + 1, "species": "cat", "edit": "species",
                "edit.to": "dog"})
    scene = next(k for k, v in graph.items() if v["class_type"] == "MirrorDemoScene")
    for entry in graph.values():
        if entry["inputs"].get("text") == EXAMPLE:
            entry["inputs"]["text"] = [scene, 1]
    return graph


def thumbnail(host, graph: dict):
    """The picture that went in beside the edit that came out, run on the embedded world."""
    import numpy as np
    from PIL import Image
    run = host.run_graph(graph)
    scene = next(k for k, v in graph.items() if v["class_type"] == "MirrorDemoScene")
    edit = next(k for k, v in graph.items() if v["class_type"] == "SaveImage"
                and v["inputs"]["filename_prefix"] == "mirror/edit")
    pair = [run.outputs[scene][0][0], run.outputs[graph[edit]["inputs"]["images"][0]][0][0]]
    both = np.concatenate([np.asarray(p) for p in pair], 1)
    picture = Image.fromarray((both.clip(0, 1) * 255).round().astype(np.uint8))
    return picture.resize((512, 256), Image.Resampling.LANCZOS)
