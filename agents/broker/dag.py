"""Rows of DAGs: what the end of a node means to the others. Run inside ``Store.write`` or ``Store.read``."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from agents.broker import machine
from agents.broker.model import JobState, JobTemplate, NodeFailure
from agents.broker.tables import COLUMNS, JobRow, chunks, job_row, marks


def store_graph(connection: sa.Connection, key: int, template: JobTemplate) -> None:
    """The nodes and edges of a new submission, whose jobs are stored."""
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


def edges_among(connection: sa.Connection, submission: int, chosen: Sequence[JobRow]) -> tuple[tuple[int, int], ...]:
    """Dependencies between these nodes of a submission, as places in `chosen`."""
    numbers = {item.id: number for number, item in enumerate(chosen)}
    pairs = connection.exec_driver_sql(
        "SELECT parent, child FROM dependencies WHERE child IN (SELECT job FROM nodes WHERE submission = ?)",
        (submission,),
    )
    return tuple((numbers[p], numbers[c]) for p, c in pairs if p in numbers and c in numbers)


def steps(connection: sa.Connection, ended: dict[int, machine.Job]) -> list[tuple[JobRow, Sequence[machine.Event]]]:
    """What follows for other nodes from the end of these jobs; nothing for jobs that are in no DAG."""
    found: list[tuple[int, int, NodeFailure]] = []
    for chunk in chunks(list(ended)):
        rows = connection.exec_driver_sql(
            f"SELECT job, submission, failure FROM nodes WHERE job IN ({marks(chunk)})", chunk
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
        f"SELECT {COLUMNS} FROM jobs WHERE state = 0 AND id IN (SELECT child FROM dependencies WHERE parent = ?) "
        "AND NOT EXISTS (SELECT 1 FROM dependencies d JOIN jobs p ON p.id = d.parent JOIN nodes n ON n.job = p.id "
        "WHERE d.child = jobs.id AND NOT (p.state IN (5, 8) AND p.reason = '') "
        "AND NOT (n.failure = 'ignore' AND p.state >= 5 AND p.reason != ?))",
        (parent, PARENT_FAILED),
    )
    return [job_row(row) for row in rows]


def _below(connection: sa.Connection, parent: int) -> list[JobRow]:
    """Everything blocked that depends on a node, at any distance."""
    rows = connection.exec_driver_sql(
        "WITH RECURSIVE below(id) AS (SELECT child FROM dependencies WHERE parent = ? UNION "
        "SELECT d.child FROM dependencies d JOIN below b ON d.parent = b.id) "
        f"SELECT {COLUMNS} FROM jobs WHERE state = 0 AND id IN (SELECT id FROM below)",
        (parent,),
    )
    return [job_row(row) for row in rows]


def _unfinished_in(connection: sa.Connection, submission: int) -> list[JobRow]:
    rows = connection.exec_driver_sql(
        f"SELECT {COLUMNS} FROM jobs WHERE submission = ? AND state < 5 AND cancelling = 0", (submission,)
    )
    return [job_row(row) for row in rows]
