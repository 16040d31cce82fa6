"""What the information server is about: producers, their states, what they publish, what changes."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from fabric.clock import from_us
from fabric.information_tree import (
    ATTRIBUTE_PRODUCED_AT,
    ATTRIBUTE_PRODUCER,
    ATTRIBUTE_STATE,
    ATTRIBUTE_VALID_UNTIL,
    OPERATIONAL_ATTRIBUTES,
    ldap_time,
)
from fabric.ldap import Dn, Entry


class ProducerState(enum.Enum):
    """How this server stands with one producer."""

    AWAITED = "awaited"
    """Known from the settings, never heard since this server started."""
    CURRENT = "current"
    """Heard in time; its entries are shown as it published them."""
    UNREACHABLE = "unreachable"
    """Not heard in time; its entries are shown with status Unknown."""
    GONE = "gone"
    """Not heard for so long that its entries are removed; its state stays published."""
    WITHDRAWN = "withdrawn"
    """It said that it stops; its entries are removed, its state stays published."""

    @property
    def published(self) -> str:
        """The word in the tree: for readers, gone is a longer unreachable."""
        return "unreachable" if self is ProducerState.GONE else self.value


@dataclass(frozen=True, slots=True)
class ProducerStatus:
    """How a producer is shown."""

    state: ProducerState
    since: datetime
    last_seen: datetime | None = None
    reason: str = ""
    """Who does not hear whom; empty unless it is awaited or unreachable."""


@dataclass(slots=True)
class Producer:
    """One agent (at a site), one site or one region (above)."""

    name: str
    """The agent's name, the site's, or the region server's."""
    site: str
    state: ProducerState
    since: datetime
    """When `state` began."""
    stream: int = 0
    """The stream it publishes on; what an older stream still sends is ignored."""
    sequence: int | None = None
    """Of the last message on its stream; None until a snapshot came."""
    last_seen: datetime | None = None
    valid_until: datetime | None = None
    """None: the server's own entries, which do not expire."""
    entries: dict[tuple[str, ...], Entry] = field(default_factory=dict[tuple[str, ...], Entry])
    """As it published them, under their names in the tree."""
    unconfirmed: set[tuple[str, ...]] = field(default_factory=set[tuple[str, ...]])
    """Entries from before a snapshot that the snapshot has not named so far."""
    outdated: set[tuple[str, ...]] = field(default_factory=set[tuple[str, ...]])
    """Entries of which a later version was refused: a difference to that one says too little."""
    is_own: bool = False
    reason: str = ""
    """Why it is awaited or unreachable."""
    relayed: ProducerStatus | None = None
    """What the region that publishes it says of it; None: that region hears it."""

    @property
    def status(self) -> ProducerStatus:
        """What is shown: who is not heard cannot say how those behind it are."""
        if self.state is ProducerState.CURRENT and self.relayed is not None:
            return self.relayed
        return ProducerStatus(self.state, self.since, self.last_seen, self.reason)


@dataclass(frozen=True, slots=True)
class Published:
    """One entry as it arrives."""

    dn: Dn
    """Relative to the site."""
    attributes: Mapping[str, tuple[str, ...]]
    producer: str = ""
    """Who made it, if not the sender: an agent below the sending site server."""
    made_at_us: int = 0
    """Microseconds since the epoch; 0: not said."""
    partial: bool = False
    """Only the attributes that differ from the version before; those that are gone are empty."""

    @classmethod
    def whole(cls, entry: Entry, producer: str = "", made_at_us: int = 0) -> Published:
        """All of an entry that is named relative to its site."""
        return cls(entry.dn, entry.attributes, producer, made_at_us)


def depth(one: Published) -> int:
    """How far below the site; parents come before their children."""
    return len(one.dn.rdns)


@dataclass(frozen=True, slots=True)
class Publication:
    """One message of a producer. Without entries it is a sign of life, and ends a snapshot in several messages."""

    sequence: int
    snapshot: bool = False
    changed: tuple[Published, ...] = ()
    removed: tuple[Dn, ...] = ()
    """Relative to the site."""
    valid_for_s: float = 8.0
    withdraw: bool = False
    status: ProducerStatus | None = None
    """From a region: how it stands with this site; None: it hears it."""
    continued: bool = False
    """More of the message before, under the same number."""

    def parts(self, size: int) -> Iterator[Publication]:
        """The same in parts of at most `size` names, to be taken in this order."""
        if len(self.removed) + len(self.changed) <= size:
            yield self
            return
        removed = sorted(self.removed, key=len, reverse=True)
        names = [*removed, *sorted(self.changed, key=depth)]
        for begin in range(0, len(names), size):
            some = names[begin : begin + size]
            yield replace(
                self,
                snapshot=self.snapshot and not begin,
                continued=begin > 0,
                removed=tuple(name for name in some if isinstance(name, Dn)),
                changed=tuple(name for name in some if isinstance(name, Published)),
            )


@dataclass(frozen=True, slots=True)
class Change:
    """What became different in the tree, with full names."""

    changed: tuple[Entry, ...] = ()
    removed: tuple[Dn, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


@dataclass(frozen=True, slots=True)
class Rejection:
    """An entry that was not taken; the rest of the message was."""

    dn: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one message."""

    acknowledged: int
    resend_snapshot: bool = False
    change: Change = Change()
    rejected: tuple[Rejection, ...] = ()
    became: ProducerState | None = None
    """The producer's new state, if it changed."""
    unknown: tuple[Dn, ...] = ()
    """Partial entries (relative to the site) of which the rest is not known here."""


class Provenance(Mapping[str, tuple[str, ...]]):
    """The operational attributes of an entry. Live: a sign of life moves `valid until` without touching the entry."""

    __slots__ = ("_producer", "made_at_us", "made_by")

    def __init__(self, producer: Producer, made_by: str, made_at_us: int) -> None:
        self._producer = producer
        self.made_by = made_by
        """The agent that made the entry."""
        self.made_at_us = made_at_us
        """When it made it, microseconds since the epoch."""

    @property
    def valid_until(self) -> datetime | None:
        """When the entry is no longer to be trusted, unless its producer is heard before."""
        return self._producer.valid_until

    def __getitem__(self, name: str) -> tuple[str, ...]:
        if name == ATTRIBUTE_PRODUCER:
            return (self.made_by,)
        if name == ATTRIBUTE_PRODUCED_AT:
            return (ldap_time(from_us(self.made_at_us)),)
        if name == ATTRIBUTE_STATE:
            return (self._producer.status.state.published,)
        if name == ATTRIBUTE_VALID_UNTIL:
            until = self._producer.valid_until
            return (ldap_time(until),) if until is not None else ("99991231235959Z",)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(OPERATIONAL_ATTRIBUTES)

    def __len__(self) -> int:
        return len(OPERATIONAL_ATTRIBUTES)
