"""What the README and the help pages say of nodes and templates, written from the schemas: python run.py pages.

Between `<!-- NAME -->` and `<!-- /NAME -->` of README.md stand the tables `nodes` and `templates`. Under its title a
help page shows a picture of its own (demo/graphs/help.py) or what the first template with its node comes to, which
`run.py graphs` draws; a node that has no page yet gets one to fill in. Everything else in those files is written by
hand.
"""
from __future__ import annotations

import re

from .environment import ROOT

README, HELP = ROOT / "README.md", ROOT / "web" / "docs"
SHOWN_BY = {    # nodes that stand in no template, or first in one about something else -> that which shows their use
    "CycleDiffusionRank": "cycle_edit",
    "CycleDiffusionReplay": "cycle_noises",
    "MirrorExactInvert": "compare_ways_back",
    "MirrorProximalGuidance": "proximal_edit",
    "PromptRewriteOptimizer": "compare_ways_back",
    "MirrorPictureEnergy": "latent_guidance",
    "MirrorTextEnergy": "latent_guidance",
    "MirrorReconstructionGuidance": "proximal_edit",
    "MirrorRegion": "edit_picture",
    "MirrorCaption": "edit_own_picture",
    "MirrorSentences": "pix2pix_zero_edit",
}


def main(argv: list[str]) -> int:
    from .boot import boot
    from .locales import schemas
    nodes = schemas(boot())
    README.write_text(filled(README.read_text(encoding="utf-8"), tables(nodes)), encoding="utf-8")
    print(f"wrote the tables of {README}")
    for name, info in nodes.items():
        page = HELP / f"{name}.md"
        if not page.exists():
            page.write_text(skeleton(info), encoding="utf-8")
            print(f"wrote {page}: fill it in")
        page.write_text(illustrated(page.read_text(encoding="utf-8"), *picture_of(name)), encoding="utf-8")
    return 0


def template_of(node: str) -> str | None:
    """The template that shows a node's use: the first in which it stands, unless SHOWN_BY knows better."""
    from demo.graphs import SHEETS
    kinds = ((name, {entry["class_type"] for entry in make().graph.values()}) for name, make in SHEETS.items())
    return SHOWN_BY.get(node) or next((name for name, there in kinds if node in there), None)


def picture_of(node: str) -> tuple[str, str | None]:
    """(what it shows, its name in web/docs/images or None): a picture of the node's own, else the template's."""
    from demo.graphs import FILES
    from demo.graphs.help import PAGES, PICTURES
    if node in PAGES:
        return first_sentence(PICTURES[PAGES[node]].__doc__).rstrip("."), PAGES[node]
    template = template_of(node)
    return f"Template: {FILES.get(template)}", template


def illustrated(page: str, shows: str, picture: str | None) -> str:
    """The page with the picture under its title, in place of an earlier one."""
    title, _, rest = page.partition("\n")
    rest = re.sub(r"\A\n!\[[^\n]*\n", "", rest)
    if picture is None:
        return f"{title}\n{rest}"
    return f"{title}\n\n![{shows}](images/{picture}.jpg)\n{rest}"


def tables(nodes: dict[str, dict]) -> dict[str, str]:
    """{name of the place: Markdown}."""
    from demo.graphs import FILES, SHEETS
    named = {file: SHEETS[name] for name, file in FILES.items()}
    return {"nodes": node_table(nodes), "templates": template_table(named)}


def filled(text: str, parts: dict[str, str]) -> str:
    """The text with each part in its place. Raises ValueError for a place that the text lacks."""
    for name, part in parts.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not place.search(text):
            raise ValueError(f"There is no place <!-- {name} --> ... <!-- /{name} -->.")
        text = place.sub(lambda found, part=part: found[1] + part + found[2], text)
    return text


def node_table(nodes: dict[str, dict]) -> str:
    """A row a menu entry: its nodes, each with its help page."""
    menus: dict[str, list[str]] = {}
    for name, info in nodes.items():
        link = f"[{info['display_name']}](web/docs/{name}.md)"
        menus.setdefault(info["category"].split("/")[-1], []).append(link)
    rows = [f"| **{menu}** | {', '.join(links)} |" for menu, links in menus.items()]
    return "\n".join(["| menu | nodes |", "|---|---|", *rows, ""])


def template_table(sheets: dict) -> str:
    """A row a template: its name in the browser, and what its function says it is."""
    rows = [f"| {name} | {first_sentence(make.__doc__)} |" for name, make in sheets.items()]
    return "\n".join(["| template | what it shows |", "|---|---|", *rows, ""])


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    return re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]


def skeleton(info: dict) -> str:
    """A help page to fill in: what the schema says, and the questions that a page answers."""
    inputs = [(name, spec[1].get("tooltip", "")) for group in ("required", "optional")
              for name, spec in info["input"].get(group, {}).items() if len(spec) > 1]
    listed = "\n".join(f"- `{name}`: {tooltip}" for name, tooltip in inputs)
    return (f"# {info['display_name']}\n\n{info['description']}\n\n**When to use it.** \n\n{listed}\n\n"
            "**Neighbours.** \n")
