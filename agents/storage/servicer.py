"""The methods of gridfabric.storage.v1.Storage: who asks, for which VO, then the element."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from gridfabric.storage.v1 import storage_pb2 as pb
from gridfabric.storage.v1 import storage_pb2_grpc

from agents.storage import wire
from agents.storage.client import OpenFile, open_file, read_small
from agents.storage.copying import (
    Arriving,
    ForeignFile,
    Leaving,
    Resuming,
    arriving_together,
    at_source,
    check_rate,
    require_source,
    telling,
)
from agents.storage.drain import PoolKeeper
from agents.storage.element import Pieces
from agents.storage.framing import Piece, get_data
from agents.storage.http_wire import not_a_file, parse_target
from agents.storage.manager import StorageManager
from agents.storage.model import (
    MAX_TOGETHER,
    MAX_TOGETHER_BYTES,
    Announced,
    Checksums,
    StoredFile,
    byte_range,
    require_small,
)
from agents.storage.reconciler import Reconciler
from agents.storage.repair import ChannelSource, Replicas
from agents.storage.scrubber import Scrubber
from agents.storage.surl import MAX_SURL_LENGTH, Surl, is_file_id, parse_surl
from agents.storage.tape_rows import held_by
from agents.storage.third_party import Delegations, ThirdParty, is_foreign
from fabric.errors import GridError, InvalidRequest, NotFound, Refused, to_details
from fabric.rpc.peer import Peer, current_peer
from fabric.rpc.rules import Rule, administrator, any_of, any_service, services, user
from fabric.vos import Vos

DOOR = "grpc"
MAX_PAGE = 500
"""Files of one List answer: below the message limit with the longest hints."""

RULES: dict[str, Rule] = {
    "PrepareToPut": user,
    "Put": user,
    "PutMany": user,
    "Get": any_of(user, administrator, services("storage")),
    "GetMany": any_of(user, administrator),
    "Stat": any_of(user, administrator),
    "Remove": any_of(user, administrator),
    "List": any_of(user, administrator),
    "CopyFrom": user,
    "CopyMany": user,
    "CopyTo": user,
    "BringOnline": user,
    "ReleaseFiles": user,
    "ListDirectory": any_of(user, administrator),
    "MakeDirectory": user,
    "RemoveDirectory": any_of(user, administrator),
    "Rename": user,
    "Space": any_of(user, administrator, any_service),
    "Repair": user,
    "ReserveSpace": user,
    "ReleaseSpace": user,
    "ListPools": administrator,
    "AddPool": administrator,
    "DrainPool": administrator,
    "RemovePool": administrator,
    "Scrub": administrator,
    "Reconcile": administrator,
}
"""Data belongs to users: an agent reads or writes it only with a proxy that a user delegated to it. Operators see and
remove what VOs that were dissolved have left. A storage element reads what it keeps a replica of (`repair.py`)."""


class StorageServicer(storage_pb2_grpc.StorageServicer):
    """The gRPC door of a storage element."""

    def __init__(
        self,
        manager: StorageManager,
        keeper: PoolKeeper,
        scrubber: Scrubber,
        reconciler: Reconciler,
        *,
        channels: ChannelSource,
        delegations: Delegations,
        third_party: ThirdParty,
        replicas: Replicas,
        vos: Vos,
    ) -> None:
        self._third_party, self._replicas = third_party, replicas
        self._keeper, self._scrubber, self._reconciler = keeper, scrubber, reconciler
        self._manager, self._element = manager, manager.element
        self._channels, self._delegations, self._vos = channels, delegations, vos

    async def PrepareToPut(self, request: pb.PutHeader, context: Any) -> pb.PrepareToPutResponse:
        """See the proto."""
        self._manager.may_write(current_peer(context), request.vo)
        return pb.PrepareToPutResponse(turl=self._manager.turl(request.vo, request.size_bytes))

    async def Put(self, requests: AsyncIterator[pb.PutRequest | memoryview], context: Any) -> pb.PutResponse:
        """See the proto."""
        peer = current_peer(context)
        async with asyncio.timeout(self._element.config.stall_timeout_s):
            first = await anext(requests, None)
        if not isinstance(first, pb.PutRequest) or not first.HasField("header"):
            raise InvalidRequest("STREAM_MALFORMED", "an upload begins with a header; none came")
        announced = wire.header_from_wire(first.header, peer.subject)
        file = await self._manager.put(peer, announced, _pieces(first, requests), door=DOOR)
        return pb.PutResponse(
            surl=self._manager.surl(file), size_bytes=file.size_bytes, checksums=wire.checksums_to_wire(file.checksums)
        )

    async def Get(self, request: pb.GetRequest, context: Any) -> None:
        """See the proto. The checksums are of the whole file; a reader of the whole file verifies them."""
        peer = current_peer(context)
        surl = parse_surl(request.surl)
        file = await (self._for_replica(peer, surl, request) if peer.agent_kind else self._for_member(peer, surl))
        await self._manager.require_online(peer, file)
        offset, size_bytes = byte_range(file.size_bytes, request.offset, request.length)
        header = pb.GetResponse(size_bytes=file.size_bytes, checksums=wire.checksums_to_wire(file.checksums))
        if request.accept_turl and (turl := self._manager.turl(surl.vo, size_bytes, surl.file_id)):
            header.turl = turl
            await context.write(header)
            return

        async def write(message: Piece) -> int:
            await context.write(message)
            return len(message)

        await self._manager.send(
            peer, file, offset, size_bytes, write, get_data,
            begin=lambda: context.write(header), door=DOOR, target=request.repairs or None,
        )  # fmt: skip

    async def _for_member(self, peer: Peer, surl: Surl) -> StoredFile:
        self._manager.mine(peer, surl)
        return await self._element.get(surl.file_id, surl.vo)

    async def _for_replica(self, peer: Peer, surl: Surl, request: pb.GetRequest) -> StoredFile:
        """A file that another storage element keeps too. Raises Refused(USER_REQUIRED | REPLICA_UNPROVEN), NotFound."""
        if not request.repairs:
            raise Refused(
                "USER_REQUIRED",
                f"{peer.subject} is not a user; a storage element says which replica of its own it repairs",
                subject=peer.subject,
            )
        await self._replicas.require_both(peer, self._manager.here(surl), parse_surl(request.repairs))
        file = await self._element.get(surl.file_id, surl.vo)
        require_source(surl, file.checksums, wire.checksums_from_wire(request.expected))
        return file

    async def PutMany(self, request: pb.PutManyRequest, context: Any) -> pb.PutManyResponse:
        """See the proto. One that cannot be understood is refused like one that cannot be kept: by itself."""
        peer = current_peer(context)
        _require_few(len(request.files))
        vos = {file.header.vo for file in request.files}
        if len(vos) != 1:
            raise InvalidRequest("VO_INVALID", "files of one VO are put together; send those of each by themselves")
        understood: list[tuple[Announced, Piece]] = []
        errors: dict[int, GridError] = {}
        for number, file in enumerate(request.files):
            try:
                understood.append((wire.header_from_wire(file.header, peer.subject), wire.small_data(file)))
            except GridError as error:
                errors[number] = error
        kept = iter(await self._manager.put_many(peer, vos.pop(), understood, door=DOOR))
        outcomes = [errors[number] if number in errors else next(kept) for number in range(len(request.files))]
        return pb.PutManyResponse(verdicts=self._verdicts(outcomes))

    async def GetMany(self, request: pb.GetManyRequest, context: Any) -> pb.GetManyResponse:
        """See the proto."""
        peer = current_peer(context)
        _require_few(len(request.surls))
        surls = [self._manager.mine(peer, parse_surl(text)) for text in request.surls]
        if len({surl.vo for surl in surls}) != 1:
            raise InvalidRequest("VO_INVALID", "files of one VO are read together; ask for those of each by themselves")
        known = await self._element.files([surl.file_id for surl in surls])
        wanted: list[StoredFile | GridError] = []
        size_bytes = 0
        for surl in surls:
            try:
                file = require_small(self._element.of_vo(known.get(surl.file_id), surl.file_id, surl.vo))
                await self._manager.require_online(peer, file)
                size_bytes += file.size_bytes
                if size_bytes > MAX_TOGETHER_BYTES:
                    break
                wanted.append(file)
            except GridError as error:
                wanted.append(error)
        files = [file for file in wanted if isinstance(file, StoredFile)]
        read = iter(await self._manager.get_many(peer, surls[0].vo, files, door=DOOR) if files else [])
        return pb.GetManyResponse(
            files=[
                pb.GotFile(error=to_details(file))
                if isinstance(file, GridError)
                else wire.got_to_wire(next(read), file.checksums)
                for file in wanted
            ]
        )

    async def Stat(self, request: pb.StatRequest, context: Any) -> pb.StatResponse:
        """See the proto."""
        peer = current_peer(context)
        if request.path:
            target = parse_target(request.path)
            found = (await self._manager.find(peer, target)).file
            if found is None:
                raise not_a_file(target)
        else:
            surl = self._manager.mine(peer, parse_surl(request.surl))
            found = await self._element.get(surl.file_id, surl.vo)
        nearline = self._manager.nearline
        pinned_until_us = await nearline.pinned_until_us(found) if nearline is not None else 0
        return pb.StatResponse(file=(await self._infos([found]))[0], pinned_until_us=pinned_until_us)

    async def _infos(self, files: Sequence[StoredFile]) -> list[pb.FileInfo]:
        places, named = await self._manager.localities(files), await self._element.with_names(files)
        return [
            wire.info_to_wire(file, self._manager.surl(file), places[file.file_id], named=file.file_id in named)
            for file in files
        ]

    async def BringOnline(self, request: pb.BringOnlineRequest, context: Any) -> pb.BringOnlineResponse:
        """See the proto."""
        peer = current_peer(context)
        nearline, owner = self._manager.require_tapes(), held_by(peer.subject, request.holder)
        if not 0 <= request.pin_s < math.inf:
            raise InvalidRequest("PIN_INVALID", f"a file cannot stay on disk for {request.pin_s} s; give a duration")
        files = await self._manager.files_of(peer, request.surls)
        found = await nearline.bring_online(files, owner, peer.vo, request.pin_s)
        self._manager.note(peer, "storage.bring_online", files=len(files), pin_s=request.pin_s)
        return pb.BringOnlineResponse(
            files=[wire.staging_to_wire(staging, self._manager.surl(staging.file)) for staging in found]
        )

    async def ReleaseFiles(self, request: pb.ReleaseFilesRequest, context: Any) -> pb.ReleaseFilesResponse:
        """See the proto."""
        peer = current_peer(context)
        files = await self._manager.files_of(peer, request.surls)
        await self._manager.require_tapes().release(files, held_by(peer.subject, request.holder))
        return pb.ReleaseFilesResponse()

    async def Remove(self, request: pb.RemoveRequest, context: Any) -> pb.RemoveResponse:
        """See the proto."""
        peer = current_peer(context)
        if request.put_id:
            await self._manager.abort(peer, request.vo, request.put_id)
            return pb.RemoveResponse()
        if is_foreign(request.surl):
            await self._third_party.remove(peer.subject, request.surl)
            self._manager.note(peer, "storage.removed_elsewhere", url=request.surl[:MAX_SURL_LENGTH])
            return pb.RemoveResponse()
        surl = self._manager.mine(peer, parse_surl(request.surl))
        await self._manager.remove(peer, surl.vo, surl.file_id)
        return pb.RemoveResponse()

    async def List(self, request: pb.ListRequest, context: Any) -> pb.ListResponse:
        """See the proto."""
        self._manager.may_read(current_peer(context), request.vo)
        if request.page_token and not is_file_id(request.page_token):
            raise InvalidRequest("PAGE_TOKEN_INVALID", "the page token is not one of this service; begin without one")
        limit = min(request.page_size, MAX_PAGE) if request.page_size > 0 else MAX_PAGE
        files = await self._element.page(request.vo, request.page_token, limit, damaged=request.damaged)
        return pb.ListResponse(
            files=await self._infos(files),
            next_page_token=files[-1].file_id if len(files) == limit else "",
        )

    async def ReserveSpace(self, request: pb.ReserveSpaceRequest, context: Any) -> pb.SpaceReservation:
        """See the proto."""
        peer = current_peer(context)
        self._manager.may_write(peer, request.vo)
        kept = await self._element.reservations.reserve(
            request.id, request.vo, peer.subject, request.size_bytes, request.lifetime_s
        )
        self._manager.note(peer, "storage.reserved", id=kept.id, vo=kept.vo, size_bytes=kept.size_bytes)
        return pb.SpaceReservation(id=kept.id, size_bytes=kept.size_bytes, until_us=kept.until_us)

    async def ReleaseSpace(self, request: pb.ReleaseSpaceRequest, context: Any) -> pb.ReleaseSpaceResponse:
        """See the proto."""
        peer = current_peer(context)
        self._manager.may_write(peer, request.vo)
        await self._element.reservations.release(request.id, request.vo)
        self._manager.note(peer, "storage.reservation_released", id=request.id[:64], vo=request.vo)
        return pb.ReleaseSpaceResponse()

    async def ListDirectory(self, request: pb.ListDirectoryRequest, context: Any) -> pb.ListDirectoryResponse:
        """See the proto."""
        peer, target = current_peer(context), parse_target(request.path)
        if (await self._manager.find(peer, target)).file is not None:
            raise NotFound("NOT_A_DIRECTORY", f"{request.path[:200]} is a file; look at it with Stat")
        limit = min(request.page_size, MAX_PAGE) if request.page_size > 0 else MAX_PAGE
        page = await self._element.entries(target.vo, target.path, request.after, limit)
        infos = iter(await self._infos([entry.file for entry in page if entry.file is not None]))
        return pb.ListDirectoryResponse(
            entries=[
                pb.NameEntry(
                    name=entry.name,
                    created_at_us=entry.created_at_us,
                    file=next(infos) if entry.file is not None else None,
                )
                for entry in page
            ],
            next=page[-1].name if len(page) == limit else "",
        )

    async def MakeDirectory(self, request: pb.PathRequest, context: Any) -> pb.PathResponse:
        """See the proto."""
        await self._manager.make_directory(current_peer(context), parse_target(request.path))
        return pb.PathResponse()

    async def RemoveDirectory(self, request: pb.PathRequest, context: Any) -> pb.PathResponse:
        """See the proto."""
        await self._manager.remove_directory(current_peer(context), parse_target(request.path))
        return pb.PathResponse()

    async def Rename(self, request: pb.RenameRequest, context: Any) -> pb.PathResponse:
        """See the proto."""
        peer, source, target = current_peer(context), parse_target(request.source), parse_target(request.target)
        replaces = await self._manager.find_free(peer, target, never=not request.overwrite)
        await self._manager.rename(peer, source, target, replaces)
        return pb.PathResponse()

    async def CopyFrom(self, request: pb.CopyFromRequest, context: Any) -> None:
        """See the proto. The bytes come straight from the other storage element, in the caller's name."""
        peer = current_peer(context)
        self._manager.may_write(peer, request.vo)
        source, rate = request.source_surl, check_rate(request.max_bytes_per_s)
        expected = wire.checksums_from_wire(request.expected) if request.HasField("expected") else None
        reading = (
            self._foreign(peer, source, expected, request.size_bytes)
            if is_foreign(source)
            else self._opened(peer, self._elsewhere(source), expected)
        )
        async with reading as opened:
            announced = Announced(
                request.vo, opened.size_bytes, request.put_id, peer.subject, request.name_hint, opened.checksums
            )
            arriving = Arriving(opened, rate)

            async def mark() -> None:
                await context.write(pb.CopyFromResponse(size_bytes=opened.size_bytes, moved_bytes=arriving.moved_bytes))

            put = self._manager.put(peer, announced, arriving.source(), door=DOOR, source=source)
            file = await telling(put, mark)
        await self._copied(context, self._manager.surl(file), file)

    async def CopyTo(self, request: pb.CopyToRequest, context: Any) -> None:
        """See the proto. The bytes go straight to the other server, in the caller's name."""
        peer, rate = current_peer(context), check_rate(request.max_bytes_per_s)
        if not is_foreign(request.url):
            raise InvalidRequest(
                "URL_INVALID", f"{request.url[:200]!r} is no file of a server of others; write https://host:port/path"
            )
        try:
            file = await self._for_member(peer, parse_surl(request.surl))
            await self._manager.require_online(peer, file)
        except GridError as error:
            raise at_source(error) from error
        leaving = Leaving(rate)

        async def send() -> None:
            async with self._third_party.writing(peer.subject, request.url, file) as sink:
                take = leaving.to(sink.send)
                await self._manager.send(peer, file, 0, file.size_bytes, take, door=DOOR, target=request.url)

        async def mark() -> None:
            await context.write(pb.CopyFromResponse(size_bytes=file.size_bytes, moved_bytes=leaving.moved_bytes))

        await telling(send(), mark)
        await self._copied(context, request.url, file)

    async def _copied(self, context: Any, surl: str, file: StoredFile) -> None:
        await context.write(
            pb.CopyFromResponse(
                surl=surl,
                size_bytes=file.size_bytes,
                checksums=wire.checksums_to_wire(file.checksums),
                moved_bytes=file.size_bytes,
            )
        )

    async def CopyMany(self, request: pb.CopyManyRequest, context: Any) -> None:
        """See the proto. What is kept is kept, whenever the caller goes away."""
        peer = current_peer(context)
        self._manager.may_write(peer, request.vo)
        _require_few(len(request.files))
        rate = check_rate(request.max_bytes_per_s)
        sources = [self._elsewhere(file.source_surl) for file in request.files]
        places = {(source.host.lower(), source.port, source.vo == request.vo) for source in sources}
        if len(places) != 1 or not all(place[2] for place in places):
            raise InvalidRequest(
                "SOURCES_MIXED",
                "files of one VO at one storage element are copied together; ask for those of each by themselves",
            )
        announced = [
            Announced(request.vo, 0, file.put_id, peer.subject, file.name_hint, wire.checksums_from_wire(file.expected))
            for file in request.files
        ]
        credential, place = self._delegations.get(peer.subject), f"srm://{sources[0].host}:{sources[0].port}"
        channel = await self._channels.get(sources[0].rpc_host, sources[0].port, credential=credential)
        found = read_small(channel, [str(source) for source in sources], patience_s=0.0)

        async def copy_on() -> list[StoredFile | GridError]:
            batch = await anext(arriving, [])
            kept = iter(
                await self._manager.put_many(
                    peer,
                    request.vo,
                    [file for file in batch if not isinstance(file, GridError)],
                    door=DOOR,
                    source=place,
                )
            )
            return [file if isinstance(file, GridError) else next(kept) for file in batch]

        async with aclosing(found), aclosing(arriving_together(announced, sources, found, rate)) as arriving:
            while outcomes := await telling(copy_on(), lambda: context.write(pb.CopyManyResponse())):
                await context.write(pb.CopyManyResponse(verdicts=self._verdicts(outcomes)))

    def _verdicts(self, outcomes: Sequence[StoredFile | GridError]) -> list[pb.PutVerdict]:
        return [
            pb.PutVerdict(error=to_details(outcome))
            if isinstance(outcome, GridError)
            else pb.PutVerdict(surl=self._manager.surl(outcome))
            for outcome in outcomes
        ]

    async def Repair(self, request: pb.RepairRequest, context: Any) -> pb.RepairResponse:
        """See the proto."""
        peer = current_peer(context)
        surl = self._manager.mine(peer, parse_surl(request.surl))
        self._manager.may_write(peer, surl.vo)
        source = self._elsewhere(request.source_surl)
        file = await self._element.get(surl.file_id, surl.vo)
        async with self._opened(peer, source, file.checksums) as opened:
            repaired = await self._manager.repair(peer, file, opened.pieces(), door=DOOR, source=str(source))
        return pb.RepairResponse(repaired=repaired)

    def _elsewhere(self, text: str) -> Surl:
        source = parse_surl(text)
        if (source.host.lower(), source.port) == (self._manager.host.lower(), self._manager.port):
            raise InvalidRequest(
                "SOURCE_IS_HERE", f"{source} is on this storage element already; name a replica on another", surl=source
            )
        return source

    @asynccontextmanager
    async def _opened(self, peer: Peer, source: Surl, expected: Checksums | None) -> AsyncGenerator[Resuming]:
        """A file of another storage element, read with the proxy that the caller delegated. Raises what the other one
        does, with the fact `side`; DataCorrupted(SOURCE_DIFFERS)."""
        credential, opening = self._delegations.get(peer.subject), True

        @asynccontextmanager
        async def opened_at(offset: int) -> AsyncGenerator[OpenFile]:
            channel = await self._channels.get(source.rpc_host, source.port, credential=credential)
            async with open_file(channel, str(source), offset) as opened:
                yield opened

        try:
            async with opened_at(0) as opened:
                if expected is not None:
                    require_source(source, opened.checksums, expected)
                opening = False
                yield Resuming(opened, opened_at)
        except GridError as error:
            raise (at_source(error) if opening else error) from error.__cause__

    @asynccontextmanager
    async def _foreign(
        self, peer: Peer, url: str, expected: Checksums | None, size_bytes: int
    ) -> AsyncGenerator[ForeignFile]:
        """As `_opened`, of a server of others."""
        opening = True
        try:
            async with self._third_party.reading(peer.subject, url, size_bytes) as remote:
                opening = False
                yield ForeignFile(remote, expected)
        except GridError as error:
            raise (at_source(error) if opening else error) from error.__cause__

    # -- for operators -----------------------------------------------------------------------------------------------

    async def ListPools(self, request: pb.ListPoolsRequest, context: Any) -> pb.ListPoolsResponse:
        """See the proto."""
        return pb.ListPoolsResponse(pools=[wire.pool_to_wire(report) for report in await self._keeper.report()])

    async def AddPool(self, request: pb.PoolRequest, context: Any) -> pb.PoolResponse:
        """See the proto."""
        path = await self._keeper.add(request.path)
        self._manager.note(current_peer(context), "storage.pool_added", pool=path)
        return pb.PoolResponse(path=path)

    async def DrainPool(self, request: pb.PoolRequest, context: Any) -> pb.PoolResponse:
        """See the proto."""
        await self._keeper.drain(request.path)
        self._manager.note(current_peer(context), "storage.pool_drained", pool=request.path)
        return pb.PoolResponse(path=request.path)

    async def RemovePool(self, request: pb.PoolRequest, context: Any) -> pb.PoolResponse:
        """See the proto."""
        await self._keeper.remove(request.path)
        self._manager.note(current_peer(context), "storage.pool_removed", pool=request.path)
        return pb.PoolResponse(path=request.path)

    async def Scrub(self, request: pb.ScrubRequest, context: Any) -> pb.ScrubResponse:
        """See the proto."""
        if request.now:
            self._manager.note(current_peer(context), "storage.scrub_wanted")
            self._scrubber.now()
        state = await self._scrubber.state()
        return pb.ScrubResponse(
            began_at_us=state.began_at_us,
            ended_at_us=state.ended_at_us,
            files=state.files,
            size_bytes=state.size_bytes,
            damaged=await self._scrubber.damaged(),
            examples=await self._infos(await self._scrubber.examples(MAX_PAGE)),
        )

    async def Reconcile(self, request: pb.ReconcileRequest, context: Any) -> pb.ReconcileResponse:
        """See the proto."""
        if request.now:
            self._manager.note(current_peer(context), "storage.reconciliation_wanted")
            self._reconciler.now()
        return wire.reconciliation_to_wire(await self._reconciler.report(MAX_PAGE))

    async def Space(self, request: pb.SpaceRequest, context: Any) -> pb.SpaceResponse:
        """See the proto."""
        return wire.space_to_wire(await self._element.space(self._vos.served))


def _require_few(count: int) -> None:
    if not 0 < count <= MAX_TOGETHER:
        raise InvalidRequest(
            "TOO_MANY_FILES", f"{count} files in one call; send 1 to {MAX_TOGETHER} at once", limit=MAX_TOGETHER
        )


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
