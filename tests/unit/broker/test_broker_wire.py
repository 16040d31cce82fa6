"""What a gatekeeper is told of a job, and what the broker makes of its answer."""

from __future__ import annotations

import pytest
from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as lb
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb

from agents.broker import machine, wire
from agents.broker.jdl import normalise
from agents.broker.model import LogEvent, SandboxFile
from agents.broker.store import JobRow
from agents.broker.tables import LogLine
from fabric.outbox import OutboxItem


def test_prologue_and_epilogue_reach_the_gatekeeper_and_may_be_executed() -> None:
    (job,) = normalise(
        """Executable = "/bin/true"; InputSandbox = {"/home/a/p.sh", "/home/a/data"}; Prologue = "p.sh";
        PrologueArguments = "a 'b c'"; DataAccessProtocol = "https";
        OutputData = { [ OutputFile = "x"; StorageElement = "RAL" ], [ OutputFile = "y" ] };"""
    ).jobs()
    files = {path: SandboxFile(path, "0" * 64, 1) for path in job.input_sandbox}
    row = JobRow(1, "https://x/y", 1, 1, "", "/CN=a", 1, machine.Job(ce="ce.cern.ch:2119/jobmanager-slurm-my-short"))
    sent = wire.gatekeeper_job(row, job, files, "cms", {"": "", "RAL": "se.ral:8446"}.__getitem__)
    assert sent.queue == "my-short"
    made = sent.description
    assert (made.prologue.executable, list(made.prologue.arguments)) == ("p.sh", ["a", "b c"])
    assert not made.HasField("epilogue")
    assert {file.name: file.executable for file in made.input_sandbox} == {"p.sh": True, "data": False}
    assert list(made.data_access_protocols) == ["https"]
    assert [item.storage_element for item in made.output_data] == ["se.ral:8446", ""]


@pytest.mark.parametrize(
    ("reason", "deep"), [("PROLOGUE_FAILED", False), ("EXEC_FAILED", False), ("WORKER_LOST", True)]
)
def test_a_retry_is_shallow_when_the_executable_never_ran(reason: str, deep: bool) -> None:
    update = pb.JobUpdate(attempt=1, state=pb.JOB_STATE_FAILED, reason=reason, started=True)
    assert wire.update_event(update) == machine.Failed(1, reason, "", deep)


def test_what_jobs_have_in_common_is_encoded_once_and_read_back_whole() -> None:
    alike, other = LogEvent("ENQUEUED", 1, {"a": "1"}), LogEvent("MATCHED", 2, {"ce": "x" * 5000})
    lines = [LogLine("https://a/1", 7, alike), LogLine("https://a/2", 7, alike), LogLine("https://a/2", 8, alike)]
    lines.append(LogLine("https://a/3", 8, other))
    items = [OutboxItem("broker.A", 10 + at, payload) for at, payload in enumerate(wire.log_payloads(lines))]
    request = wire.record_request(items, epoch=3)
    assert request.epoch == 3
    assert [
        (event.job_id, event.source, event.sequence, event.at_us, event.attempt, dict(event.fields))
        for event in request.events
    ] == [
        ("https://a/1", "broker.A", 10, 7, 1, {"a": "1"}),
        ("https://a/2", "broker.A", 11, 7, 1, {"a": "1"}),
        ("https://a/2", "broker.A", 12, 8, 1, {"a": "1"}),
        ("https://a/3", "broker.A", 13, 8, 2, {"ce": "x" * wire.MAX_FIELD_LENGTH}),
    ]
    types = [lb.EVENT_TYPE_ENQUEUED] * 3 + [lb.EVENT_TYPE_MATCHED]
    assert [event.type for event in request.events] == types
