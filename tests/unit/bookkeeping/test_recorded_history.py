"""The model of recorded histories (support/history.py) finds each thing that must not happen, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.history import Recorded, gaps

from agents.bookkeeping.model import Event, EventType

JOB = "https://lb:9000/abc"
R, M, T, RUN, DONE, AGAIN = (
    EventType.REGISTERED, EventType.MATCHED, EventType.TRANSFERRED, EventType.RUNNING, EventType.DONE,
    EventType.RESUBMISSION,
)  # fmt: skip


def event(number: int, kind: EventType, attempt: int = 1, **fields: str) -> Event:
    return Event(JOB, "ce" if kind in (RUN, DONE) else "broker", number, number, kind, attempt, fields)


def well() -> Recorded:
    """A job whose first attempt was lost with its starter, and whose second ended well."""
    found = Recorded()
    found.told(JOB, ())
    found.witnessed["abc"] = [("start", 1), ("start", 2), ("end", 2)]
    found.states[JOB] = "DONE"
    found.events[JOB] = [
        event(1, R), event(2, M), event(3, T), event(1, RUN), event(4, AGAIN, 2, failed_attempt="1"),
        event(5, M, 2), event(6, T, 2), event(2, RUN, 2), event(3, DONE, 2),
    ]  # fmt: skip
    found.usage[JOB, 2, "DONE"] = 1
    return found


def test_a_resubmission_is_no_problem() -> None:
    assert well().problems() == []


def drop(kind: EventType, attempt: int) -> Callable[[Recorded], Any]:
    def change(found: Recorded) -> None:
        found.events[JOB] = [one for one in found.events[JOB] if (one.type, one.attempt) != (kind, attempt)]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.states.clear(), "acknowledged and unknown"),
        (lambda found: found.states.update({JOB: "RUNNING"}), "has not ended"),
        (lambda found: found.witnessed["abc"].pop(), "payload never ended"),
        (lambda found: found.witnessed["abc"].append(("start", 2)), "attempt 2 started 2 times"),
        (lambda found: found.witnessed["abc"].append(("start", 1)), "an earlier attempt started after a later one"),
        (lambda found: found.witnessed["abc"].append(("overlaps", 1)), "while attempt 1 still ran"),
        (lambda found: found.witnessed.update(xyz=[("start", 1)]), "never acknowledged"),
        (lambda found: found.usage.clear(), "0 usage records"),
        (lambda found: found.usage.update([(JOB, 2, "DONE")]), "2 usage records"),
        (drop(AGAIN, 2), "not known to have failed"),
        (drop(R, 1), "never registered"),
        (drop(RUN, 2), "attempt 2 started and no event says so"),
        (drop(DONE, 2), "attempt 2 ended and no event says so"),
        (drop(T, 2), "RUNNING without TRANSFERRED"),
        (drop(M, 2), "1 events of broker are missing, the first is 5"),
        (lambda found: found.events[JOB].append(event(4, DONE, 1)), "DONE twice"),
    ],
)  # fmt: skip
def test_each_violation_is_found(change: Callable[[Recorded], Any], said: str) -> None:
    found = well()
    change(found)
    assert any(said in text for text in found.problems()), found.problems()


def test_an_outbox_that_was_lost_begins_anew_far_above() -> None:
    assert gaps([[event(1, R), event(2, M), event(10_000_000, R), event(10_000_001, M)]]) == []
