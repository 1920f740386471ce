"""MirrorSavePair: gathers what an edit is learnt from."""

import hashlib

from comfy_api.latest import io
from torch.nn.functional import interpolate

from ...mirror_ops.distillation.pairs import Rule, figures_of, write_pair
from ..host.training import check_room, pairs_folder
from ..reports import shown
from ..types import category


class MirrorSavePair(io.ComfyNode):
    """A picture and its edit to a folder of pairs, if the edit is good enough."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorSavePair",
            display_name="Mirror Save Pair",
            category=category(__name__),
            description=(
                "Keeps a picture and its edit for Mirror Train Edit, in output/mirror/pairs, if the edit is good: a "
                "region of sensible size, nothing changed outside it, and a score if one is connected."
            ),
            search_aliases=["distil", "training pairs", "paired data set", "save dataset"],
            is_output_node=True,
            inputs=[
                io.Image.Input("before", tooltip="The picture as it was."),
                io.Image.Input("after", tooltip="The edited picture, of the same size."),
                io.Mask.Input("region", tooltip="Where the edit acts: the `region` of the node that made it."),
                io.String.Input("folder", default="fox to dog", tooltip="Name of the set of pairs."),
                io.Float.Input(
                    "least_region", default=0.005, min=0.0, max=1.0, step=0.005,
                    tooltip="Pairs whose region is a smaller part of the picture are left out: nothing was edited.",
                ),
                io.Float.Input(
                    "most_region", default=0.9, min=0.0, max=1.0, step=0.01,
                    tooltip="Pairs whose region is a larger part of the picture are left out.",
                ),
                io.Float.Input(
                    "outside", default=30.0, min=0.0, max=99.0, step=0.5,
                    tooltip="Least PSNR in dB between the two outside the region.",
                ),
                io.Float.Input(
                    "score", default=0.0, min=-1e6, max=1e6, step=0.01, optional=True,
                    tooltip="How good the edit is, from any node: CLIP's, a classifier's.",
                ),
                io.Float.Input(
                    "least_score", default=0.0, min=-1e6, max=1e6, step=0.01, optional=True,
                    tooltip="Pairs with a lower score are left out.",
                ),
            ],
            outputs=[
                io.Int.Output(display_name="kept", tooltip="Of the pictures given, how many were kept."),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(
        cls, before, after, region, folder, least_region=0.005, most_region=0.9, outside=30.0, score=0.0,
        least_score=0.0,
    ) -> io.NodeOutput:
        before, after, region = _fitting(before, after, region)
        rule, place = Rule(least_region, most_region, outside, least_score), pairs_folder(folder)
        check_room(place, 4 * before[0].numel())
        kept, lines = 0, []
        for k in range(len(before)):
            one = (before[k:k + 1], after[k:k + 1], region[k:k + 1])
            figures = figures_of(*one, score)
            problem = rule.why_not(figures)
            if not problem:
                _written(place, one, figures)
                kept += 1
            lines.append(f"{'kept' if not problem else 'left out: ' + problem}; region {figures['region']:.1%}, "
                         f"outside {figures['outside']:.1f} dB")
        held = len(list((place / "figures").glob("*.json")))
        report = "\n".join([*lines, f"{held} pairs in {place}"])
        return io.NodeOutput(kept, report, ui=shown(report))


def _written(place, one: tuple, figures: dict) -> None:
    try:
        write_pair(place, _name(one[0]), *one, figures)
    except OSError as error:
        raise OSError(
            f"{error}. The pairs kept before are whole; make room or give permission, then queue again."
        ) from error


def _fitting(before, after, region) -> tuple:
    """Pictures [B, 3, H, W] and region [B, 1, H, W]. Raises ValueError for unlike sizes or numbers of pictures."""
    if len(before) != len(after):
        raise ValueError(
            f"`before` and `after` hold {len(before)} and {len(after)} pictures: each edit goes with one picture. Give "
            "as many of both."
        )
    if before.shape[1:3] != after.shape[1:3]:
        sizes = " and `after` ".join(f"{picture.shape[2]} x {picture.shape[1]}" for picture in (before, after))
        raise ValueError(
            f"`before` is {sizes} pixels: a pair is of one size. Put the edit back into the picture first, with Paste "
            "Edit onto Original."
        )
    before, after = (picture[..., :3].float().movedim(-1, 1).cpu() for picture in (before, after))
    region = region.float().reshape(-1, 1, *region.shape[-2:]).cpu()
    if len(region) not in (1, len(before)):
        raise ValueError(f"There are {len(region)} regions for {len(before)} pictures.")
    if region.shape[-2:] != before.shape[-2:]:
        region = interpolate(region, size=before.shape[-2:], mode="bilinear")
    return before, after, region.expand(len(before), -1, -1, -1)


def _name(picture) -> str:
    """The same picture has the same name, so that making its pair again replaces the earlier one."""
    return hashlib.sha256((picture.clamp(0, 1) * 255).round().byte().numpy().tobytes()).hexdigest()[:16]
