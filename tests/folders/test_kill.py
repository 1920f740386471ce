"""The command as a process: stopped and killed at any instant, started again."""
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from harness.environment import ROOT

from .graphs import TINY, draw, written

PICTURES = 60       # a busy machine must not be through with them before a signal arrives


def start(tmp_path, out: str) -> subprocess.Popen:
    folders = [str(tmp_path / "in"), str(tmp_path / out)]
    return subprocess.Popen([sys.executable, str(ROOT / "run.py"), "translate", *folders, "--workflow",
                             str(written(tmp_path, TINY)), "--cpu"], stdout=subprocess.PIPE, text=True)


def made(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.png")}


@pytest.mark.slow
def test_kills_and_stops_lose_nothing_and_double_nothing(tmp_path):
    """Killed -9 after two results, stopped by Ctrl-C after two more, then left to end: as if never disturbed."""
    draw(tmp_path / "in", *(f"{i:02}.png" for i in range(PICTURES)))
    assert start(tmp_path, "whole").wait() == 0
    for number in (signal.SIGKILL, signal.SIGINT):
        there, process = len(made(tmp_path / "out")), start(tmp_path, "out")
        while len(made(tmp_path / "out")) < there + 2:      # it works: a signal while Python boots says nothing of it
            assert process.poll() is None
            time.sleep(.02)
        os.kill(process.pid, number)
        said = process.communicate()[0]
        assert process.returncode == (130 if number == signal.SIGINT else -number)
        for file in (tmp_path / "out").glob("*.png"):
            Image.open(file).load()
    assert "the same command goes on" in said
    assert start(tmp_path, "out").wait() == 0
    assert made(tmp_path / "out") == made(tmp_path / "whole") and len(made(tmp_path / "out")) == PICTURES
    rows = "".join(file.read_text() for file in (tmp_path / "out").glob(".translate/*/*.jsonl")).splitlines()
    assert len([row for row in rows if row.endswith("}")]) == PICTURES
