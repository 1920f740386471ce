"""Langevin dynamics on all of a sampler's noises: pictures that a given energy likes, from a model that stays as it is.

Plug-and-play guidance (Wu & De la Torre, "A Latent Space of Stochastic Diffusion Models for Zero-Shot Image Editing and
Guidance", ICCV 2023, section 3.4). The picture is a function G(z) of z, the noise at the beginning and those of each
step; z has the prior N(0, I), and the energy E(G(z)), its weight included, makes the posterior exp(-U) with

    U(z) = |z|^2 / 2 + E(G(z)),        z <- z - h/2 grad U(z) + sqrt(h) omega,        omega ~ N(0, I).

Each iteration's omega comes from a generator of its own, so that a walk goes on from a kept state as if it had never
been interrupted.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from ..guidance.classifier_free import Denoiser
from ..storage.tensor_file import FileKind
from ..walks.ddim import moves
from ..walks.noise import seeded
from .dpm_encoder import ancestral_mean

SINGLE = (torch.float32,)
FILE = FileKind("mirror-langevin", 1, "walk of latent guidance", {"z": (5, SINGLE), "best": (5, SINGLE)})
Measure = Callable[[Tensor, Generator], Tensor]  # (z [N, B, C, H, W], its randomness) -> energies [B], differentiable


@dataclass(frozen=True, eq=False)
class State:
    """A walk so far. energies[k] belongs to the z that iteration k began with; `best` is the z of the lowest one."""

    z: Tensor  # [N, B, C, H, W] float32 on the CPU
    best: Tensor  # [N, B, C, H, W], each picture's own
    energies: list[list[float]] = field(default_factory=list)  # [iterations done][B]
    prior: list[float] = field(default_factory=list)  # [iterations done] mean square of z: 1 for Gaussian noises
    meta: dict = field(default_factory=dict)  # what the walk depends on, as plain JSON

    @property
    def done(self) -> int:
        return len(self.energies)


def noise_count(sigmas: Tensor, eta: float) -> int:
    """How many Gaussian noises a sampler takes on `sigmas` [T+1]: the first, and with eta > 0 one each step above 0."""
    return 1 if eta == 0 else len(sigmas) - int(sigmas[-1] == 0)


def begin(shape: tuple[int, ...], count: int, seed: int, meta: dict) -> State:
    """Gaussian noises [count, *shape] of a seed, as an untouched walk."""
    z = torch.randn(count, *shape, generator=seeded(seed))
    return State(z, z.clone(), meta=meta)


def generate(
    denoise: Denoiser, z: Tensor, sigmas: Tensor, cond: object, eta: float, flow: bool = False, spread: float = 1.0
) -> Tensor:
    """G: the latent [B, C, H, W] sampled from z [N, B, C, H, W], N as `noise_count` says. Differentiable in z.

    eta 0 is DDIM. The walk begins at spread * z[0]: `spread` is the deviation that the model's noisiest latents have,
    sigmas[0] or a little more.
    """
    x = spread * z[0]
    for i, sigma, sigma_next in moves(sigmas):
        mu, scale = ancestral_mean(x, denoise(x, sigma, cond), sigma, sigma_next, eta, flow)
        x = mu + scale * z[i + 1] if i + 1 < len(z) else mu
    return x


def langevin(
    measure: Measure,
    state: State,
    iterations: int,
    step: float,
    seed: int,
    on_iteration: Callable[[State], None] | None = None,
) -> State:
    """The walk after `iterations` in all, those in `state` included; `step` is h, 0.05 in the paper.

    Raises ValueError if an energy or its gradient stops being finite.
    """
    for k in range(state.done, iterations):
        generator = seeded(seed * 1_000_003 + k + 1)
        energies, slope = energy_and_slope(measure, state.z, generator)
        if not (torch.isfinite(energies).all() and torch.isfinite(slope).all()):
            raise ValueError(f"The energy is not finite in iteration {k + 1}. Lower its weight, the step, or cfg.")
        best = state.best
        if state.energies:
            lowest = torch.tensor(state.energies).amin(dim=0)
            best = torch.where((energies < lowest)[:, None, None, None], state.z, best)
        omega = torch.randn(state.z.shape, generator=generator).to(state.z)
        z = state.z - step / 2 * (state.z + slope) + step**0.5 * omega
        told = {"energies": [*state.energies, energies.tolist()],
                "prior": [*state.prior, state.z.square().mean().item()]}
        state = replace(state, z=z, best=best, **told)
        if on_iteration is not None:
            on_iteration(state)
    return state


def energy_and_slope(measure: Measure, z: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """(energies [B], gradient of their sum by z), on the CPU. Leaves inference mode and no_grad for itself."""
    with torch.inference_mode(False), torch.enable_grad():
        z = z.clone().requires_grad_()
        energies = measure(z, generator)
        (slope,) = torch.autograd.grad(energies.sum(), z)
    return energies.detach().float().cpu(), slope.detach()


def save_state(state: State, path: str | Path) -> None:
    """Writes one safetensors file, whole or not at all. Raises ValueError if it cannot be written."""
    told = {"energies": state.energies, "prior": state.prior, "meta": state.meta}
    FILE.write(path, {"z": state.z, "best": state.best}, json.dumps(told))


def load_state(path: str | Path, meta: dict) -> State:
    """Reads a file of `save_state`. Raises ValueError if it is something else, or the walk of other settings."""
    told, tensors = FILE.read(path)
    file_name, z = Path(path).name, tensors["z"]
    _check_course(told, z, tensors["best"], file_name)
    if differing := [name for name in meta if meta[name] != told["meta"].get(name)]:
        raise ValueError(
            f"{file_name} holds a walk with other settings ({', '.join(differing)}). To go on with it, restore them; "
            "to begin anew, name another file or remove this one."
        )
    return State(**tensors, **told)


def _check_course(told: dict, z: Tensor, best: Tensor, file_name: str) -> None:
    """Raises ValueError unless a file tells of energies [iterations][B] and as many mean squares."""
    energies, prior = told.get("energies"), told.get("prior")
    whole = (
        set(told) == {"energies", "prior", "meta"} and isinstance(told["meta"], dict) and best.shape == z.shape
        and isinstance(energies, list) and isinstance(prior, list) and len(energies) == len(prior)
        and all(isinstance(row, list) and len(row) == z.shape[1] for row in energies)
        and all(isinstance(value, float) for row in [prior, *energies] for value in row)
    )
    if not whole:
        raise ValueError(f"{file_name} is damaged: it does not tell the course of its walk. Name another file.")
