"""MirrorFromSeed: a mirror of a picture that is sampled, not inverted."""

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.walks.provenance import Provenance
from ...mirror_ops.walks.sample import sample
from ...mirror_ops.walks.trajectory import Mirror, cpu
from ..host import families
from ..host.branches import Branch
from ..host.conditioning import pooled_of, text_of
from ..host.denoiser import run
from ..host.files import problem
from ..host.identity import identity
from ..host.noises import empty_latent, noisy_start, seeded_noise
from ..host.prompts import ABSENT, check_negative, prompts_at
from ..host.values import SEEDS, mask_at
from ..host.walk import Walk
from ..types import MirrorType, category


class MirrorFromSeed(io.ComfyNode):
    """Samples a picture as KSampler does with euler, and records the way."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorFromSeed",
            display_name="Mirror From Seed",
            category=category(__name__),
            description=(
                "Samples a picture from a seed and a prompt, as KSampler does with euler, and records the way: a "
                "mirror that is exact without inversion. Edit it with Mirror Sample."
            ),
            search_aliases=["synthetic image edit", "edit generated picture", "pix2pix-zero synthetic"],
            inputs=[
                io.Model.Input("model", tooltip="Draws the picture. Edit with the same model and LoRA."),
                io.Conditioning.Input("positive", tooltip="What the picture shows."),
                io.Latent.Input("latent", tooltip="An empty latent. A noise mask confines later edits."),
                io.Int.Input("seed", default=0, **SEEDS, control_after_generate=True,
                             tooltip="Another seed is another picture."),
                io.Int.Input("steps", default=50, min=1, max=1000,
                             tooltip="In which the picture is drawn; an edit takes as many."),
                io.Combo.Input("scheduler", options=families.SCHEDULERS, default="ddim_uniform",
                               tooltip="As in KSampler."),
                io.Float.Input("cfg", default=5.0, min=0.0, max=30.0, step=0.1,
                               tooltip="Other than 1: give Mirror Sample the same negative."),
                io.Conditioning.Input("negative", optional=True, tooltip="Needed for a cfg other than 1."),
            ],
            outputs=[
                io.Latent.Output(display_name="picture", tooltip="The picture before any edit."),
                MirrorType.Output(display_name="mirror"),
                io.Sigmas.Output(display_name="sigmas", tooltip="The noise levels walked."),
            ],
        )

    @classmethod
    def validate_inputs(cls, cfg, negative=ABSENT):
        return problem(check_negative, negative, cfg)

    @classmethod
    def execute(cls, model, positive, latent, seed, steps, scheduler, cfg, negative=None) -> io.NodeOutput:
        samples = empty_latent(model, latent)
        families.check_supported(model, samples)
        prompts = prompts_at(cfg, positive, negative, len(samples))
        sigmas = families.noise_levels(model, scheduler, steps)
        families.check_levels(model, sigmas)
        noise = seeded_noise(samples, seed, latent.get("batch_index"))
        algorithm = _walk_from(samples, noise, cfg)
        latents, count = run(model, samples, sigmas, prompts, algorithm, evaluations=len(sigmas) - 1)
        latents = cpu(latents)
        mirror = Mirror(
            sigmas=sigmas,
            latents=latents,
            reconstruction=latents,
            source=cpu(text_of(positive)),
            embeddings=cpu(text_of(positive)).expand(len(sigmas) - 1, -1, -1, -1),
            pooled=cpu(pooled_of(positive)),
            mask=mask_at(latent.get("noise_mask"), samples, "the noise mask"),
            provenance=Provenance(
                identity(model), "from a seed", cfg, scheduler=scheduler, seed=seed,
                forwards=count.forwards / len(samples),
            ),
        )
        return io.NodeOutput(families.latent_out(model, latents[-1]), mirror, sigmas)


def _walk_from(samples: Tensor, noise: Tensor, cfg: float):
    """The algorithm that samples as the host's euler does: [T+1, B, C, H, W]."""

    def algorithm(walk: Walk) -> Tensor:
        picture = walk.latent_in(samples) if torch.count_nonzero(samples) else samples.to(walk.device, torch.float32)
        x = noisy_start(walk, noise, picture)
        positive, negative = (walk.prompts.get(name) for name in ("positive", "negative"))

        def branch(x: Tensor, sigma: Tensor, i: int) -> Tensor:
            return walk.denoise(x, sigma, positive.entries, negative and negative.entries, cfg, branch=Branch.SOURCE)

        return sample(branch, walk.sigmas, x, on_step=lambda i, x: walk.progress.reached(i + 1, walk.denoised))

    return algorithm

