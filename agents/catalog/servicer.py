"""The methods of gridfabric.catalog.v1.Catalogue: who asks, for which VO, then one function on the store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from gridfabric.catalog.v1 import catalog_pb2 as pb
from gridfabric.catalog.v1 import catalog_pb2_grpc

from agents.catalog import wire
from agents.catalog.access import Caller, Grant
from agents.catalog.attributes import MAX_ATTRIBUTES, MAX_CONDITIONS
from agents.catalog.config import CatalogConfig
from agents.catalog.model import (
    DEFAULT_PAGE,
    MAX_ANSWER_BYTES,
    MAX_LOOKUP,
    MAX_PAGE,
    Content,
    NewFile,
    Replica,
    check_content,
    check_replica,
)
from agents.catalog.names import ROOT, Lfn, parse_file_lfn, parse_guid, parse_lfn
from agents.catalog.store import CatalogStore
from agents.catalog.watchers import Watchers
from fabric.clock import Clock, to_us
from fabric.errors import Conflict, GridError, InvalidRequest, Refused, to_details
from fabric.logs import Logger
from fabric.rpc.peer import Peer, current_peer
from fabric.rpc.rules import Rule, administrator, any_of, services, user
from fabric.settings import Settings

T = TypeVar("T")

MAX_FOUND = 200
"""Files of one page of a search: names may have 4096 characters, and those of one script have four bytes each."""
SIGN_OF_LIFE_S = 20.0
"""Of a quiet watch stream."""
RULES: dict[str, Rule] = {
    "Register": user,
    "RegisterMany": user,
    "AddReplica": user,
    "AddReplicaMany": user,
    "RemoveReplica": user,
    "Lookup": any_of(user, services("broker", "storage")),
    "ListReplicas": any_of(user, services("storage")),
    "List": user,
    "Watch": user,
    "MakeDirectory": user,
    "AddAlias": user,
    "ListNames": user,
    "SetAttributes": user,
    "GetAttributes": user,
    "FindByAttributes": user,
    "Remove": user,
    "GetAccess": any_of(user, administrator),
    "SetAccess": any_of(user, administrator),
}
"""The broker may ask in its own name where the input data of jobs lies; names and places are not data. A storage
element may ask about the replicas that it keeps."""


class CatalogueServicer(catalog_pb2_grpc.CatalogueServicer):
    """The catalogue of every VO of the grid."""

    def __init__(
        self, store: CatalogStore, config: CatalogConfig, settings: Settings, *, clock: Clock, log: Logger
    ) -> None:
        self._settings = settings
        self._store = store
        self._config = config
        self._clock = clock
        self._log = log
        self._watchers = Watchers()
        self.registered = 0
        """Registrations since the start."""

    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterResponse:
        """See the proto."""
        peer = current_peer(context)
        new = self._new_file(peer, Caller.of(peer), request)
        entry = await self._store.register(new)
        self._registered(peer, new)
        return pb.RegisterResponse(file=wire.entry_to_wire(entry))

    async def RegisterMany(self, request: pb.RegisterManyRequest, context: Any) -> pb.RegisterManyResponse:
        """See the proto."""
        peer = current_peer(context)
        _require_few(len(request.registrations))
        caller = Caller.of(peer)
        errors = await _each(
            [lambda r=registration: self._new_file(peer, caller, r) for registration in request.registrations],
            self._store.register_many,
            lambda new: self._registered(peer, new),
        )
        return pb.RegisterManyResponse(errors=errors)

    def _new_file(self, peer: Peer, caller: Caller, request: pb.RegisterRequest) -> NewFile:
        """What somebody wants registered. Raises InvalidRequest, Refused(OTHER_VO)."""
        now_us = to_us(self._clock.now())
        replica = None
        if request.HasField("replica"):
            replica = check_replica(request.replica.surl, request.replica.storage_element, now_us)
        return NewFile(
            lfn=_own(peer, parse_file_lfn(request.lfn)),
            guid=parse_guid(request.guid),
            content=check_content(request.size_bytes, request.adler32, request.sha256),
            replica=replica,
            caller=caller,
            make_parents=request.make_parents,
            now_us=now_us,
        )

    def _registered(self, peer: Peer, new: NewFile) -> None:
        self.registered += 1
        self._watchers.tell(new.lfn.path, new.guid)
        surl = new.replica.surl if new.replica is not None else None
        self._log.audit("catalog.registered", **peer.trail, lfn=new.lfn.path, guid=new.guid, surl=surl)

    async def AddReplica(self, request: pb.AddReplicaRequest, context: Any) -> pb.AddReplicaResponse:
        """See the proto."""
        peer = current_peer(context)
        new = self._new_replica(peer, request)
        key, found, replica = new
        await self._store.add_replica(key, Caller.of(peer), found, replica)
        self._replica_added(peer, new)
        return pb.AddReplicaResponse()

    async def AddReplicaMany(self, request: pb.AddReplicaManyRequest, context: Any) -> pb.AddReplicaManyResponse:
        """See the proto."""
        peer = current_peer(context)
        _require_few(len(request.replicas))
        caller = Caller.of(peer)
        errors = await _each(
            [lambda r=replica: self._new_replica(peer, r) for replica in request.replicas],
            lambda new: self._store.add_replica_many(caller, new),
            lambda new: self._replica_added(peer, new),
        )
        return pb.AddReplicaManyResponse(errors=errors)

    def _new_replica(self, peer: Peer, request: pb.AddReplicaRequest) -> tuple[Lfn | str, Content, Replica]:
        """File, size and checksum, copy. Raises InvalidRequest, Refused(OTHER_VO)."""
        replica = check_replica(request.replica.surl, request.replica.storage_element, to_us(self._clock.now()))
        return _key(peer, request.lfn, request.guid), Content(request.size_bytes, request.adler32.lower()), replica

    def _replica_added(self, peer: Peer, new: tuple[Lfn | str, Content, Replica]) -> None:
        key, _, replica = new
        self._log.audit("catalog.replica_added", **peer.trail, file=str(key), surl=replica.surl)

    async def RemoveReplica(self, request: pb.RemoveReplicaRequest, context: Any) -> pb.RemoveReplicaResponse:
        """See the proto."""
        peer = current_peer(context)
        key = _key(peer, request.lfn, request.guid)
        if request.dry_run:
            await self._store.require_removal(key, Caller.of(peer), self._by_owner)
            return pb.RemoveReplicaResponse()
        self._watchers.tell(*await self._store.remove_replica(key, Caller.of(peer), request.surl, self._by_owner))
        self._log.audit("catalog.replica_removed", **peer.trail, file=str(key), surl=request.surl)
        return pb.RemoveReplicaResponse()

    async def Lookup(self, request: pb.LookupRequest, context: Any) -> pb.LookupResponse:
        """See the proto."""
        peer = current_peer(context)
        asked = len(request.lfns) + len(request.guids) + len(request.surls)
        _require_few(asked)
        is_service = bool(peer.agent_kind)
        if peer.agent_kind == "storage":
            if request.lfns or request.guids:
                raise self._elsewhere(peer)
            self._require_own(peer, request.surls)
        lfns = {text: lfn if is_service else _own(peer, lfn) for text in request.lfns for lfn in [parse_lfn(text)]}
        guids = {text: parse_guid(text) for text in request.guids}
        found = await self._store.lookup(
            list(dict.fromkeys(lfns.values())),
            list(dict.fromkeys(guids.values())),
            None if is_service else Caller.of(peer),
            list(dict.fromkeys(request.surls)),
        )
        names, ids = {entry.lfn for entry in found}, {entry.guid for entry in found}
        unknown = [text for text, lfn in lfns.items() if lfn.path not in names]
        unknown += [text for text, guid in guids.items() if guid not in ids]
        if request.surls:
            surls = {replica.surl for entry in found for replica in entry.replicas}
            unknown += [surl for surl in request.surls if surl not in surls]
        answer = pb.LookupResponse(files=[wire.entry_to_wire(entry) for entry in found], unknown=unknown)
        if answer.ByteSize() > MAX_ANSWER_BYTES and asked > 1:
            raise InvalidRequest(
                "ANSWER_TOO_LARGE",
                f"the answer to {asked} names has more than {MAX_ANSWER_BYTES} bytes; ask for fewer at once",
                limit_bytes=MAX_ANSWER_BYTES,
            )
        return answer

    def _require_own(self, peer: Peer, surls: Sequence[str]) -> None:
        """Raises Refused(ELSEWHERE) unless a storage element asks about its own SURLs."""
        caller = self._settings.endpoint_named("storage", peer.agent_name, peer.agent_site)
        own = f"srm://{caller.address}/".lower() if caller is not None else None
        if own is None or any(not surl.lower().startswith(own) for surl in surls):
            raise self._elsewhere(peer)

    def _elsewhere(self, peer: Peer) -> Refused:
        return Refused(
            "ELSEWHERE",
            f"{peer.subject} may ask only about replicas that it keeps itself, by SURL",
            subject=peer.subject,
        )

    async def ListReplicas(self, request: pb.ListReplicasRequest, context: Any) -> pb.ListReplicasResponse:
        """See the proto."""
        peer = current_peer(context)
        vo_directory = parse_lfn(f"{ROOT}/{request.vo}")
        first = check_replica(f"srm://{request.storage_element}/{request.vo}/", "", 0).surl
        if peer.agent_kind:
            self._require_own(peer, [first])
        else:
            _own(peer, vo_directory)
        limit = min(request.page_size, MAX_PAGE) if request.page_size > 0 else DEFAULT_PAGE
        surls = await self._store.replicas_below(first, max(first, request.after), limit)
        return pb.ListReplicasResponse(surls=surls, more=len(surls) == limit)

    async def List(self, request: pb.ListRequest, context: Any) -> pb.ListResponse:
        """See the proto. A page token is the last name of the page before."""
        peer = current_peer(context)
        directory = parse_lfn(request.directory)
        if directory.path != ROOT:
            _own(peer, directory)
        limit = min(request.page_size, MAX_PAGE) if request.page_size > 0 else DEFAULT_PAGE
        entries = await self._store.page(directory, Caller.of(peer), request.page_token, limit)
        answer = pb.ListResponse()
        size_bytes = 0
        for entry in entries:
            file = wire.entry_to_wire(entry)
            size_bytes += file.ByteSize() + 8
            if size_bytes > MAX_ANSWER_BYTES:
                break
            answer.files.append(file)
        if len(entries) == limit or len(answer.files) < len(entries):
            answer.next_page_token = answer.files[-1].lfn.rpartition("/")[2]
        return answer

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:
        """See the proto. GUIDs say nothing to who may not list the file."""
        peer = current_peer(context)
        directory = _own(peer, parse_lfn(request.directory))
        await self._store.page(directory, Caller.of(peer), "", 1)
        watcher = self._watchers.add(directory.path)
        try:
            yield pb.WatchResponse()
            while True:
                heard = watcher.bell.rung
                guids, missed = watcher.take()
                if guids or missed:
                    yield pb.WatchResponse(guids=guids, missed=missed)
                    continue
                await watcher.bell.wait(SIGN_OF_LIFE_S, heard)
                if watcher.bell.rung == heard:
                    yield pb.WatchResponse()
        finally:
            self._watchers.remove(watcher)

    async def MakeDirectory(self, request: pb.MakeDirectoryRequest, context: Any) -> pb.MakeDirectoryResponse:
        """See the proto."""
        peer = current_peer(context)
        lfn = _own(peer, parse_lfn(request.directory))
        await self._store.make_directory(lfn, Caller.of(peer), request.make_parents, to_us(self._clock.now()))
        self._log.audit("catalog.directory_made", **peer.trail, lfn=lfn.path)
        return pb.MakeDirectoryResponse()

    async def AddAlias(self, request: pb.AddAliasRequest, context: Any) -> pb.AddAliasResponse:
        """See the proto."""
        peer = current_peer(context)
        key, alias = _key(peer, request.lfn, request.guid), _own(peer, parse_file_lfn(request.alias))
        now_us = to_us(self._clock.now())
        guid = await self._store.add_alias(key, alias, Caller.of(peer), request.make_parents, now_us)
        self._log.audit("catalog.alias_added", **peer.trail, lfn=alias.path, guid=guid)
        return pb.AddAliasResponse(guid=guid)

    async def ListNames(self, request: pb.ListNamesRequest, context: Any) -> pb.ListNamesResponse:
        """See the proto."""
        peer = current_peer(context)
        found = await self._store.names_of(_key(peer, request.lfn, request.guid), Caller.of(peer))
        return pb.ListNamesResponse(lfns=found)

    async def SetAttributes(self, request: pb.SetAttributesRequest, context: Any) -> pb.Attributes:
        """See the proto."""
        peer = current_peer(context)
        if len(request.attributes) + len(request.unset) > 2 * MAX_ATTRIBUTES:
            raise InvalidRequest("ATTRIBUTE_INVALID", f"a file has at most {MAX_ATTRIBUTES} attributes; send no more")
        key, given = _key(peer, request.lfn, request.guid), [wire.attribute_from_wire(a) for a in request.attributes]
        lfn, found = await self._store.set_attributes(key, Caller.of(peer), given, request.unset)
        names = sorted({one.name for one in given} | {name[:64] for name in request.unset})
        self._log.audit("catalog.attributes_set", **peer.trail, lfn=lfn, attributes=names)
        return pb.Attributes(attributes=map(wire.attribute_to_wire, found))

    async def GetAttributes(self, request: pb.GetAttributesRequest, context: Any) -> pb.Attributes:
        """See the proto."""
        peer = current_peer(context)
        found = await self._store.attributes_of(_key(peer, request.lfn, request.guid), Caller.of(peer))
        return pb.Attributes(attributes=map(wire.attribute_to_wire, found))

    async def FindByAttributes(self, request: pb.FindByAttributesRequest, context: Any) -> pb.FindByAttributesResponse:
        """See the proto. A page token is the number of the last file of the page before."""
        peer = current_peer(context)
        directory = _own(peer, parse_lfn(request.directory))
        token = request.page_token or "0"
        if not 1 <= len(request.conditions) <= MAX_CONDITIONS or not (
            token.isascii() and token.isdigit() and len(token) < 19
        ):
            raise InvalidRequest(
                "ATTRIBUTE_INVALID", f"a search has 1 to {MAX_CONDITIONS} conditions and a page's token"
            )
        conditions = [wire.condition_from_wire(condition) for condition in request.conditions]
        limit = min(request.page_size, MAX_FOUND) if request.page_size > 0 else MAX_FOUND
        paths, last = await self._store.find(directory, Caller.of(peer), conditions, int(token), limit)
        return pb.FindByAttributesResponse(lfns=paths, next_page_token=str(last) if last else "")

    async def Remove(self, request: pb.RemoveRequest, context: Any) -> pb.RemoveResponse:
        """See the proto."""
        peer = current_peer(context)
        lfn = _own(peer, parse_lfn(request.lfn))
        if lfn.is_vo_root:
            raise Conflict("DIRECTORY_KEPT", f"{lfn} belongs to the grid and stays; remove what is below it", lfn=lfn)
        await self._store.remove(lfn, Caller.of(peer), request.force, self._by_owner)
        self._log.audit("catalog.removed", **peer.trail, lfn=lfn.path)
        return pb.RemoveResponse()

    async def GetAccess(self, request: pb.GetAccessRequest, context: Any) -> pb.Access:
        """See the proto."""
        peer = current_peer(context)
        lfn = _manageable(peer, request.lfn)
        return wire.access_to_wire(lfn.path, *await self._store.access(lfn, _caller(peer, lfn)))

    async def SetAccess(self, request: pb.SetAccessRequest, context: Any) -> pb.Access:
        """See the proto."""
        peer = current_peer(context)
        lfn = _manageable(peer, request.lfn)
        grants = [Grant.of(grant.who, list(grant.rights), lfn.vo) for grant in request.grants]
        caller = _caller(peer, lfn)
        await self._store.set_access(lfn, caller, grants)
        self._log.audit("catalog.access_set", **peer.trail, lfn=lfn.path, grants=[str(grant) for grant in grants])
        return wire.access_to_wire(lfn.path, *await self._store.access(lfn, caller))

    @property
    def _by_owner(self) -> bool:
        return self._config.removal == "owner"


async def _each(
    understand: Sequence[Callable[[], T]],
    keep: Callable[[list[T]], Awaitable[list[GridError | None]]],
    kept: Callable[[T], None],
) -> list[bytes]:
    """A verdict for each item of a call: it is understood by itself, all are kept together, and `kept` is told."""
    understood: list[T] = []
    errors: dict[int, GridError] = {}
    for number, item in enumerate(understand):
        try:
            understood.append(item())
        except GridError as error:
            errors[number] = error
    done = iter(zip(understood, await keep(understood), strict=True))
    for number in range(len(understand)):
        if number not in errors:
            item, error = next(done)
            if error is None:
                kept(item)
            else:
                errors[number] = error
    return [to_details(errors[number]) if number in errors else b"" for number in range(len(understand))]


def _require_few(names: int) -> None:
    if names > MAX_LOOKUP:
        raise InvalidRequest(
            "TOO_MANY_NAMES", f"{names} names in one call; send at most {MAX_LOOKUP} at once", limit=MAX_LOOKUP
        )


def _manageable(peer: Peer, text: str) -> Lfn:
    """A name that can have an access list: of the caller's VO; of any for an operator."""
    lfn = parse_lfn(text)
    if lfn.path == ROOT:
        raise InvalidRequest("LFN_INVALID", f"{ROOT} is of all VOs and has no access list; name a VO's: {ROOT}/<vo>")
    return lfn if peer.is_administrator else _own(peer, lfn)


def _caller(peer: Peer, lfn: Lfn) -> Caller:
    """An operator asks for the VO whose name it is."""
    caller = Caller.of(peer)
    return replace(caller, vo=lfn.vo) if caller.is_operator else caller


def _own(peer: Peer, lfn: Lfn) -> Lfn:
    """The name, if it belongs to the caller's VO."""
    if not peer.vo or lfn.vo != peer.vo:
        raise Refused(
            "OTHER_VO",
            f"{peer.subject} is of VO {peer.vo or '(none)'} and may not use {lfn}; names of that VO begin with "
            f"{ROOT}/{peer.vo or '<vo>'}/",
            subject=peer.subject,
            vo=lfn.vo,
        )
    return lfn


def _key(peer: Peer, lfn: str, guid: str) -> Lfn | str:
    """A file by its name or by its GUID, whichever was given."""
    if bool(lfn) == bool(guid):
        raise InvalidRequest("NAME_MISSING", "say which file: by its LFN or by its GUID, one of the two")
    return _own(peer, parse_file_lfn(lfn)) if lfn else parse_guid(guid)
