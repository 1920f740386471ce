"""Graphs as the executor takes them -> graphs as the editor saves them, in groups from left to right.

The shipped graphs are written in Python (demo/graphs), so that they can't fall behind the nodes' schemas.
"""
from dataclasses import dataclass, field
from itertools import count

WIDTH, GAP, PAD, TITLE = 320, 30, 20, 30            # of a node's column; between nodes; inside a group; a node's title
SLOT, WIDGET, TEXT, FOOT = 20, 24, 96, 40            # heights of parts of a node
PICTURE, PREVIEW, REPORT = 240, 190, 150            # of what it shows: a picture, one while it samples, words
TALL = range(800, 1600, 50)                         # heights of columns to choose from: what the view shows largest
HEADING = 60                                        # a group's title and the space under it
SCREEN, MARGIN, CORNER = (1600, 1000), (110, 125), (80, 105)     # pixels of the view, those under bars, the free corner
READABLE = 0.6                                      # below this zoom the classic editor draws no text
MINIMAP = (1335, 735)                               # where the map begins that covers the screen's last corner
COLORS = ("#3f789e", "#8a8", "#a1309b", "#b58b2a", "#88a", "#b06634")
PLAIN = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
CONTROL = "control_after_generate"
MUTED = 2                                           # the editor's mode of a node that does not run
SHOW_PICTURES = ("SaveImage", "PreviewImage", "LoadImage", "MirrorReport", "MirrorCompare", "MirrorAttentionMaps")


@dataclass
class Sheet:
    """A graph in API form and what the editor shows around it: titles by node id, groups of node ids, notes.

    notes_in: the group that they stand in, under its nodes.
    app: what App mode shows, as {"inputs": [(node id, widget), ...], "outputs": [node id, ...]}; opens_as_app: at once.
    muted: groups whose nodes don't run until the user says so.
    wide: widths of nodes that need more than a column's. labels: what an input, by node and name, is called instead.
    """
    graph: dict[str, dict]
    titles: dict[str, str] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    notes_in: str = "2 words"
    app: dict[str, list] = field(default_factory=dict)
    opens_as_app: bool = False
    muted: tuple[str, ...] = ()
    wide: dict[str, int] = field(default_factory=dict)
    labels: dict[tuple[str, str], str] = field(default_factory=dict)

    def muted_nodes(self) -> set[str]:
        return {key for group in self.muted for key in self.groups[group]}


def to_ui(sheet: Sheet, object_info: dict[str, dict]) -> dict:
    """The sheet as the editor's JSON (version 0.4). Raises KeyError for a node or an input that the host lacks."""
    nodes = {key: _node(key, entry, object_info[entry["class_type"]], sheet) for key, entry in sheet.graph.items()}
    links = _link(sheet.graph, nodes)
    notes = _notes(sheet, first=max(map(int, nodes)) + 1)
    shown = [*nodes.values(), *notes]
    best = max(TALL, key=lambda tall: _legible(shown, _place(sheet, nodes, notes, tall)))
    groups = _place(sheet, nodes, notes, best)
    extra = {"ds": _view(shown, groups)}
    if sheet.app:
        extra |= {"linearMode": sheet.opens_as_app, "linearData": {
            "inputs": [[int(key), widget] for key, widget in sheet.app["inputs"]],
            "outputs": [int(key) for key in sheet.app["outputs"]]}}
    return {"last_node_id": max(n["id"] for n in shown), "last_link_id": len(links), "nodes": shown, "links": links,
            "groups": groups, "config": {}, "extra": extra, "version": 0.4}


# Nodes

def _node(key: str, entry: dict, info: dict, sheet: Sheet) -> dict:
    given, sockets, values = entry["inputs"], [], []
    known, slots, height = set(), 0, 0
    for name, spec in _specs(info):
        for path, kind, options in _expand(name, spec, given):
            known.add(path)
            is_widget = isinstance(kind, list) or kind in PLAIN
            linked = isinstance(given.get(path), list)
            if is_widget:
                values.append(options.get("default", "") if linked or path not in given else given[path])
                values += ["fixed"] if options.get(CONTROL) else []
                height += TEXT if options.get("multiline") else WIDGET * (2 if options.get(CONTROL) else 1)
            kind = "COMBO" if isinstance(kind, list) else kind
            label = sheet.labels.get((key, path), path.rpartition(".")[2])
            label = {"label": label} if label != path else {}
            widget = {"widget": {"name": path}} if is_widget else {}
            sockets.append({"name": path, "type": kind, "link": None, **label, **widget})
            slots += not is_widget
    unknown = set(given) - known
    if unknown:
        raise KeyError(f"{entry['class_type']} has no input {', '.join(sorted(unknown))}")
    names = info.get("output_name") or info["output"]
    outputs = [{"name": n, "type": t, "links": []} for n, t in zip(names, info["output"], strict=True)]
    kind = entry["class_type"]
    width = sheet.wide.get(key, WIDTH)
    height += FOOT + SLOT * max(slots, len(outputs)) + REPORT * _reports(info)
    height += round(PICTURE * width / WIDTH) * (kind in SHOW_PICTURES) + PREVIEW * _samples(info)
    node = {"id": int(key), "type": kind, "pos": [0, 0], "size": [width, height], "flags": {},
            "order": 0, "mode": MUTED if key in sheet.muted_nodes() else 0, "inputs": sockets, "outputs": outputs,
            "properties": {"Node name for S&R": kind}, "widgets_values": values}
    return node | ({"title": sheet.titles[key]} if key in sheet.titles else {})


def _reports(info: dict) -> bool:
    """Whether the node shows words on itself: those have an output of them."""
    return {"report", "hint", "table", "sentences", "text"} & set(info.get("output_name") or ()) != set()


def _samples(info: dict) -> bool:
    """Whether the node walks a latent, and so shows a preview: it makes one with a model."""
    takes = {spec[0] for _, spec in _specs(info) if isinstance(spec[0], str)}
    return "LATENT" in info["output"] and takes & {"MODEL", "GUIDER"} != set()


def _specs(info: dict):
    for kind in ("required", "optional"):
        yield from info["input"].get(kind, {}).items()


def _expand(name: str, spec, given: dict):
    """(path, type, options) of an input. A DynamicCombo yields its choice, then the inputs that belong to it; an
    Autogrow those that are given, and the empty one that the editor shows after them."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if kind == "COMFY_AUTOGROW_V3":
        template = options["template"]
        inner = next(iter(template["input"]["required"].values()))
        for path in (f"{name}.{template['prefix']}{k}" for k in range(template["max"])):
            yield from _expand(path, inner, given)
            if path not in given:
                return
    elif kind == "COMFY_DYNAMICCOMBO_V3":
        choice = given.get(name, options["options"][0]["key"])
        yield name, "COMBO", {"default": choice}
        chosen = next(o for o in options["options"] if o["key"] == choice)
        for inner, inner_spec in _specs({"input": chosen["inputs"]}):
            yield from _expand(f"{name}.{inner}", inner_spec, given)
    else:
        yield name, kind, options


def _link(graph: dict, nodes: dict) -> list[list]:
    links, ids = [], count(1)
    for key, entry in graph.items():
        for slot, socket in enumerate(nodes[key]["inputs"]):
            value = entry["inputs"].get(socket["name"])
            if isinstance(value, list):
                source, out = str(value[0]), value[1]
                output = nodes[source]["outputs"][out]
                socket["link"] = next(ids)
                output["links"].append(socket["link"])
                links.append([socket["link"], int(source), out, int(key), slot, output["type"]])
    return links


def _notes(sheet: Sheet, first: int) -> list[dict]:
    def height(text: str) -> int:
        return 60 + sum(20 * (1 + len(line) // 40) for line in text.splitlines())
    return [{"id": first + i, "type": "MarkdownNote", "pos": [0, 0], "size": [WIDTH, height(text)], "flags": {},
             "order": 0, "mode": 0, "inputs": [], "outputs": [], "properties": {}, "widgets_values": [text],
             "title": "Read me", "color": "#432", "bgcolor": "#653"} for i, text in enumerate(sheet.notes)]


# Places

def _place(sheet: Sheet, nodes: dict, notes: list[dict], tall: int) -> list[dict]:
    """The groups from left to right, each filling columns from top to bottom, the notes under the words; their frames.
    """
    x, frames = 0, []
    grouped = {key for keys in sheet.groups.values() for key in keys}
    if set(nodes) - grouped:
        raise KeyError(f"not in any group: {', '.join(sorted(set(nodes) - grouped))}")
    for (title, keys), color in zip(sheet.groups.items(), COLORS, strict=False):
        inside = [nodes[key] for key in keys] + (notes if title == sheet.notes_in else [])
        right = _columns(inside, x + PAD, tall) + PAD
        frames.append({"title": title, "bounding": [x, -TITLE - HEADING, right - x, 0], "color": color,
                       "font_size": 24, "flags": {}})
        x = right + GAP
    bottom = max(n["pos"][1] + n["size"][1] for n in [*nodes.values(), *notes])
    for frame in frames:
        frame["bounding"][3] = bottom + PAD - frame["bounding"][1]
    for order, node in enumerate([*nodes.values(), *notes]):
        node["order"] = order
    return frames


def _columns(nodes: list[dict], x: int, tall: int) -> int:
    """Stack the nodes from (x, 0) downwards, in as many columns as they need; the right end."""
    y, width = 0, 0
    for node in nodes:
        if y and y + node["size"][1] > tall:
            x, y, width = x + width + GAP, 0, 0
        node["pos"] = [x, y]
        y, width = y + node["size"][1] + GAP + TITLE, max(width, node["size"][0])
    return x + width


def _legible(nodes: list[dict], groups: list[dict]) -> float:
    """How good the places are: the view's scale, less where the editor's map covers a node, least below READABLE."""
    view = _view(nodes, groups)
    ends = ([(n["pos"][i] + n["size"][i] + view["offset"][i]) * view["scale"] for i in (0, 1)] for n in nodes)
    covered = any(all(pixel > free for pixel, free in zip(end, MINIMAP, strict=True)) for end in ends)
    return view["scale"] - 0.3 * covered - (view["scale"] < READABLE)


def _view(nodes: list[dict], groups: list[dict]) -> dict:
    """Scale and offset that show all of it, not enlarged, on a screen of SCREEN pixels."""
    boxes = [[*n["pos"], *n["size"]] for n in nodes] + [g["bounding"] for g in groups]
    left, top = (min(box[i] for box in boxes) for i in (0, 1))
    size = [max(box[i] + box[i + 2] for box in boxes) - (left, top)[i] for i in (0, 1)]
    scale = min(1.0, *((screen - margin) / extent for screen, margin, extent in zip(SCREEN, MARGIN, size, strict=True)))
    return {"scale": round(scale, 3), "offset": [round(CORNER[0] / scale - left), round(CORNER[1] / scale - top)]}
