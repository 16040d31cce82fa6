"""What the grid's authority tells every agent: the whole of it at once, again after each change, and now and then.

`Bulletin` is the side that tells, `Follower` the side that listens.
"""

from __future__ import annotations

import asyncio
import random
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from fabric.bell import Bell
from fabric.errors import Defect, GridError, Unauthenticated, Unavailable
from fabric.rpc.calls import each_within
from security.certificates import issuer_of, subject_of

if TYPE_CHECKING:
    from fabric.context import AgentContext
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
Value = TypeVar("Value")


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


class _Board(Generic[Value]):
    """What one of the agents of a process heard last, for all that would believe the same."""

    def __init__(self) -> None:
        self.listening = asyncio.Lock()
        """Held by the one that listens."""
        self.readers = 0
        self.news = Bell()
        self.number = 0
        """How much was heard."""
        self.issue: Value | GridError | None = None
        """What was heard last, or why it cannot be used."""
        self.heard_at = asyncio.get_running_loop().time()
        self.failure: GridError | None = None
        """Why nobody listens at present."""

    def post(self, issue: Value | GridError) -> None:
        """Let everybody have it."""
        self.issue, self.failure = issue, None
        self.number += 1
        self.news.ring()

    @property
    def silent_s(self) -> float:
        """Since something was heard that could be used."""
        return asyncio.get_running_loop().time() - self.heard_at


_boards: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[object, ...], _Board[Any]]]
_boards = weakref.WeakKeyDictionary()


class Follower(Generic[Message, Value]):
    """Listens to one bulletin of the grid's authority for ever, through its restarts and cut links.

    Agents of one process (a pack) that have the authority, the directory of authorities and the rules in common share
    one stream: one of them listens, and another as soon as that one fails or stops.
    """

    def __init__(
        self,
        context: AgentContext,
        what: str,
        watch: Callable[[SecureChannel], Any],
        understand: Callable[[Message], Awaitable[Value]],
        take: Callable[[Value], Awaitable[None]],
    ) -> None:
        """`what`: one word for logs and problems. `watch` opens the stream. `understand` makes of a message what agents
        take, once for all of them. A GridError that it or an agent's own `take` raises degrades the agents, or that
        one, until there is something that they can use."""
        self._context, self._what = context, what
        self._watch, self._understand, self._take = watch, understand, take
        self._board: _Board[Value] = _Board()

    def _key(self) -> tuple[object, ...]:
        """Who has this in common hears and believes the same."""
        settings = self._context.settings
        authority, options = settings.endpoints("authority")[0], settings.fabric
        return (
            self._what, authority.host, authority.rpc, settings.certificates, settings.organisation,
            options.crl_policy, options.expired_crl_policy,
        )  # fmt: skip

    async def run(self) -> None:
        """Follow for ever."""
        key, boards = self._key(), _boards.setdefault(asyncio.get_running_loop(), {})
        board = self._board = boards.setdefault(key, self._board)
        board.readers += 1
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen())
                group.create_task(self._read())
        finally:
            board.readers -= 1
            if not board.readers:
                del boards[key]

    async def _listen(self) -> None:
        """Take turns with the others: who cannot hear lets another try."""
        board, pause_s = self._board, FIRST_PAUSE_S
        while True:
            try:
                async with board.listening:
                    await self._follow()
            except Exception as error:  # whatever it is, nobody would follow any more
                board.failure = self._told_of(error)
                board.news.ring()
                pause_s = min(2 * pause_s, MAX_PAUSE_S) if board.silent_s > SILENCE_S / 2 else FIRST_PAUSE_S
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))

    async def _follow(self) -> None:
        endpoint = self._context.settings.endpoints("authority")[0]
        channel = await self._context.channels.get(endpoint.host, endpoint.rpc)
        async with self._watch(channel) as stream:
            silent = f"{endpoint.name} said nothing of {self._what} for {SILENCE_S:g} s"
            async for message in each_within(stream, SILENCE_S, "AUTHORITY_SILENT", silent):
                self._require_authority(channel)
                try:
                    self._board.post(await self._understand(message))
                    self._board.heard_at = asyncio.get_running_loop().time()
                except GridError as error:
                    self._board.post(error)
            raise Unavailable("STREAM_ENDED", f"{endpoint.name} ended the stream of {self._what}")

    def _require_authority(self, channel: SecureChannel) -> None:
        """A certificate for that host is not enough: other agents of it have one too."""
        shown = channel.shown
        standing = None if shown is None else self._context.judge.by_name(subject_of(shown), issuer_of(shown))
        if standing is None or standing.agent_kind != "authority":
            raise Unauthenticated(
                "NOT_THE_AUTHORITY", f"{channel.peer} showed the certificate of {channel.server}, which is no authority"
            )

    async def _read(self) -> None:
        board, taken = self._board, 0
        while True:
            heard = board.news.rung
            if board.number != taken:
                taken = board.number
                await self._use(board.issue)
            if board.silent_s > STALE_S:
                self._context.problem(
                    self._what,
                    f"no news of {self._what} for {board.silent_s:.0f} s"
                    + (f": {board.failure.sentence}" if board.failure is not None else "")
                    + "; look at the authority",
                )
            await board.news.wait(SILENCE_S, heard)

    async def _use(self, issue: Value | GridError | None) -> None:
        try:
            if isinstance(issue, GridError):
                raise issue
            await self._take(cast("Value", issue))
            self._context.solved(self._what)
        except Exception as error:
            self._context.problem(self._what, self._told_of(error).sentence)

    def _told_of(self, error: Exception) -> GridError:
        if isinstance(error, GridError):
            self._context.log.debug(f"{self._what}.not_followed", sentence=error.sentence)
            return error
        self._context.log.exception(f"{self._what}.defect", error)
        return Defect(
            "BULLETIN_DEFECT", f"following {self._what} failed ({type(error).__name__}: {error}); see the log"
        )
