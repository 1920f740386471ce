"""A picture's noises: for stock samplers, and to and from files."""

from functools import partial

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.inversion.solvers import EditFriendly, SolverContext
from ...mirror_ops.stochastic.dpm_encoder import Code
from ...mirror_ops.stochastic.noise_code import NoiseCode, load_code, save_code
from ...mirror_ops.walks.ddim import unscaled
from ..host import families
from ..host.files import check_prefix, existing_file, new_file, noted, problem, stamps
from ..host.noises import GivenNoise
from ..host.solver import replay
from ..reports import shown
from ..types import category, prefix_input

CodeType = io.Custom("MIRROR_CODE")


def _noise(code: NoiseCode) -> Tensor:
    """[B, C, H, W] what takes the encoded picture to the first latent of its path."""
    sigma, picture, start = code.sigmas[0].double(), code.latents[-1], code.latents[0]
    if code.meta["flow"]:
        return ((start - (1 - sigma) * picture) / sigma).float()
    highest = code.meta["sigma_max"]
    whole = sigma > highest or torch.isclose(sigma, sigma.new_tensor(highest), rtol=1e-5)
    # at its highest level the host gives eps- and v-models noise of the variance 1 + sigma^2
    return ((start - picture) / ((1 + sigma**2).sqrt() if whole else sigma)).float()


def replayed(code: NoiseCode) -> tuple:
    """NOISE, SAMPLER, SIGMAS and LATENT that make a stock sampler give the picture back, or edit it."""
    meta, sigmas = code.meta, code.sigmas.float()
    on = SolverContext(sigmas, unscaled, meta["flow"], getattr(torch, meta["network"]))
    state = Code(code.latents[:1].clone(), code.noises)  # not a view, which would keep the whole path in memory
    check = partial(_check_beginning, start=code.latents[0].float(), own=sigmas)
    # both kinds of noises are decoded alike
    sampler = replay(EditFriendly(meta["seed"], meta["eta"]), state, on, check)
    picture = families.to_picture_space(code.latents[-1].float(), meta["latent_format"])
    noise = GivenNoise(_noise(code), "connect `latent` of the same node")
    return noise, sampler, sigmas, {"samples": picture}


def _check_beginning(model, x: Tensor, sigmas: Tensor, start: Tensor, own: Tensor) -> None:
    """Raises ValueError unless a sampler begins where the noises do."""
    if len(sigmas) != len(own) or not torch.allclose(sigmas.float().cpu(), own, rtol=1e-5):
        raise ValueError("These noises belong to their own noise levels: connect `sigmas` of the node that made them.")
    given = x.float().cpu()
    if given.shape != start.shape or not torch.allclose(given, start, rtol=1e-3, atol=1e-3 * float(start.std())):
        raise ValueError("These noises begin at one latent only: connect `noise` and `latent` of the same node.")


def replay_outputs() -> list:
    """What a stock sampler needs."""
    return [
        io.Noise.Output(display_name="noise", tooltip="What takes the picture to the first latent."),
        io.Sampler.Output(display_name="sampler", tooltip="Adds the picture's own noises instead of drawing some."),
        io.Sigmas.Output(display_name="sigmas"),
        io.Latent.Output(display_name="latent", tooltip="The picture itself, for the sampler's latent."),
    ]


class CycleDiffusionReplay(io.ComfyNode):
    """Kept noises for a stock sampler."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CycleDiffusionReplay",
            display_name="CycleDiffusion Replay",
            category=category(__name__),
            description="Noise, sampler, sigmas and latent of a code, for SamplerCustomAdvanced.",
            search_aliases=["decode noises", "skip steps"],
            inputs=[
                CodeType.Input("code", tooltip="From CycleDiffusion Encode or CycleDiffusion Load."),
                io.Int.Input(
                    "skip", default=0, min=0, max=999,
                    tooltip="Begin so many steps later, nearer to the picture: less can change.",
                ),
            ],
            outputs=replay_outputs(),
        )

    @classmethod
    def execute(cls, code: NoiseCode, skip) -> io.NodeOutput:
        return io.NodeOutput(*replayed(code.skip(skip)))


class CycleDiffusionSave(io.ComfyNode):
    """A code to a file."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CycleDiffusionSave",
            display_name="CycleDiffusion Save",
            category=category(__name__),
            description="Writes a picture's noises to a safetensors file in the output folder.",
            search_aliases=["save noises"],
            is_output_node=True,
            inputs=[
                CodeType.Input("code", tooltip="What to keep, for another day or another machine."),
                prefix_input("mirror/noises"),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="Its name, as the loader takes it.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix):
        return problem(check_prefix, filename_prefix)

    @classmethod
    def execute(cls, code: NoiseCode, filename_prefix) -> io.NodeOutput:
        path, name = new_file(filename_prefix)
        save_code(code, path)
        return io.NodeOutput(name, ui=shown(name))


class CycleDiffusionLoad(io.ComfyNode):
    """A code from a file."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CycleDiffusionLoad",
            display_name="CycleDiffusion Load",
            category=category(__name__),
            description="Reads noises that CycleDiffusion Save wrote.",
            search_aliases=["load noises"],
            inputs=[io.String.Input("file", tooltip="A name in the output or input folder.")],
            outputs=[CodeType.Output(display_name="code")],
        )

    @classmethod
    def fingerprint_inputs(cls, file):
        return stamps(file)

    @classmethod
    def validate_inputs(cls, file):
        return problem(existing_file, file)

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(load_code(noted(file)))
