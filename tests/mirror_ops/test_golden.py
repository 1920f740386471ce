"""The methods against values that were computed once by other code (`support/golden.py`): numbers that a change of the
house must not change."""

import pytest
import torch
from safetensors.torch import load_file
from support import golden
from support.golden import CFG, EMPTY, FLOW, PICTURE, SIGMAS, SOURCE, STEPS, TARGET, network

from mirror_ops.directions.direction import SentenceMean
from mirror_ops.guidance import proximal
from mirror_ops.guidance.classifier_free import guided, of_negative, of_positive
from mirror_ops.inversion.bdia import bdia_decode, bdia_encode
from mirror_ops.inversion.edict import edict_decode, edict_encode
from mirror_ops.inversion.invert import invert
from mirror_ops.inversion.refine import refine
from mirror_ops.inversion.regularise import regularise
from mirror_ops.regions.found import late_region, latent_region, picture_region
from mirror_ops.regions.predicted import edited_region, walked_region
from mirror_ops.rewriting.redescribe import redescribe
from mirror_ops.rewriting.rewriters import Adam, null_text
from mirror_ops.stochastic.dpm_encoder import dpm_decode, dpm_encode
from mirror_ops.stochastic.edit_friendly import edit_friendly_encode
from mirror_ops.walks.ddim import euler
from mirror_ops.walks.edit_schedule import amounts, guidance
from mirror_ops.walks.noise import picture_generators, seeded
from mirror_ops.walks.schedules import current_labels
from mirror_ops.walks.shared_noise import shared_noise
from mirror_ops.walks.slerp import slerp

GOLDEN = load_file(golden.FILE)
DOUBLE = {"network": torch.float64}


def inversions():
    def up(**how):
        return invert(network, PICTURE, SIGMAS, SOURCE, **how)[0]

    shifts = seeded(8)
    yield "target", up()
    yield "current", up(labels=current_labels(SIGMAS, 0.03))
    yield "regularised", up(regularise=lambda e: regularise(e, shifts))
    yield "fixed point", up(refine=lambda g, x: refine(g, x, 3).x)


def rewriting():
    latents = invert(network, PICTURE, SIGMAS, SOURCE)
    settings = {"steps": 4, "tolerance": 0.02}
    sides = (("positive", of_positive, EMPTY, SOURCE, Adam), ("negative", of_negative, SOURCE, EMPTY, null_text))
    for side, of, other, start, rewriter in sides:
        made = redescribe(of(network, CFG, other), SIGMAS, latents, start, rewriter(**settings))
        yield f"{side}.prompts", made.embeddings
        yield f"{side}.picture", made.reconstruction[-1]
        assert min(made.evaluations) < 4, "some steps stop early"


def edict():
    noise = edict_encode(network, PICTURE, SIGMAS, SOURCE, **DOUBLE)[0]
    yield "noise", noise
    yield "edit", edict_decode(network, noise, SIGMAS, TARGET, **DOUBLE)[-1, 0]


def bdia():
    latents = bdia_encode(network, PICTURE, SIGMAS, SOURCE, **DOUBLE)
    yield "noise", latents[0]
    yield "edit", bdia_decode(network, latents[:2], SIGMAS, TARGET, **DOUBLE)[-1]


def noises(code, eta):
    yield "noises", code.noises
    yield "edit", dpm_decode(network, code.latents[0], code.noises, SIGMAS, TARGET, eta)


def dpm_encoder():
    return noises(dpm_encode(network, PICTURE, SIGMAS, SOURCE, 0.3, picture_generators(7, range(2))), 0.3)


def edit_friendly():
    return noises(edit_friendly_encode(network, PICTURE, SIGMAS, SOURCE, picture_generators(7, range(2))), 1.0)


def shared():
    def both(x, edited, sigma, i):
        return network(x, sigma, SOURCE, flow=True), network(edited, sigma, TARGET, flow=True)

    def both_guided(x, edited, sigma, i):
        denoise = guided(network, CFG)
        return denoise(x, sigma, (SOURCE, EMPTY)), denoise(edited, sigma, (TARGET, EMPTY))

    yield "flow", shared_noise(both, PICTURE, FLOW, picture_generators(11, range(2)), flow=True, draws=2)
    yield "jump", shared_noise(both_guided, PICTURE, SIGMAS, picture_generators(11, range(2)), jump=True,
                               antithetic=False)


def proximal_guidance():
    sigma, following = SIGMAS[2], SIGMAS[3]
    x, kept = (PICTURE + level * golden.drawn(seed, *PICTURE.shape) for level, seed in ((sigma, 20), (following, 21)))
    cond, uncond = network(x, sigma, TARGET), network(x, sigma, SOURCE)
    quantile = proximal.Threshold(0.7)
    thresholds = {"soft": quantile, "hard": quantile, "published": proximal.Threshold(0.7, whole_batch=True),
                  "fixed": proximal.Threshold(None, 0.05)}
    for name, threshold in thresholds.items():
        tau = threshold(cond - uncond, sigma, alone=True)
        shrink = proximal.hard if name == "hard" else proximal.soft
        yield name, proximal.proximal_guidance(cond, uncond, CFG, tau, shrink)
    mask = proximal.EditMask(quantile, published=True)(cond - uncond, sigma)
    guess = proximal.proximal_guidance(cond, uncond, CFG, quantile(cond - uncond, sigma))
    yield "mask", mask
    yield "inversion", proximal.inversion_guidance(euler(x, guess, sigma, following), kept, mask, 0.4)
    yield "reconstruction", proximal.reconstruction_guidance(x, guess, PICTURE, mask, 0.4, sigma, following)


def masks():
    levels = torch.linspace(8, 0, 26, dtype=torch.float64)
    latents = PICTURE + levels.reshape(-1, 1, 1, 1, 1) * golden.drawn(30, *PICTURE.shape)
    def look(x, sigma, i):
        return network(x, sigma, SOURCE), network(x, sigma, TARGET)

    before, after = look(PICTURE, SIGMAS[3], 0)
    moved = 0.2 * (after - before)
    first = edited_region(look, levels, latents)
    yield "first", first[:, 0]
    yield "edit", latent_region(moved, PICTURE)[:, 0]
    yield "pictures", picture_region(*golden.photos())[:, 0]
    walked, late = walked_region(first, PICTURE, 20), late_region(PICTURE, 20)
    held = [(torch.equal(walked(i, 0 * moved), first), bool(late(i, moved).all())) for i in range(20)]
    yield "turns", torch.tensor(held, dtype=torch.float64).sum(dim=0)


def directions():
    sides = [SentenceMean(golden.drawn(seed, n, 1, golden.TOKENS, golden.NUMBERS)) for seed, n in ((40, 5), (41, 4))]
    yield "delta", sides[0].to(sides[1])
    yield "amounts", torch.tensor(amounts(STEPS, 0.65, 1.2, 2 / 3), dtype=torch.float64)
    yield "cfgs", torch.tensor(guidance(STEPS, CFG, 0.4), dtype=torch.float64)
    yield "arc", slerp(SOURCE, TARGET, 0.3)


METHODS = {"inversion": inversions, "rewriting": rewriting, "edict": edict, "bdia": bdia, "dpm-encoder": dpm_encoder,
           "edit-friendly": edit_friendly, "shared noise": shared, "proximal": proximal_guidance, "mask": masks,
           "direction": directions}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_gives_the_golden_values(method):
    made = {f"{method}.{name}": value for name, value in METHODS[method]()}
    assert set(made) == {name for name in GOLDEN if name.split(".")[0] == method}
    for name, value in made.items():
        bound = 1e-6 if name == "direction.delta" else 1e-9      # which is kept in float32
        assert torch.allclose(value.double(), GOLDEN[name], rtol=bound, atol=bound), name


def test_the_file_is_what_its_code_says():
    """If this fails: python tests/support/golden.py"""
    values = golden.values()
    assert set(values) == set(GOLDEN)
    for name, value in values.items():
        assert torch.allclose(value, GOLDEN[name], rtol=1e-9, atol=1e-9), name
