"""Gradients through the loaded model inside the executor, in inference mode, after a KSampler ran on the same model."""

import pytest
import torch

from harness import tiny
from harness.tiny import Scene, node

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
    autograd, finite, _ = measure(Scene(), lambda walk: slope_of_loss(walk, **settings), checkpoint=checkpoint)
    assert abs(finite) > 0.05
    assert autograd == pytest.approx(finite, rel=1e-2)


def test_every_way_to_the_gradient_gives_the_same(measure, host, monkeypatch):
    plain = measure(Scene(), slope_of_loss)[2]
    checkpointed = measure(Scene(), slope_of_loss, checkpoint=True)[2]
    assert torch.allclose(plain, checkpointed, rtol=1e-4, atol=1e-6)

    # as on a GPU: each layer computes with a private copy of its weight
    gradients = host.pack_module("nodes.host.gradients")
    copies = []

    def wrap(patcher):
        gradients.clone_weights_per_call(patcher)
        patcher.add_weight_wrapper("diffusion_model.out.2.weight", lambda w: copies.append(w.is_inference()) or w)

    monkeypatch.setattr(gradients, "raise_memory_estimate", lambda patcher, times: wrap(patcher))
    monkeypatch.setattr(gradients, "make_weights_normal", lambda module: None)
    cloned = measure(Scene(), slope_of_loss)[2]
    assert torch.allclose(plain, cloned, rtol=1e-4, atol=1e-6)
    assert copies and not any(copies)


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
            gradients.clone_weights_per_call(patcher)

    def gradient(private, checkpoint):
        monkeypatch.setattr(gradients, "raise_memory_estimate", lambda patcher, times: stream(patcher, private))
        return measure(Scene(), slope_of_loss, checkpoint=checkpoint)[2]

    plain = measure(Scene(), slope_of_loss)[2]
    for checkpoint in (False, True):
        assert torch.allclose(gradient(True, checkpoint), plain, rtol=1e-4, atol=1e-6)
    assert (gradient(False, False) - plain).norm() > 0.1 * plain.norm(), "the buffer must be a danger for this to count"


def test_without_these_measures_the_gradient_fails(measure, host, monkeypatch):
    gradients = host.pack_module("nodes.host.gradients")
    monkeypatch.setattr(gradients, "make_weights_normal", lambda module: None)
    with pytest.raises(Exception, match="Inference tensors cannot be saved for backward"):
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
    assert len(first) == 7 and sorted(again) == sorted(first) and len(set(first)) == 7
