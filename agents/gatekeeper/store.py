"""The gatekeeper's rows: jobs, their output, sandbox files and the fences of purged jobs.

One row per job id: its newest attempt here. `sequence` of a row is that of its newest update, so `Watch` after a gap
needs
no table of updates: it is the rows with a greater sequence, in order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from agents.gatekeeper import gangs
from agents.gatekeeper.model import Closure, Hold, Job, State, Update, Usage
from fabric.errors import Exhausted

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("vo", sa.Text, nullable=False),
    sa.Column("account", sa.Text, nullable=False),
    sa.Column("uid", sa.Integer, nullable=False),
    sa.Column("gid", sa.Integer, nullable=False),
    sa.Column("accepted_at_us", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("run", sa.Integer, nullable=False),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("cancel_reason", sa.Text, nullable=False),
    sa.Column("returns", sa.Integer, nullable=False),
    sa.Column("started", sa.Integer, nullable=False),
    sa.Column("started_at_us", sa.Integer, nullable=False),
    sa.Column("ended_at_us", sa.Integer, nullable=False),
    sa.Column("changed_at_us", sa.Integer, nullable=False),
    sa.Column("exit_code", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("sentence", sa.Text, nullable=False),
    sa.Column("wall_s", sa.Float, nullable=False),
    sa.Column("user_s", sa.Float, nullable=False),
    sa.Column("system_s", sa.Float, nullable=False),
    sa.Column("max_rss_bytes", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("blocked_worker", sa.Text, nullable=False),
    sa.Column("blocked_attempt", sa.Integer, nullable=False),
    sa.Column("blocked_run", sa.Integer, nullable=False),
    sa.Column("description", sa.LargeBinary, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
    sa.Column("limit_wall_s", sa.Integer, nullable=False, server_default="0"),
    sa.Column("held", sa.Integer, nullable=False, server_default="0"),
    sa.Column("fqan", sa.Text, nullable=False, server_default=""),
    sa.Column("queue", sa.Text, nullable=False, server_default=""),
    sa.Column("slots", sa.Integer, nullable=False, server_default="1"),
    sa.Column("hosts", sa.Integer, nullable=False, server_default="1"),
    sa.Column("slots_per_host", sa.Integer, nullable=False, server_default="1"),
    sa.Column("parts", sa.Text, nullable=False, server_default=""),
    sa.Index("jobs_owner_sequence", "owner", "sequence"),
    sa.Index("jobs_state", "state", "ended_at_us"),
)
outputs = sa.Table(
    "outputs",
    metadata,
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("data", sa.LargeBinary),  # NULL: in the sandbox area
    sa.PrimaryKeyConstraint("job_id", "name"),
)
sandbox_files = sa.Table(
    "sandbox_files",
    metadata,
    sa.Column("sha256", sa.Text, primary_key=True),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("used_at_us", sa.Integer, nullable=False),
)
sandbox_uses = sa.Table(
    "sandbox_uses",
    metadata,
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.PrimaryKeyConstraint("sha256", "job_id"),
    sa.Index("sandbox_uses_job", "job_id"),
)
fences = sa.Table(
    "fences",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("purged_at_us", sa.Integer, nullable=False),
)
broker_fences = sa.Table(
    "broker_fences",
    metadata,
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("broker", sa.Text, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.PrimaryKeyConstraint("owner", "broker"),
)
closures = sa.Table(
    "closures",
    metadata,
    sa.Column("draining", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("begins_at_us", sa.Integer, nullable=False),
    sa.Column("ends_at_us", sa.Integer, nullable=False),
    sa.Column("queue", sa.Text, nullable=False, server_default=""),
)
tags = sa.Table(
    "tags",
    metadata,
    sa.Column("vo", sa.Text, nullable=False),
    sa.Column("tag", sa.Text, nullable=False),
    sa.PrimaryKeyConstraint("vo", "tag"),
)
counters = sa.Table("counters", metadata, sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.Integer))

_JOB_COLUMNS = [column.name for column in jobs.columns if column.name != "description"]
_FIXED = {
    "job_id", "owner", "vo", "account", "uid", "gid", "accepted_at_us", "priority", "limit_wall_s", "fqan", "queue",
    "slots", "hosts", "slots_per_host",
}  # fmt: skip
_CHANGING = [name for name in _JOB_COLUMNS if name not in _FIXED]
_SELECT = f"SELECT {', '.join(_JOB_COLUMNS)} FROM jobs"
_INSERT = (
    f"INSERT OR REPLACE INTO jobs ({', '.join(_JOB_COLUMNS)}, description) "
    f"VALUES ({', '.join('?' * (len(_JOB_COLUMNS) + 1))})"
)
_UPDATE = f"UPDATE jobs SET {', '.join(f'{name}=?' for name in _CHANGING)} WHERE job_id=?"
MAX_TAGS = 200
"""Of one VO."""
_PART = 500
"""Bound variables of one IN list."""


def _values(job: Job) -> dict[str, Any]:
    hold = job.blocked_by
    return {
        "job_id": job.job_id, "attempt": job.attempt, "owner": job.owner, "vo": job.vo, "account": job.account,
        "uid": job.uid, "gid": job.gid, "accepted_at_us": job.accepted_at_us, "state": job.state.value, "run": job.run,
        "worker": job.worker, "cancel_reason": job.cancel_reason, "returns": job.returns, "started": int(job.started),
        "started_at_us": job.started_at_us, "ended_at_us": job.ended_at_us, "changed_at_us": job.changed_at_us,
        "exit_code": job.exit_code, "reason": job.reason, "sentence": job.sentence, "wall_s": job.usage.wall_s,
        "user_s": job.usage.user_s, "system_s": job.usage.system_s, "max_rss_bytes": job.usage.max_rss_bytes,
        "sequence": job.sequence, "blocked_worker": hold.worker if hold else "",
        "blocked_attempt": hold.attempt if hold else 0, "blocked_run": hold.run if hold else 0,
        "priority": job.priority, "limit_wall_s": job.wall_s, "held": int(job.held),
        "fqan": job.fqan, "queue": job.queue, "slots": job.slots, "hosts": job.hosts,
        "slots_per_host": job.slots_per_host, "parts": gangs.dumps(job.parts),
    }  # fmt: skip


def _job(row: Any) -> Job:
    (
        job_id, attempt, owner, vo, account, uid, gid, accepted_at_us, state, run, worker, cancel_reason, returns,
        started,
        started_at_us, ended_at_us, changed_at_us, exit_code, reason, sentence, wall_s, user_s, system_s, max_rss_bytes,
        sequence, blocked_worker, blocked_attempt, blocked_run, priority, limit_wall_s, held, fqan, queue,
        slots, hosts, slots_per_host, parts,
    ) = row  # fmt: skip
    return Job(
        job_id, attempt, owner, vo, account, uid, gid, accepted_at_us, State(state), run, worker, cancel_reason,
        returns,
        bool(started), started_at_us, ended_at_us, changed_at_us, exit_code, reason, sentence,
        Usage(wall_s, user_s, system_s, max_rss_bytes), sequence,
        Hold(blocked_worker, blocked_attempt, blocked_run) if blocked_worker else None, priority, limit_wall_s,
        bool(held), fqan, queue, slots, hosts, slots_per_host, gangs.loads(parts),
    )  # fmt: skip


def update_of(job: Job) -> Update:
    """The newest update of a job, from its row."""
    return Update(
        job.sequence, job.job_id, job.attempt, job.owner, job.vo, job.state, job.changed_at_us, job.worker,
        job.exit_code,
        job.reason, job.sentence, job.usage, job.started, job.account, job.fqan, job.queue,
        job.slots,
    )  # fmt: skip


def insert_jobs(connection: sa.Connection, rows: Iterable[tuple[Job, bytes, Sequence[str]]]) -> None:
    """New jobs, as they are now, with their description and the hashes of their input sandbox; older attempts' rows and
    output go."""
    rows = list(rows)
    if not rows:
        return
    drop_output(connection, [job.job_id for job, _, _ in rows if job.attempt > 1])
    connection.exec_driver_sql(_INSERT, [(*_values(job).values(), description) for job, description, _ in rows])
    uses = [(sha256, job.job_id) for job, _, hashes in rows for sha256 in set(hashes)]
    if uses:
        connection.exec_driver_sql("INSERT OR IGNORE INTO sandbox_uses VALUES (?, ?)", uses)


def update_jobs(connection: sa.Connection, changed: Iterable[Job]) -> None:
    """Write the changing columns of these jobs."""
    rows = []
    for job in changed:
        values = _values(job)
        rows.append((*(values[name] for name in _CHANGING), job.job_id))
    if rows:
        connection.exec_driver_sql(_UPDATE, rows)


def add_queue_columns(connection: sa.Connection) -> None:
    """Migration 1 to 2: priorities, wall time limits, holds, and the primary FQAN."""
    for name in ("priority", "limit_wall_s", "held"):
        connection.exec_driver_sql(f"ALTER TABLE jobs ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0")
    connection.exec_driver_sql("ALTER TABLE jobs ADD COLUMN fqan TEXT NOT NULL DEFAULT ''")


def add_queues(connection: sa.Connection) -> None:
    """Migration 2 to 3: several queues."""
    for table in {"jobs", "closures"}.intersection(sa.inspect(connection).get_table_names()):
        connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN queue TEXT NOT NULL DEFAULT ''")


def add_gangs(connection: sa.Connection) -> None:
    """Migration 3 to 4: jobs of several slots."""
    for name in ("slots", "hosts"):
        connection.exec_driver_sql(f"ALTER TABLE jobs ADD COLUMN {name} INTEGER NOT NULL DEFAULT 1")
    connection.exec_driver_sql("ALTER TABLE jobs ADD COLUMN parts TEXT NOT NULL DEFAULT ''")


def add_slots_per_host(connection: sa.Connection) -> None:
    """Migration 4 to 5: gangs with several slots on each worker."""
    connection.exec_driver_sql("ALTER TABLE jobs ADD COLUMN slots_per_host INTEGER NOT NULL DEFAULT 1")


MIGRATIONS = (add_queue_columns, add_queues, add_gangs, add_slots_per_host)


def end_broker_epochs(connection: sa.Connection, owner: str, over: Iterable[tuple[str, int]]) -> None:
    """Remember until which epoch the brokers of this owner's jobs are not believed any more."""
    connection.exec_driver_sql(
        "INSERT INTO broker_fences (owner, broker, epoch) VALUES (?,?,?) ON CONFLICT (owner, broker) "
        "DO UPDATE SET epoch = max(epoch, excluded.epoch)",
        [(owner, broker, epoch) for broker, epoch in over],
    )


def load_broker_fences(connection: sa.Connection) -> dict[tuple[str, str], int]:
    """By (owner, broker): the highest epoch that is over."""
    found = connection.exec_driver_sql("SELECT owner, broker, epoch FROM broker_fences")
    return {(str(owner), str(broker)): int(epoch) for owner, broker, epoch in found}


def set_closures(connection: sa.Connection, by_queue: Mapping[str, Closure]) -> None:
    """Remember which queues are shut, and when."""
    connection.execute(closures.delete())
    for queue, closure in by_queue.items():
        connection.execute(closures.insert().values(**dataclasses.asdict(closure), queue=queue))


def load_closures(connection: sa.Connection) -> dict[str, Closure]:
    """As they were last set."""
    return {row.queue: Closure(bool(row[0]), row[1], row[2], row[3]) for row in connection.execute(closures.select())}


def change_tags(connection: sa.Connection, vo: str, add: Sequence[str], remove: Sequence[str]) -> None:
    """Software tags of a VO. Raises Exhausted TOO_MANY_TAGS, and then nothing has changed."""
    for tag in remove:
        connection.exec_driver_sql("DELETE FROM tags WHERE vo = ? AND tag = ?", (vo, tag))
    for tag in add:
        connection.exec_driver_sql("INSERT OR IGNORE INTO tags VALUES (?, ?)", (vo, tag))
    count = connection.exec_driver_sql("SELECT count(*) FROM tags WHERE vo = ?", (vo,)).scalar_one()
    if int(count) > MAX_TAGS:
        raise Exhausted("TOO_MANY_TAGS", f"{vo} has at most {MAX_TAGS} software tags here; remove old ones first")


def load_tags(connection: sa.Connection) -> dict[str, tuple[str, ...]]:
    """All tags by VO, in order."""
    found: dict[str, tuple[str, ...]] = {}
    for vo, tag in connection.exec_driver_sql("SELECT vo, tag FROM tags ORDER BY vo, tag"):
        found[vo] = (*found.get(vo, ()), tag)
    return found


def set_sequence(connection: sa.Connection, sequence: int) -> None:
    """Remember the last sequence given out: it never goes back, whatever is purged."""
    connection.exec_driver_sql("INSERT OR REPLACE INTO counters VALUES ('sequence', ?)", (sequence,))


def load(connection: sa.Connection) -> tuple[list[Job], dict[str, int], int]:
    """Live jobs in order of arrival, the attempt fences of all known jobs, and the last sequence."""
    live = [
        _job(row)
        for row in connection.exec_driver_sql(
            f"{_SELECT} WHERE state IN ('QUEUED', 'ASSIGNED', 'RUNNING') ORDER BY accepted_at_us, rowid"
        )
    ]
    attempts = {row[0]: row[1] for row in connection.exec_driver_sql("SELECT job_id, attempt FROM fences")}
    attempts |= {row[0]: row[1] for row in connection.exec_driver_sql("SELECT job_id, attempt FROM jobs")}
    sequence = connection.exec_driver_sql("SELECT value FROM counters WHERE name = 'sequence'").scalar()
    return live, attempts, int(sequence or 0)


def find_jobs(connection: sa.Connection, job_ids: Sequence[str]) -> dict[str, Job]:
    """The jobs of these ids that are here."""
    found: dict[str, Job] = {}
    for part in _parts(job_ids):
        marks = ",".join("?" * len(part))
        for row in connection.exec_driver_sql(f"{_SELECT} WHERE job_id IN ({marks})", tuple(part)):
            job = _job(row)
            found[job.job_id] = job
    return found


def descriptions(connection: sa.Connection, job_ids: Sequence[str]) -> dict[str, bytes]:
    """The descriptions of these jobs."""
    found: dict[str, bytes] = {}
    for part in _parts(job_ids):
        marks = ",".join("?" * len(part))
        statement = f"SELECT job_id, description FROM jobs WHERE job_id IN ({marks})"
        found |= {row[0]: row[1] for row in connection.exec_driver_sql(statement, tuple(part))}
    return found


def changed_after(connection: sa.Connection, owner: str, sequence: int, limit: int) -> list[Job]:
    """The owner's jobs that changed after a sequence, in order of change."""
    statement = f"{_SELECT} WHERE owner = ? AND sequence > ? ORDER BY sequence LIMIT ?"
    return [_job(row) for row in connection.exec_driver_sql(statement, (owner, sequence, limit))]


def put_outputs(connection: sa.Connection, rows: Sequence[tuple[str, str, int, str, bytes | None]]) -> None:
    """Output files: (job id, name, size, sha256, data or None when in the sandbox area)."""
    if not rows:
        return
    connection.exec_driver_sql("INSERT OR REPLACE INTO outputs VALUES (?, ?, ?, ?, ?)", list(rows))
    uses = [(sha256, job_id) for job_id, _, _, sha256, data in rows if data is None]
    if uses:
        connection.exec_driver_sql("INSERT OR IGNORE INTO sandbox_uses VALUES (?, ?)", uses)


def output_list(connection: sa.Connection, job_id: str) -> list[tuple[str, int, str, bool]]:
    """Name, size, sha256 and whether it lies in the sandbox area, of each output file of a job, by name."""
    statement = "SELECT name, size_bytes, sha256, data IS NULL FROM outputs WHERE job_id = ? ORDER BY name"
    return [(row[0], row[1], row[2], bool(row[3])) for row in connection.exec_driver_sql(statement, (job_id,))]


def output_data(connection: sa.Connection, job_id: str, name: str) -> bytes | None:
    """The bytes of an output file that is kept in the row."""
    statement = "SELECT data FROM outputs WHERE job_id = ? AND name = ?"
    return connection.exec_driver_sql(statement, (job_id, name)).scalar()


def drop_output(connection: sa.Connection, job_ids: Sequence[str]) -> None:
    """Forget output and sandbox uses of these jobs."""
    keys = [(job_id,) for job_id in job_ids]
    if keys:
        connection.exec_driver_sql("DELETE FROM outputs WHERE job_id = ?", keys)
        connection.exec_driver_sql("DELETE FROM sandbox_uses WHERE job_id = ?", keys)


def release_inputs(connection: sa.Connection, job_ids: Sequence[str]) -> None:
    """Ended jobs need their input sandbox no more. Called before their output is put, but for parts of gangs that ended
    before."""
    keys = [(job_id,) for job_id in job_ids]
    if keys:
        connection.exec_driver_sql(
            "DELETE FROM sandbox_uses WHERE job_id = ? AND NOT EXISTS (SELECT 1 FROM outputs "
            "WHERE outputs.job_id = sandbox_uses.job_id AND outputs.sha256 = sandbox_uses.sha256)",
            keys,
        )


def purge(connection: sa.Connection, job_ids: Sequence[str], now_us: int) -> None:
    """Rows and output go; the attempt number stays as a fence."""
    keys = [(now_us, job_id) for job_id in job_ids]
    if not keys:
        return
    connection.exec_driver_sql(
        "INSERT OR REPLACE INTO fences SELECT job_id, attempt, ? FROM jobs WHERE job_id = ?", keys
    )
    drop_output(connection, job_ids)
    connection.exec_driver_sql("DELETE FROM jobs WHERE job_id = ?", [(job_id,) for job_id in job_ids])


def forget_fences(connection: sa.Connection, before_us: int, limit: int = 10_000) -> list[str]:
    """Drop old fences; returns whose."""
    statement = "SELECT job_id FROM fences WHERE purged_at_us < ? LIMIT ?"
    old = [row[0] for row in connection.exec_driver_sql(statement, (before_us, limit))]
    if old:
        connection.exec_driver_sql("DELETE FROM fences WHERE job_id = ?", [(job_id,) for job_id in old])
    return old


def ended_before(connection: sa.Connection, before_us: int, limit: int = 1000) -> list[str]:
    """Ended jobs that nobody fetched in time."""
    statement = "SELECT job_id FROM jobs WHERE state IN ('DONE', 'FAILED', 'CANCELLED') AND ended_at_us < ? LIMIT ?"
    return [row[0] for row in connection.exec_driver_sql(statement, (before_us, limit))]


def owners(connection: sa.Connection) -> set[str]:
    """Everybody who has a job here, in whatever state."""
    return {row[0] for row in connection.exec_driver_sql("SELECT DISTINCT owner FROM jobs")}


def job_count(connection: sa.Connection) -> int:
    """Rows, in whatever state."""
    return int(connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar_one())


# ---- sandbox files


def sandbox_totals(connection: sa.Connection) -> tuple[int, int]:
    """(files, bytes) of the sandbox area."""
    row = connection.exec_driver_sql("SELECT count(*), coalesce(sum(size_bytes), 0) FROM sandbox_files").one()
    return int(row[0]), int(row[1])


def sandbox_put(connection: sa.Connection, sha256: str, size_bytes: int, now_us: int) -> bool:
    """Note a file that is completely on disk; True if it is new."""
    cursor = connection.exec_driver_sql(
        "INSERT OR IGNORE INTO sandbox_files VALUES (?, ?, ?)", (sha256, size_bytes, now_us)
    )
    if cursor.rowcount:
        return True
    sandbox_touch(connection, [sha256], now_us)
    return False


def sandbox_touch(connection: sa.Connection, hashes: Sequence[str], now_us: int) -> None:
    """These files were wanted now: the cleaner leaves them for a while."""
    if hashes:
        connection.exec_driver_sql(
            "UPDATE sandbox_files SET used_at_us = ? WHERE sha256 = ?", [(now_us, sha256) for sha256 in hashes]
        )


def sandbox_known(connection: sa.Connection, hashes: Sequence[str]) -> set[str]:
    """Which of these are here."""
    found: set[str] = set()
    for part in _parts(hashes):
        marks = ",".join("?" * len(part))
        statement = f"SELECT sha256 FROM sandbox_files WHERE sha256 IN ({marks})"
        found |= {row[0] for row in connection.exec_driver_sql(statement, tuple(part))}
    return found


def sandbox_all(connection: sa.Connection) -> set[str]:
    """Every file that should be on disk."""
    return {row[0] for row in connection.exec_driver_sql("SELECT sha256 FROM sandbox_files")}


def sandbox_take_unused(connection: sa.Connection, before_us: int, limit: int) -> list[tuple[str, int]]:
    """Forget files that no job uses and nobody wanted since; returns (sha256, size). The caller unlinks them."""
    rows = connection.exec_driver_sql(
        "SELECT sha256, size_bytes FROM sandbox_files WHERE used_at_us < ? "
        "AND NOT EXISTS (SELECT 1 FROM sandbox_uses u WHERE u.sha256 = sandbox_files.sha256) "
        "ORDER BY used_at_us LIMIT ?",
        (before_us, limit),
    )
    unused = [(row[0], int(row[1])) for row in rows]
    if unused:
        connection.exec_driver_sql("DELETE FROM sandbox_files WHERE sha256 = ?", [(sha256,) for sha256, _ in unused])
    return unused


def sandbox_drop(connection: sa.Connection, hashes: Sequence[str]) -> None:
    """Forget files that are not on disk."""
    if hashes:
        connection.exec_driver_sql("DELETE FROM sandbox_files WHERE sha256 = ?", [(sha256,) for sha256 in hashes])


def _parts(items: Sequence[str]) -> Iterable[Sequence[str]]:
    for start in range(0, len(items), _PART):
        yield items[start : start + _PART]
