"""Langevin dynamics on a sampler's noises: against the same walk written in another way, and against known answers."""

import pytest
import torch
from support.toys import flow_grid, karras, mixture, pictures

from mirror_ops.stochastic.dpm_encoder import dpm_decode
from mirror_ops.stochastic.energies import class_likelihood, distort, likeness, total
from mirror_ops.stochastic.langevin import State, begin, generate, langevin, load_state, noise_count, save_state

SHAPE = (2, 4, 8, 6)


def quadratic(x, centre=0.7, weight=3.0):
    return weight * (x - centre).square().mean(dim=(1, 2, 3))


def sampler(sigmas, eta, denoise=None, flow=False):
    denoise = denoise or mixture(flow=flow)
    spread = float(sigmas[0])
    return lambda z: generate(denoise, z.double(), sigmas, 0.1, eta, flow, spread)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("last", [0.0, 0.02])
def test_the_whole_loop_is_that_of_the_variance_preserving_form(eta, last):
    """Sampling by DDIM on VP latents (Song et al., eq. 12 and 16) and the update written with the gradient of U."""
    sigmas, denoise = karras(5), mixture()
    sigmas[-1] = last
    alpha, step, seed = 1 / (1 + sigmas**2), 0.05, 3
    count = noise_count(sigmas, eta)
    assert count == (1 if eta == 0 else 5 + (last > 0))

    def by_ddim(z):
        x = (1 - alpha[0]).sqrt() * z[0]
        for i in range(5):
            a, b = alpha[i], alpha[i + 1]
            s = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()
            clean = denoise(x / a.sqrt(), sigmas[i], 0.1)
            e = (x - a.sqrt() * clean) / (1 - a).sqrt()
            x = b.sqrt() * clean + (1 - b - s**2).sqrt() * e
            x = x + s * z[i + 1] if i + 1 < count else x
        return x / alpha[-1].sqrt()

    drawn = sampler(sigmas, eta)
    state = langevin(lambda z, g: quadratic(drawn(z)), begin(SHAPE, count, seed, {}), 4, step, seed)
    z = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    for k in range(4):
        leaf = z.double().requires_grad_()
        energy = 0.5 * leaf.square().sum() + quadratic(by_ddim(leaf)).sum()
        (slope,) = torch.autograd.grad(energy, leaf)
        omega = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + k + 1))
        assert abs(sum(state.energies[k]) - quadratic(by_ddim(z.double())).sum()) < 1e-5
        z = z - step / 2 * slope.float() + step**0.5 * omega
    assert (state.z - z).abs().max() < 1e-5


@pytest.mark.parametrize("flow", [False, True])
def test_generating_is_decoding_with_these_noises(flow):
    sigmas = (flow_grid if flow else karras)(6)
    z = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1)).double()
    drawn = sampler(sigmas, 0.5, flow=flow)(z)
    noises = torch.cat([z[1:], torch.zeros_like(z[:1])])
    assert torch.allclose(drawn, dpm_decode(mixture(flow=flow), sigmas[0] * z[0], noises, sigmas, 0.1, 0.5, flow))


def test_without_an_energy_the_noises_stay_gaussian():
    """The chain z <- (1 - h/2) z + sqrt(h) w has the stationary variance 1 / (1 - h/4)."""
    step, shape = 0.05, (1, 4, 64, 64)
    state = langevin(lambda z, g: z.sum(dim=(0, 2, 3, 4)) * 0, begin(shape, 2, 0, {}), 150, step, 0)
    assert abs(state.z.var() - 1 / (1 - step / 4)) < 0.02 and abs(state.z.mean()) < 0.02


def test_a_linear_energy_moves_the_mean_to_its_known_place():
    """U = z^2 / 2 + c z has its mean at -c."""
    state = langevin(lambda z, g: 0.8 * z.sum(dim=(0, 2, 3, 4)), begin((1, 4, 64, 64), 1, 0, {}), 200, 0.05, 0)
    assert abs(state.z.mean() + 0.8) < 0.03


def test_the_energy_falls_and_the_best_is_kept():
    drawn = sampler(karras(5), 0.0)
    state = langevin(lambda z, g: quadratic(drawn(z), weight=200.0), begin(SHAPE, 1, 0, {}), 60, 0.02, 0)
    energies = torch.tensor(state.energies)
    assert (energies[-10:].mean(dim=0) < 0.9 * energies[0]).all()
    assert torch.allclose(quadratic(drawn(state.best), weight=200.0).float(), energies.amin(dim=0), rtol=1e-5)


def test_a_kept_walk_goes_on_as_if_never_interrupted(tmp_path):
    def measure(z, generator):
        return quadratic(sampler(karras(4), 1.0)(z)) + torch.rand(2, generator=generator) * z.square().mean()

    meta = {"cfg": 1.0}
    whole = langevin(measure, begin(SHAPE, 4, 5, meta), 7, 0.05, 5)
    path = tmp_path / "walk.safetensors"
    langevin(measure, begin(SHAPE, 4, 5, meta), 3, 0.05, 5, lambda state: save_state(state, path))
    rest = langevin(measure, load_state(path, meta), 7, 0.05, 5)
    assert rest.done == 7 and rest.energies == whole.energies and rest.prior == whole.prior
    assert torch.equal(rest.z, whole.z) and torch.equal(rest.best, whole.best)
    with pytest.raises(ValueError, match="other settings .cfg."):
        load_state(path, {"cfg": 2.0})


def test_an_energy_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite in iteration 1"):
        langevin(lambda z, g: z.sum(dim=(0, 2, 3, 4)) * torch.inf, begin(SHAPE, 1, 0, {}), 2, 0.05, 0)
    assert State(torch.zeros(1), torch.zeros(1)).done == 0


def test_likeness_is_the_mean_over_views_and_repeats_with_its_generator():
    def embed(x):
        return x.flatten(1)[:, :50]

    x, target = pictures(3).abs()[:, :3], torch.ones(1, 50, dtype=torch.float64)
    energy = likeness(embed, target, views=4)
    seeds = torch.randint(2**62, (4,), generator=torch.Generator().manual_seed(1)).tolist()
    views = [distort(x, torch.Generator().manual_seed(seed)) for seed in seeds]
    each = [1 - torch.cosine_similarity(embed(view), target) for view in views]
    assert torch.allclose(energy(x, torch.Generator().manual_seed(1)), torch.stack(each).mean(dim=0))
    both = total([(2.0, energy), (0.5, class_likelihood(lambda p: p.flatten(1)[:, :5], 2))])
    expected = 2 * energy(x, torch.Generator().manual_seed(1)) - 0.5 * torch.log_softmax(x.flatten(1)[:, :5], 1)[:, 2]
    assert torch.allclose(both(x, torch.Generator().manual_seed(1)), expected)


def test_distortions_are_of_the_stated_size_and_pass_gradients():
    x = torch.full((400, 3, 16, 16), 0.5).requires_grad_()
    x = x + 0.2 * torch.linspace(-1, 1, 16)
    seen = distort(x, torch.Generator().manual_seed(0))
    blank = (seen == 0).all(dim=1).float().mean()
    assert 0.14 < blank < 0.35, "a hole of up to a quarter, and what moved in from outside"
    middle = seen[:, :, 7, 7].detach()
    held = middle[(middle != 0).all(dim=1)].mean(dim=1)
    assert held.min() < 0.1 and held.max() > 0.9 and abs(held.mean() - 0.5) < 0.08
    (slope,) = torch.autograd.grad(seen.sum(), x)
    assert (slope != 0).float().mean() > 0.6
