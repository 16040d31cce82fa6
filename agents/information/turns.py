"""Long work of many, in short steps that take turns with everything else on the event loop.

Publications come in bursts of thousands of entries. Taken whole, they would leave searches one answer for each burst.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator
from time import thread_time
from typing import Any, TypeVar

T = TypeVar("T")

SHORTEST_S = 0.002
LONGEST_S = 0.05


class Turns:
    """Each turn lasts as long as everything else took since the one before, so that neither side starves.

    Counted in processor time of the event loop's thread, between `SHORTEST_S` and `LONGEST_S`. Whoever waits has one
    step after another, in rotation: one with much to do does not hold up the others.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Generator[None, None, Any], asyncio.Future[Any]]] = deque()
        self._left_at = 0.0

    async def run(self, steps: Generator[None, None, T]) -> T:
        """Go through `steps` and return what they return, or raise what they raise. When this is cancelled, the
        steps not yet begun are left out."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        if not self._waiting:
            self._left_at = thread_time()
            loop.call_soon(self._turn, loop)
        self._waiting.append((steps, done))
        return await done

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        began = thread_time()
        until = began + min(max(began - self._left_at, SHORTEST_S), LONGEST_S)
        while self._waiting:
            steps, done = self._waiting[0]
            if _step(steps, done):
                self._waiting.popleft()
            else:
                self._waiting.rotate(-1)
            if thread_time() >= until:
                break
        self._left_at = thread_time()
        if self._waiting:
            loop.call_soon(self._turn, loop)


def _step(steps: Generator[None, None, Any], done: asyncio.Future[Any]) -> bool:
    """True if it was the last one."""
    if done.done():
        steps.close()
        return True
    try:
        next(steps)
    except StopIteration as end:
        done.set_result(end.value)
        return True
    except Exception as error:
        done.set_exception(error)
        return True
    return False
