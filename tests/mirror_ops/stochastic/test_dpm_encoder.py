import pytest
import torch
from support.toys import flow_grid, generators, karras, mixture, normals, one_by_one, pictures, told

from mirror_ops.guidance.classifier_free import of_positive
from mirror_ops.stochastic.dpm_encoder import (
    ancestral_mean,
    ancestral_split,
    cycle_diffusion,
    dpm_decode,
    dpm_encode,
)
from mirror_ops.walks.ddim import euler


def setting(flow=False, dtype=torch.float64, scale=1.0, steps=30, last=0.0):
    sigmas = (flow_grid if flow else karras)(steps, dtype=dtype)
    sigmas[-1] = last
    return of_positive(mixture(flow=flow), scale, negative=-0.4), sigmas, pictures(dtype=dtype)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("last", [0.0, 0.01])
@pytest.mark.parametrize("eta", [0.1, 1.0])
@pytest.mark.parametrize("dtype, exact", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_decoding_undoes_encoding(flow, last, eta, dtype, exact):
    denoise, sigmas, x = setting(flow, dtype, 7.5, last=last)
    code = dpm_encode(denoise, x, sigmas, 0.1, eta, generators(len(x)), flow)
    assert code.latents.shape == (31, *x.shape) and code.noises.shape == (30, *x.shape)
    assert torch.isfinite(code.noises).all()
    back = dpm_decode(denoise, code.latents[0], code.noises, sigmas, 0.1, eta, flow)
    assert (back - x).abs().max() < exact
    partial = dpm_decode(denoise, code.latents[12], code.noises[12:], sigmas[12:], 0.1, eta, flow)
    assert (partial - x).abs().max() < exact


@pytest.mark.parametrize("flow", [False, True])
def test_without_the_last_noise_the_picture_is_missed(flow):
    denoise, sigmas, x = setting(flow)
    code = dpm_encode(denoise, x, sigmas, 0.1, 1.0, generators(len(x)), flow)
    noises = torch.cat([code.noises[:-1], torch.zeros_like(code.noises[:1])])
    back = dpm_decode(denoise, code.latents[0], noises, sigmas, 0.1, 1.0, flow)
    assert (back - x).abs().max() > 1e-3
    prediction = denoise(code.latents[-2], sigmas[-2], 0.1)
    assert torch.allclose(code.noises[-1], x - prediction, rtol=0, atol=1e-12)


def test_noises_are_those_of_the_variance_preserving_code():
    """z = (x_p - mu) / s on VP latents: mu, s of the DDIM sampler, the path from the DDIM posterior, x_p = x0 last."""
    denoise, sigmas, x0 = setting(last=0.02, steps=12)
    alpha, eta, generator = 1 / (1 + sigmas**2), 0.6, generators(len(x0))

    def normal():
        return normals(generator, *x0.shape[1:])

    x = alpha[0].sqrt() * x0 + (1 - alpha[0]).sqrt() * normal()
    code = dpm_encode(denoise, x0, sigmas, 0.1, eta, generators(len(x0)))
    for i in range(12):
        a, b = alpha[i], alpha[i + 1]
        s = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()
        big = x / a.sqrt()
        clean = denoise(big, sigmas[i], 0.1)
        e = (big - clean) / sigmas[i]
        mean = b.sqrt() * clean + (1 - b - s**2).sqrt() * e
        known = (x - a.sqrt() * x0) / (1 - a).sqrt()
        # the walk ends in the picture itself, in model space: x0 at the scale of the last level
        x = b.sqrt() * x0 if i == 11 else b.sqrt() * x0 + (1 - b - s**2).sqrt() * known + s * normal()
        assert (code.noises[i] - (x - mean) / s).abs().max() < 1e-10
        assert (code.latents[i + 1] - x / b.sqrt()).abs().max() < 1e-11


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_split_is_the_ancestral_step(eta):
    """k-diffusion's sigma_up and sigma_down, with VP std s = sqrt(alpha_p) sigma_up."""
    for sigma, sigma_next in torch.tensor([[14.6, 9.0], [2.0, 1.9], [0.1, 0.03]], dtype=torch.float64):
        down, up = ancestral_split(sigma, sigma_next, eta)
        expected = eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
        assert torch.allclose(up, expected, rtol=1e-14) and torch.allclose(down, (sigma_next**2 - expected**2) ** 0.5)
        a, b = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
        s = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()
        assert torch.allclose(s, b.sqrt() * up, rtol=1e-12)


def test_flow_is_variance_exploding_after_a_change_of_variables():
    """x / (1 - s) with noise s / (1 - s): the same mean and the same drawn noise, and finite at s = 1."""
    x, clean = pictures(seed=4), pictures(seed=5)
    for pair in [(0.9, 0.7), (0.5, 0.2), (0.1, 0.05)]:
        s, s_next = torch.tensor(pair, dtype=torch.float64)
        a, a_next = 1 - s, 1 - s_next
        mu, up = ancestral_mean(x, clean, s, s_next, 0.8, flow=True)
        mu_ve, up_ve = ancestral_mean(x / a, clean, s / a, s_next / a_next, 0.8, flow=False)
        assert torch.allclose(mu, mu_ve * a_next, rtol=1e-12) and torch.allclose(up, up_ve * a_next, rtol=1e-12)
    one, below = torch.tensor([1.0, 0.9], dtype=torch.float64)
    mu, up = ancestral_mean(x, clean, one, below, 1.0, flow=True)
    assert torch.isfinite(mu).all() and torch.allclose(up, below)


@pytest.mark.parametrize("flow", [False, True])
def test_vanishing_eta_is_euler(flow):
    x, clean = pictures(seed=4), pictures(seed=5)
    s, s_next = torch.tensor([0.6, 0.5], dtype=torch.float64)
    mu, _ = ancestral_mean(x, clean, s, s_next, 1e-9, flow)
    assert torch.allclose(mu, euler(x, clean, s, s_next), rtol=0, atol=1e-12)


def test_drawing_the_noises_samples_the_data():
    """Ancestral sampling with fresh noise must give the toy's own distribution, for flow grids from 1 on as well."""
    for flow in (False, True):
        denoise, sigmas, _ = setting(flow, steps=60)
        generator, shape = torch.Generator().manual_seed(3), (1, 4, 64, 64)
        start = sigmas[0] * torch.randn(shape, generator=generator).double()
        noises = torch.randn(60, *shape, generator=generator).double()
        noises[-1] = 0
        drawn = dpm_decode(denoise, start, noises, sigmas, 0.0, 1.0, flow).flatten(2)[0]
        means = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        expected = torch.cov(means.T, correction=0) + 0.35**2 * torch.eye(4)
        assert (torch.cov(drawn) - expected).abs().max() < 0.08
        assert (drawn.mean(dim=1) - means.mean(dim=0)).abs().max() < 0.08


@pytest.mark.parametrize("flow", [False, True])
def test_interleaved_walk_is_encoding_then_decoding(flow):
    encoder, sigmas, x = setting(flow)
    decoder = of_positive(mixture(flow=flow), 3.0, negative=-0.4)
    code = dpm_encode(encoder, x, sigmas, 0.1, 0.4, generators(len(x)), flow)
    apart = dpm_decode(decoder, code.latents[0], code.noises, sigmas, 0.7, 0.4, flow)
    edit, same = (one_by_one(told(encoder, 0.1), told(*other)) for other in ((decoder, 0.7), (encoder, 0.1)))
    together = cycle_diffusion(edit, x, sigmas, 0.4, generators(len(x)), flow)
    assert torch.equal(apart, together) and (together - x).abs().mean() > 0.05
    unedited = cycle_diffusion(same, x, sigmas, 0.4, generators(len(x)), flow)
    assert (unedited - x).abs().max() < 1e-12


def test_the_seed_decides():
    denoise, sigmas, x = setting()
    first, again, other = (dpm_encode(denoise, x, sigmas, 0.1, 1.0, generators(len(x), k)).noises for k in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_refuses_what_holds_no_picture():
    denoise, sigmas, x = setting()
    for eta in (0.0, 1.5):
        with pytest.raises(ValueError, match="eta must"):
            dpm_encode(denoise, x, sigmas, 0.1, eta, generators(len(x)))
    with pytest.raises(ValueError, match="between 0 and 1"):
        dpm_encode(denoise, x, sigmas, 0.1, 1.0, generators(len(x)), flow=True)
    with pytest.raises(ValueError):
        dpm_decode(denoise, x, [x], sigmas, 0.1, 1.0)


def test_a_picture_has_the_same_noises_in_any_batch():
    denoise, sigmas, x = setting()
    both = dpm_encode(denoise, x, sigmas, 0.1, 0.5, generators(2, seed=5))
    second = dpm_encode(denoise, x[1:], sigmas, 0.1, 0.5, generators(1, seed=6))
    assert torch.equal(both.noises[:, 1:], second.noises) and torch.equal(both.latents[:, 1:], second.latents)
    with pytest.raises(ValueError):
        dpm_encode(denoise, x, sigmas, 0.1, 0.5, generators(1))
