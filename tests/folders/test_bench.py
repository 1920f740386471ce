"""The bench of folder jobs: its simulation where the answer is known, and its count of what faults did."""
import json

import pytest

from bench.folders_faults import compared
from bench.folders_scale import BOOT, simulate

from .graphs import draw

NOTHING = {"dispatch of a task": 0., "append of a row": 0., "reading of a row": 0.}


def test_workers_that_nothing_holds_up_are_busy_but_for_the_boot():
    found = simulate(8000, 10, 5., NOTHING)
    assert found["hours"] * 3600 == pytest.approx(8000 * 5 / 10 + 1.5 * BOOT, rel=.02)


def test_a_driver_that_is_slower_than_its_workers_sets_the_time():
    found = simulate(8000, 100, .01, {**NOTHING, "dispatch of a task": 1.})
    assert found["driver"] > .9 and found["hours"] * 3600 == pytest.approx(1000 + BOOT, rel=.02)


def test_what_faults_did_is_counted(tmp_path):
    names = [f"{i}.png" for i in range(5)]
    for folder in ("in", "serial", "ray"):
        draw(tmp_path / folder, *names)
    (tmp_path / "ray" / "1.png").unlink()
    (tmp_path / "ray" / "2.png").write_bytes(b"another")
    ledger = tmp_path / "ray" / ".translate" / "job"
    ledger.mkdir(parents=True)
    rows = [{"name": name, "source": "", "at": 1.} for name in (*names, "3.png")]
    rows.append({**rows[0], "found": True})     # a result that was there is no work
    (ledger / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "ray" / "failed.csv").write_text("name,error\n")
    assert compared(tmp_path, ["4.png"]) == {"lost": 1, "doubled": 1, "differing": 1, "unlisted": 1}
