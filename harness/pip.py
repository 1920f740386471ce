"""pip in a process of its own: a line for each large download, errors that say what to do. Standard library only."""
import os
import platform
import re
import subprocess
from pathlib import Path

from .cache import SetupError, say

LARGE = re.compile(r"\s*(Downloading|Using cached) .*\(\d{2,}\.\d MB\)")       # 10 MB or more
# what stands in pip's log -> what to do
REASONS = (
    (r"No space left on device|Errno 28",
     "The disk is full. Make room, or set MIRROR_CACHE to a folder on another disk."),
    (r"NewConnectionError|NameResolutionError|Temporary failure in name|ReadTimeoutError|ConnectTimeoutError|"
     r"ProxyError|SSLError",
     "The package index can't be reached. Check the network (and proxy settings), then run this again."),
    (r"DO NOT MATCH THE HASHES",
     "The package index served another file than the pinned one, which was refused. Try again; if it stays so, do not "
     "trust that index."),
    (r"No matching distribution found",
     f"A pinned package is not to be had for this Python ({platform.python_version()} on {platform.machine()}). Use "
     "Python 3.10 to 3.14 on a 64-bit system."),
    (r"", "pip failed; running this again starts the failed part afresh."),
)


def pip(python: Path, *arguments: object, log: Path) -> None:
    """Runs this Python's pip, all that it says to the end of `log`, what takes long also shown. Raises SetupError."""
    command = [str(part) for part in (python, "-m", "pip", *arguments, "--progress-bar", "off", "--no-input")]
    before = log.stat().st_size if log.exists() else 0
    with open(log, "a", buffering=1, encoding="utf-8") as out, subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=clean_environ(), encoding="utf-8",
            errors="replace") as process:
        for line in process.stdout:
            out.write(line)
            if LARGE.match(line):
                say("  " + line.strip())
            elif line.startswith("Installing collected packages"):
                say(f"  writing {line.count(',') + 1} packages to disk")
    if process.returncode:
        raise SetupError(explain(log, before))


def explain(log: Path, begin: int = 0) -> str:
    """What went wrong according to pip's log from this byte on, and what to do about it."""
    text = log.read_bytes()[begin:].decode("utf-8", errors="replace")
    reason = next(reason for signs, reason in REASONS if re.search(signs, text))
    last = "\n".join("    " + line for line in text.splitlines()[-6:])
    return f"{reason}\n  The log is {log}; its last lines:\n{last}"


def clean_environ() -> dict[str, str]:
    """The environment variables without those that would send pip or Python elsewhere."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    return kept | {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
