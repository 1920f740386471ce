"""MirrorAttentionMaps: where in the picture each word looks, with the prompt as written and as rewritten."""

import numpy as np
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ...mirror_ops.measure.colormap import draw_maps, unit
from ...mirror_ops.walks.trajectory import Mirror
from ..host.attention import WordMaps, watch_cross_attention
from ..host.branches import Branch
from ..host.denoiser import run
from ..host.identity import check_made_with
from ..host.walk import Walk
from ..host.word_maps import names
from ..host.words import alike, encoding, positions
from ..types import MirrorType, category

WRITTEN, REWRITTEN = "as written", "rewritten"
LONGEST_TILE = 192


class MirrorAttentionMaps(io.ComfyNode):
    """Cross-attention of chosen words, read at the recorded latents and averaged over all steps."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorAttentionMaps",
            display_name="Mirror Attention Maps",
            category=category(__name__),
            description=(
                "Shows where each word looks in the picture, for the prompt as written and as rewritten, and gives a "
                "soft mask a word. One evaluation of the model a step and prompt, at the mirror's own latents."
            ),
            search_aliases=["cross attention", "daam", "attention mask", "word mask"],
            inputs=[
                io.Model.Input("model", tooltip="The model of the mirror."),
                MirrorType.Input("mirror", tooltip="Whose picture is looked at, along its own walk."),
                io.Clip.Input("clip", tooltip="The one that encoded the mirror's prompt."),
                io.String.Input("text", multiline=True, tooltip="The mirror's prompt, as it was encoded."),
                io.String.Input("words", default="cat", multiline=True, tooltip="Words or phrases of the text, one a "
                                "line or between commas."),
                io.Image.Input("image", optional=True, tooltip="The picture, to stand beside its maps."),
                io.Int.Input(
                    "largest", default=32, min=1, max=256, optional=True, advanced=True,
                    tooltip="Attention layers with a longer side than this are left out: fine, but noisy and costly.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="A sheet a picture: a column a word, a row a prompt."),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="Soft masks of the last row, word by word; for several pictures, all pictures of the first "
                    "word come first.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, mirror: Mirror, clip, text, words, image=None, largest=32) -> io.NodeOutput:
        check_made_with(mirror, model)
        found = names(words)
        maps = _read(model, mirror, _tokens_of(mirror, clip, text, found), largest)
        ratio = model.get_model_object("latent_format").spacial_downscale_ratio
        size = [ratio * side for side in mirror.latents.shape[-2:]]
        sharp = {row: torch.nn.functional.interpolate(m, size=size, mode="bilinear") for row, m in maps.items()}
        pictures = [None if image is None else image[min(b, len(image) - 1)] for b in range(mirror.latents.shape[1])]
        sheets = [_sheet({row: m[b] for row, m in sharp.items()}, found, picture) for b, picture in enumerate(pictures)]
        grid = torch.stack(sheets)
        masks = list(sharp.values())[-1].transpose(0, 1).flatten(0, 1)  # [words * B, H, W]
        low, high = (f(masks, dim=(1, 2), keepdim=True) for f in (torch.amin, torch.amax))
        return io.NodeOutput(grid, (masks - low) / (high - low).clamp(min=1e-12), ui=ui.PreviewImage(grid, cls=cls))


def _tokens_of(mirror: Mirror, clip, text: str, names: list[str]) -> list[list[int]]:
    """Token positions of each word; ValueError for no words, or a text that the mirror was not made with."""
    if not names:
        raise ValueError("`words` is empty. Name words of the text, one a line.")
    if not alike(encoding(clip, text), mirror.source):
        raise ValueError(
            f"`text` (`{text}`) is not the text that the mirror's prompt was encoded from, with the connected `clip`. "
            "Give the text and CLIP that it was made of."
        )
    return positions(clip, text, names)


def _read(model, mirror: Mirror, tokens: list[list[int]], largest: int) -> dict[str, Tensor]:
    """{row: [B, words, H, W]} mean attention at the latent's size. The second row is left out if no positive prompt
    was rewritten."""
    patcher, seen = model.clone(), WordMaps(tokens, largest)
    watch_cross_attention(patcher, seen)
    texts = {WRITTEN: mirror.source.expand(mirror.steps, *mirror.source.shape)}
    if mirror.provenance.rewrote_positive:
        texts[REWRITTEN] = mirror.embeddings
    options = {} if mirror.pooled is None else {"pooled_output": mirror.pooled[0]}

    def algorithm(walk: Walk) -> dict[str, Tensor]:
        means = {row: torch.zeros(()) for row in texts}
        for i, sigma in enumerate(walk.sigmas[:-1]):
            x = mirror.latents[i].to(walk.device)
            for row, text in texts.items():
                walk.denoise(x, sigma, walk.prompts["positive"].saying(text[i].to(walk.device)), branch=Branch.SOURCE)
                means[row] = means[row] + seen.take(x.shape[-2:]).cpu() / mirror.steps
            walk.progress.reached((i + 1) * len(texts), walk.denoised)
        return means

    prompts = {"positive": [[mirror.source, options]]}
    evaluations = mirror.steps * len(texts)
    means, _ = run(
        patcher, mirror.latents[-1], mirror.sigmas, prompts, algorithm, evaluations=evaluations, reference=mirror
    )
    return means


def _sheet(maps: dict[str, Tensor], names: list[str], picture: Tensor | None) -> Tensor:
    """[height, width, 3] in [0, 1] for one picture. A word has one scale in all rows, so that they can be compared."""
    together = {row: m.numpy() for row, m in maps.items()}
    by_word = [unit(np.stack([m[k] for m in together.values()])) for k in range(len(names))]
    rows = {row: [word[r] for word in by_word] for r, row in enumerate(together)}
    pixels = None if picture is None else (picture[..., :3].float().cpu().numpy() * 255).round().astype(np.uint8)
    height, width = next(iter(together.values())).shape[-2:]
    scale = LONGEST_TILE / max(height, width)
    sheet = draw_maps(rows, names, pixels, (round(height * scale), round(width * scale)))
    return torch.from_numpy(sheet.copy()).float() / 255
