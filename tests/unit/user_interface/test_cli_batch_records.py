"""Usage records held against what batch systems wrote themselves: each kind of difference is named."""

from __future__ import annotations

from datetime import datetime

import pytest
from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as lb

from agents.user_interface.batch_records import compare, keys_of, slurm_runs, worker_runs
from agents.user_interface.exits import UsageProblem
from fabric.clock import to_us

END = to_us(datetime.fromisoformat("2026-11-23T02:00:40").astimezone())
WINDOW = (END - 3_600_000_000, END + 3_600_000_000)


def record(name: str, wall_s: float = 40.0, ended_at_us: int = END, processors: int = 1) -> lb.UsageRecord:
    return lb.UsageRecord(
        job_id=f"https://lb:1/{name}", attempt=1, wall_s=wall_s, ended_at_us=ended_at_us, processors=processors
    )


def completion(name: str, state: str = "COMPLETED", end: str = "2026-11-23T02:00:40", number: int = 1) -> str:
    """As Slurm 22.05 writes it."""
    return (
        f"JobId={number} UserId=root(0) GroupId=root(0) Name={name} JobState={state} Partition=grid TimeLimit=2 "
        f"StartTime=2026-11-23T02:00:00 EndTime={end} NodeList=n1 NodeCnt=1 ProcCnt=1 WorkDir=/x ReservationName= "
        "Tres=cpu=1 Account= QOS= WcKey= Cluster=unknown SubmitTime=2026-11-23T01:59:59 "
        "DerivedExitCode=0:0 ExitCode=0:0 \n"
    )


def name_of(one: lb.UsageRecord, run: int = 0) -> str:
    return f"gf-01234567-{keys_of(one)[run]}"


def test_runs_that_agree_are_found_again_by_the_name_of_the_batch_job():
    records = [record("a"), record("b")]
    text = completion(name_of(records[0])) + completion(name_of(records[1], 3)) + completion("somebody_elses")
    found = compare(slurm_runs(text, "log"), records, WINDOW)
    assert (found.runs, found.unaccounted, found.unbacked, found.differing) == (2, [], [], {})


def test_each_difference_is_named():
    known, only_here, longer = record("a"), record("b"), record("c", wall_s=400.0)
    text = (
        completion(name_of(known)) + completion(name_of(longer)) + completion(name_of(record("d")), number=7)
        + completion(name_of(record("e")), state="CANCELLED", end="2026-11-23T02:00:00")
        + completion(name_of(record("f")), state="RUNNING")
        + completion(name_of(record("g")), end="2026-11-20T02:00:40")
    )  # fmt: skip
    found = compare(slurm_runs(text, "log"), [known, only_here, longer], WINDOW)
    assert found.unaccounted == [f"7 ({name_of(record('d'))})"]
    assert found.unbacked == [only_here.job_id]
    assert found.differing == {longer.job_id: "400 s accounted for, 40 s in the batch system"}


def test_what_ended_outside_of_the_time_explains_and_is_not_asked_for():
    early, gang = record("a", ended_at_us=1), record("b", wall_s=4000.0, processors=4)
    found = compare(slurm_runs(completion(name_of(early)) + completion(name_of(gang)), "log"), [early, gang], WINDOW)
    assert (found.runs, found.unaccounted, found.unbacked, found.differing) == (1, [], [], {})


def test_sacct_and_a_second_copy_that_ended_at_once():
    one = record("a")
    text = (
        "JobID|JobName|State|Start|End\n"
        f"12|{name_of(one)}|COMPLETED|2026-11-23T02:00:00|2026-11-23T02:00:00\n"
        f"11|{name_of(one)}|CANCELLED by 0|2026-11-23T02:00:00|2026-11-23T02:00:40\n"
        "11.batch|batch|COMPLETED|2026-11-23T02:00:00|2026-11-23T02:00:40\n"
        f"13|{name_of(record('b'))}|CANCELLED by 0|Unknown|2026-11-23T02:00:00\n"
    )
    found = compare(slurm_runs(text, "log"), [one], WINDOW)
    assert (found.runs, found.unaccounted, found.unbacked, found.differing) == (1, [], [], {})


@pytest.mark.parametrize("text", ["JobID|State\n", "no record at all\n", "JobId=1 Name=x\n"])
def test_other_files_are_refused(text: str):
    with pytest.raises(UsageProblem, match="log"):
        slurm_runs(text, "log")


def test_lines_of_workers():
    one, other = record("a"), record("b")
    lines = [
        {"job_id": one.job_id, "attempt": 1, "wall_s": 40.2, "agent": "worker.X", "at": "2026-11-23T02:00:40.100000Z"},
        {"job_id": other.job_id, "attempt": 2, "wall_s": 3, "agent": "worker.X", "at": "2026-11-23T02:00:40.100000Z"},
        {"job_id": other.job_id, "attempt": 3, "wall_s": 0.0, "agent": "worker.X", "at": "2026-11-23T02:00:40.100000Z"},
    ]
    found = compare(worker_runs(lines), [one], (0, 1 << 62))
    assert (found.unaccounted, found.unbacked) == ([f"{other.job_id} at worker.X"], [])
