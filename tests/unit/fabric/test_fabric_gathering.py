from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence

import pytest

from fabric.errors import NotFound
from fabric.gathering import Gathered

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


class Desk:
    """Answers n with 10 n, when it is let."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.turns: list[list[int]] = []
        self.seen: list[str] = []
        self.asked, self.opened = asyncio.Event(), asyncio.Event()
        if is_open:
            self.opened.set()

    async def answer(self, questions: list[int]) -> Sequence[int | Exception]:
        self.turns.append(questions)
        self.asked.set()
        self.seen.append(WHO.get())
        await self.opened.wait()
        if 13 in questions:
            raise RuntimeError("no such day")
        return [NotFound("NEGATIVE", f"{n} is not there") if n < 0 else 10 * n for n in questions]


async def test_what_comes_meanwhile_shares_the_next_turn() -> None:
    desk = Desk(is_open=False)
    gathered = Gathered(desk.answer, most=3)
    first = asyncio.create_task(gathered.ask(1))
    await desk.asked.wait()
    rest = [asyncio.create_task(gathered.ask(n)) for n in range(2, 7)]
    await asyncio.sleep(0)
    desk.opened.set()
    assert await asyncio.gather(first, *rest) == [10, 20, 30, 40, 50, 60]
    assert desk.turns == [[1], [2, 3, 4], [5, 6]]
    assert await gathered.ask(7) == 70


async def test_an_error_is_for_its_asker_and_a_failed_turn_for_all_of_it() -> None:
    desk = Desk()
    gathered = Gathered(desk.answer, most=10)
    found = await asyncio.gather(*(gathered.ask(n) for n in (1, -1, 2)), return_exceptions=True)
    assert found[0] == 10 and found[2] == 20
    assert isinstance(found[1], NotFound)
    found = await asyncio.gather(*(gathered.ask(n) for n in (1, 13)), return_exceptions=True)
    assert [type(one) for one in found] == [RuntimeError, RuntimeError]
    assert await gathered.ask(3) == 30


async def test_too_few_answers_leave_nobody_waiting() -> None:
    async def half(questions: list[int]) -> list[int]:
        return questions[1:]

    gathered: Gathered[int, int] = Gathered(half, most=10)
    found = await asyncio.gather(gathered.ask(1), gathered.ask(2), return_exceptions=True)
    assert [type(one) for one in found] == [ValueError, ValueError]


async def test_who_goes_away_harms_nobody() -> None:
    desk = Desk(is_open=False)
    gathered = Gathered(desk.answer, most=10)
    asked = [asyncio.create_task(gathered.ask(n)) for n in range(3)]
    await desk.asked.wait()
    late = [asyncio.create_task(gathered.ask(n)) for n in range(3, 6)]
    await asyncio.sleep(0)
    for task in (asked[0], late[0]):
        task.cancel()
    await asyncio.sleep(0)
    desk.opened.set()
    assert [await task for task in (*asked[1:], *late[1:])] == [10, 20, 40, 50]
    assert desk.turns == [[0, 1, 2], [4, 5]]
    with pytest.raises(asyncio.CancelledError):
        await asked[0]


async def test_a_turn_is_in_nobodys_name() -> None:
    desk = Desk()
    gathered = Gathered(desk.answer, most=10)
    WHO.set("alice")
    await gathered.ask(1)
    assert desk.seen == ["nobody"]
