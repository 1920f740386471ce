"""MirrorSample: the way forward, with the edit added."""

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.directions.direction import EditDirection, ramped
from ...mirror_ops.regions.edit_mask import edited_region, probes, walked_region
from ...mirror_ops.walks.sample import Locality, mirror_sample
from ...mirror_ops.walks.trajectory import Mirror, cpu
from ..host.branches import Branch
from ..host.conditioning import Conditioning, check_batch, pooled_of, text_of, token_counts, with_pooled, with_text
from ..host.denoiser import Walk, run
from ..host.families import latent_out
from ..host.identity import check_made_with
from ..host.values import mask_at
from ..types import DirectionType, MirrorType, category

AUTO, EVERYWHERE = "auto", "everywhere"
EXACT = {"off": (False, False), "source": (True, False), "source and edit": (True, True)}


class MirrorSample(io.ComfyNode):
    """Samples from a mirror's noise twice, side by side: once as it was, and once with the edit."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorSample",
            display_name="Mirror Sample",
            category=category(__name__),
            description=(
                "Walks forward from the mirror's noise with the prompt kept + strength x edit, where the edit is "
                "(positive - the mirror's own prompt) + direction. Guidance leads from the negative, which is the kept "
                "prompt itself unless one is connected, towards the edited prompt."
            ),
            search_aliases=["mirrordiffusion", "pix2pix-zero", "edit picture", "prompt edit", "direct inversion"],
            inputs=[*_edit_inputs(), *_walk_inputs()],
            outputs=[
                io.Latent.Output(display_name="edited"),
                io.Latent.Output(display_name="reconstruction", tooltip="The same walk without the edit."),
                io.Float.Output(display_name="forwards", tooltip="Passes through the network a picture."),
                io.Mask.Output(display_name="region", tooltip="Where the edit acts, a value for each latent cell."),
            ],
        )

    @classmethod
    def execute(
        cls, model, mirror: Mirror, positive, strength, cfg, direction: EditDirection | None = None,
        negative=None, mask=None, exact="off", locality=AUTO, ramp=0.0, ramp_until=1.0,
        cfg_until=1.0,
    ) -> io.NodeOutput:
        check_made_with(mirror, model)
        check_batch(text_of(positive), mirror.latents.shape[1])
        prompts = {
            "positive": with_pooled(positive, _edited_pooled(mirror, positive, direction, strength)),
            "kept": with_pooled(with_text(positive, _expanded(mirror.source, positive)), mirror.pooled),
            **_negative(mirror, negative),
        }
        change, allowed = _change(mirror, positive, direction), _allowed(mirror, mask)
        amounts = [ramped(strength, ramp, ramp_until, i / mirror.steps) for i in range(mirror.steps)]
        cfgs = [cfg if i < round(cfg_until * mirror.steps) else 1.0 for i in range(mirror.steps)]
        follow, residual = EXACT[exact]
        evaluations_a_step = 1 + (residual or not follow)

        looked = 2 * len(probes(mirror.steps)) if locality == AUTO else 0

        def algorithm(walk: Walk) -> tuple[Tensor, Tensor, Tensor]:
            source, edit, looks = _branches(walk, mirror, change.to(walk.device), amounts, cfgs)
            latents = mirror.latents.to(walk.device)
            found = None
            if locality == AUTO:
                first = edited_region(*looks, walk.sigmas, latents)
                found = walked_region(first, latents[-1], mirror.steps)
            local = None if found is None and allowed is None else Local(latents[0], found, allowed)
            edited, kept = mirror_sample(
                source,
                edit,
                walk.sigmas,
                latents,
                exact=follow,
                residual=residual,
                locality=local,
                on_step=lambda i, edited: walk.progress.reached(looked + (i + 1) * evaluations_a_step, walk.denoised),
            )
            return edited, kept, torch.ones_like(latents[0, :, :1]) if local is None else local.region

        evaluations = looked + mirror.steps * evaluations_a_step
        by_step = ("positive", "kept") if mirror.provenance.rewrote_positive else ("negative",)
        latents, count = run(
            model, mirror.latents[-1], mirror.sigmas, prompts, algorithm, evaluations=evaluations, by_step=by_step,
            reference=mirror,
        )
        edited, kept = (latent_out(model, cpu(x)) for x in latents[:2])
        return io.NodeOutput(edited, kept, count.forwards / mirror.latents.shape[1], cpu(latents[2])[:, 0])


def _edit_inputs() -> list:
    """What is edited, and to what."""
    return [
        io.Model.Input("model", tooltip="The model of the mirror. Patches on it (guidance nodes) apply."),
        MirrorType.Input("mirror"),
        io.Conditioning.Input(
            "positive",
            tooltip="The mirror's own prompt, to edit by a direction; or the caption of the edited picture.",
        ),
        io.Float.Input(
            "strength", default=1.0, min=-10.0, max=10.0, step=0.05,
            tooltip="How much of the edit: 0 reconstructs, 1 is the whole edit, negative is the opposite.",
        ),
        io.Float.Input(
            "cfg", default=1.5, min=0.0, max=30.0, step=0.1,
            tooltip="Guidance towards the edit. 1 to 2 keeps the picture; the papers' 5 to 7.5 overshoots.",
        ),
        DirectionType.Input("direction", optional=True, tooltip="From CLIP Domain Direction; adds to the edit."),
        io.Conditioning.Input(
            "negative", optional=True,
            tooltip="Default: the kept prompt. A mirror made at a cfg other than 1 needs the one it had.",
        ),
        io.Mask.Input("mask", optional=True, tooltip="Where the edit may change the picture, softly."),
    ]


def _walk_inputs() -> list:
    """How the edit is walked."""
    return [
        io.Combo.Input(
            "exact", options=list(EXACT), default="off", optional=True, advanced=True, tooltip=(
                "source: the reconstruction follows the recording exactly (Direct Inversion). source and edit: the "
                "edit is also given what the source branch missed at each step."
            ),
        ),
        io.Combo.Input(
            "locality", options=[AUTO, EVERYWHERE], default=AUTO, optional=True, tooltip=(
                "auto: find where the edit acts from the model's own predictions, and keep the recording "
                "elsewhere. everywhere: let the edit change what it will."
            ),
        ),
        io.Float.Input(
            "ramp", default=0.0, min=-10.0, max=10.0, step=0.05, optional=True, advanced=True,
            tooltip="How much the strength has grown at the clean end. MirrorDiffusion: strength 0.65, ramp "
            "1.2, until 0.67.",
        ),
        io.Float.Input(
            "ramp_until", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
            tooltip="Part of the walk after which the strength falls back to where it began.",
        ),
        io.Float.Input(
            "cfg_until", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True, tooltip=(
                "Part of the walk that is guided at cfg; the rest goes unguided, at half the cost. What is "
                "there is decided early: 0.3 and a higher cfg change more of it, and less beside it."
            ),
        ),
    ]


class Local:
    """Where the edit may act, as `mirror_sample` asks at every step: what is found there (None: all) and allowed.

    `region` [B, 1, H, W] is the latest answer.
    """

    def __init__(self, x: Tensor, found: Locality | None, allowed: Tensor | None):
        self.found = found
        self.region = self.allowed = torch.ones_like(x[:, :1]) * (1.0 if allowed is None else allowed.to(x))

    def __call__(self, i: int, difference: Tensor) -> Tensor:
        if self.found is not None:
            self.region = self.found(i, difference) * self.allowed
        return self.region


def _branches(walk: Walk, mirror: Mirror, change: Tensor, amounts: list[float], cfgs: list[float]) -> tuple:
    """(source, edit, (kept, edited)): the denoisers of both branches as functions of (x, sigma, step), and the unguided
    predictions of their prompts."""
    rewritten, source = mirror.embeddings.to(walk.device), mirror.source.to(walk.device)
    rewrote_positive = mirror.provenance.rewrote_positive
    negative = walk.prompts.get("negative")

    def kept(i: int) -> list:
        return walk.prompts["kept"].saying(rewritten[i] if rewrote_positive else source)

    def edited(i: int) -> list:
        return walk.prompts["positive"].saying((rewritten[i] if rewrote_positive else source) + amounts[i] * change)

    def against(i: int) -> list:
        if negative is not None and rewrote_positive:
            return negative.entries
        return (negative or walk.prompts["kept"]).saying(rewritten[i])

    def source_branch(x: Tensor, sigma: Tensor, i: int) -> Tensor:
        return walk.denoise(x, sigma, kept(i), against(i), mirror.provenance.cfg, branch=Branch.SOURCE)

    def edit_branch(x: Tensor, sigma: Tensor, i: int) -> Tensor:
        return walk.denoise(x, sigma, edited(i), against(i), cfgs[i], branch=Branch.EDIT)

    def look(prompt):
        return lambda x, sigma, i: walk.denoise(x, sigma, prompt(i), branch=Branch.PROBE)

    return source_branch, edit_branch, (look(kept), look(edited))


def _negative(mirror: Mirror, negative: Conditioning | None) -> dict:
    """{"negative": CONDITIONING} where the walk needs one of its own; ValueError if it is not connected."""
    made_at = mirror.provenance.cfg
    if mirror.provenance.brings_negative:
        return {}
    if negative is None and made_at != 1:
        raise ValueError(
            f"This mirror was made at cfg {made_at:g} against a negative prompt. Connect the same `negative` here, "
            "or make the mirror at cfg 1."
        )
    return {} if negative is None else {"negative": negative}


def _change(mirror: Mirror, positive: Conditioning, direction: EditDirection | None) -> Tensor:
    """[B or 1, tokens, width] the whole edit at strength 1: (positive - source) + direction in each part."""
    change = text_of(positive).float().cpu() - _expanded(mirror.source, positive)
    if direction is None:
        return change
    return change + torch.cat([direction.for_tokens(n, change.shape[2]) for n in token_counts(positive)], dim=1)


def _expanded(source: Tensor, positive: Conditioning) -> Tensor:
    """The mirror's own prompt; ValueError unless `positive` has its shape."""
    tokens, width = sum(token_counts(positive)), positive[0][0].shape[2]
    if source.shape[1:] != (tokens, width):
        raise ValueError(
            f"`positive` has {tokens} tokens of width {width}, the mirror's prompt {source.shape[1]} of "
            f"{source.shape[2]}. Use the same CLIP, and a caption that fills as many 77-token chunks."
        )
    return source


def _edited_pooled(mirror: Mirror, positive: Conditioning, direction: EditDirection | None, strength: float):
    """[entries, B or 1, pooled width] the pooled prompt with the edit, or None for models without."""
    pooled = pooled_of(positive)
    if pooled is None or mirror.pooled is None:
        return None
    change = pooled.float().cpu() - mirror.pooled
    if direction is not None and direction.pooled is not None:
        change = change + direction.pooled
    return mirror.pooled + strength * change


def _allowed(mirror: Mirror, mask: Tensor | None) -> Tensor | None:
    """[B or 1, 1, H, W] at the latent's size: the connected mask, else the one the mirror recorded, else none."""
    if mask is None:
        return mirror.mask
    return mask_at(mask, mirror.latents[0], "`mask`")
