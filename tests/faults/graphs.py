"""Graphs around one node of the pack: a valid value for each of its inputs, taken from its schema."""

import sys
from functools import cache

import torch
from support import tiny
from support.judge import eye
from support.tiny import Scene, pictures

from harness.graph import give

SOURCE, TARGET = "a photo of a cat sitting on a car", "a photo of a dog sitting on a car"
SMALL = {  # what keeps a node quick, or what it needs to work at all
    "steps": 2, "iterations": 1, "inner_steps": 1, "views": 1, "trials": 1, "tile": 32, "scheduler": "simple",
    "source_cfgs": "1", "cfgs": "2", "strengths": "1", "source_text": SOURCE, "target_text": TARGET, "text": SOURCE,
    "words": "cat", "mask_words": "cat", "model": "nowhere", "denoise": 1.0, "first_step": 0, "first_layer": 0,
    "sentences": "as given", "filename_prefix": "faults/made", "count": 2, "draws": 1,
}
LEFT_OUT = {"sigmas", "decoder", "decoder_negative", "edit_model"}  # valid, but they replace what is to be tried
FILES = {"MirrorLoadTrajectory": "trajectory", "MirrorLoadDirection": "direction", "CycleDiffusionLoad": "noises"}


def distilled():
    """UPSCALE_MODEL: an untrained edit, as Load Upscale Model reads it."""
    from spandrel import ModelLoader

    from mirror_ops.distillation.network import Shape, make
    made = ModelLoader(device="cpu").load_from_state_dict(make(Shape()).state_dict()).eval()
    made.patcher = tiny.patcher(made.model)
    return made


@cache
def sources() -> dict:
    """Type -> the node that makes a valid value of it."""
    photo = {"IMAGE": lambda: torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(4)),
             "MASK": lambda: torch.ones(1, 64, 64), "VAE": tiny.vae, "CLIP_VISION": eye,
             "SIGMAS": lambda: torch.tensor([9.0, 2.0, 0.0]), "UPSCALE_MODEL": distilled}
    return {kind: give(make, kind) for kind, make in photo.items()}


@cache
def counted() -> tuple[str, list]:
    """(node that gives a tiny model, one entry for each pass through its network)."""
    passes = []

    def make():
        model = tiny.unet()
        model.model.diffusion_model.register_forward_pre_hook(lambda *_: passes.append(1))
        return model

    return give(make, "MODEL"), passes


@cache
def latent() -> str:
    return give(pictures, "LATENT")


@cache
def encoder() -> str:
    return give(tiny.clip, "CLIP")


class Around(Scene):
    """A graph in which every type that the pack takes can be had. Equal graphs come from the host's cache."""

    def __init__(self):
        dict.__init__(self)
        self.grid = {"steps": 2, "scheduler": "simple"}
        self.model, self.clip = self.add(counted()[0])(), self.add(encoder())()
        self.latent, self.source = self.add(latent())(), None
        self.source, self.target, self.empty = (self.text(words) for words in (SOURCE, TARGET, ""))
        self.links = {"MODEL": self.model, "CLIP": self.clip, "LATENT": self.latent, "CONDITIONING": self.source}
        self.links |= {kind: self.add(maker)() for kind, maker in sources().items()}
        walk = {"model": self.model, "positive": self.source, "latent": self.latent, **self.grid}
        mirror = self.add("RedescribedDDIMInvert", **walk, cfg=1.0)
        code = self.add("CycleDiffusionEncode", **walk, cfg=1.0, denoise=1.0, encoder="dpm-encoder", encoder__seed=1,
                        encoder__eta=0.5)
        direction = self.add("CLIPDomainDirection", clip=self.clip, source="a cat\na red cat",
                             target="a dog\na red dog", sentences="as given")
        energy = self.add("MirrorDemoEnergy", attribute="species", attribute__value="cat", weight=1.0)
        edit = self.add("MirrorEdit", **self.grid, model=self.model, source=self.source, target=self.target,
                        strength=1.0, latent=self.latent, settings="balanced", seed=1, region="auto")
        report = sys.modules["nodes"].NODE_CLASS_MAPPINGS["MirrorEdit"].RETURN_TYPES.index("MIRROR_REPORT")
        rewriter = self.add("PromptRewriteOptimizer", method="none")
        self.links |= {"MIRROR": mirror(2), "MIRROR_CODE": code(4), "MIRROR_DIRECTION": direction(),
                       "MIRROR_ENERGY": energy(), "MIRROR_REWRITER": rewriter(), "MIRROR_REPORT": edit(report)}

    def given(self, name: str, described: dict) -> dict:
        """Inputs with which the node runs (or, where it needs a language model, says that there is none)."""
        inputs = {}
        for needed in ("required", "optional"):
            for key, entry in described["input"].get(needed, {}).items():
                if key not in LEFT_OUT:
                    inputs |= self._value(name, key, entry)
        return inputs

    def chosen(self, name: str, described: dict, key: str, which: int) -> dict:
        """The inputs of a dynamic choice with which the node runs, for its option `which`."""
        both = {**described["input"].get("required", {}), **described["input"].get("optional", {})}
        return self._value(name, key, both[key], which)

    def _value(self, name: str, key: str, entry, which: int = 0) -> dict:
        kind, options = entry[0], entry[1] if len(entry) > 1 else {}
        if kind == "COMFY_DYNAMICCOMBO_V3":
            option = options["options"][which]
            parts = option["inputs"].get("required", {})
            nested = [self._value(name, inner, part) for inner, part in parts.items()]
            return {key: option["key"], **{f"{key}.{k}": v for part in nested for k, v in part.items()}}
        if kind == "COMFY_AUTOGROW_V3":
            return {f"{key}.image0": self.links["IMAGE"]}
        if kind in self.links:
            return {key: {"target": self.target, "negative": self.empty}.get(key, self.links[kind])}
        if key == "file":
            return {key: f"faults/{FILES[name]}_00001_.safetensors"}
        if kind in ("COMBO", "INT", "FLOAT", "BOOLEAN", "STRING") or isinstance(kind, list):
            choices = options.get("options") or (kind if isinstance(kind, list) else [""])
            return {key: SMALL.get(key, options.get("default", choices[0]))}
        raise KeyError(f"{name} takes a {kind}, for which this has no valid value: add one to Around.")

    def around(self, name: str, described: dict, **changes) -> str:
        """Adds the node; what gives a MODEL, whose faults show only when it is used, is also sampled with. Its id."""
        made = self.add(name)
        self[made.id]["inputs"] = {**self.given(name, described), **changes}
        if "MODEL" in described["output"] and name != "MirrorDemoModel":
            self.add("MirrorSample", model=made(described["output"].index("MODEL")), mirror=self.links["MIRROR"],
                     positive=self.target, strength=1.0, cfg=1.5, region="everywhere")
        return made.id

    def save_files(self) -> None:
        """What the loaders read."""
        self.add("MirrorSaveTrajectory", mirror=self.links["MIRROR"], filename_prefix="faults/trajectory")
        self.add("MirrorSaveDirection", direction=self.links["MIRROR_DIRECTION"], filename_prefix="faults/direction")
        self.add("CycleDiffusionSave", code=self.links["MIRROR_CODE"], filename_prefix="faults/noises")
