"""Whose turn it is, how many at once, and how fast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from agents.transfer.links import MAX_BATCH, MAX_BATCH_BYTES, Links, Waiting
from agents.transfer.optimiser import REST_LOOKS, Look, Optimiser, TokenBucket


def links(cap_of: Callable[[str, str], float] = lambda source, destination: 0.0, **more: int) -> Links:
    limits = {"max_active": 100, "max_per_element": 100, "max_per_link": 8} | more
    return Links({"cms": 3.0}, cap_of=cap_of, **limits)


def test_a_long_queue_on_one_link_delays_no_other() -> None:
    board = links(max_active=4)
    for number in range(100):
        board.add(f"a{number}", Waiting("a", "x", "cms", 1))
    board.add("b", Waiting("b", "x", "cms", 1))
    board.add("c", Waiting("c", "y", "cms", 1))
    assert {"b", "c"} < {key for batch in board.take(0.0) for key in batch} and board.active == 4
    assert list(board.take(0.0)) == []
    assert board.link("a", "x").seen.waited and not board.link("b", "x").seen.waited


def test_vos_have_shares_and_files_priorities() -> None:
    board = links()
    for number in range(40):
        board.add(f"cms{number}", Waiting("a", "x", "cms", 1))
        board.add(f"atlas{number}", Waiting("a", "x", "atlas", 1))
    board.add("urgent", Waiting("a", "x", "cms", 1, 5))
    order: list[str] = []
    while len(order) < 40:
        for (key,) in board.take(0.0):
            order.append(key)
            board.done("a", "x")
    assert "urgent" in order[:3]
    assert 28 <= Counter(key.rstrip("0123456789") for key in order[:40])["cms"] <= 32


def test_small_files_of_an_owner_share_a_place_and_count_for_their_vo_each_by_itself() -> None:
    board = links(max_per_link=1)
    for number in range(MAX_BATCH + 10):
        board.add(f"ada{number}", Waiting("a", "x", "atlas", 10, together="ada"))
    board.add("bob", Waiting("a", "x", "atlas", 10, together="bob"))
    board.add("large", Waiting("a", "x", "atlas", 1 << 30))
    for number in range(3):
        board.add(f"cms{number}", Waiting("a", "x", "cms", MAX_BATCH_BYTES // 2, together="ada"))
    batches: list[list[str]] = []
    while taken := list(board.take(0.0)):
        batches += taken
        assert board.active == 1
        board.done("a", "x")
    assert [len(batch) for batch in batches] == [MAX_BATCH, 2, 1, 10, 1, 1]  # cms twice, as so much went before
    assert batches[1:3] == [["cms0", "cms1"], ["cms2"]]
    assert sorted(key for batch in batches[-2:] for key in batch) == ["bob", "large"]


def test_a_batch_ends_where_a_cap_does() -> None:
    board = links(cap_of=lambda source, destination: 100.0)
    for number in range(10):
        board.add(f"{number}", Waiting("a", "x", "cms", 40, together="ada"))
    assert list(board.take(0.0)) == [["0", "1", "2"]]
    assert list(board.take(0.1)) == []
    assert [len(batch) for batch in board.take(1.3)] == [3]


def test_an_element_is_not_overrun_by_many_links() -> None:
    board = links(max_per_element=3)
    for source in "abcdef":
        board.add(source, Waiting(source, "x", "cms", 1))
    assert len(list(board.take(0.0))) == 3
    board.done("a", "x")
    assert len(list(board.take(0.0))) == 1


def test_a_pause_ends_by_itself_and_who_is_taken_away_does_not_come_back() -> None:
    board = links()
    board.add("late", Waiting("a", "x", "cms", 1), 5.0)
    board.add("never", Waiting("a", "x", "cms", 1), 5.0)
    board.discard("never")
    assert list(board.take(4.0)) == [] and board.next_s(4.0, 60.0) == 1.0
    assert list(board.take(5.0)) == [["late"]]
    board.add("now", Waiting("a", "x", "cms", 1))
    board.discard("now")
    assert list(board.take(6.0)) == [] and board.load("a", "x") == 1


def test_a_cap_is_kept_over_time_whatever_the_sizes() -> None:
    board = links(cap_of=lambda source, destination: 100.0)
    sizes = [500, 20, 20, 20, 300, 10, 130] * 3
    for number, size_bytes in enumerate(sizes):
        board.add(f"{number:03}", Waiting("a", "x", "cms", size_bytes))
    begun_bytes, now_s = 0, 0.0
    while board.link("a", "x").waiting:
        for (key,) in board.take(now_s):
            begun_bytes += sizes[int(key)]
            board.done("a", "x")
            assert begun_bytes <= 100 * (now_s + 1) + max(sizes)
        now_s += max(board.next_s(now_s, 60.0), 0.01)
    assert sum(sizes) / now_s <= 130


def test_a_bucket_gives_back_what_was_not_used() -> None:
    bucket = TokenBucket(10.0)
    assert bucket.wait_s(0.0) == 0
    bucket.take(110)
    assert bucket.wait_s(0.0) > 10
    bucket.take(-110)
    assert bucket.wait_s(0.0) == 0


def test_more_at_once_while_that_moves_more() -> None:
    one, speeds = Optimiser(16), {limit: min(limit, 5) * 10_000_000 for limit in range(17)}
    seen: list[int] = []
    for _ in range(30):
        one.look(Look(moved_bytes=speeds[one.limit], finished=1, waited=True), 1.0)
        seen.append(one.limit)
    assert max(seen) == 6 and Counter(seen).most_common(1)[0][0] == 5
    assert "at once" in one.why


def test_fewer_where_attempts_fail_or_an_element_is_busy() -> None:
    one = Optimiser(16)
    one.limit = 8
    one.look(Look(moved_bytes=10, finished=1, failed=3, waited=True), 1.0)
    assert (one.limit, one.why) == (4, "lowered to 4 at once: 3 of 4 failed")
    one.look(Look(moved_bytes=10, finished=9, busy=1, waited=True), 1.0)
    assert one.limit == 3 and "busy" in one.why
    for _ in range(REST_LOOKS):
        one.look(Look(moved_bytes=10, finished=9, waited=True), 1.0)
        assert one.limit == 3
    one.look(Look(moved_bytes=10, finished=9, waited=True), 1.0)
    assert one.limit == 4


def test_nothing_to_do_changes_nothing() -> None:
    one = Optimiser(1)
    assert one.limit == 1
    before = one.why
    for look in (Look(), Look(waited=True), Look(moved_bytes=5, finished=1, waited=True)):
        one.look(look, 1.0)
        assert (one.limit, one.why) == (1, before)
    one.look(Look(failed=1), 1.0)
    assert one.limit == 1
