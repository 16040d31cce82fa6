"""The state of a job is a function of the set of its events."""

import random

from hypothesis import given
from hypothesis import strategies as st

from agents.bookkeeping.machine import apply, history_problems, parent_state, rank_of
from agents.bookkeeping.model import Event, EventType, JobRecord, JobState

JOB = "https://lb:1/abc"


def event(kind, attempt=1, at=0, sequence=1, source="b", **fields):
    return Event(JOB, source, sequence, at or 1000 + 10 * attempt + int(kind), kind, attempt, fields)


def fold(events):
    record = JobRecord(JOB)
    for item in events:
        apply(record, item)
    return record


def usual(attempt=1, ce="ce1"):
    return [
        event(EventType.MATCHED, attempt, ce=ce),
        event(EventType.TRANSFERRED, attempt, ce=ce),
        event(EventType.RUNNING, attempt, worker="w1"),
        event(EventType.DONE, attempt, exit_code="0", wall_s="1.5", cpu_s="0.5", worker="w1"),
    ]


def test_usual_way():
    record = fold([event(EventType.REGISTERED, 1, owner="/CN=a", vo="cms"), event(EventType.ENQUEUED), *usual()])
    assert (record.state, record.owner, record.vo, record.ce, record.worker) == (
        JobState.DONE,
        "/CN=a",
        "cms",
        "ce1",
        "w1",
    )
    assert (record.exit_code, record.wall_s, record.cpu_s, record.attempt) == ("0", 1.5, 0.5, 1)


def test_late_events_of_an_earlier_attempt_change_nothing():
    first = [*usual()[:3], event(EventType.RESUBMISSION, 2, reason="WORKER_LOST")]
    record = fold([*first, event(EventType.MATCHED, 2, ce="ce2"), event(EventType.DONE, 1, exit_code="9")])
    assert (record.state, record.attempt, record.ce, record.worker, record.exit_code) == (
        JobState.READY,
        2,
        "ce2",
        "",
        "",
    )
    assert record.reason == "WORKER_LOST"


def test_no_event_of_a_ce_revives_a_verdict():
    for verdict, state in ((EventType.ABORTED, JobState.ABORTED), (EventType.CANCELLED, JobState.CANCELLED)):
        record = fold([event(verdict, 1, reason="X"), *usual(5)])
        assert record.state == state
        assert record.reason == "X"


def test_cleared_keeps_exit_code_and_reason():
    record = fold(
        [*usual()[:3], event(EventType.DONE, 1, exit_code="137", reason="WALL_TIME"), event(EventType.CLEARED)]
    )
    assert (record.state, record.exit_code, record.reason) == (JobState.CLEARED, "137", "WALL_TIME")


def test_notes_say_nothing_of_the_state():
    record = fold([event(EventType.NOTE, 7, text="hello"), event(EventType.CANCEL_REQUESTED, 7)])
    assert record == JobRecord(JOB)


kinds = st.sampled_from(list(EventType))
some_events = st.lists(
    st.builds(
        lambda kind, attempt, at, sequence, ce, reason, code: Event(
            JOB, "s", sequence, at, kind, attempt,
            {"ce": ce, "reason": reason, "exit_code": code, "worker": ce, "owner": reason, "wall_s": code},
        ),
        kinds, st.integers(1, 3), st.integers(1, 50), st.integers(1, 10**6),
        st.sampled_from(["", "a", "b"]), st.sampled_from(["", "R1", "R2"]), st.sampled_from(["", "0", "1"]),
    ),
    max_size=12,
)  # fmt: skip


@given(some_events, st.randoms(use_true_random=False))
def test_any_order_and_any_duplicates_give_the_same_record(events, randomness: random.Random):
    mixed = [*events, *randomness.choices(events, k=len(events))] if events else []
    randomness.shuffle(mixed)
    assert fold(mixed) == fold(events)


@given(some_events)
def test_apply_says_true_exactly_when_something_changed(events):
    record = JobRecord(JOB)
    for item in events:
        before = JobRecord(**{name: getattr(record, name) for name in JobRecord.__slots__})
        assert apply(record, item) == (record != before)


def test_ranks_order_attempts_before_phases_and_verdicts_over_all():
    assert rank_of(event(EventType.MATCHED, 2)) > rank_of(event(EventType.DONE, 1))
    assert rank_of(event(EventType.ABORTED, 1)) > rank_of(event(EventType.DONE, 900_000))


def test_parent_state():
    done, run, wait, aborted = JobState.DONE, JobState.RUNNING, JobState.WAITING, JobState.ABORTED
    assert parent_state({}) == JobState.SUBMITTED
    assert parent_state({done: 3}) == done
    assert parent_state({done: 3, JobState.CLEARED: 1}) == done
    assert parent_state({done: 3, wait: 1}) == run
    assert parent_state({wait: 3}) == wait
    assert parent_state({wait: 3, JobState.SCHEDULED: 1}) == JobState.SCHEDULED
    assert parent_state({done: 3, aborted: 1}) == aborted
    assert parent_state({JobState.CLEARED: 1}) == JobState.CLEARED
    assert parent_state({run: 1, wait: 0}) == run


def test_history_problems():
    good = [event(EventType.REGISTERED), *usual()]
    assert history_problems(good) == []
    assert history_problems(usual()) == ["it was never registered"]
    assert "attempt 1: RUNNING without TRANSFERRED" in history_problems([good[0], good[1], *good[3:]])
    twice = event(EventType.RUNNING, 1, at=1050, sequence=9)
    assert history_problems([*good, twice]) == ["attempt 1: started more than once"]
