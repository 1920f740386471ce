"""Rows of figures as an aligned text table and as JSON."""

import json
from pathlib import Path


def show(rows: list[dict], title: str = "") -> None:
    """Print rows that share their keys, numbers right-aligned."""
    if title:
        print(f"\n{title}")
    cells = [[_cell(v) for v in row.values()] for row in rows]
    heads = list(rows[0])
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(heads))]
    for line in [heads, *cells]:
        left = isinstance(rows[0][heads[0]], str)
        print("  ".join(c.ljust(w) if i == 0 and left else c.rjust(w)
                        for i, (c, w) in enumerate(zip(line, widths, strict=True))))


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
