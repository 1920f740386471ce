"""Mirrors and directions to and from files in ComfyUI's output and input folders."""

from comfy_api.latest import io

from ...mirror_ops.directions.direction import load_direction, load_pt_pair, save_direction
from ...mirror_ops.walks.trajectory import load_mirror, save_mirror
from ..host.files import check_prefix, existing_file, new_file, noted, problem, stamps
from ..reports import shown
from ..types import DirectionType, MirrorType, category, prefix_input


def _save_schema(node_id: str, noun: str, kind, prefix: str) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name=f"Mirror Save {noun.title()}",
        category=category(__name__),
        description=f"Writes a {noun} to a safetensors file in the output folder.",
        search_aliases=[f"save {noun}"],
        is_output_node=True,
        inputs=[
            kind.Input("mirror" if noun == "trajectory" else "direction",
                       tooltip="What to keep, for another day or another machine."),
            prefix_input(prefix),
        ],
        outputs=[io.String.Output(display_name="file", tooltip="Its name, as the loader takes it.")],
    )


class MirrorSaveTrajectory(io.ComfyNode):
    """A MIRROR to a file."""

    @classmethod
    def define_schema(cls):
        return _save_schema("MirrorSaveTrajectory", "trajectory", MirrorType, "mirror/trajectory")

    @classmethod
    def validate_inputs(cls, filename_prefix):
        return problem(check_prefix, filename_prefix)

    @classmethod
    def execute(cls, mirror, filename_prefix) -> io.NodeOutput:
        path, name = new_file(filename_prefix)
        save_mirror(mirror, path)
        return io.NodeOutput(name, ui=shown(name))


class MirrorLoadTrajectory(io.ComfyNode):
    """A MIRROR from a file."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorLoadTrajectory",
            display_name="Mirror Load Trajectory",
            category=category(__name__),
            description="Reads a trajectory that Mirror Save Trajectory wrote.",
            search_aliases=["load trajectory", "load inversion"],
            inputs=[io.String.Input("file", tooltip="A name in the output or input folder.")],
            outputs=[MirrorType.Output(display_name="mirror")],
        )

    @classmethod
    def validate_inputs(cls, file):
        return problem(existing_file, file)

    @classmethod
    def fingerprint_inputs(cls, file):
        return stamps(file)

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(load_mirror(noted(file)))


class MirrorSaveDirection(io.ComfyNode):
    """A MIRROR_DIRECTION to a file."""

    @classmethod
    def define_schema(cls):
        return _save_schema("MirrorSaveDirection", "direction", DirectionType, "mirror/direction")

    @classmethod
    def validate_inputs(cls, filename_prefix):
        return problem(check_prefix, filename_prefix)

    @classmethod
    def execute(cls, direction, filename_prefix) -> io.NodeOutput:
        path, name = new_file(filename_prefix)
        save_direction(direction, path)
        return io.NodeOutput(name, ui=shown(name))


class MirrorLoadDirection(io.ComfyNode):
    """A MIRROR_DIRECTION from a file, or from pix2pix-zero's pair of files."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorLoadDirection",
            display_name="Mirror Load Direction",
            category=category(__name__),
            description=(
                "Reads a direction that Mirror Save Direction wrote, or makes one from pix2pix-zero's two .pt files "
                "(source.pt and target.pt, read as weights only)."
            ),
            search_aliases=["load direction", "pix2pix-zero embeddings"],
            inputs=[
                io.String.Input("file", tooltip="A .safetensors direction, or the source's .pt, in output or input."),
                io.String.Input("target_file", default="", optional=True, tooltip="For .pt pairs: the target's .pt."),
            ],
            outputs=[DirectionType.Output(display_name="direction")],
        )

    @classmethod
    def validate_inputs(cls, file, target_file=""):
        return problem(_check_pair, file, target_file)

    @classmethod
    def fingerprint_inputs(cls, file, target_file=""):
        return stamps(file, target_file)

    @classmethod
    def execute(cls, file, target_file="") -> io.NodeOutput:
        _check_pair(file, target_file)
        path = noted(file)
        return io.NodeOutput(load_pt_pair(path, noted(target_file)) if path.suffix == ".pt" else load_direction(path))


def _check_pair(file: str, target_file: str) -> None:
    """Raises ValueError unless both files are there, where two are needed."""
    path = existing_file(file)
    if path.suffix != ".pt":
        return
    if not target_file.strip():
        raise ValueError(f"{path.name} is one half of a pair. Give the target's .pt in `target_file`.")
    existing_file(target_file)
