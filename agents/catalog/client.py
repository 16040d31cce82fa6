"""Calls to the catalogue, for the `grid` command, workers and the broker. Everything may be repeated.

`channel` is a secure channel to the catalogue, in the name of the user.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gridfabric.catalog.v1 import catalog_pb2 as pb
from gridfabric.catalog.v1 import catalog_pb2_grpc

from agents.catalog import wire
from agents.catalog.access import Grant
from agents.catalog.attributes import Attribute, Comparison, Condition
from agents.catalog.attributes import Kind as AttributeKind
from agents.catalog.model import MAX_LOOKUP, Content, Entry, Replica
from agents.catalog.names import Lfn, NameKind, kind_of, new_guid, one_spelling, parse_file_lfn, parse_guid, parse_lfn
from fabric.errors import GridError, InvalidRequest, NotFound, Unavailable, from_verdict
from fabric.rpc.calls import each_within

__all__ = [
    "MAX_LOOKUP",
    "Access",
    "Attribute",
    "AttributeKind",
    "Comparison",
    "Condition",
    "Content",
    "Entry",
    "Grant",
    "Lfn",
    "NameKind",
    "NewFile",
    "NewReplica",
    "Replica",
    "access_of",
    "add_alias",
    "add_replica",
    "add_replica_many",
    "attributes_of",
    "find_by_attributes",
    "kind_of",
    "list_directory",
    "list_page",
    "lookup",
    "make_directory",
    "names_of",
    "new_guid",
    "one_spelling",
    "parse_file_lfn",
    "parse_guid",
    "parse_lfn",
    "register",
    "register_many",
    "remove",
    "remove_replica",
    "replicas",
    "replicas_at",
    "set_access",
    "set_attributes",
    "walk",
    "watch",
]

WATCH_SILENCE_S = 60.0
"""Three signs of life were missed."""


@dataclass(frozen=True)
class Access:
    """Whose a name is and the access list that it goes by."""

    lfn: str
    owner: str
    """Empty for a VO's own directory."""
    carried_by: str
    """The name that has the list; empty if there is none, and the whole VO may."""
    grants: tuple[Grant, ...]


async def register(
    channel: Any,
    lfn: str,
    guid: str,
    content: Content,
    *,
    surl: str = "",
    storage_element: str = "",
    make_parents: bool = True,
) -> Entry:
    """Name a file, with its first replica if `surl` is given. Again with the same GUID: succeeds. Raises
    AlreadyExists with
    the facts `guid` and `owner` of the file that has the name."""
    request = pb.RegisterRequest(
        lfn=lfn,
        guid=guid,
        size_bytes=content.size_bytes,
        adler32=content.adler32,
        sha256=content.sha256,
        make_parents=make_parents,
    )
    if surl:
        request.replica.CopyFrom(pb.Replica(surl=surl, storage_element=storage_element))
    answer = await catalog_pb2_grpc.CatalogueStub(channel).Register(request)
    return wire.entry_from_wire(answer.file)


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to be registered, with its first replica unless `surl` is empty. `guid` is made once and stays when the
    call is repeated."""

    lfn: str
    guid: str
    content: Content
    surl: str


async def register_many(channel: Any, files: Sequence[NewFile]) -> list[GridError | None]:
    """Name files, at most MAX_LOOKUP, their directories made when missing: what each was refused with. Each as
    `register`; again: succeeds."""
    request = pb.RegisterManyRequest(
        registrations=[
            pb.RegisterRequest(
                lfn=file.lfn,
                guid=file.guid,
                size_bytes=file.content.size_bytes,
                adler32=file.content.adler32,
                sha256=file.content.sha256,
                replica=pb.Replica(surl=file.surl) if file.surl else None,
                make_parents=True,
            )
            for file in files
        ]
    )
    return _verdicts((await catalog_pb2_grpc.CatalogueStub(channel).RegisterMany(request)).errors, len(files))


def _verdicts(errors: Sequence[bytes], files: int) -> list[GridError | None]:
    if len(errors) != files:
        raise Unavailable("ANSWER_INCOMPLETE", f"{len(errors)} verdicts came for {files} files; try again")
    return [from_verdict(error) for error in errors]


async def add_replica(channel: Any, name: str, surl: str, size_bytes: int, adler32: str) -> None:
    """List one more copy of the file `name` (LFN, or GUID as `guid:...`). Raises DataCorrupted if it is not a copy
    of it."""
    request = _add_replica_request(NewReplica(name, surl, size_bytes, adler32))
    await catalog_pb2_grpc.CatalogueStub(channel).AddReplica(request)


@dataclass(frozen=True, slots=True)
class NewReplica:
    """One more copy of the file `name` (LFN, or GUID as `guid:...`)."""

    name: str
    surl: str
    size_bytes: int
    adler32: str


async def add_replica_many(channel: Any, replicas: Sequence[NewReplica]) -> list[GridError | None]:
    """List copies, at most MAX_LOOKUP: what each was refused with. Each as `add_replica`; again: succeeds."""
    request = pb.AddReplicaManyRequest(replicas=[_add_replica_request(replica) for replica in replicas])
    return _verdicts((await catalog_pb2_grpc.CatalogueStub(channel).AddReplicaMany(request)).errors, len(replicas))


def _add_replica_request(new: NewReplica) -> pb.AddReplicaRequest:
    lfn, guid = _name(new.name)
    return pb.AddReplicaRequest(
        lfn=lfn, guid=guid, replica=pb.Replica(surl=new.surl), size_bytes=new.size_bytes, adler32=new.adler32
    )


async def remove_replica(channel: Any, name: str, surl: str, *, dry_run: bool = False) -> None:
    """Unlist a copy. Again: succeeds. With `dry_run` nothing is changed, and whom it would refuse is refused."""
    lfn, guid = _name(name)
    await catalog_pb2_grpc.CatalogueStub(channel).RemoveReplica(
        pb.RemoveReplicaRequest(lfn=lfn, guid=guid, surl=surl, dry_run=dry_run)
    )


async def lookup(channel: Any, names: Iterable[str]) -> tuple[list[Entry], list[str]]:
    """Files by LFN (or GUID as `guid:...`, or the SURL of a replica), any number, with their replicas; and the names
    that are unknown."""
    stub = catalog_pb2_grpc.CatalogueStub(channel)
    wanted = list(dict.fromkeys(names))
    parts = [wanted[start : start + MAX_LOOKUP] for start in range(0, len(wanted), MAX_LOOKUP)]
    parts.reverse()
    found: list[Entry] = []
    unknown: list[str] = []
    while parts:
        part = parts.pop()
        of_kind: dict[NameKind, list[str]] = {kind: [] for kind in NameKind}
        for name in part:
            of_kind[kind_of(name)].append(name)
        request = pb.LookupRequest(
            lfns=of_kind[NameKind.LFN], guids=of_kind[NameKind.GUID], surls=of_kind[NameKind.SURL]
        )
        try:
            answer = await stub.Lookup(request)
        except InvalidRequest as error:
            if error.reason not in ("ANSWER_TOO_LARGE", "MESSAGE_TOO_LARGE") or len(part) == 1:
                raise
            middle = len(part) // 2
            parts += [part[middle:], part[:middle]]
            continue
        found += [wire.entry_from_wire(file) for file in answer.files]
        unknown += answer.unknown
    return found, unknown


async def replicas(channel: Any, name: str) -> Entry:
    """One file with its replicas. Raises NotFound."""
    found, _ = await lookup(channel, [name])
    if not found:
        raise NotFound(
            "LFN_NOT_FOUND", f"the catalogue has no file {name}; list its directory to see what is there", key=name
        )
    return found[0]


async def replicas_at(
    channel: Any, storage_element: str, vo: str, after: str = "", page_size: int = 0
) -> tuple[list[str], bool]:
    """A page of the SURLs of a VO that are listed at `host:port`, in order, above `after`; whether there are more."""
    answer = await catalog_pb2_grpc.CatalogueStub(channel).ListReplicas(
        pb.ListReplicasRequest(storage_element=storage_element, vo=vo, after=after, page_size=page_size)
    )
    return list(answer.surls), answer.more


async def list_page(channel: Any, directory: str, after: str = "", page_size: int = 0) -> tuple[list[Entry], str]:
    """One page of a directory in name order, and where the next one begins (empty: this was the last)."""
    answer = await catalog_pb2_grpc.CatalogueStub(channel).List(
        pb.ListRequest(directory=directory, page_token=after, page_size=page_size)
    )
    return [wire.entry_from_wire(file) for file in answer.files], answer.next_page_token


async def list_directory(channel: Any, directory: str, page_size: int = 0) -> AsyncIterator[Entry]:
    """Every entry of a directory, page by page."""
    token = ""
    while True:
        entries, token = await list_page(channel, directory, token, page_size)
        for entry in entries:
            yield entry
        if not token:
            return


async def walk(open_channel: Callable[[], Awaitable[Any]], directory: str) -> AsyncGenerator[tuple[str, list[Entry]]]:
    """A directory and all below it, page by page: (directory, entries of it), each directory's pages one after the
    other. `open_channel` is asked for the channel of each page, so a long walk may change its credential. Raises
    GridError."""
    directories = [directory.rstrip("/")]
    while directories:
        here, token, more = directories.pop(), "", True
        while more:
            entries, token = await list_page(await open_channel(), here, token)
            directories += [f"{here}/{parse_lfn(entry.lfn).name}" for entry in entries if entry.is_directory]
            yield here, entries
            more = bool(token)


async def watch(channel: Any, directory: str) -> AsyncIterator[tuple[list[str], bool]]:
    """GUIDs of files below a directory that have changed, and whether there were more, for ever; also of none, at
    first (from then on all is told) and now and then. Raises GridError, Unavailable(WATCH_SILENT)."""
    stub = catalog_pb2_grpc.CatalogueStub(channel)
    sentence = f"the catalogue said nothing about {directory} for {WATCH_SILENCE_S:g} s; watch it again"
    async with stub.Watch(pb.WatchRequest(directory=directory)) as call:
        async for answer in each_within(call, WATCH_SILENCE_S, "WATCH_SILENT", sentence):
            yield list(answer.guids), answer.missed


async def make_directory(channel: Any, directory: str, *, make_parents: bool = False) -> None:
    """Make a directory. Again: succeeds."""
    await catalog_pb2_grpc.CatalogueStub(channel).MakeDirectory(
        pb.MakeDirectoryRequest(directory=directory, make_parents=make_parents)
    )


async def add_alias(channel: Any, name: str, alias: str) -> str:
    """Give the file `name` (LFN, or GUID as `guid:...`) one more LFN, its directories made when missing; the GUID.
    Again: succeeds. Raises NotFound, AlreadyExists(LFN_TAKEN)."""
    lfn, guid = _name(name)
    request = pb.AddAliasRequest(lfn=lfn, guid=guid, alias=alias, make_parents=True)
    return (await catalog_pb2_grpc.CatalogueStub(channel).AddAlias(request)).guid


async def names_of(channel: Any, name: str) -> list[str]:
    """Every LFN of a file (LFN, or GUID as `guid:...`) that the caller may list, its own first. Raises NotFound."""
    lfn, guid = _name(name)
    answer = await catalog_pb2_grpc.CatalogueStub(channel).ListNames(pb.ListNamesRequest(lfn=lfn, guid=guid))
    return list(answer.lfns)


async def set_attributes(
    channel: Any, name: str, given: Iterable[Attribute], unset: Iterable[str] = ()
) -> list[Attribute]:
    """Give the file `name` (LFN, or GUID as `guid:...`) attributes and take others away; all that it has then. Again:
    succeeds. Raises NotFound, Refused, Exhausted(TOO_MANY_ATTRIBUTES)."""
    lfn, guid = _name(name)
    request = pb.SetAttributesRequest(lfn=lfn, guid=guid, attributes=map(wire.attribute_to_wire, given), unset=unset)
    answer = await catalog_pb2_grpc.CatalogueStub(channel).SetAttributes(request)
    return [wire.attribute_from_wire(one) for one in answer.attributes]


async def attributes_of(channel: Any, name: str) -> list[Attribute]:
    """Of the file `name` (LFN, or GUID as `guid:...`), in order of their names. Raises NotFound, Refused."""
    lfn, guid = _name(name)
    request = pb.GetAttributesRequest(lfn=lfn, guid=guid)
    answer = await catalog_pb2_grpc.CatalogueStub(channel).GetAttributes(request)
    return [wire.attribute_from_wire(one) for one in answer.attributes]


async def find_by_attributes(
    channel: Any, directory: str, conditions: Iterable[Condition], page_size: int = 0
) -> AsyncIterator[str]:
    """Own names of the files of a directory and below that meet every condition. Raises Refused, InvalidRequest."""
    request = pb.FindByAttributesRequest(
        directory=directory, conditions=map(wire.condition_to_wire, conditions), page_size=page_size
    )
    while True:
        answer = await catalog_pb2_grpc.CatalogueStub(channel).FindByAttributes(request)
        for path in answer.lfns:
            yield path
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token


async def remove(channel: Any, lfn: str, *, force: bool = False, missing_ok: bool = False) -> None:
    """Take a name away: an empty directory, or a file without replicas (`force`: forget them). Raises NotFound unless
    `missing_ok`, Conflict(HAS_REPLICAS | DIRECTORY_NOT_EMPTY)."""
    try:
        await catalog_pb2_grpc.CatalogueStub(channel).Remove(pb.RemoveRequest(lfn=lfn, force=force))
    except NotFound:
        if not missing_ok:
            raise


async def access_of(channel: Any, lfn: str) -> Access:
    """The access list that a name goes by. Raises NotFound, Refused."""
    return _access(await catalog_pb2_grpc.CatalogueStub(channel).GetAccess(pb.GetAccessRequest(lfn=lfn)))


async def set_access(channel: Any, lfn: str, grants: Iterable[Grant]) -> Access:
    """Give a name its own access list, or with no grants none. Raises NotFound, Refused, InvalidRequest."""
    wanted = [pb.Grant(who=grant.who, rights=sorted(grant.rights)) for grant in grants]
    return _access(await catalog_pb2_grpc.CatalogueStub(channel).SetAccess(pb.SetAccessRequest(lfn=lfn, grants=wanted)))


def _access(found: pb.Access) -> Access:
    return Access(found.lfn, found.owner, found.carried_by, wire.grants_from_wire(found))


def _name(name: str) -> tuple[str, str]:
    """(LFN, GUID), one of them empty."""
    return ("", name) if kind_of(name) is NameKind.GUID else (name, "")
