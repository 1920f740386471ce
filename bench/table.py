"""Rows of figures as an aligned text table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from harness.extras import BENCH, ensure


def show(rows: list[dict], title: str = "") -> None:
    """Print rows that share their keys, numbers right-aligned."""
    ensure(BENCH)
    from tabulate import tabulate
    if title:
        print(f"\n{title}")
    cells = [[_cell(value) for value in row.values()] for row in rows]
    words = [isinstance(value, str) and not value[:1].isdigit() for value in rows[0].values()]
    sides = ["left" if word and k == 0 else "right" for k, word in enumerate(words)]
    print(tabulate(cells, list(rows[0]), tablefmt="plain", colalign=sides, disable_numparse=True))


def markdown(rows: list[dict]) -> str:
    """The same as a table for a document."""
    ensure(BENCH)
    from tabulate import tabulate
    return tabulate([[_cell(value) for value in row.values()] for row in rows], list(rows[0]), tablefmt="github",
                    disable_numparse=True) + "\n"


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.2e}" if value and abs(value) < .01 else f"{value:.3f}".rstrip("0").rstrip(".") or "0"
    return str(value)


def write(path: Path | None, content: dict) -> None:
    """Write JSON if a path was asked for."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1))
        print(f"wrote {path}")
