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


QUEUES = ("short", "long")
moves = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(VOS), st.sampled_from(QUEUES), st.integers(-2, 2)),
        st.sampled_from(QUEUES),
        st.integers(1, 3),
        st.none(),
    ),
    max_size=200,
)


@given(shares, moves)
@settings(deadline=None)
def test_both_bounds_hold_over_queues_that_fill_and_empty(shares: dict[str, float], moves: list[object]) -> None:
    """A name of a queue shuts or opens it, None hands out, a number fills in jobs of that length; a VO's count begins
    anew while it has nothing that may start."""
    queue, shut = ShareQueue(shares), set[str]()
    jobs: dict[str, tuple[str, str]] = {}
    lengths: dict[str, int] = {}
    since: Counter[str] = Counter()
    head: dict[str, tuple[str, int]] = {}
    for number, move in enumerate([*moves, *([None] * len(moves))]):
        if isinstance(move, str):
            shut ^= {move}
            head.clear()
        elif isinstance(move, tuple):
            vo, lane, priority = move
            jobs[f"j{number}"] = (vo, lane)
            lengths[f"j{number}"] = 2 + priority
            queue.add(f"j{number}", vo, priority, queue=lane, length_s=2 + priority)
        elif isinstance(move, int):
            fitting = [job for job, (_, lane) in jobs.items() if lane not in shut and 0 < lengths[job] <= move]
            filled = queue.fill(move, shut)
            assert filled in fitting if fitting else filled is None
            if filled is not None:
                assert lengths[filled] == max(lengths[job] for job in fitting if jobs[job][0] == jobs[filled][0])
                vo = jobs.pop(filled)[0]
                if head.get(vo, ("", 0))[0] == filled:
                    del head[vo]
        may = {vo for vo, lane in jobs.values() if lane not in shut}
        since = Counter({vo: count for vo, count in since.items() if vo in may})
        if move is not None:
            continue
        oldest = {vo: next(job for job, place in jobs.items() if place[0] == vo and place[1] not in shut) for vo in may}
        bounds = {vo: queue.bound(vo) for vo in may}
        job_id = queue.take(shut)
        assert (job_id is None) == (not may)
        if job_id is None:
            continue
        served, lane = jobs.pop(job_id)
        assert lane not in shut
        for vo in may:
            since[vo] += 1
            assert since[vo] <= bounds[vo], (vo, shares)
        since[served] = 0
        known, handed = head.get(served, ("", 0))
        handed = handed + 1 if known == oldest[served] else 1
        head[served] = (oldest[served], handed)
        assert handed <= AGED_EVERY


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


def test_over_queues_priority_goes_first_then_age_and_a_shut_queue_keeps_its_jobs() -> None:
    queue = ShareQueue({})
    for job_id, lane, priority in (("a", "long", 0), ("b", "short", 5), ("c", "short", 0), ("d", "long", 5)):
        queue.add(job_id, "cms", priority, queue=lane)
    queue.add("e", "atlas", queue="short")
    assert [queue.take({"short"}), queue.take({"short"}), queue.take({"short"})] == ["d", "a", None]
    assert [queue.take(), queue.take(), queue.take()] == ["e", "b", "c"]


def test_a_vo_whose_queue_was_shut_earns_no_credit() -> None:
    queue = ShareQueue({})
    for number in range(100):
        queue.add(f"cms{number}", "cms", queue="long")
        queue.add(f"atlas{number}", "atlas", queue="short")
    for _ in range(50):
        queue.take({"short"})
    served = Counter(str(queue.take()).rstrip("0123456789") for _ in range(20))
    assert abs(served["cms"] - served["atlas"]) <= 2


def test_what_is_discarded_is_never_handed_out() -> None:
    queue = ShareQueue({})
    queue.add("a", "cms")
    queue.add("b", "cms", 3)
    queue.discard("b")
    queue.discard("nobody")
    assert (len(queue), "a" in queue, "b" in queue, list(queue)) == (1, True, False, ["a"])
    assert [queue.take(), queue.take()] == ["a", None]


def test_what_is_filled_in_is_shared_too_and_costs_nothing() -> None:
    queue = ShareQueue({"cms": 3, "atlas": 1})
    for number in range(40):
        queue.add(f"cms{number}", "cms", length_s=10)
        queue.add(f"atlas{number}", "atlas", length_s=10)
        queue.add(f"lhcb{number}", "lhcb")
    filled = Counter(str(queue.fill(10)).rstrip("0123456789") for _ in range(40))
    assert filled == {"cms": 30, "atlas": 10}
    assert queue.fill(9.9) is None
    served = Counter(str(queue.take()).rstrip("0123456789") for _ in range(10))
    assert served == {"cms": 6, "atlas": 2, "lhcb": 2}
