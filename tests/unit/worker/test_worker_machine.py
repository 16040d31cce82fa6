"""The worker's decisions: events in, commands out. Interleavings are in the gatekeeper's simulation."""

from __future__ import annotations

from typing import Any

from agents.worker.machine import GIVE_BACK_AFTER_S, WorkerMachine
from agents.worker.model import (
    AcknowledgedByGatekeeper,
    Collected,
    Commands,
    Event,
    Job,
    KillAsked,
    LinkOpened,
    Looked,
    Name,
    NotRunning,
    Ordered,
    Phase,
    Prepared,
    PrepareFailed,
    ProcessEnded,
    ProcessLost,
    ProcessStarted,
    Result,
    StartRefused,
)


class Node:
    """A machine with two slots."""

    def __init__(self, prefetch: bool = False) -> None:
        self.machine = WorkerMachine(2, max_unacknowledged=3, prefetch=prefetch)

    def __call__(self, *events: Event) -> Commands:
        return self.machine.handle(list(events), 1000)

    def job(self, name: str) -> Job:
        made = Name(name, 1, 1)
        return Job(made.key, made, "alice", None)

    def started(self, name: str) -> Job:
        job = self.job(name)
        self(Ordered(job), Prepared(job.key))
        self(ProcessStarted(job.key, 42, 7))
        return job


def record(**more: Any) -> dict[str, Any]:
    return {"exit_code": 0, "reason": "", "wall_s": 0.01, **more}


def test_the_ordinary_way() -> None:
    node = Node()
    job = node.job("a")
    assert node(Ordered(job)).prepare == [job]
    assert node(Prepared(job.key)).start == [job]
    assert node(ProcessStarted(job.key, 42, 7)).report_started == [job]
    assert node(ProcessEnded(job.key, record())).collect == [job]
    assert node.machine.credit == 2  # its slot is free while its output is gathered
    assert node(Collected(job.key, Result(9))).report == [job]
    assert node(AcknowledgedByGatekeeper(job.name)).forget == [job]
    assert not node.machine.jobs
    assert node.machine.unreported == node.machine.in_slots == 0


def test_slots_fill_in_order() -> None:
    node = Node()
    jobs = [node.job(name) for name in "abcd"]
    todo = node(*(Ordered(job) for job in jobs), *(Prepared(job.key) for job in jobs))
    assert todo.start == jobs[:2]
    assert node(ProcessEnded(jobs[0].key, record())).start == [jobs[2]]
    assert node.machine.credit == 0


def test_what_cannot_be_prepared_is_reported_unstarted() -> None:
    node = Node()
    job = node.job("a")
    node(Ordered(job))
    assert node(PrepareFailed(job.key, "DISK_FULL", "no room")).report == [job]
    assert job.result is not None
    assert (job.result.failed, job.result.started, job.result.reason) == (True, False, "DISK_FULL")


def test_killed_while_preparing_is_not_removed_under_the_preparing_thread() -> None:
    node = Node()
    job = node.job("a")
    node(Ordered(job))
    assert node(KillAsked(job.name, "CANCELLED")).report == [job]
    assert node(AcknowledgedByGatekeeper(job.name)).forget == []
    assert node(Prepared(job.key)).forget == [job]


def test_killed_while_running_ends_with_the_process() -> None:
    node = Node()
    job = node.started("a")
    assert node(KillAsked(job.name, "CANCELLED")).kill == [job]
    assert (job.kill_reason, job.at_once) == ("CANCELLED", False)
    assert node(KillAsked(job.name, "BANNED", at_once=True)).kill == [job]  # no grace any more
    assert (job.kill_reason, job.at_once) == ("CANCELLED", True)
    assert node(ProcessEnded(job.key, record(reason="CANCELLED", exit_code=143))).collect == [job]


def test_killed_before_the_fork_never_starts() -> None:
    node = Node()
    job = node.job("a")
    node(Ordered(job), Prepared(job.key))
    node(KillAsked(job.name, "CANCELLED"))
    assert node(NotRunning(job.key)).report == [job]
    assert job.result is not None
    assert not job.result.started


def test_a_kill_that_met_the_fork_is_sent_again() -> None:
    node = Node()
    job = node.job("a")
    node(Ordered(job), Prepared(job.key))
    node(KillAsked(job.name, "CANCELLED"))
    assert node(ProcessStarted(job.key, 42, 7)).kill == [job]


def test_a_kill_of_what_is_not_here_is_answered() -> None:
    assert Node()(KillAsked(Name("x", 1, 1), "FENCED")).unknown == [(Name("x", 1, 1), "FENCED")]


def test_the_starters_refusals() -> None:
    node = Node()
    back, twice = node.job("a"), node.job("b")
    node(Ordered(back), Prepared(back.key), Ordered(twice), Prepared(twice.key))
    assert node(StartRefused(back.key, "NO_PROCESSES")).give_back == [back]
    assert node(StartRefused(twice.key, "ALREADY_STARTED")).report == [twice]
    assert twice.result is not None
    assert twice.result.started


def test_a_lost_starter() -> None:
    node = Node()
    lost, waiting = node.started("a"), node.job("b")
    node(Ordered(waiting), Prepared(waiting.key))
    todo = node(ProcessLost(lost.key, "STARTER_LOST", "gone"), NotRunning(waiting.key))
    assert todo.report == [lost]
    assert todo.start == [waiting]
    assert waiting.phase is Phase.STARTING


def test_a_new_stream_is_told_everything_again() -> None:
    node = Node()
    running, over = node.started("a"), node.started("b")
    node(ProcessEnded(over.key, record()), Collected(over.key, Result(9)))
    todo = node(LinkOpened())
    assert (todo.report_started, todo.report) == ([running], [over])


def test_no_credit_when_unfit_or_when_reports_are_not_acknowledged() -> None:
    node = Node()
    node.machine.unfit = "DISK_FULL"
    assert node.machine.credit == 0
    node.machine.unfit = ""
    for name in "abc":
        job = node.started(name)
        node(ProcessEnded(job.key, record()), Collected(job.key, Result(9)))
    assert node.machine.credit == 0


def test_short_jobs_are_fetched_in_advance_and_given_back_when_long_ones_come() -> None:
    node = Node(prefetch=True)
    assert node.machine.credit == 2
    node.machine.mean_wall_s = 0.01
    assert node.machine.credit > 50
    jobs = [node.job(f"j{n}") for n in range(30)]
    node(Looked(100.0))
    todo = node(*(Ordered(job) for job in jobs), *(Prepared(job.key) for job in jobs))
    assert len(todo.start) == 18  # two run, sixteen wait in the starter
    node(*(ProcessStarted(job.key, 1, 1) for job in jobs[:2]))
    assert node(Looked(101.0)).give_back == []
    todo = node(Looked(101.0 + GIVE_BACK_AFTER_S))
    assert todo.give_back == jobs[18:]
    assert todo.withdraw == [job.key for job in jobs[2:18]]
    assert node(NotRunning(jobs[2].key)).give_back == [jobs[2]]
    assert node(ProcessStarted(jobs[3].key, 1, 1)).report_started == [jobs[3]]  # it was forked just then
    assert node.machine.credit == 0


def test_the_key_tells_runs_apart() -> None:
    names = [Name("j", 1, 1), Name("j", 1, 2), Name("j", 2, 1), Name("j1", 1, 1)]
    assert len({name.key for name in names}) == 4
    assert all(len(name.key) == 32 and name.key.isalnum() for name in names)
