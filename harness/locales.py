"""The editor's words in other languages: one table, locales/words.csv, and the files that the frontend reads of it.

    python run.py locales                   write locales/*/ from the table; lists what it lacks
    python run.py locales --missing zh      the English words without a Chinese one, as JSON {English: ""}
    python run.py locales --add zh FILE     take such a JSON, filled in, into the table

A row is an English text as a node's schema has it (a title, a description, an input's name or tooltip, an output's),
and a column a language. Texts that no node has any more are left out of the table when it is written.
"""
from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

from .environment import ROOT

LANGUAGES = ("zh", "ja", "ko", "fr", "de", "es")
FOLDER = ROOT / "locales"
TABLE = FOLDER / "words.csv"

Table = dict[str, dict[str, str]]       # English -> {language: text}


def main(argv: list[str]) -> int:
    from .boot import boot
    parser = argparse.ArgumentParser(prog="run.py locales", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--missing", choices=LANGUAGES)
    parser.add_argument("--add", nargs=2, metavar=("LANGUAGE", "FILE"))
    args = parser.parse_args(argv)
    host = boot()
    nodes = schemas(host)
    table = read_table()
    if args.missing:
        print(json.dumps(dict.fromkeys(missing(nodes, table, args.missing), ""), indent=1, ensure_ascii=False))
        return 0
    if args.add:
        language, file = args.add
        if language not in LANGUAGES:
            print(f"There is no column `{language}`. There are: {', '.join(LANGUAGES)}.", file=sys.stderr)
            return 2
        for english, text in json.loads(Path(file).read_text(encoding="utf-8")).items():
            table.setdefault(english, {})[language] = text
    write(nodes, table)
    for language in LANGUAGES:
        print(f"{language}: {len(missing(nodes, table, language))} of {len(texts(nodes))} texts missing")
    return 0


def schemas(host) -> dict[str, dict]:
    """object_info of the pack's own nodes, by id, in the order in which the pack names them."""
    return {name: info for name, info in host.object_info().items() if name in host.pack_nodes}


def definitions(nodes: dict[str, dict], say) -> dict:
    """What nodeDefs.json holds: each text of the schemas as `say(text)` gives it."""
    return {name: _definition(info, say) for name, info in nodes.items()}


def categories(nodes: dict[str, dict], say) -> dict:
    """What main.json holds: the menu's parts."""
    parts = dict.fromkeys(part for info in nodes.values() for part in info["category"].split("/"))
    return {"nodeCategories": {part: say(part) for part in parts}}


def texts(nodes: dict[str, dict]) -> list[str]:
    """Every English text of the schemas once, in their order."""
    seen: dict[str, None] = {}

    def note(text: str) -> str:
        return seen.setdefault(text) or text

    categories(nodes, note)
    definitions(nodes, note)
    return list(seen)


def missing(nodes: dict[str, dict], table: Table, language: str) -> list[str]:
    return [text for text in texts(nodes) if not table.get(text, {}).get(language)]


def read_table() -> Table:
    if not TABLE.exists():
        return {}
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {row.pop("en"): row for row in csv.DictReader(file)}


def write(nodes: dict[str, dict], table: Table) -> None:
    """The table without what no node says any more, and the frontend's files."""
    FOLDER.mkdir(exist_ok=True)
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, ["en", *LANGUAGES], lineterminator="\n")
        rows.writeheader()
        rows.writerows({"en": text, **table.get(text, {})} for text in texts(nodes))
    for language in ("en", *LANGUAGES):
        for name, content in files(nodes, table, language).items():
            path = FOLDER / language / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def files(nodes: dict[str, dict], table: Table, language: str) -> dict[str, dict]:
    """{file name: content} of a language; what the table lacks stays English."""
    def say(text: str) -> str:
        return table.get(text, {}).get(language) or text

    return {"main.json": categories(nodes, say), "nodeDefs.json": definitions(nodes, say)}


def _definition(info: dict, say) -> dict:
    made = {"display_name": say(info["display_name"]), "description": say(info["description"])}
    inputs = {_key(path): _named(path, options, say) for path, options in each_input(info["input"])}
    tooltips = info.get("output_tooltips") or [None] * len(info["output"])
    outputs = {str(k): {"name": say(name), **({"tooltip": say(tip)} if tip else {})}
               for k, (name, tip) in enumerate(zip(info["output_name"], tooltips, strict=True))}
    return {**made, **({"inputs": inputs} if inputs else {}), **({"outputs": outputs} if outputs else {})}


def each_input(groups: dict, before: str = ""):
    """(path, options) of every input, those behind a choice too."""
    for kind in ("required", "optional"):
        for name, spec in groups.get(kind, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            yield before + name, options
            if spec[0] == "COMFY_DYNAMICCOMBO_V3":
                for choice in options["options"]:
                    yield from each_input(choice["inputs"], f"{before}{name}.")


def _named(path: str, options: dict, say) -> dict:
    name = say(options.get("display_name") or path.rsplit(".", 1)[-1])
    return {"name": name, **({"tooltip": say(options["tooltip"])} if options.get("tooltip") else {})}


def _key(path: str) -> str:
    """A path as the frontend looks it up: a dot would open another level."""
    return path.replace(".", "_")
