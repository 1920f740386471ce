"""What the editor's menu and search show: names, places, words to find a node by."""
import re

import pytest

from harness.environment import ROOT
from harness.locales import each_input, schemas, texts
from harness.pages import README, filled, tables


@pytest.fixture(scope="module")
def nodes(host):
    return schemas(host)


def test_names_are_told_apart_and_say_what_a_user_reads(nodes):
    names = [info["display_name"] for info in nodes.values()]
    assert len(set(names)) == len(names)
    ids = re.compile(rf"\b({'|'.join(nodes)})\b")
    assert [text for text in texts(nodes) if ids.search(text)] == [], "a node's id is no name"


def test_the_menu_is_the_folders(nodes, host):
    folders = host.pack_module("nodes").FOLDERS
    assert {info["category"] for info in nodes.values()} == {f"mirror/{folder}" for folder in folders}


def test_every_node_says_what_it_does_and_is_found_by_other_words(nodes):
    for name, info in nodes.items():
        assert len(info["description"]) > 20 and info.get("search_aliases"), name


def test_every_input_says_what_it_does(nodes):
    """Those behind a choice too: a tooltip of a sentence, of which the help and the other languages are made."""
    without = [f"{name}: {path}" for name, info in nodes.items() for path, options in each_input(info["input"])
               if len(options.get("tooltip", "")) < 5]
    assert not without


@pytest.mark.parametrize("words, node", [
    ("edit", "MirrorEdit"), ("edit picture", "MirrorEdit"), ("prompt edit", "MirrorEdit"), ("flowedit", "MirrorEdit"),
    ("inversion", "RedescribedDDIMInvert"), ("proxedit", "MirrorProximalGuidance"), ("composite", "MirrorPaste"),
    ("pix2pix-zero", "MirrorCrossAttentionGuidance"), ("masactrl", "MirrorMutualSelfAttention"),
    ("prompt-to-prompt", "MirrorPromptToPrompt"), ("difference mask", "MirrorRegion"), ("psnr", "MirrorMetrics"),
])
def test_people_find_it_by_what_they_type(nodes, words, node):
    info = nodes[node]
    assert any(words in text.lower() for text in (info["display_name"], *info["search_aliases"]))


def test_the_readmes_tables_are_those_of_the_nodes_and_templates(nodes):
    text = README.read_text(encoding="utf-8")
    assert text == filled(text, tables(nodes)), "run: python run.py pages"


PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_help_page_says_when_to_use_its_node_and_beside_which(page):
    text = page.read_text(encoding="utf-8")
    assert all(re.search(rf"^\*\*{part}\*\* \S", text, re.MULTILINE) for part in ("When to use it.", "Neighbours."))


def test_a_help_page_says_what_every_input_does(nodes):
    plain = {"model", "vae"}    # what they are is said by their names
    for page in PAGES:
        text, given = page.read_text(encoding="utf-8"), nodes[page.stem]["input"]
        asked = {name for group in ("required", "optional") for name in given.get(group, {})} - plain
        assert [name for name in sorted(asked) if f"`{name}`" not in text] == [], page.stem


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_formula_is_no_wider_than_the_editors_help_panel(page):
    code = re.findall(r"^    .*|(?<=^```\n)[^`]*", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [line for block in code for line in block.splitlines() if len(line.strip()) > 48] == []
