"""The published code's walk of N - 2 moves: against its own loops written out, and in the executor."""

import math

import pytest
import torch
from support.tiny import Scene, flow, pictures
from support.toys import pictures as toy_pictures
from support.toys import scaled_linear_sigmas

from harness.results import GraphFailed
from mirror_ops.measure.metrics import relative_displacement
from mirror_ops.rewriting.redescribe import redescribe
from mirror_ops.rewriting.rewriters import Adam, Keep
from mirror_ops.walks.ddim import variance_preserving
from mirror_ops.walks.parity import parity_invert, parity_levels, resting
from mirror_ops.walks.schedules import paper_grid

TABLE = scaled_linear_sigmas()
ALPHA_BAR = 1 / (1 + TABLE**2)
PARITY, PAPERS = "parity (pix2pix-zero's own code)", "papers (50: 981, ..., 21, 1)"
generator = torch.Generator().manual_seed(0)
MIX = torch.randn(4, 4, generator=generator, dtype=torch.float64) / 2
CAPTION = 0.5 * torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)


def network(x, t, c):
    """A smooth toy: unit-variance latent, timestep, embedding [B, tokens, 4]."""
    prompt = torch.tanh(c).sum(dim=1)[:, :, None, None]
    return 0.6 * torch.tanh(torch.einsum("oc,bchw->bohw", MIX, x) + prompt) + 0.3 * x * math.cos(float(t) / 500)


def denoise(x, sigma, c):
    t = (TABLE.log() - sigma.log()).abs().argmin()
    return x - sigma * network(x * variance_preserving(sigma), t, c)


def ddim(x, e, a, b):
    return b.sqrt() * (x - (1 - a).sqrt() * e) / a.sqrt() + (1 - b).sqrt() * e


def official(steps, z0, rewrite=False):
    """(noise, inversion's latents from clean to noisy, reconstruction's latents), variance preserving."""
    stride = 1000 // steps
    timesteps = [k * stride + 1 for k in range(steps)][::-1]
    x, recorded = z0, [z0]
    for t in timesteps[::-1][1:-1]:
        x = ddim(x, network(x, t, CAPTION), ALPHA_BAR[t - 1], ALPHA_BAR[t + stride - 1])
        recorded.append(x)
    caption, back = CAPTION, []
    for i, t in enumerate(timesteps):
        a, b = ALPHA_BAR[t], ALPHA_BAR[t - stride] if t > stride else ALPHA_BAR[0]
        aim = len(recorded) - i - 2
        if rewrite and aim >= 0:
            leaf = caption.clone().requires_grad_(True)
            adam = torch.optim.Adam([leaf], lr=1e-2 * (1 - i / steps / 2))
            for _ in range(2):
                loss = (ddim(x, network(x, t, leaf), a, b) - recorded[aim]).square().mean(dim=(1, 2, 3)).sum()
                adam.zero_grad()
                loss.backward()
                adam.step()
            caption = leaf.detach()
        x = ddim(x, network(x, t, caption), a, b)
        back.append(x)
    return recorded, back


@pytest.mark.parametrize("steps, first, last", [(50, 21, 961), (60, 17, 929), (7, 143, 711)])
def test_the_levels_are_the_published_ones(steps, first, last):
    levels, labels = parity_levels(TABLE, steps)
    assert len(levels) == steps - 1 and len(labels) == steps - 2
    assert torch.equal(labels[[0, -1]], TABLE[[last, first]])
    assert torch.equal(levels[[0, -1]], TABLE[[last + 1000 // steps - 1, first - 1]])
    with pytest.raises(ValueError, match="3 or more, not 2"):
        parity_levels(TABLE, 2)


@pytest.mark.parametrize("steps", [7, 50])
def test_walks_equal_the_published_loops(steps):
    z0 = toy_pictures(2, 5, 6)
    recorded, back = official(steps, z0)
    grid = paper_grid(TABLE, steps)
    scale = variance_preserving(grid).reshape(-1, 1, 1, 1, 1)
    latents = parity_invert(denoise, z0, TABLE, steps, CAPTION)
    assert latents.shape[0] == steps + 1 and torch.equal(latents[-2:], z0.expand(2, *z0.shape))
    assert torch.allclose((scale * latents)[:-2], torch.stack(recorded[::-1]), rtol=0, atol=1e-10)
    walk = redescribe(denoise, grid, latents, CAPTION, resting(Keep(), steps))
    assert torch.allclose((scale * walk.reconstruction)[1:], torch.stack(back), rtol=0, atol=1e-10)
    assert relative_displacement(back[-1], z0).min() > 1e-2, "it can't be exact"


def test_rewriting_aims_where_the_published_loops_do_and_rests_where_their_index_wraps():
    z0, steps = toy_pictures(2, 5, 6), 10
    _, back = official(steps, z0, rewrite=True)
    grid = paper_grid(TABLE, steps)
    latents = parity_invert(denoise, z0, TABLE, steps, CAPTION)
    walk = redescribe(denoise, grid, latents, CAPTION, resting(Adam(steps=2, early_stop=False), steps))
    scale = variance_preserving(grid).reshape(-1, 1, 1, 1, 1)
    aimed = slice(1, steps - 2)  # at the picture itself this toy's Adam would divide gradients by themselves
    assert torch.allclose((scale * walk.reconstruction)[aimed], torch.stack(back)[: steps - 3], rtol=0, atol=1e-6)
    assert walk.evaluations == [2] * 8 + [0, 0]
    assert torch.equal(walk.embeddings[7], walk.embeddings[9]) and not torch.equal(*walk.embeddings[6:8])


def test_the_node_walks_it_and_a_stock_sampler_follows(run_graph):
    scene = Scene(steps=8, scheduler=PAPERS)
    made = {label: scene.invert(Scene.PAPER, label=label) for label in (PARITY, "current (pix2pix-zero family)")}
    parity = made[PARITY]
    stock = scene.add(
        "SamplerCustom", model=scene.model, add_noise=False, noise_seed=0, cfg=1.0, positive=parity(1),
        negative=scene.empty, sampler=scene.add("KSamplerSelect", sampler_name="euler")(), sigmas=parity(3),
        latent_image=parity(0))
    edit = scene.sample(parity, positive=scene.text("a photo of a dog"))
    run = run_graph(scene)
    mirrors = [run.outputs[node.id][2] for node in made.values()]
    assert [mirror.provenance.forwards for mirror in mirrors] == [6 + 6 * 3 + 8, 8 + 8 * 3 + 8]
    assert mirrors[0].provenance.evaluations == (3,) * 6 + (0, 0) and mirrors[0].provenance.label == PARITY
    assert relative_displacement(*(mirror.latents[0] for mirror in mirrors)).min() > 1e-3
    back = run.outputs[parity.id][4]["samples"]
    assert relative_displacement(run.outputs[stock.id][0]["samples"], back).max() < 1e-5
    assert torch.isfinite(run.outputs[edit.id][0]["samples"]).all()


def test_where_it_has_no_meaning_it_is_refused(run_graph):
    def failure(scene, rewriter=Scene.NONE, **changes):
        scene.invert(rewriter, label=PARITY, **changes)
        with pytest.raises(GraphFailed) as caught:
            run_graph(scene)
        return caught.value.text

    assert "papers' grid of an eps- or v-prediction model" in failure(Scene())
    assert "papers' grid" in failure(Scene(scheduler=PAPERS), denoise=0.5)
    assert "papers' grid" in failure(Scene(flow, lambda: pictures(channels=16), scheduler="simple"))
    assert "papers' grid" in failure(Scene(steps=2, scheduler=PAPERS))
    assert "set `refine` to 0" in failure(Scene(scheduler=PAPERS), refine=1)
    assert "set `refine` to 0" in failure(
        Scene(scheduler=PAPERS), {"method": "fixed point + negative prompt", "method__iterations": 2})
