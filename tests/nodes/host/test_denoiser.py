"""What a run leaves to the host: the model as it was, and one that can be unloaded."""

import gc

import pytest
from support import tiny
from support.tiny import Scene

from harness.results import GraphFailed


def test_the_host_can_unload_a_model_whose_walk_was_stopped(run_graph):
    """A loaded model whose patcher has died is never unloaded, and costs a garbage collection at every prompt."""
    from comfy.model_management import current_loaded_models
    made = []

    def stops(*_):
        raise RuntimeError("stopped on purpose")

    def make():
        made[:] = made or [tiny.unet()]
        return made[0]

    scene = Scene(make)
    mirror = scene.invert(Scene.NONE)
    run_graph(scene, cached=True)
    scene.add("MirrorAttentionMaps", model=scene.model, mirror=mirror(2), clip=scene.clip, words="cat", largest=32,
              text="a photo of a cat sitting on a car")
    made[0].model.diffusion_model.register_forward_pre_hook(stops)
    with pytest.raises(GraphFailed, match="stopped on purpose"):
        run_graph(scene, cached=True)
    gc.collect()
    assert any(loaded.real_model() is made[0].model for loaded in current_loaded_models)
    assert not any(loaded.is_dead() for loaded in current_loaded_models)
