"""What an agent needs to be found: its GLUE entries, kept at its own site's information server.

Soft state: a snapshot on every new stream, changes as they happen, a sign of life when nothing does. When the agent
dies, the server notices by silence; when the server is lost, the publisher comes back by itself, for ever.

The same entries are served by LDAP on the agent's own `ldap` port, if it has one: see `fabric.resource_level`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from gridfabric.information.v1 import information_pb2_grpc

from fabric.information import Connect, Publisher
from fabric.ldap import Entry
from fabric.settings import Endpoint

if TYPE_CHECKING:
    from fabric.context import AgentContext

POLL_S = 2.0
"""How often the entries are made anew when nobody pokes; unchanged ones cost nothing on the wire."""
SIGNS_OF_LIFE = 4
"""In the time that entries stand without one."""


def connector(context: AgentContext) -> Connect:
    """How this agent reaches information servers, in its own name."""

    async def connect(endpoint: Endpoint) -> information_pb2_grpc.InformationStub:
        return information_pb2_grpc.InformationStub(await context.channels.get(endpoint.host, endpoint.rpc))

    return connect


class InformationPublisher:
    """Publishes an agent at the information server of its own site, until stopped.

    Either give `entries`, a sequence that stays as it is or a function, which is called every `poll_s` on the event
    loop (it must be quick; `poke` calls it at once), or call `replace` when something changed. An agent whose site has
    no information server is not published, which is logged.
    Agents that use their `ldap` port themselves say `resource_level=False`.
    """

    def __init__(
        self,
        context: AgentContext,
        entries: Callable[[], Iterable[Entry]] | Sequence[Entry] | None = None,
        *,
        poll_s: float = POLL_S,
        refresh_s: float | None = None,
        valid_for_s: float | None = None,
        resource_level: bool = True,
    ) -> None:
        self._context = context
        self._resource_level = resource_level
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
            refresh_s=refresh_s or settings.fabric.publish_valid_for_s / SIGNS_OF_LIFE,
            valid_for_s=valid_for_s or settings.fabric.publish_valid_for_s,
        )

    @property
    def is_current(self) -> bool:
        """True if the information server has acknowledged everything so far."""
        return self._publisher.connected > 0

    def replace(self, entries: Iterable[Entry]) -> None:
        """Publish exactly these from now on; only differences travel."""
        self._publisher.replace(entries)

    def follow(self, entries: Callable[[], Iterable[Entry]]) -> None:
        """Publish what this function gives from now on: it is called every `poll_s`, and at once after `poke`."""
        self._publisher.replace(entries())
        self._context.spawn(self._poll(entries), "publish entries")

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
        self._started = True
        served = self._resource_level and bool(settings.ports.get("ldap"))
        if served:
            from fabric.resource_level import ResourceLevel

            self._context.spawn(ResourceLevel(self._context, self._publisher).run(), "resource level")
        if settings.endpoints("information", settings.site):
            self._context.spawn(self._publisher.run(), "publish")
        else:
            self._context.log.warning("publish.nowhere", site=settings.site)
            if not served:
                return done
        if callable(self._entries):
            self.follow(self._entries)
        elif self._entries is not None:
            self._publisher.replace(self._entries)
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
