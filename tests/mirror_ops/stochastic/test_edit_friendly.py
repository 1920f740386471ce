import pytest
import torch
from support.toys import flow_grid, generators, karras, mixture, normals, pictures

from mirror_ops.guidance.classifier_free import of_positive
from mirror_ops.stochastic.dpm_encoder import dpm_decode, dpm_encode
from mirror_ops.stochastic.edit_friendly import edit_friendly_encode


def setting(flow=False, dtype=torch.float64, steps=30):
    return mixture(flow=flow), (flow_grid if flow else karras)(steps, dtype=dtype), pictures(dtype=dtype)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("dtype, exact", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_decoding_undoes_encoding_from_any_level(flow, eta, dtype, exact):
    denoise, sigmas, x = setting(flow, dtype)
    code = edit_friendly_encode(denoise, x, sigmas, 0.1, generators(len(x)), eta, flow)
    assert torch.isfinite(code.noises).all()
    for skip in (0, 11, 29):
        back = dpm_decode(denoise, code.latents[skip], code.noises[skip:], sigmas[skip:], 0.1, eta, flow)
        assert (back - x).abs().max() < exact


def test_the_official_zero_for_the_last_noise_misses_the_picture():
    denoise, sigmas, x = setting()
    code = edit_friendly_encode(denoise, x, sigmas, 0.1, generators(len(x)))
    noises = torch.cat([code.noises[:-1], torch.zeros_like(code.noises[:1])])
    assert (dpm_decode(denoise, code.latents[0], noises, sigmas, 0.1, 1.0) - x).abs().max() > 1e-3


def test_noises_are_those_of_the_variance_preserving_code():
    """Straight from the paper on VP latents: z = (x_p - mu) / (eta sqrt(v)), x_p of independent noises."""
    denoise, sigmas, x0 = setting(steps=12)
    sigmas[-1] = 0.02
    alpha, generator = 1 / (1 + sigmas**2), generators(len(x0))
    noise = torch.stack([normals(generator, *x0.shape[1:]) for _ in range(12)])
    path = [alpha[i].sqrt() * x0 + (1 - alpha[i]).sqrt() * noise[i] for i in range(12)] + [alpha[12].sqrt() * x0]
    code = edit_friendly_encode(denoise, x0, sigmas, 0.1, generators(len(x0)))
    for i in range(12):
        a, b, big = alpha[i], alpha[i + 1], path[i] / alpha[i].sqrt()
        clean = denoise(big, sigmas[i], 0.1)
        v = (1 - b) / (1 - a) * (1 - a / b)
        mean = b.sqrt() * clean + (1 - b - v).sqrt() * (big - clean) / sigmas[i]
        assert (code.noises[i] - (path[i + 1] - mean) / v.sqrt()).abs().max() < 1e-10


def test_noises_are_larger_than_the_dpm_encoders():
    """On a picture of the network's own distribution the DPM-encoder's noises are of unit size, these are not."""
    denoise, sigmas, _ = setting(steps=50)
    x = dpm_decode(denoise, karras(1)[0] * pictures(2, 32, 32), torch.zeros(50, 1), sigmas, 0.1, 1e-6)
    friendly = edit_friendly_encode(denoise, x, sigmas, 0.1, generators(len(x)))
    single = dpm_encode(denoise, x, sigmas, 0.1, 1.0, generators(len(x)))
    assert friendly.noises[:-1].std() > 2 * single.noises[:-1].std()
    assert 0.8 < single.noises[:-1].std() < 1.3


def test_each_level_has_a_noise_of_its_own():
    denoise, sigmas, x = setting(steps=8)
    x = x.repeat(1, 1, 8, 8)
    code = edit_friendly_encode(denoise, x, sigmas, 0.1, generators(len(x)))
    noise = ((code.latents[:-1] - x) / sigmas[:-1, None, None, None, None]).flatten(1)
    correlation = torch.corrcoef(noise)
    assert (correlation - torch.eye(8)).abs().max() < 0.05
    path = (dpm_encode(denoise, x, sigmas, 0.1, 0.1, generators(len(x))).latents[:-1] - x).flatten(1)
    assert torch.corrcoef(path)[0, 7] > 0.5


def test_guidance_is_just_another_denoiser():
    denoise, sigmas, x = setting()
    strong = of_positive(denoise, 9.0, negative=-0.4)
    code = edit_friendly_encode(strong, x, sigmas, 0.1, generators(len(x)))
    assert (dpm_decode(strong, code.latents[0], code.noises, sigmas, 0.1, 1.0) - x).abs().max() < 1e-12


def test_refuses_eta_without_noise():
    denoise, sigmas, x = setting()
    with pytest.raises(ValueError, match="eta must"):
        edit_friendly_encode(denoise, x, sigmas, 0.1, generators(len(x)), eta=0.0)
