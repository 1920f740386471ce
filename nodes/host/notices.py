"""What a user should know although nothing is wrong enough to stop: in the log, and on the node that runs."""

import logging

from comfy_execution.utils import get_executing_context


def warn(text: str) -> None:
    """Logs `text` and shows it on the node that is running, if one is."""
    logging.warning("MirrorDiffusion: %s", text)
    show(text)


def show(text: str) -> None:
    """Shows `text` on the node that is running, if one is, in place of what stood there."""
    context = get_executing_context()
    try:
        from server import PromptServer  # only there where a server runs
    except ImportError:
        return
    server = getattr(PromptServer, "instance", None)
    if server is not None and context is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, context.node_id)
