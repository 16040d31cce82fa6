"""Accounting: one usage record for each run of a payload, made of its gatekeeper's last event about it.

The record is written in the transaction that keeps the event and has the event's own key, so it is there exactly as
often as the event: once. Its fields are those of the OGF Usage Record 2.0 (GFD.204) and of APEL's job record.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import sqlalchemy as sa

from agents.bookkeeping.machine import number
from agents.bookkeeping.model import Event, EventType, JobState, Reader
from fabric.clock import from_us
from fabric.errors import InvalidRequest
from fabric.store import run

_OUTCOMES = {EventType.DONE: "DONE", EventType.CANCELLED: "CANCELLED", EventType.NOTE: "FAILED"}
"""Events that end a run. A NOTE with a wall time is a run that failed by no fault of the payload."""
GROUPS = ("vo", "site", "owner", "ce", "fqan", "account", "month")
"""What sums can be grouped by."""
MAX_RECORDS = 5_000
"""Usage records in one page."""
MAX_PROBLEMS = 1_000
"""Jobs that `reconcile` names of each kind."""
_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """What one run of a job used. Names of people and groups are as the gatekeeper knew them when it took the job."""

    job_id: str
    attempt: int
    owner: str
    """Distinguished name."""
    vo: str
    fqan: str
    """The primary one; empty without attributes."""
    site: str
    ce: str
    worker: str
    account: str
    """The Unix account that it ran under; empty if that was the gatekeeper's own."""
    local_id: str
    """As the batch system calls it."""
    outcome: str
    """DONE, FAILED (by no fault of its own) or CANCELLED."""
    exit_code: str
    started_at_us: int
    ended_at_us: int
    wall_s: float
    user_s: float
    system_s: float
    memory_bytes: int
    """Largest resident set."""
    processors: int


_COLUMNS = tuple(item.name for item in fields(UsageRecord))
_SELECT = f"SELECT {', '.join(_COLUMNS)}, source, sequence FROM usage"
_INSERT = (
    f"INSERT INTO usage (source, sequence, {', '.join(_COLUMNS)}) VALUES (?, ?, {', '.join('?' * len(_COLUMNS))}) "
    "ON CONFLICT DO NOTHING"
)


def keep(connection: sa.Connection, source_ids: Mapping[str, int], batch: Iterable[Event]) -> None:
    """Write the usage records of these events; an event that was there before changes nothing."""
    rows = [
        (source_ids[event.source], event.sequence, *_row(event))
        for event in batch
        if event.type in _OUTCOMES and "wall_s" in event.fields
    ]
    if rows:
        run(connection, _INSERT, rows)


def _row(event: Event) -> tuple[object, ...]:
    said = event.fields
    wall_s, user_s, system_s = (number(said.get(name)) for name in ("wall_s", "user_s", "system_s"))
    return (
        event.job_id, event.attempt, said.get("owner", ""), said.get("vo", ""), said.get("fqan", ""),
        said.get("site", ""), said.get("ce", ""), said.get("worker", ""), said.get("account", ""),
        said.get("local_id", ""), _OUTCOMES[event.type], said.get("exit_code", ""), event.at_us - int(wall_s * 1e6),
        event.at_us, wall_s, user_s, system_s, int(number(said.get("memory_bytes"))),
        max(1, int(number(said.get("processors")))),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Runs that ended from `since_us` to before `until_us`."""

    since_us: int
    until_us: int
    by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UsageSum:
    """The runs of a group together."""

    group: tuple[str, ...]
    runs: int
    succeeded: int
    wall_s: float
    cpu_s: float
    core_s: float
    """Wall time times processors."""


def visible_to(reader: Reader) -> tuple[str, tuple[str, ...]]:
    """The condition for rows that a reader may see: everybody his own and those of his VOs."""
    if reader.is_service:
        return "1 = 1", ()
    vos = f" OR vo IN ({','.join('?' * len(reader.vos))})" if reader.vos else ""
    return f"owner != '' AND (owner = ?{vos})", (reader.identity, *reader.vos)


def _visible(wanted: UsageQuery, reader: Reader) -> tuple[str, tuple[Any, ...]]:
    mine, who = visible_to(reader)
    return f"ended_at_us >= ? AND ended_at_us < ? AND {mine}", (wanted.since_us, wanted.until_us, *who)


def sums(connection: sa.Connection, wanted: UsageQuery, reader: Reader) -> list[UsageSum]:
    """What was used in that time, by group."""
    condition, values = _visible(wanted, reader)
    columns = [f"ended_at_us / {_DAY_US}" if name == "month" else name for name in wanted.by]
    group = ", ".join(columns) or "1"
    rows = run(
        connection,
        f"SELECT {group}, count(*), sum(CASE WHEN outcome = 'DONE' AND exit_code = '0' THEN 1 ELSE 0 END), "
        f"sum(wall_s), sum(user_s + system_s), sum(wall_s * processors) FROM usage WHERE {condition} GROUP BY {group}",
        values,
    )
    found: dict[tuple[str, ...], UsageSum] = {}
    for row in rows.fetchall():
        key = tuple(
            _month(int(value)) if name == "month" else str(value) for name, value in zip(wanted.by, row, strict=False)
        )
        count, good, wall_s, cpu_s, core_s = row[-5:]
        one = UsageSum(key, int(count), int(good), float(wall_s), float(cpu_s), float(core_s))
        before = found.get(key)
        found[key] = one if before is None else _added(before, one)
    return [found[key] for key in sorted(found)]


def _added(one: UsageSum, other: UsageSum) -> UsageSum:
    return replace(
        one,
        runs=one.runs + other.runs,
        succeeded=one.succeeded + other.succeeded,
        wall_s=one.wall_s + other.wall_s,
        cpu_s=one.cpu_s + other.cpu_s,
        core_s=one.core_s + other.core_s,
    )


def _month(day: int) -> str:
    try:
        return from_us(day * _DAY_US).strftime("%Y-%m")
    except (ValueError, OverflowError, OSError):
        return "no date"


def records(
    connection: sa.Connection, wanted: UsageQuery, reader: Reader, token: str = ""
) -> tuple[list[UsageRecord], str]:
    """A page of usage records, the oldest first, and the token of the next page ("": none). Raises QUERY_INVALID."""
    condition, values = _visible(wanted, reader)
    if token:
        ended, source, sequence = _place(token)
        condition += " AND (ended_at_us > ? OR (ended_at_us = ? AND (source > ? OR (source = ? AND sequence > ?))))"
        values += (ended, ended, source, source, sequence)
    rows = run(
        connection,
        f"{_SELECT} WHERE {condition} ORDER BY ended_at_us, source, sequence LIMIT {MAX_RECORDS + 1}",
        values,
    ).fetchall()
    page = [UsageRecord(*row[:-2]) for row in rows[:MAX_RECORDS]]
    if len(rows) <= MAX_RECORDS:
        return page, ""
    last = rows[MAX_RECORDS - 1]
    return page, base64.urlsafe_b64encode(f"{page[-1].ended_at_us} {last[-2]} {last[-1]}".encode()).decode()


def _place(token: str) -> tuple[int, int, int]:
    try:
        ended, source, sequence = (int(word) for word in base64.urlsafe_b64decode(token[:200].encode()).split())
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            "QUERY_INVALID", "the page token is not one that was given out; begin again without it"
        ) from None
    return ended, source, sequence


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Accounting held against bookkeeping. The lists are of job ids."""

    runs: int
    wall_s: float
    """Of the records of runs that were DONE."""
    done_jobs: int
    done_wall_s: float
    """Of the jobs, as bookkeeping shows them."""
    missing: tuple[str, ...]
    """Jobs that are done and have no record."""
    doubled: tuple[str, ...]
    """Jobs with more than one run that was DONE: they ran twice."""
    unregistered: tuple[str, ...]
    """Records of jobs that no broker has registered (yet)."""


def reconcile(connection: sa.Connection, wanted: UsageQuery) -> Reconciliation:
    """Compare for the runs and jobs that ended in that time, and name what does not agree."""
    values = (wanted.since_us, wanted.until_us)
    within = "u.ended_at_us >= ? AND u.ended_at_us < ? AND u.outcome = 'DONE'"
    done = f"state IN ({int(JobState.DONE)}, {int(JobState.CLEARED)}) AND started_at_us > 0 AND is_parent = 0"
    has_run = "EXISTS (SELECT 1 FROM usage u WHERE u.job_id = j.job_id AND u.outcome = 'DONE')"

    def ids(sql: str, given: tuple[Any, ...]) -> tuple[str, ...]:
        return tuple(str(row[0]) for row in run(connection, f"{sql} LIMIT {MAX_PROBLEMS}", given))

    runs, wall_s = run(connection, f"SELECT count(*), sum(wall_s) FROM usage u WHERE {within}", values).one()
    jobs, jobs_wall_s = run(
        connection,
        f"SELECT count(*), sum(j.wall_s) FROM jobs j WHERE {done} AND j.job_id IN "
        f"(SELECT u.job_id FROM usage u WHERE {within})",
        values,
    ).one()
    return Reconciliation(
        int(runs),
        float(wall_s or 0.0),
        int(jobs),
        float(jobs_wall_s or 0.0),
        missing=ids(
            f"SELECT j.job_id FROM jobs j WHERE {done} AND j.changed_at_us >= ? AND j.changed_at_us < ? "
            f"AND NOT {has_run}",
            values,
        ),
        doubled=ids(f"SELECT u.job_id FROM usage u WHERE {within} GROUP BY u.job_id HAVING count(*) > 1", values),
        unregistered=ids(
            f"SELECT DISTINCT u.job_id FROM usage u LEFT JOIN jobs j ON j.job_id = u.job_id WHERE {within} "
            "AND (j.job_id IS NULL OR j.submitted_at_us = 0)",
            values,
        ),
    )
