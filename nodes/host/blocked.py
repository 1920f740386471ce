"""Outputs that are not known."""

from comfy_execution.graph_utils import ExecutionBlocker


def unknown(reason: str) -> ExecutionBlocker:
    """In place of an output: nodes that need it do not run, and say why."""
    return ExecutionBlocker(reason)
