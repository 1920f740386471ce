"""One picture from file to file, with a stand-in for the host."""
import builtins
import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from folders import JobError, runner, worker
from folders.graph import Graph

from .graphs import draw

GRAPH = Graph({"1": {"class_type": "LoadImage", "inputs": {"image": ""}}}, ("1", "image"), ["1", 0], None, [])
CALLS = {os: ("stat", "mkdir", "fsync", "replace", "unlink"), io: ("open",), builtins: ("open",)}


class Host:
    """Gives every picture back as a grey one."""

    def __init__(self, inputs: Path):
        self.folder_paths = SimpleNamespace(get_input_directory=lambda: str(inputs))

    def run_graph(self, graph, cached):
        return SimpleNamespace(outputs={"1": [torch.full((1, 8, 8, 3), .5)]})


@pytest.fixture
def job(tmp_path, monkeypatch):
    """(job, host) of two pictures."""
    monkeypatch.setattr(runner, "other_files", lambda graph, host: {})
    draw(tmp_path / "in", "a.png", "b.png")
    (tmp_path / "inputs").mkdir()
    return worker.Job(tmp_path / "in", tmp_path / "out", GRAPH, 0, {"the seed": "0"}), Host(tmp_path / "inputs")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_temporary_folder_that_is_full_or_closed_stops_the_job(job, monkeypatch, error):
    """Every other picture would meet it too."""
    working = worker.Worker(*job)
    write = Path.write_bytes

    def full(file, content):
        write(file, content[:10])
        raise error
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(JobError, match=f"Writing to .*inputs failed: {error.strerror}. What was done is kept"):
        working.do("a.png")
    assert not list(working.runner.inputs.iterdir()) and not list(working.job.folder.glob("*.jsonl"))
    with pytest.raises(JobError, match="Writing to .*inputs failed"):
        working.runner.check(b"", ".png")
    monkeypatch.undo()
    assert "error" not in working.do("a.png")
    working.close()


def test_the_storage_is_asked_so_often_a_picture(job, tmp_path, monkeypatch):
    """The number in docs/folders.md: calls beside those that carry the picture's bytes, for any but the first."""
    working, seen = worker.Worker(*job), []
    working.do("a.png")

    def counted(name, real):
        def call(file, *args, **kwargs):
            if isinstance(file, int) or not str(file).startswith(str(tmp_path / "inputs")):    # the host's, not shared
                seen.append(name)
            return real(file, *args, **kwargs)
        return call
    for module, names in CALLS.items():
        for name in names:
            monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    row = working.do("b.png")
    monkeypatch.undo()
    working.close()
    assert "error" not in row
    picture, result = ["stat", "open", "stat"], ["mkdir", "stat", "open", "fsync", "replace", "unlink"]
    assert sorted(seen) == sorted([*picture, *result, "fsync"]), "the last of the ledger"
