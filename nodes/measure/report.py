"""MirrorReport: how good a mirror is before any edit, and what an edit did."""

import math

import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.measure.curve import draw_curves
from ...mirror_ops.measure.metrics import psnr, ssim
from ...mirror_ops.measure.report import EditReport
from ...mirror_ops.walks.trajectory import Mirror
from ..host.families import to_picture_space
from ..reports import shown
from ..types import MirrorType, ReportType, category

# Relative displacement of the picture's latent. 0.05 costs less than half a decibel of the reconstruction (bench
# reconstruction), and is what the published stop rule of `paper` and `null text` allows.
HOLDS, WAVERS = 0.05, 0.2
OPTIMISED = "In Prompt Rewrite Optimizer, switch `early_stop` off, or allow more `inner_steps`."
BETTER = "fixed point + negative prompt"
ADVICE = {
    "none": f"Let Prompt Rewrite Optimizer rewrite the prompt (method {BETTER}, or paper).",
    "negative prompt": f"The method {BETTER} of Prompt Rewrite Optimizer solves the inversion as well.",
    BETTER: "Raise `iterations` in Prompt Rewrite Optimizer, or set `mixing` to anderson.",
}
REFINABLE = ("none", "negative prompt", "paper", "null text")


class MirrorReport(io.ComfyNode):
    """Numbers, curves and plain words about a mirror, an edit, or both."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorReport",
            display_name="Mirror Report",
            category=category(__name__),
            description=(
                "Shows how closely the way back of a mirror retraces its inversion, what an edit changed at each step, "
                "and what to try if either is poor."
            ),
            search_aliases=["inversion quality", "reconstruction error", "psnr", "ssim"],
            is_output_node=True,
            inputs=[
                MirrorType.Input("mirror", optional=True, tooltip="How good it is, before any edit."),
                io.Vae.Input("vae", optional=True, tooltip="To compare pictures; without it, latents are compared."),
                io.Image.Input("image", optional=True, tooltip="The picture itself; default: its VAE round trip."),
                ReportType.Input("report", optional=True, tooltip="Of an edit: its region, change and cost."),
            ],
            outputs=[
                io.Image.Output(display_name="curve", tooltip="Displacement at each level, a line a picture."),
                io.Float.Output(display_name="displacement", tooltip="rms(z' - z) / rms(z) of the picture's latent."),
                io.Float.Output(display_name="psnr", tooltip="In dB, of the reconstruction."),
                io.Float.Output(display_name="ssim"),
                io.String.Output(display_name="hint"),
                io.Float.Output(display_name="forwards", tooltip="Passes through the network a picture, both ways."),
                io.Float.Output(display_name="backwards", tooltip="Backward passes a picture."),
            ],
        )

    @classmethod
    def execute(cls, mirror: Mirror | None = None, vae=None, image=None, report: EditReport | None = None):
        if mirror is None and report is None:
            raise ValueError("There is nothing to report on: connect a `mirror`, the `report` of an edit, or both.")
        if image is not None and vae is None:
            raise ValueError("To compare with the picture itself, connect the `vae` as well.")
        curves = [] if report is None or not report.changes else [("change by the edit at each step", [report.changes])]
        figures, texts = [math.nan] * 3, []
        if mirror is not None:
            curves.insert(0, ("relative displacement of the way back", mirror.displacement.T.tolist()))
            figures = _figures(mirror, vae, image)
            texts.append(_hint(mirror, *figures[:2]))
        texts += [] if report is None else [report.text]
        made = report if mirror is None else mirror.provenance
        drawn = np.concatenate([draw_curves(lines, title) for title, lines in curves]) if curves else None
        picture = torch.zeros(1, 8, 8, 3) if drawn is None else torch.from_numpy(drawn).float()[None] / 255
        text = "\n\n".join(texts)
        return io.NodeOutput(picture, *figures, text, made.forwards, made.backwards, ui=shown(text, picture, cls))


def _figures(mirror: Mirror, vae, image: Tensor | None) -> list[float]:
    """[displacement of the picture's latent, PSNR in dB, SSIM], means over the batch."""
    pictures = _latents(mirror) if vae is None else _pictures(mirror, vae, image)
    quality = psnr(*pictures).mean().item()
    likeness = ssim(*pictures, size=min(11, *pictures[0].shape[-2:])).mean().item()
    return [mirror.displacement[-1].mean().item(), quality, likeness]


def _latents(mirror: Mirror) -> tuple[Tensor, Tensor]:
    """(reconstruction, original) latents [B, C, H, W], brought to a range of one."""
    original, back = mirror.latents[-1], mirror.reconstruction[-1]
    low, high = original.min(), original.max()
    return (back - low) / (high - low), (original - low) / (high - low)


def _pictures(mirror: Mirror, vae, image: Tensor | None) -> tuple[Tensor, Tensor]:
    """(reconstruction, original) pictures [B, 3, H, W] in [0, 1]."""
    back = _decode(mirror, mirror.reconstruction[-1], vae)
    if image is None:
        return back, _decode(mirror, mirror.latents[-1], vae)
    original = image[..., :3].movedim(-1, 1).float().cpu()
    top, left = ((a - b) // 2 for a, b in zip(original.shape[-2:], back.shape[-2:], strict=True))
    original = original[..., top : top + back.shape[-2], left : left + back.shape[-1]]
    if original.shape != back.shape:
        raise ValueError(f"The image ({list(image.shape)}) is not the one that was inverted ({list(back.shape)}).")
    return back, original


def _decode(mirror: Mirror, latent: Tensor, vae) -> Tensor:
    picture = vae.decode(to_picture_space(latent, mirror.provenance.model.latent_format))
    return picture[..., :3].movedim(-1, 1).float().cpu().clamp(0, 1)


def _hint(mirror: Mirror, displacement: float, quality: float) -> str:
    """What the numbers mean, and what to try."""
    made = mirror.provenance
    lines = [
        f"method {made.method}, cfg {made.cfg:g}, {mirror.steps} steps: displacement {displacement:.2g}, "
        f"{quality:.1f} dB, {made.forwards:.0f} forward and {made.backwards:.0f} backward passes a picture."
    ]
    if made.residuals:
        worst = max(max(step) for step in made.residuals)
        lines.append(f"Refined inversion: the last residual of a step is at most {worst:.1e}.")
    if displacement < HOLDS:
        return "\n".join([*lines, "The mirror holds: what you do not edit will stay."])
    lines.append("The mirror wavers: details will drift." if displacement < WAVERS else "The mirror does not hold.")
    return "\n".join([*lines, *_advice(mirror)])


def _advice(mirror: Mirror) -> list[str]:
    """What to try with a mirror that does not hold, for the way in which it was made."""
    made = mirror.provenance
    found = [ADVICE[made.method]] if made.method in ADVICE else [OPTIMISED] * (made.backwards > 0)
    if made.label.startswith("parity"):
        found.append("The published code's walk cannot come back exactly: choose another `label`.")
    elif not made.refine and made.method in REFINABLE:
        found.append("Set `refine` to 2 or more: the inversion itself becomes more exact.")
    if mirror.steps < 30:
        found.append(f"{mirror.steps} steps are few; 50 invert more exactly.")
    if made.cfg > 1 and made.method in ("none", "paper", "null text"):
        found.append("High guidance drifts most: at cfg 1 there is less to repair, and no negative is needed.")
    return [*found, "Describe the picture more closely: what the prompt leaves out, the model must guess."]
