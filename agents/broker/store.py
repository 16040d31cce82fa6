"""Rows of the broker's store. All functions run inside ``Store.write`` or ``Store.read`` of fabric/store.py.

The rows are the truth: a batch of events is read, stepped by ``machine``, and written with its log lines in one
transaction. What an agent keeps in memory are counts, made again from here at every start.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import sqlalchemy as sa

from agents.broker import dag, machine
from agents.broker.blacklist import Held
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
from agents.broker.tables import COLUMNS, Change, JobRow, LogLine, LogSink, chunks, job_row, marks

# -- descriptions ------------------------------------------------------------------------------------------------------


_LISTS = (
    "arguments", "input_sandbox", "output_sandbox", "input_data", "data_access_protocols", "prologue_arguments",
    "epilogue_arguments", "perusal_files",
)  # fmt: skip


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
    for name in _LISTS:
        body[name] = tuple(body.get(name, ()))
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
    for chunk in chunks(list(ids)):
        rows = connection.exec_driver_sql(f"SELECT id, body FROM clusters WHERE id IN ({marks(chunk)})", chunk)
        for key, text in rows:
            body = json.loads(text)
            found[int(key)] = Cluster(
                int(key), body["requirements"], body["rank"], body["vo"], body["owner"], tuple(body["input_data"]),
                tuple((name, value) for name, value in body["extra"]), tuple(body["excluded"]),
                tuple(body.get("fqans", ())), body.get("fuzzy_rank", False), body.get("expires_at_s", 0),
                body.get("not_before_s", 0),
            )  # fmt: skip
    return found


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


def submit(connection: sa.Connection, new: Submission, sink: LogSink, *, to_copy: bool = False) -> Submitted:
    """Store every job; a submission id seen before gives the first answer again. `to_copy`: the successor lacks it."""
    earlier = _earlier(connection, new)
    if earlier is not None:
        return earlier
    template = new.template
    result = connection.exec_driver_sql(
        "INSERT INTO submissions (owner, submission_id, job_id, type, vo, jdl, at_us, open, uncopied) "
        "VALUES (?,?,?,?,?,?,?,?,?)",
        (
            new.owner,
            new.submission_id,
            new.parent_id,
            template.type.value,
            new.vo,
            new.jdl,
            new.at_us,
            len(new.job_ids),
            int(to_copy),
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
        name = template.descriptions[0].name if len(template.descriptions) == 1 else ""
        lines.append(LogLine(new.parent_id, new.at_us, _registered(new, name, "", len(rows))))
    cluster_ids: dict[Cluster, int] = {}
    alike: dict[int, tuple[JobDescription, int]] = {}
    """By the index of a description whose parameter the broker does not see: that description, and its cluster."""
    waits = {child for _, child in template.edges}
    marked = [tuple(_SEEN_BY_BROKER.intersection(item.marked())) for item in template.descriptions]
    for number, (job_id, (index, parameter)) in enumerate(zip(new.job_ids, template.parts(), strict=True)):
        base = template.descriptions[index]
        if index in alike:
            description, cluster = alike[index]
        else:
            description = base.with_parameter(parameter, marked[index]) if parameter else base
            wanted = Cluster.of(description, new.vo, new.owner, new.fqans)
            cluster = cluster_ids.get(wanted)
            if cluster is None:
                cluster = cluster_ids[wanted] = cluster_id(connection, wanted)
            if not marked[index]:
                alike[index] = description, cluster
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
        dag.store_graph(connection, key, template)
    sink(connection, lines)
    return Submitted(new.parent_id, () if is_single else new.job_ids, tuple(changes))


_ENQUEUED = LogEvent("ENQUEUED", 1)
LINES_OF_A_NEW_JOB = 2
"""At most."""


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
    for chunk in chunks(job_ids):
        for row in connection.exec_driver_sql(f"SELECT {COLUMNS} FROM jobs WHERE job_id IN ({marks(chunk)})", chunk):
            found[str(row[1])] = job_row(row)
    return found


def expand(connection: sa.Connection, job_ids: Sequence[str]) -> list[str]:
    """Job ids with parents replaced by their children, in order; unknown ids stay."""
    parents: dict[str, list[str]] = {}
    for chunk in chunks(job_ids):
        rows = connection.exec_driver_sql(
            "SELECT s.job_id, j.job_id FROM submissions s JOIN jobs j ON j.submission = s.id "
            f"WHERE s.type != 'normal' AND s.job_id IN ({marks(chunk)}) ORDER BY j.id",
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
        rows = dag.steps(connection, ended)
    return changes


def _step_rows(
    connection: sa.Connection, rows: Steps, now_us: int, sink: LogSink, changes: list[Change]
) -> dict[int, machine.Job]:
    """The jobs that have ended now, by the ids of their rows."""
    ended: dict[int, machine.Job] = {}
    lines: list[LogLine] = []
    updates: list[tuple[object, ...]] = []
    closed: dict[int, int] = {}
    memo: dict[tuple[int, tuple[str, ...], int], int] = {}
    for row, events in rows:
        job = row.job
        refused, cause, pause_s = False, "", 0.0
        for event in events:
            step = machine.step(job, event)
            refused |= step.refused
            cause, pause_s = step.cause or cause, step.pause_s
            job = step.job
            lines.extend(LogLine(row.job_id, now_us, item) for item in step.log)
        if job == row.job:
            if refused:
                changes.append(Change(row.owner, row.job_id, row.job, row.cluster, job, row.cluster, True))
            continue
        cluster = row.cluster
        if job.excluded != row.job.excluded or pause_s:
            cluster = _like(connection, cluster, job.excluded, _not_before_s(now_us, pause_s), memo)
        if job.state in ENDED and row.job.state not in ENDED:
            closed[row.submission] = closed.get(row.submission, 0) + 1
            ended[row.id] = job
        updates.append(
            (
                int(job.state), job.attempt, job.ce, job.gatekeeper, int(job.sent), int(job.cancelling), int(job.purge),
                job.shallow_left, job.deep_left, "\n".join(job.excluded), job.reason, now_us, cluster, row.id,
            )
        )  # fmt: skip
        changes.append(Change(row.owner, row.job_id, row.job, row.cluster, job, cluster, refused, cause, now_us))
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
    rows = connection.exec_driver_sql(f"SELECT {COLUMNS} FROM jobs WHERE submission = ? ORDER BY id", (key,))
    jobs = [job_row(item) for item in rows]
    left = [item for item in jobs if not item.job.ended_well]
    unfinished = sum(item.job.state not in ENDED for item in jobs)
    template = template_of(connection, key, kind, left)
    return Rest(template, str(row[2]), str(row[3]), load_files(connection, [key])[key], unfinished)


def template_of(connection: sa.Connection, key: int, kind: JobType, jobs: Sequence[JobRow]) -> JobTemplate:
    """What these jobs of a submission are, as a JDL would describe them."""
    loaded = load_descriptions(connection, {item.description for item in jobs})
    if kind is JobType.PARAMETRIC:
        return JobTemplate(kind, tuple(loaded.values()), tuple(item.parameter for item in jobs))
    edges = dag.edges_among(connection, key, jobs)
    return JobTemplate(kind, tuple(loaded[item.description] for item in jobs), edges=edges)


PAUSE_STEP_S = 5
"""Pauses end together, at multiples of this, as those who wait until the same moment are one cluster."""


def _not_before_s(now_us: int, pause_s: float) -> int:
    return math.ceil((now_us / 1e6 + pause_s) / PAUSE_STEP_S) * PAUSE_STEP_S if pause_s else 0


def _like(
    connection: sa.Connection,
    key: int,
    excluded: tuple[str, ...],
    not_before_s: int,
    memo: dict[tuple[int, tuple[str, ...], int], int],
) -> int:
    """The cluster like this one whose jobs avoid these CEs and are not matched before a time."""
    found = memo.get((key, excluded, not_before_s))
    if found is None:
        cluster = load_clusters(connection, [key])[key]
        like = replace(cluster, excluded=excluded, not_before_s=not_before_s)
        found = memo[key, excluded, not_before_s] = cluster_id(connection, like)
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
    given: Mapping[int, Sequence[tuple[machine.Matched, int]]],
    now_us: int,
    sink: LogSink,
) -> list[Change]:
    """Give waiting jobs of each cluster to CEs, oldest first (cluster: choices, and for how many jobs each)."""
    chosen: list[tuple[JobRow, Sequence[machine.Event]]] = []
    for cluster, shares in given.items():
        rows = connection.exec_driver_sql(
            f"SELECT {COLUMNS} FROM jobs WHERE state = 1 AND cluster = ? ORDER BY id LIMIT ?",
            (cluster, sum(count for _, count in shares)),
        )
        places = (choice for choice, count in shares for _ in range(count))
        chosen.extend((job_row(row), (place,)) for row, place in zip(rows, places, strict=False))
    return step_rows(connection, chosen, now_us, sink)


# -- delivery ----------------------------------------------------------------------------------------------------------


def ready(connection: sa.Connection, owner: str, gatekeeper: str, limit: int) -> list[JobRow]:
    """Jobs to deliver, those that may have been sent before first."""
    rows = connection.exec_driver_sql(
        f"SELECT {COLUMNS} FROM jobs WHERE state = 2 AND owner = ? AND gatekeeper = ? ORDER BY sent DESC, id LIMIT ?",
        (owner, gatekeeper, limit),
    )
    return [job_row(row) for row in rows]


def mark_sent(connection: sa.Connection, ids: Sequence[int]) -> list[int]:
    """Remember that a Submit may reach the CE. Ids of jobs that are still to be sent."""
    still: list[int] = []
    for chunk in chunks(ids):
        rows = connection.exec_driver_sql(
            f"UPDATE jobs SET sent = 1 WHERE state = 2 AND id IN ({marks(chunk)}) RETURNING id", chunk
        )
        still.extend(int(row[0]) for row in rows)
    return still


def unsent(connection: sa.Connection, owner: str, gatekeeper: str) -> list[JobRow]:
    """READY jobs that surely never left."""
    rows = connection.exec_driver_sql(
        f"SELECT {COLUMNS} FROM jobs WHERE state = 2 AND owner = ? AND gatekeeper = ? AND sent = 0",
        (owner, gatekeeper),
    )
    return [job_row(row) for row in rows]


def cancelling(
    connection: sa.Connection, owner: str, gatekeeper: str, after: int, limit: int
) -> list[tuple[int, str, int]]:
    """Id, job id and attempt of jobs to cancel at a CE that has acknowledged them, from the first id above `after`."""
    rows = connection.exec_driver_sql(
        "SELECT id, job_id, attempt FROM jobs "
        "WHERE cancelling = 1 AND owner = ? AND gatekeeper = ? AND state IN (3, 4) AND id > ? ORDER BY id LIMIT ?",
        (owner, gatekeeper, after, limit),
    )
    return [(int(key), str(job_id), int(attempt)) for key, job_id, attempt in rows]


def silent(connection: sa.Connection, owner: str, gatekeeper: str, before_us: int, limit: int) -> list[JobRow]:
    """Jobs at a CE that have not changed since a time."""
    rows = connection.exec_driver_sql(
        f"SELECT {COLUMNS} FROM jobs "
        "WHERE state IN (3, 4) AND owner = ? AND gatekeeper = ? AND changed_at_us < ? LIMIT ?",
        (owner, gatekeeper, before_us, limit),
    )
    return [job_row(row) for row in rows]


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
    for chunk in chunks(list(ids)):
        rows = connection.exec_driver_sql(f"SELECT id, body FROM descriptions WHERE id IN ({marks(chunk)})", chunk)
        found.update({int(key): decode_description(text) for key, text in rows})
    return found


def load_files(connection: sa.Connection, submission_keys: Iterable[int]) -> dict[int, dict[str, SandboxFile]]:
    """Sandbox files of submissions, by name."""
    found: dict[int, dict[str, SandboxFile]] = {}
    for chunk in chunks(list(submission_keys)):
        for key in chunk:
            found[int(key)] = {}
        rows = connection.exec_driver_sql(
            "SELECT submission, name, sha256, size_bytes, executable FROM submission_files "
            f"WHERE submission IN ({marks(chunk)})",
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
        f"SELECT {COLUMNS} FROM jobs WHERE state < 5 AND owner = ? LIMIT ?", (owner, limit)
    )
    return [job_row(row) for row in rows]


def unfinished_of_vo(connection: sa.Connection, vo: str, limit: int) -> list[JobRow]:
    """Unfinished jobs of a VO."""
    rows = connection.exec_driver_sql(
        f"SELECT {COLUMNS} FROM jobs WHERE state < 5 AND submission IN (SELECT id FROM submissions WHERE vo = ?) "
        "LIMIT ?",
        (vo, limit),
    )
    return [job_row(row) for row in rows]


def clusters_unfinished(connection: sa.Connection, owner: str) -> list[int]:
    """The clusters of an owner's unfinished jobs."""
    rows = connection.exec_driver_sql("SELECT DISTINCT cluster FROM jobs WHERE state < 5 AND owner = ?", (owner,))
    return [int(row[0]) for row in rows]


def waiting_since(connection: sa.Connection, before_us: int, limit: int) -> list[JobRow]:
    """Jobs that have waited for a match since before a time."""
    rows = connection.exec_driver_sql(
        f"SELECT {COLUMNS} FROM jobs WHERE state = 1 AND changed_at_us < ? LIMIT ?", (before_us, limit)
    )
    return [job_row(row) for row in rows]


def waiting_of(connection: sa.Connection, cluster: int, limit: int) -> list[JobRow]:
    """Jobs of a cluster that wait for a match."""
    rows = connection.exec_driver_sql(
        f"SELECT {COLUMNS} FROM jobs WHERE state = 1 AND cluster = ? LIMIT ?", (cluster, limit)
    )
    return [job_row(row) for row in rows]


def held_files(connection: sa.Connection, owner: str, hashes: Sequence[str], now_us: int) -> set[str]:
    """Which of these files the broker has of this owner; they are kept for a while from now."""
    held: set[str] = set()
    for chunk in chunks(hashes):
        rows = connection.exec_driver_sql(
            f"UPDATE files SET used_at_us = ? WHERE owner = ? AND sha256 IN ({marks(chunk)}) RETURNING sha256",
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
        "WHERE x.sha256 = f.sha256 AND s.owner = f.owner AND s.open > 0) AND NOT EXISTS ("
        "SELECT 1 FROM copy_files c WHERE c.sha256 = f.sha256 AND c.owner = f.owner) LIMIT ?",
        (before_us, limit),
    )
    unused = [(str(owner), str(sha256)) for owner, sha256 in rows]
    if not unused:
        return []
    connection.exec_driver_sql("DELETE FROM files WHERE owner = ? AND sha256 = ?", unused)
    still: set[str] = set()
    for chunk in chunks([sha256 for _, sha256 in unused]):
        found = connection.exec_driver_sql(f"SELECT sha256 FROM files WHERE sha256 IN ({marks(chunk)})", chunk)
        still.update(str(row[0]) for row in found)
    return sorted({sha256 for _, sha256 in unused} - still)


def known_hashes(connection: sa.Connection) -> set[str]:
    """All files that should be on disk."""
    return {str(row[0]) for row in connection.exec_driver_sql("SELECT DISTINCT sha256 FROM files")}


def drop_unused_clusters(connection: sa.Connection) -> None:
    """Forget clusters that no job belongs to. The newest stays, so that no id is ever given twice."""
    connection.exec_driver_sql(
        "DELETE FROM clusters WHERE id NOT IN (SELECT cluster FROM jobs) AND id < (SELECT max(id) FROM clusters)"
    )


def old_submissions(connection: sa.Connection, before_us: int, limit: int = 200) -> dict[str, int]:
    """Submissions whose jobs have all ended before a time and that owe no CE anything; by job id, the ids of rows."""
    rows = connection.exec_driver_sql(
        "SELECT s.job_id, s.id FROM submissions s WHERE s.open <= 0 AND s.at_us < ? AND NOT EXISTS ("
        "SELECT 1 FROM jobs j WHERE j.submission = s.id "
        "AND (j.changed_at_us >= ? OR (j.state = 8 AND j.purge = 1))) LIMIT ?",
        (before_us, before_us, limit),
    )
    return {str(job_id): int(key) for job_id, key in rows}


def drop_submissions(connection: sa.Connection, found: Iterable[int]) -> None:
    """Forget these, by the ids of their rows."""
    keys = [(key,) for key in found]
    connection.exec_driver_sql(
        "INSERT OR IGNORE INTO dropped_copies (job_id) SELECT job_id FROM submissions WHERE id = ? "
        "AND EXISTS (SELECT 1 FROM epochs)",
        keys,
    )
    connection.exec_driver_sql(
        "DELETE FROM dependencies WHERE child IN (SELECT job FROM nodes WHERE submission = ?)", keys
    )
    for table in ("jobs", "nodes", "descriptions", "submission_files"):
        connection.exec_driver_sql(f"DELETE FROM {table} WHERE submission = ?", keys)
    connection.exec_driver_sql("DELETE FROM submissions WHERE id = ?", keys)


def blames(connection: sa.Connection, now_us: int) -> list[Held]:
    """What is held against CEs."""
    found = connection.exec_driver_sql(
        "SELECT ce, owner, ? - at_us, failed, ended, listings, cause FROM blames", (now_us,)
    )
    return [Held(ce, owner, age_us / 1e6, *numbers) for ce, owner, age_us, *numbers in found]


def keep_blames(connection: sa.Connection, changed: Sequence[Held], now_us: int) -> None:
    """Put these in the place of what was held for the same owner against the same CE."""
    connection.exec_driver_sql(
        "DELETE FROM blames WHERE ce = ? AND owner = ?", [(item.ce, item.owner) for item in changed]
    )
    kept = [
        (item.ce, item.owner, now_us - int(item.age_s * 1e6), item.failed, item.ended, item.listings, item.cause)
        for item in changed
        if item.failed
    ]
    if kept:
        connection.exec_driver_sql("INSERT INTO blames VALUES (?,?,?,?,?,?,?)", kept)
