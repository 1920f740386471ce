"""One picture from file to file, and the row that the ledger keeps of it."""
from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.boot import Host

from . import JobError, pictures, results
from .disk import writing_to
from .figures import figures
from .graph import Graph
from .ledger import FOLDER, Ledger
from .runner import Runner, reason


@dataclass(frozen=True)
class Job:
    """What every worker is told. parts: all that results depend on (`settings.parts_of`), seed: the job's own."""
    source: Path
    target: Path
    graph: Graph
    seed: int
    parts: dict[str, str]
    cpu: bool = True
    packs: tuple[str, ...] = ()
    keep_suffix: bool = False
    replace: bool = False

    @cached_property
    def settings(self) -> str:
        """The name of all that results depend on."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        return self.target / FOLDER / self.settings


class Worker:
    """Does pictures of a job in this process."""

    def __init__(self, job: Job, host: Host):
        self.job, self.runner = job, Runner(job.graph, host)
        self.writer = Ledger(job.folder).writer()
        self.scratch = job.folder / f"{self.writer.name}.part"

    def do(self, name: str) -> dict:
        """The picture's row, which is in the ledger when this returns. Raises JobError if no other would fare better.

        A picture that can't be read, or on which the graph fails, is a row too, with "error".
        """
        started, cpu = time.monotonic(), time.process_time()
        file = self.job.source / name
        row = {"name": name, "source": "", "size": -1, "changed": -1, "seed": pictures.seed_of(name, self.job.seed)}
        try:
            stat = file.stat()
            row |= {"size": stat.st_size, "changed": stat.st_mtime_ns}
            content = file.read_bytes()
            row |= {"source": hashlib.sha256(content).hexdigest(),
                    "result": pictures.result_name(name, self.job.keep_suffix)}
            row |= self._made_before(row) or self._made(row, content)
        except JobError:
            raise
        except Exception as error:      # whatever one picture brings about must not end the job
            row["error"] = reason(error)
        row |= {"seconds": round(time.monotonic() - started, 3), "cpu_seconds": round(time.process_time() - cpu, 3),
                "at": time.time()}
        with writing_to(self.job.target):
            self.writer.append(row)
        return row

    def _made_before(self, row: dict) -> dict | None:
        """The figures of the result that lies there, if it is this picture's: a kill came before its row was written,
        or before Ray heard of the task that made it and gave it to another worker."""
        target = self.job.target / row["result"]
        if not target.exists():
            return None
        record = results.record_of(target) or {}
        if (record.get("settings"), record.get("source")) == (self.job.settings, row["source"]):
            return {**record["figures"], "found": True}
        if record.get("settings") != self.job.settings and not self.job.replace:
            raise FileExistsError(f"{target} is there already and no result of this job; --replace with "
                                  "--retry-failed writes over it")
        return None

    def _made(self, row: dict, content: bytes) -> dict:
        """The figures of a result that is made now."""
        try:
            content, suffix = pictures.loadable(content, Path(row["name"]).suffix)
        except Exception as error:
            raise ValueError(f"not a whole picture that Pillow can read ({error})") from error
        before, after, region = self.runner(content, suffix, row["seed"])
        if len(after) != 1:
            raise ValueError(f"the graph made {len(after)} pictures of it, where one has a place")
        found = figures(before[:1], after, region if region is None else region[:1])
        record = {"settings": self.job.settings, "source": row["source"], "figures": found}
        graph = self.job.graph.filled(row["name"], row["seed"])
        with writing_to(self.job.target):
            results.write(after[0], self.job.target / row["result"], self.scratch, record, graph)
        return found

    def close(self) -> None:
        self.writer.close()
