import pytest
import torch
from support.toys import flow_grid, karras, mixture, pictures

from mirror_ops.inversion.invert import fixed_point_map_of, invert
from mirror_ops.inversion.refine import anderson, averaged, newest, refine
from mirror_ops.walks.ddim import euler, unscaled, variance_preserving
from mirror_ops.walks.sample import sample


def one_move(flow=False, below=0.9, above=1.3, batch=2, dtype=torch.float64):
    """(denoise, x_a, climb, sigma_a, sigma_b) of one inversion move on the toy."""
    denoise = mixture(flow=flow)
    sigma_a, sigma_b = torch.tensor([below, above], dtype=dtype)
    x_a = (1 + below if not flow else 1) * pictures(batch, dtype=dtype)
    return denoise, x_a, fixed_point_map_of(denoise, x_a, sigma_a, sigma_b, 0.1), sigma_a, sigma_b


def residual(fixed_point_map, x):
    return ((fixed_point_map(x) - x).norm() / x.norm()).item()


def test_plain_iteration_contracts_evenly():
    _, x_a, fixed_point_map, _, _ = one_move()
    curve = refine(fixed_point_map, x_a, 30).residuals
    assert curve.shape == (30, 2)
    assert (curve[1:20] < 0.8 * curve[:19]).all()
    assert (curve[-1] < 1e-6 * curve[0]).all()


MOVES = [(False, 0.9, 1.3), (False, 0.0, 0.12), (True, 0.0, 0.1), (True, 0.8, 1.0)]


@pytest.mark.parametrize("flow, below, above", MOVES)
def test_converged_move_is_undone_by_sampling(flow, below, above):
    denoise, x_a, fixed_point_map, sigma_a, sigma_b = one_move(flow, below, above)
    guess = fixed_point_map(x_a)
    x_b = refine(fixed_point_map, guess, 40, anderson()).x
    back = euler(x_b, denoise(x_b, sigma_b, 0.1), sigma_b, sigma_a)
    unrefined = euler(guess, denoise(guess, sigma_b, 0.1), sigma_b, sigma_a)
    assert (unrefined - x_a).abs().max() > 1e-5
    assert (back - x_a).abs().max() < 1e-12


def test_anderson_beats_plain_at_equal_evaluations():
    _, x_a, fixed_point_map, _, _ = one_move(below=0.5, above=1.3)
    for evaluations in (4, 6, 8, 10):
        plain = residual(fixed_point_map, refine(fixed_point_map, x_a, evaluations, newest).x)
        mixed = residual(fixed_point_map, refine(fixed_point_map, x_a, evaluations, anderson()).x)
        assert mixed < plain / 3


def test_averaging_cures_an_alternating_map():
    root = torch.linspace(1, 2, 12, dtype=torch.float64).reshape(1, 3, 2, 2)

    def fixed_point_map(x):
        return root - 0.95 * (x - root)

    start = torch.zeros_like(root)
    plain = residual(fixed_point_map, refine(fixed_point_map, start, 8, newest).x)
    assert residual(fixed_point_map, refine(fixed_point_map, start, 8, averaged).x) < 0.05 * plain


def test_anderson_solves_a_linear_map_in_its_memory():
    """Eigenvalues 0.9, -0.7, 0.4: three differences span the error, so the fifth evaluation starts at the root."""
    factor = torch.tensor([0.9, -0.7, 0.4], dtype=torch.float64).reshape(1, 3, 1, 1)
    root = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).reshape(1, 3, 1, 1)

    def fixed_point_map(x):
        return root + factor * (x - root)

    reached = refine(fixed_point_map, torch.zeros_like(root), 4, anderson(memory=3, ridge=1e-14)).x
    assert (reached - root).abs().max() < 1e-8
    assert (refine(fixed_point_map, torch.zeros_like(root), 4).x - root).abs().max() > 0.5


def test_a_batch_gives_what_its_pictures_give_alone():
    denoise, x_a, fixed_point_map, sigma_a, sigma_b = one_move(batch=3)
    x_a[1] *= 3
    together = refine(fixed_point_map_of(denoise, x_a, sigma_a, sigma_b, 0.1), x_a, 12, anderson(), tolerance=1e-4)
    for k in range(3):
        row = x_a[k : k + 1]
        alone = refine(fixed_point_map_of(denoise, row, sigma_a, sigma_b, 0.1), row, 12, anderson(), tolerance=1e-4)
        assert torch.allclose(together.x[k : k + 1], alone.x, rtol=0, atol=1e-12)
    assert len(together.residuals) < 12


def test_divergence_returns_the_best_iterate():
    def fixed_point_map(x):
        return 1 - 3 * (x - 1)

    start = torch.full((1, 1, 2, 2), 1.1, dtype=torch.float64)
    assert torch.equal(refine(fixed_point_map, start, 6).x, start)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("dtype, reached", [(torch.float64, 1e-9), (torch.float32, 3e-5)])
def test_whole_inversion_is_exact_when_each_move_converges(flow, dtype, reached):
    denoise = mixture(flow=flow)
    sigmas = flow_grid(20, dtype) if flow else karras(20, dtype=dtype)
    x0 = 0.7 * pictures(dtype=dtype)
    scale = unscaled if flow else variance_preserving

    def displacement(refinement):
        latents = invert(denoise, x0, sigmas, 0.1, input_scale=scale, refine=refinement)
        back = sample(lambda x, sigma, i: denoise(x, sigma, 0.1), sigmas, latents[0])[-1]
        return ((back - x0).norm() / x0.norm()).item()

    assert displacement(None) > 1e-2
    assert displacement(lambda fixed_point_map, x: refine(fixed_point_map, x, 30, anderson()).x) < reached


def test_refuses_no_iterations():
    with pytest.raises(ValueError, match="1 or more"):
        refine(lambda x: x, torch.zeros(1, 1, 2, 2), 0)
