"""What an agent needs to be found: give it a function that makes the agent's GLUE entries, start it, stop it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from gridfabric.information.v1 import information_pb2_grpc

from fabric.information import REFRESH_S, VALID_FOR_S, Connect, Publisher
from fabric.ldap import Entry
from fabric.settings import Endpoint

if TYPE_CHECKING:
    from fabric.agent import AgentContext

POLL_S = 0.5
"""How often the entries are made anew; unchanged ones cost nothing on the wire."""


def connector(context: AgentContext) -> Connect:
    """How this agent reaches information servers, in its own name."""

    async def connect(endpoint: Endpoint) -> information_pb2_grpc.InformationStub:
        return information_pb2_grpc.InformationStub(await context.channels.get(endpoint.host, endpoint.rpc))

    return connect


class InformationPublisher:
    """Publishes an agent at the information server of its own site, until stopped.

    `entries` is called every `poll_s` on the event loop and must be quick; call `poke` to have it called at once. An
    agent whose site has no information server is not published, which is logged.
    """

    def __init__(
        self,
        context: AgentContext,
        entries: Callable[[], Iterable[Entry]],
        *,
        poll_s: float = POLL_S,
        refresh_s: float = REFRESH_S,
        valid_for_s: float = VALID_FOR_S,
    ) -> None:
        self._context = context
        self._entries = entries
        self._poll_s = poll_s
        self._wake = asyncio.Event()
        self._stopping = False
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

    def poke(self) -> None:
        """Something changed: make the entries now."""
        self._wake.set()

    async def start(self) -> None:
        """Begin; never waits for the information server."""
        settings = self._context.settings
        if not settings.endpoints("information", settings.site):
            self._context.log.warning("publish.nowhere", site=settings.site)
            return
        self._publisher.replace(self._entries())
        self._context.spawn(self._publisher.run(), "publish")
        self._context.spawn(self._poll(), "publish entries")

    async def _poll(self) -> None:
        while not self._stopping:
            try:
                await asyncio.wait_for(self._wake.wait(), self._poll_s)
            except TimeoutError:
                pass
            self._wake.clear()
            if not self._stopping:
                self._publisher.replace(self._entries())

    async def stop(self) -> None:
        """Withdraw. Waits a second at most."""
        self._stopping = True
        self._wake.set()
        await self._publisher.withdraw()
