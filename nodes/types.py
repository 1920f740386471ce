"""The pack's own wire types, and the editor's menu."""

from comfy_api.latest import io

MENU = "mirror"

MirrorType = io.Custom("MIRROR")
DirectionType = io.Custom("MIRROR_DIRECTION")
RewriterType = io.Custom("MIRROR_REWRITER")
ReportType = io.Custom("MIRROR_REPORT")


def mirror_input() -> io.Input:
    """The mirror of a control, which may come from the walk instead."""
    return MirrorType.Input("mirror", optional=True, tooltip=(
        "Whose picture is the reference. Only for stock samplers: Mirror Sample and edits under shared noise have a "
        "picture of their own."
    ))


def prefix_input(default: str) -> io.Input:
    """The name of a file that is written."""
    return io.String.Input("filename_prefix", default=default, tooltip=(
        "Folder and beginning of the file's name in the output folder; a number follows."
    ))


def category(module: str) -> str:
    """The menu's entry of a node's module (its __name__): the folder that it lies in, as in mirror/edit."""
    return f"{MENU}/{module.split('.')[-2]}"
