"""The same job over Ray: equal bits, whatever becomes of a worker."""
import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from folders import command
from harness.environment import ROOT, SetupError
from harness.extras import RAY, ensure

from .graphs import TINY, draw, written

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None,
                               reason="Ray is not installed; `run.py translate --ray` installs it on first use")


def made(folder) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*.png"))}


def kill_first_worker(ledger_folder) -> None:
    """kill -9 the worker that writes the first row, which names the process in its file."""
    for _ in range(3000):
        for file in ledger_folder.glob("*/*.jsonl"):
            os.kill(int(file.name.split("-")[-2]), signal.SIGKILL)
            return
        time.sleep(.1)


@pytest.mark.parametrize("asked, pictures, workers, said", [
    (None, 9, 3, ""), (2, 9, 2, ""), (8, 2, 2, "--workers 8: of 3 GPUs"), (8, 9, 3, "so 3 work")])
def test_no_more_workers_than_places_and_that_is_said(capsys, asked, pictures, workers, said):
    from folders.ray_job import count_of
    assert count_of(asked, 3, "GPUs", pictures) == workers
    out = capsys.readouterr().out
    assert said in out and bool(said) == bool(out)


@pytest.mark.slow
@needs_ray
def test_a_cluster_makes_what_one_process_makes_though_a_worker_is_killed(host, tmp_path):
    source = draw(tmp_path / "in", *(f"{i // 5}/{i}.png" for i in range(20)))
    (source / "cut.png").write_bytes((source / "0" / "1.png").read_bytes()[:2000])
    arguments = ["--workflow", str(written(tmp_path, TINY)), "--cpu"]
    assert command.main([str(source), str(tmp_path / "serial"), *arguments]) == 1
    killer = threading.Thread(target=kill_first_worker, args=[tmp_path / "ray" / ".translate"])
    killer.start()
    assert command.main([str(source), str(tmp_path / "ray"), *arguments, "--ray", "--workers", "2"]) == 1
    killer.join()
    assert len(made(tmp_path / "serial")) == 20 and made(tmp_path / "ray") == made(tmp_path / "serial")
    assert [row["name"] for row in csv.DictReader(open(tmp_path / "ray" / "failed.csv"))] == ["cut.png"]
    rows = [row for file in (tmp_path / "ray").glob(".translate/*/*.jsonl") for row in file.read_text().splitlines()]
    assert len(list((tmp_path / "ray").glob(".translate/*/*.jsonl"))) > 1
    assert len({json.loads(row)["name"] for row in rows}) == 21
    assert len(rows) <= 22      # a worker that dies before it tells Ray of a row leaves its picture to be found


@pytest.mark.slow
@needs_ray
def test_a_cluster_that_is_not_there_is_said_in_a_sentence(host, tmp_path, capsys):
    draw(tmp_path / "in", "a.png")
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--workflow", str(written(tmp_path, TINY)), "--cpu"]
    assert command.main([*arguments, "--ray", "127.0.0.1:1"]) == 1
    assert "There is no Ray cluster at 127.0.0.1:1" in capsys.readouterr().err


def test_nothing_is_installed_into_a_python_that_is_not_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("MIRROR_CACHE", str(tmp_path))
    with pytest.raises(SetupError, match="-m pip install 'ray"):
        ensure(RAY)


@pytest.mark.slow
def test_nothing_of_ray_is_imported_by_the_nodes_or_a_job_without_it():
    """The pack and the serial job import nothing of Ray, so neither needs it."""
    program = (f"import sys; sys.path.append({str(ROOT)!r}); from harness.boot import boot; boot(); "
               "import folders.command, folders.serial, folders.ray_job; assert 'ray' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
