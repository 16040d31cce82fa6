"""Section `soak`: many jobs through one grid, and whether anything that an agent holds grows with their number.

After each wave every agent is looked at from outside: memory of its own, descriptors, sockets, threads, and the i-nodes
of the grid's state folder. A line is laid through these points, the first ones left out; its slope is given for a
million jobs with the 95 % confidence that the scatter of the points allows. A slope whose interval includes zero is
flat; another is flat too where a million jobs would add less than `ENOUGH`.
"""

from __future__ import annotations

import asyncio
import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.jobs import MANY, until_done
from bench.lab import Lab, uss
from bench.measure import Bench, Table, show

WAVES = 40
WARM_UP = 10
"""Waves that are not looked at: caches fill, threads start."""
MIN_JOBS = 2 * WAVES
SETTLE_S = 0.5
"""After the last job of a wave is DONE: agents acknowledge and purge."""
MIB = 1 << 20
PER_JOBS = 1_000_000
ENOUGH = {"memory": 64.0, "descriptors": 50.0, "sockets": 50.0, "threads": 10.0, "i-nodes": 1000.0}
"""More than this for a million jobs is growth; memory in MiB."""


@dataclass(frozen=True)
class Slope:
    """What a million jobs add, and how far that may be off with 95 % confidence."""

    value: float
    margin: float

    def is_flat(self, enough: float) -> bool:
        """Not shown to be growth."""
        return self.value <= enough or self.value - self.margin <= 0


def slope_of(counts: Sequence[float], values: Sequence[float]) -> Slope:
    """Least squares; the margin from the residuals by Student's distribution (Abramowitz and Stegun, 26.7.5)."""
    freedom = len(counts) - 2
    line = statistics.linear_regression(counts, values)
    centre = statistics.fmean(counts)
    spread = sum((count - centre) ** 2 for count in counts)
    rest = sum((value - line.slope * count - line.intercept) ** 2 for count, value in zip(counts, values, strict=True))
    z = statistics.NormalDist().inv_cdf(0.975)
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return Slope(line.slope * PER_JOBS, student * math.sqrt(rest / freedom / spread) * PER_JOBS)


def run(bench: Bench, lab: Lab, jobs: int) -> None:
    """So many jobs in waves. Raises RuntimeError for a job that did not end well."""
    asyncio.run(_run(bench, lab, jobs))


async def _run(bench: Bench, lab: Lab, jobs: int) -> None:
    wave = jobs // WAVES
    looks: list[dict[tuple[str, str], float]] = []
    rates: list[float] = []
    async with lab.open() as grid:
        for number in range(1, WAVES + 1):
            _, seconds = await until_done(grid, MANY.format(count=wave))
            rates.append(wave / seconds)
            await asyncio.sleep(SETTLE_S)
            looks.append(await asyncio.to_thread(_look, lab))
            if not number % WARM_UP:
                bench.say(f"  {number * wave} jobs done, {show(rates[-1])} a second")
    bench.add("soak_rate", f"{wave * WAVES} jobs in waves of {wave}, none lost", "jobs/s", rates[WARM_UP:])
    kept = looks[WARM_UP:]
    counts = [float(wave * number) for number in range(WARM_UP + 1, WAVES + 1)]
    rows = [_row(key, counts, [look[key] for look in kept]) for key in kept[0] if all(key in look for look in kept)]
    rows.sort(key=lambda row: (row[-1] == "flat", row[1], row[0]))
    bench.tables.append(
        Table(
            "What a million jobs add",
            ("of", "what", "first", "last", "slope", "± (95 %)", ""),
            tuple(rows),
        )
    )
    growing = [f"{row[1]} of {row[0]}" for row in rows if row[-1] != "flat"]
    bench.say(f"  {len(rows)} quantities, growing: {', '.join(growing) or 'none'}")


def _row(key: tuple[str, str], counts: Sequence[float], values: Sequence[float]) -> tuple[str, ...]:
    slope = slope_of(counts, values)
    verdict = "flat" if slope.is_flat(ENOUGH[key[1]]) else "grows"
    return (*key, show(values[0]), show(values[-1]), show(slope.value), show(slope.margin), verdict)


_OF_A_PROCESS: dict[str, Callable[[psutil.Process], float]] = {
    "memory": lambda process: uss(process.pid) / MIB,
    "descriptors": lambda process: process.num_fds(),
    "sockets": lambda process: len(process.net_connections("all")),
    "threads": lambda process: process.num_threads(),
}


def _look(lab: Lab) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {("the state folder", "i-nodes"): float(_inodes(lab.state))}
    for agent in lab.agents:
        process = psutil.Process(agent.pid)
        for what, count in _OF_A_PROCESS.items():
            found[agent.name, what] = float(count(process))
    return found


def _inodes(folder: Path) -> int:
    return sum(len(folders) + len(files) for _, folders, files in os.walk(folder))
