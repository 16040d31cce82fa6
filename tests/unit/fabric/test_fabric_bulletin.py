"""One bulletin and its listeners, without a network."""

from __future__ import annotations

import asyncio

import pytest

from fabric.bell import Bell
from fabric.bulletin import Bulletin
from fabric.errors import Unavailable

PROMPT_S = 5.0


async def test_a_bell_rung_between_the_look_and_the_wait_is_heard() -> None:
    bell = Bell()
    heard = bell.rung
    bell.ring()
    async with asyncio.timeout(PROMPT_S):
        await bell.wait(3600.0, heard)
    async with asyncio.timeout(PROMPT_S):
        await bell.wait(0.001, bell.rung)  # not rung: ends by its limit


async def test_many_listeners_are_told_of_one_change_by_one_look() -> None:
    looks = 0

    async def read() -> int:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0)
        return looks

    bulletin = Bulletin(read)
    listeners = [bulletin.told() for _ in range(50)]
    assert await asyncio.gather(*map(anext, listeners)) == [1] * 50
    waiting = [asyncio.ensure_future(anext(listener)) for listener in listeners]
    await asyncio.sleep(0)
    bulletin.changed()
    async with asyncio.timeout(PROMPT_S):
        assert await asyncio.gather(*waiting) == [2] * 50
    assert looks == 2


async def test_a_change_during_the_look_is_told_too() -> None:
    begun, go = asyncio.Event(), asyncio.Event()
    value = "old"

    async def read() -> str:
        found = value
        begun.set()
        await go.wait()
        return found

    bulletin = Bulletin(read)
    listener = bulletin.told()
    first = asyncio.ensure_future(anext(listener))
    await begun.wait()
    value = "new"
    bulletin.changed()
    go.set()
    async with asyncio.timeout(PROMPT_S):
        assert await first == "old"
        assert await anext(listener) == "new"


async def test_a_look_that_failed_is_not_repeated_to_the_next_listener() -> None:
    answers: list[str | Exception] = [Unavailable("STORE", "the disk is full"), "fine"]

    async def read() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    bulletin = Bulletin(read)
    with pytest.raises(Unavailable):
        await anext(bulletin.told())
    assert await anext(bulletin.told()) == "fine"
