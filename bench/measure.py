"""Figures: several trials of one measurement, their median and spread, and the limit that they are compared with."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

TRIAL_S = 600.0
"""Deadline of one trial of `timed`."""

T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """One measurement, several times."""

    key: str
    title: str
    unit: str
    values: tuple[float, ...]
    limit: str = ""
    """Key of the figure that no implementation can exceed on this machine."""
    note: str = ""

    @property
    def median(self) -> float:
        """Of all trials."""
        return statistics.median(self.values)

    def as_data(self) -> dict[str, Any]:
        """For the report."""
        return {
            "key": self.key, "title": self.title, "unit": self.unit, "median": self.median,
            "min": min(self.values), "max": max(self.values), "values": list(self.values),
            "limit": self.limit, "note": self.note,
        }  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Further facts that are no single figure."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass
class Bench:
    """One run: what was asked for and what was found so far."""

    folder: Path
    """For everything temporary; removed in the end."""
    quick: bool
    say: Callable[[str], None]
    figures: dict[str, Figure] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    """By section: why it could not be measured."""

    @property
    def trials(self) -> int:
        """Of measurements that take seconds."""
        return 2 if self.quick else 3

    @property
    def short_trials(self) -> int:
        """Of measurements that take less than a second."""
        return 3 if self.quick else 5

    def size(self, full: int, quick: int) -> int:
        """How much to do in one trial."""
        return quick if self.quick else full

    def add(
        self, key: str, title: str, unit: str, values: Sequence[float], *, limit: str = "", note: str = ""
    ) -> Figure:
        """Keep a figure and show it."""
        figure = Figure(key, title, unit, tuple(values), limit, note)
        self.figures[key] = figure
        self.say(f"  {title}: {show(figure.median)} {unit}  ({show(min(values))} - {show(max(values))})")
        return figure

    def ratio(self, figure: Figure) -> float | None:
        """The figure's median as a part of its limit's."""
        limit = self.figures.get(figure.limit)
        return figure.median / limit.median if limit is not None and limit.median else None


def show(value: float) -> str:
    """Three digits, as people write them."""
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def rate(work: Callable[[], float], trials: int, warm_up: bool = True) -> list[float]:
    """How much `work` does in a second (it returns how much it did), once for each trial."""
    if warm_up:
        work()
    return [_rate_once(work) for _ in range(trials)]


def _rate_once(work: Callable[[], float]) -> float:
    began = time.perf_counter()
    done = work()
    return done / (time.perf_counter() - began)


def repeat_for(seconds: float, step: Callable[[], object], at_once: int = 50) -> Callable[[], int]:
    """Work for `rate`: `step` again and again for about `seconds`; counts the steps."""

    def work() -> int:
        until = time.perf_counter() + seconds
        count = 0
        while time.perf_counter() < until:
            for _ in range(at_once):
                step()
            count += at_once
        return count

    return work


async def timed(work: Awaitable[T]) -> tuple[float, T]:
    """Seconds that it took, and its result. Raises TimeoutError after TRIAL_S."""
    began = time.perf_counter()
    async with asyncio.timeout(TRIAL_S):
        result = await work
    return time.perf_counter() - began, result
