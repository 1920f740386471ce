"""Rows of figures as an aligned text table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from harness.extras import BENCH, ensure


def show(rows: list[dict], title: str = "") -> None:
    """Print rows, a column a key, numbers right-aligned; what a row lacks is a dash."""
    ensure(BENCH)
    from tabulate import tabulate
    if title:
        print(f"\n{title}")
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name, "-")) for name in names] for row in rows]
    first = rows[0][names[0]]
    named = isinstance(first, str) and not first[:1].isdigit()
    sides = ["left" if named else "right", *["right"] * (len(names) - 1)]
    print(tabulate(cells, names, tablefmt="plain", colalign=sides, disable_numparse=True))


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
