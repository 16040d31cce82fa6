"""Rows of the broker's store. All functions run inside ``Store.write`` or ``Store.read`` of fabric/store.py.

The rows are the truth: a batch of events is read, stepped by ``machine``, and written with its log lines in one
transaction. What an agent keeps in memory are counts, made again from here at every start.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa

from agents.broker import machine
from agents.broker.model import (
    ENDED,
    Cluster,
    JobDescription,
    JobState,
    JobTemplate,
    JobType,
    Limits,
    LogEvent,
    NodeFailure,
    OutputData,
    SandboxFile,
)

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
    sa.UniqueConstraint("owner", "submission_id"),
    sa.Index("submissions_job", "job_id"),
    sa.Index("submissions_open", "vo", "open", sqlite_where=sa.text("open > 0")),
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


def _with_dags(connection: sa.Connection) -> None:
    nodes.create(connection)
    dependencies.create(connection)


def _with_open_by_vo(connection: sa.Connection) -> None:
    connection.exec_driver_sql("CREATE INDEX submissions_open ON submissions (vo, open) WHERE open > 0")


MIGRATIONS = (_with_dags, _with_open_by_vo)

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


_COLUMNS = (
    "id, job_id, submission, description, parameter, owner, cluster, state, attempt, ce, gatekeeper, sent, cancelling, "
    "purge, shallow_left, deep_left, excluded, reason"
)


_STATES = {int(state): state for state in JobState}


def _job_row(row: Sequence[Any]) -> JobRow:
    values = tuple(row)
    return JobRow(
        *values[:7],
        machine.Job(
            _STATES[values[7]], values[8], values[9], values[10], bool(values[11]), bool(values[12]), bool(values[13]),
            values[14], values[15], tuple(values[16].split("\n")) if values[16] else (), values[17],
        ),
    )  # fmt: skip


# -- descriptions ------------------------------------------------------------------------------------------------------


def encode_description(description: JobDescription) -> str:
    body = asdict(description)
    body["node_failure"] = description.node_failure.value
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def decode_description(text: str) -> JobDescription:
    body = json.loads(text)
    body["limits"] = Limits(**body["limits"])
    body["node_failure"] = NodeFailure(body.get("node_failure", "stop"))
    body["output_data"] = tuple(OutputData(**item) for item in body["output_data"])
    for name in ("environment", "extra"):
        body[name] = tuple((key, value) for key, value in body[name])
    for name in ("arguments", "input_sandbox", "output_sandbox", "input_data"):
        body[name] = tuple(body[name])
    return JobDescription(**body)


def cluster_id(connection: sa.Connection, cluster: Cluster) -> int:
    """The id of a cluster, made if there is none like it yet."""
    body = json.dumps(
        {name: value for name, value in asdict(cluster).items() if name != "id"}, ensure_ascii=False, sort_keys=True
    )
    key = hashlib.sha256(body.encode()).hexdigest()
    row = connection.exec_driver_sql("SELECT id FROM clusters WHERE key = ?", (key,)).first()
    if row is not None:
        return int(row[0])
    result = connection.exec_driver_sql("INSERT INTO clusters (key, body) VALUES (?, ?)", (key, body))
    return int(result.lastrowid or 0)


def load_clusters(connection: sa.Connection, ids: Iterable[int]) -> dict[int, Cluster]:
    """Clusters by id."""
    found: dict[int, Cluster] = {}
    for chunk in _chunks(list(ids)):
        rows = connection.exec_driver_sql(f"SELECT id, body FROM clusters WHERE id IN ({_marks(chunk)})", chunk)
        for key, text in rows:
            body = json.loads(text)
            found[int(key)] = Cluster(
                int(key), body["requirements"], body["rank"], body["vo"], body["owner"], tuple(body["input_data"]),
                tuple((name, value) for name, value in body["extra"]), tuple(body["excluded"]),
                tuple(body.get("fqans", ())), body.get("fuzzy_rank", False), body.get("expires_at_s", 0),
            )  # fmt: skip
    return found


def _chunks(keys: Sequence) -> Iterable[tuple]:
    for start in range(0, len(keys), _CHUNK):
        yield tuple(keys[start : start + _CHUNK])


def _marks(chunk: Sequence) -> str:
    return ",".join("?" * len(chunk))


# -- submission --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submission:
    """Everything that one Submit makes durable."""

    owner: str
    submission_id: str
    jdl: str
    vo: str
    template: JobTemplate
    files: tuple[SandboxFile, ...]
    parent_id: str
    """Of the parametric job or collection; of the job itself if there is only that."""
    job_ids: tuple[str, ...]
    at_us: int
    fqans: tuple[str, ...] = ()
    """The owner's groups and roles in `vo`, sorted."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """The answer to a submission, the first time or repeated."""

    job_id: str
    children: tuple[str, ...]
    changes: tuple[Change, ...] = ()


def submit(connection: sa.Connection, new: Submission, sink: LogSink) -> Submitted:
    """Store every job; a submission id seen before gives the first answer again."""
    earlier = _earlier(connection, new)
    if earlier is not None:
        return earlier
    template = new.template
    result = connection.exec_driver_sql(
        "INSERT INTO submissions (owner, submission_id, job_id, type, vo, jdl, at_us, open) VALUES (?,?,?,?,?,?,?,?)",
        (
            new.owner,
            new.submission_id,
            new.parent_id,
            template.type.value,
            new.vo,
            new.jdl,
            new.at_us,
            len(new.job_ids),
        ),
    )
    key = int(result.lastrowid or 0)
    _store_files(connection, key, new)
    description_ids = [
        int(
            connection.exec_driver_sql(
                "INSERT INTO descriptions (submission, body) VALUES (?,?)", (key, encode_description(item))
            ).lastrowid
            or 0
        )
        for item in template.descriptions
    ]
    changes: list[Change] = []
    lines: list[LogLine] = []
    rows: list[tuple[object, ...]] = []
    is_single = template.type is JobType.NORMAL
    if not is_single:
        lines.append(LogLine(new.parent_id, new.at_us, _registered(new, template.descriptions[0].name, "", len(rows))))
    cluster_ids: dict[Cluster, int] = {}
    waits = {child for _, child in template.edges}
    marked = [tuple(_SEEN_BY_BROKER.intersection(item.marked())) for item in template.descriptions]
    for number, (job_id, (index, parameter)) in enumerate(zip(new.job_ids, template.parts(), strict=True)):
        base = template.descriptions[index]
        description = base.with_parameter(parameter, marked[index]) if parameter else base
        wanted = Cluster.of(description, new.vo, new.owner, new.fqans)
        cluster = cluster_ids.get(wanted)
        if cluster is None:
            cluster = cluster_ids[wanted] = cluster_id(connection, wanted)
        state = JobState.BLOCKED if number in waits else JobState.WAITING
        job = machine.Job(state, shallow_left=max(0, base.shallow_retry_count), deep_left=base.retry_count)
        rows.append(
            (
                job_id, key, description_ids[index], parameter, new.owner, cluster, int(state), 1, "", "", 0, 0, 0,
                job.shallow_left, job.deep_left, "", "", new.at_us,
            )
        )  # fmt: skip
        name = description.name if is_single or not parameter else (description.name or parameter)
        lines.append(LogLine(job_id, new.at_us, _registered(new, name, "" if is_single else new.parent_id, None)))
        if state is JobState.WAITING:
            lines.append(LogLine(job_id, new.at_us + 1, _ENQUEUED))
        changes.append(Change(new.owner, job_id, None, 0, job, cluster))
    connection.exec_driver_sql(
        "INSERT INTO jobs (job_id, submission, description, parameter, owner, cluster, state, attempt, ce, gatekeeper, "
        "sent, cancelling, purge, shallow_left, deep_left, excluded, reason, changed_at_us) "
        "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        rows,
    )
    if template.type is JobType.DAG:
        _store_graph(connection, key, template)
    sink(connection, lines)
    return Submitted(new.parent_id, () if is_single else new.job_ids, tuple(changes))


def _store_graph(connection: sa.Connection, key: int, template: JobTemplate) -> None:
    ids = [
        int(row[0]) for row in connection.exec_driver_sql("SELECT id FROM jobs WHERE submission=? ORDER BY id", (key,))
    ]
    connection.exec_driver_sql(
        "INSERT INTO nodes (job, submission, failure) VALUES (?,?,?)",
        [(job, key, item.node_failure.value) for job, item in zip(ids, template.descriptions, strict=True)],
    )
    if template.edges:
        connection.exec_driver_sql(
            "INSERT INTO dependencies (parent, child) VALUES (?,?)",
            [(ids[parent], ids[child]) for parent, child in template.edges],
        )


_ENQUEUED = LogEvent("ENQUEUED", 1)


_SEEN_BY_BROKER = frozenset({"requirements", "rank", "name", "input_data", "extra"})
"""Fields of a description that decide what a job matches and is called."""


def _registered(new: Submission, name: str, parent: str, count: int | None) -> LogEvent:
    fields = {"owner": new.owner, "vo": new.vo}
    if name:
        fields["name"] = name
    if parent:
        fields["parent"] = parent
    if count is not None:
        fields["type"] = new.template.type.value
        fields["jobs"] = str(len(new.job_ids))
    return LogEvent("REGISTERED", 1, fields)


def _earlier(connection: sa.Connection, new: Submission) -> Submitted | None:
    row = connection.exec_driver_sql(
        "SELECT id, job_id, type FROM submissions WHERE owner = ? AND submission_id = ?", (new.owner, new.submission_id)
    ).first()
    if row is None:
        return None
    if row[2] == JobType.NORMAL.value:
        return Submitted(str(row[1]), ())
    found = connection.exec_driver_sql("SELECT job_id FROM jobs WHERE submission = ? ORDER BY id", (row[0],))
    return Submitted(str(row[1]), tuple(str(item[0]) for item in found))


def _store_files(connection: sa.Connection, key: int, new: Submission) -> None:
    if not new.files:
        return
    connection.exec_driver_sql(
        "INSERT INTO submission_files (submission, name, sha256, size_bytes, executable) VALUES (?,?,?,?,?)",
        [(key, item.name, item.sha256, item.size_bytes, int(item.executable)) for item in new.files],
    )
    connection.exec_driver_sql(
        "UPDATE files SET used_at_us = ? WHERE owner = ? AND sha256 = ?",
        [(new.at_us, new.owner, item.sha256) for item in new.files],
    )


# -- stepping ----------------------------------------------------------------------------------------------------------


def load_jobs(connection: sa.Connection, job_ids: Sequence[str]) -> dict[str, JobRow]:
    """Jobs by their ids; unknown ids are left out."""
    found: dict[str, JobRow] = {}
    for chunk in _chunks(job_ids):
        for row in connection.exec_driver_sql(f"SELECT {_COLUMNS} FROM jobs WHERE job_id IN ({_marks(chunk)})", chunk):
            found[str(row[1])] = _job_row(row)
    return found


def expand(connection: sa.Connection, job_ids: Sequence[str]) -> list[str]:
    """Job ids with parents replaced by their children, in order; unknown ids stay."""
    parents: dict[str, list[str]] = {}
    for chunk in _chunks(job_ids):
        rows = connection.exec_driver_sql(
            "SELECT s.job_id, j.job_id FROM submissions s JOIN jobs j ON j.submission = s.id "
            f"WHERE s.type != 'normal' AND s.job_id IN ({_marks(chunk)}) ORDER BY j.id",
            chunk,
        )
        for parent, child in rows:
            parents.setdefault(str(parent), []).append(str(child))
    return [item for job_id in job_ids for item in parents.get(job_id, [job_id])]


Steps = Iterable[tuple[JobRow, Sequence[machine.Event]]]
"""Events of jobs, in order."""


def step_rows(connection: sa.Connection, rows: Steps, now_us: int, sink: LogSink) -> list[Change]:
    """Put events to jobs, in order; write what changed, and log it. Changes and refused events are returned.

    What the end of a node means to the others of its DAG is done in the same transaction.
    """
    changes: list[Change] = []
    while ended := _step_rows(connection, rows, now_us, sink, changes):
        rows = _dag_steps(connection, ended)
    return changes


def _step_rows(
    connection: sa.Connection, rows: Steps, now_us: int, sink: LogSink, changes: list[Change]
) -> dict[int, machine.Job]:
    """The jobs that have ended now, by the ids of their rows."""
    ended: dict[int, machine.Job] = {}
    lines: list[LogLine] = []
    updates: list[tuple[object, ...]] = []
    closed: dict[int, int] = {}
    memo: dict[tuple[int, tuple[str, ...]], int] = {}
    for row, events in rows:
        job = row.job
        refused = False
        for event in events:
            step = machine.step(job, event)
            refused |= step.refused
            job = step.job
            lines.extend(LogLine(row.job_id, now_us, item) for item in step.log)
        if job == row.job:
            if refused:
                changes.append(Change(row.owner, row.job_id, row.job, row.cluster, job, row.cluster, True))
            continue
        cluster = row.cluster
        if job.excluded != row.job.excluded:
            cluster = _excluding(connection, cluster, job.excluded, memo)
        if job.state in ENDED and row.job.state not in ENDED:
            closed[row.submission] = closed.get(row.submission, 0) + 1
            ended[row.id] = job
        updates.append(
            (
                int(job.state), job.attempt, job.ce, job.gatekeeper, int(job.sent), int(job.cancelling), int(job.purge),
                job.shallow_left, job.deep_left, "\n".join(job.excluded), job.reason, now_us, cluster, row.id,
            )
        )  # fmt: skip
        changes.append(Change(row.owner, row.job_id, row.job, row.cluster, job, cluster, refused))
    if updates:
        connection.exec_driver_sql(
            "UPDATE jobs SET state=?, attempt=?, ce=?, gatekeeper=?, sent=?, cancelling=?, purge=?, shallow_left=?, "
            "deep_left=?, excluded=?, reason=?, changed_at_us=?, cluster=? WHERE id=?",
            updates,
        )
    if closed:
        connection.exec_driver_sql(
            "UPDATE submissions SET open = open - ? WHERE id = ?", [(count, key) for key, count in closed.items()]
        )
    if lines:
        sink(connection, lines)
    return ended


def _dag_steps(
    connection: sa.Connection, ended: dict[int, machine.Job]
) -> list[tuple[JobRow, Sequence[machine.Event]]]:
    """What follows for other nodes from the end of these jobs; nothing for jobs that are in no DAG."""
    found: list[tuple[int, int, NodeFailure]] = []
    for chunk in _chunks(list(ended)):
        rows = connection.exec_driver_sql(
            f"SELECT job, submission, failure FROM nodes WHERE job IN ({_marks(chunk)})", chunk
        )
        found.extend((int(job), int(submission), NodeFailure(failure)) for job, submission, failure in rows)
    steps: dict[int, tuple[JobRow, machine.Event]] = {}
    for key, submission, failure in found:
        job = ended[key]
        if job.reason == PARENT_FAILED:
            continue  # said of everything below it already
        if job.ended_well or failure is NodeFailure.IGNORE:
            for row in _released(connection, key):
                steps.setdefault(row.id, (row, machine.Released()))
        elif failure is NodeFailure.ABORT:
            for row in _unfinished_in(connection, submission):
                sentence = f"node {_job_id(connection, key)} has failed, and the DAG is aborted then"
                given_up = machine.GivenUp("DAG_ABORTED", sentence) if row.job.nowhere else machine.CancelAsked()
                steps[row.id] = (row, given_up)
        else:
            cancelled = job.state is JobState.CANCELLED
            sentence = f"node {_job_id(connection, key)}, on which this one depends, is {job.state.name} {job.reason}"
            for row in _below(connection, key):
                event = machine.CancelAsked() if cancelled else machine.GivenUp(PARENT_FAILED, sentence.rstrip())
                steps[row.id] = (row, event)
    return [(row, (event,)) for row, event in steps.values()]


PARENT_FAILED = "PARENT_FAILED"
"""Reason of a node that could never run."""


def _job_id(connection: sa.Connection, key: int) -> str:
    return str(connection.exec_driver_sql("SELECT job_id FROM jobs WHERE id = ?", (key,)).scalar_one())


def _released(connection: sa.Connection, parent: int) -> list[JobRow]:
    """Blocked children all of whose parents have ended well, or as if."""
    rows = connection.exec_driver_sql(
        f"SELECT {_COLUMNS} FROM jobs WHERE state = 0 AND id IN (SELECT child FROM dependencies WHERE parent = ?) "
        "AND NOT EXISTS (SELECT 1 FROM dependencies d JOIN jobs p ON p.id = d.parent JOIN nodes n ON n.job = p.id "
        "WHERE d.child = jobs.id AND NOT (p.state IN (5, 8) AND p.reason = '') "
        "AND NOT (n.failure = 'ignore' AND p.state >= 5 AND p.reason != ?))",
        (parent, PARENT_FAILED),
    )
    return [_job_row(row) for row in rows]


def _below(connection: sa.Connection, parent: int) -> list[JobRow]:
    """Everything blocked that depends on a node, at any distance."""
    rows = connection.exec_driver_sql(
        "WITH RECURSIVE below(id) AS (SELECT child FROM dependencies WHERE parent = ? UNION "
        "SELECT d.child FROM dependencies d JOIN below b ON d.parent = b.id) "
        f"SELECT {_COLUMNS} FROM jobs WHERE state = 0 AND id IN (SELECT id FROM below)",
        (parent,),
    )
    return [_job_row(row) for row in rows]


def _unfinished_in(connection: sa.Connection, submission: int) -> list[JobRow]:
    rows = connection.exec_driver_sql(
        f"SELECT {_COLUMNS} FROM jobs WHERE submission = ? AND state < 5 AND cancelling = 0", (submission,)
    )
    return [_job_row(row) for row in rows]


@dataclass(frozen=True, slots=True)
class Rest:
    """What of a submission has not ended well."""

    template: JobTemplate
    vo: str
    jdl: str
    files: dict[str, SandboxFile]
    unfinished: int
    """Jobs that are still under way."""


def rest_of(connection: sa.Connection, owner: str, job_id: str) -> Rest | None:
    """What a rescue has to run again; None if the owner has no such submission."""
    row = connection.exec_driver_sql(
        "SELECT id, type, vo, jdl FROM submissions WHERE job_id = ? AND owner = ?", (job_id, owner)
    ).first()
    if row is None:
        return None
    key, kind = int(row[0]), JobType(row[1])
    rows = connection.exec_driver_sql(f"SELECT {_COLUMNS} FROM jobs WHERE submission = ? ORDER BY id", (key,))
    jobs = [_job_row(item) for item in rows]
    left = [item for item in jobs if not item.job.ended_well]
    unfinished = sum(item.job.state not in ENDED for item in jobs)
    loaded = load_descriptions(connection, {item.description for item in left})
    if kind is JobType.PARAMETRIC:
        template = JobTemplate(kind, tuple(loaded.values()), tuple(item.parameter for item in left))
    else:
        numbers = {item.id: number for number, item in enumerate(left)}
        pairs = connection.exec_driver_sql(
            "SELECT parent, child FROM dependencies WHERE child IN (SELECT job FROM nodes WHERE submission = ?)", (key,)
        )
        edges = [(numbers[p], numbers[c]) for p, c in pairs if p in numbers and c in numbers]
        template = JobTemplate(kind, tuple(loaded[item.description] for item in left), edges=tuple(edges))
    return Rest(template, str(row[2]), str(row[3]), load_files(connection, [key])[key], unfinished)


def _excluding(
    connection: sa.Connection, key: int, excluded: tuple[str, ...], memo: dict[tuple[int, tuple[str, ...]], int]
) -> int:
    """The cluster like this one whose jobs avoid these CEs."""
    found = memo.get((key, excluded))
    if found is None:
        cluster = load_clusters(connection, [key])[key]
        found = memo[key, excluded] = cluster_id(connection, replace(cluster, excluded=excluded))
    return found


def step_all(
    connection: sa.Connection, rows: Iterable[JobRow], event: machine.Event, now_us: int, sink: LogSink
) -> list[Change]:
    """The same event to many jobs, as they are now."""
    return step_ids(connection, [(row.job_id, event) for row in rows], now_us, sink)


def note(connection: sa.Connection, rows: Iterable[JobRow], text: str, now_us: int, sink: LogSink) -> None:
    """A line in the history of jobs; nothing else changes."""
    sink(connection, [LogLine(row.job_id, now_us, LogEvent("NOTE", row.job.attempt, {"text": text})) for row in rows])


def step_ids(
    connection: sa.Connection,
    events: Sequence[tuple[str, machine.Event]],
    now_us: int,
    sink: LogSink,
    *,
    owner: str | None = None,
    gatekeeper: str | None = None,
) -> list[Change]:
    """As ``step_rows`` by job id. Jobs of another owner or at another gatekeeper are passed over."""
    grouped: dict[str, list[machine.Event]] = {}
    for job_id, event in events:
        grouped.setdefault(job_id, []).append(event)
    rows = load_jobs(connection, list(grouped))
    chosen = [
        (row, grouped[job_id])
        for job_id, row in rows.items()
        if (owner is None or row.owner == owner) and (gatekeeper is None or row.job.gatekeeper == gatekeeper)
    ]
    return step_rows(connection, chosen, now_us, sink)


def assign(
    connection: sa.Connection,
    given: dict[int, dict[str, int]],
    gatekeepers: dict[str, str],
    now_us: int,
    sink: LogSink,
) -> list[Change]:
    """Give waiting jobs of each cluster to CEs, oldest first (cluster: CE: how many)."""
    chosen: list[tuple[JobRow, Sequence[machine.Event]]] = []
    for cluster, shares in given.items():
        rows = connection.exec_driver_sql(
            f"SELECT {_COLUMNS} FROM jobs WHERE state = 1 AND cluster = ? ORDER BY id LIMIT ?",
            (cluster, sum(shares.values())),
        )
        places = (machine.Matched(ce, gatekeepers[ce]) for ce, count in shares.items() for _ in range(count))
        chosen.extend((_job_row(row), (place,)) for row, place in zip(rows, places, strict=False))
    return step_rows(connection, chosen, now_us, sink)


# -- delivery ----------------------------------------------------------------------------------------------------------


def ready(connection: sa.Connection, owner: str, gatekeeper: str, limit: int) -> list[JobRow]:
    """Jobs to deliver, those that may have been sent before first."""
    rows = connection.exec_driver_sql(
        f"SELECT {_COLUMNS} FROM jobs WHERE state = 2 AND owner = ? AND gatekeeper = ? ORDER BY sent DESC, id LIMIT ?",
        (owner, gatekeeper, limit),
    )
    return [_job_row(row) for row in rows]


def mark_sent(connection: sa.Connection, ids: Sequence[int]) -> list[int]:
    """Remember that a Submit may reach the CE. Ids of jobs that are still to be sent."""
    still: list[int] = []
    for chunk in _chunks(ids):
        rows = connection.exec_driver_sql(
            f"UPDATE jobs SET sent = 1 WHERE state = 2 AND id IN ({_marks(chunk)}) RETURNING id", chunk
        )
        still.extend(int(row[0]) for row in rows)
    return still


def unsent(connection: sa.Connection, owner: str, gatekeeper: str) -> list[JobRow]:
    """READY jobs that surely never left."""
    rows = connection.exec_driver_sql(
        f"SELECT {_COLUMNS} FROM jobs WHERE state = 2 AND owner = ? AND gatekeeper = ? AND sent = 0",
        (owner, gatekeeper),
    )
    return [_job_row(row) for row in rows]


def cancelling(connection: sa.Connection, owner: str, gatekeeper: str, limit: int) -> list[JobRow]:
    """Jobs to cancel at a CE that has acknowledged them."""
    rows = connection.exec_driver_sql(
        f"SELECT {_COLUMNS} FROM jobs "
        "WHERE cancelling = 1 AND owner = ? AND gatekeeper = ? AND state IN (3, 4) LIMIT ?",
        (owner, gatekeeper, limit),
    )
    return [_job_row(row) for row in rows]


def silent(connection: sa.Connection, owner: str, gatekeeper: str, before_us: int, limit: int) -> list[JobRow]:
    """Jobs at a CE that have not changed since a time."""
    rows = connection.exec_driver_sql(
        f"SELECT {_COLUMNS} FROM jobs "
        "WHERE state IN (3, 4) AND owner = ? AND gatekeeper = ? AND changed_at_us < ? LIMIT ?",
        (owner, gatekeeper, before_us, limit),
    )
    return [_job_row(row) for row in rows]


def purgeable(connection: sa.Connection, owner: str, gatekeeper: str, limit: int) -> list[str]:
    """Cleared jobs that the CE still keeps."""
    rows = connection.exec_driver_sql(
        "SELECT job_id FROM jobs WHERE state = 8 AND purge = 1 AND owner = ? AND gatekeeper = ? LIMIT ?",
        (owner, gatekeeper, limit),
    )
    return [str(row[0]) for row in rows]


def purged(connection: sa.Connection, job_ids: Sequence[str]) -> None:
    """The CE has forgotten these."""
    connection.exec_driver_sql("UPDATE jobs SET purge = 0 WHERE job_id = ?", [(job_id,) for job_id in job_ids])


def load_descriptions(connection: sa.Connection, ids: Iterable[int]) -> dict[int, JobDescription]:
    """Descriptions by id."""
    found: dict[int, JobDescription] = {}
    for chunk in _chunks(list(ids)):
        rows = connection.exec_driver_sql(f"SELECT id, body FROM descriptions WHERE id IN ({_marks(chunk)})", chunk)
        found.update({int(key): decode_description(text) for key, text in rows})
    return found


def load_files(connection: sa.Connection, submission_keys: Iterable[int]) -> dict[int, dict[str, SandboxFile]]:
    """Sandbox files of submissions, by name."""
    found: dict[int, dict[str, SandboxFile]] = {}
    for chunk in _chunks(list(submission_keys)):
        for key in chunk:
            found[int(key)] = {}
        rows = connection.exec_driver_sql(
            "SELECT submission, name, sha256, size_bytes, executable FROM submission_files "
            f"WHERE submission IN ({_marks(chunk)})",
            chunk,
        )
        for key, name, sha256, size_bytes, executable in rows:
            found[int(key)][str(name)] = SandboxFile(name, sha256, size_bytes, bool(executable))
    return found


def watch_sequence(connection: sa.Connection, owner: str, gatekeeper: str) -> int:
    """The last update of a gatekeeper that was taken in."""
    row = connection.exec_driver_sql(
        "SELECT sequence FROM watches WHERE owner = ? AND gatekeeper = ?", (owner, gatekeeper)
    ).first()
    return int(row[0]) if row else 0


def set_watch_sequence(connection: sa.Connection, owner: str, gatekeeper: str, sequence: int) -> None:
    """In the same transaction as the updates up to it."""
    connection.exec_driver_sql(
        "INSERT INTO watches (owner, gatekeeper, sequence) VALUES (?,?,?) "
        "ON CONFLICT (owner, gatekeeper) DO UPDATE SET sequence = excluded.sequence",
        (owner, gatekeeper, sequence),
    )


# -- start, owners, clean-up -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counts:
    """Unfinished jobs, grouped as the board counts them."""

    waiting: dict[int, int]
    """Per cluster."""
    at_ce: dict[tuple[str, str, str, JobState], int]
    """Per (owner, CE, gatekeeper, state)."""
    links: frozenset[tuple[str, str]]
    """(owner, gatekeeper) with anything left to do."""
    owners: dict[str, int]
    """Per owner."""


def counts(connection: sa.Connection) -> Counts:
    """Everything unfinished, at a start."""
    waiting = connection.exec_driver_sql("SELECT cluster, count(*) FROM jobs WHERE state = 1 GROUP BY cluster")
    placed = connection.exec_driver_sql(
        "SELECT owner, ce, gatekeeper, state, count(*) FROM jobs WHERE state < 5 AND state > 1 "
        "GROUP BY owner, ce, gatekeeper, state"
    )
    at_ce = {(str(o), str(c), str(g), JobState(s)): int(n) for o, c, g, s, n in placed}
    purge = connection.exec_driver_sql("SELECT DISTINCT owner, gatekeeper FROM jobs WHERE state = 8 AND purge = 1")
    links = {(owner, gatekeeper) for owner, _, gatekeeper, _ in at_ce} | {(str(o), str(g)) for o, g in purge}
    by_cluster = {int(key): int(count) for key, count in waiting}
    return Counts(by_cluster, at_ce, frozenset(links), owners_unfinished(connection))


def owners_unfinished(connection: sa.Connection) -> dict[str, int]:
    """Owners with unfinished jobs, and how many."""
    rows = connection.exec_driver_sql("SELECT owner, count(*) FROM jobs WHERE state < 5 GROUP BY owner")
    return {str(owner): int(count) for owner, count in rows}


def count_of_vo(connection: sa.Connection, vo: str) -> int:
    """Unfinished jobs of a VO."""
    row = connection.exec_driver_sql("SELECT sum(open) FROM submissions WHERE open > 0 AND vo = ?", (vo,)).scalar_one()
    return int(row or 0)


def kept_bytes(connection: sa.Connection, owner: str) -> int:
    """What the sandbox files kept of an owner have together."""
    row = connection.exec_driver_sql("SELECT sum(size_bytes) FROM files WHERE owner = ?", (owner,)).scalar_one()
    return int(row or 0)


def unfinished_of(connection: sa.Connection, owner: str, limit: int) -> list[JobRow]:
    """Unfinished jobs of an owner."""
    rows = connection.exec_driver_sql(
        f"SELECT {_COLUMNS} FROM jobs WHERE state < 5 AND owner = ? LIMIT ?", (owner, limit)
    )
    return [_job_row(row) for row in rows]


def unfinished_of_vo(connection: sa.Connection, vo: str, limit: int) -> list[JobRow]:
    """Unfinished jobs of a VO."""
    rows = connection.exec_driver_sql(
        f"SELECT {_COLUMNS} FROM jobs WHERE state < 5 AND submission IN (SELECT id FROM submissions WHERE vo = ?) "
        "LIMIT ?",
        (vo, limit),
    )
    return [_job_row(row) for row in rows]


def clusters_unfinished(connection: sa.Connection, owner: str) -> list[int]:
    """The clusters of an owner's unfinished jobs."""
    rows = connection.exec_driver_sql("SELECT DISTINCT cluster FROM jobs WHERE state < 5 AND owner = ?", (owner,))
    return [int(row[0]) for row in rows]


def waiting_since(connection: sa.Connection, before_us: int, limit: int) -> list[JobRow]:
    """Jobs that have waited for a match since before a time."""
    rows = connection.exec_driver_sql(
        f"SELECT {_COLUMNS} FROM jobs WHERE state = 1 AND changed_at_us < ? LIMIT ?", (before_us, limit)
    )
    return [_job_row(row) for row in rows]


def waiting_of(connection: sa.Connection, cluster: int, limit: int) -> list[JobRow]:
    """Jobs of a cluster that wait for a match."""
    rows = connection.exec_driver_sql(
        f"SELECT {_COLUMNS} FROM jobs WHERE state = 1 AND cluster = ? LIMIT ?", (cluster, limit)
    )
    return [_job_row(row) for row in rows]


def held_files(connection: sa.Connection, owner: str, hashes: Sequence[str], now_us: int) -> set[str]:
    """Which of these files the broker has of this owner; they are kept for a while from now."""
    held: set[str] = set()
    for chunk in _chunks(hashes):
        rows = connection.exec_driver_sql(
            f"UPDATE files SET used_at_us = ? WHERE owner = ? AND sha256 IN ({_marks(chunk)}) RETURNING sha256",
            (now_us, owner, *chunk),
        )
        held.update(str(row[0]) for row in rows)
    return held


def add_file(connection: sa.Connection, owner: str, sha256: str, size_bytes: int, now_us: int) -> None:
    """A file of this owner is here."""
    connection.exec_driver_sql(
        "INSERT INTO files (owner, sha256, size_bytes, used_at_us) VALUES (?,?,?,?) "
        "ON CONFLICT (owner, sha256) DO UPDATE SET used_at_us = excluded.used_at_us",
        (owner, sha256, size_bytes, now_us),
    )


def drop_unused_files(connection: sa.Connection, before_us: int, limit: int = 1000) -> list[str]:
    """Forget files that no unfinished job needs and nobody has asked for lately; hashes that nobody holds any more."""
    rows = connection.exec_driver_sql(
        "SELECT owner, sha256 FROM files f WHERE used_at_us < ? AND NOT EXISTS ("
        "SELECT 1 FROM submission_files x JOIN submissions s ON s.id = x.submission "
        "WHERE x.sha256 = f.sha256 AND s.owner = f.owner AND s.open > 0) LIMIT ?",
        (before_us, limit),
    )
    unused = [(str(owner), str(sha256)) for owner, sha256 in rows]
    if not unused:
        return []
    connection.exec_driver_sql("DELETE FROM files WHERE owner = ? AND sha256 = ?", unused)
    still: set[str] = set()
    for chunk in _chunks([sha256 for _, sha256 in unused]):
        found = connection.exec_driver_sql(f"SELECT sha256 FROM files WHERE sha256 IN ({_marks(chunk)})", chunk)
        still.update(str(row[0]) for row in found)
    return sorted({sha256 for _, sha256 in unused} - still)


def known_hashes(connection: sa.Connection) -> set[str]:
    """All files that should be on disk."""
    return {str(row[0]) for row in connection.exec_driver_sql("SELECT DISTINCT sha256 FROM files")}


def drop_old_submissions(connection: sa.Connection, before_us: int, limit: int = 200) -> int:
    """Forget submissions whose jobs have all ended before a time and that owe no CE anything."""
    rows = connection.exec_driver_sql(
        "SELECT s.id FROM submissions s WHERE s.open <= 0 AND s.at_us < ? AND NOT EXISTS ("
        "SELECT 1 FROM jobs j WHERE j.submission = s.id "
        "AND (j.changed_at_us >= ? OR (j.state = 8 AND j.purge = 1))) LIMIT ?",
        (before_us, before_us, limit),
    )
    keys = [(int(row[0]),) for row in rows]
    if keys:
        connection.exec_driver_sql(
            "DELETE FROM dependencies WHERE child IN (SELECT job FROM nodes WHERE submission = ?)", keys
        )
        for table in ("jobs", "nodes", "descriptions", "submission_files"):
            connection.exec_driver_sql(f"DELETE FROM {table} WHERE submission = ?", keys)
        connection.exec_driver_sql("DELETE FROM submissions WHERE id = ?", keys)
    return len(keys)
