"""Questions that wait at the same moment, answered by one call: one thread hop and one query for all of them."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Gathered(Generic[Q, A]):
    """`await gathered.ask(question)`. Who is alone is answered at once; what comes meanwhile shares the next turn.

    `answer` gets at most `most` questions and gives as many answers in the same order; one that is an exception is
    raised to its asker alone, and one that `answer` raises to all of the turn. It runs in no asker's context. As many
    wait as the caller lets in.
    """

    def __init__(self, answer: Callable[[list[Q]], Awaitable[Sequence[A | BaseException]]], most: int) -> None:
        self._answer, self._most = answer, most
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._turns: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """The answer. Raises what was found instead of one."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        self._waiting.append((question, future))
        if self._turns is None:
            self._turns = loop.create_task(self._run(), name="gathered", context=contextvars.Context())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                turn = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
                await self._take(turn)
        finally:
            self._turns = None
            while self._waiting:  # the loop is being closed
                self._waiting.popleft()[1].cancel()

    async def _take(self, turn: list[tuple[Q, asyncio.Future[A]]]) -> None:
        turn = [(question, future) for question, future in turn if not future.done()]
        if not turn:
            return
        try:
            answers = await self._answer([question for question, _ in turn])
            found = list(zip(turn, answers, strict=True))
        except Exception as error:
            found = [(asked, error) for asked in turn]
        except BaseException:
            for _, future in turn:
                future.cancel()
            raise
        for (_, future), answer in found:
            if future.done():
                continue
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)
