"""Protobuf to model and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gridfabric.information.v1 import information_pb2 as pb

from agents.information.model import (
    Change,
    ProducerState,
    ProducerStatus,
    Provenance,
    Publication,
    Published,
    Rejection,
)
from fabric.clock import from_us, to_us
from fabric.errors import InvalidRequest
from fabric.information import attributes_from_wire, entry_to_wire, in_messages
from fabric.ldap import Dn, DnError, Entry, parse_dn

MAX_REASON_CHARACTERS = 200
"""Of why a producer is unreachable."""


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
            status_from_wire(request.status) if request.HasField("status") else None,
        ),
        rejected,
    )


def status_to_wire(status: ProducerStatus) -> pb.ProducerStatus | None:
    """How a region stands with a producer; None if it is current."""
    if status.state is ProducerState.CURRENT:
        return None
    return pb.ProducerStatus(
        state=status.state.published,
        since_us=to_us(status.since),
        last_seen_us=to_us(status.last_seen) if status.last_seen is not None else 0,
        reason=status.reason,
    )


def status_from_wire(wire: pb.ProducerStatus) -> ProducerStatus:
    """Raises InvalidRequest BAD_STATUS."""
    try:
        return ProducerStatus(
            ProducerState(wire.state),
            from_us(wire.since_us),
            from_us(wire.last_seen_us) if wire.last_seen_us else None,
            wire.reason[:MAX_REASON_CHARACTERS],
        )
    except (ValueError, OverflowError) as error:
        text = f"the status of a producer cannot be read: {error}"[:300]
        raise InvalidRequest("BAD_STATUS", f"{text}; states are awaited, unreachable and withdrawn") from error


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
