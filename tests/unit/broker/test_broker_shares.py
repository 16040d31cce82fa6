"""Fair shares of the room at CEs, and how fast one user may submit."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.broker import quotas
from agents.broker.matching import Candidate, Room, Shares, match_pass
from agents.broker.quotas import SubmissionRate
from fabric.errors import Exhausted

CE = [Candidate("ce", 0.0)]


def one_pass(waiting, owners, used, room):
    found = dict.fromkeys(waiting, CE)
    given = match_pass(waiting, found, set(), {"ce": Room(room, 0, room)}, None, Shares(owners, used)).given
    return {key: sum(shares.values()) for key, shares in given.items()}


def test_one_users_hundred_thousand_jobs_do_not_hold_up_anothers_one():
    assert one_pass({1: 100_000, 2: 1}, {1: "a", 2: "b"}, {}, 10) == {1: 9, 2: 1}


def test_nor_do_one_users_ten_thousand_kinds_of_jobs():
    waiting = dict.fromkeys(range(10_000), 1) | {10_000: 5}
    owners = dict.fromkeys(range(10_000), "a") | {10_000: "b"}
    given = one_pass(waiting, owners, {}, 10)
    assert given[10_000] == 5
    assert sum(given.values()) == 10


def test_who_has_least_at_ces_is_first_when_there_is_room_for_one():
    waiting, owners = {1: 9, 2: 9, 3: 9}, {1: "a", 2: "b", 3: "c"}
    assert one_pass(waiting, owners, {"a": 3, "b": 1, "c": 2}, 1) == {2: 1}
    assert one_pass(waiting, owners, {"a": 3, "b": 1, "c": 2}, 2) == {2: 1, 3: 1}


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 50)), min_size=1, max_size=12),
    st.integers(1, 40),
)
def test_no_room_is_wasted_and_nobody_gets_less_than_a_fair_part(jobs, room):
    waiting = {number: count for number, (_, count) in enumerate(jobs)}
    owners = {number: owner for number, (owner, _) in enumerate(jobs)}
    given = one_pass(waiting, owners, {}, room)
    assert sum(given.values()) == min(room, sum(waiting.values()))
    got, want = Counter(), Counter()
    for number, owner in owners.items():
        got[owner] += given.get(number, 0)
        want[owner] += waiting[number]
    fair = room // len(want)
    assert all(got[owner] >= min(want[owner], fair) for owner in want)


def test_over_many_passes_with_one_free_slot_each_everybody_gets_the_same():
    """Later owners would wait for ever if earlier ones were always asked first."""
    used: Counter[str] = Counter()
    owners = {1: "a", 2: "b", 3: "c"}
    for _ in range(300):
        (key,) = one_pass({1: 1000, 2: 1000, 3: 1000}, owners, used, 1)
        used[owners[key]] += 1
    assert used == {"a": 100, "b": 100, "c": 100}


def test_a_user_may_submit_in_a_burst_and_then_at_the_rate():
    rate = SubmissionRate(2.0)
    for _ in range(20):
        rate.take("a", 0.0)
    with pytest.raises(Exhausted) as caught:
        rate.take("a", 0.0)
    assert (caught.value.reason, caught.value.retry_after_s) == ("SUBMISSION_RATE", 0.5)
    rate.take("b", 0.0)  # others are not affected
    rate.take("a", 0.5)
    with pytest.raises(Exhausted):
        rate.take("a", 0.6)


def test_refused_attempts_cost_no_more_than_waiting_and_users_remembered_are_bounded(monkeypatch):
    monkeypatch.setattr(quotas, "MAX_BUCKETS", 3)
    rate = SubmissionRate(0.1)
    rate.take("a", 0.0)
    for _ in range(5):
        with pytest.raises(Exhausted):
            rate.take("a", 1.0)
    rate.take("a", 10.0)
    for name in "bcdef":
        rate.take(name, 10.0)
    assert len(rate._buckets) == 3
