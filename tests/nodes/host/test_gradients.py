"""Gradients through the loaded model inside the executor, in inference mode, after a KSampler ran on the same model."""

import sys
from contextlib import nullcontext
from types import ModuleType

import pytest
import torch
from support import tiny
from support.tiny import Scene, deep

from harness.graph import node

SIGMA, SHAPE = 2.0, (4, 8, 8)


@pytest.fixture
def measure(host, run_graph):
    """measure(scene, work, **run options) -> work(walk), run inside a node after a KSampler on the same model."""
    denoiser = host.pack_module("nodes.host.denoiser")

    def measure(scene, work, with_gradients=True, **options):
        found = []

        def execute(model, positive, negative, latent):
            assert torch.is_inference_mode_enabled(), "the executor must be as in the server"
            assert next(model.model.diffusion_model.parameters()).is_inference()
            prompts = {"positive": positive, "negative": negative}
            sigmas = torch.tensor([SIGMA, 0.0])
            result, _ = denoiser.run(
                model, latent["samples"], sigmas, prompts, work, evaluations=1000, with_gradients=with_gradients,
                **{"checkpoint": False, **options})
            found.append(result)
            return latent

        first = scene.ksampler(scene.latent, scene.source, scene.empty, 3.0)
        takes = {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent": "LATENT"}
        scene.add(
            node(execute, ("LATENT",), takes), model=scene.model, positive=scene.source, negative=scene.empty,
            latent=first())
        run_graph(scene)
        return found[0]

    return measure


def slope_of_loss(walk, cfg=1.0, hold=False, probe=0.05):
    """(the loss's directional derivative by autograd, by central differences, the gradient)."""
    prompt, negative = walk.prompts["positive"], walk.prompts["negative"].entries
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, *walk.latent_in(torch.zeros(1, *SHAPE)).shape[1:], generator=generator) * SIGMA
    weight = torch.randn(x.shape, generator=generator)
    start = prompt.embedding.float()
    way = torch.randn(start.shape, generator=generator)

    def loss(embedding):
        denoised = walk.denoise(
            x, walk.sigmas[0], prompt.saying(embedding), negative if cfg != 1 else None, cfg,
            hold=negative if hold else None)
        return (weight * denoised).sum()

    with torch.enable_grad():
        leaf = start.clone().requires_grad_(True)
        value = loss(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
    finite = (loss(start + probe * way) - loss(start - probe * way)) / (2 * probe)
    return (gradient * way).sum().item(), finite.item(), gradient


CASES = {
    "plain": {},
    "checkpointed": {"checkpoint": True},
    "guided": {"cfg": 5.0},
    "guided, negative held": {"cfg": 5.0, "hold": True},
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_finite_differences(measure, case):
    settings = dict(CASES[case])
    checkpoint = settings.pop("checkpoint", False)
    autograd, finite, _ = measure(Scene(deep), lambda walk: slope_of_loss(walk, **settings), checkpoint=checkpoint)
    assert abs(finite) > 0.05
    assert autograd == pytest.approx(finite, rel=1e-2)


def leave_inference_tensors(gradients, monkeypatch):
    monkeypatch.setattr(gradients, "NormalTensors", nullcontext)
    monkeypatch.setattr(gradients.NormalWeights, "while_open", lambda self: nullcontext())


def test_every_way_to_the_gradient_gives_the_same(measure, host, monkeypatch):
    plain = measure(Scene(), slope_of_loss)[2]
    checkpointed = measure(Scene(), slope_of_loss, checkpoint=True)[2]
    assert torch.allclose(plain, checkpointed, rtol=1e-4, atol=1e-6)

    # as on a GPU: each layer computes with a private copy of its weight
    gradients = host.pack_module("nodes.host.gradients")
    copies = []

    def wrap(patcher):
        gradients.private_weights(patcher, every=True)
        patcher.add_weight_wrapper("diffusion_model.out.2.weight", lambda w: copies.append(w.is_inference()) or w)

    monkeypatch.setattr(gradients, "raise_memory_estimate", lambda patcher, times: wrap(patcher))
    leave_inference_tensors(gradients, monkeypatch)
    cloned = measure(Scene(), slope_of_loss)[2]
    assert torch.allclose(plain, cloned, rtol=1e-4, atol=1e-6)
    assert copies and not any(copies)


def test_a_network_by_itself_is_differentiated_without_a_look_at_every_function(measure, host, monkeypatch):
    """A patch with inference tensors of its own has every argument looked at, from the first refusal on."""
    gradients, entered = host.pack_module("nodes.host.gradients"), []
    own = gradients.NormalTensors
    monkeypatch.setattr(gradients, "NormalTensors", lambda: entered.append(True) or own())
    plain = measure(Scene(), slope_of_loss)[2]
    assert not entered

    def patched(model):
        model, one = model.clone(), torch.ones(1)
        assert one.is_inference()
        model.set_model_attn2_patch(lambda n, context, value, options: (n * one, context, value))
        return model

    for checkpoint in (False, True):
        entered.clear()
        scene = Scene()
        scene.model = scene.add(node(patched, ("MODEL",), {"model": "MODEL"}), model=scene.model)()
        found = measure(scene, lambda walk: [slope_of_loss(walk)[2] for _ in range(2)][1], checkpoint=checkpoint)
        assert torch.allclose(found, plain, rtol=1e-4, atol=1e-6) and entered


def test_weights_streamed_through_one_buffer_do_not_spoil_the_gradient(measure, host, monkeypatch):
    """A host short of memory copies each layer's weights into one place when the layer runs; autograd can't tell."""
    gradients = host.pack_module("nodes.host.gradients")
    places = {"weight": torch.empty(10**6), "bias": torch.empty(10**4)}

    def stream(patcher, private):
        def through(place):
            return lambda w: place.data[: w.numel()].view(w.shape).copy_(w)  # .data: no record of being overwritten

        for name, module in patcher.model.diffusion_model.named_modules():
            for kind, place in places.items():
                if hasattr(module, "comfy_cast_weights") and getattr(module, kind, None) is not None:
                    patcher.add_weight_wrapper(f"diffusion_model.{name}.{kind}", through(place))
        if private:
            gradients.private_weights(patcher, every=True)

    def gradient(private, checkpoint):
        monkeypatch.setattr(gradients, "raise_memory_estimate", lambda patcher, times: stream(patcher, private))
        return measure(Scene(), slope_of_loss, checkpoint=checkpoint)[2]

    plain = measure(Scene(), slope_of_loss)[2]
    for checkpoint in (False, True):
        assert torch.allclose(gradient(True, checkpoint), plain, rtol=1e-4, atol=1e-6)
    assert (gradient(False, False) - plain).norm() > 0.1 * plain.norm(), "the buffer must be a danger for this to count"


def test_without_these_measures_the_gradient_fails(measure, host, monkeypatch):
    gradients = host.pack_module("nodes.host.gradients")
    leave_inference_tensors(gradients, monkeypatch)
    with pytest.raises(Exception, match="no gradient can be taken"):
        measure(Scene(), slope_of_loss)


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("make, channels", [
    (tiny.sdxl, 4), (tiny.flow, 16), (tiny.flux, 16), (lambda: tiny.unet(v_prediction=True), 4)])
def test_other_families_give_true_gradients(measure, make, channels, checkpoint, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SHAPE", (channels, 8, 8))
    monkeypatch.setattr(f"{__name__}.SIGMA", 0.7)
    scene = Scene(make, latent=lambda: tiny.pictures(channels=channels))
    autograd, finite, _ = measure(scene, slope_of_loss, checkpoint=checkpoint)
    assert autograd == pytest.approx(finite, rel=1e-2, abs=1e-3)


def test_half_precision_keeps_small_gradients(measure):
    """A mean-square loss near its goal sends gradients below half precision's least number into the network."""
    def small(walk):
        prompt = walk.prompts["positive"]
        x = SIGMA * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(5))
        with torch.enable_grad():
            leaf = prompt.embedding.float().requires_grad_(True)
            denoised = walk.denoise(x, walk.sigmas[0], prompt.saying(leaf))
            (gradient,) = torch.autograd.grad(1e-9 * denoised.sum(), leaf)
        return 1e9 * gradient

    exact = measure(Scene(), small)
    for checkpoint in (False, True):
        half = measure(Scene(lambda: tiny.unet(dtype=torch.float16)), small, checkpoint=checkpoint)
        assert torch.nn.functional.cosine_similarity(half.flatten(), exact.flatten(), dim=0) > 0.99
        assert (half - exact).norm() < 0.1 * exact.norm()


def test_attention_patches_see_their_own_block_when_it_runs_again(measure):
    """The host's options change while the network is walked; a checkpointed block must see them as they were."""
    seen = []

    def watch(n, context, value, options):
        seen.append((options["block"], torch.is_grad_enabled()))
        return n, context, value

    def patched(model):
        model = model.clone()
        model.set_model_attn2_patch(watch)
        return model

    scene = Scene()
    scene.model = scene.add(node(patched, ("MODEL",), {"model": "MODEL"}), model=scene.model)()

    def work(walk):
        seen.clear()
        prompt = walk.prompts["positive"]
        x = SIGMA * torch.randn(1, *SHAPE)
        with torch.enable_grad():
            leaf = prompt.embedding.float().requires_grad_(True)
            walk.denoise(x, walk.sigmas[0], prompt.saying(leaf)).sum().backward()
        return [block for block, _ in seen]

    blocks = measure(scene, work, checkpoint=True)
    first, again = blocks[: len(blocks) // 2], blocks[len(blocks) // 2 :]
    assert sorted(again) == sorted(first) and len(first) == len(set(first)) == tiny.LAYERS


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("patch", ["FreeU", "FreeU_V2"])
def test_patches_that_write_in_place_have_true_gradients(measure, patch, checkpoint):
    scene = Scene(deep)
    scene.model = scene.add(patch, model=scene.model, b1=1.3, b2=1.4, s1=0.9, s2=0.2)()
    autograd, finite, _ = measure(scene, slope_of_loss, checkpoint=checkpoint)
    assert autograd == pytest.approx(finite, rel=1e-2) and abs(finite) > 0.02


def state_of(model):
    """What every user of a model shares: its modules' own attributes, parameters and buffers, by identity."""
    return {
        name: ({k: id(v) for k, v in part._parameters.items()}, {k: id(v) for k, v in part._buffers.items()},
               part.__dict__.get("forward"))
        for name, part in model.model.named_modules()
    }


class Packed(torch.Tensor):
    """A weight as other packs quantise them: half its values in memory, its shape and scale beside."""

    @staticmethod
    def of(weight, scale):
        packed = torch.Tensor._make_subclass(Packed, weight)
        packed.scale = scale
        return packed

    def detach(self):
        return self


def quantised(model):
    """A model whose projections are the host's own quantised layers (fp8 with a scale)."""
    import comfy.ops
    from comfy.quant_ops import QuantizedTensor

    mixed = comfy.ops.mixed_precision_ops({}, compute_dtype=torch.float32)
    for part in [p for p in model.model.diffusion_model.modules() if hasattr(p, "to_q")]:
        for name in ("to_q", "to_k", "to_v"):
            old = getattr(part, name)
            new = mixed.Linear(old.in_features, old.out_features, bias=False, device="cpu", dtype=torch.float32)
            new.quant_format, new.layout_type = "float8_e4m3fn", "TensorCoreFP8E4M3Layout"
            packed = QuantizedTensor.from_float(old.weight.data, new.layout_type, scale="recalculate")
            new.weight = torch.nn.Parameter(packed, requires_grad=False)
            setattr(part, name, new)
    return model


def packed(model):
    """A model with layers of another pack: weights of a tensor subclass, unpacked at every call."""

    class Unpacking(torch.nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = torch.nn.Parameter(Packed.of(weight.half(), torch.tensor(2.0)), requires_grad=False)

        def forward(self, x):
            weight = self.weight.as_subclass(torch.Tensor).float() * (self.weight.scale / 2)
            return torch.nn.functional.linear(x, weight)

    for part in [p for p in model.model.diffusion_model.modules() if hasattr(p, "to_q")]:
        part.to_q = Unpacking(part.to_q.weight.data)
    return model


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("make", [quantised, packed])
def test_layers_with_weights_of_their_own_kind(measure, make, checkpoint):
    """The host's quantised layers and other packs' tensor subclasses: true gradients, and the weights stay theirs."""
    models = []

    def made():
        models.append(make(deep()))
        return models[0]

    def work(walk):
        before = state_of(models[0])
        assert any(type(p) is not torch.nn.Parameter for p in models[0].model.diffusion_model.parameters())
        autograd, finite, _ = slope_of_loss(walk)
        assert state_of(models[0]) == before
        return autograd, finite

    autograd, finite = measure(Scene(made), work, checkpoint=checkpoint)
    assert autograd == pytest.approx(finite, rel=1e-2) and abs(finite) > 0.05


def test_the_shared_model_is_never_changed(measure, host):
    """Not its parameters, and not another pack's own `forward` of a block; also when the pass is interrupted."""
    models = []
    scene = Scene(lambda: models.append(tiny.unet()) or models[0])
    calls, before = [], []

    def work(walk):
        block = walk.guider.inner_model.diffusion_model.middle_block[0]
        own = type(block).forward

        def forward(*args, **kwargs):
            calls.append(len(args))
            if len(calls) > 6:
                raise KeyboardInterrupt
            return own(block, *args, **kwargs)

        block.forward = forward
        before.append(state_of(models[0]))
        slope_of_loss(walk)
        assert state_of(models[0]) == before[0]
        calls.extend([0] * 6)
        with pytest.raises(KeyboardInterrupt):
            slope_of_loss(walk)
        assert state_of(models[0]) == before[0]

    measure(scene, work, checkpoint=True)
    assert calls and before[0]["diffusion_model.middle_block.0"][2] is not None


def test_a_torch_that_cannot_be_told_to_leave_compiled_code_is_no_hindrance(host, measure, monkeypatch):
    """2.4 and 2.5 lack the function."""
    monkeypatch.setitem(sys.modules, "torch._dynamo", sys.modules.get("torch._dynamo", ModuleType("torch._dynamo")))
    monkeypatch.delattr(torch.compiler, "set_stance")
    autograd, finite, _ = measure(Scene(deep), slope_of_loss)
    assert autograd == pytest.approx(finite, rel=1e-2)


def test_reservations_of_several_nodes_do_not_multiply(host):
    gradients = host.pack_module("nodes.host.gradients")
    from comfy.patcher_extension import WrapperExecutor, WrappersMP

    patcher = tiny.unet().clone()
    for checkpointed in (True, False, True):
        patcher = patcher.clone()
        gradients.prepare(patcher, checkpointed)
    wrappers = patcher.get_all_wrappers(WrappersMP.PREPARE_SAMPLING)
    shape = WrapperExecutor.new_executor(lambda model, shape: shape, wrappers).execute(patcher, [2, 4, 8, 8])
    assert shape == [2 * gradients.ROOM_PLAIN, 4, 8, 8]
