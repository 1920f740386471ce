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
    """(name, type, options, whether it can be left out) of each input, those of dynamic choices too."""
    for needed in ("required", "optional"):
        for key, entry in described["input"].get(needed, {}).items():
            kind, options = entry[0], entry[1] if len(entry) > 1 else {}
            if kind == "COMFY_DYNAMICCOMBO_V3":
                yield key, "COMBO", {}, False
                first = options["options"][0]["inputs"].get("required", {})
                yield from ((f"{key}.{inner}", part[0], part[1] if len(part) > 1 else {}, False)
                            for inner, part in first.items())
            elif kind == "COMFY_AUTOGROW_V3":
                yield f"{key}.image0", "IMAGE", {}, False
            else:
                yield key, "COMBO" if isinstance(kind, list) else kind, options, needed == "optional"


def faults(described: dict) -> list[tuple]:
    """(input, what is done to it, value or name) of every single fault."""
    found = []
    for key, kind, options, optional in inputs_of(described):
        if kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
            found += [(key, "widget", value) 
                      for value in bad_values.by_widget(kind, options, key.rpartition(".")[2] in SMALL)]
            if kind in ("INT", "FLOAT"):
                found += [(key, f"wire {kind}", value) for value in bad_values.NUMBERS if type(value) in (int, float)]
            continue
        found += [(key, f"changed {kind}", name) for name in bad_values.CHANGED.get(kind, {})]
        found += [(key, f"other {kind}", name) for name in bad_values.OTHERS.get(kind, {})]
        found += [(key, f"nothing {kind}", "None")]
        if not optional:
            found.append((key, "missing", ""))
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
    for change in changes:
        spoil(graph, graph[node]["inputs"], *change)
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
            defects.append(f"{[(key, how, repr(what)[:30]) for key, how, what in changes]}: {said}")
    assert not defects, f"{len(defects)} defects of {name}:\n" + "\n".join(defects)
    assert not orphans()


def test_no_node_is_left_out_and_the_inputs_are_many(host, info):
    assert host.pack_nodes == set(NODES)
    assert sum(1 + len(faults(info[name])) + PAIRS for name in NODES) >= 2000
