"""MirrorTrainEdit: pairs of pictures -> a file that stock upscaling nodes run."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ...mirror_ops.distillation import network
from ...mirror_ops.distillation.pairs import Pair, digest, read_pairs
from ...mirror_ops.distillation.training import Plan, State, begun, seconds_left, train
from ...mirror_ops.measure.within import psnr_within
from ..host import files, notices, training
from ..host.values import SEEDS
from ..reports import shown
from ..types import category

LOSSES = {"pixels, edges, adversarial": 0.01, "pixels, edges": 0.0}
HELD_BACK, MOST_HELD_BACK = 16, 16  # one pair in so many is not trained on, but no more than so many
KEEP_EVERY = 200  # steps after which an unfinished training is written down


class MirrorTrainEdit(io.ComfyNode):
    """Trains a small network on pairs; stopped and queued again, it goes on where it was."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorTrainEdit",
            display_name="Mirror Train Edit",
            category=category(__name__),
            description=(
                "Distils one edit into a small network that runs in real time, from the pairs that Mirror Save Pair "
                "kept. The file lies with the upscaling models: Load Upscale Model and Upscale Image (using Model) run "
                "it, or Mirror Apply Edit. Stop keeps what was learnt; queue again to go on."
            ),
            search_aliases=["distil", "distillation", "train", "real time", "pix2pix", "NAFNet", "GAN"],
            is_output_node=True,
            inputs=[
                io.String.Input("folder", default="fox to dog", tooltip="The pairs, as Mirror Save Pair names them."),
                io.String.Input("name", default="fox to dog", tooltip="Of the file in models/upscale_models."),
                io.Int.Input("steps", default=4000, min=1, max=1_000_000, tooltip="More learns more, in more time."),
                io.Int.Input("batch", default=8, min=1, max=256, tooltip="Crops at each step."),
                io.Int.Input(
                    "size", default=128, min=32, max=1024, step=16,
                    tooltip="Side of the crops in pixels; as large as what the edit has to see at once.",
                ),
                io.Combo.Input(
                    "loss", options=list(LOSSES), default=next(iter(LOSSES)),
                    tooltip="adversarial: a discriminator asks for pictures as sharp as the pairs' (pix2pix).",
                ),
                io.Int.Input(
                    "width", default=16, min=4, max=64, step=4, optional=True, advanced=True, tooltip=(
                        "Channels at full size. 8 is quick and enough for drawings; photographs want 16 or more."
                    ),
                ),
                io.UpscaleModel.Input(
                    "base", optional=True, tooltip=(
                        "Another distilled edit (Load Upscale Model) to start from, in place of nothing: fewer steps "
                        "are enough. Its width is taken."
                    ),
                ),
                io.Int.Input(
                    "seed", default=0, **SEEDS, control_after_generate=False, optional=True,
                    tooltip="Of the first weights and the order of the pairs.",
                ),
            ],
            outputs=[
                io.UpscaleModel.Output(display_name="edit"),
                io.Image.Output(display_name="sheet", tooltip="Pairs not trained on: picture, network, teacher."),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(cls, folder, name, steps, batch, size, loss, width=16, base=None, seed=0) -> io.NodeOutput:
        start = None if base is None else edit_of(base)
        place, file, unfinished = (
            training.pairs_folder(folder), training.model_file(name), training.training_file(name)
        )
        training.check_ours(file)
        files.note(folder, training.pairs_state(folder))
        learnt_from, held_back = split(read_pairs(place))
        plan = Plan(steps, batch, fitting(size, learnt_from + held_back), adversarial=LOSSES[loss],
                    seed=seed % (1 << 31), shape=network.Shape(width) if start is None else network.shape_of(start),
                    base="" if start is None else network.digest(start), pairs=digest(learnt_from))
        with training.gradients():
            state, found = begun(unfinished, plan, training.device(), start)
            for path in (unfinished, file):
                training.check_room(path, 2 * state.bytes)
            if found:
                notices.warn(found)
            kept = run(state, learnt_from, held_back, unfinished)
            finished = state.averaged()
        figures = measured(finished, held_back)
        about = {
            "edit": name, "pairs": len(learnt_from), "steps": steps, "batch": batch, "size": plan.size, "loss": loss,
            "seed": seed, "shape": network.shape_fields(plan.shape), "base": plan.base, "held_back": figures,
            "minutes": round(state.spent / 60, 1),
        }
        written(finished, file, about, kept)
        unfinished.unlink(missing_ok=True)
        report = _said(training.listed_name(file), len(learnt_from), len(held_back), figures)
        picture = sheet(finished, held_back)
        images = torch.from_numpy(np.asarray(picture, np.float32) / 255)[None]
        return io.NodeOutput(training.as_upscale_model(file), images, report, ui=shown(report, images, cls))

    @classmethod
    def fingerprint_inputs(cls, folder, **settings):
        return files.stamps(folder, state=training.pairs_state)


def edit_of(upscale_model):
    """The network of a distilled edit. Raises ValueError for any other upscaling model."""
    if not network.is_edit(upscale_model.model):
        raise ValueError(
            "`base` is no distilled edit but another upscaling model. Load a file that Mirror Train Edit has made, or "
            "disconnect it."
        )
    return upscale_model.model


def split(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """(pairs to learn from, pairs held back): one in 16 is held back, at least two and at most 16."""
    held = pairs[::max(1, len(pairs) // max(2, min(MOST_HELD_BACK, len(pairs) // HELD_BACK)))]
    held = held[:MOST_HELD_BACK]
    chosen = set(map(id, held))
    return [pair for pair in pairs if id(pair) not in chosen], held


def fitting(size: int, pairs: list[Pair]) -> int:
    """The crops' side: no longer than the shortest side of any picture."""
    return min(size, *(min(pair.before.shape[1:]) for pair in pairs))


def written(edit, file, about: dict, kept: bool) -> None:
    """`network.save`. Raises OSError with a sentence that says whether the training is kept."""
    try:
        network.save(edit, file, about)
    except OSError as error:
        lost = "" if kept else "not "
        raise OSError(
            f"{error}. What was learnt is {lost}kept: make room or give permission, then queue again."
        ) from error


def run(state: State, pairs: list[Pair], held_back: list[Pair], unfinished) -> bool:
    """Trains to the end; whether the end is kept. What was reached is kept in the file `unfinished` at times, and
    however it ends. Where it can't be, a warning says so, and the training goes on, or ends as it does."""
    plan = state.plan
    training.told(
        f"Training an edit on {len(pairs)} pairs, {plan.steps - state.step} steps: about "
        f"{seconds_left(state, pairs) / 60:.1f} min. Stop keeps what was learnt."
    )
    bar = training.Bar(plan.steps, state.step)

    def keep() -> bool:
        try:
            state.save(unfinished)
        except OSError as error:
            notices.warn(f"{error}. Until there is room, Stop loses what was learnt since it was last kept.")
            return False
        return True

    def on_step(state: State, losses: dict) -> None:
        words = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
        bar.reached(state.step, lambda: f"step {state.step} of {plan.steps}: {words}",
                    lambda: sheet(state.averaged(), held_back[:4]))
        if state.step % KEEP_EVERY == 0:
            keep()

    try:
        train(state, pairs, on_step)
    finally:
        kept = keep()
    return kept


def predicted(edit, pair: Pair) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(before, network's, teacher's [1, 3, H, W], region [1, 1, H, W]) of a pair, in [0, 1]."""
    before, after, region = (part[None].float() / 255 for part in (pair.before, pair.after, pair.region))
    with torch.no_grad():
        return before, edit(before).clamp(0, 1), after, region


def measured(edit, pairs: list[Pair]) -> dict[str, float]:
    """{"inside", "outside"}: PSNR in dB to the teacher's edit in its region, and to the picture outside it."""
    rows = [predicted(edit, pair) for pair in pairs]
    inside = [psnr_within(made, after, region) for _, made, after, region in rows]
    outside = [psnr_within(made, before, 1 - region) for before, made, _, region in rows]
    return {"inside": float(torch.cat(inside).nanmean()), "outside": float(torch.cat(outside).nanmean())}


def sheet(edit, pairs: list[Pair], side: int = 128) -> Image.Image:
    """A column for each pair: the picture, the network's edit, the teacher's."""
    grid = Image.new("RGB", (side * len(pairs), 3 * side))
    for column, pair in enumerate(pairs):
        for row, picture in enumerate(predicted(edit, pair)[:3]):
            pixels = (picture[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            grid.paste(Image.fromarray(pixels).resize((side, side)), (column * side, row * side))
    return grid


def _said(file: str, learnt: int, held: int, figures: dict) -> str:
    return (
        f"`{file}` is in Load Upscale Model now (press R if the list is old). Learnt from {learnt} pairs. On {held} "
        f"pairs that it has not seen: {figures['inside']:.1f} dB from the teacher inside the edit, "
        f"{figures['outside']:.1f} dB from the picture outside it."
    )
