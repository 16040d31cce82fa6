"""A bad network between agents: calls that never arrive, whose answer is lost, that arrive twice, at once or much
later, that take long; streams that are cut after any message. It is below the code of the agents and above TLS, which
lets nothing less whole through. What cuts a link for real, a peer's death: tests/drills/test_failpoints.py."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fabric.errors import GridError, Unavailable
from fabric.rpc.calls import StreamCall, UnaryCallable

FATES = ("delayed", "lost", "answer lost", "twice", "again later")
CUT = "stream cut"
SHARE = 0.07
"""Of calls, for each thing that may happen to them."""
SHARE_OF_STREAM = 0.04
"""Of messages of streams after which the stream is cut."""
MAX_DELAY_S = 0.3
LATE_S = (0.5, 3.0)


def install(seed: str, counts: Path) -> None:
    """For all channels of this process, from now on. How often what happened is kept in `counts`: a line for each."""
    chance = random.Random(seed)
    late: set[asyncio.Task[None]] = set()
    call, read, responses = UnaryCallable.__call__, StreamCall.read, StreamCall._responses

    def happened(what: str) -> None:
        with counts.open("a") as file:
            file.write(f"{what}\n")

    async def again_later(this: UnaryCallable, request: Any, more: dict[str, Any]) -> None:
        await asyncio.sleep(chance.uniform(*LATE_S))
        try:
            await call(this, request, **more)
        except GridError:
            pass  # nobody waits for the answer

    async def bad_call(this: UnaryCallable, request: Any, **more: Any) -> Any:
        (fate,) = chance.choices((*FATES, ""), (*(SHARE for _ in FATES), 1 - SHARE * len(FATES)))
        if fate:
            happened(fate)
        if fate == "delayed":
            await asyncio.sleep(chance.uniform(0, MAX_DELAY_S))
        if fate == "lost":
            raise Unavailable("LOST", "the call was lost on its way")
        answer = await call(this, request, **more)
        if fate == "answer lost":
            raise Unavailable("LOST", "the answer was lost on its way")
        if fate == "twice":
            return await call(this, request, **more)
        if fate == "again later":
            task = asyncio.get_running_loop().create_task(again_later(this, request, more))
            late.add(task)
            task.add_done_callback(late.discard)
        return answer

    def cut(this: StreamCall) -> None:
        if chance.random() < SHARE_OF_STREAM:
            happened(CUT)
            this.cancel()
            raise Unavailable("CUT", "the stream was cut")

    async def bad_read(this: StreamCall) -> Any:
        found = await read(this)
        cut(this)
        return found

    async def bad_responses(this: StreamCall) -> AsyncIterator[Any]:
        async for found in responses(this):
            cut(this)
            yield found

    UnaryCallable.__call__ = bad_call  # type: ignore[method-assign]
    StreamCall.read = bad_read  # type: ignore[method-assign]
    StreamCall._responses = bad_responses  # type: ignore[method-assign]


def counted(folder: Path) -> Counter[str]:
    """What happened, over all agents."""
    found: Counter[str] = Counter()
    for path in folder.glob("*.faults"):
        found.update(path.read_text().splitlines())
    return found
