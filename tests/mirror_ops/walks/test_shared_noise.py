"""The walk under shared noise, on denoisers with a known answer, in float64."""
import pytest
import torch
from support import toys
from support.toys import one_by_one

from mirror_ops.guidance.classifier_free import guided
from mirror_ops.walks.noise import picture_generators
from mirror_ops.walks.shared_noise import coarse, shared_noise

BEFORE, AFTER = 0.0, 0.7


def branch(denoise, prompt, cfg=1.0, negative=BEFORE):
    told = guided(denoise, cfg)
    return lambda x, sigma, i: told(x, sigma, (prompt, negative))


def grids(flow):
    return toys.flow_grid(12) if flow else toys.karras(12)


def walk(source, edit, picture, sigmas, flow=False, seed=5, **more):
    generators = picture_generators(seed, range(len(picture)))
    return shared_noise(one_by_one(source, edit), picture, sigmas, generators, flow=flow, **more)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("how", [{}, {"draws": 3}, {"jump": True}, {"antithetic": False}])
@pytest.mark.parametrize("start", [0, 5])
def test_the_same_words_on_both_sides_give_the_picture_back_to_the_last_bit(flow, how, start):
    denoise, picture = toys.mixture(flow=flow), toys.pictures(3)
    made = walk(branch(denoise, BEFORE), branch(denoise, BEFORE, 7.5), picture, grids(flow)[start:], flow, **how)
    assert torch.equal(made, picture)
    other = walk(branch(denoise, BEFORE), branch(denoise, AFTER), picture, grids(flow)[start:], flow, **how)
    assert (other - picture).abs().max() > 0.01


@pytest.mark.parametrize("flow", [False, True])
def test_it_is_the_published_loop(flow):
    """FlowEdit's algorithm 1, written out with velocities; for variance-exploding latents with predicted noises."""
    denoise, picture, sigmas = toys.mixture(flow=flow), toys.pictures(1), grids(flow)
    generator, edit = torch.Generator().manual_seed(5), picture.clone()
    for now, after in zip(sigmas, sigmas[1:], strict=False):
        noise = torch.randn(picture.shape[1:], generator=generator, dtype=picture.dtype)[None]
        noised = (1 - now) * picture + now * noise if flow else picture + now * noise
        shifted = edit + noised - picture
        v_source = (noised - denoise(noised, now, BEFORE)) / now
        v_target = (shifted - denoise(shifted, now, AFTER)) / now
        edit = edit + (after - now) * (v_target - v_source)
    found = walk(branch(denoise, BEFORE), branch(denoise, AFTER), picture, sigmas, flow, antithetic=False)
    assert (found - edit).abs().max() < 1e-12


def test_jumping_is_virtual_inversion():
    """InfEdit's algorithm 1 with predicted noises: z_tgt = (x_tgt - sigma (e_tgt - e_src + n)), noised anew."""
    denoise, picture, sigmas = toys.mixture(), toys.pictures(1), grids(False)
    generator, clean = torch.Generator().manual_seed(5), picture.clone()
    for now in sigmas[:-1]:
        noise = torch.randn(picture.shape[1:], generator=generator, dtype=picture.dtype)[None]
        x_src, x_tgt = picture + now * noise, clean + now * noise
        e_src, e_tgt = ((x - denoise(x, now, c)) / now for x, c in ((x_src, BEFORE), (x_tgt, AFTER)))
        clean = x_tgt - now * (e_tgt - e_src + noise)
    found = walk(branch(denoise, BEFORE), branch(denoise, AFTER), picture, sigmas, jump=True, antithetic=False)
    assert (found - clean).abs().max() < 1e-12


@pytest.mark.parametrize("flow", [False, True])
def test_where_the_edit_is_a_shift_the_walk_arrives_at_the_shifted_picture(flow):
    """One Gaussian a pixel: its posterior mean moves with the prompt, and the exact edit is known in closed form."""
    denoise, picture = toys.mixture(components=1, spread=1e-3, flow=flow), toys.pictures(2)
    made = walk(branch(denoise, BEFORE), branch(denoise, AFTER), picture, grids(flow), flow)
    assert (made - picture - AFTER).abs().max() < 1e-3


def test_a_picture_is_edited_alike_in_every_batch():
    denoise, pictures, sigmas = toys.mixture(), toys.pictures(3), grids(False)
    sides = branch(denoise, BEFORE), branch(denoise, AFTER, 2.0)
    together = walk(*sides, pictures, sigmas)
    for k in range(3):
        alone = shared_noise(one_by_one(*sides), pictures[k : k + 1], sigmas, picture_generators(5, [k]))
        assert (alone - together[k]).abs().max() < 1e-12
    assert (walk(*sides, pictures[:1].expand(2, -1, -1, -1), sigmas).diff(dim=0)).abs().max() > 1e-3


def test_opposite_noises_follow_each_other():
    denoise, picture, seen = toys.mixture(), torch.zeros(1, 4, 3, 3, dtype=torch.float64), []

    def source(x, sigma, i):
        seen.append(x / sigma)
        return denoise(x, sigma, BEFORE)

    walk(source, branch(denoise, AFTER), picture, grids(False))
    pairs = torch.stack(seen).reshape(6, 2, -1)
    assert (pairs[:, 0] + pairs[:, 1]).abs().max() < 1e-12
    assert (pairs[1:, 0] - pairs[:-1, 0]).abs().min(dim=1).values.max() > 0 and pairs.std() > 0.5


def test_what_is_kept_decides_and_sees_the_edit_so_far():
    picture, seen = toys.pictures(1), []
    left = torch.zeros(1, 1, 8, 6, dtype=torch.float64)
    left[..., :3] = 1

    def keep(i, change):
        seen.append(change)
        return left * change

    for flow in (False, True):
        steps, denoise = [], toys.mixture(flow=flow)
        made = walk(branch(denoise, BEFORE), branch(denoise, AFTER), picture, grids(flow), flow, keep=keep,
                    on_step=lambda i, edited, steps=steps: steps.append(edited))
        assert torch.equal(made[..., 3:], picture[..., 3:]) and (made - picture)[..., :3].abs().min() > 0
        assert len(steps) == 12 and torch.allclose(steps[-1], made, atol=1e-12)
    assert all((change[..., 3:].abs().max() > 0) for change in seen)


@pytest.mark.parametrize("flow", [False, True])
def test_coarse_keeps_what_noise_lets_see(flow):
    change = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy, clear = (torch.tensor(level / (1 + level) if flow else level, dtype=torch.float64) for level in (6.0, 3.0))
    assert torch.equal(coarse(change, clear, flow), change)
    window = change[:, :, 8:13, 20:25].mean((2, 3))
    assert torch.allclose(coarse(change, noisy, flow)[:, :, 10, 22], window)
    even = torch.full_like(change, 0.3)
    assert torch.allclose(coarse(even, noisy, flow), even)
    assert torch.isfinite(coarse(change, torch.tensor(1.0), True)).all()


def test_too_few_generators_are_refused():
    denoise = toys.mixture()
    with pytest.raises(ValueError, match="2 pictures need as many noise generators, not 1"):
        shared_noise(one_by_one(branch(denoise, BEFORE), branch(denoise, AFTER)), toys.pictures(2), grids(False),
                     picture_generators(0, [0]))
