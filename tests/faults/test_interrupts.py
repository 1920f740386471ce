"""Interrupts and exceptions in the middle of every long node: nothing is left patched, and the next stock KSampler
gives the same picture, bit for bit."""

import random
from collections import Counter

import pytest
import torch
from support import tiny
from support.judge import eye
from support.tiny import Scene, pictures

from harness.graph import give
from harness.results import GraphFailed

from .verdict import orphans

pytestmark = pytest.mark.faults
ROUNDS, PARTS, SEED = 500, 10, 7
LORA = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k"
PAPER = {"method": "paper", "method__inner_steps": 2, "method__learning_rate": 0.02, "method__early_stop": False}
NULL_TEXT = {**PAPER, "method": "null text"}
QUANTILE = {"threshold": "quantile", "threshold__quantile": 0.7, "threshold__over": "each picture"}


class Planned(Exception):
    """The exception that a network raises here on purpose."""


class Trap:
    """A tiny model whose network stops at a planned pass: as the Cancel button, or with an exception."""

    def __init__(self):
        self.passes, self.at, self.strike, self.patcher = 0, None, None, None
        self.source = give(self.make, "MODEL")

    def make(self):
        """The same patcher each time, first built in the executor: its weights are inference tensors, as a loader's."""
        if self.patcher is None:
            self.patcher = tiny.unet()
            self.patcher.model.diffusion_model.register_forward_pre_hook(self.step)
        return self.patcher

    def step(self, *_) -> None:
        self.passes += 1
        if self.passes == self.at:
            self.strike()

    def state(self) -> dict:
        """All that a node could leave changed on what others share."""
        model = self.patcher.model
        network = model.diffusion_model
        return {
            "weights": {name: (type(w), w.dtype, w.requires_grad, w.double().sum().item(), w.double().norm().item())
                        for name, w in network.named_parameters()},
            "replaced": sorted((name, key) for name, module in network.named_modules() for key in vars(module)
                               if callable(vars(module)[key]) and key in ("forward", "__call__")),
            "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()),
            "object patches": sorted(self.patcher.object_patches), "patches": sorted(self.patcher.patches),
            "options": repr(sorted(self.patcher.model_options.items(), key=str)),
            "wrappers": repr(self.patcher.wrappers), "hook weights": len(self.patcher.hook_patches),
            "gradients": torch.is_grad_enabled(), "network": sorted(vars(network)), "model": sorted(vars(model)),
        }


def lora_file(host) -> None:
    from safetensors.torch import save_file
    generator = torch.Generator().manual_seed(0)
    weights = {f"{LORA}.lora_{way}.weight": torch.randn(shape, generator=generator)
               for way, shape in (("down", (4, tiny.WIDTH)), ("up", (64, 4)))}
    file = host.base / "models" / "loras" / "faults.safetensors"
    save_file({**weights, f"{LORA}.alpha": torch.tensor(4.0)}, str(file))


class Long(Scene):
    """A graph with one long node. `worn`: nothing, a LoRA hook or a ControlNet on its prompts."""

    def __init__(self, source: str, worn: str):
        dict.__init__(self)
        self.grid = {"steps": 4, "scheduler": "simple"}
        self.model = self.add(source)()
        self.clip = self.add(CLIP())()
        self.latent = self.add(LATENT())()
        self.source, self.empty = self.text("a photo of a cat"), self.text("")
        self.target = self.text("a photo of a dog")
        getattr(self, worn)()

    def bare(self) -> None:
        pass

    def lora(self) -> None:
        hooks = self.add("CreateHookLora", lora_name="faults.safetensors", strength_model=1.0, strength_clip=0.0)()
        for name in ("source", "target", "empty"):
            made = self.add("ConditioningSetProperties", cond_NEW=getattr(self, name), hooks=hooks, strength=1.0,
                            set_cond_area="default")
            setattr(self, name, made())

    def controlnet(self) -> None:
        net, hint = self.add(NET())(), self.add(HINT())()
        for name in ("source", "target"):
            made = self.add("ControlNetApplyAdvanced", positive=getattr(self, name), negative=self.empty, image=hint,
                            control_net=net, strength=1.0, start_percent=0.0, end_percent=1.0)
            setattr(self, name, made(0))

    def walk(self) -> dict:
        return {"model": self.model, "latent": self.latent, **self.grid}

    def exact(self):
        self.add("MirrorExactInvert", **self.walk(), positive=self.source, cfg=2.0, negative=self.empty,
                 method="edict", method__mixing=0.93)

    def encode(self):
        self.add("CycleDiffusionEncode", **self.walk(), positive=self.source, cfg=2.0, negative=self.empty,
                 denoise=1.0, encoder="dpm-encoder", encoder__seed=1, encoder__eta=0.5)

    def cycle(self):
        self.add("CycleDiffusionEdit", **self.walk(), source=self.source, target=self.target, source_cfg=1.0, cfg=2.0,
                 negative=self.empty, denoise=1.0, encoder="dpm-encoder", encoder__seed=1, encoder__eta=0.5)

    def from_seed(self):
        self.add("MirrorFromSeed", **self.walk(), positive=self.source, cfg=2.0, negative=self.empty, seed=3)

    def edit(self):
        self.add("MirrorEdit", **self.walk(), source=self.source, target=self.target, settings="balanced", seed=1,
                 strength=1.0, region="auto", negative=self.empty)

    def rewritten(self):
        self.sample(self.invert(PAPER))

    def null_text(self):
        self.sample(self.invert(NULL_TEXT, cfg=2.0), positive=self.target, negative=self.empty, region="auto")

    def latent_guidance(self):
        energy = self.add("MirrorDemoEnergy", attribute="species", attribute__value="cat", weight=1.0)
        self.add("MirrorLatentGuidance", **{**self.walk(), "steps": 2}, positive=self.source, vae=self.add(VAE())(),
                 energy=energy(), cfg=1.0, eta=0.0, iterations=2, step=0.05, seed=1)

    def guided(self, kind: str, **inputs):
        mirror = self.invert(self.NONE)
        model = self.add(kind, model=self.model, mirror=mirror(2), **inputs)()
        self.sample(mirror, model=model, positive=self.target)

    def cross_attention(self):
        self.guided("MirrorCrossAttentionGuidance", amount=0.1)

    def self_attention(self):
        self.guided("MirrorMutualSelfAttention", first_step=1, first_layer=0, positive="source", negative="source")

    def prompt_to_prompt(self):
        self.guided("MirrorPromptToPrompt", clip=self.clip, source_text="a photo of a cat", mode="replace",
                    target_text="a photo of a dog", cross_until=0.8, self_until=0.5)

    def inversion_guidance(self):
        self.guided("MirrorInversionGuidance", step_size=0.5, dilation=1, first_timestep=1000, **QUANTILE)

    def maps(self):
        mirror = self.invert(self.NONE)
        self.add("MirrorAttentionMaps", model=self.model, mirror=mirror(2), clip=self.clip, text="a photo of a cat",
                 words="cat")

    def rank(self):
        judge = {"clip_vision": self.add(EYE())(), "clip": self.clip, "source_text": "a cat", "target_text": "a dog"}
        self.add("CycleDiffusionRank", model=self.model, vae=self.add(VAE())(), image=self.add(HINT())(), **self.grid,
                 source=self.source, target=self.target, negative=self.empty, encoder="dpm-encoder", encoder__seed=1,
                 encoder__eta=0.5, trials=1, source_cfgs="1", cfgs="1, 2", strengths="0.5, 1", **judge)

    def proximal(self):
        mirror = self.invert(self.NONE)
        model = self.add("MirrorProximalGuidance", model=self.model, proximal_map="soft", **QUANTILE)()
        self.sample(mirror, model=model, positive=self.target)


LONG = ("exact", "encode", "cycle", "from_seed", "edit", "rewritten", "null_text", "latent_guidance", "cross_attention",
        "self_attention", "prompt_to_prompt", "inversion_guidance", "maps", "rank", "proximal")
WORN = ("bare", "lora", "controlnet")
MADE: dict[str, str] = {}


def once(name: str, make, kind: str) -> str:
    """The node that gives this value; the same one whenever it is asked for."""
    return MADE.setdefault(name, give(make, kind)) if name not in MADE else MADE[name]


def CLIP() -> str:
    return once("clip", tiny.clip, "CLIP")


def LATENT() -> str:
    return once("latent", pictures, "LATENT")


def VAE() -> str:
    return once("vae", tiny.vae, "VAE")


def EYE() -> str:
    return once("eye", eye, "CLIP_VISION")


def NET() -> str:
    return once("net", tiny.controlnet, "CONTROL_NET")


def HINT() -> str:
    return once("hint", lambda: torch.ones(1, 64, 64, 3) * 0.5, "IMAGE")


@pytest.fixture(scope="module")
def trap(host):
    lora_file(host)
    return Trap()


def stock(host, trap) -> torch.Tensor:
    """What a stock KSampler makes with the model."""
    trap.at = None
    graph = Long(trap.source, "bare")
    made = graph.add("KSampler", model=graph.model, positive=graph.source, negative=graph.empty, seed=5, cfg=2.0,
                     latent_image=graph.latent, sampler_name="euler", denoise=1.0, **{**graph.grid, "steps": 2})
    return host.run_graph(graph).outputs[made.id][0]["samples"]


@pytest.fixture(scope="module")
def before(host, trap):
    """(the stock picture, the state) before anything went wrong; each long node's passes, counted in a whole run."""
    picture, state, passes = stock(host, trap), trap.state(), {}
    for name in LONG:
        for worn in WORN:
            graph = Long(trap.source, worn)
            getattr(graph, name)()
            trap.passes, trap.at = 0, None
            host.run_graph(graph)
            passes[name, worn] = trap.passes
    assert trap.state() == state, "already a whole run leaves something behind"
    assert torch.equal(stock(host, trap), picture)
    return picture, state, passes


def stop(host, trap, name: str, worn: str, at: int, kind: str) -> None:
    """Runs one long node up to its pass `at`, where it is stopped."""
    graph = Long(trap.source, worn)
    getattr(graph, name)()
    trap.passes, trap.at = 0, at

    def raises():
        raise Planned(kind)

    trap.strike = raises if kind == "exception" else lambda: host.nodes.interrupt_processing(True)
    try:
        assert host.run_graph(graph).interrupted, "was not interrupted"
    except GraphFailed as failure:
        assert "Planned" in str(failure), failure
        assert kind == "exception"


@pytest.fixture(scope="module")
def stops(figures):
    """How often a node was stopped in which way."""
    found = Counter()
    yield found
    figures(f"stopped at random in {len(LONG)} long nodes x {WORN}, nothing left: {dict(found)}")


@pytest.mark.parametrize("part", range(PARTS))
def test_what_is_stopped_leaves_nothing_behind(host, trap, before, stops, part):
    picture, state, passes = before
    dice = random.Random(f"{SEED} {part}")
    for _ in range(ROUNDS // PARTS):
        (name, worn), kind = dice.choice(list(passes)), dice.choice(("interrupt", "exception"))
        at = dice.randint(1, passes[name, worn])
        stop(host, trap, name, worn, at, kind)
        left = {key: value for key, value in trap.state().items() if value != state[key]}
        assert not left, f"{kind} at pass {at} of {name} with {worn} leaves {str(left)[:500]}"
        assert torch.equal(stock(host, trap), picture), f"{kind} at pass {at} of {name} with {worn}"
        stops[kind] += 1
    assert not orphans()
