"""Copies of submissions: what a broker's successor needs to go on with its jobs, and the rows on both sides.

All functions with a connection run inside ``Store.write`` or ``Store.read`` of fabric/store.py.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

import sqlalchemy as sa

from agents.broker import dag, machine
from agents.broker import store as rows
from agents.broker.model import ENDED, JobState, JobTemplate, JobType, LogEvent, SandboxFile
from agents.broker.tables import COLUMNS, Change, JobRow, LogLine, LogSink, chunks, job_row, marks
from fabric.errors import InvalidRequest
from fabric.ids import unique_id

MAX_COPY_BYTES = 256 * 1024 * 1024
"""Of one submission, unpacked."""
MISSING_AFTER_S = 86_400
"""A job older than this that bookkeeping does not know may have been archived, so it is not run (again)."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A submission, and which of its jobs are to be cancelled."""

    submission: rows.Submission
    cancelled: tuple[str, ...] = ()


def encode(copy: Copy) -> bytes:
    """As it goes to the successor and lies there."""
    new = copy.submission
    body = {
        "owner": new.owner, "submission_id": new.submission_id, "jdl": new.jdl, "vo": new.vo, "at_us": new.at_us,
        "parent_id": new.parent_id, "job_ids": new.job_ids, "fqans": new.fqans, "type": new.template.type.value,
        "descriptions": [rows.encode_description(item) for item in new.template.descriptions],
        "parameters": new.template.parameters, "edges": new.template.edges,
        "files": [astuple(file) for file in new.files], "cancelled": copy.cancelled,
    }  # fmt: skip
    return zlib.compress(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(), 1)


def decode(data: bytes) -> Copy:
    """Raises InvalidRequest COPY_INVALID."""
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(data, MAX_COPY_BYTES)
        if not unpacker.eof:
            raise ValueError("it is cut off, or too large")
        body = json.loads(text)
        template = JobTemplate(
            JobType(body["type"]), tuple(rows.decode_description(item) for item in body["descriptions"]),
            tuple(body["parameters"]), tuple((int(parent), int(child)) for parent, child in body["edges"]),
        )  # fmt: skip
        if len(template) != len(body["job_ids"]):
            raise ValueError("it has not one id for each job")
        new = rows.Submission(
            body["owner"], body["submission_id"], body["jdl"], body["vo"], template,
            tuple(SandboxFile(*item) for item in body["files"]), body["parent_id"], tuple(body["job_ids"]),
            body["at_us"], tuple(body["fqans"]),
        )  # fmt: skip
        return Copy(new, tuple(body["cancelled"]))
    except (ValueError, TypeError, KeyError, AttributeError, zlib.error) as error:
        raise InvalidRequest(
            "COPY_INVALID", f"the copy of a submission cannot be read ({error}); brokers of one grid run one version"
        ) from None


# -- at the broker whose jobs they are ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pending:
    """A submission whose copy lacks something."""

    key: int
    uncopied: int
    copy: Copy


def pending(connection: sa.Connection, limit: int) -> list[Pending]:
    """The oldest submissions whose copies lack something."""
    found = connection.exec_driver_sql(
        "SELECT id, uncopied, owner, submission_id, job_id, type, vo, jdl, at_us FROM submissions "
        "WHERE uncopied > 0 ORDER BY id LIMIT ?",
        (limit,),
    ).all()
    return [_pending(connection, *row) for row in found]


def whole(connection: sa.Connection, keys: Sequence[int]) -> list[Copy]:
    """Submissions by the ids of their rows."""
    found = connection.exec_driver_sql(
        "SELECT id, uncopied, owner, submission_id, job_id, type, vo, jdl, at_us FROM submissions "
        f"WHERE id IN ({marks(keys)})",
        tuple(keys),
    ).all()
    return [_pending(connection, *row).copy for row in found]


def count_submissions(connection: sa.Connection) -> int:
    """Of this broker."""
    return int(connection.exec_driver_sql("SELECT count(*) FROM submissions").scalar_one())


def submission_ids(connection: sa.Connection) -> dict[str, int]:
    """By job id: the id of the row."""
    return {str(job_id): int(key) for job_id, key in connection.exec_driver_sql("SELECT job_id, id FROM submissions")}


def _pending(
    connection: sa.Connection,
    key: int,
    uncopied: int,
    owner: str,
    submission_id: str,
    parent_id: str,
    kind: str,
    vo: str,
    jdl: str,
    at_us: int,
) -> Pending:
    jobs = _jobs_of(connection, key)
    template = rows.template_of(connection, key, JobType(kind), jobs)
    (cluster,) = rows.load_clusters(connection, [jobs[0].cluster]).values()
    files = tuple(rows.load_files(connection, [key])[key].values())
    cancelled = tuple(row.job_id for row in jobs if row.job.cancelling or row.job.state is JobState.CANCELLED)
    submission = rows.Submission(
        owner, submission_id, jdl, vo, template, files, parent_id, tuple(row.job_id for row in jobs), at_us,
        cluster.fqans,
    )  # fmt: skip
    return Pending(key, uncopied, Copy(submission, cancelled))


def _jobs_of(connection: sa.Connection, key: int) -> list[JobRow]:
    found = connection.exec_driver_sql(f"SELECT {COLUMNS} FROM jobs WHERE submission = ? ORDER BY id", (key,))
    return [job_row(row) for row in found]


def copied(connection: sa.Connection, done: Sequence[Pending], dropped: Sequence[str]) -> None:
    """The successor has these; what has changed meanwhile is sent again."""
    if done:
        connection.exec_driver_sql(
            "UPDATE submissions SET uncopied = 0 WHERE id = ? AND uncopied = ?",
            [(item.key, item.uncopied) for item in done],
        )
    if dropped:
        connection.exec_driver_sql("DELETE FROM dropped_copies WHERE job_id = ?", [(key,) for key in dropped])


def dropped(connection: sa.Connection, limit: int) -> list[str]:
    """Submissions that are forgotten here, and not yet at the successor."""
    return [str(row[0]) for row in connection.exec_driver_sql("SELECT job_id FROM dropped_copies LIMIT ?", (limit,))]


def changed(connection: sa.Connection, job_ids: Sequence[str]) -> None:
    """The copies of these jobs' submissions lack something."""
    for chunk in chunks(job_ids):
        connection.exec_driver_sql(
            "UPDATE submissions SET uncopied = uncopied + 1 WHERE id IN "
            f"(SELECT submission FROM jobs WHERE job_id IN ({marks(chunk)}))",
            chunk,
        )


def all_changed(connection: sa.Connection) -> None:
    """Every submission goes to the successor once more."""
    connection.exec_driver_sql("UPDATE submissions SET uncopied = uncopied + 1")


def lacking(connection: sa.Connection, owner: str = "") -> int:
    """How many submissions (of one owner) have no copy that is complete."""
    return int(
        connection.exec_driver_sql(
            "SELECT count(*) FROM submissions WHERE uncopied > 0" + (" AND owner = ?" if owner else ""),
            (owner,) if owner else (),
        ).scalar_one()
    )


def at_store(connection: sa.Connection, broker: str, store: str) -> bool:
    """Whether `broker` keeps the copies where it did when they were sent; if not, it lacks every one from now on."""
    found = connection.exec_driver_sql("SELECT store FROM stores WHERE broker = ?", (broker,)).first()
    if found is not None and found[0] == store:
        return True
    connection.exec_driver_sql("INSERT OR REPLACE INTO stores (broker, store) VALUES (?,?)", (broker, store))
    all_changed(connection)
    return False


def own_store(connection: sa.Connection, broker: str) -> str:
    """What this store is called; it gets its name here."""
    name = unique_id()
    connection.exec_driver_sql("INSERT OR IGNORE INTO stores (broker, store) VALUES (?,?)", (broker, name))
    found = connection.exec_driver_sql("SELECT store FROM stores WHERE broker = ?", (broker,)).one()
    return str(found[0])


def forget_all(connection: sa.Connection, broker: str, epoch: int) -> int:
    """Everything was handed over: this broker has no jobs and nothing to tell of any, and may begin this epoch.

    Returns the number of the last event that is forgotten.
    """
    for table in (
        "jobs", "nodes", "dependencies", "descriptions", "submission_files", "submissions", "watches",
        "dropped_copies", "outbox",
    ):  # fmt: skip
        connection.exec_driver_sql(f"DELETE FROM {table}")
    set_epoch(connection, broker, epoch)
    return int(connection.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").scalar_one())


def epochs(connection: sa.Connection) -> dict[str, int]:
    """By broker; see the table."""
    found = connection.exec_driver_sql("SELECT broker, epoch FROM epochs")
    return {str(name): int(epoch) for name, epoch in found}


def set_epoch(connection: sa.Connection, broker: str, epoch: int) -> None:
    """Never goes back."""
    connection.exec_driver_sql(
        "INSERT INTO epochs (broker, epoch) VALUES (?,?) "
        "ON CONFLICT (broker) DO UPDATE SET epoch = max(epoch, excluded.epoch)",
        (broker, epoch),
    )


# -- at the successor --------------------------------------------------------------------------------------------------


def keep(connection: sa.Connection, broker: str, epoch: int, new: Sequence[Copy], unneeded: Sequence[str]) -> None:
    """Put copies in the place of older ones, and forget those that are not needed any more."""
    _drop(connection, broker, [*(item.submission.parent_id for item in new), *unneeded])
    if not new:
        return
    connection.exec_driver_sql(
        "INSERT INTO copies (broker, job_id, epoch, body) VALUES (?,?,?,?)",
        [(broker, item.submission.parent_id, epoch, encode(item)) for item in new],
    )
    files = {
        (broker, item.submission.parent_id, item.submission.owner, file.sha256)
        for item in new
        for file in item.submission.files
    }
    if files:
        connection.exec_driver_sql(
            "INSERT INTO copy_files (broker, job_id, owner, sha256) VALUES (?,?,?,?)", sorted(files)
        )


def _drop(connection: sa.Connection, broker: str, job_ids: Sequence[str]) -> None:
    for chunk in chunks(job_ids):
        for table in ("copies", "copy_files"):
            connection.exec_driver_sql(
                f"DELETE FROM {table} WHERE broker = ? AND job_id IN ({marks(chunk)})", (broker, *chunk)
            )


def kept(connection: sa.Connection, broker: str, over: int, limit: int) -> list[Copy]:
    """Copies of a broker's epochs that are over."""
    found = connection.exec_driver_sql(
        "SELECT body FROM copies WHERE broker = ? AND epoch <= ? ORDER BY job_id LIMIT ?", (broker, over, limit)
    )
    return [decode(bytes(row[0])) for row in found]


def count_kept(connection: sa.Connection) -> int:
    """Submissions of other brokers."""
    return int(connection.exec_driver_sql("SELECT count(*) FROM copies").scalar_one())


@dataclass(frozen=True, slots=True)
class Adopted:
    """What a takeover of submissions has changed."""

    submissions: int
    changes: tuple[Change, ...]


def adopt(
    connection: sa.Connection,
    broker: str,
    taken: Sequence[Copy],
    known: Mapping[str, machine.Job],
    registered: Collection[str],
    told: str,
    now_us: int,
    sink: LogSink,
) -> Adopted:
    """Make another broker's submissions this one's, in the states that bookkeeping knows; those that are already, pass.

    `known`: by job id; jobs of which nobody knows are left out. `registered`: at bookkeeping. `told`: what their
    histories say.
    """
    changes: list[Change] = []
    count = 0
    for copy in taken:
        found = _adopt(connection, copy, known, registered, told, now_us, sink)
        if found is not None:
            count += 1
            changes.extend(found)
    _drop(connection, broker, [copy.submission.parent_id for copy in taken])
    return Adopted(count, tuple(changes))


def _adopt(
    connection: sa.Connection,
    copy: Copy,
    known: Mapping[str, machine.Job],
    registered: Collection[str],
    told: str,
    now_us: int,
    sink: LogSink,
) -> list[Change] | None:
    new = copy.submission

    def unknown_only(connection: sa.Connection, lines: Sequence[LogLine]) -> None:
        sink(connection, [line for line in lines if line.job_id not in registered])

    if not rows.submit(connection, new, unknown_only, to_copy=True).changes:
        return None
    (key,) = connection.exec_driver_sql(
        "SELECT id FROM submissions WHERE owner = ? AND submission_id = ?", (new.owner, new.submission_id)
    ).one()
    adopted = [replace(row, job=_merged(row.job, known.get(row.job_id))) for row in _jobs_of(connection, key)]
    ended = {row.id: row.job for row in adopted if row.job.state in ENDED}
    going = [row for row in adopted if row.job.state not in ENDED]
    connection.exec_driver_sql(
        "UPDATE jobs SET state=?, attempt=?, ce=?, gatekeeper=?, sent=?, purge=?, reason=?, changed_at_us=? WHERE id=?",
        [
            (
                int(row.job.state), row.job.attempt, row.job.ce, row.job.gatekeeper, int(row.job.sent),
                int(row.job.purge), row.job.reason, new.at_us, row.id,
            )
            for row in adopted
        ],
    )  # fmt: skip
    connection.exec_driver_sql("UPDATE submissions SET open = open - ? WHERE id = ?", (len(ended), key))
    note = LogEvent("NOTE", 1, {"text": told})
    sink(connection, [LogLine(row.job_id, now_us, replace(note, attempt=row.job.attempt)) for row in going])
    changes = [Change(row.owner, row.job_id, None, 0, row.job, row.cluster) for row in going]
    changes += rows.step_rows(connection, dag.steps(connection, ended), now_us, sink)
    wanted: list[tuple[str, machine.Event]] = [(job_id, machine.CancelAsked()) for job_id in copy.cancelled]
    if now_us - new.at_us > MISSING_AFTER_S * 1_000_000:
        gone = machine.GivenUp(
            "HISTORY_MISSING", "its broker is gone and bookkeeping does not know it: it may have run"
        )
        wanted += [(row.job_id, gone) for row in going if row.job_id not in known]
    return changes + rows.step_ids(connection, wanted, now_us, sink)


def _merged(fresh: machine.Job, known: machine.Job | None) -> machine.Job:
    """`fresh`: as submitted; `known`: as bookkeeping has it. A blocked node of a DAG stays so."""
    if known is None:
        return fresh
    if known.state is JobState.BLOCKED:  # registered, no more
        return fresh._replace(attempt=known.attempt)
    return fresh._replace(
        state=known.state, attempt=known.attempt, ce=known.ce, gatekeeper=known.gatekeeper, sent=known.sent,
        purge=known.purge, reason=known.reason,
    )  # fmt: skip
