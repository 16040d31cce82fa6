"""What the grid's authority tells every agent: the whole of it at once, again after each change, and now and then.

`Bulletin` is the side that tells, `Follower` the side that listens; a `Bell` wakes who waits for news.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fabric.errors import GridError, Unauthenticated, Unavailable

if TYPE_CHECKING:
    from fabric.agent import AgentContext
    from fabric.rpc.channel import SecureChannel

KEEP_ALIVE_S = 20.0
"""A bulletin is said again this often: a listener notices silence, and what ends by itself is forgotten."""
SILENCE_S = 60.0
"""After this silence a listener opens its stream again."""
STALE_S = 300.0
"""Without news for longer an agent is degraded: what changed meanwhile is not known there."""
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 5.0

Message = TypeVar("Message")


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


class Bulletin(Generic[Message]):
    """Tells everybody what `read` gives; it is read once per change, however many listen."""

    def __init__(self, read: Callable[[], Awaitable[Message]]) -> None:
        self._read = read
        self._news = Bell()
        self._issue: asyncio.Future[Message] | None = None
        self._read_at = 0.0

    def changed(self) -> None:
        """There is something else to be read now."""
        self._issue = None
        self._news.ring()

    async def told(self) -> AsyncIterator[Message]:
        """What one listener hears, for ever. Raises what `read` raises."""
        while True:
            heard = self._news.rung  # before it is read: what changes after that is heard
            yield await self._current()
            await self._news.wait(KEEP_ALIVE_S, heard)

    async def _current(self) -> Message:
        now = asyncio.get_running_loop().time()
        issue = self._issue
        if issue is None or now - self._read_at >= KEEP_ALIVE_S / 2 or (issue.done() and issue.exception()):
            issue = self._issue = asyncio.ensure_future(self._read())
            self._read_at = now
        return await asyncio.shield(issue)


class Follower(Generic[Message]):
    """Listens to one bulletin of the grid's authority for ever, through its restarts and cut links."""

    def __init__(
        self,
        context: AgentContext,
        what: str,
        watch: Callable[[SecureChannel], Any],
        take: Callable[[Message], Awaitable[None]],
    ) -> None:
        """`what`: one word for logs and problems. `watch` opens the stream. `take` keeps a message; the GridError that
        it raises for one that it cannot use degrades the agent until it can use one."""
        self._context, self._what = context, what
        self._watch, self._take = watch, take
        self._heard_at = context.clock.monotonic()

    async def run(self) -> None:
        """Follow for ever."""
        what, context = self._what, self._context
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._follow()
            except GridError as error:
                context.log.debug(f"{what}.not_followed", sentence=error.sentence)
                silent_s = context.clock.monotonic() - self._heard_at
                pause_s = min(2 * pause_s, MAX_PAUSE_S) if silent_s > SILENCE_S / 2 else FIRST_PAUSE_S
                if silent_s > STALE_S:
                    context.problem(
                        what, f"no news of {what} for {silent_s:.0f} s: {error.sentence}; look at the authority"
                    )
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))

    async def _follow(self) -> None:
        endpoint = self._context.settings.endpoints("authority")[0]
        channel = await self._context.channels.get(endpoint.host, endpoint.rpc)
        async with self._watch(channel) as stream:
            messages = aiter(stream)
            while True:
                try:
                    async with asyncio.timeout(SILENCE_S):
                        message: Message | None = await anext(messages, None)
                except TimeoutError:
                    raise Unavailable(
                        "AUTHORITY_SILENT", f"{endpoint.name} said nothing of {self._what} for {SILENCE_S:g} s"
                    ) from None
                if message is None:
                    raise Unavailable("STREAM_ENDED", f"{endpoint.name} ended the stream of {self._what}")
                self._require_authority(channel)
                try:
                    await self._take(message)
                except GridError as error:
                    self._context.problem(self._what, error.sentence)
                    continue
                self._heard_at = self._context.clock.monotonic()
                self._context.solved(self._what)

    def _require_authority(self, channel: SecureChannel) -> None:
        """A certificate for that host is not enough: other agents of it have one too."""
        standing = self._context.judge.by_name(channel.server) if channel.server is not None else None
        if standing is None or standing.agent_kind != "authority":
            raise Unauthenticated(
                "NOT_THE_AUTHORITY", f"{channel.peer} showed the certificate of {channel.server}, which is no authority"
            )
