"""What figures depend on, as one short word: measured before by the same sources and weights, or not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch

from harness.environment import ROOT, available_host


def stamp(files: Iterable[Path]) -> str:
    """Changes when one of these files does."""
    states = [(str(path), path.stat().st_size, path.stat().st_mtime) for path in files]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16]


def fingerprint(parts: Iterable[str], weights: Iterable[str] = (), files: Iterable[Path] = ()) -> str:
    """Of the sources of the pack, of these `parts` of the bench (modules or folders), of the embedded world's `weights`
    by the name of their module in demo, of further `files`, and of the versions of ComfyUI and torch."""
    from .world import world
    version = available_host() / "comfyui_version.py"
    bench = [f for part in ("world", *parts)
             for f in [*(ROOT / "bench").glob(f"{part}.py"), *(ROOT / "bench" / part).glob("*.py")]]
    pack = [f for folder in ("mirror_ops", "nodes", "demo") for f in (ROOT / folder).rglob("*.py")]
    sources = sorted(f for f in [*bench, *pack] if "training" not in f.parts)
    weights = [world().host.pack_module(f"demo.{name}").WEIGHTS for name in weights]
    content = [f.read_bytes() for f in [version, *sources, *weights, *files]]
    return hashlib.sha256(b"".join([torch.__version__.encode(), *content])).hexdigest()[:16]
