"""Progress for a person: bars on a terminal, a line now and then elsewhere, nothing in JSON mode."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from agents.user_interface import console

LINE_EVERY_S = 2.0
"""Not on a terminal: a changed count is printed at most this often."""


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
