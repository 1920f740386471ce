import pytest
import torch
from support.toys import flow_grid, karras, mixture, pictures, told

from mirror_ops.walks.polish import polished

PROMPT = 0.7


def setting(flow=False):
    noise = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    grid = flow_grid(12) if flow else karras(12)
    return told(mixture(flow=flow), PROMPT), pictures(2)[..., :6, :6].to(noise), noise, grid[-6:]


@pytest.mark.parametrize("flow", [False, True])
def test_no_noise_is_left_where_the_grid_ends_above_0(flow):
    branch, picture, noise, sigmas = setting(flow)
    region = torch.zeros(2, 1, 6, 6, dtype=torch.float64)
    region[..., :3] = 1
    made = polished(branch, picture + 0.5, picture, region, noise, sigmas[:-1], flow)
    assert torch.equal(made[..., 3:], picture[..., 3:])
    assert (made - polished(branch, picture + 0.5, picture, region, noise, sigmas, flow)).abs().max() < 0.1


@pytest.mark.parametrize("flow", [False, True])
def test_it_is_the_stock_walk_inside_and_the_picture_outside(flow):
    branch, picture, noise, sigmas = setting(flow)
    edited = picture + 0.5
    region = torch.zeros(2, 1, 6, 6, dtype=torch.float64)
    assert torch.equal(polished(branch, edited, picture, region, noise, sigmas, flow), picture)
    region[..., :3] = 1
    made = polished(branch, edited, picture, region, noise, sigmas, flow)
    assert torch.equal(made[..., 3:], picture[..., 3:])
    signal = 1 - sigmas if flow else torch.ones_like(sigmas)
    x = signal[0] * edited + sigmas[0] * noise
    for k in range(5):              # Blended Latent Diffusion, written out
        d = (x - branch(x, sigmas[k], k)) / sigmas[k]
        x = x + (sigmas[k + 1] - sigmas[k]) * d
        x[..., 3:] = (signal[k + 1] * picture + sigmas[k + 1] * noise)[..., 3:]
    assert (made - x).abs().max() < 1e-12 and (made - edited)[..., :3].abs().mean() > 1e-3
