import pytest
import torch
from support.toys import flow_grid, karras, mixture, pictures

from mirror_ops.guidance.classifier_free import of_positive
from mirror_ops.inversion.bdia import bdia_decode, bdia_encode
from mirror_ops.inversion.invert import invert
from mirror_ops.walks.ddim import euler, unscaled, variance_preserving
from mirror_ops.walks.sample import sample


def displacement(x, reference):
    return ((x - reference).norm() / reference.norm()).item()


def setting(flow, dtype, steps=50, scale=1.0):
    denoise = of_positive(mixture(flow=flow), scale, negative=-0.4)
    sigmas = (flow_grid if flow else karras)(steps, dtype=dtype)
    family = {"input_scale": unscaled if flow else variance_preserving, "network": dtype}
    return denoise, sigmas, pictures(dtype=dtype), family


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("scale", [1.0, 7.5])
@pytest.mark.parametrize("gamma", [0.96, 1.0])
@pytest.mark.parametrize("dtype, exact", [(torch.float64, 1e-11), (torch.float32, 1e-6)])
def test_decoding_undoes_encoding(flow, scale, gamma, dtype, exact):
    denoise, sigmas, x, family = setting(flow, dtype, scale=scale)
    latents = bdia_encode(denoise, x, sigmas, 0.1, gamma, **family)
    back = bdia_decode(denoise, latents[:2], sigmas, 0.1, gamma, **family)
    assert latents.shape == back.shape == (51, *x.shape)
    assert torch.isfinite(latents).all()
    assert displacement(back[-1], x) < exact


def test_plain_inversion_misses_by_far_there():
    denoise, sigmas, x, family = setting(False, torch.float64, scale=5.0)
    latents = invert(denoise, x, sigmas, 0.1)
    assert displacement(sample(lambda x, s, i: denoise(x, s, 0.1), sigmas, latents[0])[-1], x) > 0.1


def test_matches_the_variance_preserving_equations():
    """x_{i-1} = down(x_i) + gamma (x_{i+1} - up(x_i)) on VP latents, with DDIM's moves in both directions."""
    denoise, sigmas, x, family = setting(False, torch.float64, steps=6)
    sigmas[-1] = 0.02
    alpha, gamma = 1 / (1 + sigmas**2), 0.9

    def ddim(v, e, a, b):
        return b.sqrt() * (v - (1 - a).sqrt() * e) / a.sqrt() + (1 - b).sqrt() * e

    start = torch.stack([sigmas[0] * x, 0.8 * sigmas[1] * x])
    walk = [start[0] * alpha[0].sqrt(), start[1] * alpha[1].sqrt()]
    for i in range(1, 6):
        above, v = walk[-2:]
        e = (v / alpha[i].sqrt() - denoise(v / alpha[i].sqrt(), sigmas[i], 0.1)) / sigmas[i]
        walk.append(ddim(v, e, alpha[i], alpha[i + 1]) + gamma * (above - ddim(v, e, alpha[i], alpha[i - 1])))
    ours = bdia_decode(denoise, start, sigmas, 0.1, gamma, **family)
    assert (ours * alpha.sqrt()[:, None, None, None, None] - torch.stack(walk)).abs().max() < 1e-12


def test_follows_ordinary_sampling_from_a_ddim_start():
    denoise, sigmas, x, family = setting(False, torch.float64, steps=200)
    noise = sigmas[0] * x
    second = euler(noise, denoise(noise, sigmas[0], 0.1), sigmas[0], sigmas[1])
    plain = sample(lambda x, s, i: denoise(x, s, 0.1), sigmas, noise)[-1]
    ours = bdia_decode(denoise, torch.stack([noise, second]), sigmas, 0.1, 0.96, **family)[-1]
    assert displacement(ours, plain) < 0.05


def test_costs_one_evaluation_a_move():
    denoise, sigmas, x, family = setting(False, torch.float64, steps=7)
    calls = []

    def counted(x, sigma, cond):
        calls.append(sigma)
        return denoise(x, sigma, cond)

    latents = bdia_encode(counted, x, sigmas, 0.1, **family)
    assert len(calls) == 7
    bdia_decode(counted, latents[:2], sigmas, 0.1, **family)
    assert len(calls) == 7 + 6 and all(sigma > 0 for sigma in calls)


@pytest.mark.parametrize("gamma", [0.0, 1.01])
def test_refuses_a_weight_that_cannot_be_undone(gamma):
    with pytest.raises(ValueError, match="gamma"):
        bdia_encode(mixture(), pictures(), karras(4), 0.0, gamma)
