"""What is alive is set aside from the cyclic collector, and cycles that were set aside go when everything is walked."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from agents.information.long_lived import CHANGES, THAW_S, LongLived
from fabric.clock import ManualClock


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_what_is_alive_is_set_aside_after_enough_changes() -> None:
    kept = LongLived(ManualClock(datetime(2026, 1, 1, tzinfo=UTC)))
    kept.look(CHANGES - 1)
    assert gc.get_freeze_count() == 0
    kept.look(CHANGES)
    frozen = gc.get_freeze_count()
    assert frozen > 0
    news = [[number] for number in range(100_000)]
    kept.look(CHANGES + 1)
    assert gc.get_freeze_count() <= frozen, "so few changes are no reason to walk"
    kept.look(2 * CHANGES)
    assert gc.get_freeze_count() > len(news)


def test_a_cycle_that_was_set_aside_goes_when_everything_is_walked() -> None:
    class Ring:
        def __init__(self) -> None:
            self.itself = self

    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    kept, ring = LongLived(clock), Ring()
    gone = weakref.ref(ring)
    kept.look(CHANGES)
    del ring
    kept.look(2 * CHANGES)
    assert gone() is not None
    clock.advance(THAW_S)
    kept.look(3 * CHANGES)
    assert gone() is None
