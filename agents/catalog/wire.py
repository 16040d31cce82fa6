"""Model to protobuf: the only file of the catalogue that knows both."""

from __future__ import annotations

from gridfabric.catalog.v1 import catalog_pb2 as pb

from agents.catalog.access import AccessList, Grant, Right
from agents.catalog.attributes import Attribute, Comparison, Condition, Kind
from agents.catalog.model import Content, Entry, Replica
from fabric.errors import InvalidRequest

_FIELDS = {Kind.TEXT: "text", Kind.INT: "int", Kind.REAL: "real", Kind.TIME: "time_us"}
_KINDS = {field: kind for kind, field in _FIELDS.items()}


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


def attribute_to_wire(attribute: Attribute) -> pb.Attribute:
    """A name with a value of its type."""
    message = pb.Attribute(name=attribute.name)
    setattr(message, _FIELDS[attribute.kind], attribute.value)
    return message


def attribute_from_wire(message: pb.Attribute) -> Attribute:
    """As `attribute_to_wire` made it. Raises InvalidRequest(ATTRIBUTE_INVALID)."""
    field = message.WhichOneof("value")
    if field is None:
        raise InvalidRequest("ATTRIBUTE_INVALID", f"attribute {message.name[:80]!r} has no value; give one of its type")
    return Attribute.of(message.name, _KINDS[field], getattr(message, field))


def condition_to_wire(condition: Condition) -> pb.Condition:
    """What an attribute has to be."""
    return pb.Condition(attribute=attribute_to_wire(condition.attribute), comparison=condition.comparison)


def condition_from_wire(message: pb.Condition) -> Condition:
    """As `condition_to_wire` made it. Raises InvalidRequest(ATTRIBUTE_INVALID)."""
    try:
        comparison = Comparison(message.comparison)
    except ValueError as error:
        raise InvalidRequest(
            "ATTRIBUTE_INVALID", f"{message.comparison[:20]!r} compares nothing; use {', '.join(Comparison)}"
        ) from error
    return Condition(attribute_from_wire(message.attribute), comparison)
