"""The way to the grid of somebody on another host: every connection comes from an address of its own."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from agents.user_interface.drill.ground import Ground

PIECE_BYTES = 64 * 1024


async def relays_from(ground: Ground, address: str) -> dict[tuple[str, int], int]:
    """Doors on this machine that lead to the services that users call, where calls arrive from `address`, one of this
    machine's loopback addresses. They close at the end of the drill."""
    doors: dict[tuple[str, int], int] = {}
    for endpoint in ground.endpoints():
        relay = _Relay(endpoint.rpc, address)
        server = await asyncio.start_server(relay.connected, "127.0.0.1", 0)
        ground.afterwards(relay.close)
        ground.at_end(server.close)
        doors[(endpoint.host, endpoint.rpc)] = server.sockets[0].getsockname()[1]
    return doors


class _Relay:
    """Passes bytes on, both ways."""

    def __init__(self, port: int, address: str) -> None:
        self._port, self._address = port, address
        self._connections: set[asyncio.Task[object]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._connections.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):  # nobody waits for this task but `close`
            onward = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(self._address, 0))
            await asyncio.gather(_copy(reader, onward[1]), _copy(onward[0], writer))
        self._connections.discard(task)

    async def close(self) -> None:
        """End every connection."""
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
    finally:
        writer.close()
