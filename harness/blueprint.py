"""A sheet as one box: a subgraph blueprint, as ComfyUI takes them from a pack's `subgraphs/` folder."""
import uuid
from dataclasses import dataclass

from .editor import Sheet, to_ui

INSIDE, OUTSIDE = -10, -20      # the ids by which a subgraph's links name its own inputs and outputs


@dataclass
class Box:
    """What a box shows: sockets and widgets are (name, node id, input of it), outputs (name, node id, place)."""
    name: str
    description: str
    aliases: list[str]
    sockets: list[tuple[str, list[tuple[str, str]]]]
    widgets: list[tuple[str, str, str]]
    outputs: list[tuple[str, str, int]]


def to_blueprint(sheet: Sheet, box: Box, object_info: dict[str, dict]) -> dict:
    """The blueprint's JSON: a workflow of one node, and the subgraph that it stands for."""
    ui = to_ui(sheet, object_info)
    nodes = {str(node["id"]): node for node in ui["nodes"]}
    links = [dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
             for link in ui["links"]]
    inputs, outputs = [], []
    for name, targets in [*box.sockets, *((name, [(key, path)]) for name, key, path in box.widgets)]:
        made = [_into(nodes[key], path, len(inputs), len(links) + 1 + i) for i, (key, path) in enumerate(targets)]
        links += made
        inputs.append({"id": _id(box.name, "input", name), "name": name, "type": made[0]["type"], "label": name,
                       "linkIds": [link["id"] for link in made], "pos": [0, 20 * len(inputs)]})
    for name, key, slot in box.outputs:
        link = {"id": len(links) + 1, "origin_id": int(key), "origin_slot": slot, "target_id": OUTSIDE,
                "target_slot": len(outputs), "type": nodes[key]["outputs"][slot]["type"]}
        nodes[key]["outputs"][slot]["links"].append(link["id"])
        links.append(link)
        outputs.append({"id": _id(box.name, "output", name), "name": name, "type": link["type"], "label": name,
                        "linkIds": [link["id"]], "pos": [0, 20 * len(outputs)]})
    kind = _id(box.name, "box")
    subgraph = {
        "id": kind, "version": 1, "revision": 0, "config": {}, "name": box.name, "description": box.description,
        "state": {"lastGroupId": 0, "lastNodeId": ui["last_node_id"], "lastLinkId": len(links), "lastRerouteId": 0},
        "inputNode": {"id": INSIDE, "bounding": [-260, 0, 160, 40 + 20 * len(inputs)]},
        "outputNode": {"id": OUTSIDE, "bounding": [_right(ui) + 100, 0, 120, 40 + 20 * len(outputs)]},
        "inputs": inputs, "outputs": outputs, "widgets": [], "nodes": ui["nodes"], "groups": ui["groups"],
        "links": links, "extra": {"workflowRendererVersion": "LG"}, "category": "mirror",
    }
    shown = {name for name, _, _ in box.widgets}
    node = {
        "id": 1, "type": kind, "title": box.name, "pos": [0, 0], "size": [400, 480], "flags": {}, "order": 0, "mode": 0,
        "inputs": [{"name": slot["name"], "label": slot["label"], "type": slot["type"], "link": None,
                    **({"widget": {"name": slot["name"]}} if slot["name"] in shown else {})} for slot in inputs],
        "outputs": [{"name": slot["name"], "label": slot["label"], "type": slot["type"], "links": []}
                    for slot in outputs],
        "properties": {"proxyWidgets": [[key, path] for _, key, path in box.widgets]}, "widgets_values": [],
    }
    extra = {"BlueprintDescription": box.description, "BlueprintSearchAliases": box.aliases}
    return {"revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "version": 0.4,
            "definitions": {"subgraphs": [subgraph]}, "extra": extra}


def _into(node: dict, path: str, slot: int, number: int) -> dict:
    """A link from the box's input `slot` to a node's input."""
    socket = next(socket for socket in node["inputs"] if socket["name"] == path)
    socket["link"] = number
    return {"id": number, "origin_id": INSIDE, "origin_slot": slot, "target_id": node["id"],
            "target_slot": node["inputs"].index(socket), "type": socket["type"]}


def _right(ui: dict) -> float:
    return max(node["pos"][0] + node["size"][0] for node in ui["nodes"])


def _id(*words: str) -> str:
    """The same every time, so that a box written anew is the same file."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "mirrordiffusion/" + "/".join(words)))
