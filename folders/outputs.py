"""Where nodes put files of their own, such as the pairs of Mirror Save Pair."""
from pathlib import Path

from harness.boot import Host


def save_in(folder: Path | str, host: Host) -> str:
    """Lets the host's output folder be this one; the one that it was."""
    before = host.folder_paths.get_output_directory()
    host.folder_paths.set_output_directory(str(folder))
    return before
