"""Wakes who waits for news."""

from __future__ import annotations

import asyncio
import contextlib


class Bell:
    """Wakes everybody who waits, and who was about to: `heard = bell.rung`, look, `await bell.wait(limit_s, heard)`."""

    def __init__(self) -> None:
        self.rung = 0
        """How often it was rung."""
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake them."""
        self.rung += 1
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self, limit_s: float, heard: int) -> None:
        """Until it was rung more than `heard` times, at most `limit_s`."""
        if self.rung != heard:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._event.wait()
