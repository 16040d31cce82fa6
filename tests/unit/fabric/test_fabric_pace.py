"""Waiting for more: long only where more is to be expected."""

from __future__ import annotations

import time

import pytest

from fabric.pace import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_first_of_all_and_a_few_are_not_kept_waiting(clock: list[float]) -> None:
    pace = Pace(0.002, 0.03)
    assert pace.wait_s == 0.002
    for _ in range(10):
        pace.took(1)
        clock[0] += 0.1
    assert pace.wait_s == 0.002


def test_a_stream_of_events_is_gathered_and_soon_forgotten(clock: list[float]) -> None:
    pace = Pace(0.002, 0.03)
    for _ in range(20):
        pace.took(4)
        clock[0] += 0.02
    assert pace.wait_s == 0.03
    clock[0] += 1.0
    assert pace.wait_s == 0.002


def test_one_large_turn_says_that_more_may_come(clock: list[float]) -> None:
    pace = Pace(0.0, 0.05)
    pace.took(500)
    assert pace.wait_s == 0.05
    clock[0] += 60
    assert pace.wait_s == 0.0
