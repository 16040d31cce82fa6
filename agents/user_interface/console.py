"""What is printed and how: tables for people, JSON for programs, sentences on stderr, never a traceback."""

from __future__ import annotations

import json
import sys
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from agents.user_interface.exits import Ended, ExitCode

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


class _Mode:
    """Whether this command was asked for JSON: set by `--json`, read by whoever prints."""

    as_json: bool = False


mode = _Mode()


def _set_json(value: bool) -> bool:
    mode.as_json = mode.as_json or value
    return value


Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.", callback=_set_json)]


def is_terminal() -> bool:
    """True if stdout is a person's screen."""
    return sys.stdout.isatty()


def rich_console(*, stderr: bool = False) -> Console:
    """A rich console; imported here because most commands never need it."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, soft_wrap=False, width=None if stream.isatty() else 160)


def say(text: str) -> None:
    """One line for a person; nothing in JSON mode."""
    if not mode.as_json:
        print(text, flush=True)


def warn(text: str) -> None:
    """One line on stderr."""
    print(f"grid: {text}", file=sys.stderr, flush=True)


def end_with_missing(missing: Mapping[str, str]) -> None:
    """Name the services that gave no answer, each with its sentence. Raises Ended UNREACHABLE if there is one."""
    for name, sentence in missing.items():
        warn(f"{name} did not answer: {sentence}")
    if missing:
        raise Ended(ExitCode.UNREACHABLE)


def print_json(data: Any) -> None:
    """Indented JSON on stdout, stable order as given."""
    json.dump(data, sys.stdout, indent=2, ensure_ascii=False, default=_plain)
    sys.stdout.write("\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, (set, frozenset, tuple)):
        return sorted(value) if not isinstance(value, tuple) else list(value)
    return str(value)


def print_facts(facts: Mapping[str, object]) -> None:
    """Name and value, one below the other, as grid-proxy-info does."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        print(f"{name:<{width}} : {value}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """A table: rich on a terminal, aligned plain columns elsewhere (so that awk and tests can read it)."""
    cells = [[_cell(value) for value in row] for row in rows]
    if is_terminal():
        from rich import box
        from rich.table import Table

        table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for number, column in enumerate(columns):
            right = bool(cells) and all(_numeric(row[number]) for row in cells)
            table.add_column(column, justify="right" if right else "left", overflow="fold")
        for row in cells:
            table.add_row(*row)
        rich_console().print(table)
        return
    if title:
        print(title)
    widths = [max(len(column), *(len(row[i]) for row in cells), 0) for i, column in enumerate(columns)]
    for row in [list(columns), *cells]:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}"
    return str(value) if str(value) else "-"


def _numeric(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).replace("-", "", 1).replace(" ", "").isdigit()


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; Ctrl-C cancels it and is seen as KeyboardInterrupt outside."""
    import asyncio

    return asyncio.run(work)


def time_text(moment: datetime | None) -> str:
    """2026-01-31T12:00:00Z"""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment is not None else ""


def from_us(microseconds: int) -> datetime | None:
    """A wire time; 0 is no time."""
    return datetime.fromtimestamp(microseconds / 1e6, UTC) if microseconds else None


def time_us_text(microseconds: int) -> str:
    """A wire time for people, to the millisecond."""
    moment = from_us(microseconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z" if moment else ""


def bytes_text(count: float) -> str:
    """1536 -> 1.5 KiB"""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def hours_text(seconds: float) -> str:
    """3661 -> 1:01:01, as grid-proxy-info prints the time left."""
    seconds = max(0, int(seconds))
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


def parse_duration(text: str) -> int:
    """Seconds of `12:00` (hours and minutes), `12h`, `90m`, `30s`, `2d`.

    A bare number is refused: hours for one tool are seconds for the next. Raises ValueError with a sentence.
    """
    value = text.strip().lower()
    try:
        if ":" in value:
            hours, minutes = value.split(":")
            if not (value.isascii() and hours.isdigit() and minutes.isdigit()) or int(minutes) > 59 or len(hours) > 6:
                raise ValueError
            seconds = int(hours) * 3600 + int(minutes) * 60
        else:
            number, unit = value[:-1], value[-1:]
            if not (value.isascii() and number.isdigit()) or len(number) > 9:
                raise ValueError
            seconds = int(number) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    except (ValueError, KeyError):
        raise ValueError(f"{text!r} is not a time; write 12:00 (hours:minutes), 12h, 90m or 30s") from None
    if seconds <= 0 or seconds > 20 * 366 * 86400:
        raise ValueError(f"{text!r} is not a useful time; write 12:00 (hours:minutes), 12h, 90m or 30s")
    return seconds


def words_of(text: str) -> list[str]:
    """The words of an option that takes several, with commas, in lower case."""
    return [word.strip().lower() for word in text.split(",") if word.strip()]


def duration_option(text: str) -> str:
    """Typer callback: check the form while parsing, so that it is a usage error."""
    if text is not None:
        try:
            parse_duration(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return text
