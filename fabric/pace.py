"""How long to gather before a turn that costs the same for one event as for a hundred."""

from __future__ import annotations

import asyncio
import math
import time

MEMORY_S = 0.3
"""Over how long the rate of events is averaged."""
WORTH_WAITING_FOR = 2.0
"""Events that must be expected within the longest wait."""


class Pace:
    """`await pace.gather()`, take what has come, `pace.took(how many)`.

    A turn waits `least_s` for what comes together with its first event, so whoever is alone is answered at once; and
    `most_s` while so many come that several will share the turn: its transaction, its message, its wake-ups.
    """

    def __init__(self, least_s: float, most_s: float) -> None:
        self.least_s, self.most_s = least_s, most_s
        self._recent, self._at = 0.0, -math.inf

    def took(self, count: int) -> None:
        """Count what a turn had."""
        now = time.monotonic()
        self._recent, self._at = self._faded(now) + count, now

    @property
    def wait_s(self) -> float:
        """How long a turn that begins now gathers."""
        expected = self._faded(time.monotonic()) * self.most_s / MEMORY_S
        return self.most_s if expected >= WORTH_WAITING_FOR else self.least_s

    async def gather(self) -> None:
        """Let more come."""
        await asyncio.sleep(self.wait_s)

    def _faded(self, now: float) -> float:
        return self._recent * math.exp((self._at - now) / MEMORY_S) if self._recent else 0.0
