"""This host's copy of the grid's ban list: every change comes over an open stream and is in force at once.

The copy is a file, written as soon as the list is in force, by one agent of a process: what was banned stays banned
while the authority is away and after a restart.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from gridfabric.authority.v1 import bans_pb2 as pb
from gridfabric.authority.v1 import bans_pb2_grpc as pb_grpc

from fabric.bulletin import Follower
from fabric.context import AgentContext
from fabric.errors import DataCorrupted, Unavailable
from security.bans import BanList
from security.errors import SecurityError, os_error_text
from security.files import write_if_changed


class _Heard:
    """One message, for all agents of a process."""

    def __init__(self, bans: BanList) -> None:
        self.bans = bans
        self._keeping: dict[Path, asyncio.Future[bool]] = {}

    async def keep(self, path: Path) -> bool:
        """Until the list is on disk, written by who asks first; True if it was not there before. Raises OSError."""
        if path not in self._keeping:
            writing = asyncio.to_thread(write_if_changed, path, self.bans.emit().encode(), 0o644)
            self._keeping[path] = asyncio.ensure_future(writing)
        return await asyncio.shield(self._keeping[path])


class BanUpdater:
    """Runs in every agent of a grid that has an authority."""

    def __init__(self, context: AgentContext, path: Path) -> None:
        self._context, self._path = context, path
        stub: Any = pb_grpc.BansStub
        self._follower: Follower[pb.BanListing, _Heard] = Follower(
            context, "bans", lambda channel: stub(channel).Watch(pb.WatchBansRequest()), self._understand, self._take
        )

    async def run(self) -> None:
        """Follow the list for ever."""
        await self._follower.run()

    async def _understand(self, listing: pb.BanListing) -> _Heard:
        try:
            return _Heard(BanList.parse(listing.text))
        except SecurityError as error:
            raise DataCorrupted(
                "BAN_LIST_UNREADABLE", f"the grid's ban list is not understood: {error.sentence}"
            ) from error

    async def _take(self, found: _Heard) -> None:
        """Judge everybody by a list, then keep it."""
        context = self._context
        heard = context.judge.hear_bans(found.bans)
        if heard:
            context.changed.ring()
        try:
            new = await found.keep(self._path)
        except OSError as error:
            raise Unavailable(
                "BAN_LIST_NOT_KEPT",
                f"the grid's ban list is in force but cannot be kept in {self._path} ({os_error_text(error)})",
            ) from error
        if new:
            context.log.info("bans.changed", bans=len(found.bans.bans))
            if not heard:  # a list on disk could not be read
                context.news.ring()
