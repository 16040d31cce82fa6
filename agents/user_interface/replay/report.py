"""What a replay came to: figures from bookkeeping's own records, a table and a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from agents.user_interface import console

JSON_FILE, PLOT_FILE = "replay.json", "replay.svg"
SHORT_S = 1.0
"""Of a bounded slowdown: shorter jobs count as if they ran so long (Feitelson)."""
MAX_POINTS = 4000
"""Of a line that is drawn."""


@dataclass(frozen=True, slots=True)
class Run:
    """One time that a process of a job ran. Seconds since the replay's beginning."""

    started_s: float
    ended_s: float
    done: bool


@dataclass(frozen=True, slots=True)
class ReplayedJob:
    """A job that the broker has acknowledged, as bookkeeping knows it when the replay is over."""

    vo: str
    submitted_s: float
    state: str = ""
    """Empty: bookkeeping does not know it."""
    ended: bool = False
    succeeded: bool = False
    attempts: int = 1
    runs: Sequence[Run] = field(default_factory=tuple)

    @property
    def waited_s(self) -> float | None:
        """From submission to the first start of its process; None if it never started."""
        return max(0.0, min(run.started_s for run in self.runs) - self.submitted_s) if self.runs else None

    @property
    def slowdown(self) -> float | None:
        """Bounded: time in the grid over time at work."""
        waited_s = self.waited_s
        if waited_s is None:
            return None
        run_s = max(SHORT_S, sum(run.ended_s - run.started_s for run in self.runs))
        return max(1.0, (waited_s + run_s) / run_s)


def figures(jobs: Sequence[ReplayedJob], slots: int) -> dict[str, Any]:
    """All figures, JSON-serialisable. `jobs` is not empty."""
    runs = [run for job in jobs for run in job.runs]
    begin_s = min(job.submitted_s for job in jobs)
    makespan_s = max([run.ended_s for run in runs], default=begin_s) - begin_s
    worked_s = sum(run.ended_s - run.started_s for run in runs)
    by_vo = {vo: _of([job for job in jobs if job.vo == vo]) for vo in sorted({job.vo for job in jobs})}
    slowdowns = [row["slowdown_mean"] for row in by_vo.values() if row["slowdown_mean"]]
    return {
        **_of(jobs),
        "lost": sum(not job.ended for job in jobs),
        "run_twice": sum(sum(run.done for run in job.runs) > 1 for job in jobs),
        "slots": slots,
        "makespan_s": round(makespan_s, 2),
        "worked_s": round(worked_s, 2),
        "utilisation": round(worked_s / (slots * makespan_s), 3) if slots and makespan_s else None,
        "running_at_once": max((count for _, count in _steps(_intervals(jobs, waiting=False))), default=0),
        "fairness": round(jain(slowdowns), 3) if slowdowns else None,
        "vos": by_vo,
    }


def _of(jobs: Sequence[ReplayedJob]) -> dict[str, Any]:
    waits = sorted(waited for job in jobs if (waited := job.waited_s) is not None)
    slowdowns = [slowdown for job in jobs if (slowdown := job.slowdown) is not None]
    return {
        "jobs": len(jobs),
        "succeeded": sum(job.succeeded for job in jobs),
        "failed": sum(job.ended and not job.succeeded for job in jobs),
        "retries": sum(job.attempts - 1 for job in jobs),
        "wait_median_s": round(median(waits), 3) if waits else None,
        "wait_p90_s": round(quantile(waits, 0.9), 3) if waits else None,
        "wait_max_s": round(waits[-1], 3) if waits else None,
        "slowdown_mean": round(sum(slowdowns) / len(slowdowns), 3) if slowdowns else None,
        "worked_s": round(sum(run.ended_s - run.started_s for job in jobs for run in job.runs), 2),
    }


def quantile(ordered: Sequence[float], part: float) -> float:
    """The smallest of these ordered values that is not below this part of them (nearest rank)."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 if all are equal, 1/n if one has everything."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def _intervals(jobs: Sequence[ReplayedJob], *, waiting: bool) -> list[tuple[float, float]]:
    if waiting:
        return [(job.submitted_s, min(run.started_s for run in job.runs)) for job in jobs if job.runs]
    return [(run.started_s, run.ended_s) for job in jobs for run in job.runs]


def _steps(intervals: Sequence[tuple[float, float]]) -> list[tuple[float, int]]:
    """(time, how many from then on); who ends at a moment makes room for who begins then."""
    changes = sorted([(begin, 1) for begin, _ in intervals] + [(end, -1) for _, end in intervals])
    counts = accumulate(change for _, change in changes)
    return [(at, count) for (at, _), count in zip(changes, counts, strict=True)]


def _some(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most about MAX_POINTS of them, at even distances, the last one too; (0, 0) if there are none."""
    return [*points[:: 1 + len(points) // MAX_POINTS], points[-1]] if points else [(0, 0)]


def draw(jobs: Sequence[ReplayedJob], slots: int, path: Path) -> None:
    """Jobs waiting and running over time, and how long those of each VO waited."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    over_time, waits_axes = figure.subplots(1, 2)
    for name, waiting in (("waiting", True), ("running", False)):
        steps = _some(_steps(_intervals(jobs, waiting=waiting)))
        over_time.step([at for at, _ in steps], [count for _, count in steps], where="post", label=name)
    over_time.axhline(slots, linestyle="--", linewidth=1, color="grey", label="slots")
    over_time.set_xlabel("seconds since the first submission")
    over_time.set_ylabel("jobs")
    over_time.legend(fontsize="small")
    for vo in sorted({job.vo for job in jobs}):
        waits = sorted(waited for job in jobs if job.vo == vo and (waited := job.waited_s) is not None)
        parts = _some([(waited, (place + 1) / len(waits)) for place, waited in enumerate(waits)])
        waits_axes.step(*zip(*parts, strict=True), where="post", label=f"{vo} ({len(waits)} jobs)")
    waits_axes.set_xlabel("waiting time, seconds")
    waits_axes.set_ylabel("part of the VO's jobs that waited at most so long")
    waits_axes.set_ylim(0, 1.02)
    waits_axes.legend(fontsize="small", loc="lower right")
    figure.savefig(path)


def show(found: Mapping[str, Any], out: Path) -> None:
    """The table for a person."""
    names = ("jobs", "succeeded", "failed", "retries", "wait_median_s", "wait_p90_s", "wait_max_s", "slowdown_mean")
    rows = [[vo, *(row[name] for name in names)] for vo, row in {**found["vos"], "all": found}.items()]
    console.print_table(["VO", *(name.replace("_", " ") for name in names)], rows)
    used = f"{found['utilisation']:.0%}" if found["utilisation"] is not None else "-"
    print(
        f"{found['slots']} slots, {found['running_at_once']} running at once, {used} of them used over "
        f"{found['makespan_s']:g} s; fairness between VOs {found['fairness']}; "
        f"{found['lost']} jobs lost, {found['run_twice']} run twice"
    )
    print(f"{out / JSON_FILE}\n{out / PLOT_FILE}")
