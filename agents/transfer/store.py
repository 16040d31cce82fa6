"""The transfer agent's rows. Functions run in the store's transactions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import sqlalchemy as sa

from agents.transfer.machine import Transfer
from agents.transfer.model import PAGE, FileRecord, Job, Subscription, TransferState
from fabric.errors import AlreadyExists, Exhausted, NotFound
from fabric.store import run

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("vo", sa.Text, nullable=False),
    sa.Column("destination", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("submitted_at_us", sa.BigInteger, nullable=False),
    sa.Index("ix_jobs_owner", "owner", "submitted_at_us"),
    sqlite_with_rowid=False,
)
files = sa.Table(
    "files",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.job_id"), nullable=False),
    sa.Column("lfn", sa.Text, nullable=False),
    sa.Column("guid", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("surl", sa.Text, nullable=False),
    sa.Column("touched", sa.Boolean, nullable=False),
    sa.Column("avoid", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("sentence", sa.Text, nullable=False),
    sa.Column("moved_bytes", sa.BigInteger, nullable=False),
    sa.Column("submitted_at_us", sa.BigInteger, nullable=False),
    sa.Column("ended_at_us", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("job_id", "guid", name="uq_files_job"),
    sa.Index("ix_files_open", "number", sqlite_where=sa.text("ended_at_us = 0 OR touched")),
    sa.Index("ix_files_ended", "ended_at_us", sqlite_where=sa.text("ended_at_us > 0")),
    sqlite_autoincrement=True,  # a number names a put at a storage element, and is never used again
)
subscriptions = sa.Table(
    "subscriptions",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("vo", sa.Text, nullable=False),
    sa.Column("directory", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("copies", sa.Integer, nullable=False),
    sa.Column("created_at_us", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

_COLUMNS = (
    "number, lfn, guid, size_bytes, state, attempt, source, surl, reason, sentence, moved_bytes, submitted_at_us, "
    "ended_at_us"
)
_JOB = "job_id, owner, vo, destination, source, priority, submitted_at_us"


class NewFile(NamedTuple):
    """A file as it is submitted."""

    lfn: str
    guid: str
    size_bytes: int
    transfer: Transfer


class OpenFile(NamedTuple):
    """A file that has not ended, or has left something behind."""

    number: int
    job_id: str
    lfn: str
    guid: str
    size_bytes: int
    transfer: Transfer
    submitted_at_us: int
    ended_at_us: int


class Outcome(NamedTuple):
    """Files that ended alike."""

    source: str
    destination: str
    state: str
    reason: str
    files: int
    size_bytes: int
    attempts: int


def subscribe(connection: sa.Connection, wanted: Subscription, limit: int) -> None:
    """Keep a subscription. Again: nothing changes. Raises AlreadyExists(SUBSCRIPTION_ID_TAKEN),
    Exhausted(TOO_MANY_SUBSCRIPTIONS)."""
    for known in subscribed(connection):
        if known.subscription_id == wanted.subscription_id:
            if replace(known, created_at_us=0) != replace(wanted, created_at_us=0):
                raise AlreadyExists("SUBSCRIPTION_ID_TAKEN", "there is another subscription of this id; make a new one")
            return
    if run(connection, "SELECT COUNT(*) FROM subscriptions").scalar_one() >= limit:
        raise Exhausted("TOO_MANY_SUBSCRIPTIONS", f"there are {limit} subscriptions already; end one first")
    values = (
        wanted.subscription_id, wanted.owner, wanted.vo, wanted.directory, wanted.at, wanted.copies,
        wanted.created_at_us,
    )  # fmt: skip
    run(connection, "INSERT INTO subscriptions VALUES (?,?,?,?,?,?,?)", values)


def unsubscribe(connection: sa.Connection, subscription_id: str) -> None:
    """Forget a subscription."""
    run(connection, "DELETE FROM subscriptions WHERE id = ?", (subscription_id,))


def subscribed(connection: sa.Connection) -> list[Subscription]:
    """All subscriptions, oldest first."""
    return [Subscription(*row) for row in run(connection, "SELECT * FROM subscriptions ORDER BY created_at_us, id")]


def again(connection: sa.Connection, job_id: str, guids: Sequence[str]) -> None:
    """Forget what has ended of these files of a job, which may be added once more."""
    rows = [(job_id, guid) for guid in guids]
    run(connection, "DELETE FROM files WHERE job_id = ? AND guid = ? AND ended_at_us > 0 AND NOT touched", rows)


def add(connection: sa.Connection, job: Job, new: Sequence[NewFile]) -> list[tuple[int, NewFile]]:
    """Keep a job, or more files of it; what it has already is left out. The files kept, with their numbers. Raises
    AlreadyExists(JOB_ID_TAKEN)."""
    run(connection, f"INSERT INTO jobs ({_JOB}) VALUES (?,?,?,?,?,?,?) ON CONFLICT DO NOTHING", _job_row(job))
    known = job_of(connection, job.job_id)
    if known is None or (known.owner, known.destination) != (job.owner, job.destination):
        raise AlreadyExists(
            "JOB_ID_TAKEN", f"there is another transfer job {job.job_id}; submit under a new id", job_id=job.job_id
        )
    kept: list[tuple[int, NewFile]] = []
    for file in new:
        one = file.transfer
        ended_at_us = job.submitted_at_us if one.ended else 0
        done = run(
            connection,
            "INSERT INTO files (job_id, lfn, guid, size_bytes, state, attempt, source, surl, touched, avoid, reason, "
            "sentence, moved_bytes, submitted_at_us, ended_at_us) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,0,?,?) "
            "ON CONFLICT DO NOTHING",
            (
                job.job_id, file.lfn, file.guid, file.size_bytes, one.state.value, one.attempt, one.source, one.surl,
                one.touched, " ".join(one.avoid), one.reason, one.sentence, job.submitted_at_us, ended_at_us,
            ),
        )  # fmt: skip
        if done.rowcount:
            kept.append((int(done.lastrowid), file))
    return kept


def update(connection: sa.Connection, changed: Iterable[tuple[int, Transfer, int, int]]) -> None:
    """Keep (number, transfer, moved bytes, when it ended or 0)."""
    rows = [
        (
            one.state.value, one.attempt, one.source, one.surl, one.touched, " ".join(one.avoid), one.reason,
            one.sentence, moved_bytes, ended_at_us, number,
        )
        for number, one, moved_bytes, ended_at_us in changed
    ]  # fmt: skip
    if rows:
        run(
            connection,
            "UPDATE files SET state = ?, attempt = ?, source = ?, surl = ?, touched = ?, avoid = ?, reason = ?, "
            "sentence = ?, moved_bytes = ?, ended_at_us = ? WHERE number = ?",
            rows,
        )


def unfinished(connection: sa.Connection) -> tuple[dict[str, Job], list[OpenFile]]:
    """What a restarted agent goes on with, oldest first."""
    found = [
        OpenFile(
            row[0], row[1], row[2], row[3], row[4],
            Transfer(TransferState(row[5]), *row[6:9], bool(row[9]), tuple(row[10].split()), *row[11:13]), *row[13:15],
        )
        for row in run(
            connection,
            "SELECT number, job_id, lfn, guid, size_bytes, state, attempt, source, surl, touched, avoid, reason, "
            "sentence, submitted_at_us, ended_at_us FROM files WHERE ended_at_us = 0 OR touched ORDER BY number",
        )
    ]  # fmt: skip
    known: dict[str, Job] = {}
    for file in found:
        if file.job_id not in known and (job := job_of(connection, file.job_id)) is not None:
            known[file.job_id] = job
    return known, found


def job_of(connection: sa.Connection, job_id: str) -> Job | None:
    """A job by its id."""
    row = run(connection, f"SELECT {_JOB} FROM jobs WHERE job_id = ?", (job_id,)).first()
    return Job(*row) if row is not None else None


def require_job(connection: sa.Connection, job_id: str, owner: str | None) -> Job:
    """A job of this owner; None: of anybody. Raises NotFound(JOB_UNKNOWN)."""
    job = job_of(connection, job_id)
    if job is None or owner not in (None, job.owner):
        raise NotFound(
            "JOB_UNKNOWN",
            f"there is no transfer job {job_id[:64]!r} of yours here; list them with: grid transfer status",
        )
    return job


def page(connection: sa.Connection, job_id: str, after: int, limit: int) -> list[FileRecord]:
    """Files of a job in the order of their submission."""
    rows = run(
        connection,
        f"SELECT {_COLUMNS} FROM files WHERE job_id = ? AND number > ? ORDER BY number LIMIT ?",
        (job_id, after, limit),
    )
    return [FileRecord(*row[:4], TransferState(row[4]), *row[5:]) for row in rows]


def counts(connection: sa.Connection, job_id: str) -> tuple[dict[str, int], int, int]:
    """Of a job: files by state; bytes of all; bytes that have moved."""
    rows = run(
        connection,
        "SELECT state, COUNT(*), SUM(size_bytes), SUM(moved_bytes) FROM files WHERE job_id = ? GROUP BY state",
        (job_id,),
    ).fetchall()
    return {row[0]: row[1] for row in rows}, sum(row[2] for row in rows), sum(row[3] for row in rows)


def jobs_of(connection: sa.Connection, owner: str | None) -> list[Job]:
    """An owner's newest jobs; None: everybody's."""
    rows = run(
        connection,
        f"SELECT {_JOB} FROM jobs WHERE ? IS NULL OR owner = ? ORDER BY submitted_at_us DESC LIMIT ?",
        (owner, owner, PAGE),
    )
    return [Job(*row) for row in rows]


def outcomes(connection: sa.Connection, owner: str | None, since_us: int) -> list[Outcome]:
    """What has ended since then, by link and reason."""
    rows = run(
        connection,
        "SELECT f.source, j.destination, f.state, f.reason, COUNT(*), SUM(f.size_bytes), SUM(f.attempt) "
        "FROM files f JOIN jobs j ON j.job_id = f.job_id WHERE f.ended_at_us >= ? AND f.ended_at_us > 0 "
        "AND (? IS NULL OR j.owner = ?) GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
        (since_us, owner, owner),
    )
    return [Outcome(*row) for row in rows]


def forget(connection: sa.Connection, before_us: int) -> None:
    """Files that ended before, and jobs without files."""
    run(connection, "DELETE FROM files WHERE ended_at_us > 0 AND ended_at_us < ? AND NOT touched", (before_us,))
    run(
        connection,
        "DELETE FROM jobs WHERE submitted_at_us < ? "
        "AND NOT EXISTS (SELECT 1 FROM files WHERE files.job_id = jobs.job_id)",
        (before_us,),
    )


def _job_row(job: Job) -> tuple[object, ...]:
    return (job.job_id, job.owner, job.vo, job.destination, job.source, job.priority, job.submitted_at_us)
