"""Tables of the broker's store, and what a row of a job is in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from agents.broker import machine
from agents.broker.model import JobState, LogEvent

metadata = sa.MetaData()

submissions = sa.Table(
    "submissions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("submission_id", sa.Text, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("vo", sa.Text, nullable=False),
    sa.Column("jdl", sa.Text, nullable=False),
    sa.Column("at_us", sa.Integer, nullable=False),
    sa.Column("open", sa.Integer, nullable=False),
    sa.Column("uncopied", sa.Integer, nullable=False, server_default="0"),
    sa.UniqueConstraint("owner", "submission_id"),
    sa.Index("submissions_job", "job_id"),
    sa.Index("submissions_open", "vo", "open", sqlite_where=sa.text("open > 0")),
    # How many changes the copy at the successor lacks.
    sa.Index("submissions_uncopied", "id", sqlite_where=sa.text("uncopied > 0")),
)
descriptions = sa.Table(
    "descriptions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("submission", sa.Integer, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
clusters = sa.Table(
    "clusters",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("body", sa.Text, nullable=False),
)
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.Text, nullable=False, unique=True),
    sa.Column("submission", sa.Integer, nullable=False),
    sa.Column("description", sa.Integer, nullable=False),
    sa.Column("parameter", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("cluster", sa.Integer, nullable=False),
    sa.Column("state", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("ce", sa.Text, nullable=False),
    sa.Column("gatekeeper", sa.Text, nullable=False),
    sa.Column("sent", sa.Integer, nullable=False),
    sa.Column("cancelling", sa.Integer, nullable=False),
    sa.Column("purge", sa.Integer, nullable=False),
    sa.Column("shallow_left", sa.Integer, nullable=False),
    sa.Column("deep_left", sa.Integer, nullable=False),
    sa.Column("excluded", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("changed_at_us", sa.Integer, nullable=False),
    # Each index holds only the rows that someone looks for; a job that has ended is in none of the first five.
    sa.Index("jobs_waiting", "cluster", "id", sqlite_where=sa.text("state = 1")),
    sa.Index("jobs_ready", "owner", "gatekeeper", "id", sqlite_where=sa.text("state = 2")),
    sa.Index("jobs_cancelling", "owner", "gatekeeper", sqlite_where=sa.text("cancelling = 1")),
    sa.Index("jobs_at_ce", "owner", "gatekeeper", sqlite_where=sa.text("state IN (3, 4)")),
    sa.Index("jobs_unfinished", "owner", sqlite_where=sa.text("state < 5")),
    sa.Index("jobs_purge", "owner", "gatekeeper", sqlite_where=sa.text("state = 8 AND purge = 1")),
    sa.Index("jobs_submission", "submission"),
)
submission_files = sa.Table(
    "submission_files",
    metadata,
    sa.Column("submission", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("executable", sa.Integer, nullable=False),
    sa.Index("submission_files_sha256", "sha256"),
    sqlite_with_rowid=False,
)
files = sa.Table(
    "files",
    metadata,
    # Per owner: who knows a checksum does not thereby get another user's file into a job.
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("sha256", sa.Text, primary_key=True),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("used_at_us", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)
nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("job", sa.Integer, primary_key=True),
    sa.Column("submission", sa.Integer, nullable=False),
    sa.Column("failure", sa.Text, nullable=False),
    sa.Index("nodes_submission", "submission"),
)
dependencies = sa.Table(
    "dependencies",
    metadata,
    sa.Column("parent", sa.Integer, primary_key=True),
    sa.Column("child", sa.Integer, primary_key=True),
    sa.Index("dependencies_child", "child"),
    sqlite_with_rowid=False,
)
watches = sa.Table(
    "watches",
    metadata,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("gatekeeper", sa.Text, primary_key=True),
    sa.Column("sequence", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)
copies = sa.Table(
    "copies",
    metadata,
    # Submissions of another broker, whose successor this one is.
    sa.Column("broker", sa.Text, primary_key=True),
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
copy_files = sa.Table(
    "copy_files",
    metadata,
    sa.Column("broker", sa.Text, primary_key=True),
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("sha256", sa.Text, primary_key=True),
    sa.Index("copy_files_sha256", "sha256"),
    sqlite_with_rowid=False,
)
dropped_copies = sa.Table("dropped_copies", metadata, sa.Column("job_id", sa.Text, primary_key=True))
epochs = sa.Table(
    "epochs",
    metadata,
    # Of brokers from which this one has taken over: the highest that is over. Of itself: the one that it has begun.
    sa.Column("broker", sa.Text, primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
)
stores = sa.Table(
    "stores",
    metadata,
    # Of itself: what this store is called. Of a broker that has copies: in which store of its it keeps them.
    sa.Column("broker", sa.Text, primary_key=True),
    sa.Column("store", sa.Text, nullable=False),
)
blames = sa.Table(
    "blames",
    metadata,
    # What is held against CEs (blacklist.py), as it was at that time.
    sa.Column("ce", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("at_us", sa.Integer, nullable=False),
    sa.Column("failed", sa.Float, nullable=False),
    sa.Column("ended", sa.Float, nullable=False),
    sa.Column("listings", sa.Integer, nullable=False),
    sa.Column("cause", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)


def _with_dags(connection: sa.Connection) -> None:
    nodes.create(connection)
    dependencies.create(connection)


def _with_open_by_vo(connection: sa.Connection) -> None:
    connection.exec_driver_sql("CREATE INDEX submissions_open ON submissions (vo, open) WHERE open > 0")


def _with_copies(connection: sa.Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE submissions ADD COLUMN uncopied INTEGER NOT NULL DEFAULT 0")
    connection.exec_driver_sql("CREATE INDEX submissions_uncopied ON submissions (id) WHERE uncopied > 0")


MIGRATIONS = (_with_dags, _with_open_by_vo, _with_copies)

_CHUNK = 500


@dataclass(frozen=True, slots=True)
class LogLine:
    """An event for bookkeeping, of one job."""

    job_id: str
    at_us: int
    event: LogEvent


LogSink = Callable[[sa.Connection, Sequence[LogLine]], None]
"""Puts lines into the outbox, inside the caller's transaction."""


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job with what its row says beside the machine's state."""

    id: int
    job_id: str
    submission: int
    description: int
    parameter: str
    owner: str
    cluster: int
    job: machine.Job


@dataclass(frozen=True, slots=True)
class Change:
    """A job before and after; ``before`` is None for a new one."""

    owner: str
    job_id: str
    before: machine.Job | None
    before_cluster: int
    after: machine.Job
    after_cluster: int
    refused: bool = False
    cause: str = ""
    """Why its attempt at ``before.ce`` failed, if it did."""
    at_us: int = 0
    """When it happened, by the CE's clock if it happened there; 0: long ago."""


COLUMNS = (
    "id, job_id, submission, description, parameter, owner, cluster, state, attempt, ce, gatekeeper, sent, cancelling, "
    "purge, shallow_left, deep_left, excluded, reason"
)


_STATES = {int(state): state for state in JobState}


def job_row(row: Sequence[Any]) -> JobRow:
    values = tuple(row)
    return JobRow(
        *values[:7],
        machine.Job(
            _STATES[values[7]], values[8], values[9], values[10], bool(values[11]), bool(values[12]), bool(values[13]),
            values[14], values[15], tuple(values[16].split("\n")) if values[16] else (), values[17],
        ),
    )  # fmt: skip


def chunks(keys: Sequence) -> Iterable[tuple]:
    for start in range(0, len(keys), _CHUNK):
        yield tuple(keys[start : start + _CHUNK])


def marks(chunk: Sequence) -> str:
    return ",".join("?" * len(chunk))
