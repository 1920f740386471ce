"""The ledger: what a reader makes of the lines that writers left, whatever became of them."""
import json
import os
import signal
import subprocess
import sys
import time

from folders.ledger import Ledger, is_done
from harness.environment import ROOT


def row(name="a.png", source="one", at=1.0, **more) -> dict:
    return {"name": name, "source": source, "size": 1, "changed": 1, "at": at, **more}


def test_rows_of_two_writers_are_merged(tmp_path):
    ledger = Ledger(tmp_path)
    one, two = ledger.writer(), ledger.writer()
    for writer, name in ((one, "a"), (two, "b"), (one, "c"), (two, "a")):
        writer.append(row(name))
    assert len(list(tmp_path.iterdir())) == 2 and set(ledger.merged()) == {"a", "b", "c"}
    assert len(list(ledger.rows())) == 4


def test_a_result_stands_above_a_failure_of_the_same_picture_and_below_a_changed_picture(tmp_path):
    writer = Ledger(tmp_path).writer()
    writer.append(row(at=1.0))
    writer.append(row(at=2.0, error="by another worker"))
    assert "error" not in Ledger(tmp_path).merged()["a.png"]
    writer.append(row(source="two", at=3.0, error="changed and broken"))
    assert Ledger(tmp_path).merged()["a.png"]["error"] == "changed and broken"


def test_a_line_that_was_cut_short_counts_as_not_written(tmp_path):
    writer = Ledger(tmp_path).writer()
    writer.append(row("a"))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for length in range(1, len(whole)):
        file.write_bytes(whole + whole[:length - 1])
        assert set(Ledger(tmp_path).merged()) == {"a"}
        file.write_bytes(whole[:length - 1])
        assert set(Ledger(tmp_path).merged()) <= {"a"}


WRITE = """
import sys; sys.path.append(sys.argv[1])
from pathlib import Path
from folders.ledger import Ledger
writer = Ledger(Path(sys.argv[2])).writer()
for i in range(10**9):
    writer.append({"name": str(i), "source": "", "at": float(i)})
    print(i, flush=True)
"""


def test_what_was_appended_outlives_a_kill(tmp_path):
    """Two writers are killed at once; every row whose append returned is read."""
    command = [sys.executable, "-c", WRITE, str(ROOT), str(tmp_path)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    time.sleep(2)
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
    said = [len(writer.communicate()[0].splitlines()) for writer in writers]
    assert min(said) > 3 and len(Ledger(tmp_path).merged()) >= max(said)
    assert len(list(Ledger(tmp_path).rows())) >= sum(said)


def test_what_counts_as_done():
    assert is_done(row(), 1, 1, True, False)
    assert not is_done(None, 1, 1, True, False)
    assert not is_done(row(), 2, 1, True, False) and not is_done(row(), 1, 2, True, False)     # the picture changed
    assert not is_done(row(), 1, 1, False, False)                                           # the result was deleted
    assert is_done(row(error="x"), 1, 1, False, False) and not is_done(row(error="x"), 1, 1, False, True)
    assert json.loads(json.dumps(row())) == row()
