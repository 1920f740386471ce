"""The pack's own three wire types, and the category that its nodes stand in."""

from comfy_api.latest import io

CATEGORY = "mirror"

MirrorType = io.Custom("MIRROR")
DirectionType = io.Custom("MIRROR_DIRECTION")
RewriterType = io.Custom("MIRROR_REWRITER")
