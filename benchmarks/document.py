"""docs/benchmarks.md from the JSON files that benchmarks write: a table each, with its command, date and machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import columns_of, text

HEAD = """# Benchmarks

Speeds are ratios to what the same machine did in the same run, for absolute times drift from hour to hour.
`make bench` runs everything, after the tests of what is timed; `python -m benchmarks --write-docs` writes this file
from the figures in `benchmarks/results`.
"""


def document(results: Path, names: Sequence[str]) -> str:
    """The page, with the benchmarks that have a file, in the order of `names`."""
    files = [results / f"{name}.json" for name in names]
    return "\n".join([HEAD, *(section(json.loads(file.read_text("utf-8"))) for file in files if file.exists())])


def section(facts: dict[str, Any]) -> str:
    """One benchmark."""
    where = f"{facts['cpu']}, {facts['threads']} threads, {facts['system']}, Python {facts['python']}, "
    lines = [f"## {facts['title']}", "", *markdown(facts["rows"]), ""]
    if facts["note"]:
        lines += [facts["note"], ""]
    return "\n".join([*lines, f"`{facts['command']}`, {facts['date']}: {where}torch {facts['torch']}.", ""])


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as the lines of a Markdown table."""
    columns = columns_of(rows)
    rules = ["---"] + ["---:"] * (len(columns) - 1)
    cells = [[text(row.get(column, "")).replace("|", "\\|") for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (columns, rules, *cells)]
