"""CycleDiffusion as a whole, in the maths: against the published loop, on every grid of the host, and kept in files."""

import pytest
import torch
from support.toys import generators, karras, mixture, normals, one_by_one, pictures, scaled_linear_sigmas, told

from mirror_ops.guidance.classifier_free import of_positive
from mirror_ops.stochastic.dpm_encoder import cycle_diffusion, dpm_decode, dpm_encode, posterior
from mirror_ops.stochastic.edit_friendly import independent
from mirror_ops.stochastic.noise_code import NoiseCode, load_code, save_code
from mirror_ops.stochastic.sdedit import sdedit
from mirror_ops.walks.schedules import paper_grid

FACTS = {"encoder": "dpm-encoder", "seed": 3, "eta": 0.5, "cfg": 1.0, "flow": False, "sigma_max": 14.6,
         "network": "float64", "latent_format": "SD15"}


@pytest.mark.parametrize("path", [posterior, independent])
@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
def test_round_trips_in_float64_on_every_schedule_of_the_host(host, path, eta):
    import comfy.model_sampling
    import comfy.samplers

    sampling = comfy.model_sampling.ModelSamplingDiscrete()
    grids = {name: comfy.samplers.calculate_sigmas(sampling, name, 20) for name in comfy.samplers.SCHEDULER_NAMES}
    grids["papers"] = paper_grid(sampling.sigmas, 20)
    denoise, x = of_positive(mixture(), 5.0, negative=-0.4), pictures(1)
    for name, sigmas in grids.items():
        sigmas = sigmas.double()
        code = dpm_encode(denoise, x, sigmas, 0.1, eta, generators(len(x)), path=path)
        back = dpm_decode(denoise, code.latents[0], code.noises, sigmas, 0.1, eta)
        assert (back - x).abs().max() < 1e-10, name
        without = dpm_decode(denoise, code.latents[0], [*code.noises[:-1], 0 * x], sigmas, 0.1, eta)
        assert (without - x).abs().max() > 1e-6, f"{name}: the last noise is part of the picture"


@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_the_whole_loop_is_the_published_one(eta):
    """The encoder and decoder of the Stable Diffusion code on its own grid, 1 + 10 k, in variance-preserving latents.

    One difference: there the last latent is x0 itself, here it is x0 at the scale of the last level.
    """
    sigmas = paper_grid(scaled_linear_sigmas(), 99)[29:]  # 99 steps, of which the first 29 are skipped
    assert len(sigmas) == 71
    denoise, x0, alpha = mixture(), pictures(1), 1 / (1 + sigmas**2)
    cfg, source, target, nothing, generator = 3.0, 0.1, 0.8, -0.4, generators(len(x0))

    def normal():
        return normals(generator, *x0.shape[1:])

    def predicted(x, i, text):
        clean = denoise(x / alpha[i].sqrt(), sigmas[i], text)
        return (x - alpha[i].sqrt() * clean) / (1 - alpha[i]).sqrt()

    def mean_of(x, e, a, b, s):
        clean = (x - (1 - a).sqrt() * e) / a.sqrt()
        return b.sqrt() * clean + (1 - b - s**2).sqrt() * e

    def spread(a, b):
        return eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()

    x = x_start = alpha[0].sqrt() * x0 + (1 - alpha[0]).sqrt() * normal()
    noises = []
    for i in range(70):
        a, b = alpha[i], alpha[i + 1]
        s = spread(a, b)
        e0 = (x - a.sqrt() * x0) / (1 - a).sqrt()
        following = b.sqrt() * x0 if i == 69 else b.sqrt() * x0 + (1 - b - s**2).sqrt() * e0 + s * normal()
        noises.append((following - mean_of(x, predicted(x, i, source), a, b, s)) / s)
        x = following
    x = x_start
    for i, z in enumerate(noises):
        a, b = alpha[i], alpha[i + 1]
        e = predicted(x, i, nothing)
        e = e + cfg * (predicted(x, i, target) - e)
        x = mean_of(x, e, a, b, spread(a, b)) + spread(a, b) * z
    decoder = of_positive(denoise, cfg, nothing)
    both = one_by_one(told(denoise, source), told(decoder, target))
    ours = cycle_diffusion(both, x0, sigmas, eta, generators(len(x0)))
    assert (ours - x / alpha[-1].sqrt()).abs().max() < 1e-9 and (ours - x0).abs().mean() > 0.05


def test_the_interleaved_form_serves_both_paths():
    encoder, decoder, x, sigmas = mixture(), of_positive(mixture(), 3.0, -0.4), pictures(), karras(12)
    for path in (posterior, independent):
        code = dpm_encode(encoder, x, sigmas, 0.1, 0.7, generators(len(x)), path=path)
        apart = dpm_decode(decoder, code.latents[0], code.noises, sigmas, 0.6, 0.7)
        both = one_by_one(told(encoder, 0.1), told(decoder, 0.6))
        assert torch.equal(apart, cycle_diffusion(both, x, sigmas, 0.7, generators(len(x)), path=path))


def test_sdedit_from_the_top_is_sampling_and_lower_keeps_more():
    """From the highest level nothing of the picture is left: what is drawn has the data's mean, not the picture's."""
    x, sigmas = torch.full((1, 4, 32, 32), 3.0, dtype=torch.float64), karras(30, highest=80.0)
    means = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = sdedit(mixture(), x, sigmas, 0.0, generators(len(x)))
    assert (drawn.mean(dim=(0, 2, 3)) - means.mean(dim=0)).abs().max() < 0.15
    moved = [(sdedit(mixture(), x, sigmas[-n:], 0.0, generators(len(x))) - x).abs().mean() for n in (3, 12, 25)]
    assert 0 < moved[0] < moved[1] < moved[2]


def test_a_code_survives_its_file_and_can_be_cut(tmp_path):
    x, sigmas = pictures(), karras(6)
    made = dpm_encode(mixture(), x, sigmas, 0.1, 0.5, generators(len(x)))
    code = NoiseCode(sigmas, *made, FACTS)
    save_code(code, tmp_path / "code.safetensors")
    read = load_code(tmp_path / "code.safetensors")
    assert read.meta == code.meta and all(
        torch.equal(getattr(read, name), getattr(code, name)) for name in ("sigmas", "latents", "noises"))
    late = read.skip(4)
    assert late.steps == 2 and (late.latents[-1] - x).abs().max() < 1e-12, "put together again from its noise"
    assert (dpm_decode(mixture(), late.latents[0], late.noises, late.sigmas, 0.1, 0.5) - x).abs().max() < 1e-12
    with pytest.raises(ValueError, match="at most 5"):
        read.skip(6)
    with pytest.raises(ValueError, match="cannot hold"):
        NoiseCode(sigmas, code.latents, code.noises[:-1])
