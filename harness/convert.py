"""Graphs as the editor saves them (nodes, links, widget values) -> graphs as the executor takes them.

The host leaves this conversion to the browser. comfy-cli has it in Python; it lies in a folder of its own and runs in a
process of its own, so neither it nor what it imports gets mixed with the host.
"""
import json
import subprocess
import sys
from pathlib import Path

from .cache import cache_key, cache_root, made
from .pip import clean_environ, pip

CONVERTER = ("comfy-cli==1.23.0",)                  # only its graph converter is used: its other dependencies stay away
CONVERTER_NEEDS = ("pathspec==1.1.1", "typer==0.29.2", "pyyaml==6.0.3")
KNOWN_TO_EDITOR = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}     # these live in the editor only
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from comfy_cli.workflow_to_api import convert_ui_to_api
task = json.load(sys.stdin)
json.dump([convert_ui_to_api(workflow, task["object_info"]) for workflow in task["workflows"]], sys.stdout)
"""


def convert(workflows: list[dict], object_info: dict[str, dict]) -> list[dict[str, dict]]:
    """The API graphs of workflows. Raises ValueError if the converter refuses one or leaves a node out."""
    asked = set().union(*map(node_types, workflows))
    described = {name: entry for name, entry in object_info.items() if name in asked}
    task = json.dumps({"workflows": workflows, "object_info": described}, default=str)
    command = [sys.executable, "-c", PROGRAM, str(converter() / "packages")]
    done = subprocess.run(command, input=task, capture_output=True, encoding="utf-8", env=clean_environ())
    if done.returncode:
        raise ValueError(f"The workflow can't be converted: {done.stderr.strip().splitlines()[-1]}\n{done.stderr}")
    for workflow in workflows:
        unknown = {node["type"] for node in workflow["nodes"] if node.get("mode", 0) == 0} - KNOWN_TO_EDITOR
        unknown -= set(object_info) | {graph["id"] for graph in subgraphs(workflow)}
        if unknown:
            raise ValueError(f"The workflow has nodes that the host does not know: {', '.join(sorted(unknown))}")
    if "skipping" in done.stderr:
        raise ValueError(f"The converter left nodes out:\n{done.stderr}")
    return json.loads(done.stdout)


def converter() -> Path:
    """Folder to put on the path of a Python that converts graphs; made on first use, apart from the environment."""
    def make(folder: Path) -> None:
        target, log = ("install", "--target", folder / "packages"), folder / "install.log"
        pip(Path(sys.executable), *target, "--no-deps", *CONVERTER, log=log)
        pip(Path(sys.executable), *target, *CONVERTER_NEEDS, log=log)

    key = cache_key(CONVERTER, CONVERTER_NEEDS, sys.version_info[:2], sys.platform)
    return made(cache_root() / f"converter-{key}", make, "graph converter")


def node_types(workflow: dict) -> set[str]:
    """The types of all nodes of a workflow, those in its subgraphs too."""
    return {node["type"] for graph in (workflow, *subgraphs(workflow)) for node in graph["nodes"]}


def subgraphs(workflow: dict) -> list[dict]:
    return workflow.get("definitions", {}).get("subgraphs", [])
