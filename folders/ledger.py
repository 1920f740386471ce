"""What was done: one line of JSON a picture, appended and flushed to the disk before the next picture begins.

Every process writes a file of its own, so no two ever write to one, and they are merged when read. A line that a kill
cut short is no JSON and counts as not written; the result it would have spoken of carries the same record inside
(`results`), so nothing is done twice.
"""
from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

FOLDER = ".translate"       # in the folder of results


class Ledger:
    """The ledger of one job: `folder` is OUT/.translate/SETTINGS."""

    def __init__(self, folder: Path):
        self.folder = folder

    def rows(self) -> Iterator[dict]:
        """All whole lines of all writers."""
        for file in sorted(self.folder.glob("*.jsonl")):
            with open(file, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    try:
                        row = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(row, dict) and "name" in row:
                        yield row

    def merged(self) -> dict[str, dict]:
        """Picture -> its row: the newest, but for one content of the picture a result stands above a failure."""
        latest: dict[str, dict] = {}
        for row in self.rows():
            before = latest.get(row["name"])
            if before is None or rank(row, before) > rank(before, row):
                latest[row["name"]] = row
        return latest

    def writer(self) -> Writer:
        return Writer(self.folder)


def rank(row: dict, other: dict) -> tuple:
    same = row["source"] == other["source"]
    return (same and "error" not in row, row["at"])


class Writer:
    """Appends rows to a file that is this process's own, made with the first row."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.file = folder, None
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"

    def append(self, row: dict) -> None:
        self.file = self.file or open(self.folder / f"{self.name}.jsonl", "ab")
        self.file.write((json.dumps(row) + "\n").encode())
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        if self.file:
            self.file.close()


def is_done(row: dict | None, size: int, changed: int, has_result: bool, retry_failed: bool) -> bool:
    """Whether a picture of this size and time of change (ns) needs no work."""
    if row is None or (row["size"], row["changed"]) != (size, changed):
        return False
    return not retry_failed if "error" in row else has_result
