"""The methods of gridfabric.storage.v1.Storage: who asks, for which VO, then the element."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Protocol

from gridfabric.storage.v1 import storage_pb2 as pb
from gridfabric.storage.v1 import storage_pb2_grpc

from agents.storage import wire
from agents.storage.client import open_file
from agents.storage.element import Pieces, StorageElement
from agents.storage.framing import get_data
from agents.storage.model import Announced, StoredFile, byte_range
from agents.storage.surl import Surl, is_file_id, is_vo_name, parse_surl
from fabric import access
from fabric.errors import DataCorrupted, DeadlineExceeded, InvalidRequest, NotFound, Refused
from fabric.logs import Logger
from fabric.rpc.peer import Peer, current_peer
from fabric.rpc.rules import Rule, administrator, any_of, any_service, user
from fabric.vos import Vos
from security.errors import Reason

MAX_PAGE = 500
"""Files of one List answer: below the message limit with the longest hints."""

RULES: dict[str, Rule] = {
    "Put": user,
    "Get": any_of(user, administrator),
    "Stat": any_of(user, administrator),
    "Remove": any_of(user, administrator),
    "List": any_of(user, administrator),
    "CopyFrom": user,
    "Space": any_of(user, administrator, any_service),
}
"""Data belongs to users: an agent reads or writes it only with a proxy that a user delegated to it. Operators see and
remove what VOs that were dissolved have left."""


class ChannelSource(Protocol):
    """Where channels in a user's name come from."""

    async def get(self, host: str, port: int, credential: Any = None) -> Any:
        """A secure channel."""
        ...


class Delegations(Protocol):
    """Proxies delegated to this storage element."""

    def get(self, subject: str, delegation_id: str = "default") -> Any:
        """The credential. Raises DELEGATION_MISSING, DELEGATION_EXPIRED."""
        ...


class StorageServicer(storage_pb2_grpc.StorageServicer):
    """One storage element at `host:port`, as its SURLs name it."""

    def __init__(
        self,
        element: StorageElement,
        *,
        host: str,
        port: int,
        channels: ChannelSource,
        delegations: Delegations,
        log: Logger,
        vos: Vos,
    ) -> None:
        self.host = host
        self.port = port
        self._element = element
        self._channels = channels
        self._delegations = delegations
        self._log = log
        self._vos = vos

    async def Put(self, requests: AsyncIterator[pb.PutRequest | memoryview], context: Any) -> pb.PutResponse:
        """See the proto."""
        peer = current_peer(context)
        async with asyncio.timeout(self._element.config.stall_timeout_s):
            first = await anext(requests, None)
        if not isinstance(first, pb.PutRequest) or not first.HasField("header"):
            raise InvalidRequest("STREAM_MALFORMED", "an upload begins with a header; none came")
        announced = wire.header_from_wire(first.header, peer.subject)
        self._may_write(peer, announced.vo)
        file = await self._element.put(announced, _pieces(first, requests))
        self._log.audit(
            "storage.put",
            **peer.trail,
            surl=self._surl(file),
            name=file.name_hint,
            vo=file.vo,
            size_bytes=file.size_bytes,
        )
        return pb.PutResponse(
            surl=self._surl(file), size_bytes=file.size_bytes, checksums=wire.checksums_to_wire(file.checksums)
        )

    async def Get(self, request: pb.GetRequest, context: Any) -> None:
        """See the proto. The checksums are of the whole file; a reader of the whole file verifies them."""
        peer = current_peer(context)
        surl = self._mine(peer, request.surl)
        file = await self._element.get(surl.file_id, surl.vo)
        offset, size_bytes = byte_range(file.size_bytes, request.offset, request.length)
        header = pb.GetResponse(size_bytes=file.size_bytes, checksums=wire.checksums_to_wire(file.checksums))
        stall_s = self._element.config.stall_timeout_s
        with self._element.admission.transfer(peer.subject):
            messages = self._element.read(file, offset, size_bytes, get_data)
            try:
                await context.write(header)
                async for message in messages:
                    async with asyncio.timeout(stall_s):
                        await context.write(message)
            except TimeoutError:
                raise DeadlineExceeded(
                    "TRANSFER_STALLED",
                    f"{peer.subject} took no data for {stall_s:g} s; the download was ended, start it again",
                ) from None
            finally:
                await messages.aclose()
        self._log.audit(
            "storage.get", **peer.trail, surl=request.surl, name=file.name_hint, vo=file.vo, size_bytes=size_bytes
        )

    async def Stat(self, request: pb.StatRequest, context: Any) -> pb.StatResponse:
        """See the proto."""
        peer = current_peer(context)
        surl = self._mine(peer, request.surl)
        file = await self._element.get(surl.file_id, surl.vo)
        return pb.StatResponse(file=wire.info_to_wire(file, self.host, self.port))

    async def Remove(self, request: pb.RemoveRequest, context: Any) -> pb.RemoveResponse:
        """See the proto."""
        peer = current_peer(context)
        surl = self._mine(peer, request.surl)
        self._may_write(peer, surl.vo)

        def allowed(file: StoredFile) -> None:
            if self._element.config.removal == "owner" and file.owner != peer.subject and not peer.is_administrator:
                raise Refused(
                    "NOT_OWNER", f"{surl} belongs to {file.owner}; only its owner may remove it here", owner=file.owner
                )

        if await self._element.remove(surl.file_id, surl.vo, allowed):
            self._log.audit("storage.removed", **peer.trail, surl=request.surl, vo=surl.vo)
        return pb.RemoveResponse()

    async def List(self, request: pb.ListRequest, context: Any) -> pb.ListResponse:
        """See the proto."""
        peer = current_peer(context)
        self._own_vo(peer, request.vo)
        if request.page_token and not is_file_id(request.page_token):
            raise InvalidRequest("PAGE_TOKEN_INVALID", "the page token is not one of this service; begin without one")
        limit = min(request.page_size, MAX_PAGE) if request.page_size > 0 else MAX_PAGE
        files = await self._element.page(request.vo, request.page_token, limit)
        return pb.ListResponse(
            files=[wire.info_to_wire(file, self.host, self.port) for file in files],
            next_page_token=files[-1].file_id if len(files) == limit else "",
        )

    async def CopyFrom(self, request: pb.CopyFromRequest, context: Any) -> pb.CopyFromResponse:
        """See the proto. The bytes come straight from the other storage element, in the caller's name."""
        peer = current_peer(context)
        self._may_write(peer, request.vo)
        source = parse_surl(request.source_surl)
        if (source.host, source.port) == (self.host, self.port):
            raise InvalidRequest(
                "SOURCE_IS_HERE", f"{source} is on this storage element already; copy to another one", surl=source
            )
        expected = wire.checksums_from_wire(request.expected) if request.HasField("expected") else None
        credential = self._delegations.get(peer.subject)
        channel = await self._channels.get(source.rpc_host, source.port, credential=credential)
        async with open_file(channel, str(source)) as opened:
            if expected is not None and opened.checksums != expected:
                raise DataCorrupted(
                    "SOURCE_DIFFERS",
                    f"{source} has sha256 {opened.checksums.sha256} and adler32 {opened.checksums.adler32} "
                    "where sha256 "
                    f"{expected.sha256} and adler32 {expected.adler32} were expected; nothing was copied, use "
                    "another replica",
                    surl=source,
                )
            announced = Announced(
                request.vo, opened.size_bytes, request.put_id, peer.subject, checksums=opened.checksums
            )
            file = await self._element.put(replace(announced, name_hint=str(source)), opened.pieces())
        self._log.audit(
            "storage.copied",
            **peer.trail,
            surl=self._surl(file),
            vo=file.vo,
            size_bytes=file.size_bytes,
            source=str(source),
        )
        return pb.CopyFromResponse(
            surl=self._surl(file), size_bytes=file.size_bytes, checksums=wire.checksums_to_wire(file.checksums)
        )

    async def Space(self, request: pb.SpaceRequest, context: Any) -> pb.SpaceResponse:
        """See the proto."""
        return wire.space_to_wire(await self._element.space(self._vos.served))

    # -- checks ------------------------------------------------------------------------------------------------------

    def _surl(self, file: StoredFile) -> str:
        return str(Surl(self.host, self.port, file.vo, file.file_id))

    def _own_vo(self, peer: Peer, vo: str) -> None:
        if not is_vo_name(vo):
            raise InvalidRequest("VO_INVALID", f"{vo[:64]!r} cannot be the name of a VO; say for which VO the data is")
        refusal = self._vos.refusal(vo)
        if peer.is_administrator and refusal is not None and refusal.reason is Reason.VO_DISSOLVED:
            return
        if vo != peer.vo:
            raise Refused(
                "OTHER_VO",
                f"{peer.subject} is of VO {peer.vo or '(none)'} and may not use the space of VO {vo}; use your "
                "own VO's",
                subject=peer.subject,
                vo=vo,
            )

    def _may_write(self, peer: Peer, vo: str) -> None:
        self._own_vo(peer, vo)
        if peer.is_administrator:
            return
        access.require(self._element.config.write_access, peer, f"writing to the space of {vo}")

    def _mine(self, peer: Peer, text: str) -> Surl:
        """A SURL of this storage element and of the caller's VO."""
        surl = parse_surl(text)
        self._own_vo(peer, surl.vo)
        if (surl.host.lower(), surl.port) != (self.host.lower(), self.port):
            raise NotFound(
                "SURL_ELSEWHERE",
                f"{surl} is not of this storage element, which is {self.host}:{self.port}; ask the one it names",
                surl=surl,
            )
        return surl


async def _pieces(first: pb.PutRequest, requests: AsyncIterator[pb.PutRequest | memoryview]) -> Pieces:
    """Data and trailer of an upload. A message may hold data and the trailer; a second header is refused."""
    request: pb.PutRequest | memoryview | None = first
    while request is not None:
        if isinstance(request, memoryview):
            yield request
        else:
            if request is not first and request.HasField("header"):
                raise InvalidRequest(
                    "STREAM_MALFORMED", "a second header came in the middle of an upload; begin a new one"
                )
            if request.data:
                yield request.data
            elif request is not first and not request.HasField("trailer"):
                raise InvalidRequest("STREAM_MALFORMED", "a message without data, header or trailer came; send data")
            if request.HasField("trailer"):
                yield wire.checksums_from_wire(request.trailer.checksums)
                return
        request = await anext(requests, None)
