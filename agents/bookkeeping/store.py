"""Rows of the bookkeeping store: events as they came, and the record of each job, changed in one transaction.

All functions run inside ``Store.write`` or ``Store.read`` of fabric/store.py.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import sqlalchemy as sa

from agents.bookkeeping import accounting, machine
from agents.bookkeeping.model import (
    ENDED,
    Event,
    EventType,
    JobQuery,
    JobRecord,
    JobState,
    Reader,
    Statistics,
    StatisticsQuery,
)
from fabric.errors import Exhausted
from fabric.store import run

_COLUMNS = tuple(item.name for item in fields(JobRecord))
_values = operator.attrgetter(*_COLUMNS)
_SELECT = f"SELECT {', '.join(_COLUMNS)}, id FROM jobs"
_INSERT = f"INSERT INTO jobs ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_UPDATE = f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in _COLUMNS)} WHERE id = ?"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_CHUNK = 500
"""Values in one IN list."""
_ANY_TIME = 1 << 62
MAX_STATISTICS_JOBS = 2_000_000
"""Jobs in one answer to a question for statistics; about two seconds of one reader."""
_ENDED = ", ".join(str(int(state)) for state in sorted(ENDED))
_SUCCEEDED = f"state IN ({int(JobState.DONE)}, {int(JobState.CLEARED)}) AND exit_code IN ('0', '')"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one batch changed."""

    new: int
    duplicates: int
    changed: tuple[JobRecord, ...]


def record(connection: sa.Connection, batch: Sequence[Event]) -> Recorded:
    """Keep the events and bring the records of their jobs up to date."""
    source_ids = _source_ids(connection, {event.source for event in batch})
    known = _load(connection, {event.job_id for event in batch})
    records = {key: JobRecord(*row[:-1]) for key, row in known.items()}
    changed: dict[str, JobRecord] = {}
    for event in batch:
        found = records.get(event.job_id)
        if found is None:
            found = records[event.job_id] = changed[event.job_id] = JobRecord(event.job_id)
        if machine.apply(found, event):
            changed[event.job_id] = found
    ids = {key: int(row[-1]) for key, row in known.items()}
    if unknown := [_values(found) for key, found in changed.items() if key not in known]:
        run(connection, _INSERT, unknown)
        ids.update(_ids(connection, changed.keys() - known.keys()))
    if old := [(*_values(found), ids[key]) for key, found in changed.items() if key in known]:
        run(connection, _UPDATE, old)
    rows = [
        (
            source_ids[event.source], event.sequence, ids[event.job_id], event.at_us, int(event.type), event.attempt,
            _encode(dict(event.fields)) if event.fields else "",
        )
        for event in batch
    ]  # fmt: skip
    result = run(
        connection,
        "INSERT INTO events (source, sequence, job, at_us, type, attempt, fields) VALUES (?,?,?,?,?,?,?) "
        "ON CONFLICT DO NOTHING",
        rows,
    )
    new = max(0, result.rowcount)
    accounting.keep(connection, source_ids, batch)
    _count_children(connection, {key: (row[4], row[6]) for key, row in known.items()}, changed.values())
    return Recorded(new, len(batch) - new, tuple(changed.values()))


def _source_ids(connection: sa.Connection, names: Collection[str]) -> dict[str, int]:
    run(connection, "INSERT INTO sources (name) VALUES (?) ON CONFLICT DO NOTHING", [(n,) for n in names])
    marks = ",".join("?" * len(names))
    rows = run(connection, f"SELECT name, id FROM sources WHERE name IN ({marks})", tuple(names))
    return {str(name): int(key) for name, key in rows}


def _chunks(keys: Iterable[str]) -> Iterable[tuple[str, ...]]:
    wanted = list(keys)
    for start in range(0, len(wanted), _CHUNK):
        yield tuple(wanted[start : start + _CHUNK])


def _load(connection: sa.Connection, keys: Collection[str]) -> dict[str, Sequence[Any]]:
    """The rows of these jobs: the columns of a record, then the row's number."""
    found: dict[str, Sequence[Any]] = {}
    for chunk in _chunks(keys):
        marks = ",".join("?" * len(chunk))
        rows = run(connection, f"{_SELECT} WHERE job_id IN ({marks})", chunk).fetchall()
        found.update({row[0]: row for row in rows})
    return found


def _ids(connection: sa.Connection, keys: Collection[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for chunk in _chunks(keys):
        marks = ",".join("?" * len(chunk))
        rows = run(connection, f"SELECT job_id, id FROM jobs WHERE job_id IN ({marks})", chunk)
        found.update({str(job_id): int(key) for job_id, key in rows})
    return found


def _count_children(
    connection: sa.Connection, before: dict[str, tuple[str, int]], changed: Iterable[JobRecord]
) -> None:
    deltas: dict[tuple[str, int], int] = {}
    for found in changed:
        old_parent, old_state = before.get(found.job_id, ("", 0))
        if (old_parent, old_state) == (found.parent, found.state):
            continue
        if old_parent:
            deltas[old_parent, old_state] = deltas.get((old_parent, old_state), 0) - 1
        if found.parent:
            deltas[found.parent, found.state] = deltas.get((found.parent, found.state), 0) + 1
    rows = [(parent, state, delta) for (parent, state), delta in deltas.items() if delta]
    if rows:
        run(
            connection,
            "INSERT INTO parents (parent, state, count) VALUES (?,?,?) "
            "ON CONFLICT (parent, state) DO UPDATE SET count = parents.count + excluded.count",
            rows,
        )


def children_counts(connection: sa.Connection, parent_ids: Collection[str]) -> dict[str, dict[int, int]]:
    """How many children of each parent are in each state."""
    found: dict[str, dict[int, int]] = {}
    for chunk in _chunks(parent_ids):
        marks = ",".join("?" * len(chunk))
        rows = run(
            connection, f"SELECT parent, state, count FROM parents WHERE count > 0 AND parent IN ({marks})", chunk
        )
        for parent, state, count in rows:
            found.setdefault(str(parent), {})[int(state)] = int(count)
    return found


def get(connection: sa.Connection, job_id: str) -> JobRecord | None:
    """The record of one job."""
    row = _load(connection, [job_id]).get(job_id)
    return JobRecord(*row[:-1]) if row else None


def history(connection: sa.Connection, job_id: str) -> list[Event]:
    """Every event of a job, oldest first by the time it happened."""
    rows = run(
        connection,
        "SELECT s.name, e.sequence, e.at_us, e.type, e.attempt, e.fields "
        "FROM events e JOIN sources s ON s.id = e.source WHERE e.job = (SELECT id FROM jobs WHERE job_id = ?)",
        (job_id,),
    )
    found = [
        Event(job_id, name, sequence, at_us, EventType(kind), attempt, json.loads(text) if text else {})
        for name, sequence, at_us, kind, attempt, text in rows
    ]
    found.sort(key=lambda event: (event.at_us, event.attempt, machine.rank_of(event), event.source, event.sequence))
    return found


def query(connection: sa.Connection, wanted: JobQuery, reader: Reader) -> tuple[list[JobRecord], int]:
    """A page of jobs, and the row to go on after (0: this was the last page).

    Asked by id: in the order they were registered; what the reader may not see is missing, so a page may be short.
    Else the newest first.
    """
    found: dict[int, Sequence[Any]] = {}
    if wanted.job_ids:
        for row in _rows_by_id(connection, wanted):
            found[int(row[-1])] = row
        order = sorted(found)
    else:
        for part in _parts(wanted, reader):
            for row in _newest(connection, part):
                found[int(row[-1])] = row
        order = sorted(found, reverse=True)
    page = [JobRecord(*found[key][:-1]) for key in order[: wanted.page_size]]
    more = order[wanted.page_size - 1] if len(order) > wanted.page_size else 0
    return [record for record in page if reader.may_read(record.owner, record.vo)], more


def _rows_by_id(connection: sa.Connection, wanted: JobQuery) -> Iterable[Sequence[Any]]:
    condition, values = _condition(wanted)
    condition, values = [*condition, "id > ?"], [*values, wanted.after]
    for chunk in _chunks(dict.fromkeys(wanted.job_ids)):
        marks = ",".join("?" * len(chunk))
        for column in ("job_id", "parent"):
            # The plus sign keeps the planner on the index of `column`.
            sql = f"{_SELECT} WHERE {column} IN ({marks}) AND {' AND '.join(condition)} ORDER BY +id LIMIT ?"
            yield from run(connection, sql, (*chunk, *values, wanted.page_size + 1))


def _parts(wanted: JobQuery, reader: Reader) -> list[JobQuery]:
    """What is wanted of what a reader may see, as questions about one owner or one VO each: an index answers such a
    one, and none a choice between them."""
    his_own = wanted.owner and wanted.owner == reader.identity
    if reader.is_service or his_own or (wanted.vo and wanted.vo in reader.vos):
        return [wanted]
    mine = [] if wanted.owner else [replace(wanted, owner=reader.identity)]
    return mine + [replace(wanted, vo=vo) for vo in reader.vos if not wanted.vo]


def _newest(connection: sa.Connection, wanted: JobQuery) -> Iterable[Sequence[Any]]:
    condition, values = _condition(wanted, one_index=True)
    if wanted.after:
        condition, values = [*condition, "id < ?"], [*values, wanted.after]
    if wanted.since_us or wanted.until_us:
        within = (wanted.since_us, wanted.until_us or _ANY_TIME)
        for edge, sign in (("min", ">="), ("max", "<=")):
            sql = f"(SELECT {edge}(id) FROM jobs WHERE submitted_at_us >= ? AND submitted_at_us <= ?)"
            condition, values = [*condition, f"id {sign} {sql}"], [*values, *within]
    where = f" WHERE {' AND '.join(condition)}" if condition else ""
    return run(connection, f"{_SELECT}{where} ORDER BY id DESC LIMIT ?", (*values, wanted.page_size + 1))


def statistics(connection: sa.Connection, wanted: StatisticsQuery, reader: Reader) -> list[Statistics]:
    """How the jobs of a time fared. Raises Exhausted TOO_MANY_JOBS."""
    mine, who = accounting.visible_to(reader)
    where, values = f"submitted_at_us >= ? AND submitted_at_us <= ? AND is_parent = 0 AND {mine}", (
        wanted.since_us, wanted.until_us, *who,
    )  # fmt: skip
    counted = run(
        connection, f"SELECT count(*) FROM (SELECT 1 FROM jobs WHERE {where} LIMIT {MAX_STATISTICS_JOBS + 1}) j", values
    )
    if counted.scalar_one() > MAX_STATISTICS_JOBS:
        raise Exhausted(
            "TOO_MANY_JOBS", f"more than {MAX_STATISTICS_JOBS} jobs were submitted in that time; ask for less of it"
        )
    group = ", ".join(wanted.by) or "1"
    width = len(wanted.by)
    found: dict[tuple[str | int, ...], Statistics] = {}
    sums = run(
        connection,
        f"SELECT {group}, count(*), sum(CASE WHEN state IN ({_ENDED}) THEN 1 ELSE 0 END), "
        f"sum(CASE WHEN {_SUCCEEDED} THEN 1 ELSE 0 END), sum(CASE WHEN attempt > 1 THEN 1 ELSE 0 END), "
        f"sum(wall_s), sum(cpu_s) FROM jobs WHERE {where} GROUP BY {group} ORDER BY {group}",
        values,
    )
    for row in sums:
        key, rest = tuple(row[:width]), row[width or 1 :]
        found[key] = Statistics(key, *rest[:4], wall_s=float(rest[4]), cpu_s=float(rest[5]))
    waiting = (
        "SELECT *, CASE WHEN started_at_us > submitted_at_us THEN started_at_us - submitted_at_us ELSE 0 END AS wait "
        f"FROM jobs WHERE {where} AND started_at_us > 0"
    )
    placed = (
        f"SELECT *, row_number() OVER (PARTITION BY {group} ORDER BY wait) AS place, "
        f"count(*) OVER (PARTITION BY {group}) AS started FROM ({waiting}) w"
    )
    waits = run(
        connection,
        f"SELECT {group}, started, avg(wait), min(CASE WHEN place * 2 >= started THEN wait END), "
        "min(CASE WHEN place * 10 >= started * 9 THEN wait END), max(wait) "
        f"FROM ({placed}) p GROUP BY {group}, started",
        values,
    )
    for row in waits:
        one, rest = found[tuple(row[:width])], row[width or 1 :]
        one.started = int(rest[0])
        one.wait_mean_s, one.wait_median_s, one.wait_p90_s, one.wait_max_s = (float(value) / 1e6 for value in rest[1:5])
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Finished:
    """A job that ended long ago, with its whole history, and where it is in the tables."""

    row: int
    record: JobRecord
    events: tuple[Event, ...]


def finished(connection: sa.Connection, before_us: int, limit: int) -> list[Finished]:
    """Jobs that ended before that moment, the oldest first; a parent only when it has no jobs any more.

    Only jobs submitted before it are looked at, along the index: that is what has not been moved yet.
    """
    over = f"state IN ({_ENDED}) AND is_parent = 0"
    empty = "is_parent = 1 AND NOT EXISTS (SELECT 1 FROM jobs c WHERE c.parent = jobs.job_id)"
    sql = (
        f"{_SELECT} WHERE submitted_at_us > 0 AND submitted_at_us < ? AND changed_at_us < ? "
        f"AND (({over}) OR ({empty})) ORDER BY submitted_at_us, id LIMIT ?"
    )
    found = run(connection, sql, (before_us, before_us, limit)).fetchall()
    records = [(int(row[-1]), JobRecord(*row[:-1])) for row in found]
    return [Finished(row, record, tuple(history(connection, record.job_id))) for row, record in records]


def forget(connection: sa.Connection, jobs_to_go: Iterable[Finished]) -> int:
    """Remove these jobs and their events, except one that has changed since it was read. How many went."""
    gone = 0
    for job in jobs_to_go:
        sql = "DELETE FROM jobs WHERE id = ? AND state_rank = ? AND changed_at_us = ?"
        if run(connection, sql, (job.row, job.record.state_rank, job.record.changed_at_us)).rowcount:
            run(connection, "DELETE FROM events WHERE job = ?", (job.row,))
            run(connection, "DELETE FROM parents WHERE parent = ?", (job.record.job_id,))
            gone += 1
    return gone


def _condition(wanted: JobQuery, *, one_index: bool = False) -> tuple[list[str], list[object]]:
    """`one_index`: of several columns that have one, only the best is left to the planner, which cannot know that one
    owner has half of all jobs and that hardly any of these are running."""
    equal = {name: value for name in ("owner", "state", "ce", "vo") if (value := getattr(wanted, name))}
    best = set(equal)
    if one_index:
        is_rare = wanted.state and wanted.state not in (JobState.DONE, JobState.CLEARED)
        order = ("ce", "owner", "state", "vo") if not is_rare else ("owner", "state", "ce", "vo")
        first = next((name for name in order if name in equal), "")
        best = {"owner", "state"} if first == "owner" else {first}
    condition = [f"{name} = ?" if name in best else f"{_unindexed(name)} = ?" for name in equal]
    values: list[object] = list(equal.values())
    if wanted.since_us:
        condition.append(f"{'submitted_at_us + 0' if one_index else 'submitted_at_us'} >= ?")
        values.append(wanted.since_us)
    if wanted.until_us:
        condition.append(f"{'submitted_at_us + 0' if one_index else 'submitted_at_us'} <= ?")
        values.append(wanted.until_us)
    if not wanted.include_parents:
        condition.append("is_parent = 0")
    return condition, values


def _unindexed(column: str) -> str:
    return f"{column} + 0" if column == "state" else f"{column} || ''"
