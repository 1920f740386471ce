"""pip's long work is seen, and its errors say what to do."""
import contextlib
import os
import socket
import sys
from pathlib import Path

import pytest

from harness import extras
from harness.cache import SetupError
from harness.pip import explain, pip

SAYS = """
import sys
print("Collecting torch")
print("  Downloading torch-2.11.0-cp311-none-any.whl (530.7 MB)")
print("  Using cached scipy-1.0-cp311-none-any.whl (35.0 MB)")
print("  Downloading torch-2.11.0.whl.metadata (29 kB)")
print("  Downloading small-1.0-py3-none-any.whl (9.9 MB)")
print("Installing collected packages: a, b, c")
"""


def test_large_downloads_and_the_installation_are_shown_and_all_is_logged(tmp_path, monkeypatch, capsys):
    (tmp_path / "pip.py").write_text(SAYS)
    monkeypatch.chdir(tmp_path)                 # where `python -m pip` finds this one first
    pip(Path(sys.executable), "install", log=tmp_path / "pip.log")
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in shown] == ["Downloading", "Using", "writing"] and "530.7 MB" in shown[0]
    assert "3 packages" in shown[2] and len((tmp_path / "pip.log").read_text().splitlines()) == 6


def test_no_network_is_named(tmp_path, monkeypatch):
    for name in ("FIND_LINKS", "EXTRA_INDEX_URL", "NO_INDEX"):
        monkeypatch.delenv("PIP_" + name, raising=False)
    with socket.socket() as closed:                 # bound but not listening: connections to it are refused
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/")
        monkeypatch.setenv("PIP_RETRIES", "1")
        with pytest.raises(SetupError, match="can't be reached. Check the network"):
            pip(Path(sys.executable), "download", "--no-deps", "-d", tmp_path, "torch==2.11.0",
                log=tmp_path / "pip.log")


@pytest.mark.parametrize("log, reason", [
    ("OSError: [Errno 28] No space left on device", "The disk is full"),
    ("ERROR: No matching distribution found for torch==2.11.0", "not to be had for this Python"),
    ("a fault of another kind", "running this again starts the failed part afresh"),
])
def test_what_went_wrong_is_named_and_pips_last_words_stand_below(tmp_path, log, reason):
    (tmp_path / "pip.log").write_text("much before\n" * 9 + log)
    said = explain(tmp_path / "pip.log")
    assert reason in said and said.endswith(log) and str(tmp_path / "pip.log") in said


def test_an_earlier_calls_log_explains_nothing(tmp_path):
    log = tmp_path / "pip.log"
    log.write_text("No space left on device\n")
    begin = log.stat().st_size
    with log.open("a") as out:
        out.write("No matching distribution found\n")
    assert "The disk is full" in explain(log) and "not to be had for this Python" in explain(log, begin)


def test_an_extra_that_is_pinned_to_another_version_is_installed_anew(monkeypatch, tmp_path):
    installed = []
    monkeypatch.setattr(extras, "pip", lambda python, *arguments, log: installed.append(arguments))
    monkeypatch.setattr(extras, "locked", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(extras, "cache_root", lambda: Path(sys.executable).parent)      # the environment is our own
    for version in (pytest.__version__, "0.0.1"):
        extras.ensure(extras.Extra("tests", (f"pytest=={version}",), ("pytest",), 1))
    assert installed == [("install", "pytest==0.0.1")]
    monkeypatch.setattr(extras, "cache_root", lambda: tmp_path)                         # it is the user's
    extras.ensure(extras.Extra("tests", ("pytest==0.0.1",), ("pytest",), 1))
    assert len(installed) == 1
