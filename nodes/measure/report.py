"""MirrorReport: how good a mirror is, before any edit."""

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.measure.curve import draw_curves
from ...mirror_ops.measure.metrics import psnr, ssim
from ...mirror_ops.walks.trajectory import Mirror
from ..host.families import to_picture_space
from ..reports import shown
from ..types import MirrorType, category

HOLDS, WAVERS = 0.02, 0.1  # relative displacement of the picture


class MirrorReport(io.ComfyNode):
    """Numbers, a curve and plain words about a mirror."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorReport",
            display_name="Mirror Report",
            category=category(__name__),
            description="Shows how closely the way back retraces the inversion, and what to try if it does not.",
            search_aliases=["inversion quality", "reconstruction error", "psnr", "ssim"],
            is_output_node=True,
            inputs=[
                MirrorType.Input("mirror"),
                io.Vae.Input("vae", optional=True, tooltip="To compare pictures; without it, latents are compared."),
                io.Image.Input("image", optional=True, tooltip="The picture itself; default: its VAE round trip."),
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
    def execute(cls, mirror: Mirror, vae=None, image=None) -> io.NodeOutput:
        if image is not None and vae is None:
            raise ValueError("To compare with the picture itself, connect the `vae` as well.")
        curve = draw_curves(mirror.displacement.T.tolist(), "relative displacement of the way back")
        displacement = mirror.displacement[-1].mean().item()
        pictures = _latents(mirror) if vae is None else _pictures(mirror, vae, image)
        quality = psnr(*pictures).mean().item()
        likeness = ssim(*pictures, size=min(11, *pictures[0].shape[-2:])).mean().item()
        hint = _hint(mirror, displacement, quality)
        picture = torch.from_numpy(curve.copy()).float()[None] / 255
        cost = mirror.provenance.forwards, mirror.provenance.backwards
        return io.NodeOutput(picture, displacement, quality, likeness, hint, *cost, ui=shown(hint, picture, cls))


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
        lines.append("The mirror holds: what you do not edit will stay.")
        return "\n".join(lines)
    lines.append("The mirror wavers: details will drift." if displacement < WAVERS else "The mirror does not hold.")
    if made.method in ("none", "negative prompt"):
        lines.append("Let PromptRewriteOptimizer rewrite the prompt (method paper).")
    else:
        lines.append("Switch early_stop off, or allow more inner_steps, in PromptRewriteOptimizer.")
    if mirror.steps < 30:
        lines.append(f"{mirror.steps} steps are few; 50 invert more exactly.")
    if not made.refine:
        lines.append("Set refine to 2 or more: the inversion itself becomes more exact.")
    if made.cfg > 1:
        lines.append("High guidance drifts most; cfg 1 with MirrorSample's default negative needs none.")
    lines.append("Describe the picture more closely: what the prompt leaves out, the model must guess.")
    return "\n".join(lines)
