"""The help pages: each shows a picture that a command made."""
import re

from demo.graphs import SHEETS, help
from harness.pages import HELP

DRAWN = {*SHEETS, *help.PICTURES}


def test_every_help_page_shows_a_picture_and_every_picture_is_drawn_by_run_py_graphs():
    shown = {page.stem: re.findall(r"!\[[^\]]+\]\(images/(\w+)\.jpg\)", page.read_text(encoding="utf-8"))
             for page in HELP.glob("*.md")}
    assert [node for node, pictures in shown.items() if not pictures] == []
    assert {picture for pictures in shown.values() for picture in pictures} <= DRAWN
    assert {file.stem for file in (HELP / "images").iterdir()} == DRAWN
