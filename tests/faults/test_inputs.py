"""Bad inputs of every node, made from its schema: each runs to a finite result, or ends in one clear sentence before
any pass through the network."""

import random
from collections import Counter

import pytest
import torch

from harness.environment import ROOT
from harness.results import GraphFailed, GraphRejected

from . import bad_values
from .graphs import SMALL, Around, counted
from .verdict import defect, orphans, told

pytestmark = pytest.mark.faults
NODES = sorted(file.stem for file in (ROOT / "web" / "docs").glob("*.md"))  # each has its help page
SEED, PAIRS = 12, 14


def inputs_of(described: dict):
    """(name, type, options, whether it can be left out, the dynamic choice that it belongs to) of each input. A choice
    is (its name, the number of its option), and None for the first, which is there already."""
    for needed in ("required", "optional"):
        for key, entry in described["input"].get(needed, {}).items():
            kind, options = entry[0], entry[1] if len(entry) > 1 else {}
            if kind == "COMFY_DYNAMICCOMBO_V3":
                yield key, "COMBO", {}, False, None
                for which, option in enumerate(options["options"]):
                    yield from ((f"{key}.{inner}", part[0], part[1] if len(part) > 1 else {}, False,
                                 (key, which) if which else None)
                                for inner, part in option["inputs"].get("required", {}).items())
            elif kind == "COMFY_AUTOGROW_V3":
                yield f"{key}.image0", "IMAGE", {}, False, None
            else:
                yield key, "COMBO" if isinstance(kind, list) else kind, options, needed == "optional", None


def faults(described: dict) -> list[tuple]:
    """(input, what is done to it, value or name, the choice that it belongs to) of every single fault."""
    found = []
    for key, kind, options, optional, choice in inputs_of(described):
        faulty = []
        if kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
            faulty += [("widget", value)
                       for value in bad_values.by_widget(kind, options, key.rpartition(".")[2] in SMALL)]
            if kind in ("INT", "FLOAT"):
                faulty += [(f"wire {kind}", value) for value in bad_values.NUMBERS if type(value) in (int, float)]
        else:
            faulty += [(f"changed {kind}", name) for name in bad_values.CHANGED.get(kind, {})]
            faulty += [(f"other {kind}", name) for name in bad_values.OTHERS.get(kind, {})]
            faulty += [(f"nothing {kind}", "None"), *([] if optional else [("missing", "")])]
        found += [(key, how, what, choice) for how, what in faulty]
    return found


def spoil(graph: Around, inputs: dict, key: str, how: str, what) -> None:
    """Does one thing to the inputs of a node."""
    how, _, kind = how.partition(" ")
    if how == "widget":
        inputs[key] = what
    elif how == "wire":
        inputs[key] = graph.add(bad_values.wired(kind, what))()
    elif how == "changed":
        inputs[key] = graph.add(bad_values.spoiler(kind, what), given=inputs.get(key, graph.links[kind]))()
    elif how == "other":
        inputs[key] = graph.add(bad_values.other(kind, what))()
    elif how == "nothing":
        inputs[key] = graph.add(bad_values.nothing(kind))()
    else:
        inputs.pop(key, None)


def end(host, name: str, described: dict, changes: list[tuple]) -> tuple[str, str]:
    """("ran" | "refused by the host" | "refused" | "DEFECT", what was said)."""
    graph = Around()
    node = graph.around(name, described)
    inputs = graph[node]["inputs"]
    for *change, choice in changes:
        if choice is not None:
            for key in [key for key in inputs if key.startswith(f"{choice[0]}.")]:
                del inputs[key]
            inputs |= graph.chosen(name, described, *choice)
        spoil(graph, inputs, *change)
    passes = counted()[1]
    passes.clear()
    try:
        run = host.run_graph(graph, cached=True)
    except GraphRejected as refusal:
        return "refused by the host", str(refusal)
    except GraphFailed as failure:
        wrong = defect(failure, len(passes))
        return ("DEFECT", f"{wrong}: {told(failure)}") if wrong else ("refused", failure.text)
    for value in run.outputs.get(node, []):
        if not finite(value):
            return "DEFECT", "gives numbers that are not finite"
    return "ran", ""


def finite(value) -> bool:
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    return not isinstance(value, list | tuple) or all(map(finite, value))


@pytest.fixture(scope="module")
def info(host):
    """object_info; the files that the pack's loaders read are there."""
    graph = Around()
    graph.save_files()
    host.run_graph(graph, cached=True)
    return host.object_info()


@pytest.fixture(scope="module")
def ends(figures):
    """How many inputs ended in which way."""
    found = Counter()
    yield found
    figures(f"bad inputs: {sum(found.values())}, of which {', '.join(f'{n} {end}' for end, n in found.items())}")


@pytest.mark.parametrize("name", NODES)
def test_bad_inputs_end_well(host, info, ends, name):
    single = faults(info[name])
    dice = random.Random(f"{SEED} {name}")
    pairs = [dice.sample(single, 2) for _ in range(PAIRS if len(single) > 1 else 0)]
    defects = []
    for changes in [[], *([one] for one in single), *pairs]:
        kind, said = end(host, name, info[name], changes)
        ends[kind] += 1
        if kind == "DEFECT":
            done = [(key, how, repr(what)[:30], choice) for key, how, what, choice in changes]
            defects.append(f"{done}: {said}")
    assert not defects, f"{len(defects)} defects of {name}:\n" + "\n".join(defects)
    assert not orphans()


def test_no_node_is_left_out_and_the_inputs_are_many(host, info):
    assert host.pack_nodes == set(NODES)
    assert sum(1 + len(faults(info[name])) + PAIRS for name in NODES) >= 2000
