"""The tables of the bookkeeping store, and what brings older ones up to date."""

from __future__ import annotations

import sqlalchemy as sa

from fabric.store import run

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("job_id", sa.Text, nullable=False, unique=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("vo", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("parent", sa.Text, nullable=False),
    sa.Column("is_parent", sa.Integer, nullable=False),
    sa.Column("state", sa.Integer, nullable=False),
    sa.Column("state_rank", sa.BigInteger, nullable=False),
    sa.Column("changed_at_us", sa.BigInteger, nullable=False),
    sa.Column("submitted_at_us", sa.BigInteger, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("ce", sa.Text, nullable=False),
    sa.Column("ce_rank", sa.BigInteger, nullable=False),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("worker_rank", sa.BigInteger, nullable=False),
    sa.Column("exit_code", sa.Text, nullable=False),
    sa.Column("exit_rank", sa.BigInteger, nullable=False),
    sa.Column("wall_s", sa.Float, nullable=False),
    sa.Column("cpu_s", sa.Float, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("reason_rank", sa.BigInteger, nullable=False),
    sa.Column("started_at_us", sa.BigInteger, nullable=False),
    sa.Index("jobs_owner", "owner", "id"),
    sa.Index("jobs_parent", "parent", "id"),
    sa.Index("jobs_ce", "ce", "id"),
    sa.Index("jobs_state", "state", "id"),
    sa.Index("jobs_submitted", "submitted_at_us"),
    sa.Index("jobs_owner_state", "owner", "state", "id"),
    sa.Index("jobs_vo", "vo", "id"),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("source", sa.Integer, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("job", sa.BigInteger, nullable=False),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("type", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("fields", sa.Text, nullable=False),
    sa.Index("events_job", "job"),
    sqlite_with_rowid=False,
)
sources = sa.Table(
    "sources",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
)
parents = sa.Table(
    "parents",
    metadata,
    sa.Column("parent", sa.Text, primary_key=True),
    sa.Column("state", sa.Integer, primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)
usage = sa.Table(
    "usage",
    metadata,
    sa.Column("source", sa.Integer, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("vo", sa.Text, nullable=False),
    sa.Column("fqan", sa.Text, nullable=False),
    sa.Column("site", sa.Text, nullable=False),
    sa.Column("ce", sa.Text, nullable=False),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("account", sa.Text, nullable=False),
    sa.Column("local_id", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("exit_code", sa.Text, nullable=False),
    sa.Column("started_at_us", sa.BigInteger, nullable=False),
    sa.Column("ended_at_us", sa.BigInteger, nullable=False),
    sa.Column("wall_s", sa.Float, nullable=False),
    sa.Column("user_s", sa.Float, nullable=False),
    sa.Column("system_s", sa.Float, nullable=False),
    sa.Column("memory_bytes", sa.BigInteger, nullable=False),
    sa.Column("processors", sa.Integer, nullable=False),
    sa.Index("usage_ended", "ended_at_us"),
    sa.Index("usage_job", "job_id"),
    sqlite_with_rowid=False,
)
brokers = sa.Table(
    "brokers",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("taken_by", sa.Text, nullable=False),
)

leases = sa.Table(
    "leases",
    metadata,
    # After how long without a word of a broker its successor may take over by itself.
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("lease_s", sa.Float, nullable=False),
)


def _with_starts(connection: sa.Connection) -> None:
    run(connection, "ALTER TABLE jobs ADD COLUMN started_at_us BIGINT NOT NULL DEFAULT 0")
    run(connection, "CREATE INDEX jobs_submitted ON jobs (submitted_at_us)")


def _with_pages(connection: sa.Connection) -> None:
    run(connection, "CREATE INDEX jobs_owner_state ON jobs (owner, state, id)")
    run(connection, "CREATE INDEX jobs_vo ON jobs (vo, id)")


MIGRATIONS = (_with_starts, _with_pages)
