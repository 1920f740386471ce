"""A mirror from a seed: the stock sampler's own way, recorded, and edited without an inversion."""

import pytest
import torch
from support.tiny import Scene, coarse, sdxl, unet

from harness.graph import node
from harness.results import GraphRejected

CFG, EDIT = 3.0, "a photo of a dog sitting on a car"


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


def from_seed(scene, **changes):
    inputs = {"model": scene.model, "positive": scene.source, "negative": scene.empty, "latent": scene.latent,
              "seed": 3, "cfg": CFG, **scene.grid}
    return scene.add("MirrorFromSeed", **{**inputs, **changes})


@pytest.mark.every_host
@pytest.mark.parametrize("make, scheduler", [(unet, "normal"), (sdxl, "ddim_uniform")])
def test_a_mirror_from_a_seed_is_the_way_of_the_stock_sampler(run_graph, make, scheduler):
    scene = Scene(make, lambda: {"samples": torch.zeros(2, 4, 8, 12)}, steps=4, scheduler=scheduler)
    mirror = from_seed(scene)
    stock = scene.add("KSampler", model=scene.model, seed=3, cfg=CFG, sampler_name="euler", positive=scene.source,
                      negative=scene.empty, latent_image=scene.latent, denoise=1.0, **scene.grid)
    back = scene.sample(lambda slot: mirror(1), negative=scene.empty, cfg=CFG)
    report = scene.add("MirrorReport", mirror=mirror(1))
    run = run_graph(scene)
    picture = run.outputs[mirror.id][0]["samples"]
    assert distance(picture, run.outputs[stock.id][0]["samples"]) < 1e-6
    for slot in (0, 1):
        assert distance(run.outputs[back.id][slot]["samples"], picture) < 1e-5
    made = run.outputs[mirror.id][1]
    assert torch.equal(made.latents, made.reconstruction) and made.provenance.forwards == 2 * made.steps
    assert run.outputs[report.id][1] == 0


@pytest.mark.every_host
def test_an_empty_latent_is_as_large_as_a_stock_sampler_makes_it(run_graph):
    """It is made for cells of 8 pixels; this model's have 16."""
    scene = Scene(coarse, steps=2)
    scene.latent = scene.add("EmptyLatentImage", width=192, height=128, batch_size=1)()
    mirror = from_seed(scene)
    stock = scene.add("KSampler", model=scene.model, seed=3, cfg=CFG, sampler_name="euler", positive=scene.source,
                      negative=scene.empty, latent_image=scene.latent, denoise=1.0, **scene.grid)
    run = run_graph(scene)
    picture = run.outputs[mirror.id][0]["samples"]
    assert picture.shape == (1, 4, 8, 12)
    assert distance(picture, run.outputs[stock.id][0]["samples"]) < 1e-6


def test_a_synthetic_edit_keeps_to_its_noise_mask(run_graph):
    """In MirrorSample, by the mirror's mask; in the stock sampler, by the latent's."""
    scene = Scene(steps=4, latent=lambda: {"samples": torch.zeros(1, 4, 8, 8)})
    left = scene.add(node(lambda: torch.cat([torch.ones(1, 64, 32), torch.zeros(1, 64, 32)], dim=2), ("MASK",)))
    masked = scene.add("SetLatentNoiseMask", samples=scene.latent, mask=left())
    mirror = from_seed(scene, latent=masked())
    model = scene.add("MirrorCrossAttentionGuidance", model=scene.model, mirror=mirror(1), amount=2.0)()
    ours = scene.sample(lambda slot: mirror(1), model=model, positive=scene.text(EDIT), cfg=CFG, exact="source",
                        negative=scene.empty)
    picture = scene.add("SetLatentNoiseMask", samples=mirror(0), mask=left())
    theirs = scene.add("KSampler", model=model, seed=3, cfg=CFG, sampler_name="euler", positive=scene.text(EDIT),
                       negative=scene.empty, latent_image=picture(), denoise=1.0, **scene.grid)
    run = run_graph(scene)
    before = run.outputs[mirror.id][0]["samples"]
    for made in (ours, theirs):
        after = run.outputs[made.id][0]["samples"]
        assert torch.allclose(after[..., 4:], before[..., 4:], rtol=0, atol=1e-4)
        assert distance(after[..., :4], before[..., :4]) > 1e-3


def test_guidance_without_a_negative_prompt_is_refused(run_graph):
    scene = Scene(steps=4)
    from_seed(scene)
    del list(scene.values())[-1]["inputs"]["negative"]
    with pytest.raises(GraphRejected, match="needs a negative prompt"):  # shown at the node, before anything runs
        run_graph(scene)
