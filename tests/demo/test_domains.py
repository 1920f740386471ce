"""Translation between two models of the embedded world, and the noises that are common to both."""

import pytest
import torch

from harness.graph import Graph, give


@pytest.fixture(scope="module")
def world():
    from bench.world import world
    return world()


@pytest.mark.slow
def test_cats_stay_cats_by_their_own_model_and_become_dogs_by_the_other(world, run_graph):
    """No caption names a species: what changes is what the second model knows."""
    domains = world.host.pack_module("demo.domains")
    scenes = [world.scene.scene(world.scene.HELD_OUT + 40 + i).with_(species="cat") for i in range(4)]
    texts = torch.cat([world.prompt(domains.neutral_caption(s))[0][0] for s in scenes])
    g = Graph()
    model, vae = g.add(give(lambda: world.model, "MODEL"))(), g.add(give(lambda: world.vae, "VAE"))()
    image = g.add(give(lambda: torch.cat([world.image(s) for s in scenes]), "IMAGE"))()
    prompt = g.add(give(lambda: [[texts, {}]], "CONDITIONING"))()
    latent = g.add("VAEEncode", pixels=image, vae=vae)
    models = {s: g.add("MirrorDemoLora", model=model, species=s, strength=1.0)() for s in domains.DOMAINS}
    drawn, seen = {}, {}
    for species, decoder in models.items():
        drawn[species] = g.add(
            "CycleDiffusionEdit", model=models["cat"], decoder=decoder, source=prompt, target=prompt, latent=latent(),
            encoder="dpm-encoder", encoder__seed=0, encoder__eta=0.1, steps=26, scheduler="ddim_uniform", denoise=0.85,
            source_cfg=1.0, cfg=1.0)
        seen[species] = g.add("VAEDecode", samples=drawn[species](), vae=vae)
    run = run_graph(g)
    picture = run.outputs[latent.id][0]["samples"]
    kept = run.outputs[drawn["cat"].id][0]["samples"]
    assert (kept - picture).norm() < 1e-4 * picture.norm(), "encoded and decoded by one model"
    found = {s: world.attributes(run.outputs[seen[s].id][0]) for s in seen}
    assert [f["species"] for f in found["cat"]] == ["cat"] * 4
    assert sum(f["species"] == "dog" for f in found["dog"]) >= 3
    truth = [world.scene.describe(s) for s in scenes]
    others = [found["dog"][k][name] == truth[k][name] for k in range(4) for name in truth[0] if name != "species"]
    assert sum(others) / len(others) > 0.7, "what the noises hold stays"
