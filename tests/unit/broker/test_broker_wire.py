"""What a gatekeeper is told of a job, and what the broker makes of its answer."""

from __future__ import annotations

import pytest
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb

from agents.broker import machine, wire
from agents.broker.jdl import normalise
from agents.broker.model import SandboxFile
from agents.broker.store import JobRow


def test_prologue_and_epilogue_reach_the_gatekeeper_and_may_be_executed() -> None:
    (job,) = normalise(
        """Executable = "/bin/true"; InputSandbox = {"/home/a/p.sh", "/home/a/data"}; Prologue = "p.sh";
        PrologueArguments = "a 'b c'"; DataAccessProtocol = "https";"""
    ).jobs()
    files = {path: SandboxFile(path, "0" * 64, 1) for path in job.input_sandbox}
    row = JobRow(1, "https://x/y", 1, 1, "", "/CN=a", 1, machine.Job(ce="ce.cern.ch:2119/jobmanager-slurm-my-short"))
    sent = wire.gatekeeper_job(row, job, files, "cms")
    assert sent.queue == "my-short"
    made = sent.description
    assert (made.prologue.executable, list(made.prologue.arguments)) == ("p.sh", ["a", "b c"])
    assert not made.HasField("epilogue")
    assert {file.name: file.executable for file in made.input_sandbox} == {"p.sh": True, "data": False}
    assert list(made.data_access_protocols) == ["https"]


@pytest.mark.parametrize(
    ("reason", "deep"), [("PROLOGUE_FAILED", False), ("EXEC_FAILED", False), ("WORKER_LOST", True)]
)
def test_a_retry_is_shallow_when_the_executable_never_ran(reason: str, deep: bool) -> None:
    update = pb.JobUpdate(attempt=1, state=pb.JOB_STATE_FAILED, reason=reason, started=True)
    assert wire.update_event(update) == machine.Failed(1, reason, "", deep)
