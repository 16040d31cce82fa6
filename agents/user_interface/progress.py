"""Progress for a person: bars on a terminal, a line now and then of counts elsewhere, nothing in JSON mode."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from agents.user_interface import console

LINE_EVERY_S = 2.0
"""Not on a terminal: a changed count is printed at most this often."""
LEAST_SHOWN_BYTES = 4 * 1024 * 1024
"""Less has moved before anybody could read a bar."""

_is_shown = False
"""There is one line for a bar."""


@contextmanager
def moving(title: str, size_bytes: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar of bytes, their rate and the time left, on a terminal's stderr and gone in the end; to be told the bytes
    moved since the last time. `size_bytes` None: nobody knows how many there will be. Within another one: nothing."""
    global _is_shown
    is_short = size_bytes is not None and size_bytes < LEAST_SHOWN_BYTES
    if _is_shown or is_short or console.mode.as_json or not sys.stderr.isatty():
        yield lambda moved: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), DownloadColumn(binary_units=True),
        TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    _is_shown = True
    try:
        with Progress(*columns, console=console.rich_console(stderr=True), transient=True) as shown:
            task = shown.add_task(title, total=size_bytes)
            yield lambda moved: shown.advance(task, moved)
    finally:
        _is_shown = False


class Bar:
    """One count that grows to a total. Use as a context manager."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        self._done, self._detail = 0, ""
        self._printed: tuple[int, str] = (-1, "")
        self._printed_at = 0.0
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> Bar:
        if console.is_terminal() and not console.mode.as_json:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                TextColumn("{task.description:<12}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[detail]}"),
                console=console.rich_console(),
            )
            self._progress.start()
            self._task = self._progress.add_task(self.title, total=self.total, detail="")
        return self

    def update(self, done: int, detail: str = "") -> None:
        """The count now."""
        self._done, self._detail = done, detail
        if self._progress is not None:
            self._progress.update(self._task, completed=done, detail=detail)
        elif time.monotonic() - self._printed_at >= LINE_EVERY_S:
            self._print()

    def _print(self) -> None:
        now = (self._done, self._detail)
        if now != self._printed:
            self._printed, self._printed_at = now, time.monotonic()
            console.say(f"  {self.title}: {self._done} of {self.total}  {self._detail}".rstrip())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        elif kind is None:
            self._print()
