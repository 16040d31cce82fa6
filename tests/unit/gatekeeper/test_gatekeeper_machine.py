"""The gatekeeper's decisions, edge by edge: events in, updates and commands out."""

from __future__ import annotations

from agents.gatekeeper.machine import MAX_RETURNS, GatekeeperMachine
from agents.gatekeeper.model import (
    AcknowledgeWorker,
    CancelAsked,
    Closure,
    ClosureAsked,
    CreditGiven,
    Event,
    HoldAsked,
    Job,
    JobEnded,
    JobReturned,
    JobStarted,
    KillOnWorker,
    QueueRules,
    ReleaseAsked,
    Rules,
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
        self.machine = GatekeeperMachine(Rules(worker_lost_us=60 * SECOND, max_queued=max_queued))
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


def submitted(job_id: str = "j", attempt: int = 1, wall_s: int = 0, queue: str = "") -> Submitted:
    job = Job(job_id, attempt, "alice", "cms", "cms001", 61001, 61001, SECOND, wall_s=wall_s, queue=queue)
    return Submitted(job)


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


def test_what_runs_is_stopped_before_anything_is_kept() -> None:
    site = Site()
    site.running("running")
    site(submitted("assigned"), submitted("queued"))
    (order,) = site.machine.stop(["running", "assigned", "queued"], "BANNED")
    assert order == KillOnWorker("w", 1, "running", 1, 1, "BANNED")
    turn = site(CancelAsked("running", "BANNED"))  # now it is kept
    assert turn.changed["running"].cancel_reason == "BANNED"
    assert not site.machine.jobs["assigned"].cancel_reason  # that order may still wait for its transaction


def test_what_was_stopped_is_cancelled_also_if_a_restart_forgot_that() -> None:
    site = Site()
    site.running()
    assert states(site(ended(reason="BANNED", exit_code=137))) == [("j", "CANCELLED")]
    site(submitted("k"))
    site(JobStarted("w", "k", 1, 1, 5))
    assert states(site(ended("k", reason="WALL_TIME", exit_code=137))) == [("k", "DONE")]


def test_an_end_tells_of_a_start_that_was_lost() -> None:
    site = Site()
    site.worker()
    site(submitted("k"))
    assert states(site(ended("k"))) == [("k", "RUNNING"), ("k", "DONE")]
    site(submitted("l"))
    assert states(site(ended("l", reason="STARTER_LOST", failed=True))) == [("l", "FAILED")]


def test_a_worker_that_was_away_hears_of_a_stop_when_it_comes_back() -> None:
    site = Site()
    site.running()
    site(WorkerLeft("w", 1))
    assert site.machine.stop(["j"], "BANNED") == []
    turn = site(WorkerArrived("w", 2, 2, held=(("j", 1, 1),)))
    assert turn.commands == [KillOnWorker("w", 2, "j", 1, 1, "BANNED")]


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
    site(ClosureAsked(Closure(draining=True, reason="a new kernel")))
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


def test_a_held_job_waits_until_it_is_released_and_keeps_that_over_a_restart() -> None:
    site = Site()
    turn = site(submitted("a"), HoldAsked("a"))
    assert turn.updates[-1].reason == "HELD"
    site.worker()
    assert site.machine.counts()[2:] == (0, 1)
    (held,) = site.machine.jobs.values()
    site.machine.restart([held], {"a": 1}, site.machine.sequence, site.now_us)
    site.worker(stream=2)
    assert list(site.machine.parked) == ["a"]
    turn = site(ReleaseAsked("a"))
    assert states(turn) == [("a", "QUEUED"), ("a", "ASSIGNED")]
    assert turn.updates[-1].reason == ""


def test_a_held_job_is_cancelled_and_superseded_as_any_other() -> None:
    site = Site()
    site(submitted("a"), submitted("b"), HoldAsked("a"), HoldAsked("b"))
    assert states(site(CancelAsked("a"))) == [("a", "CANCELLED")]
    site(submitted("b", attempt=2))
    assert (list(site.machine.queue), list(site.machine.parked)) == (["b"], [])


def test_what_runs_is_not_held() -> None:
    site = Site()
    site.running()
    assert states(site(HoldAsked("j"), HoldAsked("nobody"))) == []
    assert states(site(ended())) == [("j", "DONE")]


def test_a_job_that_would_run_into_a_maintenance_waits_until_it_is_over() -> None:
    site = Site()
    site(ClosureAsked(Closure(reason="new disks", begins_at_us=100 * SECOND, ends_at_us=200 * SECOND)))
    site.worker(slots=5)
    turn = site(submitted("short", wall_s=50), submitted("long", wall_s=3600))
    assert states(turn) == [("short", "QUEUED"), ("long", "QUEUED"), ("short", "ASSIGNED")]
    site.now_us = 150 * SECOND
    assert states(site(Ticked(), submitted("another", wall_s=1))) == [("another", "QUEUED")]
    site.now_us = 200 * SECOND
    turn = site(Ticked())
    assert turn.closures == {}
    assert states(turn) == [("long", "ASSIGNED"), ("another", "ASSIGNED")]


def test_a_maintenance_that_is_taken_back_lets_everything_start() -> None:
    site = Site()
    site(ClosureAsked(Closure(reason="new disks", begins_at_us=SECOND)))
    site.worker()
    assert states(site(submitted())) == [("j", "QUEUED")]
    assert states(site(ClosureAsked(Closure()))) == [("j", "ASSIGNED")]


def test_no_more_run_than_the_rules_allow() -> None:
    site = Site()
    site.machine.rules = Rules(worker_lost_us=60 * SECOND, max_queued=100, max_running=2)
    site.worker(slots=5)
    turn = site(*(submitted(f"j{number}") for number in range(4)))
    assert sum(isinstance(command, RunOnWorker) for command in turn.commands) == 2
    site(JobStarted("w", "j0", 1, 1, at_us=5))
    assert states(site(ended("j0"))) == [("j0", "DONE"), ("j2", "ASSIGNED")]


def queues(short: QueueRules) -> Site:
    site = Site()
    rules = Rules(worker_lost_us=60 * SECOND, max_queued=3, queues={"short": short, "long": QueueRules()})
    site.machine = GatekeeperMachine(rules)
    return site


def counted(site: Site) -> tuple[dict[str, int], dict[str, int]]:
    machine = site.machine
    return dict(+machine.running_in), dict(+machine.waiting_in)


def test_a_queue_has_slots_of_its_own_limit_and_the_others_go_on() -> None:
    site = queues(QueueRules(max_running=1))
    site.worker(slots=3)
    turn = site(*(submitted(name, queue="short") for name in ("s1", "s2")), submitted("l1", queue="long"))
    assert [job for job, state in states(turn) if state == "ASSIGNED"] == ["s1", "l1"]
    assert counted(site) == ({"short": 1, "long": 1}, {"short": 1})
    site(JobStarted("w", "s1", 1, 1, at_us=5))
    assert states(site(ended("s1"))) == [("s1", "DONE"), ("s2", "ASSIGNED")]
    assert states(site(CreditGiven("w", 1, 2, 3), JobReturned("w", "s2", 1, 1)))[-1] == ("s2", "ASSIGNED")
    assert counted(site) == ({"short": 1, "long": 1}, {})


def test_a_full_queue_refuses_and_the_others_take() -> None:
    site = queues(QueueRules(max_queued=1))
    turn = site(*(submitted(f"s{n}", queue="short") for n in range(2)), *(submitted(f"l{n}") for n in range(3)))
    assert [(one.accepted, one.reason) for one in turn.outcomes] == [
        (True, ""), (False, "QUEUE_FULL"), (True, ""), (True, ""), (False, "QUEUE_FULL"),
    ]  # fmt: skip
    assert turn.outcomes[1].sentence == "the queue is full (1 jobs); try again later"
    site(CancelAsked("s0"), submitted("s3", queue="short"))
    assert counted(site) == ({}, {"short": 1, "": 2})


def test_a_queue_is_drained_or_under_maintenance_by_itself() -> None:
    site = queues(QueueRules())
    site.worker(slots=9)
    site(ClosureAsked(Closure(draining=True, reason="no more"), "short"))
    turn = site(submitted("s1", queue="short"), submitted("l1", queue="long"))
    assert [(one.job_id, one.reason) for one in turn.outcomes] == [("s1", "DRAINING"), ("l1", "")]
    maintenance = Closure(reason="disks", begins_at_us=site.now_us, ends_at_us=9 * SECOND)
    turn = site(ClosureAsked(maintenance, "short"), submitted("s2", queue="short"), submitted("l2", queue="long"))
    assert [job for job, state in states(turn) if state == "ASSIGNED"] == ["l2"]
    assert turn.closures == {"short": maintenance}
    site.now_us = 9 * SECOND
    turn = site(Ticked())
    assert (states(turn), turn.closures) == ([("s2", "ASSIGNED")], {})


def test_what_is_said_of_all_queues_takes_the_place_of_what_was_said_of_one() -> None:
    site = queues(QueueRules())
    site(ClosureAsked(Closure(draining=True, reason="one"), "short"))
    assert site(ClosureAsked(Closure(draining=True, reason="all"))).closures == {"": Closure(True, "all")}
    assert [one.reason for one in site(submitted(queue="long")).outcomes] == ["DRAINING"]
    assert site(ClosureAsked(Closure())).closures == {}


def test_counts_by_queue_survive_recovery_and_newer_attempts() -> None:
    site = queues(QueueRules(max_running=1))
    site.worker(slots=1)
    site(submitted("a", queue="short"), submitted("b", queue="short"), submitted("c", queue="gone"))
    jobs = list(site.machine.jobs.values())
    site.machine.restart(jobs, {}, 9, site.now_us)
    assert counted(site) == ({"short": 1}, {"short": 1, "gone": 1})
    site(submitted("a", attempt=2, queue="long"))
    assert counted(site) == ({}, {"short": 1, "gone": 1, "long": 1})
