"""What depends on ComfyUI, once more on every one that the pack supports, each in a process of its own.

That is the tests marked `every_host`: all of tests/nodes/host, every control, every template, and for each other node
one that would notice another host. What a node computes is the same on all, and is tested on the default one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.environment import ROOT
from harness.hosts import ARCHIVES, host_of

pytestmark = [pytest.mark.slow, pytest.mark.hosts]
HERE = Path(__file__).parent
SUITE = ("-m", "every_host and not slow", str(HERE / "nodes"), str(HERE / "demo" / "test_graphs.py"))


@pytest.mark.parametrize("version", ARCHIVES)
def test_the_nodes_work_on(version):
    folder = host_of(version)
    assert f'"{version}"' in (folder / "comfyui_version.py").read_text()
    environ = {**os.environ, "COMFYUI_PATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUITE]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, encoding="utf-8", errors="replace")
    assert done.returncode == 0, f"on ComfyUI {version}:\n" + "\n".join(done.stdout.splitlines()[-80:])
    assert " passed" in done.stdout.splitlines()[-1]
