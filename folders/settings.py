"""What a job is: everything that its results depend on beside the pictures. Change one of these, and it is another."""
from __future__ import annotations

import hashlib
import importlib
import json
import socket
from pathlib import Path

from harness.boot import Host
from harness.environment import ROOT

from . import JobError
from .graph import Graph
from .ledger import FOLDER
from .runner import model_files
from .worker import Job

CODE = ("nodes", "mirror_ops", "demo", "folders")   # the pack's folders whose code and weights decide about pixels
FILE = "job.json"
PIECE, PIECES = 1 << 16, 64


def parts_of(graph: Graph, seed: int, host: Host, packs: tuple[str, ...], cpu: bool) -> dict[str, str]:
    """Part of the job -> what it is, as words or as a fingerprint."""
    blank = graph.filled("", 0)
    parts = {"the graph": digest(json.dumps([blank, graph.picture, graph.saved, graph.region], sort_keys=True)),
             "the seed": str(seed),
             "the pack's code": code(ROOT, CODE),
             "ComfyUI": importlib.import_module("comfyui_version").__version__,
             "torch": importlib.import_module("torch").__version__,
             "the device": "CPU" if cpu else "a GPU where there is one"}
    parts |= {f"the pack {Path(pack).name}": code(Path(pack), (".",)) for pack in packs}
    return parts | {name: sampled(file) for name, file in model_files(graph, host).items()}


def digest(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:16]


def code(root: Path, folders: tuple[str, ...]) -> str:
    """Fingerprint of a pack's Python files and weights."""
    files = [file for folder in folders for file in sorted((root / folder).rglob("*"))
             if file.suffix in (".py", ".safetensors") and file.is_file()]
    return digest("".join(f"{file.relative_to(root).as_posix()} {digest(file.read_bytes())}\n" for file in files))


def sampled(file: Path) -> str:
    """Fingerprint of a file of any size: its length and pieces from all over it, so that 20 GB take no longer."""
    size, read = file.stat().st_size, hashlib.sha256()
    with open(file, "rb") as content:
        for i in range(PIECES):
            content.seek(max(0, size - PIECE) * i // (PIECES - 1))
            read.update(content.read(PIECE))
    return f"{size} {read.hexdigest()[:16]}"


def as_text(parts: dict[str, str]) -> str:
    return json.dumps(parts, indent=1, sort_keys=True) + "\n"


def check_other_jobs(target: Path, parts: dict[str, str], replace: bool) -> None:
    """Raises JobError if OUT holds another job's results, unless they may go."""
    for other in sorted((target / FOLDER).glob(f"*/{FILE}")):
        before = json.loads(other.read_text(encoding="utf-8"))
        if before != parts and not replace:
            raise JobError(f"{target} holds results of another job: {difference(before, parts)} changed. Name another "
                           "folder, or give --replace to write over them.")


def check_same(job: Job, host: Host) -> None:
    """Raises JobError if this machine would make other results of the job than the one that started it."""
    here = parts_of(job.graph, job.seed, host, job.packs, job.cpu)
    if here != job.parts:
        raise JobError(f"The machines of the cluster differ: {difference(here, job.parts)} is not the same on "
                       f"{socket.gethostname()}. Bring them to one state.")


def difference(one: dict[str, str], other: dict[str, str]) -> str:
    return ", ".join(sorted(part for part in {*one, *other} if one.get(part) != other.get(part)))
