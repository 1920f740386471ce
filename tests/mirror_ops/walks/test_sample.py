"""The walk against independent straight-line formulas of the papers, in float64 on a toy network."""

import math

import pytest
import torch
from support.toys import scaled_linear_sigmas

from mirror_ops.guidance import classifier_free as guidance
from mirror_ops.inversion.invert import invert
from mirror_ops.rewriting.redescribe import redescribe
from mirror_ops.rewriting.rewriters import Adam, Keep, NegativePrompt, null_text
from mirror_ops.walks.ddim import euler, unscaled, variance_preserving
from mirror_ops.walks.sample import mirror_sample, sample
from mirror_ops.walks.schedules import current_labels, paper_grid, paper_timesteps

TOKENS, WIDTH = 4, 32
TABLE = scaled_linear_sigmas()
ALPHA_BAR = 1 / (1 + TABLE**2)
generator = torch.Generator().manual_seed(0)
MIX = torch.randn(4, 4, generator=generator, dtype=torch.float64) / 2
LIFT = torch.randn(TOKENS, WIDTH, 4, 6, 5, generator=generator, dtype=torch.float64) / (TOKENS * WIDTH) ** 0.5
X0 = torch.randn(2, 4, 6, 5, generator=generator, dtype=torch.float64)
SOURCE = torch.randn(2, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
COMPARED = 10  # of 50 steps: near its goal Adam divides gradients by themselves and amplifies rounding
EMPTY = SOURCE + 0.1 * torch.randn(2, TOKENS, WIDTH, generator=generator, dtype=torch.float64)


def network(x, t, c):
    """A smooth toy: reads a unit-variance latent, a timestep, and an embedding that reaches every pixel."""
    mixed = torch.einsum("oc,bchw->bohw", MIX, x)
    prompt = torch.tanh(torch.einsum("btw,twchv->bchv", c, LIFT))
    return 0.5 * torch.tanh(mixed + prompt) + 0.3 * x * math.cos(float(t) / 500) + 0.3 * prompt


def timestep(sigma):
    return (TABLE.log() - torch.log(sigma)).abs().argmin()


def eps_denoise(x, sigma, c):
    return x - sigma * network(x * variance_preserving(sigma), timestep(sigma), c)


def v_denoise(x, sigma, c):
    v = network(x * variance_preserving(sigma), timestep(sigma), c)
    return x / (1 + sigma**2) - v * sigma / (1 + sigma**2).sqrt()


def flow_denoise(x, sigma, c):
    return x - sigma * network(x, 1000 * sigma, c)


def ddim(x, e, a, b):
    """DDIM from level a to level b in the variance-preserving form (Song et al. 2021, eq. 12)."""
    return b.sqrt() * (x - (1 - a).sqrt() * e) / a.sqrt() + (1 - b).sqrt() * e


def levels(steps):
    """[(alpha_bar of the step's own level, of the next, timestep)] in sampling order, as in the official loops."""
    times = paper_timesteps(steps)[::-1]
    stride = 1000 // steps
    return [(ALPHA_BAR[t], ALPHA_BAR[t - stride] if t >= stride else ALPHA_BAR[0], t) for t in times]


@pytest.mark.parametrize("steps", [7, 50])
@pytest.mark.parametrize("kind", ["eps", "v"])
def test_walks_equal_the_variance_preserving_formulas(steps, kind):
    def noise(x, a, t):
        out = network(x, t, SOURCE)
        return out if kind == "eps" else a.sqrt() * out + (1 - a).sqrt() * x

    x = ALPHA_BAR[0].sqrt() * X0
    up = [x]
    for a, b, t in reversed(levels(steps)):
        # the network reads the latent of level b under the label t of the noisier level a (null-text convention)
        e = network(x, t, SOURCE) if kind == "eps" else ALPHA_BAR[t].sqrt() * network(x, t, SOURCE) + (
            1 - ALPHA_BAR[t]).sqrt() * x
        x = ddim(x, e, b, a)
        up.append(x)
    down = [x]
    for a, b, t in levels(steps):
        x = ddim(x, noise(x, a, t), a, b)
        down.append(x)

    sigmas = paper_grid(TABLE, steps)
    scale = variance_preserving(sigmas)[:, None, None, None, None]
    denoise = eps_denoise if kind == "eps" else v_denoise
    latents = invert(denoise, X0, sigmas, SOURCE)
    back = sample(lambda x, sigma, i: denoise(x, sigma, SOURCE), sigmas, latents[0])
    assert torch.allclose(scale * latents, torch.stack(up[::-1]), rtol=0, atol=1e-10)
    assert torch.allclose(scale * back, torch.stack(down), rtol=0, atol=1e-10)


def test_the_current_label_is_that_of_the_cleaner_level():
    sigmas = torch.cat([TABLE[[801, 401, 1]], torch.zeros(1, dtype=torch.float64)])
    x = X0 / (1 + sigmas[2] ** 2).sqrt() + sigmas[2] / (1 + sigmas[2] ** 2).sqrt() * network(
        X0 * variance_preserving(sigmas[3]), 0, SOURCE)
    for a, b, t in ((1, 401, 1), (401, 801, 401)):
        x = ddim(x, network(x, t, SOURCE), ALPHA_BAR[a], ALPHA_BAR[b])
    latents = invert(eps_denoise, X0, sigmas, SOURCE, labels=current_labels(sigmas, TABLE[0]))
    assert torch.allclose(variance_preserving(sigmas[0]) * latents[0], x, rtol=0, atol=1e-10)


def test_flow_walks_from_noise_to_zero_without_dividing_by_zero():
    sigmas = torch.linspace(1, 0, 9, dtype=torch.float64)
    x, up = X0, [X0]
    for i in reversed(range(8)):
        x = x + (sigmas[i] - sigmas[i + 1]) * network(x, 1000 * sigmas[i], SOURCE)
        up.append(x)
    latents = invert(flow_denoise, X0, sigmas, SOURCE, input_scale=unscaled)
    assert torch.allclose(latents, torch.stack(up[::-1]), rtol=0, atol=1e-12)
    back = sample(lambda x, sigma, i: flow_denoise(x, sigma, SOURCE), sigmas, latents[0])
    for i in range(8):
        x = x + (sigmas[i + 1] - sigmas[i]) * network(x, 1000 * sigmas[i], SOURCE)
    assert torch.allclose(back[-1], x, rtol=0, atol=1e-12)


def test_guidance_is_linear_in_the_predictions():
    sigma = TABLE[500]
    kept, base = eps_denoise(X0, sigma, SOURCE), eps_denoise(X0, sigma, EMPTY)
    for scale in (0.0, 1.0, 5.0):
        expected = (1 - scale) * base + scale * kept
        for denoise in (
            lambda scale=scale: guidance.guided(eps_denoise, scale)(X0, sigma, (SOURCE, EMPTY)),
            lambda scale=scale: guidance.of_positive(eps_denoise, scale, EMPTY)(X0, sigma, SOURCE),
            lambda scale=scale: guidance.of_negative(eps_denoise, scale, SOURCE)(X0, sigma, EMPTY),
        ):
            assert torch.allclose(denoise(), expected, rtol=0, atol=1e-10)


def official_loop(steps, side, scale, latents, early_stop):
    """The published optimisation loop, on one picture, in variance-preserving form with torch's Adam."""
    positive, negative = SOURCE[:1], EMPTY[:1]
    x, embeddings, counts = latents[0], [], []
    for i, (a, b, t) in enumerate(levels(steps)[:COMPARED]):
        leaf = (positive if side == "positive" else negative).detach().clone().requires_grad_(True)
        count, adam = 0, torch.optim.Adam([leaf], lr=1e-2 * (1 - i / 100))

        def step(leaf, x=x, a=a, b=b, t=t, fixed=negative if side == "positive" else positive):
            c, u = (leaf, fixed) if side == "positive" else (fixed, leaf)
            e_u, e_c = network(x, t, u), network(x, t, c)
            return ddim(x, e_u + scale * (e_c - e_u), a, b)

        for _ in range(10):
            count += 1
            loss = torch.nn.functional.mse_loss(step(leaf), latents[i + 1])
            adam.zero_grad()
            loss.backward()
            adam.step()
            if early_stop and loss.item() < 1e-5 + 2e-5 * i:
                break
        leaf = leaf.detach()
        positive, negative = (leaf, negative) if side == "positive" else (positive, leaf)
        x = step(leaf).detach()
        embeddings.append(leaf)
        counts.append(count)
    return torch.stack(embeddings), x, counts


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("side, scale", [("positive", 1.0), ("positive", 5.0), ("negative", 7.5)])
def test_adam_rewriters_equal_the_official_loops_at_50_steps(side, scale, early_stop):
    sigmas = paper_grid(TABLE, 50)
    latents = invert(eps_denoise, X0[:1], sigmas, SOURCE[:1])
    unit = variance_preserving(sigmas)[:, None, None, None, None]
    embeddings, x, counts = official_loop(50, side, scale, unit * latents, early_stop)
    if side == "positive":
        rewriter, start = Adam(early_stop=early_stop), SOURCE[:1]
        denoise = guidance.of_positive(eps_denoise, scale, EMPTY[:1])
    else:
        rewriter, start = null_text(early_stop=early_stop), EMPTY[:1]
        denoise = guidance.of_negative(eps_denoise, scale, SOURCE[:1])
    back = redescribe(denoise, sigmas, latents, start, rewriter)
    assert torch.allclose(back.embeddings[:COMPARED], embeddings, rtol=0, atol=1e-6)
    assert torch.allclose(unit[COMPARED] * back.reconstruction[COMPARED], x, rtol=0, atol=1e-6)
    assert back.evaluations[:COMPARED] == counts
    assert early_stop == (sum(back.evaluations) < 500)


def test_rewriting_brings_the_picture_back_where_plain_sampling_loses_it():
    sigmas = paper_grid(TABLE, 50)
    latents = invert(eps_denoise, X0, sigmas, SOURCE)
    denoise = guidance.of_positive(eps_denoise, 5.0, EMPTY)

    def error(rewriter):
        back = redescribe(denoise, sigmas, latents, SOURCE, rewriter)
        return (back.reconstruction[-1] - X0).square().mean().item()

    plain, stopped, full = error(Keep()), error(Adam()), error(Adam(early_stop=False))
    assert stopped < plain / 10
    assert full < stopped


def test_a_batch_is_rewritten_as_its_pictures_alone():
    sigmas = paper_grid(TABLE, 50)
    latents = invert(eps_denoise, X0, sigmas, SOURCE)
    denoise = guidance.of_positive(eps_denoise, 5.0, EMPTY)
    together = redescribe(denoise, sigmas, latents, SOURCE, Adam())
    early, counts = slice(0, COMPARED), []
    for k in range(2):
        one = slice(k, k + 1)
        denoise = guidance.of_positive(eps_denoise, 5.0, EMPTY[one])
        alone = redescribe(denoise, sigmas, latents[:, one], SOURCE[one], Adam())
        assert torch.allclose(together.embeddings[early, one], alone.embeddings[early], rtol=0, atol=1e-6)
        assert torch.allclose(together.reconstruction[early, one], alone.reconstruction[early], rtol=0, atol=1e-6)
        counts.append(alone.evaluations[early])
    assert counts[0] != counts[1], "the pictures must stop at different evaluations for this test to count"
    assert together.evaluations[early] == [max(pair) for pair in zip(*counts, strict=True)]


def test_each_step_aims_at_its_own_recorded_latent_and_starts_where_the_last_arrived():
    sigmas = paper_grid(TABLE, 6)
    latents = invert(eps_denoise, X0, sigmas, SOURCE)
    seen = []

    def spy(move, target, embedding, progress):
        seen.append((target, embedding, progress))
        return Adam(steps=2)(move, target, embedding, progress)

    back = redescribe(eps_denoise, sigmas, latents, SOURCE[:1], spy)
    for i, (target, embedding, progress) in enumerate(seen):
        assert torch.equal(target, variance_preserving(sigmas[i + 1]) * latents[i + 1])
        assert progress == i / 6
        assert torch.equal(embedding, SOURCE[:1].expand(2, -1, -1) if i == 0 else back.embeddings[i - 1])
        arrived = euler(
            back.reconstruction[i], eps_denoise(back.reconstruction[i], sigmas[i], back.embeddings[i]),
            sigmas[i], sigmas[i + 1])
        assert torch.allclose(arrived, back.reconstruction[i + 1], rtol=0, atol=1e-12)
        loss = (variance_preserving(sigmas[i + 1]) * arrived - target).square().mean(dim=(1, 2, 3))
        assert torch.allclose(loss, back.losses[i], rtol=1e-9, atol=0)


def test_negative_prompt_inversion_is_plain_ddim_at_any_guidance():
    sigmas = paper_grid(TABLE, 10)
    latents = invert(eps_denoise, X0, sigmas, SOURCE)
    plain = sample(lambda x, sigma, i: eps_denoise(x, sigma, SOURCE), sigmas, latents[0])
    back = redescribe(guidance.of_negative(eps_denoise, 7.5, SOURCE), sigmas, latents, SOURCE, NegativePrompt())
    assert torch.allclose(back.reconstruction, plain, rtol=0, atol=1e-10)


def branch(c):
    return lambda x, sigma, i: eps_denoise(x, sigma, c)


def test_both_branches_walk_side_by_side():
    sigmas = paper_grid(TABLE, 10)
    latents = invert(eps_denoise, X0, sigmas, SOURCE)
    target = SOURCE + 0.3
    edited, kept = mirror_sample(branch(SOURCE), branch(target), sigmas, latents)
    assert torch.equal(kept, sample(branch(SOURCE), sigmas, latents[0])[-1])
    assert torch.equal(edited, sample(branch(target), sigmas, latents[0])[-1])
    assert (edited - kept).abs().max() > 0.01


def test_the_recorded_source_branch_is_bit_exact():
    sigmas = paper_grid(TABLE, 10)
    latents = invert(eps_denoise, X0, sigmas, SOURCE)
    edited, kept = mirror_sample(branch(SOURCE), branch(SOURCE + 0.3), sigmas, latents, exact=True)
    assert torch.equal(kept, X0)
    assert torch.equal(edited, sample(branch(SOURCE + 0.3), sigmas, latents[0])[-1])
    unedited, _ = mirror_sample(branch(SOURCE), branch(SOURCE), sigmas, latents, exact=True, residual=True)
    assert torch.allclose(unedited, X0, rtol=0, atol=1e-12)
    drifting, _ = mirror_sample(branch(SOURCE), branch(SOURCE), sigmas, latents, exact=True)
    assert (drifting - X0).abs().max() > 1e-3


def test_a_region_is_told_what_the_edit_would_change():
    sigmas = paper_grid(TABLE, 10)
    latents = sample(branch(SOURCE), sigmas, invert(eps_denoise, X0, sigmas, SOURCE)[0])
    told = []

    def region(i, difference):
        told.append(difference)
        return torch.zeros(1, 1, 1, 1, dtype=torch.float64)

    mirror_sample(branch(SOURCE), branch(SOURCE + 0.3), sigmas, latents, region=region)
    assert len(told) == 10
    for i, difference in enumerate(told):
        exact = branch(SOURCE + 0.3)(latents[i], sigmas[i], i) - branch(SOURCE)(latents[i], sigmas[i], i)
        assert torch.allclose(difference, exact, rtol=0, atol=1e-9) and exact.abs().max() > 1e-3


def test_a_mask_keeps_the_recording_outside():
    sigmas = paper_grid(TABLE, 10)
    latents = invert(eps_denoise, X0, sigmas, SOURCE)
    mask = torch.zeros(1, 1, 6, 5, dtype=torch.float64)
    mask[..., :3] = 1
    edited, _ = mirror_sample(
        branch(SOURCE), branch(SOURCE + 0.3), sigmas, latents, region=lambda i, difference: mask)
    assert torch.equal(edited[..., 3:], X0[..., 3:])
    assert (edited[..., :3] - X0[..., :3]).abs().max() > 0.01
