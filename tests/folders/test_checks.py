"""What is known to be wrong with the folders before any work, without a host."""
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from folders import JobError, checks

from .graphs import draw

NOBODY = 65534


@pytest.fixture
def closed():
    """A folder that may not be entered, in one that may."""
    if not hasattr(os, "seteuid"):
        pytest.skip("no permissions to take away here")
    above = Path(tempfile.mkdtemp())
    above.chmod(0o755)
    (above / "closed" / "below").mkdir(parents=True)
    (above / "closed").chmod(0)
    user = os.geteuid()
    if user == 0:           # root may enter everything
        os.seteuid(NOBODY)
    try:
        yield above / "closed"
    finally:
        os.seteuid(user)
        (above / "closed").chmod(0o700)
        shutil.rmtree(above)


def test_folders_that_may_not_be_looked_at_are_told_in_a_sentence(closed):
    with pytest.raises(JobError, match="closed/below can't be looked at: Permission denied"):
        checks.check_folders(closed / "below", closed.parent / "out")
    with pytest.raises(JobError, match="closed/below can't be looked at: Permission denied"):
        checks.check_folders(closed.parent, closed / "below")


def test_a_target_that_is_full_or_closed_is_refused(tmp_path, monkeypatch):
    draw(tmp_path / "in", "a.png")
    space = checks.space_needed(tmp_path / "in", ["a.png"] * 1000)
    assert space == 1000 * 128 * 128 * 3
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(space) - 1))
    with pytest.raises(JobError, match="GB left"):
        checks.check_target(tmp_path / "in", tmp_path / "out", ["a.png"] * 1000)
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match="can't be written to"):
        checks.check_target(tmp_path / "in", tmp_path / "file" / "out", ["a.png"])


def test_a_target_is_tried_without_leaving_anything(tmp_path, monkeypatch):
    draw(tmp_path / "in", "a.png")
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for target in ("there", "new", "new/deep/down"):
        checks.check_target(tmp_path / "in", tmp_path / target, ["a.png"], keep=False)
        assert sorted(tmp_path.rglob("*")) == before

    def full(number):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JobError, match="can't be written to: No space left"):
        checks.check_target(tmp_path / "in", tmp_path / "new", ["a.png"], keep=False)
    assert sorted(tmp_path.rglob("*")) == before
