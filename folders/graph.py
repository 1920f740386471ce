"""A graph made ready for a folder: where its picture comes in, what it saves, and which seeds each picture sets."""
from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

from . import JobError

SEEDS = ("seed", "noise_seed")
LOADER = "LoadImage"
PAIR, EDIT = "MirrorSavePair", "after"      # the pack's node that keeps a picture with its edit, and the edit's input
VALUES = ("INT", "FLOAT", "STRING", "BOOLEAN")      # types of inputs whose wire --set may cut
TRUTH = {"true": True, "false": False}


@dataclass(frozen=True)
class Graph:
    """What the saved picture and its pairs need of a graph, in the executor's form: node id -> class and inputs.

    picture: (node, input) that names the picture's file; saved: [node, slot] of the saved picture;
    region: [node, slot] of the mask of what was edited, if the graph has one; seeds: [(node, input)].
    """
    nodes: dict[str, dict]
    picture: tuple[str, str]
    saved: list
    region: list | None
    seeds: list[tuple[str, str]]

    def filled(self, file: str, seed: int) -> dict[str, dict]:
        """The graph of one picture."""
        nodes = copy.deepcopy(self.nodes)
        for node, name in self.seeds:
            nodes[node]["inputs"][name] = seed
        nodes[self.picture[0]]["inputs"][self.picture[1]] = file
        return nodes


def read(file: Path, host) -> dict[str, dict]:
    """The nodes of a graph file, as the editor saves it or exports it for the API. Raises JobError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"The graph {file} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise JobError(f"{file} is not a graph: it holds no JSON. Save one with Workflow > Save in ComfyUI.") from error
    if isinstance(content, dict) and isinstance(content.get("nodes"), list):
        try:
            content = host.ui_to_api(content)
        except ValueError as error:
            raise JobError(f"{file}: {str(error).splitlines()[0]}. {WHOSE_NODES}") from error
    if not is_graph(content):
        raise JobError(f"{file} is not a graph of ComfyUI: it has no nodes. Save one with Workflow > Save in ComfyUI.")
    missing = sorted({entry["class_type"] for entry in content.values()} - set(host.nodes.NODE_CLASS_MAPPINGS))
    if missing:
        raise JobError(f"The graph has nodes that this ComfyUI does not know: {', '.join(missing)}. {WHOSE_NODES}")
    return content


WHOSE_NODES = "Name the folder of the pack that has them with --pack, or the ComfyUI that has them in COMFYUI_PATH."


def is_graph(content) -> bool:
    """Whether it has the executor's form."""
    return (isinstance(content, dict) and bool(content)
            and all(isinstance(entry, dict) and isinstance(entry.get("class_type"), str)
                    and isinstance(entry.get("inputs"), dict) for entry in content.values()))


def prepare(nodes: dict[str, dict], classes: dict[str, dict], settings: list[str] = (), picture: str | None = None,
            save: str | None = None) -> Graph:
    """The graph for a folder. Raises JobError where it isn't plain which picture goes in or comes out.

    classes: class -> its object_info. settings: NODE.INPUT=VALUE, with a node's id, title or class; they win over the
    picture's own seed. picture, save: the node to use where there are several.
    """
    nodes = copy.deepcopy(nodes)
    fixed = [assign(nodes, classes, setting) for setting in settings]
    saved, pairs = saved_picture(nodes, classes, save), pair_savers(nodes)
    kept = {node for end in (saved[0], *pairs) for node in ancestors(nodes, end)}
    nodes = {node: entry for node, entry in nodes.items() if node in kept}
    if picture is not None:
        picture = load_instead(nodes, classes, picture)
    kept = ancestors(nodes, saved[0])
    needed = {node: nodes[node] for node in kept}
    loader = chosen(needed, loaders(needed, classes), picture, "loads the picture that is saved", "--picture",
                    "Add a Load Image node and wire it to what is saved, or name a node in whose place the pictures "
                    "come with --picture NODE.")
    kept += [node for pair in pairs for node in ancestors(nodes, pair) if loader in ancestors(nodes, pair)]
    nodes = {node: entry for node, entry in nodes.items() if node in kept}
    seeds = [(node, name) for node, entry in nodes.items() for name, value in entry["inputs"].items()
             if name.rpartition(".")[2] in SEEDS and isinstance(value, int) and (node, name) not in fixed]
    bare = {node: {key: entry[key] for key in ("class_type", "inputs")} for node, entry in nodes.items()}
    return Graph(bare, (loader, upload_input(nodes[loader], classes)), saved, region(nodes, classes, saved[0]), seeds)


def saved_picture(nodes: dict, classes: dict, save: str | None) -> list:
    """[node, slot] of the picture that the graph saves: the edit of Mirror Save Pair where nothing else saves one, or
    where it is named."""
    found = savers(nodes, classes)
    pairs = [node for node in pair_savers(nodes) if is_wire(nodes[node]["inputs"].get(EDIT))]
    if save is not None or not found:
        found = found + pairs
    saver = chosen(nodes, found, save, "saves a picture", "--save",
                   "Add a Save Image node to what the folder should get.")
    return nodes[saver]["inputs"][EDIT if saver in pairs else image_inputs(nodes[saver], classes)[0]]


def pair_savers(nodes: dict) -> list[str]:
    return [node for node, entry in nodes.items() if entry["class_type"] == PAIR]


def load_instead(nodes: dict, classes: dict, named: str) -> str:
    """Let Load Image stand in the place of a node that makes a picture otherwise, such as a scene of the demo; its id.

    Where no one node of that name makes pictures, nothing changes and the name comes back.
    """
    makers = [node for node, entry in nodes.items() if "IMAGE" in classes[entry["class_type"]]["output"]
              and not upload_input(entry, classes) and named in names_of(node, nodes)]
    if len(makers) != 1:
        return named
    node, entry = makers[0], nodes[makers[0]]
    first = classes[entry["class_type"]]["output"].index("IMAGE")
    others = [f"{to}.{name}" for to, reader in nodes.items() for name, value in reader["inputs"].items()
              if is_wire(value) and str(value[0]) == node and value[1] != first]
    if others:
        raise JobError(f"--picture {node}: {title(entry)} also gives {', '.join(others)}, which a picture does not. "
                       "Give these values with --set.")
    for reader in nodes.values():
        reader["inputs"].update({name: [node, 0] for name, value in reader["inputs"].items()
                                 if is_wire(value) and str(value[0]) == node})
    nodes[node] = {**entry, "class_type": LOADER, "inputs": {"image": ""}}
    return node


def chosen(nodes: dict, found: list[str], named: str | None, does: str, option: str, otherwise: str) -> str:
    """The one node found, or the one of them that is named."""
    which = ", ".join(f"{node} ({title(nodes[node])})" for node in found)
    if named is not None:
        fit = [node for node in found if named in names_of(node, nodes)]
        if len(fit) != 1:
            raise JobError(f"{option} {named}: {'more than one node' if fit else 'no node'} of that name {does}; those "
                           f"that do are {which or 'none'}.")
        return fit[0]
    if not found:
        raise JobError(f"No node of the graph {does}. {otherwise}")
    if len(found) > 1:
        raise JobError(f"More than one node of the graph {does}: {which}. Name one with {option} NODE.")
    return found[0]


def savers(nodes: dict, classes: dict) -> list[str]:
    """Nodes that save a picture: outputs of the graph with one wired IMAGE whose class says so; previews do not."""
    return [node for node, entry in nodes.items() if classes[entry["class_type"]]["output_node"]
            and "save" in entry["class_type"].lower() and len(image_inputs(entry, classes)) == 1]


def loaders(nodes: dict, classes: dict) -> list[str]:
    """Nodes that load a picture from a file that the editor can upload."""
    return [node for node, entry in nodes.items()
            if upload_input(entry, classes) and "IMAGE" in classes[entry["class_type"]]["output"]]


def image_inputs(entry: dict, classes: dict) -> list[str]:
    return [name for name, spec in specs(entry, classes).items()
            if spec[0] == "IMAGE" and is_wire(entry["inputs"].get(name))]


def upload_input(entry: dict, classes: dict) -> str | None:
    """The input that names a picture's file, if there is one."""
    for name, spec in specs(entry, classes).items():
        if len(spec) > 1 and spec[1].get("image_upload") and not is_wire(entry["inputs"].get(name)):
            return name
    return None


def region(nodes: dict, classes: dict, saved: str) -> list | None:
    """[node, slot] of the MASK output called a region that is nearest to what is saved."""
    for node in ancestors(nodes, saved):
        declared = classes[nodes[node]["class_type"]]
        for slot, (kind, name) in enumerate(zip(declared["output"], declared["output_name"], strict=False)):
            if kind == "MASK" and "region" in str(name).lower():
                return [node, slot]
    return None


def ancestors(nodes: dict, node: str) -> list[str]:
    """The node and all it depends on, nearest first."""
    found = [str(node)]
    for node in found:      # the list grows while it is read
        wired = [str(value[0]) for value in nodes[node]["inputs"].values() if is_wire(value)]
        found += [other for other in dict.fromkeys(wired) if other not in found]
    return found


def assign(nodes: dict, classes: dict, setting: str) -> tuple[str, str]:
    """Carry out NODE.INPUT=VALUE; (node, input)."""
    where, equals, text = setting.partition("=")
    found = [(node, where[len(called) + 1:]) for node in nodes
             for called in names_of(node, nodes) if where.startswith(called + ".")]
    found = list(dict.fromkeys(found))
    if not equals or not found:
        raise JobError(f"--set {setting}: no such node. Write NODE.INPUT=VALUE with a node's id, title or class; "
                       f"there are {', '.join(f'{node} ({title(entry)})' for node, entry in nodes.items())}.")
    if len(found) > 1:
        raise JobError(f"--set {setting}: there is more than one such node; name it by its id: "
                       f"{', '.join(node for node, _ in found)}.")
    node, name = found[0]
    entry = nodes[node]
    declared = {other: spec[0] for other, spec in specs(entry, classes).items()}
    free = sorted(other for other in {*entry["inputs"], *declared}
                  if not is_wire(entry["inputs"].get(other)) or declared.get(other) in VALUES)
    if name not in free:
        raise JobError(f"--set {setting}: {title(entry)} has no value `{name}` to set; it has {', '.join(free)}.")
    entry["inputs"][name] = typed(text, entry["inputs"].get(name), declared.get(name), setting)
    return node, name


def typed(text: str, before, kind, setting: str):
    """A value of the input's type: the one its node declares, else that of the value it had before."""
    kinds = {"INT": int, "FLOAT": float, "BOOLEAN": lambda text: TRUTH[text.lower()]}
    if not isinstance(kind, str) or kind not in kinds:
        kind = {bool: "BOOLEAN", int: "INT", float: "FLOAT"}.get(type(before))
    try:
        return kinds[kind](text) if kind else text
    except (ValueError, KeyError) as error:
        raise JobError(f"--set {setting}: `{text}` is not a value of type {kind}.") from error


def specs(entry: dict, classes: dict) -> dict[str, tuple]:
    """Input -> (type, options), required and optional ones."""
    declared = classes[entry["class_type"]]["input"]
    return {**declared.get("required", {}), **declared.get("optional", {})}


def title(entry: dict) -> str:
    return entry.get("_meta", {}).get("title") or entry["class_type"]


def names_of(node: str, nodes: dict) -> tuple[str, str, str]:
    """What a node may be called: its id, title or class."""
    return node, title(nodes[node]), nodes[node]["class_type"]


def is_wire(value) -> bool:
    return isinstance(value, list) and len(value) == 2
