"""MirrorLatentGuidance and the energies in the real executor."""

import functools

import pytest
import torch
from support import tiny
from support.judge import eye
from support.tiny import Scene, coarse, flow, pictures, sdxl, unet

from harness.graph import give, node
from harness.results import GraphFailed, GraphRejected


class Guided(Scene):
    """A scene with a VAE, an eye, and an empty latent of two pictures."""

    def __init__(self, make=unet, channels=4, **grid):
        empty = functools.partial(torch.zeros, 2, channels, 8, 8)
        super().__init__(make, lambda: {"samples": empty()}, **grid)
        self.vae = self.add(give(tiny.vae, "VAE"))()
        self.eye = self.add(give(eye, "CLIP_VISION"))()
        self.clip_alone = self.add(give(tiny.clip, "CLIP"))()

    def text_energy(self, **changes):
        inputs = {"clip_vision": self.eye, "clip": self.clip_alone, "text": "a red dog", "weight": 500.0, "views": 3}
        return self.add("MirrorTextEnergy", **{**inputs, **changes})

    def guide(self, energy, **changes):
        inputs = {"model": self.model, "positive": self.source, "vae": self.vae, "latent": self.latent,
                  "energy": energy(), "steps": 3, "scheduler": "normal", "cfg": 1.0, "eta": 0.0, "iterations": 4,
                  "step": 0.05, "seed": 3}
        return self.add("MirrorLatentGuidance", **{**inputs, **changes})


def samples(run, output, slot=0):
    return run.outputs[output.id][slot]["samples"]


def energies(run, output, weight):
    """Of each iteration, in units of the weight."""
    lines = run.outputs[output.id][3].splitlines()[3:]
    return [float(line.split()[1]) / weight for line in lines]


@pytest.mark.parametrize("eta", [0.0, pytest.param(0.6, marks=pytest.mark.slow)])
def test_the_energy_falls_below_that_of_an_unled_walk(run_graph, eta):
    scene = Guided()
    found, free = (
        scene.guide(scene.add("MirrorDemoEnergy", attribute="species", attribute__value="dog", weight=weight),
                    eta=eta, steps=2, iterations=10) for weight in (40.0, 1e-3))
    run = run_graph(scene)
    led, unled = energies(run, found, 40.0), energies(run, free, 1e-3)
    assert len(led) == 10 and led[0] == pytest.approx(unled[0], rel=1e-3)
    assert sum(led[-3:]) / 3 < min(unled) - 0.02 and sum(led[-3:]) / 3 < led[0] - 0.05
    latent, unguided = samples(run, found), samples(run, found, 1)
    assert latent.shape == (2, 4, 8, 8) and torch.isfinite(latent).all()
    assert torch.equal(unguided, samples(run, free, 1)) and (latent - unguided).norm() > 0.05 * unguided.norm()


@pytest.mark.every_host
def test_the_gradient_is_that_of_the_hosts_own_picture(host, run_graph):
    """The differentiable way to the embedding against the host's: VAE.decode and encode_image, which rounds pixels."""
    differentiable_clip = host.pack_module("nodes.host.differentiable_clip")
    with torch.inference_mode():
        vae, seen = tiny.vae(), eye()
    z = pictures(2, height=8, width=12)["samples"]
    with torch.inference_mode():
        theirs = vae.decode(z)
        embeds = seen.encode_image(theirs)["image_embeds"]
    with torch.inference_mode(False), torch.enable_grad():
        differentiable_clip.load([vae.patcher, seen.patcher], vae, z.shape)
        leaf = z.clone().requires_grad_()
        ours = differentiable_clip.picture_decoder(vae)(leaf)
        assert torch.allclose(ours.movedim(1, -1), theirs.clone(), atol=1e-5)
        embed = differentiable_clip.embedder(seen)
        assert torch.cosine_similarity(embed(ours), embeds.clone()).min() > 0.9999
        (slope,) = torch.autograd.grad(embed(differentiable_clip.picture_decoder(vae)(leaf))[:, 0].sum(), leaf)
    along = slope / slope.norm()
    with torch.inference_mode(False), torch.no_grad():
        ends = [embed(differentiable_clip.picture_decoder(vae)(z + s * 1e-2 * along))[:, 0].sum() for s in (1, -1)]
    assert float((ends[0] - ends[1]) / 2e-2) == pytest.approx(float(slope.norm()), rel=2e-2)


def test_memory_is_reserved_for_the_gradient_through_the_decoder(host, monkeypatch):
    import comfy.model_management as management
    differentiable_clip, asked = host.pack_module("nodes.host.differentiable_clip"), []
    monkeypatch.setattr(management, "load_models_gpu", lambda models, memory_required=0, **_: asked.append(
        memory_required))
    vae, shape = tiny.vae(), (2, 4, 64, 64)
    differentiable_clip.load([vae.patcher], vae, shape)
    assert asked[0] >= 4 * vae.memory_used_decode(shape, vae.vae_dtype) > 0


@pytest.mark.parametrize("family, make, channels", [
    ("v", functools.partial(unet, v_prediction=True), 4), ("sdxl", sdxl, 4), ("flow", flow, 16)])
def test_other_families(run_graph, family, make, channels):
    scene = Guided(make, channels)
    if family == "flow":
        scene.vae = scene.add(give(functools.partial(wide_vae, 16), "VAE"))()
    found = scene.guide(scene.text_energy(), cfg=2.0, negative=scene.empty, scheduler="simple", iterations=2, eta=0.5,
                        keep="last")
    run = run_graph(scene)
    assert torch.isfinite(samples(run, found)).all()
    assert (samples(run, found) - samples(run, found, 1)).norm() > 0


def test_the_vae_of_another_family_is_refused(run_graph):
    scene = Guided(flow, 16)
    scene.guide(scene.text_energy())
    with pytest.raises(GraphFailed, match="latents have 16 channels, and the VAE decodes those of 4"):
        run_graph(scene)


def wide_vae(channels):
    import comfy.sd
    from comfy.taesd.taesd import TAESD
    weights = tiny.fill(TAESD(latent_channels=channels), 2, 0.05).state_dict()
    weights["vae_scale"], weights["vae_shift"] = torch.tensor(1.0), torch.tensor(0.0)
    return comfy.sd.VAE(sd=weights)


@pytest.mark.every_host
def test_the_noise_draws_the_same_picture_in_a_stock_sampler(run_graph):
    scene = Guided()
    found = scene.guide(scene.text_energy(), cfg=2.0, negative=scene.empty)
    sigmas = scene.add("BasicScheduler", model=scene.model, scheduler="normal", steps=3, denoise=1.0)
    guider = scene.add("CFGGuider", model=scene.model, positive=scene.source, negative=scene.empty, cfg=2.0)
    stock = scene.add("SamplerCustomAdvanced", noise=found(2), guider=guider(), sigmas=sigmas(),
                      sampler=scene.add("KSamplerSelect", sampler_name="euler")(), latent_image=scene.latent)
    run = run_graph(scene)
    assert torch.allclose(samples(run, stock), samples(run, found), rtol=1e-4, atol=1e-4)


def test_a_walk_goes_on_after_an_interruption_bit_for_bit(run_graph, tmp_path, monkeypatch):
    import folder_paths
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    scene = Guided()
    whole = scene.guide(scene.text_energy(), eta=0.5, iterations=4)
    straight = run_graph(scene)
    first = straight.outputs[whole.id][2].noise
    assert first.untyped_storage().nbytes() == first.numel() * first.element_size(), "not a view of all steps' noises"
    scene = Guided()
    made = scene.guide(scene.text_energy(), eta=0.5, iterations=4, resume="mirror/walk")
    stopped = run_graph(scene, interrupt_when=lambda event, data: (
        event == "progress" and data["node"] == made.id and data["value"] >= 7))
    assert stopped.interrupted and (tmp_path / "mirror" / "walk.safetensors").exists()
    again = run_graph(scene)
    assert torch.equal(samples(again, made), samples(straight, whole))
    assert again.outputs[made.id][3] == straight.outputs[whole.id][3]
    scene = Guided()
    scene.guide(scene.text_energy(), eta=0.5, iterations=4, step=0.1, resume="mirror/walk")
    with pytest.raises(GraphFailed, match="other settings .step."):
        run_graph(scene)


def test_a_walk_is_not_resumed_on_another_model_vae_or_lora(run_graph, tmp_path, monkeypatch):
    import folder_paths
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    short = {"iterations": 1, "steps": 2, "resume": "walk"}
    scene = Guided()
    scene.guide(scene.text_energy(), **short)
    run_graph(scene)

    def softened(model):
        model = model.clone()
        name = next(name for name in model.model.state_dict() if name.endswith("to_q.weight"))
        model.add_patches({name: ("diff", (torch.ones_like(model.model.state_dict()[name]),))}, 0.5)
        return model

    soft = node(softened, ("MODEL",), {"model": "MODEL"})
    for named, change in (
        ("model", lambda scene: {"model": scene.add(give(lambda: unet(seed=1), "MODEL"))()}),
        ("model", lambda scene: {"model": scene.add(soft, model=scene.model)()}),
        ("VAE", lambda scene: {"vae": scene.add(give(lambda: tiny.vae(seed=5), "VAE"))()}),
    ):
        scene = Guided()
        scene.guide(scene.text_energy(), **short, **change(scene))
        with pytest.raises(GraphFailed, match=f"other settings .{named}."):
            run_graph(scene)


def test_a_walk_is_not_resumed_with_another_hint_of_a_controlnet(run_graph, tmp_path, monkeypatch):
    import folder_paths
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))

    def walk(shade):
        scene = Guided()
        hint = scene.add(give(lambda: torch.full((1, 64, 64, 3), shade), "IMAGE"))
        control = scene.add(give(tiny.controlnet, "CONTROL_NET"))
        held = scene.add("ControlNetApply", conditioning=scene.source, control_net=control(), image=hint(), strength=1)
        energy = scene.add("MirrorDemoEnergy", attribute="species", attribute__value="dog", weight=2.0)
        scene.guide(energy, positive=held(), steps=1, iterations=1, resume="walk")
        run_graph(scene)

    walk(0.2)
    walk(0.2)
    with pytest.raises(GraphFailed, match="other settings .prompts."):
        walk(0.8)


def test_energies_add_up_and_a_picture_can_be_one(run_graph):
    scene = Guided()
    picture = scene.add(give(lambda: torch.rand(1, 48, 40, 3, generator=torch.Generator().manual_seed(1)), "IMAGE"))
    both = scene.add("MirrorPictureEnergy", clip_vision=scene.eye, image=picture(), weight=100.0, views=2,
                     energy=scene.text_energy(weight=50.0)())
    demo = scene.add("MirrorDemoEnergy", attribute="species", attribute__value="dog", weight=2.0, energy=both())
    made = scene.guide(demo, iterations=2)
    run = run_graph(scene)
    terms = run.outputs[demo.id][0]
    assert [term.weight for term in terms] == [50.0, 100.0, 2.0]
    assert "2 x (species dog)" in run.outputs[made.id][3]


def test_an_empty_latent_is_as_large_as_a_stock_sampler_makes_it(run_graph):
    """It is made for cells of 8 pixels; this model's have 16."""
    scene = Guided(coarse)
    empty = scene.add("EmptyLatentImage", width=192, height=128, batch_size=1)
    found = scene.guide(scene.text_energy(), latent=empty(), steps=2, iterations=1)
    assert samples(run_graph(scene), found).shape == (1, 4, 8, 12)


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_pictures_than_of_latents_is_refused_before_work(run_graph, count):
    scene = Guided()
    scene.latent = scene.add(give(lambda: {"samples": torch.zeros(count, 4, 8, 8)}, "LATENT"))()
    two = scene.add(give(lambda: torch.rand(2, 32, 32, 3), "IMAGE"))
    energy = scene.add("MirrorPictureEnergy", clip_vision=scene.eye, image=two(), weight=100.0, views=2)
    scene.guide(scene.text_energy(energy=energy()))
    with pytest.raises(GraphFailed, match=f"has 2 pictures and `latent` {count}: connect one picture, or one for each"):
        run_graph(scene)


def test_half_precision_keeps_the_gradient_by_the_latent(host, run_graph):
    denoiser = host.pack_module("nodes.host.denoiser")

    def slope(dtype):
        with torch.inference_mode():
            model = unet(dtype=dtype)
            prompt = [[torch.randn(1, 77, tiny.WIDTH, generator=torch.Generator().manual_seed(2)), {}]]
            latent, sigmas = pictures()["samples"], torch.tensor([5.0, 0.0])

        def algorithm(walk):
            with torch.enable_grad():
                x = (walk.latent_in(latent) + 5 * torch.ones(1)).requires_grad_()
                denoised = walk.denoise(x, walk.sigmas[0], walk.prompts["positive"].entries)
                return torch.autograd.grad(1e-9 * (denoised * torch.linspace(-1, 1, 8)).sum(), x)[0]

        return denoiser.run(model, latent, sigmas, {"positive": prompt}, algorithm, evaluations=1,
                            with_gradients=True)[0]

    exact, half = slope(torch.float32), slope(torch.float16)
    assert (half - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("change, message", [
    ({"cfg": 2.0}, "needs a negative prompt"), ({"resume": "../../walk"}, "leads out of it")])
def test_bad_settings_are_refused(run_graph, change, message):
    scene = Guided()
    scene.guide(scene.text_energy(), **change)
    with pytest.raises((GraphFailed, GraphRejected), match=message):
        run_graph(scene)


def test_an_empty_text_is_refused(run_graph):
    scene = Guided()
    scene.guide(scene.text_energy(text=" "))
    with pytest.raises(GraphFailed, match="`text` is empty"):
        run_graph(scene)
