"""What comes back from a graph, in process or from a server."""
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Run:
    """A graph that ran.

    outputs: node id -> its outputs in order (only in process: tensors and objects as they are; a list output stays one)
    ui: node id -> what the node shows ({"images": [...]}, {"text": [...]}, ...)
    events: (name, data) of all events in order; previews have the name "preview"
    interrupted: the run was interrupted; outputs holds what was finished before
    """
    outputs: dict[str, list] = field(default_factory=dict)
    ui: dict[str, dict] = field(default_factory=dict)
    events: list[tuple[str, Any]] = field(default_factory=list)
    interrupted: bool = False

    def named(self, name: str) -> list:
        """The data of all events of one name."""
        return [data for event, data in self.events if event == name]


class GraphRejected(Exception):
    """The graph did not validate. `node_errors`: node id -> what the host says about it."""

    def __init__(self, error: dict | None, node_errors: dict):
        self.node_errors = node_errors
        lines = [f"{error['message']} {error.get('details', '')}".strip()] if error else []
        for node, entry in node_errors.items():
            lines += [f"node {node} ({entry['class_type']}): {e['message']}: {e['details']}" for e in entry["errors"]]
        super().__init__("\n".join(lines))


class GraphFailed(Exception):
    """A node raised. `node_id`, `node_type`, `text` (the error's message), `trace`."""

    def __init__(self, data: dict):
        self.node_id, self.node_type = data["node_id"], data["node_type"]
        self.text = data["exception_message"].strip()
        self.trace = "".join(data["traceback"])
        super().__init__(f"node {self.node_id} ({self.node_type}): {data['exception_type']}: {self.text}\n{self.trace}")
