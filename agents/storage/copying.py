"""A third-party copy under way at its destination: what has come, at what speed, and whose fault an end is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from agents.storage.client import OpenFile
from agents.storage.framing import Piece
from fabric.errors import GridError, InvalidRequest

MARKER_S = 1.0
"""Between two messages about a copy under way."""
LEAST_BYTES_PER_S = 256 << 10
"""Of a speed limit: below it a piece takes longer than a silence that ends a transfer."""


class Arriving:
    """The bytes of a file of another storage element, not faster than `max_bytes_per_s` (0: as fast as they come)."""

    def __init__(self, opened: OpenFile, max_bytes_per_s: int) -> None:
        self._opened, self._rate = opened, max_bytes_per_s
        self.moved_bytes = 0

    async def pieces(self) -> AsyncGenerator[Piece]:
        """As `OpenFile.pieces`. An error says that it is the source's."""
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async for piece in self._opened.pieces():
                self.moved_bytes += len(piece)
                yield piece
                if self._rate and (early_s := began + self.moved_bytes / self._rate - clock()) > 0:
                    await asyncio.sleep(early_s)
        except GridError as error:
            raise at_source(error) from error


def check_rate(max_bytes_per_s: int) -> int:
    """Raises InvalidRequest(RATE_INVALID)."""
    if max_bytes_per_s and max_bytes_per_s < LEAST_BYTES_PER_S:
        raise InvalidRequest(
            "RATE_INVALID", f"a copy is not slowed down below {LEAST_BYTES_PER_S} bytes a second; ask for more, or 0"
        )
    return max_bytes_per_s


def at_source(error: GridError) -> GridError:
    """The same error with the fact that the source, not the destination, raised it."""
    return type(error)(error.reason, error.sentence, **{**error.facts, "side": "source"})
