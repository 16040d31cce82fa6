"""Model to protobuf: the only file of the catalogue that knows both."""

from __future__ import annotations

from gridfabric.catalog.v1 import catalog_pb2 as pb

from agents.catalog.access import AccessList, Grant, Right
from agents.catalog.model import Content, Entry, Replica


def entry_to_wire(entry: Entry) -> pb.File:
    """A directory or a file."""
    content = entry.content or Content(0, "")
    return pb.File(
        lfn=entry.lfn,
        guid=entry.guid,
        size_bytes=content.size_bytes,
        adler32=content.adler32,
        sha256=content.sha256,
        owner=entry.owner,
        created_at_us=entry.created_at_us,
        replicas=[
            pb.Replica(surl=r.surl, storage_element=r.storage_element, created_at_us=r.created_at_us)
            for r in entry.replicas
        ],
        is_directory=entry.is_directory,
        alias_of=entry.alias_of,
    )


def entry_from_wire(file: pb.File) -> Entry:
    """As `entry_to_wire` made it."""
    return Entry(
        lfn=file.lfn,
        owner=file.owner,
        created_at_us=file.created_at_us,
        guid=file.guid,
        content=None if file.is_directory else Content(file.size_bytes, file.adler32, file.sha256),
        replicas=tuple(Replica(r.surl, r.storage_element, r.created_at_us) for r in file.replicas),
        alias_of=file.alias_of,
    )


def access_to_wire(lfn: str, owner: str, found: AccessList | None) -> pb.Access:
    """Whose a name is and the list that it goes by."""
    grants = found.grants if found is not None else ()
    return pb.Access(
        lfn=lfn,
        owner=owner,
        carried_by=found.lfn if found is not None else "",
        grants=[
            pb.Grant(who=grant.who, rights=[right for right in Right if right in grant.rights]) for grant in grants
        ],
    )


def grants_from_wire(access: pb.Access) -> tuple[Grant, ...]:
    """As `access_to_wire` made them."""
    return tuple(Grant(grant.who, frozenset(map(Right, grant.rights))) for grant in access.grants)
