from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from agents.storage.space import Ledger, PoolFree, Reservation
from fabric.errors import Exhausted, Unavailable


def free(size: int, pool: str = "a", device: int = 1) -> PoolFree:
    return PoolFree(pool, device, size, 10 * size)


def test_quota_counts_used_and_reserved_and_the_refusal_has_the_numbers() -> None:
    ledger = Ledger(lambda vo: 100, 0, {"cms": (40, 2)})
    ledger.reserve("cms", 50, [free(1000)])
    with pytest.raises(Exhausted) as caught:
        ledger.reserve("cms", 11, [free(1000)])
    assert caught.value.reason == "QUOTA_EXCEEDED"
    assert {k: caught.value.facts[k] for k in ("announced_bytes", "quota_bytes", "used_bytes", "reserved_bytes")} == {
        "announced_bytes": "11", "quota_bytes": "100", "used_bytes": "40", "reserved_bytes": "50",
    }  # fmt: skip
    ledger.reserve("cms", 10, [free(1000)])
    ledger.reserve("atlas", 100, [free(1000)])


def test_a_pool_that_is_written_or_read_is_chosen_later() -> None:
    ledger = Ledger(lambda vo: None, 0)
    pools = [free(1000, "a", 1), free(900, "b", 2)]
    first = ledger.reserve("cms", 1, pools)
    assert first.pool == "a" and ledger.reserve("cms", 1, pools).pool == "b"
    ledger.commit(first)
    assert ledger.reserve("cms", 1, pools).pool == "a"
    assert Ledger(lambda vo: None, 0).reserve("cms", 1, [replace(pools[0], readers=1), pools[1]]).pool == "b"
    assert ledger.reserve("cms", 950, [replace(pools[0], readers=9), pools[1]]).pool == "a"  # it alone has the room


def test_a_pool_holds_what_it_may_also_on_a_larger_disk() -> None:
    ledger = Ledger(lambda vo: None, 0, {"cms": (60, 1)}, pool_bytes=100, in_pools={"a": 60})
    pools = [free(1000, "a"), free(1000, "b")]
    assert ledger.room_bytes(pools) == 140 and ledger.available_bytes("cms", pools) == 140
    assert ledger.reserve("cms", 40, pools, "a").pool == "a"
    held = ledger.reserve("cms", 100, pools)
    with pytest.raises(Exhausted) as caught:
        ledger.reserve("cms", 1, pools)
    assert (caught.value.reason, caught.value.facts["available_bytes"]) == ("DISK_FULL", "0")
    ledger.release(held)
    ledger.removed("cms", 60, "a")
    moved = ledger.place("cms", 70, pools)
    ledger.commit(moved)
    ledger.left("a", 40)
    assert (moved.pool, ledger.bounded(pools[1]).free_bytes, ledger.bounded(pools[0]).free_bytes) == ("b", 30, 100)
    assert ledger.use_of("cms").used_bytes == 0


def test_the_reserve_is_kept_back() -> None:
    ledger = Ledger(lambda vo: None, 100)
    with pytest.raises(Exhausted) as caught:
        ledger.reserve("cms", 901, [free(1000)])
    assert (caught.value.reason, caught.value.facts["available_bytes"]) == ("DISK_FULL", "900")
    ledger.reserve("cms", 900, [free(1000)])


def test_announced_bytes_that_are_not_yet_on_disk_are_not_free() -> None:
    ledger = Ledger(lambda vo: None, 0)
    first = ledger.reserve("cms", 600, [free(1000)])
    with pytest.raises(Exhausted):
        ledger.reserve("cms", 500, [free(1000)])
    ledger.written(first, 600)
    ledger.reserve("cms", 400, [free(400)])


def test_two_pools_on_one_disk_do_not_hand_out_its_bytes_twice() -> None:
    ledger = Ledger(lambda vo: None, 0)
    pools = [free(1000, "a"), free(1000, "b")]
    ledger.reserve("cms", 600, pools)
    with pytest.raises(Exhausted):
        ledger.reserve("cms", 600, pools)
    assert ledger.available_bytes("cms", pools) == 400


def test_the_emptier_pool_is_chosen_never_by_name() -> None:
    ledger = Ledger(lambda vo: None, 0)
    chosen = [ledger.reserve("cms", 300, [free(1000, "a", 1), free(900, "b", 2)]).pool for _ in range(4)]
    assert chosen == ["a", "b", "a", "b"]


def test_no_disk_left_is_unavailable_not_full() -> None:
    with pytest.raises(Unavailable):
        Ledger(lambda vo: None, 0).reserve("cms", 1, [])


@given(st.integers(0, 10**15), st.integers(0, 10**15), st.integers(0, 10**12))
def test_a_size_is_taken_exactly_when_it_fits(size: int, room: int, kept: int) -> None:
    ledger = Ledger(lambda vo: None, kept)
    try:
        ledger.reserve("cms", size, [free(room)])
        assert size <= room - kept
    except Exhausted:
        assert size > room - kept


class LedgerMachine(RuleBasedStateMachine):
    """Whatever uploads do, in any order: quota holds, and when all ended only what was committed counts."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(lambda vo: 1000, 0)
        self.open: list[Reservation] = []
        self.used = 0
        self.sources: list[Reservation] = []
        """Nobody writes to them, nor makes a file of them."""

    @rule(target=held, size=st.integers(0, 700))
    def reserve(self, size: int) -> Reservation | None:
        try:
            made = self.ledger.reserve("cms", size, [free(5000)])
        except Exhausted:
            return None
        self.open.append(made)
        return made

    @rule(reservation=held, size=st.integers(0, 800))
    def write(self, reservation: Reservation | None, size: int) -> None:
        if reservation and all(reservation is not each for each in self.sources):
            self.ledger.written(reservation, size)

    @rule(reservation=consumes(held), twice=st.booleans())
    def commit(self, reservation: Reservation | None, twice: bool) -> None:
        if reservation and reservation.open:
            self.used += reservation.size_bytes
            self._closed(reservation)
            self.ledger.commit(reservation)
            if twice:
                self.ledger.commit(reservation)
                self.ledger.release(reservation)

    @rule(reservation=held)
    def release(self, reservation: Reservation | None) -> None:
        if reservation:
            self.ledger.release(reservation)
            self._closed(reservation)

    @rule(target=held, reservation=held, size=st.integers(0, 400))
    def take(self, reservation: Reservation | None, size: int) -> Reservation | None:
        """Of what is held for several; nothing was written to that itself."""
        if (
            reservation is None
            or not reservation.open
            or reservation.source is not None
            or not size <= reservation.size_bytes == reservation.unwritten_bytes
        ):
            return None
        made = self.ledger.take(reservation, size)
        self.open.append(made)
        self.sources.append(reservation)
        return made

    def _closed(self, reservation: Reservation) -> None:
        self.open = [each for each in self.open if each is not reservation]

    @invariant()
    def holds(self) -> None:
        use = self.ledger.use_of("cms")
        assert use.used_bytes == self.used
        assert use.reserved_bytes == sum(r.size_bytes for r in self.open)
        assert use.used_bytes + use.reserved_bytes <= 1000
        unwritten = sum(r.unwritten_bytes for r in self.open)
        assert self.ledger.available_bytes("x", [free(5000)]) == min(5000 - unwritten, 1000)


LedgerMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30)
TestLedger = LedgerMachine.TestCase
