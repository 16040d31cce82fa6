"""The report: a table for people, JSON for programs, and the table of docs/performance.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from bench.machine import Facts
from bench.measure import Bench, Figure, show
from bench.peers import PEERS, SOURCE

BEGIN = "<!-- bench: begin; written by python -m bench --write -->"
END = "<!-- bench: end -->"
COLUMNS = ("what", "median", "min - max", "unit", "limit", "of limit", "peers")


def rows(bench: Bench) -> Iterator[tuple[str, ...]]:
    """One line for each figure, as text."""
    for figure in bench.figures.values():
        limit = bench.figures.get(figure.limit)
        ratio = bench.ratio(figure)
        yield (
            figure.title + (f" ({figure.note})" if figure.note else ""),
            show(figure.median),
            _spread(figure),
            figure.unit,
            show(limit.median) if limit else "",
            f"{ratio:.2f}" if ratio is not None else "",
            PEERS.get(figure.key, ""),
        )


def _spread(figure: Figure) -> str:
    return f"{show(min(figure.values))} - {show(max(figure.values))}" if len(figure.values) > 1 else ""


def as_data(bench: Bench, facts: Facts) -> dict[str, Any]:
    """The whole report."""
    return {
        "machine": facts,
        "quick": bench.quick,
        "figures": [{**f.as_data(), "of_limit": bench.ratio(f), "peers": PEERS.get(f.key, "")}
                    for f in bench.figures.values()],
        "tables": [{"title": t.title, "columns": t.columns, "rows": t.rows} for t in bench.tables],
        "problems": bench.problems,
        "peers_source": SOURCE,
    }  # fmt: skip


def write_json(bench: Bench, facts: Facts, folder: Path) -> Path:
    """`report.json` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.json"
    path.write_text(json.dumps(as_data(bench, facts), indent=2) + "\n", encoding="utf-8")
    return path


def print_tables(bench: Bench, console: Console) -> None:
    """For people."""
    table = RichTable(*COLUMNS, box=box.SIMPLE)
    for row in rows(bench):
        table.add_row(*row)
    console.print(table)
    for extra in bench.tables:
        shown = RichTable(*extra.columns, title=extra.title, box=box.SIMPLE)
        for row in extra.rows:
            shown.add_row(*row)
        console.print(shown)
    console.print(SOURCE)


def markdown(bench: Bench, facts: Facts) -> str:
    """What stands between the markers."""
    rough = " Rough figures of a quick run." if bench.quick else ""
    parts = [f"{facts['summary']}{rough}\n", _markdown_table(COLUMNS, list(rows(bench))), f"\n{SOURCE}\n"]
    for extra in bench.tables:
        parts.append(f"\n{extra.title}:\n\n{_markdown_table(extra.columns, extra.rows)}")
    for section, problem in bench.problems.items():
        parts.append(f"\nNot measured: {section} ({problem}).\n")
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _markdown_table(columns: tuple[str, ...], lines: Any) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    ruler = "|" + "|".join("---" for _ in columns) + "|"
    return "\n".join([line(columns), ruler, *map(line, lines)]) + "\n"


def write_markdown(text: str, path: Path) -> None:
    """Replace what stands between the markers in `path`. Raises ValueError if they are not there."""
    whole = path.read_text(encoding="utf-8")
    head, begin, rest = whole.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no place for the table: it needs the lines {BEGIN} and {END}")
    path.write_text(f"{head}{begin}\n{text}{end}{tail}", encoding="utf-8")
