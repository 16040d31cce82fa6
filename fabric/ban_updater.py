"""This agent's copy of the grid's ban list: every change comes over an open stream and is in force at once.

The copy is a file, so what was banned stays banned while the authority is away and after a restart.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

from gridfabric.authority.v1 import bans_pb2 as pb
from gridfabric.authority.v1 import bans_pb2_grpc as pb_grpc

from fabric.agent import AgentContext
from fabric.errors import GridError, Unavailable
from security.bans import BanList
from security.errors import SecurityError, os_error_text
from security.files import write_atomic

SILENCE_S = 60.0
"""The authority says the list every 20 s; after this silence the stream is opened again."""
STALE_S = 300.0
"""Without news for longer the agent is degraded: bans made meanwhile are not known here."""
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 5.0


class BanUpdater:
    """Runs in every agent of a grid that has an authority."""

    def __init__(self, context: AgentContext, path: Path) -> None:
        self._context, self._path = context, path
        self._heard_at = context.clock.monotonic()

    async def run(self) -> None:
        """Follow the list for ever."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._follow()
            except GridError as error:
                self._context.log.debug("bans.not_followed", sentence=error.sentence)
                pause_s = min(2 * pause_s, MAX_PAUSE_S) if self._silent_s() > SILENCE_S / 2 else FIRST_PAUSE_S
                if self._silent_s() > STALE_S:
                    self._context.problem(
                        "bans", f"no news of bans for {self._silent_s():.0f} s: {error.sentence}; look at the authority"
                    )
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))

    def _silent_s(self) -> float:
        return self._context.clock.monotonic() - self._heard_at

    async def _follow(self) -> None:
        endpoint = self._context.settings.endpoints("authority")[0]
        channel = await self._context.channels.get(endpoint.host, endpoint.rpc)
        stub: Any = pb_grpc.BansStub(channel)
        async with stub.Watch(pb.WatchBansRequest()) as listings:
            while True:
                try:
                    async with asyncio.timeout(SILENCE_S):
                        listing: pb.BanListing | None = await anext(aiter(listings), None)
                except TimeoutError:
                    raise Unavailable("BANS_SILENT", f"{endpoint.name} said nothing for {SILENCE_S:g} s") from None
                if listing is None:
                    raise Unavailable("STREAM_ENDED", f"{endpoint.name} ended the stream of bans")
                await self._take(listing.text)

    async def _take(self, text: str) -> None:
        """Keep a list and judge everybody by it. One that cannot be understood is not taken, and says so."""
        context = self._context
        try:
            found = BanList.parse(text)
            new = await asyncio.to_thread(self._write, text)
        except SecurityError as error:
            context.problem("bans", f"the grid's ban list is not understood: {error.sentence}")
            return
        except OSError as error:
            context.problem("bans", f"the grid's ban list cannot be kept in {self._path} ({os_error_text(error)})")
            return
        self._heard_at = context.clock.monotonic()
        context.solved("bans")
        if new:
            context.log.info("bans.changed", bans=len(found.bans))
            context.news.ring()

    def _write(self, text: str) -> bool:
        """False if the copy says so already."""
        try:
            if self._path.read_text("utf-8") == text:
                return False
        except (OSError, UnicodeDecodeError):
            pass
        write_atomic(self._path, text.encode(), 0o644)
        return True
