"""One code path for eps-, v- and flow-prediction, SD1.x-, SDXL- and SD3-shaped models, any grid and any size."""

import pytest
import torch
from support import tiny
from support.tiny import Scene

from harness.results import GraphFailed
from mirror_ops.measure.metrics import relative_displacement

# Playing back needs a stock sampler that can be given noise as a latent, which flow at sigma 1 can't.
FAMILIES = {
    "v-prediction": (lambda: tiny.unet(v_prediction=True), 4, 0.18215),
    "SDXL": (tiny.sdxl, 4, 0.13025),
    "flow": (tiny.flow, 16, 1.5305),
    "Flux": (tiny.flux, 16, 0.3611),
}


def scene_of(family, **settings):
    make, channels, scale = FAMILIES[family]
    return Scene(make, latent=lambda: tiny.pictures(channels=channels, height=12, width=8, scale=scale), **settings)


def samples(run, output, slot=0):
    return run.outputs[output.id][slot]["samples"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_inverted_refined_rewritten_and_edited(run_graph, family):
    scene = scene_of(family, steps=6, scheduler="simple")
    plain, refined = scene.invert(Scene.NONE, cfg=4.0), scene.invert(Scene.NONE, refine=6)
    unrefined, paper = scene.invert(Scene.NONE), scene.invert(Scene.PAPER, cfg=4.0)
    same = scene.sample(paper, negative=scene.empty, strength=0.0, cfg=4.0)
    edit = scene.sample(paper, negative=scene.empty, positive=scene.text("a photo of a dog"), cfg=4.0)
    run = run_graph(scene)
    at = {made.id: run.outputs[made.id][2].displacement[-1].item() for made in (plain, refined, unrefined, paper)}
    assert torch.isfinite(samples(run, edit)).all() and samples(run, edit).shape[-2:] == (12, 8)
    assert at[refined.id] < at[unrefined.id] / 3
    assert at[paper.id] < at[plain.id]
    back = samples(run, paper, 4)
    for made, slot in ((same, 0), (same, 1), (edit, 1)):
        assert relative_displacement(samples(run, made, slot), back) < 1e-5
    assert relative_displacement(samples(run, edit), back) > 1e-4


@pytest.mark.parametrize("family", ["v-prediction", "SDXL"])
def test_a_stock_ksampler_reproduces_the_reconstruction(run_graph, family):
    scene = scene_of(family, steps=5, scheduler="normal")
    mirror = scene.invert(Scene.PAPER, cfg=4.0)
    stock, plain = (scene.ksampler(mirror(0), positive, scene.empty, 4.0) for positive in (mirror(1), scene.source))
    run = run_graph(scene)
    assert relative_displacement(samples(run, stock), samples(run, mirror, 4)) < 1e-5
    assert relative_displacement(samples(run, plain), samples(run, mirror, 4)) > 1e-4


def test_a_flow_mirror_reaches_sigma_one_and_comes_back(run_graph):
    scene = scene_of("flow", steps=8, scheduler="simple")
    mirror = scene.invert(Scene.NONE, refine=8)
    partial = scene.invert(Scene.NONE, denoise=0.5, steps=4)
    stock = scene.ksampler(partial(0), partial(1), scene.empty, 1.0, steps=8, start_at_step=4)
    run = run_graph(scene)
    assert run.outputs[mirror.id][3][0] == 1.0 and run.outputs[mirror.id][3][-1] == 0.0
    assert run.outputs[mirror.id][2].displacement[-1] < 1e-5
    assert 0.3 < run.outputs[partial.id][3][0] < 0.9
    assert relative_displacement(samples(run, stock), samples(run, partial, 4)) < 1e-5


def test_pooled_prompts_are_recorded_and_edited(run_graph):
    scene = scene_of("SDXL", scheduler="normal")
    mirror = scene.invert(Scene.NONE)
    direction = scene.add(
        "CLIPDomainDirection", clip=scene.clip, source="cat", target="dog", sentences="template bank: things")
    edit = scene.sample(mirror, direction=direction(), cfg=1.0)
    moved = scene.add("MirrorApplyDirection", conditioning=scene.source, direction=direction(), strength=1.0)
    stock = scene.ksampler(mirror(0), moved(), scene.empty, 1.0)
    run = run_graph(scene)
    assert run.outputs[mirror.id][2].pooled.shape == (1, 1, tiny.WIDTH)
    assert run.outputs[direction.id][0].pooled.shape == (1, tiny.WIDTH)
    assert relative_displacement(samples(run, edit), samples(run, stock)) < 1e-5


@pytest.mark.parametrize("label", ["target (null-text family)", "current (pix2pix-zero family)"])
def test_labels_differ_and_partial_walks_agree_with_the_stock_sampler(run_graph, label):
    scene = Scene(steps=5, scheduler="karras")
    mirror = scene.invert(Scene.NONE, label=label, denoise=0.5)
    stock = scene.ksampler(mirror(0), mirror(1), scene.empty, 1.0, steps=10, start_at_step=5)
    run = run_graph(scene)
    assert len(run.outputs[mirror.id][3]) == 6
    assert relative_displacement(samples(run, stock), samples(run, mirror, 4)) < 1e-5
    assert run.outputs[mirror.id][2].provenance.label == label


def test_given_sigmas_and_regularisation(run_graph):
    scene = Scene()
    sigmas = scene.add("KarrasScheduler", steps=4, sigma_max=8.0, sigma_min=0.1, rho=7.0)
    given = scene.invert(Scene.NONE, sigmas=sigmas())
    nudged = {kind: scene.invert(Scene.NONE, regularise=kind) for kind in ("off", "pix2pix-zero", "MirrorDiffusion")}
    run = run_graph(scene)
    assert torch.equal(run.outputs[given.id][3], run.outputs[sigmas.id][0])
    noises = {kind: samples(run, made) for kind, made in nudged.items()}
    assert relative_displacement(noises["pix2pix-zero"], noises["MirrorDiffusion"]) > 1e-4
    assert relative_displacement(noises["off"], noises["MirrorDiffusion"]) > 1e-4


def failure(run_graph, scene):
    with pytest.raises(GraphFailed) as caught:
        run_graph(scene)
    return caught.value.text


@pytest.mark.parametrize("node", ["RedescribedDDIMInvert", "MirrorExactInvert"])
def test_a_family_that_cannot_work_is_refused_by_name(run_graph, node):
    """A model that maps pictures to pictures, and one that reads its text through an adapter of its own."""
    import comfy.model_base

    class Adapter(comfy.model_base.BaseModel):
        def extra_conds(self, **kwargs):
            made = super().extra_conds(**kwargs)
            made["c_crossattn"].cond = 2 * made["c_crossattn"].cond
            return made

    def adapted():
        model = tiny.unet()
        model.model.__class__ = Adapter
        return model

    def invert(scene):
        method = {"method": "bdia", "method__gamma": 0.96} if node == "MirrorExactInvert" else {}
        scene.add(node, model=scene.model, positive=scene.source, latent=scene.latent, cfg=1.0, **scene.grid, **method)
        return failure(run_graph, scene)

    scene = Scene()
    scene.model = scene.add("ModelSamplingDiscrete", model=scene.model, sampling="img_to_img", zsnr=False)()
    assert "BaseModel (IMG_TO_IMG) does not predict the noise" in invert(scene)
    assert "Adapter does not read its positive prompt as one plain embedding" in invert(Scene(adapted))


@pytest.mark.parametrize("patch, words", [
    ({"sampling": "v_prediction", "zsnr": False}, "sampling is EPS; the connected model's is V_PREDICTION"),
    ({"sampling": "eps", "zsnr": True}, "noise schedule is from 0.0292 to 14.6; the connected model's is from 0."),
])
def test_a_mirror_refuses_a_model_patched_to_another_prediction_or_schedule(run_graph, patch, words):
    scene = Scene()
    mirror = scene.invert(Scene.NONE)
    other = scene.add("ModelSamplingDiscrete", model=scene.model, **patch)
    scene.sample(mirror, model=other())
    assert words in failure(run_graph, scene)


def test_a_model_patched_to_velocities_works_as_one(run_graph):
    def mislabelled():  # a v-prediction network in a checkpoint that says eps
        model, other = tiny.unet(v_prediction=True), tiny.unet()
        other.model.diffusion_model = model.model.diffusion_model
        return other

    scene, truth = Scene(mislabelled), Scene(lambda: tiny.unet(v_prediction=True))
    scene.model = scene.add("ModelSamplingDiscrete", model=scene.model, sampling="v_prediction", zsnr=False)()
    made = [s.invert(Scene.PAPER) for s in (scene, truth)]
    runs = [run_graph(s) for s in (scene, truth)]
    latents = [run.outputs[node.id][2].reconstruction for run, node in zip(runs, made, strict=True)]
    assert relative_displacement(*latents).max() < 1e-6
