"""A job's life: events in, states and log out; and through every interleaving that a bad network can make."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from support.proof import TIMES

from agents.broker import machine as m
from agents.broker.model import ENDED, JobState

MATCH = m.Matched("ce1", "h:1")


def run(job: m.Job, *events: m.Event) -> tuple[m.Job, list[str]]:
    log: list[str] = []
    for event in events:
        step = m.step(job, event)
        job = step.job
        log += [item.type for item in step.log]
    return job, log


def test_usual_way() -> None:
    job, log = run(m.Job(), MATCH, m.Sending(), m.Accepted(1), m.Started(1), m.Ended(1), m.OutputFetched(), m.Purged())
    assert (job.state, job.purge, job.attempt) == (JobState.CLEARED, False, 1)
    assert log == ["MATCHED", "CLEARED"]


def test_an_update_may_overtake_the_answer_to_submit() -> None:
    job, _ = run(m.Job(), MATCH, m.Sending(), m.Started(1), m.Accepted(1))
    assert job.state is JobState.RUNNING
    job, _ = run(job, m.Ended(1), m.Started(1), m.Accepted(1))
    assert job.state is JobState.DONE


def test_retries_are_counted_by_whether_the_process_started() -> None:
    job = m.Job(shallow_left=1, deep_left=1)
    job, log = run(job, MATCH, m.Sending(), m.Failed(1, "SCRATCH", started=False))
    assert (job.state, job.attempt, job.shallow_left, job.deep_left, job.excluded) == (
        JobState.WAITING,
        2,
        0,
        1,
        ("ce1",),
    )
    job, log = run(job, m.Matched("ce2", "h:2"), m.Sending(), m.Accepted(2), m.Failed(2, "WORKER_LOST", started=True))
    assert (job.state, job.attempt, job.deep_left, job.excluded) == (JobState.WAITING, 3, 0, ("ce2", "ce1"))
    job, log = run(job, MATCH, m.Sending(), m.Accepted(3), m.Failed(3, "WORKER_LOST", started=False))
    assert (job.state, job.reason, log[-1]) == (JobState.ABORTED, "WORKER_LOST", "ABORTED")


def test_updates_of_an_earlier_attempt_change_nothing() -> None:
    job, _ = run(m.Job(), MATCH, m.Sending(), m.Accepted(1), m.Failed(1, "X"), m.Matched("ce2", "h:2"), m.Sending())
    for event in (
        m.Accepted(1),
        m.Started(1),
        m.Ended(1),
        m.Failed(1, "X", started=True),
        m.CancelledAtCe(1),
        m.Rejected(1, "X"),
    ):
        assert m.step(job, event) == m.Step(job)


def test_a_job_never_sent_goes_elsewhere_without_a_retry() -> None:
    job, log = run(m.Job(shallow_left=0), MATCH, m.TakenBack("CE_LOST"))
    assert (job.state, job.attempt, job.ce, job.shallow_left, job.excluded) == (JobState.WAITING, 2, "", 0, ())
    assert log == ["MATCHED", "RESUBMISSION"]


def test_cancel() -> None:
    assert run(m.Job(), m.CancelAsked())[0].state is JobState.CANCELLED
    assert run(m.Job(), MATCH, m.CancelAsked())[0].state is JobState.CANCELLED
    # It may be at the CE: only the CE can say that it is over.
    job, log = run(m.Job(), MATCH, m.Sending(), m.CancelAsked(), m.CancelAsked())
    assert (job.state, job.cancelling, log) == (JobState.READY, True, ["MATCHED", "CANCEL_REQUESTED"])
    assert run(job, m.Accepted(1), m.CancelledAtCe(1))[0].state is JobState.CANCELLED
    assert run(job, m.Accepted(1), m.UnknownAtCe(1))[0].state is JobState.CANCELLED
    assert run(job, m.Failed(1, "X"))[0].state is JobState.CANCELLED
    assert run(job, m.TakenBack("X"))[0].state is JobState.CANCELLED
    assert run(job, m.Ended(1))[0].state is JobState.DONE


def test_events_out_of_place_are_refused_or_ignored() -> None:
    assert m.step(m.Job(state=JobState.RUNNING), MATCH).refused
    assert m.step(m.Job(), m.OutputFetched()).refused
    assert not m.step(m.Job(state=JobState.CLEARED), m.OutputFetched()).refused
    for state in ENDED:
        job = m.Job(state=state, ce="ce1", sent=True)
        for event in (m.Accepted(1), m.Started(1), m.Ended(1), m.Failed(1, "X"), m.CancelledAtCe(1), m.CancelAsked(),
                      m.GivenUp("X", ""), m.TakenBack("X")):  # fmt: skip
            assert m.step(job, event).job == job


any_event = st.one_of(
    st.just(MATCH), st.just(m.Sending()), st.just(m.TakenBack("X")), st.just(m.CancelAsked()),
    st.just(m.GivenUp("P", "")), st.just(m.OutputFetched()), st.just(m.Purged()),
    st.builds(m.Accepted, st.integers(1, 4)), st.builds(m.Rejected, st.integers(1, 4), st.just("R")),
    st.builds(m.Started, st.integers(1, 4)), st.builds(m.Ended, st.integers(1, 4)),
    st.builds(m.Failed, st.integers(1, 4), st.just("F"), st.just(""), st.booleans()),
    st.builds(m.CancelledAtCe, st.integers(1, 4)), st.builds(m.UnknownAtCe, st.integers(1, 4)),
)  # fmt: skip

EDGES = {
    JobState.WAITING: {JobState.READY, JobState.CANCELLED, JobState.ABORTED},
    JobState.READY: {
        JobState.WAITING,
        JobState.SCHEDULED,
        JobState.RUNNING,
        JobState.DONE,
        JobState.CANCELLED,
        JobState.ABORTED,
    },
    JobState.SCHEDULED: {JobState.RUNNING, JobState.DONE, JobState.WAITING, JobState.CANCELLED, JobState.ABORTED},
    JobState.RUNNING: {JobState.DONE, JobState.WAITING, JobState.CANCELLED, JobState.ABORTED},
    JobState.DONE: {JobState.CLEARED},
    JobState.ABORTED: set(),
    JobState.CANCELLED: set(),
    JobState.CLEARED: set(),
}


@given(st.lists(any_event, max_size=40))
@settings(max_examples=300 * TIMES, deadline=None)
def test_only_known_edges_and_bounded_retries(events: list[m.Event]) -> None:
    job = m.Job(shallow_left=2, deep_left=1)
    retries = 0
    for event in events:
        after = m.step(job, event).job
        assert after.state is job.state or after.state in EDGES[job.state]
        assert after.attempt >= job.attempt
        assert m.step(job, event) == m.step(job, event)
        if after.state is JobState.WAITING:
            assert not after.ce
            assert not after.sent
            assert not after.cancelling
        if after.attempt > job.attempt and not isinstance(event, m.TakenBack):
            retries += 1
        job = after
    assert retries <= 3


class World:
    """A broker's machine and CEs that keep their word, over a network that delays, doubles and loses messages."""

    def __init__(self, randomness: random.Random, wants_cancel: bool) -> None:
        self.random = randomness
        self.job = m.Job(shallow_left=2, deep_left=1)
        self.at: dict[str, dict[str, object]] = {}
        self.updates: list[m.Event] = []
        """Everything a CE ever said: any of it may arrive at any time and again, but the newest arrives at last."""
        self.finished: list[tuple[str, int]] = []
        self.wants_cancel = wants_cancel
        self.log: list[str] = []

    def feed(self, event: m.Event) -> None:
        step = m.step(self.job, event)
        self.job = step.job
        self.log += [item.type for item in step.log]

    def say(self, event: m.Event) -> None:
        self.updates.append(event)

    def ce_takes(self, ce: str, attempt: int) -> None:
        place = self.at.setdefault(ce, {"attempt": 0, "state": "none"})
        if attempt > place["attempt"]:
            place.update(attempt=attempt, state="queued")
            self.say(m.Accepted(attempt))

    def ce_works(self) -> None:
        for ce, place in self.at.items():
            attempt = place["attempt"]
            if place["state"] == "queued":
                fate = self.random.random()
                if fate < 0.2:
                    place["state"] = "failed"
                    self.say(m.Failed(attempt, "NO_SCRATCH"))
                else:
                    place["state"] = "running"
                    self.say(m.Started(attempt))
            elif place["state"] == "running":
                if self.random.random() < 0.25:
                    place["state"] = "failed"
                    self.say(m.Failed(attempt, "WORKER_LOST", started=True))
                else:
                    place["state"] = "done"
                    self.finished.append((ce, attempt))
                    self.say(m.Ended(attempt))

    def broker_works(self) -> None:
        job = self.job
        if job.state is JobState.WAITING:
            self.feed(m.Matched(self.random.choice(["a", "b", "c"]), "h:1"))
        elif job.state is JobState.READY and not job.sent:
            self.feed(m.TakenBack("CE_LOST") if self.random.random() < 0.1 else m.Sending())
        elif job.state is JobState.READY:
            if self.random.random() < 0.7:  # the Submit arrives
                self.ce_takes(job.ce, job.attempt)
                if self.random.random() < 0.6:  # and so does its answer
                    self.feed(m.Accepted(job.attempt))
        elif job.cancelling:
            place = self.at[job.ce]
            if place["attempt"] == job.attempt and place["state"] in ("queued", "running"):
                place["state"] = "cancelled"
                self.say(m.CancelledAtCe(job.attempt))

    def turn(self) -> None:
        action = self.random.random()
        if action < 0.4:
            self.broker_works()
        elif action < 0.7:
            self.ce_works()
        elif self.updates and action < 0.97:
            self.feed(self.random.choice(self.updates))
        elif self.wants_cancel:
            self.feed(m.CancelAsked())


@given(st.integers(0, 10**9), st.booleans())
@settings(max_examples=300 * TIMES, deadline=None)
def test_every_job_ends_once_whatever_the_network_does(seed: int, wants_cancel: bool) -> None:
    world = World(random.Random(seed), wants_cancel)
    for _ in range(400):
        world.turn()
        if world.job.state in ENDED and world.random.random() < 0.2:
            break
    for _ in range(200):  # at last every update arrives, in order, as the durable sequence of Watch makes sure
        if world.job.state in ENDED:
            break
        for event in list(world.updates):
            world.feed(event)
        world.broker_works()
        world.ce_works()
    job = world.job
    assert job.state in ENDED
    assert len(world.finished) <= 1 + 0, world.finished
    if job.state is JobState.DONE:
        assert world.finished[-1][1] == job.attempt
    if not wants_cancel:
        assert job.state in (JobState.DONE, JobState.ABORTED)
        assert "CANCELLED" not in world.log
    assert sum(item in ("ABORTED", "CANCELLED") for item in world.log) <= 1
    ended = job
    for event in world.updates:
        world.feed(event)
    assert world.job == ended
