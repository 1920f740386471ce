"""Makes the host's classes importable in a training process."""
from __future__ import annotations

import os
import sys


def boot() -> None:
    """Put the host at COMFYUI_PATH on the import path and keep it on the CPU."""
    root = os.environ.get("COMFYUI_PATH")
    if not root:
        raise SystemExit("COMFYUI_PATH is not set: start training with `python run.py train`")
    if root not in sys.path:
        sys.path.insert(0, root)
    from comfy.cli_args import args
    args.cpu = True
