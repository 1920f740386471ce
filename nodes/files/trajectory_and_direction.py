"""Mirrors and directions to and from files in ComfyUI's output and input folders."""

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ...mirror_ops.directions.direction import load_direction, load_pt_pair, save_direction
from ...mirror_ops.walks.trajectory import load_mirror, save_mirror
from ..reports import shown
from ..types import DirectionType, MirrorType, category

READABLE = (".safetensors", ".pt")


def new_file(prefix: str) -> tuple[Path, str]:
    """(a path in the output folder that does not exist yet, its name relative to that folder)."""
    output = folder_paths.get_output_directory()
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, output)
    path = Path(folder) / f"{name}_{counter:05}_.safetensors"
    return path, os.path.relpath(path, output)


def existing_file(name: str, kinds: tuple[str, ...] = READABLE) -> Path:
    """The file of that name in the output or input folder; ValueError if there is none, or it leads elsewhere.

    `kinds`: the file name endings that the message then lists.
    """
    roots = [Path(root).resolve() for root in (folder_paths.get_output_directory(), folder_paths.get_input_directory())]
    for root in roots:
        path = (root / name.strip()).resolve()
        if path.is_relative_to(root) and path.is_file():
            return path
    known = sorted(
        str(path.relative_to(root)) for root in roots for path in root.rglob("*.*") if path.suffix in kinds
    )
    raise ValueError(
        f"There is no file {name!r} in ComfyUI's output or input folder. There are: {', '.join(known[:20]) or 'none'}."
    )


def changed_at(name: str | None, kinds: tuple[str, ...] = READABLE) -> float | None:
    """When that file last changed, so that a new version of it is read; None if there is none."""
    try:
        return None if name is None else existing_file(name, kinds).stat().st_mtime
    except ValueError:
        return None


def _save_schema(node_id: str, noun: str, kind, prefix: str) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name=f"Mirror Save {noun.title()}",
        category=category(__name__),
        description=f"Writes a {noun} to a safetensors file in the output folder.",
        search_aliases=[f"save {noun}"],
        is_output_node=True,
        inputs=[
            kind.Input("mirror" if noun == "trajectory" else "direction"),
            io.String.Input("filename_prefix", default=prefix),
        ],
        outputs=[io.String.Output(display_name="file", tooltip="Its name, as the loader takes it.")],
    )


class MirrorSaveTrajectory(io.ComfyNode):
    """A MIRROR to a file."""

    @classmethod
    def define_schema(cls):
        return _save_schema("MirrorSaveTrajectory", "trajectory", MirrorType, "mirror/trajectory")

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
            description="Reads a trajectory that MirrorSaveTrajectory wrote.",
            search_aliases=["load trajectory", "load inversion"],
            inputs=[io.String.Input("file", tooltip="A name in the output or input folder.")],
            outputs=[MirrorType.Output(display_name="mirror")],
        )

    @classmethod
    def fingerprint_inputs(cls, file):
        return changed_at(file)

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(load_mirror(existing_file(file)))


class MirrorSaveDirection(io.ComfyNode):
    """A MIRROR_DIRECTION to a file."""

    @classmethod
    def define_schema(cls):
        return _save_schema("MirrorSaveDirection", "direction", DirectionType, "mirror/direction")

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
                "Reads a direction that MirrorSaveDirection wrote, or makes one from pix2pix-zero's two .pt files "
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
    def fingerprint_inputs(cls, file, target_file=""):
        return changed_at(file), changed_at(target_file)

    @classmethod
    def execute(cls, file, target_file="") -> io.NodeOutput:
        path = existing_file(file)
        if path.suffix != ".pt":
            return io.NodeOutput(load_direction(path))
        if not target_file.strip():
            raise ValueError(f"{path.name} is one half of a pair. Give the target's .pt in `target_file`.")
        return io.NodeOutput(load_pt_pair(path, existing_file(target_file)))
