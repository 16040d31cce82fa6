"""Receive and write at the same time: pieces go to a thread in batches while the next ones arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agents.storage.framing import Piece

AHEAD_PIECES = 4
"""Pieces of one transfer handed to a thread at once; twice as many are in memory."""


class Overlap:
    """Feeds a blocking consumer in order, one batch at a time. At most 2 * AHEAD_PIECES pieces are held."""

    def __init__(
        self, consume: Callable[[list[Piece]], asyncio.Future[int]], consumed: Callable[[int], None] = lambda size: None
    ) -> None:
        """`consume` starts the work on a thread and returns its future; `consumed` is told the bytes done, on the
        loop."""
        self._consume = consume
        self._consumed = consumed
        self._waiting: list[Piece] = []
        self._running: asyncio.Future[int] | None = None

    async def add(self, piece: Piece) -> None:
        """Take a piece; waits when the consumer is behind. Raises what the consumer raised."""
        self._waiting.append(piece)
        if len(self._waiting) >= AHEAD_PIECES:  # one hop to the thread for several pieces
            await self._join()
            self._start()

    async def drain(self) -> None:
        """Wait until everything taken is consumed. Raises what the consumer raised."""
        await self._join()
        if self._waiting:
            self._start()
            await self._join()

    def abandon(self) -> None:
        """Forget the rest. A batch that runs now ends by itself; nobody is told."""
        self._waiting = []
        running, self._running = self._running, None
        if running is not None:
            running.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _start(self) -> None:
        self._running, self._waiting = self._consume(self._waiting), []

    async def _join(self) -> None:
        if self._running is not None:
            # shielded: cancelling us must not pretend that the thread has stopped
            done = await asyncio.shield(self._running)
            self._running = None
            self._consumed(done)
