"""What figures depend on, as one short word: measured before by the same sources and weights, or not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from harness.environment import ROOT


def fingerprint(parts: Iterable[str], weights: Iterable[str] = (), files: Iterable[Path] = ()) -> str:
    """Of the sources of the pack, of these `parts` of the bench (modules or folders), of the embedded world's `weights`
    by the name of their module in demo, and of further `files`."""
    from .world import world
    bench = [f for part in parts for f in [*(ROOT / "bench").glob(f"{part}.py"), *(ROOT / "bench" / part).glob("*.py")]]
    pack = [f for folder in ("mirror_ops", "nodes", "demo") for f in (ROOT / folder).rglob("*.py")]
    sources = sorted(f for f in [*bench, *pack] if "training" not in f.parts)
    weights = [world().host.pack_module(f"demo.{name}").WEIGHTS for name in weights]
    return hashlib.sha256(b"".join(f.read_bytes() for f in [*sources, *weights, *files])).hexdigest()[:16]
