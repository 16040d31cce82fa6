"""Everybody's ports under fire."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from agents.user_interface.drill.ground import Ground
from fabric.settings import PROTOCOLS

FLOOD_S = 6.0
"""At least, until the honest user has made HONEST_CALLS."""
HONEST_CALLS = 12
AT_ONCE = 8
"""Connections to each port at one moment."""
GARBAGE_BYTES = 10_000
PATIENCE_S = 5.0


@contextlib.asynccontextmanager
async def _connection(host: str, port: int, tls: ssl.SSLContext | None = None) -> AsyncGenerator[asyncio.StreamWriter]:
    _, writer = await asyncio.open_connection(host, port, ssl=tls)
    try:
        yield writer
    finally:
        writer.transport.abort()


def _anybody() -> ssl.SSLContext:
    """TLS with whoever answers, without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def flood(ground: Ground) -> None:
    """Handshakes that lead nowhere, garbage, and connections left half open, on every port of every service, while an
    honest user works."""
    honest = await ground.victim()
    ports = sorted(
        {(e.host, getattr(e, port)) for found in ground.services.services.values() for e in found for port in PROTOCOLS}
    )
    ports = [(host, port) for host, port in ports if port]
    tls = _anybody()
    garbage = ground.dice.randbytes(GARBAGE_BYTES)
    ground.begin()
    await ground.serves(honest)

    async def garbage_to(host: str, port: int) -> None:
        async with _connection(host, port) as writer:
            writer.write(garbage[: ground.dice.randrange(1, GARBAGE_BYTES)])
            await writer.drain()
            await asyncio.sleep(ground.dice.random())

    async def handshake_to(host: str, port: int) -> None:
        async with _connection(host, port, tls):
            await asyncio.sleep(ground.dice.random() / 4)

    async def half_open_to(host: str, port: int) -> None:
        async with _connection(host, port):
            await asyncio.sleep(2 * ground.dice.random())

    opened = 0

    async def attack(how: Callable[[str, int], Awaitable[None]], host: str, port: int) -> None:
        nonlocal opened
        opened += 1
        with contextlib.suppress(OSError, TimeoutError):  # that the other side hangs up is what it should do
            async with asyncio.timeout(PATIENCE_S):
                await how(host, port)

    attacks = (garbage_to, handshake_to, half_open_to)
    async with ground.honest_work():
        ground.attack(f"attacks {len(ports)} ports: garbage, handshakes, connections left half open")
        began, turns = time.monotonic(), itertools.cycle(attacks)
        while time.monotonic() < began + FLOOD_S or ground.score.honest_calls < HONEST_CALLS:
            how = next(turns)
            await asyncio.gather(*(attack(how, host, port) for host, port in ports for _ in range(AT_ONCE)))
            ground.score.figures["connections of the attacker"] = opened
        ground.attack("is done")
    calls, failed = ground.score.honest_calls, ground.score.honest_failures
    ground.score.figures["honest calls that succeeded, %"] = round(100 * (calls - failed) / max(calls, 1), 2)
    await ground.serves(honest)
