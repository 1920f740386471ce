"""Cached folders: what is cut short is made anew, two at once make it once."""
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from harness import cache
from harness.environment import ROOT


@pytest.mark.parametrize("system, variables, expected", [
    ("linux", {"XDG_CACHE_HOME": "/x/cache"}, "/x/cache/mirrordiffusion"),
    ("linux", {}, "/home/me/.cache/mirrordiffusion"),
    ("darwin", {}, "/home/me/Library/Caches/mirrordiffusion"),
    ("win32", {"LOCALAPPDATA": "/c/Local"}, "/c/Local/mirrordiffusion/Cache"),
    ("win32", {"MIRROR_CACHE": "/d/cache"}, "/d/cache"),
])
def test_the_cache_lies_where_the_platform_keeps_caches(monkeypatch, system, variables, expected):
    for name in ("MIRROR_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    monkeypatch.setattr(sys, "platform", system)
    assert cache.cache_root() == Path(expected)


def test_a_half_made_folder_is_made_anew_and_a_complete_one_kept(tmp_path):
    folder, made = tmp_path / "thing", []
    folder.mkdir()
    (folder / "half.txt").write_text("cut short")

    def make(where):
        assert list(where.iterdir()) == []      # nothing of the first try is trusted
        made.append(where)
        (where / "whole.txt").write_text("whole")
    for _ in range(2):
        assert cache.made(folder, make, "thing") == folder
    assert made == [folder] and (folder / "whole.txt").read_text() == "whole"


KILLED = """
    import os, sys
    from pathlib import Path
    from harness.cache import made
    def make(folder):
        (folder / "half.txt").write_text("half")
        os._exit(9)                             # as by kill -9 or a power cut: nothing is cleaned up
    made(Path(sys.argv[1]), make, "thing")
"""


def test_a_set_up_that_was_killed_is_repaired_and_holds_no_lock(tmp_path):
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "thing")], cwd=ROOT)
    assert killed.returncode == 9
    assert (tmp_path / "thing" / "half.txt").exists()
    cache.made(tmp_path / "thing", lambda folder: None, "thing")
    assert not (tmp_path / "thing" / "half.txt").exists() and cache.is_complete(tmp_path / "thing")


SLOW = """
    import sys, time
    from pathlib import Path
    from harness.cache import made
    def make(folder):
        time.sleep(1)
        with open(sys.argv[1] + ".count", "a") as count:
            count.write("made\\n")
    made(Path(sys.argv[1]), make, "thing")
"""


def test_two_at_once_make_it_once(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(SLOW), str(tmp_path / "thing")]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    words = "".join(process.communicate(timeout=60)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "thing.count").read_text() == "made\n"
    assert "waiting for it" in words
