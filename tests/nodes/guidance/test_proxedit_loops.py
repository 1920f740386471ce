"""Null-text, negative-prompt and proximal negative-prompt inversion: whole walks against straight-line code.

The straight-line code is the published loop in variance-preserving form, source and target in one batch. It is compared
twice: in float64 on a toy attention network with the patches themselves, and in the real executor with the nodes.
"""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from support.tiny import Scene, pictures
from support.toys import provenance, scaled_linear_sigmas

from harness.graph import node
from mirror_ops.guidance.proximal import EditMask, Threshold, soft
from mirror_ops.inversion.invert import invert
from mirror_ops.rewriting.redescribe import redescribe
from mirror_ops.rewriting.rewriters import NegativePrompt
from mirror_ops.walks.provenance import Side
from mirror_ops.walks.sample import mirror_sample
from mirror_ops.walks.schedules import paper_grid, paper_timesteps
from mirror_ops.walks.slerp import slerp
from mirror_ops.walks.trajectory import Mirror

TABLE = scaled_linear_sigmas()
ALPHA_BAR = 1 / (1 + TABLE**2)
SCALE, QUANTILE, PAPERS = 7.5, 0.7, "papers (50: 981, ..., 21, 1)"
INVERSION, RECONSTRUCTION = {"pull": "inversion", "rate": 0.6}, {"pull": "reconstruction", "rate": 0.3}
PULLS = pytest.mark.parametrize("pull", [{}, INVERSION, RECONSTRUCTION], ids=["alone", "inversion", "reconstruction"])
READINGS = pytest.mark.parametrize("published", [True, False], ids=["published", "fixed"])
UNTIL = 500  # the pulls act at timesteps up to this


def levels(steps):
    """[(timestep, its alpha_bar, that of the next step)] in sampling order."""
    times, stride = paper_timesteps(steps)[::-1], 1000 // steps
    return [(t, ALPHA_BAR[t], ALPHA_BAR[t - stride] if t >= stride else ALPHA_BAR[0]) for t in times]


def ddim(x, e, a, b):
    return b.sqrt() * (x - (1 - a).sqrt() * e) / a.sqrt() + (1 - b).sqrt() * e


def straight_inversion(network, z0, source, steps):
    """[z0, ..., zT], at guidance 1, under the label of the noisier level."""
    latents = [z0]
    for t, a, b in reversed(levels(steps)):
        latents.append(ddim(latents[-1], network(latents[-1], t, source), b, a))
    return latents


def straight_null_text(network, latents, source, empty, steps, inner):
    """Null-text inversion without early stop: the embedding of each step."""
    x, null, nulls = latents[-1], empty, []
    for i, (t, a, b) in enumerate(levels(steps)):
        null = null.detach().clone().requires_grad_(True)
        adam = torch.optim.Adam([null], lr=1e-2 * (1 - i / (2 * steps)))
        cond = network(x, t, source).detach()
        for _ in range(inner):
            base = network(x, t, null)
            loss = (ddim(x, base + SCALE * (cond - base), a, b) - latents[-2 - i]).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        null = null.detach()
        base = network(x, t, null).detach()
        x = ddim(x, base + SCALE * (cond - base), a, b)
        nulls.append(null)
    return nulls


def straight_edit(network, latents, source, target, nulls, steps, prox=False, published=True, pull=None, rate=0.0):
    """[2, C, H, W]: the published loop over source and target together, with soft thresholding (its option 'l0')."""
    x, texts = latents[-1].repeat(2, 1, 1, 1), torch.cat([source, target])
    for i, (t, a, b) in enumerate(levels(steps)):
        base = network(x, t, nulls[i].repeat(2, 1, 1))
        delta = network(x, t, texts) - base
        if prox:
            tau = torch.quantile((delta if published else delta[1:]).abs(), QUANTILE)
            kept = delta - delta.clamp(-tau, tau)
            counts = (kept if published else delta).abs() > tau
            mask = torch.nn.functional.max_pool2d(counts.to(x), 3, stride=1, padding=1)
            delta = kept
        e = base + SCALE * delta
        clean = (x - (1 - a).sqrt() * e) / a.sqrt()
        if pull == "reconstruction" and t <= UNTIL:
            clean = clean - rate * (clean - latents[0] / ALPHA_BAR[0].sqrt()) * (1 - mask)
        x = b.sqrt() * clean + (1 - b).sqrt() * e
        if pull == "inversion" and t <= UNTIL:
            x = x - rate * (x - latents[-2 - i]) * (1 - mask)
    return x


# --- float64 on a toy network, with the patches themselves -----------------------------------------------------------

TOKENS, WIDTH, STEPS = 5, 8, 20
generator = torch.Generator().manual_seed(0)
random = partial(torch.randn, generator=generator, dtype=torch.float64)
TO_Q, TO_K, TO_V, MIX = random(4, WIDTH), random(WIDTH, WIDTH), random(WIDTH, 4) / 2, random(4, 4) / 2
X0, SOURCE, TARGET = random(1, 4, 6, 5), random(1, TOKENS, WIDTH), random(1, TOKENS, WIDTH)


def toy(x, t, c):
    """One cross-attention: pixels ask, the prompt's tokens answer."""
    q, k, v = x.flatten(2).mT @ TO_Q, c @ TO_K, c @ TO_V
    answer = (torch.softmax(q @ k.mT / WIDTH**0.5, dim=-1) @ v).mT.reshape(x.shape)
    return 0.6 * torch.tanh(torch.einsum("oc,bchw->bohw", MIX, x) + answer) + 0.1 * x * float(t) / 1000


def toy_denoise(x, sigma, c):
    t = (TABLE.log() - sigma.log()).abs().argmin()
    return x - sigma * toy(x / (1 + sigma**2).sqrt(), t, c)


@pytest.fixture(scope="module")
def mirror():
    sigmas = paper_grid(TABLE, STEPS)
    latents = invert(toy_denoise, X0, sigmas, SOURCE)
    return Mirror(sigmas, latents, latents, SOURCE, SOURCE.expand(STEPS, 1, -1, -1), provenance(side=Side.NEGATIVE))


def patches_of(host, mirror, prox, published, pull=None, rate=0.0):
    """The nodes' own post-cfg functions with the settings of `straight_edit`."""
    control = host.pack_module("nodes.host.guidance_control")
    threshold = Threshold(QUANTILE, whole_batch=published)
    patches = [control.Proximal(soft, threshold, control.Window(1000, 0, False))] if prox else []
    if pull:
        kind = {"inversion": control.ToRecording, "reconstruction": control.ToPicture}[pull]
        window = control.Window(UNTIL, 0, False)
        patches.append(kind(EditMask(threshold, 1, published), rate, window))
    return patches


def as_the_host_calls(options, patches, x, sigma, cond, base, scale):
    """A guided prediction, with post-cfg functions, as comfy.samplers.cfg_function makes it in an edit branch."""
    sampling = SimpleNamespace(timestep=lambda s: (TABLE.log() - s.log()).abs().argmin())
    denoised = base + scale * (cond - base)
    for patch in patches:
        denoised = patch({
            "denoised": denoised, "cond_denoised": cond, "uncond_denoised": base, "cond_scale": scale, "input": x,
            "sigma": sigma.expand(len(x)), "cond": [], "uncond": [], "model": SimpleNamespace(model_sampling=sampling),
            "model_options": {"transformer_options": options}})
    return denoised


@READINGS
@PULLS
def test_proximal_walks_equal_the_straight_line(host, mirror, published, pull):
    """To rounding, in both readings, which differ from each other and from what a part of the method makes."""
    patches = patches_of(host, mirror, True, published, **pull)
    reference = host.pack_module("nodes.host.reference_pass").Recorded(mirror, frozenset(), None)
    options = {"mirror_branch": host.pack_module("nodes.host.branches").Branch.EDIT, "mirror_reference": reference}

    def edit(x, sigma, i):
        reference.step = i
        return as_the_host_calls(
            options, patches, x, sigma, toy_denoise(x, sigma, TARGET), toy_denoise(x, sigma, SOURCE), SCALE)

    def back(x, sigma, i):
        return toy_denoise(x, sigma, SOURCE)

    edited, kept = mirror_sample(back, edit, mirror.sigmas, mirror.latents)
    root = ALPHA_BAR[0].sqrt()
    latents = straight_inversion(toy, root * X0, SOURCE, STEPS)
    straight = partial(straight_edit, toy, latents, SOURCE, TARGET, [SOURCE] * STEPS, STEPS)
    expected = straight(prox=True, published=published, **pull)
    assert torch.allclose(root * edited, expected[1:], rtol=0, atol=1e-10)
    if not pull:
        assert torch.allclose(root * kept, expected[:1], rtol=0, atol=1e-10)
    others = [straight(prox=True, published=not published, **pull), straight()]
    others += [straight(prox=True, published=published)] if pull else []
    assert all((other[1:] - expected[1:]).abs().max() > 1e-2 for other in others)


def test_negative_prompt_walks_equal_the_straight_line(mirror):
    """The source branch is DDIM's reconstruction at any guidance; the recorded one is the recording, bit for bit."""
    def branch(text, scale):
        def denoise(x, sigma, i):
            base = toy_denoise(x, sigma, SOURCE)
            return base + scale * (toy_denoise(x, sigma, text) - base)
        return denoise

    walk = partial(mirror_sample, branch(SOURCE, SCALE), branch(TARGET, SCALE), mirror.sigmas, mirror.latents)
    edited, kept = walk()
    root = ALPHA_BAR[0].sqrt()
    latents = straight_inversion(toy, root * X0, SOURCE, STEPS)
    expected = straight_edit(toy, latents, SOURCE, TARGET, [SOURCE] * STEPS, STEPS)
    assert torch.allclose(root * torch.cat([kept, edited]), expected, rtol=0, atol=1e-10)
    plain = redescribe(toy_denoise, mirror.sigmas, mirror.latents, SOURCE, NegativePrompt()).reconstruction[-1]
    assert torch.allclose(kept, plain, rtol=0, atol=1e-10) and (kept - X0).abs().max() > 1e-2
    assert torch.equal(walk(exact=True)[1], X0) and torch.equal(walk(exact=True)[0], edited)


def test_slerp_keeps_the_angles():
    """Along the arc: the ends, equal angles, the plane of both; straight where there is no arc."""
    start, end = SOURCE, TARGET * 0.5
    assert torch.allclose(slerp(start, end, 0.0), start, rtol=0, atol=1e-14)
    assert torch.allclose(slerp(start, end, 1.0), end, rtol=0, atol=1e-14)

    def angle(a, b):
        return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).acos()

    unit = end / end.norm() * start.norm()
    third = slerp(start, unit, 1 / 3)
    assert third.norm() == pytest.approx(start.norm().item(), rel=1e-12)
    assert angle(start, third) == pytest.approx(angle(start, end).item() / 3, rel=1e-9)
    assert angle(third, unit) == pytest.approx(angle(start, end).item() * 2 / 3, rel=1e-9)
    assert torch.allclose(slerp(start, 3 * start, 0.25), 1.5 * start, rtol=0, atol=1e-12)
    assert torch.allclose(slerp(start, 0 * start, 0.25), 0.75 * start, rtol=0, atol=1e-12)
    both = slerp(torch.cat([start, end]), end, 0.4)
    assert torch.allclose(both[:1], slerp(start, end, 0.4), rtol=0, atol=1e-12) and torch.allclose(both[1:], end)


# --- the nodes in the real executor -----------------------------------------------------------------------------------

FEW, INNER = 6, 2


def straight_node(scene, target, loop):
    """A node that gives LATENT: loop(network, z0, source, target, empty) on the tiny model's own network."""
    def execute(model, latent, source, target, empty):
        with torch.inference_mode(False):
            unet = model.model.diffusion_model
            parts = [latent["samples"] * 0.18215 * ALPHA_BAR[0].sqrt(), *(c[0][0] for c in (source, target, empty))]
            state = {name: value.clone() for name, value in unet.state_dict().items()}

            def network(x, t, c):
                times = torch.full((len(x),), float(t))
                inputs = (x.float(), times, c.float())
                return torch.func.functional_call(unet, state, inputs, {"transformer_options": {}}).double()

            made = loop(network, *(part.clone().double() for part in parts))
        return {"samples": (made / ALPHA_BAR[0].sqrt()).float() / 0.18215}

    wires = {"model": scene.model, "latent": scene.latent, "source": scene.source, "target": target,
             "empty": scene.empty}
    types = dict(zip(wires, ("MODEL", "LATENT", "CONDITIONING", "CONDITIONING", "CONDITIONING"), strict=True))
    return scene.add(node(execute, ("LATENT",), types), **wires)


def scene_of(rewriter, **changes):
    scene = Scene(latent=partial(pictures, height=8, width=12), steps=FEW, scheduler=PAPERS)
    return scene, scene.invert(rewriter, cfg=SCALE, **changes), scene.text("a photo of a red dog in the sky")


def samples(run, output, slot=0):
    return run.outputs[output.id][slot]["samples"]


def far(x, y):
    """The greatest difference, in deviations of the latent."""
    return ((x - y).abs().max() / y.std()).item()


def patched(scene, mirror, published, pull=None, rate=0.0):
    over = "whole batch (as published)" if published else "each picture"
    threshold = {"threshold": "quantile", "threshold__quantile": QUANTILE, "threshold__over": over}
    model = scene.add("MirrorProximalGuidance", model=scene.model, proximal_map="soft", **threshold)()
    if not pull:
        return model
    rule = "|proximal map| > threshold (as published)" if published else "|difference| > threshold"
    name = {"inversion": "MirrorInversionGuidance", "reconstruction": "MirrorReconstructionGuidance"}[pull]
    return scene.add(name, model=model, mirror=mirror(2), step_size=rate, dilation=1, first_timestep=UNTIL,
                     mask_rule=rule, **threshold)()


def test_the_proximal_nodes_equal_the_straight_line(run_graph):
    scene, mirror, target = scene_of({"method": "negative prompt"})
    free, pairs = scene.sample(mirror, positive=target, cfg=SCALE), []

    def loop(network, z0, source, target, empty, **settings):
        latents = straight_inversion(network, z0, source, FEW)
        return straight_edit(network, latents, source, target, [source] * FEW, FEW, **settings)

    plain = straight_node(scene, target, loop)
    for published in (True, False):
        for pull in ({}, INVERSION, RECONSTRUCTION):
            model = patched(scene, mirror, published, **pull)
            edit = scene.sample(mirror, positive=target, cfg=SCALE, model=model)
            pairs.append((edit, straight_node(
                scene, target, partial(loop, prox=True, published=published, **pull))))
    run = run_graph(scene)
    expected = samples(run, plain)
    assert far(samples(run, free), expected[1:]) < 1e-4 and far(samples(run, free, 1), expected[:1]) < 1e-4
    made = [samples(run, edit) for edit, _ in pairs]
    for k, (_, straight) in enumerate(pairs):
        expected = samples(run, straight)[1:]
        assert far(made[k], expected) < 2e-4
        assert all(far(other, expected) > 1e-2 for j, other in enumerate(made) if j != k)


def test_the_null_text_nodes_equal_the_straight_line(run_graph):
    rewriter = {"method": "null text", "method__inner_steps": INNER, "method__learning_rate": 0.01,
                "method__early_stop": False}
    scene, mirror, target = scene_of(rewriter)
    edit = scene.sample(mirror, positive=target, cfg=SCALE, negative=scene.empty)
    recorded = scene.sample(mirror, positive=target, cfg=SCALE, negative=scene.empty, exact="source")

    def loop(network, z0, source, target, empty, inner):
        latents = straight_inversion(network, z0, source, FEW)
        nulls = straight_null_text(network, latents, source, empty, FEW, inner)
        return straight_edit(network, latents, source, target, nulls, FEW)

    straight, without = (straight_node(scene, target, partial(loop, inner=inner)) for inner in (INNER, 0))
    run = run_graph(scene)
    expected, made = samples(run, straight), torch.cat([samples(run, edit, 1), samples(run, edit)])
    assert far(made, expected) < 1e-3 and far(samples(run, without), expected) > 2e-2
    picture = run.outputs[mirror.id][2].latents[-1]
    assert torch.equal(samples(run, recorded, 1), picture / 0.18215)
    assert torch.equal(samples(run, recorded), samples(run, edit))


@pytest.mark.parametrize("t", [0.4, 1.0])
def test_the_interpolated_negative_prompt_equals_the_straight_line(run_graph, t):
    rewriter = {"method": "negative prompt", "method__interpolation": t}
    scene, mirror, target = scene_of(rewriter)
    edit = scene.sample(mirror, positive=target, cfg=SCALE)

    def loop(network, z0, source, target, empty):
        null = (1 - t) * source + t * empty     # not on the arc
        cosine = (source * empty).sum() / (source.norm() * empty.norm())
        angle = cosine.acos()
        arc = (((1 - t) * angle).sin() * source + (t * angle).sin() * empty) / angle.sin()
        latents = straight_inversion(network, z0, source, FEW)
        made = [straight_edit(network, latents, source, target, [n] * FEW, FEW) for n in (arc, null)]
        return torch.cat(made)

    straight = straight_node(scene, target, loop)
    run = run_graph(scene)
    expected = samples(run, straight)
    assert far(torch.cat([samples(run, edit, 1), samples(run, edit)]), expected[:2]) < 1e-4
    assert (far(expected[2:], expected[:2]) > 2e-3) == (t == 0.4)
