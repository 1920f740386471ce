"""CycleDiffusionRank: many edits of one picture, and the one that CLIP says went where the words went."""

import math
from itertools import product
from typing import NamedTuple

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.measure.perceptual import directional_similarity
from ...mirror_ops.stochastic.dpm_encoder import dpm_decode, dpm_encode
from ...mirror_ops.walks.precision import seen_in
from ..host import families
from ..host.attach import check_uncontrolled
from ..host.branches import Branch
from ..host.clip_space import check_belong, image_embedding, text_embedding
from ..host.conditioning import check_batch, text_of
from ..host.denoiser import run
from ..host.files import problem
from ..host.prompts import ABSENT, check_negative, prompts_at
from ..host.solver import denoiser_of, solver_context
from ..host.walk import Walk
from ..reports import shown
from ..types import category
from .encode import Encoder, chosen, encoder_input, levels


class Candidate(NamedTuple):
    """The settings of one edit of the ensemble."""

    trial: int
    source_cfg: float
    cfg: float
    strength: float


class CycleDiffusionRank(io.ComfyNode):
    """The paper's protocol: an ensemble over draws, guidance and strength, ranked by directional CLIP similarity."""

    @classmethod
    def define_schema(cls):
        numbers = {
            "source_cfgs": ("1", "Guidance of the encoding."),
            "cfgs": ("1, 2, 3, 5", "Guidance of the decoding; 1, 1.5, 2, 3, 4, 5 in the paper."),
            "strengths": ("0.6, 0.7, 0.85", "How far towards noise; 0.5 to 0.85 in six steps in the paper."),
        }
        return io.Schema(
            node_id="CycleDiffusionRank",
            display_name="CycleDiffusion Rank",
            category=category(__name__),
            description=(
                "Edits each picture by CycleDiffusion at every combination of trials, guidances and strengths, and "
                "keeps the edit whose change, as CLIP sees it, points most the way the words changed. Its score is the "
                "best of many, selected by that score: not what one edit can be expected to reach."
            ),
            search_aliases=["ensemble", "best of n", "directional clip"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip=(
                    "LoRA and proximal guidance on it apply; controls that read the picture's side are refused."
                )),
                io.Vae.Input("vae", tooltip="Encodes the pictures and decodes their edits."),
                io.Image.Input("image", tooltip="The picture(s) to edit."),
                io.Conditioning.Input("source", tooltip="Describes the picture as it is."),
                io.Conditioning.Input("target", tooltip="Describes the edited picture."),
                io.ClipVision.Input("clip_vision", tooltip="The judge."),
                io.Clip.Input("clip", tooltip="The judge's text side, loaded by itself with Load CLIP."),
                io.String.Input("source_text", default="", tooltip="What is in the picture."),
                io.String.Input("target_text", default="", tooltip="What should be in it."),
                encoder_input(),
                io.Int.Input("trials", default=3, min=1, max=100, tooltip="Draws of the noises; 15 in the paper."),
                *(io.String.Input(name, default=default, tooltip=f"{tooltip} Numbers, with commas between them.")
                  for name, (default, tooltip) in numbers.items()),
                io.Int.Input("steps", default=50, min=2, max=1000, tooltip="At strength 1; fewer at less."),
                io.Combo.Input("scheduler", options=families.SCHEDULERS, default="ddim_uniform",
                               tooltip="As in KSampler."),
                io.Conditioning.Input("negative", optional=True, tooltip="Needed where a cfg is not 1."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The best edit of each picture."),
                io.Latent.Output(display_name="latent"),
                io.Float.Output(display_name="score", tooltip="Its directional similarity: the highest of all."),
                io.String.Output(display_name="table", tooltip="All scores, best first."),
            ],
        )

    @classmethod
    def validate_inputs(cls, source_text, target_text, source_cfgs, cfgs, strengths, negative=ABSENT, encoder=None):
        texts = [problem(_check_text, text, name) for text, name in ((source_text, "source"), (target_text, "target"))]
        numbers = [problem(_numbers, source_cfgs, "source_cfgs"), problem(_numbers, cfgs, "cfgs"),
                   problem(_strengths, strengths)]
        wrong = next((found for found in (*texts, *numbers) if found is not True), True)
        if wrong is True and None not in (source_cfgs, cfgs):
            return problem(check_negative, negative, *_numbers(source_cfgs, "source_cfgs"), *_numbers(cfgs, "cfgs"))
        return wrong

    @classmethod
    def execute(
        cls, model, vae, image, source, target, clip_vision, clip, source_text, target_text, encoder, trials,
        source_cfgs, cfgs, strengths, steps, scheduler, negative=None,
    ) -> io.NodeOutput:
        check_uncontrolled(model, "CycleDiffusion Rank")
        texts = [_embedded(clip, text, name) for text, name in ((source_text, "source"), (target_text, "target"))]
        lists = [_numbers(text, name) for name, text in (("source_cfgs", source_cfgs), ("cfgs", cfgs))]
        parts = _strengths(strengths)
        before = image_embedding(clip_vision, image[..., :3])
        check_belong(before, texts[0])
        samples = vae.encode(image[..., :3])
        guided = next((cfg for cfg in (*lists[0], *lists[1]) if cfg != 1), 1.0)
        prompts = {"source": source, "target": prompts_at(guided, target, negative, len(samples))["positive"]}
        prompts |= {} if negative is None else {"negative": negative}
        check_batch(text_of(source, "source"), len(samples))
        how = chosen(encoder, {"samples": samples})
        grids = {s: levels(model, samples, max(1, round(steps * s)), scheduler, s, None) for s in parts}
        edits: dict[Candidate, Tensor] = {}
        for strength, sigmas in grids.items():
            edits |= _edits(model, samples, sigmas, prompts, how, trials, lists, strength)
        if not edits:
            raise ValueError("No candidate is a finite picture. Lower `source_cfgs` and `cfgs`, or raise eta.")
        latents = list(edits.values())
        scores = torch.stack([_score(vae, clip_vision, latent, before, texts) for latent in latents])  # [N, B]
        best = torch.stack([latents[k][b] for b, k in enumerate(scores.argmax(dim=0).tolist())])
        asked = len(parts) * trials * len(lists[0]) * len(lists[1])
        table, score = _table(list(edits), scores, asked - len(edits)), scores.max(dim=0).values.mean().item()
        return io.NodeOutput(vae.decode(best), {"samples": best}, score, table, ui=shown(table))


def _check_text(text: str, name: str) -> None:
    if not text.strip():
        raise ValueError(f"`{name}_text` is empty. Say in words what the {name} prompt says: the judge reads them.")


def _embedded(clip, text: str, name: str) -> Tensor:
    _check_text(text, name)
    return text_embedding(clip, text)


def _numbers(text: str, name: str) -> list[float]:
    """The numbers of a widget, without repetitions; ValueError if there is something else, or nothing."""
    try:
        found = list(dict.fromkeys(float(part) for part in text.split(",") if part.strip()))
    except ValueError:
        found = []
    if not found or not 0 <= min(found) <= max(found) < math.inf:
        raise ValueError(f"`{name}` takes numbers with commas between them, such as 1, 2, 3.5; not {text!r}.")
    return found


def _strengths(text: str) -> list[float]:
    found = _numbers(text, "strengths")
    if not all(0 < strength <= 1 for strength in found):
        raise ValueError(f"`strengths` are parts of the walk, above 0 and at most 1; not {text!r}.")
    return found


def _edits(
    model, samples: Tensor, sigmas: Tensor, prompts: dict, encoder: Encoder, trials: int, lists: list, strength: float
) -> dict[Candidate, Tensor]:
    """The edited LATENT samples of every candidate of one strength that came to a finite end. A picture is encoded once
    for all decodings."""
    source_cfgs, cfgs = lists
    steps = len(sigmas) - 1

    def algorithm(walk: Walk) -> dict[Candidate, Tensor]:
        on, picture, grid = solver_context(walk, model, sigmas), walk.latent_in(samples).cpu().double(), sigmas.double()
        found = {}
        for trial, source_cfg in product(range(trials), source_cfgs):
            denoise = seen_in(on.network, denoiser_of(walk, source_cfg, "source", branch=Branch.SOURCE))
            code = dpm_encode(
                denoise, picture, grid, None, encoder.eta, encoder.generators(trial), on.flow, encoder.path
            )
            for cfg in cfgs:
                denoise = seen_in(on.network, denoiser_of(walk, cfg, "target", branch=Branch.EDIT))
                edit = dpm_decode(denoise, code.latents[0], code.noises, grid, None, encoder.eta, on.flow)
                if torch.isfinite(edit).all():
                    found[Candidate(trial, source_cfg, cfg, strength)] = families.latent_out(model, edit)["samples"]
                walk.progress.reached(walk.progress.done, walk.denoised)
        return found

    evaluations = steps * trials * len(source_cfgs) * (1 + len(cfgs))
    return run(model, samples, sigmas, prompts, algorithm, evaluations=evaluations)[0]


def _score(vae, clip_vision, latent: Tensor, before: Tensor, texts: list[Tensor]) -> Tensor:
    """[B] directional similarity of an edit."""
    return directional_similarity(before, image_embedding(clip_vision, vae.decode(latent)), *texts)


def _table(candidates: list[Candidate], scores: Tensor, lost: int) -> str:
    """All scores, best first, under a line that says what the best one is."""
    single = scores.flatten()
    lines = [
        f"best of {len(candidates)} by the score itself: {scores.max(dim=0).values.mean():.4f}. One edit taken at "
        f"random: {single.mean():.4f} on average, {single.min():.4f} at least.",
        "  score  trial  source_cfg   cfg  strength  best for picture",
    ]
    best = scores.argmax(dim=0).tolist()
    for k in scores.mean(dim=1).argsort(descending=True).tolist():
        c = candidates[k]
        won = ", ".join(str(b + 1) for b, winner in enumerate(best) if winner == k)
        lines.append(
            f"{scores[k].mean():7.4f}  {c.trial + 1:5d}  {c.source_cfg:10g}  {c.cfg:4g}  {c.strength:8g}  {won}"
        )
    if lost:
        lines.append(f"{lost} more left the finite numbers and are no pictures: their guidance is too high.")
    return "\n".join(lines)
