"""Which model a mirror was made with: what the fingerprint of weights and patches notices, and what it leaves alone."""

import logging
import re

import pytest
import torch
from support import tiny
from support.tiny import Scene

from harness.graph import give, node
from harness.results import GraphFailed


@pytest.fixture(scope="module")
def identity(host):
    return host.pack_module("nodes.host.identity")


def changed(scene, change):
    """The scene's model as a clone on which `change(clone)` has worked."""

    def execute(model):
        clone = model.clone()
        change(clone)
        return clone

    return scene.add(node(execute, ("MODEL",), {"model": "MODEL"}), model=scene.model)()


def lora(strength, seed=0, layers=slice(None), alpha=2.0):
    """Patches as a LoRA's: a product of two thin matrices for each of the attention's queries."""

    def change(model):
        import comfy.weight_adapter

        generator, patches = torch.Generator().manual_seed(seed), {}
        keys = [key for key in model.model.state_dict() if key.endswith("to_q.weight")]
        for key in keys[layers]:
            rows, columns = model.model.state_dict()[key].shape
            up, down = (torch.randn(shape, generator=generator) for shape in ((rows, 2), (2, columns)))
            patches[key] = comfy.weight_adapter.LoRAAdapter(set(), (up, down, alpha, None, None, None))
        assert model.add_patches(patches, strength)

    return change


def patched(*changes):
    model = tiny.unet()
    for change in changes:
        change(model)
    return model


def test_a_model_with_other_weights_is_refused_by_every_node_that_takes_the_mirror(run_graph):
    other = give(lambda: tiny.unet(seed=1), "MODEL")
    users = {
        "MirrorSample": {"strength": 0.0, "cfg": 1.0, "region": "everywhere"},
        "MirrorCrossAttentionGuidance": {"amount": 0.1},
        "MirrorMutualSelfAttention": {"first_step": 1, "first_layer": 0, "positive": "source", "negative": "none"},
    }
    for name, settings in users.items():
        scene = Scene()
        mirror, model = scene.invert(Scene.NONE), scene.add(other)()
        inputs = {"model": model, "mirror": mirror(2), **settings}
        if name == "MirrorSample":
            inputs["positive"] = scene.source
        used = scene.add(name, **inputs)
        if name != "MirrorSample":
            scene.add(node(lambda model: model, ("MODEL",), {"model": "MODEL"}), model=used())
        with pytest.raises(GraphFailed, match="made with another checkpoint of the same architecture"):
            run_graph(scene)


@pytest.mark.parametrize("change, told", [
    (lora(0.8), "had no patches, the connected model's have patches \\(LoRA or merge: 10 at 0.8"),
    (lora(0.8, layers=slice(1)), "patches \\(LoRA or merge: 1 at 0.8"),
])
def test_a_lora_on_the_same_model_walks_with_a_warning(run_graph, caplog, change, told):
    scene = Scene()
    mirror = scene.invert(Scene.NONE)
    edit = scene.sample(mirror, model=changed(scene, change))
    with caplog.at_level(logging.WARNING):
        run = run_graph(scene)
    assert torch.isfinite(run.outputs[edit.id][0]["samples"]).all()
    assert any(re.search(told, record.message) for record in caplog.records)


def test_a_warning_stands_on_the_node_that_gives_it(run_graph, monkeypatch):
    from server import PromptServer
    told = []

    class Listening:
        def send_progress_text(self, text, node_id, sid=None):
            told.append((node_id, text))

        def __getattr__(self, name):
            return getattr(before, name)

    before = getattr(PromptServer, "instance", None)
    monkeypatch.setattr(PromptServer, "instance", Listening(), raising=False)
    scene = Scene()
    edit = scene.sample(scene.invert(Scene.NONE), model=changed(scene, lora(0.8)))
    run_graph(scene)
    assert [node for node, _ in told] == [edit.id] and "LoRA or merge: 10 at 0.8" in told[0][1]


def test_patches_of_attention_and_the_same_model_pass_without_a_word(run_graph, caplog):
    scene = Scene()
    mirror = scene.invert(Scene.NONE)
    scene.sample(mirror, model=changed(scene, lambda model: model.set_model_attn1_patch(lambda q, k, v, o: (q, k, v))))
    scene.sample(mirror)
    with caplog.at_level(logging.WARNING):
        run_graph(scene)
    assert not [record for record in caplog.records if "mirror" in record.message.lower()]


@pytest.mark.parametrize("looked_at", [64, 3])
def test_strengths_tensors_and_layers_of_a_lora_count_and_their_order_does_not(identity, monkeypatch, looked_at):
    monkeypatch.setattr(identity, "TENSORS", looked_at)
    two = [lora(0.5, seed) for seed in (0, 1)]
    kinds = [patched(), patched(two[0]), patched(lora(0.6)), patched(lora(0.5, 1)), patched(two[0], two[1]),
             patched(lora(0.5, layers=slice(8))), patched(lora(0.5, alpha=1.0))]
    assert len({identity.patches_of(model) for model in kinds}) == len(kinds)
    assert identity.patches_of(patched(*two)) == identity.patches_of(patched(*two[::-1]))
    assert identity.patches_of(patched(lora(0.0))) == ""


def test_the_fingerprint_is_that_of_the_weights_without_patches_wherever_they_lie(identity):
    import comfy.model_management as management

    plain, model = tiny.unet(), patched(lora(0.8))
    expected = identity.fingerprint(plain, "diffusion_model.")
    assert identity.fingerprint(model, "diffusion_model.") == expected
    management.load_models_gpu([model], force_full_load=True)
    assert model.backup, "patched in place"
    assert identity.fingerprint(model, "diffusion_model.") == expected
    management.unload_all_models()
    assert identity.fingerprint(model, "diffusion_model.") == expected
    assert identity.fingerprint(tiny.unet(seed=1), "diffusion_model.")[1] != expected[1]


def test_a_compiled_model_is_the_same_model_and_a_lora_beside_the_weights_counts(identity):
    model = tiny.unet()
    plain = identity.fingerprint(model, "diffusion_model.")
    model.model.diffusion_model = torch.compile(model.model.diffusion_model)
    assert identity.fingerprint(model, "diffusion_model.") == plain
    model.set_injections("bypass_lora", [])
    assert "bypass_lora" in identity.patches_of(model)


def test_one_changed_layer_out_of_many_that_are_looked_at_is_noticed(identity):
    model = tiny.unet()
    before = identity.fingerprint(model, "diffusion_model.")
    names = sorted(name for name, _ in model.model.named_parameters() if name.startswith("diffusion_model."))
    looked = names[:: max(1, len(names) // identity.TENSORS)][7]
    with torch.no_grad():
        model.model.get_parameter(looked).mul_(1.01)
    assert identity.fingerprint(model, "diffusion_model.") != before


def test_another_precision_is_a_difference_that_passes(identity):
    single, half = (identity.identity(tiny.unet(dtype=dtype)) for dtype in (torch.float32, torch.float16))
    single.require(half, "This mirror")
    assert single.differences(half) == ["its weights were float32, the connected model's are float16"]


def test_weights_in_tensor_subclasses_are_read_as_they_are_stored(identity, monkeypatch):
    """The host's quantised tensors, and subclasses as GGUF loaders have them: neither is unpacked."""
    from comfy.quant_ops import QuantizedTensor

    def quantised(seed):
        weight = torch.randn(32, 16, generator=torch.Generator().manual_seed(seed))
        return QuantizedTensor.from_float(weight, "TensorCoreFP8E4M3Layout", scale=torch.tensor(0.01))

    class Packed(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            assert "dequant" not in getattr(function, "__name__", "")
            return super().__torch_function__(function, types, args, kwargs or {})

    monkeypatch.setattr(QuantizedTensor, "dequantize", lambda self: pytest.fail("a weight was dequantised"))
    assert identity.sampled(quantised(0)) == identity.sampled(quantised(0)) != identity.sampled(quantised(1))
    packed = torch.arange(64, dtype=torch.uint8).reshape(8, 8).as_subclass(Packed)
    assert identity.sampled(packed) == bytes(range(64))
