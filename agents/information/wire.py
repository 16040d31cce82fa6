"""Protobuf to model and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gridfabric.information.v1 import information_pb2 as pb

from agents.information.model import Change, Provenance, Publication, Published, Rejection
from fabric.clock import to_us
from fabric.information import attributes_from_wire, entry_to_wire, in_messages
from fabric.ldap import Dn, DnError, Entry, parse_dn


def publication(request: pb.PublishRequest) -> tuple[Publication, list[Rejection]]:
    """A message of a producer; entries whose name cannot be read are left out and named."""
    changed: list[Published] = []
    removed: list[Dn] = []
    rejected: list[Rejection] = []
    for wire in request.changed:
        try:
            name, attributes = parse_dn(wire.dn), attributes_from_wire(wire)
            changed.append(Published(name, attributes, wire.producer, wire.produced_at_us, wire.partial))
        except DnError as error:
            rejected.append(Rejection(wire.dn[:200], str(error)))
    for text in request.removed_dns:
        try:
            removed.append(parse_dn(text))
        except DnError as error:
            rejected.append(Rejection(text[:200], str(error)))
    return (
        Publication(
            request.sequence,
            request.snapshot,
            tuple(changed),
            tuple(removed),
            request.valid_for_ms / 1000,
            request.withdraw,
        ),
        rejected,
    )


class Follower:
    """What one follower has been sent: of an entry that it knows only the difference travels."""

    def __init__(self) -> None:
        self._sent: dict[tuple[str, ...], Mapping[str, tuple[str, ...]]] = {}
        """The attributes of each entry as last sent."""

    def snapshot_messages(self, sequence: int, entries: Iterable[Entry]) -> Iterable[pb.SubscribeResponse]:
        """All entries; the empty message at the end says that the snapshot is whole."""
        is_first = True
        for group in in_messages(map(self._entry, entries)):
            yield pb.SubscribeResponse(sequence=sequence, snapshot=is_first, changed=group)
            is_first = False
        if is_first:
            yield pb.SubscribeResponse(sequence=sequence, snapshot=True)
        yield pb.SubscribeResponse(sequence=sequence)

    def change_messages(self, sequence: int, change: Change) -> Iterable[pb.SubscribeResponse]:
        """A change as messages; an empty one is a sign of life."""
        for dn in change.removed:
            self._sent.pop(dn.key, None)
        removed = [str(dn) for dn in change.removed]
        groups = list(in_messages(map(self._entry, change.changed)))
        while len(removed) > 1000:
            part, removed = removed[:1000], removed[1000:]
            yield pb.SubscribeResponse(sequence=sequence, removed_dns=part)
        if removed or not groups:
            yield pb.SubscribeResponse(sequence=sequence, removed_dns=removed)
        for group in groups:
            yield pb.SubscribeResponse(sequence=sequence, changed=group)

    def _entry(self, entry: Entry) -> pb.Entry:
        """With its provenance."""
        known = self._sent.get(entry.dn.key)
        self._sent[entry.dn.key] = entry.attributes
        made = entry.operational
        if not isinstance(made, Provenance):
            return entry_to_wire(entry, known=known)
        until = made.valid_until
        return entry_to_wire(
            entry,
            producer=made.made_by,
            produced_at_us=made.made_at_us,
            valid_until_us=to_us(until) if until is not None else 0,
            known=known,
        )
