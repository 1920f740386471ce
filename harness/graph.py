"""Graphs in the executor's form, written in Python, and nodes made of functions to put into them."""

import sys


def node(execute, gives: tuple[str, ...], takes: dict[str, str] | None = None) -> str:
    """The id of a new node that runs execute(**inputs) in the executor: `takes` input name -> type, `gives` types."""
    nodes = sys.modules["nodes"]
    name = f"Tiny{len(nodes.NODE_CLASS_MAPPINGS)}"

    def run(self, **inputs):
        made = execute(**inputs)
        return made if isinstance(made, tuple) else (made,)

    inputs = {"required": {key: (kind,) for key, kind in (takes or {}).items()}}
    nodes.NODE_CLASS_MAPPINGS[name] = type(name, (), {
        "INPUT_TYPES": classmethod(lambda cls: inputs),
        "RETURN_TYPES": gives, "FUNCTION": "run", "CATEGORY": "tests", "run": run,
    })
    return name


def give(make, *types: str) -> str:
    """The id of a node that outputs what `make()` returns (a tuple for several types), built inside the executor."""
    return node(make, types)


class Graph(dict):
    """An API-format graph that grows: graph.add(class, inputs) -> a function of the output slot that makes a link."""

    def add(self, class_type: str, **inputs):
        name = str(len(self) + 1)
        self[name] = {"class_type": class_type, "inputs": {key.replace("__", "."): v for key, v in inputs.items()}}

        def output(slot: int = 0) -> list:
            return [name, slot]

        output.id = name
        return output
