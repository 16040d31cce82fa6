"""This agent's copy of the grid's ban list: every change comes over an open stream and is in force at once.

The copy is a file, written as soon as the list is in force, so what was banned stays banned while the authority is away
and after a restart.
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


class BanUpdater:
    """Runs in every agent of a grid that has an authority."""

    def __init__(self, context: AgentContext, path: Path) -> None:
        self._context, self._path = context, path
        stub: Any = pb_grpc.BansStub
        self._follower: Follower[pb.BanListing, BanList] = Follower(
            context, "bans", lambda channel: stub(channel).Watch(pb.WatchBansRequest()), self._understand, self._take
        )

    async def run(self) -> None:
        """Follow the list for ever."""
        await self._follower.run()

    async def _understand(self, listing: pb.BanListing) -> BanList:
        try:
            return BanList.parse(listing.text)
        except SecurityError as error:
            raise DataCorrupted(
                "BAN_LIST_UNREADABLE", f"the grid's ban list is not understood: {error.sentence}"
            ) from error

    async def _take(self, found: BanList) -> None:
        """Judge everybody by a list, then keep it."""
        context = self._context
        heard = context.judge.hear_bans(found)
        if heard:
            context.changed.ring()
        try:
            new = await asyncio.to_thread(write_if_changed, self._path, found.emit().encode(), 0o644)
        except OSError as error:
            raise Unavailable(
                "BAN_LIST_NOT_KEPT",
                f"the grid's ban list is in force but cannot be kept in {self._path} ({os_error_text(error)})",
            ) from error
        if new:
            context.log.info("bans.changed", bans=len(found.bans))
            if not heard:  # a list on disk could not be read
                context.news.ring()
