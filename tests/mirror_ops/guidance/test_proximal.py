import pytest
import torch
from support.toys import karras, mixture, pictures

from mirror_ops.guidance.classifier_free import guided
from mirror_ops.guidance.proximal import (
    batch_quantile_threshold,
    edit_mask,
    hard,
    inversion_guidance,
    proximal_guidance,
    quantile_threshold,
    reconstruction_guidance,
    soft,
)
from mirror_ops.inversion.invert import invert
from mirror_ops.walks.ddim import euler, implied_denoised
from mirror_ops.walks.sample import sample

SIGMA, SIGMA_NEXT = torch.tensor([0.8, 0.5], dtype=torch.float64)


def test_soft_is_what_the_official_code_names_l0():
    delta, tau = pictures(), 0.6
    assert torch.allclose(soft(delta, tau), delta - delta.clamp(-tau, tau), rtol=0, atol=1e-15)
    assert (soft(delta, tau) * delta >= 0).all()


@pytest.mark.parametrize("prox, penalty", [(soft, lambda v: 0.6 * v.abs()), (hard, lambda v: 0.18 * (v != 0))])
def test_each_is_the_minimiser_it_claims_to_be(prox, penalty):
    """prox(d) = argmin_v (v - d)^2 / 2 + penalty(v), by search over a fine grid that holds 0 and d."""
    grid = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    for d in torch.tensor([-2.0, -0.61, -0.59, 0.0, 0.3, 0.59, 0.61, 1.7], dtype=torch.float64):
        candidates = torch.cat([grid, d[None], torch.zeros(1, dtype=torch.float64)])
        best = candidates[((candidates - d) ** 2 / 2 + penalty(candidates)).argmin()]
        assert abs(prox(d, 0.6) - best) < 1.1e-3


@pytest.mark.parametrize("prox", [soft, hard])
def test_quantile_ends(prox):
    """q = 0 keeps all but the smallest; q = 1 keeps nothing."""
    delta = pictures()
    least = quantile_threshold(delta, 0)
    assert torch.equal(least.flatten(), delta.abs().flatten(1).min(dim=1).values)
    kept = prox(delta, least)
    assert (kept - delta).abs().max() <= least.max() + 1e-15
    assert (kept == 0).sum() == 2  # one value a picture
    assert (prox(delta, quantile_threshold(delta, 1)) == 0).all()


def test_quantile_is_each_pictures_own():
    delta = pictures()
    delta[1] *= 10
    tau = quantile_threshold(delta, 0.7)
    assert tau.shape == (2, 1, 1, 1) and tau[1] > 5 * tau[0]
    kept = (hard(delta, tau) != 0).flatten(1).double().mean(dim=1)
    assert (kept - 0.3).abs().max() < 0.01


def test_quantile_over_the_batch_is_2q_minus_1_on_the_target():
    """The official ProxNPI threshold: the source branch's zeros are counted in."""
    target = pictures(1, 64, 64)
    batch = torch.cat([torch.zeros_like(target), target])
    assert abs(batch_quantile_threshold(batch, 0.7) - quantile_threshold(target, 0.4).item()) < 1e-4
    assert abs(batch_quantile_threshold(batch, 0.7) - quantile_threshold(target, 0.7).item()) > 0.2


def test_on_denoised_as_on_eps():
    """ProxNPI on eps against ours on denoised: quantile as is, fixed tau times sigma."""
    x, cond, uncond = pictures(seed=4), pictures(seed=5), pictures(seed=6)
    eps_c, eps_u = (x - cond) / SIGMA, (x - uncond) / SIGMA
    for q in (0.0, 0.7):
        tau = quantile_threshold(eps_c - eps_u, q)
        expected = x - SIGMA * (eps_u + 7.5 * soft(eps_c - eps_u, tau))
        ours = proximal_guidance(cond, uncond, 7.5, quantile_threshold(cond - uncond, q))
        assert torch.allclose(ours, expected, rtol=0, atol=1e-12)
    expected = x - SIGMA * (eps_u + 7.5 * hard(eps_c - eps_u, 0.4))
    assert torch.allclose(proximal_guidance(cond, uncond, 7.5, 0.4 * SIGMA, hard), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prox", [soft, hard])
def test_no_threshold_is_classifier_free_guidance(prox):
    denoise, x = mixture(), pictures()
    plain = guided(denoise, 7.5)(x, SIGMA, (0.3, -0.4))
    ours = proximal_guidance(denoise(x, SIGMA, 0.3), denoise(x, SIGMA, -0.4), 7.5, 0.0, prox)
    assert torch.allclose(ours, plain, rtol=0, atol=1e-13)


def test_mask_and_its_dilation():
    delta = torch.zeros(1, 2, 5, 7, dtype=torch.float64)
    delta[0, 0, 2, 3], delta[0, 1, 0, 0] = -1.0, 0.4
    assert edit_mask(delta, 0.5, 0).sum() == 1
    grown = edit_mask(delta, 0.5, 1)
    assert grown.sum() == 9 and (grown[0, 0, 1:4, 2:5] == 1).all()
    assert edit_mask(delta, 0.3, 2)[0, 1].sum() == 9  # a corner: 3 x 3 of 5 x 5 lies inside


def test_official_mask_counts_differences_beyond_twice_tau():
    delta = pictures(1, 64, 64)
    tau = quantile_threshold(delta, 0.7)
    assert torch.equal(edit_mask(soft(delta, tau), tau, 0), edit_mask(delta, 2 * tau, 0))
    assert abs(edit_mask(delta, tau, 0).mean() - 0.3) < 0.01
    assert abs(edit_mask(soft(delta, tau), tau, 0).mean() - 0.036) < 0.01


def test_inversion_guidance_at_rate_one_restores_all_but_the_mask():
    x, recorded = pictures(seed=4), pictures(seed=5)
    mask = edit_mask(x, 1.0, 0)
    full = inversion_guidance(x, recorded, mask, 1.0)
    assert torch.allclose(full, mask * x + (1 - mask) * recorded, rtol=0, atol=1e-15)
    half = inversion_guidance(x, recorded, torch.zeros_like(x), 0.5)
    assert torch.allclose(half, (x + recorded) / 2, rtol=0, atol=1e-15)


def test_inversion_guidance_recovers_the_picture_at_high_guidance():
    denoise, sigmas, x0 = mixture(), karras(30), pictures()
    latents = invert(denoise, x0, sigmas, 0.1)

    def walk(rate):
        def branch(x, sigma, i):
            d = guided(denoise, 7.5)(x, sigma, (0.1, -0.4))
            pulled = inversion_guidance(euler(x, d, sigma, sigmas[i + 1]), latents[i + 1], torch.zeros_like(x), rate)
            return implied_denoised(x, pulled, sigma, sigmas[i + 1])

        return (sample(branch, sigmas, latents[0])[-1] - x0).norm() / x0.norm()

    assert walk(0.0) > 0.3 and walk(0.5) < 0.1 and walk(1.0) < 1e-12


@pytest.mark.parametrize("flow", [False, True])
def test_reconstruction_guidance_renoises_with_the_first_prediction(flow):
    """x' = a' D' + s' n with n = (x - a D) / s from the uncorrected D."""
    x, denoised, clean = pictures(seed=4), pictures(seed=5), pictures(seed=6)
    mask = edit_mask(x, 1.0, 1)
    a, a_next = (1 - SIGMA, 1 - SIGMA_NEXT) if flow else (1.0, 1.0)
    corrected = denoised - 0.3 * (denoised - clean) * (1 - mask)
    expected = a_next * corrected + SIGMA_NEXT * (x - a * denoised) / SIGMA
    ours = reconstruction_guidance(x, denoised, clean, mask, 0.3, SIGMA, SIGMA_NEXT, flow)
    assert torch.allclose(ours, expected, rtol=0, atol=1e-13)
    renoised_with_the_corrected = a_next * corrected + SIGMA_NEXT * (x - a * corrected) / SIGMA
    assert (ours - renoised_with_the_corrected).abs().max() > 0.05


def test_landing_is_undone_by_euler():
    x, x_next = pictures(seed=4), pictures(seed=5)
    for sigma_next in (SIGMA_NEXT, torch.zeros_like(SIGMA)):
        denoised = implied_denoised(x, x_next, SIGMA, sigma_next)
        assert torch.allclose(euler(x, denoised, SIGMA, sigma_next), x_next, atol=1e-14)


@pytest.mark.parametrize("q", [-0.1, 1.2])
@pytest.mark.parametrize("threshold", [quantile_threshold, batch_quantile_threshold])
def test_refuses_a_quantile_that_is_none(threshold, q):
    with pytest.raises(ValueError, match="quantile"):
        threshold(pictures(), q)
