import pytest
import torch
from support.toys import flow_grid, karras, mixture, pictures

from mirror_ops.guidance.classifier_free import of_positive
from mirror_ops.inversion.edict import edict_decode, edict_encode
from mirror_ops.inversion.invert import invert
from mirror_ops.walks.ddim import unscaled, variance_preserving
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
@pytest.mark.parametrize("dtype, exact", [(torch.float64, 1e-11), (torch.float32, 1e-6)])
def test_decoding_undoes_encoding(flow, scale, dtype, exact):
    denoise, sigmas, x, family = setting(flow, dtype, scale=scale)
    pairs = edict_encode(denoise, x, sigmas, 0.1, **family)
    back = edict_decode(denoise, pairs[0], sigmas, 0.1, **family)
    assert pairs.shape == back.shape == (51, 2, *x.shape)
    assert displacement(back[-1][0], x) < exact and displacement(back[-1][1], x) < exact
    assert displacement(back, pairs) < exact


def test_plain_inversion_misses_by_far_there():
    denoise, sigmas, x, family = setting(False, torch.float64, scale=5.0)
    latents = invert(denoise, x, sigmas, 0.1)
    assert displacement(sample(lambda x, s, i: denoise(x, s, 0.1), sigmas, latents[0])[-1], x) > 0.1


def test_encoding_undoes_decoding():
    """Where the copies come from a drawn noise, the way down contracts by p^2 a move and the way up must be exact."""
    denoise, sigmas, x, family = setting(False, torch.float64, steps=8)
    noise = sigmas[0] * torch.stack([x, x])
    down = edict_decode(denoise, noise, sigmas, 0.1, **family)
    pair = down[-1]
    for i in reversed(range(8)):
        pair = undo(denoise, pair, sigmas[i], sigmas[i + 1], 0.1, 0.93, i)
        assert displacement(pair, down[i]) < 1e-10


def undo(denoise, pair, sigma, sigma_next, cond, p, i):
    """One move up, straight from the paper's inverse equations, x first at even moves."""
    x, y = pair
    y = (y - (1 - p) * x) / p
    x = (x - (1 - p) * y) / p
    step, rescale = sigma_next - sigma, ((1 + sigma**2) / (1 + sigma_next**2)).sqrt()

    def eps(v):
        return (v - denoise(v, sigma, cond)) / sigma

    if i % 2 == 0:
        y = y - step * eps(x * rescale)
        x = x - step * eps(y)
    else:
        x = x - step * eps(y * rescale)
        y = y - step * eps(x)
    return torch.stack([x, y])


def test_matches_the_variance_preserving_equations():
    """x' = a x + b eps(y), y' = a y + b eps(x'), mixed; on x = X c_in the network shown x itself (x first)."""
    denoise, sigmas, x, family = setting(False, torch.float64, steps=1)
    sigmas[-1] = 0.4
    pair = torch.stack([x, 1.1 * x]) * sigmas[0]
    (hot, cold), p = 1 / (1 + sigmas**2), 0.93
    a, b = (cold / hot).sqrt(), (1 - cold).sqrt() - (cold * (1 - hot) / hot).sqrt()

    def eps(v):
        return (v / hot.sqrt() - denoise(v / hot.sqrt(), sigmas[0], 0.1)) / sigmas[0]

    u, v = pair * hot.sqrt()
    u = a * u + b * eps(v)
    v = a * v + b * eps(u)
    u = p * u + (1 - p) * v
    v = p * v + (1 - p) * u
    reached = edict_decode(denoise, pair, sigmas, 0.1, p, **family)[-1] * cold.sqrt()
    assert (reached - torch.stack([u, v])).abs().max() < 1e-12


def test_follows_ordinary_sampling_when_the_pair_agrees():
    """Small moves: EDICT integrates the same ODE as DDIM."""
    denoise, sigmas, x, family = setting(False, torch.float64, steps=400)
    noise = sigmas[0] * x
    plain = sample(lambda x, s, i: denoise(x, s, 0.1), sigmas, noise)[-1]
    coupled = edict_decode(denoise, torch.stack([noise, noise]), sigmas, 0.1, **family)[-1]
    assert displacement(coupled[0], plain) < 0.05


@pytest.mark.parametrize("p", [0.0, 1.1])
def test_refuses_a_mixing_that_cannot_be_undone(p):
    with pytest.raises(ValueError, match="mixing weight"):
        edict_encode(mixture(), pictures(), karras(4), 0.0, p)


def test_leaves_its_input_alone():
    denoise, sigmas, x, family = setting(False, torch.float64, steps=4)
    before, pair = x.clone(), torch.stack([x, x])
    edict_encode(denoise, x, sigmas, 0.1, **family)
    edict_decode(denoise, pair, sigmas, 0.1, **family)
    assert torch.equal(x, before) and torch.equal(pair, torch.stack([before, before]))
