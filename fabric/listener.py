"""A port of asyncio streams and the connections that it has taken: opening it, and ending all of them."""

from __future__ import annotations

import asyncio

from fabric.errors import port_in_use


class Listener:
    """A subclass serves one connection in `_accept`, whose task it keeps in `_connections` while that lasts."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes that a reader holds before its client has to wait."""
        self._limit = limit
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Open the port. Raises Unavailable PORT_IN_USE."""
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=self._limit)
        except OSError as error:
            raise port_in_use(host, port, error) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and end what is open."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError
