"""The pack's own wire types, and the editor's menu."""

from comfy_api.latest import io

MENU = "mirror"

MirrorType = io.Custom("MIRROR")
DirectionType = io.Custom("MIRROR_DIRECTION")
RewriterType = io.Custom("MIRROR_REWRITER")
ReportType = io.Custom("MIRROR_REPORT")


def category(module: str) -> str:
    """The menu's entry of a node's module (its __name__): the folder that it lies in, as in mirror/edit."""
    return f"{MENU}/{module.split('.')[-2]}"
