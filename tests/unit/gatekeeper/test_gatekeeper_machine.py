"""The gatekeeper's decisions, edge by edge: events in, updates and commands out."""

from __future__ import annotations

from agents.gatekeeper.machine import MAX_RETURNS, GatekeeperMachine
from agents.gatekeeper.model import (
    AcknowledgeWorker,
    CancelAsked,
    CreditGiven,
    Event,
    Job,
    JobEnded,
    JobReturned,
    JobStarted,
    KillOnWorker,
    RunOnWorker,
    State,
    Submitted,
    Ticked,
    Turn,
    WorkerArrived,
    WorkerLeft,
)

SECOND = 1_000_000


class Site:
    """A machine with a clock."""

    def __init__(self, max_queued: int = 100) -> None:
        self.machine = GatekeeperMachine(worker_lost_us=60 * SECOND, max_queued=max_queued)
        self.now_us = SECOND

    def __call__(self, *events: Event) -> Turn:
        return self.machine.turn(events, self.now_us)

    def worker(self, name: str = "w", slots: int = 2, stream: int = 1) -> None:
        self(WorkerArrived(name, stream, slots), CreditGiven(name, stream, slots, 0))

    def running(self, job_id: str = "j") -> None:
        """One job RUNNING on worker w."""
        self.worker()
        self(submitted(job_id))
        self(JobStarted("w", job_id, 1, 1, at_us=5))


def submitted(job_id: str = "j", attempt: int = 1) -> Submitted:
    return Submitted(Job(job_id, attempt, "alice", "cms", "cms001", 61001, 61001, SECOND))


def states(turn: Turn) -> list[tuple[str, str]]:
    return [(update.job_id, update.state.value) for update in turn.updates]


def ended(job_id: str = "j", run: int = 1, **more: object) -> JobEnded:
    return JobEnded("w", job_id, 1, run, 9, **more)  # type: ignore[arg-type]


def test_a_job_is_assigned_in_the_turn_that_brings_it() -> None:
    site = Site()
    site.worker()
    turn = site(submitted())
    assert states(turn) == [("j", "QUEUED"), ("j", "ASSIGNED")]
    (command,) = turn.commands
    assert isinstance(command, RunOnWorker)
    assert (command.worker, command.run) == ("w", 1)


def test_jobs_go_to_the_worker_with_the_most_room_oldest_first() -> None:
    site = Site()
    site.worker("a", 1, 1)
    site.worker("b", 3, 2)
    turn = site(*(submitted(f"j{n}") for n in range(6)))
    runs = [(command.worker, command.job.job_id) for command in turn.commands if isinstance(command, RunOnWorker)]
    assert runs == [("b", "j0"), ("b", "j1"), ("a", "j2"), ("b", "j3")]
    assert list(site.machine.queue) == ["j4", "j5"]


def test_a_credit_that_has_not_seen_the_last_orders_counts_them() -> None:
    site = Site()
    site.worker("w", 2)
    site(submitted("a"), submitted("b"), submitted("c"))
    turn = site(CreditGiven("w", 1, 2, seen=0))  # made before the two orders arrived
    assert not turn.commands
    turn = site(CreditGiven("w", 1, 1, seen=2))
    assert [command.job.job_id for command in turn.commands if isinstance(command, RunOnWorker)] == ["c"]


def test_done_failed_and_reports_told_twice() -> None:
    site = Site()
    site.running("a")
    turn = site(ended("a", exit_code=3))
    assert states(turn) == [("a", "DONE")]
    assert turn.updates[0].exit_code == 3
    assert isinstance(turn.commands[0], AcknowledgeWorker)
    turn = site(ended("a", exit_code=3))
    assert states(turn) == []
    assert isinstance(turn.commands[0], AcknowledgeWorker)
    site(CreditGiven("w", 1, 1, 1), submitted("b"))
    turn = site(ended("b", failed=True, reason="OUTPUT_DATA_FAILED"))
    assert states(turn) == [("b", "FAILED")]


def test_cancel_in_each_state() -> None:
    site = Site()
    turn = site(submitted("queued"), CancelAsked("queued"))
    assert states(turn) == [("queued", "QUEUED"), ("queued", "CANCELLED")]
    site.worker()
    turn = site(submitted("assigned"))
    turn = site(CancelAsked("assigned"))
    assert states(turn) == []
    assert isinstance(turn.commands[0], KillOnWorker)
    turn = site(ended("assigned", reason="CANCELLED", started=False))
    assert states(turn) == [("assigned", "CANCELLED")]
    assert not turn.updates[0].started
    site(CreditGiven("w", 1, 1, 1), submitted("running"))
    site(JobStarted("w", "running", 1, 1, 5), CancelAsked("running"))
    turn = site(ended("running", exit_code=0))  # it was faster; the cancellation was promised
    assert states(turn) == [("running", "CANCELLED")]
    assert states(site(CancelAsked("running"))) == []


def test_a_cancellation_is_sent_again_when_the_worker_comes_back() -> None:
    site = Site()
    site.running()
    site(WorkerLeft("w", 1))
    assert not site(CancelAsked("j")).commands
    turn = site(WorkerArrived("w", 2, 2, held=(("j", 1, 1),)))
    assert [type(command) for command in turn.commands] == [KillOnWorker]


def test_an_order_that_did_not_arrive_is_handed_out_again_with_the_next_run() -> None:
    site = Site()
    site.worker()
    site(submitted())
    site(WorkerLeft("w", 1))
    turn = site(WorkerArrived("w", 2, 2, held=()))
    assert states(turn) == [("j", "QUEUED")]
    turn = site(CreditGiven("w", 2, 2, 0))
    (command,) = turn.commands
    assert isinstance(command, RunOnWorker)
    assert command.run == 2
    late = site(JobStarted("w", "j", 1, 1, 5))
    assert states(late) == []
    assert isinstance(late.commands[0], KillOnWorker)
    assert late.commands[0].run == 1


def test_a_silent_worker_loses_its_jobs_after_a_while() -> None:
    site = Site()
    site.running()
    site(WorkerLeft("w", 1))
    site.now_us += 59 * SECOND
    assert states(site(Ticked())) == []
    site.now_us += SECOND
    turn = site(Ticked())
    assert states(turn) == [("j", "FAILED")]
    assert (turn.updates[0].reason, turn.updates[0].started) == ("WORKER_LOST", True)
    turn = site(WorkerArrived("w", 2, 2, held=(("j", 1, 1),)))
    assert isinstance(turn.commands[0], KillOnWorker)
    turn = site(ended(exit_code=0))
    assert states(turn) == []
    assert isinstance(turn.commands[0], AcknowledgeWorker)


def test_after_a_restart_every_worker_has_its_time_to_come_back() -> None:
    before = Site()
    before.running()
    before(submitted("waiting"), submitted("more"))
    site = Site()
    site.machine.recover(before.machine.jobs.values(), {}, before.machine.sequence, site.now_us)
    assert list(site.machine.queue) == ["more"]
    turn = site(WorkerArrived("w", 9, 2, held=(("j", 1, 1), ("waiting", 1, 1))))
    assert states(turn) == []
    turn = site(ended(exit_code=0))
    assert states(turn) == [("j", "DONE")]
    assert turn.updates[0].sequence == before.machine.sequence + 1


def test_attempts_are_fenced_and_follow_each_other() -> None:
    site = Site()
    site.running()
    turn = site(submitted(attempt=2))
    assert turn.outcomes[0].new
    assert isinstance(turn.commands[0], KillOnWorker)
    assert states(turn) == [("j", "QUEUED")]  # not ASSIGNED, though there is room: the older one still dies
    (outcome,) = site(submitted(attempt=1)).outcomes
    assert (outcome.accepted, outcome.reason) == (False, "FENCED")
    turn = site(ended(reason="FENCED"))
    assert states(turn) == [("j", "ASSIGNED")]


def test_the_same_attempt_again_is_accepted_and_changes_nothing() -> None:
    site = Site()
    site(submitted())
    turn = site(submitted())
    assert (turn.outcomes[0].accepted, turn.outcomes[0].new, turn.accepted, turn.updates) == (True, False, [], [])


def test_limits_and_draining() -> None:
    site = Site(max_queued=1)
    turn = site(submitted("a"), submitted("b"))
    assert [outcome.reason for outcome in turn.outcomes] == ["", "QUEUE_FULL"]
    site.machine.draining = True
    assert site(submitted("c")).outcomes[0].reason == "DRAINING"


def test_a_job_that_nobody_takes_ends() -> None:
    site = Site()
    site.worker("w", 100)
    site(submitted())
    for run in range(1, MAX_RETURNS + 1):
        assert states(site(JobReturned("w", "j", 1, run)))[0] == ("j", "QUEUED")
    turn = site(JobReturned("w", "j", 1, MAX_RETURNS + 1))
    assert states(turn) == [("j", "FAILED")]
    assert turn.updates[0].reason == "NO_WORKER_TAKES_IT"


def test_an_older_stream_of_a_worker_does_not_count() -> None:
    site = Site()
    site.running()
    site(WorkerArrived("w", 2, 2, held=(("j", 1, 1),)))
    site(WorkerLeft("w", 1), CreditGiven("w", 1, 50, 0))
    assert site.machine.workers["w"].stream == 2
    assert site.machine.workers["w"].credit == 0


def test_counts_are_measured() -> None:
    site = Site()
    assert site.machine.counts() == (0, 0, 0, 0)
    site.running()
    assert site.machine.counts() == (2, 1, 1, 0)
    assert site.machine.jobs["j"].state is State.RUNNING
