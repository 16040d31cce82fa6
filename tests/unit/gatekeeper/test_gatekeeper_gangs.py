"""Gangs: all slots or none, no two that wait for each other, and one end for all."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.gatekeeper import gangs
from agents.gatekeeper.gangs import Part, Phase
from agents.gatekeeper.machine import SLACK_S, GatekeeperMachine
from agents.gatekeeper.model import (
    CancelAsked,
    CreditGiven,
    Event,
    GoOnWorker,
    Job,
    JobEnded,
    JobReturned,
    JobStarted,
    KillOnWorker,
    PartReady,
    Rules,
    RunOnWorker,
    State,
    Submitted,
    Ticked,
    Turn,
    Usage,
    WorkerArrived,
    WorkerLeft,
)

SECOND = 1_000_000


class Site:
    """A machine with workers a and b of two slots each."""

    def __init__(self, workers: str = "ab") -> None:
        self.machine = GatekeeperMachine(Rules(worker_lost_us=60 * SECOND, max_queued=100))
        self.now_us = SECOND
        self.streams = itertools.count(1)
        for name in workers:
            self.arrives(name)

    def __call__(self, *events: Event) -> Turn:
        return self.machine.turn(events, self.now_us)

    def arrives(self, name: str, *held: tuple[str, int, int], slots: int = 2) -> Turn:
        stream = next(self.streams)
        credit = CreditGiven(name, stream, max(0, slots - len(held)), 0)
        return self(WorkerArrived(name, stream, slots, held), credit)

    def credit(self, name: str, slots: int) -> CreditGiven:
        worker = self.machine.workers[name]
        return CreditGiven(name, worker.stream, slots, worker.sent)

    def running(self, slots: int = 4, hosts: int = 2) -> None:
        """Gang g on both workers."""
        self(gang("g", slots, hosts))
        self(*(PartReady(name, "g", 1, 1) for name in "ab"))
        self(*(JobStarted(name, "g", 1, 1, at_us=5) for name in "ab"))


def gang(job_id: str, slots: int, hosts: int = 1, attempt: int = 1, wall_s: int = 0) -> Submitted:
    job = Job(job_id, attempt, "alice", "cms", "cms001", 61001, 61001, SECOND, slots=slots, hosts=hosts, wall_s=wall_s)
    return Submitted(job)


def ended(worker: str, run: int = 1, **more: object) -> JobEnded:
    return JobEnded(worker, "g", 1, run, 9, **more)  # type: ignore[arg-type]


def assigned(turn: Turn) -> list[str]:
    return [command.job.job_id for command in turn.commands if isinstance(command, RunOnWorker)]


def names(turn: Turn, kind: type) -> list[str]:
    return [command.worker for command in turn.commands if type(command) is kind]


def states(turn: Turn) -> list[tuple[str, str]]:
    return [(update.job_id, update.state.value) for update in turn.updates]


@given(
    st.integers(2, 12), st.integers(1, 4), st.integers(1, 3),
    st.dictionaries(st.sampled_from("abcde"), st.integers(-1, 6)),
)  # fmt: skip
def test_a_gang_is_placed_within_the_free_slots_or_not_at_all(
    slots: int, hosts: int, each: int, spare: dict[str, int]
) -> None:
    parts = gangs.place(slots, hosts, each, spare)
    free = {name: count for name, count in spare.items() if count >= each}
    if parts is None:
        for count in range(hosts, slots // each + 1):
            assert not any(sum(some) >= slots for some in itertools.combinations(free.values(), count))
        return
    assert all(part.ranks >= each for part in parts)
    assert sum(part.ranks for part in parts) == slots
    assert len(parts) >= hosts
    assert all(1 <= part.ranks <= free[part.worker] for part in parts)
    assert [gangs.first_rank(parts, part.worker) for part in parts] == [
        sum(part.ranks for part in parts[:number]) for number in range(len(parts))
    ]
    assert gangs.loads(gangs.dumps(parts)) == parts


def test_a_gang_waits_for_workers_that_have_so_many_slots_each() -> None:
    site = Site()
    wide = gang("w", 3)
    turn = site(replace(wide, job=replace(wide.job, slots_per_host=2)))  # two and one would be free
    assert assigned(turn) == []
    assert (
        site.machine.jobs["w"].sentence
        == "it needs 3 slots on 1 workers, 2 on each; there are 4 slots on 2 workers now"
    )
    assert assigned(site.arrives("c", slots=3)) == ["w"]


def test_parts_start_when_all_are_ready_and_not_before() -> None:
    site = Site()
    turn = site(gang("g", 3))
    assert names(turn, RunOnWorker) == ["a", "b"]
    assert names(site(PartReady("a", "g", 1, 1)), GoOnWorker) == []
    assert names(site(PartReady("b", "g", 1, 1)), GoOnWorker) == ["a", "b"]
    assert states(site(JobStarted("a", "g", 1, 1, at_us=5))) == [("g", "RUNNING")]
    assert states(site(JobStarted("b", "g", 1, 1, at_us=6))) == []


def test_who_was_ready_and_lost_its_stream_says_it_again_before_anybody_starts() -> None:
    site = Site()
    site(gang("g", 4))
    site(PartReady("a", "g", 1, 1))
    site(WorkerLeft("a", site.machine.workers["a"].stream))
    assert names(site(PartReady("b", "g", 1, 1)), GoOnWorker) == []
    site.arrives("a", ("g", 1, 1))
    assert names(site(PartReady("a", "g", 1, 1)), GoOnWorker) == ["a", "b"]
    site(JobStarted("b", "g", 1, 1, at_us=5))
    site.arrives("a", ("g", 1, 1))  # its order to go was lost with the stream
    assert names(site(PartReady("a", "g", 1, 1)), GoOnWorker) == ["a"]


def test_after_a_restart_of_the_gatekeeper_the_workers_say_again_who_is_ready() -> None:
    site = Site()
    site(gang("g", 4))
    site(PartReady("a", "g", 1, 1))
    site.machine.restart(list(site.machine.jobs.values()), {}, 9, site.now_us)
    site.arrives("a", ("g", 1, 1))
    site.arrives("b", ("g", 1, 1))
    assert names(site(PartReady("b", "g", 1, 1)), GoOnWorker) == []
    assert names(site(PartReady("a", "g", 1, 1)), GoOnWorker) == ["a", "b"]


def test_two_gangs_that_both_need_everything_run_one_after_the_other() -> None:
    site = Site()
    turn = site(gang("g", 4), gang("h", 4), gang("single", 1))
    assert [command.job.job_id for command in turn.commands if isinstance(command, RunOnWorker)] == ["g", "g"]
    site(PartReady("a", "g", 1, 1), PartReady("b", "g", 1, 1))
    turn = site(ended("a"), site.credit("a", 2))
    assert names(turn, RunOnWorker) == []  # nothing starts before the gang whose turn it is
    turn = site(ended("b"), site.credit("b", 2))
    assert states(turn) == [("g", "DONE"), ("h", "ASSIGNED")]
    assert names(turn, RunOnWorker) == ["a", "b"]


def test_a_gang_that_waits_for_room_is_cancelled_as_any_other_and_the_rest_goes_on() -> None:
    site = Site()
    site(gang("g", 4), gang("h", 2), gang("single", 1))
    site(ended("a"), site.credit("a", 1))
    assert site.machine.gang == "h"
    assert states(site(CancelAsked("h"))) == [("h", "CANCELLED"), ("single", "ASSIGNED")]


def test_a_gang_that_no_number_of_ends_can_make_room_for_waits_aside() -> None:
    site = Site("a")
    turn = site(gang("g", 4), gang("single", 1))
    assert [(update.job_id, update.reason) for update in turn.updates][2:] == [("g", "GANG_TOO_LARGE"), ("single", "")]
    site(CancelAsked("single"))
    site(JobEnded("a", "single", 1, 1, 9), site.credit("a", 2))
    assert names(site.arrives("b"), RunOnWorker) == ["a", "b"]


def test_the_first_rank_that_ends_badly_ends_all_and_is_named() -> None:
    site = Site()
    site.running()
    turn = site(ended("b", exit_code=5, sentence="rank 3 ended with 5", usage=Usage(2, 1, 1, 10)))
    assert (names(turn, KillOnWorker), states(turn)) == (["a"], [])
    turn = site(ended("a", exit_code=143, reason="GANG_ENDED", usage=Usage(3, 1, 1, 10)))
    (update,) = turn.updates
    assert (update.state, update.exit_code, update.reason, update.slots) == (State.DONE, 5, "", 4)
    assert update.sentence == "ranks 2 to 3 on b: rank 3 ended with 5; the other ranks were stopped"
    assert update.usage == Usage(3, 2, 2, 20)
    assert (+site.machine.running_in, site.machine.counts()[2]) == ({}, 0)


def test_a_worker_that_is_lost_ends_the_whole_gang() -> None:
    site = Site()
    site.running()
    site(WorkerLeft("b", site.machine.workers["b"].stream))
    site.now_us += 61 * SECOND
    turn = site(Ticked())
    assert (names(turn, KillOnWorker), states(turn)) == (["a"], [])
    (update,) = site(ended("a", exit_code=143, reason="GANG_ENDED")).updates
    assert (update.state, update.reason, update.started) == (State.FAILED, "WORKER_LOST", True)
    assert "worker b was not heard of" in update.sentence


def test_a_part_that_comes_back_before_the_start_takes_the_others_back() -> None:
    site = Site()
    site(gang("g", 4))
    site(PartReady("a", "g", 1, 1))
    turn = site(JobReturned("b", "g", 1, 1), site.credit("b", 0))
    assert (names(turn, KillOnWorker), states(turn)) == (["a"], [("g", "QUEUED")])
    turn = site(ended("a", failed=True, reason="FENCED"), site.credit("a", 2), site.credit("b", 2))
    assert states(turn) == [("g", "ASSIGNED")]
    assert [command.run for command in turn.commands if isinstance(command, RunOnWorker)] == [2, 2]
    assert names(site(PartReady("a", "g", 1, 1)), KillOnWorker) == ["a"]  # of the hand-out that came to nothing


def test_a_part_that_cannot_start_when_the_others_did_is_a_failure() -> None:
    site = Site()
    site(gang("g", 4))
    site(PartReady("a", "g", 1, 1), PartReady("b", "g", 1, 1), JobStarted("a", "g", 1, 1, at_us=5))
    assert names(site(JobReturned("b", "g", 1, 1)), KillOnWorker) == ["a"]
    (update,) = site(ended("a", exit_code=143, reason="GANG_ENDED")).updates
    assert (update.state, update.reason) == (State.FAILED, "START_REFUSED")


def test_cancel_kills_every_part_and_ends_when_all_are_dead() -> None:
    site = Site()
    site.running()
    assert names(site(CancelAsked("g")), KillOnWorker) == ["a", "b"]
    assert states(site(ended("a", exit_code=143, reason="CANCELLED"))) == []
    (update,) = site(ended("b", exit_code=143, reason="CANCELLED")).updates
    assert (update.state, update.reason) == (State.CANCELLED, "CANCELLED")


def test_a_newer_attempt_fences_every_part() -> None:
    site = Site()
    site.running()
    turn = site(gang("g", 4, attempt=2))
    assert names(turn, KillOnWorker) == ["a", "b"]
    assert site.machine.jobs["g"].blocked_by is not None
    assert replace(Part("a", 2), phase=Phase.READY) == gangs.put((Part("a", 2),), Part("a", 2, Phase.READY))[0]


def test_short_jobs_are_filled_in_that_end_before_the_gang_can_start() -> None:
    site = Site()
    assert assigned(site(gang("running", 1, wall_s=600))) == ["running"]
    site(JobStarted("a", "running", 1, 1, at_us=site.now_us))
    reserved_us = site.now_us + (600 + SLACK_S) * SECOND
    site.now_us += 100 * SECOND
    lengths = {"too-long": 501, "unknown": 0, "long": 500, "short": 60, "shorter": 50, "more": 50}
    turn = site(gang("g", 4), *(gang(name, 1, wall_s=wall_s) for name, wall_s in lengths.items()))
    assert (site.machine.gang, site.machine.reserved_at_us) == ("g", reserved_us)
    assert assigned(turn) == ["long", "short", "shorter"]
    site.now_us += 380 * SECOND
    assert assigned(site(JobEnded("b", "short", 1, 1, 9), site.credit("b", 1))) == ["more"]
    site.now_us += 71 * SECOND  # nothing ends in time any more
    turn = site(JobEnded("b", "more", 1, 1, 9), site.credit("b", 1), gang("last", 1, wall_s=50))
    assert assigned(turn) == []
    ends = [JobEnded(name, job_id, 1, 1, 9) for name, job_id in zip("ab", ("running", "long"), strict=True)]
    last = next(one for one in site.machine.jobs.values() if one.job_id == "shorter")
    turn = site(*ends, JobEnded(last.worker, "shorter", 1, 1, 9), site.credit("a", 2), site.credit("b", 2))
    assert assigned(turn) == ["g", "g"]
    assert site.machine.reserved_at_us == 0


def test_nothing_is_filled_in_while_nobody_knows_when_the_gang_can_start() -> None:
    site = Site()
    site(gang("running", 1))
    assert assigned(site(gang("g", 4), gang("short", 1, wall_s=1))) == []
    assert site.machine.reserved_at_us == 0


work = st.tuples(st.integers(0, 400), st.sampled_from([1, 1, 1, 2, 4, 6]), st.integers(1, 300), st.floats(0.01, 1))


@given(st.lists(work, min_size=1, max_size=60))
@settings(deadline=None)
def test_no_gang_waits_longer_for_what_was_filled_in(works: list[tuple[int, int, int, float]]) -> None:
    """Each comes at a time, with slots and a limit, of which it takes a part, and up to all of its slack. A gang whose
    turn it is starts at its first reservation at the latest, and that never goes back."""
    site = Site("abc")
    moments = [(at * SECOND, n, "comes") for n, (at, *_) in enumerate(works)]
    heapq.heapify(moments)
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    begun: set[str] = set()
    while moments:
        at_us, number, what = heapq.heappop(moments)
        site.now_us = max(site.now_us, SECOND + at_us)
        _, slots, wall_s, part = works[number]
        name = f"j{number}"
        if what == "comes":
            turn = site(gang(name, slots, wall_s=wall_s))
        else:
            places = [worker for worker, _ in site.machine.jobs[name].places]
            turn = site(
                *(JobEnded(worker, name, 1, 1, 9) for worker in places),
                *(site.credit(w, 2 - site.machine.workers[w].used + _held(site, name, w)) for w in "abc"),
            )
        for job_id in dict.fromkeys(assigned(turn)):
            _, slots, wall_s, part = works[int(job_id[1:])]
            assert site.now_us <= first.get(job_id, site.now_us), job_id
            begun.add(job_id)
            if part < 0.5:
                places = [worker for worker, _ in site.machine.jobs[job_id].places]
                site(*(JobStarted(worker, job_id, 1, 1, at_us=site.now_us) for worker in places))
            over_us = site.now_us - SECOND + int((wall_s + SLACK_S) * part * SECOND)
            heapq.heappush(moments, (over_us, int(job_id[1:]), "ends"))
        waiting = site.machine.gang
        if waiting and site.machine.reserved_at_us:
            first.setdefault(waiting, site.machine.reserved_at_us)
            assert site.machine.reserved_at_us <= last.get(waiting, site.machine.reserved_at_us)
            last[waiting] = site.machine.reserved_at_us
    assert len(begun) == len(works)


def _held(site: Site, job_id: str, worker: str) -> int:
    return sum(slots for name, slots in site.machine.jobs[job_id].places if name == worker)
