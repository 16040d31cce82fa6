"""This agent's copy of the grid's list of VOs: every change comes over an open stream and is in force at once.

The copy is a file, so what was dissolved stays dissolved while the authority is away and after a restart. What VOMS
clients and servers of any make read of the list is kept beside the directory of authorities of this host.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, NamedTuple

from gridfabric.authority.v1 import vos_pb2 as pb
from gridfabric.authority.v1 import vos_pb2_grpc as pb_grpc

from fabric import voms_files
from fabric.bulletin import Follower
from fabric.context import AgentContext
from fabric.errors import DataCorrupted, Unavailable
from security.certificates import issuer_of
from security.errors import SecurityError, os_error_text
from security.files import write_if_changed
from security.names import DistinguishedName
from security.vos import VoList


class _Heard(NamedTuple):
    """One message, for all agents of a process."""

    text: bytes
    vos: int


class VoUpdater:
    """Runs in every agent of a grid that has an authority."""

    def __init__(self, context: AgentContext, path: Path) -> None:
        self._context, self._path = context, path
        stub: Any = pb_grpc.VosStub
        self._follower: Follower[pb.VoListing, _Heard] = Follower(
            context, "VOs", lambda channel: stub(channel).Watch(pb.WatchVosRequest()), self._understand, self._take
        )

    async def run(self) -> None:
        """Follow the list for ever."""
        await self._follower.run()

    async def _understand(self, listing: pb.VoListing) -> _Heard:
        """The list; other tools of this host are told of it."""
        try:
            found = VoList.parse(listing.text)
        except SecurityError as error:
            raise DataCorrupted("VO_LIST_UNREADABLE", f"the grid's list is not understood: {error.sentence}") from error
        await asyncio.to_thread(self._tell_others, found)
        return _Heard(found.emit().encode(), len(found.vos))

    async def _take(self, found: _Heard) -> None:
        """Keep a list and judge everybody by it."""
        try:
            new = await asyncio.to_thread(write_if_changed, self._path, found.text, 0o644)
        except OSError as error:
            raise Unavailable(
                "VO_LIST_NOT_KEPT", f"the grid's list of VOs cannot be kept in {self._path} ({os_error_text(error)})"
            ) from error
        if new:
            self._context.log.info("vos.changed", vos=found.vos)
            self._context.news.ring()

    def _tell_others(self, found: VoList) -> None:
        settings = self._context.settings
        issuer = issuer_of(self._context.credential.certificate)
        try:
            voms_files.write(
                settings.certificates.parent, found, DistinguishedName.parse(settings.organisation), issuer
            )
        except OSError as error:  # a folder that is not ours
            self._context.log.debug("voms_files.not_written", detail=os_error_text(error))
