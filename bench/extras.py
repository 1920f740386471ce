"""The packages that only benches need: put into the environment on their first use."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from harness.environment import BENCH, SetupError, cache_root, locked, pip, say


def ensure() -> None:
    """Install BENCH where it is missing, if the environment is our own. Raises SetupError."""
    if all(importlib.util.find_spec(package.split("==")[0]) for package in BENCH):
        return
    python, wanted = Path(sys.executable), " ".join(BENCH)
    if not python.is_relative_to(cache_root()):
        raise SetupError(f"Benches need {wanted}. Install them with: {python} -m pip install {wanted}")
    with locked(cache_root() / "bench.lock", "the benches' packages"):
        say(f"installing {wanted}, about 30 MB, only this once")
        pip(python, "install", *BENCH, log=cache_root() / "bench.log")
    importlib.invalidate_caches()
