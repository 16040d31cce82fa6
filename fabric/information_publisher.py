"""What an agent says of itself to the information system: one stream to its site's server, a snapshot and then changes.

Soft state: while the stream lives there is a message at least every second; when the agent dies the server notices by
silence. The publisher reconnects by itself, for ever, and begins with a snapshot each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fabric.agent import AgentContext
    from fabric.ldap.tree import Entry

HEARTBEAT_S = 1.0
VALID_FOR_MS = 5_000
"""Without a message for this long the server takes us for lost."""
MAX_ENTRIES = 10_000
"""Of one agent: an SE or CE has some dozen."""
RETRY_S = 0.5
WITHDRAW_TIMEOUT_S = 3.0
ENTRIES_PER_MESSAGE = 1_000
"""Keeps a message far below the size limit."""


class InformationPublisher:
    """Publishes an agent at the information server of its own site, until stopped.

    Either give `entries`, called every `poll_s` on the event loop (it must be quick; `poke` calls it at once), or call
    `replace` when something changed. An agent whose site has no information server is not published, which is logged.
    """

    def __init__(
        self,
        context: AgentContext,
        entries: Callable[[], Iterable[Entry]] | None = None,
        *,
        poll_s: float = POLL_S,
        refresh_s: float = REFRESH_S,
        valid_for_s: float = VALID_FOR_S,
    ) -> None:
        self._context = context
        self._entries = entries
        self._poll_s = poll_s
        self._wake = asyncio.Event()
        self._started = self._stopping = False
        settings = context.settings
        self._publisher = Publisher(
            settings.name,
            settings.endpoints("information", settings.site),
            connector(context),
            log=context.log,
            clock=context.clock,
            refresh_s=refresh_s,
            valid_for_s=valid_for_s,
        )

    @property
    def is_current(self) -> bool:
        """True if the information server has acknowledged everything so far."""
        return self._publisher.connected > 0

    def replace(self, entries: Iterable[Entry]) -> None:
        """Publish exactly these from now on; only differences travel."""
        self._publisher.replace(entries)

    def poke(self) -> None:
        """Something changed: make the entries now."""
        self._wake.set()

    def start(self) -> Awaitable[None]:
        """Begin; never waits for the information server. Awaiting the result is optional: it is done already."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        settings = self._context.settings
        if self._started:
            return done
        if not settings.endpoints("information", settings.site):
            self._context.log.warning("publish.nowhere", site=settings.site)
            return done
        self._started = True
        self._context.spawn(self._publisher.run(), "publish")
        if self._entries is not None:
            self._publisher.replace(self._entries())
            self._context.spawn(self._poll(self._entries), "publish entries")
        return done

    async def _poll(self, make: Callable[[], Iterable[Entry]]) -> None:
        while not self._stopping:
            try:
                await asyncio.wait_for(self._wake.wait(), self._poll_s)
            except TimeoutError:
                pass
            self._wake.clear()
            if not self._stopping:
                self._publisher.replace(make())

    async def withdraw(self) -> None:
        """Take everything back and stop. Waits a second at most. May be called twice."""
        self._stopping = True
        self._wake.set()
        await self._publisher.withdraw()

    async def stop(self) -> None:
        """The same as `withdraw`."""
        await self.withdraw()
