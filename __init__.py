"""MirrorDiffusion for ComfyUI: invert a picture, rewrite its prompt at every step, and edit it from there."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
