"""Time as an argument: logic never reads the system clock itself, so tests decide what time it is."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Clock(Protocol):
    """Where an agent's time comes from."""

    def now(self) -> datetime:
        """The moment, aware UTC. May step when the host's clock is corrected."""
        ...

    def monotonic(self) -> float:
        """Seconds since an unknown start; never goes back. For durations and deadlines."""
        ...


class SystemClock:
    """The host's clock."""

    def now(self) -> datetime:
        """The moment, aware UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()


class ManualClock:
    """A clock that stands still until told; both faces move together."""

    def __init__(self, now: datetime) -> None:
        if now.tzinfo is None:
            raise ValueError("now must be an aware datetime in UTC")
        self._now = now.astimezone(UTC)
        self._monotonic = 0.0

    def now(self) -> datetime:
        """The moment it was set to."""
        return self._now

    def monotonic(self) -> float:
        """Seconds advanced since it was made."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass; not negative."""
        if seconds < 0:
            raise ValueError("time does not go back")
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds


def to_us(moment: datetime) -> int:
    """Microseconds since the epoch, exact: the form of a time on the wire. Raises ValueError for a naive datetime."""
    if moment.tzinfo is None:
        raise ValueError("a time on the wire must be aware")
    return (moment - _EPOCH) // _MICROSECOND


def from_us(microseconds: int) -> datetime:
    """The aware UTC moment of `to_us`. Raises OverflowError for a value outside the years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=microseconds)


def utc_text(moment: datetime) -> str:
    """`2026-01-31T12:00:00.000001Z`: the form of a time in logs."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
