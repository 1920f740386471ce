"""The windows of guidance's controls on every kind of noise schedule."""

import functools

import pytest
import torch
from support.tiny import Scene, pictures

SAMPLINGS = ["ModelSamplingContinuousEDM", "ModelSamplingContinuousV", "ModelSamplingDiscreteEDM"]


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_without_a_table_of_timesteps_a_window_is_a_part_of_the_logarithms_of_sigma(host, kind):
    import comfy.model_sampling
    window = host.pack_module("nodes.host.guidance_control").Window
    sampling = getattr(comfy.model_sampling, kind)()
    lowest, highest = sampling.sigma_min.log(), sampling.sigma_max.log()
    levels = [(lowest + part * (highest - lowest)).exp() for part in (0.0, 0.2, 0.39, 0.41, 0.8, 1.0)]
    levels = [0 * levels[0], *levels, levels[-1] * 2]

    def held(first, last):
        return [window(first, last, flow=False).holds(sigma, sampling) for sigma in levels]

    assert held(1000, 0) == [True] * 8
    assert held(400, 0) == [True] * 4 + [False] * 4
    assert held(1000, 400) == [False] * 4 + [True] * 4


def test_other_models_keep_their_own_timesteps(host):
    from comfy.model_sampling import ModelSamplingDiscrete, ModelSamplingDiscreteFlow
    window = host.pack_module("nodes.host.guidance_control").Window
    table, flow = ModelSamplingDiscrete(), ModelSamplingDiscreteFlow()
    assert window(400, 400, flow=False).holds(table.sigmas[400], table)
    assert not window(1000, 401, flow=False).holds(table.sigmas[400], table)
    assert window(401, 399, flow=True).holds(torch.tensor(0.4), flow)


def test_proximal_guidance_acts_at_every_step_of_an_edm_model(run_graph):
    """In the default window. A high tau leaves nothing of guidance: the edit is the picture of the negative."""
    scene = Scene(latent=functools.partial(pictures, height=8, width=8), steps=4, scheduler="karras")
    scene.model = scene.add("ModelSamplingContinuousEDM", model=scene.model, sampling="v_prediction", sigma_max=80.0,
                            sigma_min=0.002)()
    patched = scene.add("MirrorProximalGuidance", model=scene.model, proximal_map="soft", threshold="fixed",
                        threshold__tau=100.0)()
    edit = scene.text("a photo of a red dog")
    made = scene.ksampler(scene.latent, edit, scene.source, 7.5, model=patched, add_noise="enable")
    source = scene.ksampler(scene.latent, scene.source, scene.source, 1.0, add_noise="enable")
    free = scene.ksampler(scene.latent, edit, scene.source, 7.5, add_noise="enable")
    run = run_graph(scene)
    made, source, free = (run.outputs[one.id][0]["samples"] for one in (made, source, free))
    assert (made - source).norm() < 1e-4 * source.norm() < 1e-1 * (free - source).norm()
