"""Shares, priorities, and that nobody starves: the bounds that `fabric/shares.py` states."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.shares import AGED_EVERY, ShareQueue

VOS = ("alice", "atlas", "cms", "lhcb")
shares = st.dictionaries(st.sampled_from(VOS), st.floats(0.05, 100), min_size=2)
steps = st.lists(st.one_of(st.sampled_from(VOS), st.none()), max_size=300)


@given(shares, steps)
@settings(deadline=None)
def test_a_vo_with_waiting_jobs_is_served_within_its_bound(shares: dict[str, float], steps: list[str | None]) -> None:
    queue = ShareQueue(shares)
    since: dict[str, int] = {}
    waiting: Counter[str] = Counter()
    for number, step in enumerate(steps + [None] * len(steps)):
        if step is not None:
            queue.add(f"{step}.{number}", step)
            waiting[step] += 1
            since.setdefault(step, 0)
            continue
        bounds = {vo: queue.bound(vo) for vo in since}
        job_id = queue.take()
        if job_id is None:
            assert not +waiting
            continue
        served = job_id.partition(".")[0]
        for vo in since:
            since[vo] += 1
            assert since[vo] <= bounds[vo], (vo, shares)
        waiting[served] -= 1
        since[served] = 0
        since = {vo: count for vo, count in since.items() if waiting[vo]}


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=120), st.data())
@settings(deadline=None)
def test_the_oldest_of_a_vo_waits_for_a_bounded_number_of_others(priorities: list[int], data: st.DataObject) -> None:
    queue = ShareQueue({})
    queue.add("old", "cms", priority=min(priorities))
    handed = 0
    for number, priority in enumerate(priorities):
        queue.add(f"new{number}", "cms", priority)
        if data.draw(st.booleans()):
            handed += 1
            if queue.take() == "old":
                break
    else:
        while queue.take() != "old":
            handed += 1
    assert handed <= AGED_EVERY


def test_hand_outs_follow_the_shares() -> None:
    queue = ShareQueue({"cms": 3, "atlas": 1})
    for number in range(400):
        queue.add(f"cms{number}", "cms")
        queue.add(f"atlas{number}", "atlas")
    served = Counter(str(queue.take()).rstrip("0123456789") for _ in range(200))
    assert served == {"cms": 150, "atlas": 50}


def test_a_pause_earns_no_credit() -> None:
    queue = ShareQueue({})
    for number in range(100):
        queue.add(f"cms{number}", "cms")
    for _ in range(50):
        queue.take()
    for number in range(100):
        queue.add(f"atlas{number}", "atlas")
    served = Counter(str(queue.take()).rstrip("0123456789") for _ in range(20))
    assert served == {"cms": 10, "atlas": 10}


def test_priority_goes_first_and_what_came_back_goes_before_its_equals() -> None:
    queue = ShareQueue({})
    for job_id, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5)):
        queue.add(job_id, "cms", priority)
    assert queue.take() == "b"
    queue.add("b", "cms", 5, first=True)
    assert [queue.take() for _ in range(5)] == ["b", "d", "a", "c", None]


def test_what_is_discarded_is_never_handed_out() -> None:
    queue = ShareQueue({})
    queue.add("a", "cms")
    queue.add("b", "cms", 3)
    queue.discard("b")
    queue.discard("nobody")
    assert (len(queue), "a" in queue, "b" in queue, list(queue)) == (1, True, False, ["a"])
    assert [queue.take(), queue.take()] == ["a", None]
