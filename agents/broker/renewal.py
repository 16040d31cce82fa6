"""Proxies of jobs that name a credential store (JDL `MyProxyServer`) are renewed there before they end.

What the broker holds of a user is one delegated proxy; all gatekeepers with jobs of that user get a new delegation of
it as soon as it changes, and hand it to their workers. So one renewal serves every job of the owner, queued or running.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from agents.broker import store as rows
from agents.broker.config import BrokerOptions
from agents.myproxy.renewal import Renewals, Server
from fabric.errors import InvalidRequest

if TYPE_CHECKING:
    import sqlalchemy as sa

    from agents.broker.tables import LogSink
    from fabric.context import AgentContext
    from fabric.store import Store

ATTRIBUTE = "myproxyserver"
NOTED_JOBS = 1000
"""Jobs of an owner that are told of a renewal, or that there was none."""


class JobRenewals(Renewals):
    """Every outcome is an event of the owner's jobs."""

    def __init__(
        self,
        context: AgentContext,
        options: BrokerOptions,
        store: Store,
        sink: LogSink,
        on_renewed: Callable[[str], None],
    ) -> None:
        super().__init__(context, options)
        self._store, self._sink, self._on_renewed = store, sink, on_renewed

    def server_of(self, extra: Sequence[tuple[str, str]]) -> Server | None:
        """The store that a job names; None if it names none. Raises InvalidRequest MYPROXY_SERVER_UNKNOWN."""
        named = next((text.strip().strip('"') for name, text in extra if name.lower() == ATTRIBUTE), None)
        if named is None:
            return None
        if (server := self.known(named)) is not None:
            return server
        known = ", ".join(map(str, self.servers))
        raise InvalidRequest(
            "MYPROXY_SERVER_UNKNOWN",
            f"MyProxyServer names {named[:80]!r}, which is no credential store that this broker uses; "
            + (f"it uses {known}" if known else "it uses none, so leave the attribute out"),
        )

    async def stores_of(self, owner: str) -> Sequence[Server]:
        """The first that an unfinished job of the owner names."""

        def find(connection: sa.Connection) -> list[Server]:
            clusters = rows.load_clusters(connection, rows.clusters_unfinished(connection, owner)).values()
            servers = (self.server_of(cluster.extra) for cluster in clusters)
            return next(([server] for server in servers if server is not None), [])

        return await self._store.read(find)

    async def tell(self, owner: str, text: str, *, renewed: bool) -> None:
        """In the history of the jobs that name a store."""
        if renewed:
            self._on_renewed(owner)
        now_us = int(self._context.clock.now().timestamp() * 1e6)

        def note(connection: sa.Connection) -> None:
            found = rows.unfinished_of(connection, owner, NOTED_JOBS)
            clusters = rows.load_clusters(connection, {row.cluster for row in found})
            rows.note(
                connection, [row for row in found if _asks(clusters[row.cluster].extra)], text, now_us, self._sink
            )

        await self._store.write(note)


def _asks(extra: Iterable[tuple[str, str]]) -> bool:
    return any(name.lower() == ATTRIBUTE for name, _ in extra)
