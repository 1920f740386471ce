"""Graphs as the executor takes them -> graphs as the editor saves them, laid out from left to right.

The shipped graphs are written in Python (demo/graphs), so that they can't fall behind the nodes' schemas.
"""
from dataclasses import dataclass, field

WIDTH, GAP_X, GAP_Y, ROW, HEAD = 320, 60, 40, 26, 50
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
CONTROL = "control_after_generate"


@dataclass
class Sheet:
    """A graph in API form and what the editor shows around it: titles by node id, groups of node ids, notes."""
    graph: dict[str, dict]
    titles: dict[str, str] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def to_ui(sheet: Sheet, object_info: dict[str, dict]) -> dict:
    """The sheet as the editor's JSON (version 0.4). Raises KeyError for a node or an input that the host lacks."""
    nodes = {key: _node(key, entry, object_info[entry["class_type"]], sheet) for key, entry in sheet.graph.items()}
    links = _link(sheet.graph, nodes)
    _place(sheet, nodes)
    shown = list(nodes.values()) + _notes(sheet, nodes)
    groups = [_frame(title, [nodes[k] for k in keys]) for title, keys in sheet.groups.items()]
    return {"last_node_id": max(n["id"] for n in shown), "last_link_id": len(links), "nodes": shown, "links": links,
            "groups": groups, "config": {}, "extra": {}, "version": 0.4}


def _node(key: str, entry: dict, info: dict, sheet: Sheet) -> dict:
    given, inputs, values = entry["inputs"], [], []
    known = set()
    for name, spec in _specs(info):
        for path, kind, options in _expand(name, spec, given):
            known.add(path)
            is_widget = isinstance(kind, list) or kind in WIDGETS
            linked = isinstance(given.get(path), list)
            if is_widget:
                values.append(options.get("default", "") if linked or path not in given else given[path])
                if options.get(CONTROL):
                    values.append("fixed")
            if linked or not is_widget:
                widget = {"widget": {"name": path}} if is_widget else {}
                kind = "COMBO" if isinstance(kind, list) else kind
                inputs.append({"name": path, "type": kind, "link": None, **widget})
    unknown = set(given) - known
    if unknown:
        raise KeyError(f"{entry['class_type']} has no input {', '.join(sorted(unknown))}")
    names = info.get("output_name") or info["output"]
    outputs = [{"name": n, "type": t, "links": []} for n, t in zip(names, info["output"], strict=True)]
    height = HEAD + ROW * (max(len(inputs), len(outputs)) + len(values)) + _extra_height(entry, info)
    kind = entry["class_type"]
    node = {"id": int(key), "type": kind, "pos": [0, 0], "size": [WIDTH, height], "flags": {}, "order": 0, "mode": 0,
            "inputs": inputs, "outputs": outputs, "properties": {"Node name for S&R": kind}, "widgets_values": values}
    return node | ({"title": sheet.titles[key]} if key in sheet.titles else {})


def _specs(info: dict):
    for kind in ("required", "optional"):
        yield from info["input"].get(kind, {}).items()


def _expand(name: str, spec, given: dict):
    """(path, type, options) of an input; a DynamicCombo yields its choice, then the inputs that belong to it."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if kind != "COMFY_DYNAMICCOMBO_V3":
        yield name, kind, options
        return
    choice = given.get(name, options["options"][0]["key"])
    yield name, "COMBO", {"default": choice}
    chosen = next(o for o in options["options"] if o["key"] == choice)
    for part in ("required", "optional"):
        for inner, inner_spec in chosen["inputs"].get(part, {}).items():
            yield from _expand(f"{name}.{inner}", inner_spec, given)


def _extra_height(entry: dict, info: dict) -> int:
    pictures = entry["class_type"] in ("SaveImage", "PreviewImage", "LoadImage", "MirrorReport")
    texts = sum(1 for _, spec in _specs(info) if len(spec) > 1 and spec[1].get("multiline"))
    return 260 * pictures + 60 * texts


def _link(graph: dict, nodes: dict) -> list[list]:
    links = []
    for key, entry in graph.items():
        for slot, socket in enumerate(nodes[key]["inputs"]):
            value = entry["inputs"].get(socket["name"])
            if isinstance(value, list):
                source, out = str(value[0]), value[1]
                socket["link"] = len(links) + 1
                nodes[source]["outputs"][out]["links"].append(len(links) + 1)
                kind = nodes[source]["outputs"][out]["type"]
                links.append([len(links) + 1, int(source), out, int(key), slot, kind])
    return links


def _place(sheet: Sheet, nodes: dict) -> None:
    """Groups below one another; inside one, columns by depth."""
    depth: dict[str, int] = {}

    def level(key: str) -> int:
        if key not in depth:
            above = [str(v[0]) for v in sheet.graph[key]["inputs"].values() if isinstance(v, list)]
            depth[key] = 1 + max((level(k) for k in above), default=-1)
        return depth[key]

    grouped = {k for keys in sheet.groups.values() for k in keys}
    bands = [*sheet.groups.values(), [k for k in nodes if k not in grouped]]
    top = 0
    for band in bands:
        columns: dict[int, int] = {}
        for rank, column in enumerate(sorted({level(k) for k in band})):
            for key in (k for k in band if level(k) == column):
                y = columns.get(rank, top)
                nodes[key]["pos"] = [rank * (WIDTH + GAP_X), y]
                columns[rank] = y + nodes[key]["size"][1] + GAP_Y + 30
        top = max(columns.values(), default=top) + GAP_Y + 40
    for order, key in enumerate(sorted(nodes, key=level)):
        nodes[key]["order"] = order


def _notes(sheet: Sheet, nodes: dict) -> list[dict]:
    first, y, notes = max(n["id"] for n in nodes.values()) + 1, 0, []
    for i, text in enumerate(sheet.notes):
        height = 80 + 22 * (text.count("\n") + len(text) // 46)
        notes.append({"id": first + i, "type": "MarkdownNote", "pos": [-WIDTH - 2 * GAP_X, y], "flags": {},
                      "size": [WIDTH + 40, height], "order": len(nodes) + i, "mode": 0, "inputs": [], "outputs": [],
                      "properties": {}, "widgets_values": [text], "color": "#432", "bgcolor": "#653"})
        y += height + GAP_Y
    return notes


def _frame(title: str, nodes: list[dict]) -> dict:
    left, top = (min(n["pos"][i] for n in nodes) for i in (0, 1))
    right, bottom = (max(n["pos"][i] + n["size"][i] for n in nodes) for i in (0, 1))
    return {"title": title, "bounding": [left - 20, top - 80, right - left + 40, bottom - top + 100],
            "color": "#3f789e", "font_size": 24, "flags": {}}
