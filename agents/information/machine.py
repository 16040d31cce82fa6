"""The pure part: messages of producers and the passing of time in, changes of the tree out.

No clock, no socket, no protobuf. One object holds the tree that LDAP serves and that subscribers follow.

A site can never vanish silently. Its own entry (`mds-vo-name=<SITE>,...`) at the top says `GridFabricSiteState`,
since when, when it was last seen, and who does not hear whom; at its site an agent has an entry
`GridFabricProducerID=<name>` that says the same of it, and a region at the top `GridFabricRegionID=<name>`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain

from agents.information.model import (
    Change,
    Outcome,
    Producer,
    ProducerState,
    ProducerStatus,
    Provenance,
    Publication,
    Published,
    Rejection,
    depth,
)
from fabric.clock import to_us
from fabric.errors import Exhausted
from fabric.glue13 import INDEXED_ATTRIBUTES
from fabric.glue_model import UNKNOWN
from fabric.glue_schema import GLUE_SCHEMA
from fabric.information_tree import GRID, LOCAL, ldap_time
from fabric.ldap import Dn, Entry, EntryTree, TreeError, make_entry
from fabric.ldap.dn import canonical_attribute
from fabric.ldap.entry import NO_ATTRIBUTES

RESERVED_RDNS = frozenset(("mds-vo-name", "gridfabricproducerid", "o"))
"""Names that the servers themselves give; a producer may not use them."""

STATUS_ATTRIBUTES = ("GlueCEStateStatus", "GlueSEStatus", "GlueServiceStatus")
"""Set to Unknown while the producer is unreachable, so that nothing matches on them."""

Key = tuple[str, ...]

_MOVES: frozenset[tuple[ProducerState, ProducerState]] = frozenset(
    {
        # When the first snapshot of an expected producer arrives.
        (ProducerState.AWAITED, ProducerState.CURRENT),
        # When its time ran out without a message.
        (ProducerState.CURRENT, ProducerState.UNREACHABLE),
        # When it is heard again before the grace is over.
        (ProducerState.UNREACHABLE, ProducerState.CURRENT),
        # When the grace is over: its entries go, its published state stays.
        (ProducerState.UNREACHABLE, ProducerState.GONE),
        # When it comes back with a snapshot after that.
        (ProducerState.GONE, ProducerState.CURRENT),
        # When it says that it stops.
        (ProducerState.CURRENT, ProducerState.WITHDRAWN),
        # When its goodbye comes late, for instance because the link came back as it stopped.
        (ProducerState.UNREACHABLE, ProducerState.WITHDRAWN),
        (ProducerState.GONE, ProducerState.WITHDRAWN),
        (ProducerState.AWAITED, ProducerState.WITHDRAWN),
        # When it starts again.
        (ProducerState.WITHDRAWN, ProducerState.CURRENT),
    }
)
"""Every transition there is."""


@dataclass(frozen=True)
class MachineLimits:
    """Bounds on what producers may do; see InformationOptions."""

    grace_s: float = 30.0
    forget_s: float = 86400.0
    longest_valid_for_s: float = 600.0
    max_producers: int = 2000
    max_entries: int = 20_000
    max_attributes: int = 256
    max_entry_bytes: int = 64 * 1024


def site_dn(site: str) -> Dn:
    """The name of a site's own entry, the same at the site's server and at the top."""
    return LOCAL.child("mds-vo-name", site)


class _Changes:
    """Collects what changes, each name once."""

    def __init__(self) -> None:
        self._by_key: dict[Key, Entry | Dn] = {}

    def put(self, entry: Entry) -> None:
        self._by_key.pop(entry.dn.key, None)
        self._by_key[entry.dn.key] = entry

    def remove(self, dn: Dn) -> None:
        self._by_key.pop(dn.key, None)
        self._by_key[dn.key] = dn

    def done(self) -> Change:
        values = self._by_key.values()
        return Change(
            tuple(value for value in values if isinstance(value, Entry)),
            tuple(value for value in values if isinstance(value, Dn)),
        )


class InformationMachine:
    """The tree and its producers.

    `level` is `site` (producers are the agents of `site`), `region` or `top` (producers are sites, named by themselves,
    and region servers). `expected` sites and regions are published as awaited from the start. `ways` says of sites and
    regions that do not publish here themselves which region server does it for them. `regions` are all that there are.
    `name` is this server's own.
    """

    def __init__(
        self,
        level: str,
        site: str,
        now: datetime,
        limits: MachineLimits | None = None,
        expected: Iterable[str] = (),
        *,
        ways: Mapping[str, str] | None = None,
        regions: Collection[str] = (),
        name: str = "",
    ) -> None:
        if level not in ("site", "region", "top"):
            raise ValueError(f"a level is site, region or top, not {level!r}")
        self.level = level
        self.name = name or level
        self.ways = ways or {}
        self.regions = frozenset(regions if level != "site" else ())  # at its site a region server is one of the agents
        self.site = site
        self.limits = limits or MachineLimits()
        self.tree = EntryTree([GRID], schema=GLUE_SCHEMA, indexed=INDEXED_ATTRIBUTES)
        self.producers: dict[str, Producer] = {}
        self._owner: dict[Key, str] = {}
        """Which producer each published name belongs to."""
        self.tree.add(make_entry(GRID, {"objectClass": ("top", "organization"), "o": "grid"}))
        self.tree.add(make_entry(LOCAL, {"objectClass": ("top", "MDS"), "mds-vo-name": "local"}))
        changes = _Changes()
        if level == "site":
            self._put(
                _status_entry(site_dn(site), "GridFabricSite", ProducerStatus(ProducerState.CURRENT, now)), changes
            )
        else:
            for one in expected:
                self._producer(one, one, now, changes)

    # -- events

    def open_stream(self, name: str, site: str, stream: int, now: datetime) -> Change:
        """A producer begins to publish on a new stream, which replaces any older one. Raises Exhausted."""
        changes = _Changes()
        producer = self._producer(name, site, now, changes)
        producer.stream = stream
        producer.sequence = None
        return changes.done()

    def publish(self, name: str, stream: int, publication: Publication, now: datetime) -> Outcome:
        """One message. A gap in the sequence, or a change where a snapshot is due, asks for a snapshot.

        Raises Exhausted PUBLICATION_TOO_LARGE if the producer has too many entries: nothing of the message is taken.
        """
        producer = self.producers.get(name)
        if producer is None or producer.stream != stream:
            return Outcome(publication.sequence)
        before, shown = producer.state, producer.status
        changes = _Changes()
        due = None if producer.sequence is None else producer.sequence + (not publication.continued)
        in_order = publication.sequence == due
        has_entries = before in (ProducerState.CURRENT, ProducerState.UNREACHABLE)
        if publication.withdraw:
            self._withdraw(producer, now, changes)
            return self._outcome(producer, shown, publication, changes)
        if not publication.snapshot and not (in_order and has_entries):
            return Outcome(publication.sequence, resend_snapshot=True)
        self._check_size(producer, publication, changes)
        producer.sequence = publication.sequence
        producer.last_seen = now
        valid_for_s = min(max(publication.valid_for_s, 0.1), self.limits.longest_valid_for_s)
        producer.valid_until = now + timedelta(seconds=valid_for_s)
        if before is not ProducerState.CURRENT:
            self._move(producer, ProducerState.CURRENT, now, changes)
            for entry in producer.entries.values():
                if self.tree.get(entry.dn) is not entry:
                    self._put(entry, changes)
        relayed = _not_after(now, publication.status)
        if relayed != producer.relayed:
            producer.relayed = relayed
            producer.since = now
            self._publish_state(producer, changes)
        rejected, unknown = self._take(producer, publication, now, changes)
        return self._outcome(producer, shown, publication, changes, rejected, unknown)

    def publish_own(self, name: str, entries: Iterable[Entry], now: datetime) -> Change:
        """This server's own entries (names relative to its site), all of them; they do not expire."""
        changes = _Changes()
        producer = self._producer(name, self.site, now, changes)
        producer.is_own = True
        if producer.state is not ProducerState.CURRENT:
            self._move(producer, ProducerState.CURRENT, now, changes)
        publication = Publication(0, snapshot=True, changed=tuple(map(Published.whole, entries)))
        self._take(producer, publication, now, changes)
        self._confirm(producer, changes)
        return changes.done()

    def publish_top(self, name: str, state: str, differing: int, since: datetime | None) -> Change:
        """How this top server stands with another one, as its meter reads."""
        changes = _Changes()
        attributes: dict[str, str | int | tuple[str, ...] | list[str]] = {
            "objectClass": ("top", "GridFabricTop"),
            "GridFabricTopID": name,
            "GridFabricTopState": state,
            "GridFabricTopDiffering": differing,
        }
        if since is not None:
            attributes["GridFabricTopSince"] = ldap_time(since)
        entry = make_entry(GRID.child("GridFabricTopID", name), attributes)
        known = self.tree.get(entry.dn)
        if known is None or known.attributes != entry.attributes:
            self._put(entry, changes)
        return changes.done()

    def tick(self, now: datetime) -> tuple[Change, list[Producer]]:
        """Let time pass: leases end, graces end, old states are forgotten. Returns also whose state changed."""
        changes = _Changes()
        moved: list[Producer] = []
        for producer in list(self.producers.values()):
            if producer.is_own:
                continue
            if producer.state is ProducerState.CURRENT and producer.valid_until is not None:
                if now >= producer.valid_until:
                    self._move(producer, ProducerState.UNREACHABLE, now, changes)
                    for entry in producer.entries.values():
                        shown = _unknown(entry)
                        if shown is not entry:
                            self._put(shown, changes)
                    moved.append(producer)
            elif producer.state is ProducerState.UNREACHABLE:
                if now >= producer.since + timedelta(seconds=self.limits.grace_s):
                    since = producer.since  # lost since then, not since its entries went
                    self._drop_entries(producer, changes, but_class="GlueSite")
                    self._move(producer, ProducerState.GONE, since, changes)
                    moved.append(producer)
            elif (
                self.level == "site"
                and producer.state in (ProducerState.GONE, ProducerState.WITHDRAWN)
                and now >= producer.since + timedelta(seconds=self.limits.forget_s)
            ):
                self._forget(producer, changes)
        return changes.done(), moved

    def next_due(self) -> datetime | None:
        """When `tick` has something to do if nobody is heard until then."""
        ends = [self._ends(producer) for producer in self.producers.values() if not producer.is_own]
        return min((end for end in ends if end is not None), default=None)

    def _ends(self, producer: Producer) -> datetime | None:
        if producer.state is ProducerState.CURRENT:
            return producer.valid_until
        if producer.state is ProducerState.UNREACHABLE:
            return producer.since + timedelta(seconds=self.limits.grace_s)
        if self.level == "site" and producer.state in (ProducerState.GONE, ProducerState.WITHDRAWN):
            return producer.since + timedelta(seconds=self.limits.forget_s)
        return None

    # -- steps

    def _outcome(
        self,
        producer: Producer,
        before: ProducerStatus,
        publication: Publication,
        changes: _Changes,
        rejected: tuple[Rejection, ...] = (),
        unknown: tuple[Dn, ...] = (),
    ) -> Outcome:
        state = producer.status.state
        became = state if state is not before.state else None
        return Outcome(publication.sequence, False, changes.done(), rejected, became, unknown)

    def _producer(self, name: str, site: str, now: datetime, changes: _Changes) -> Producer:
        """The record of a producer, made if it is new."""
        found = self.producers.get(name)
        if found is not None:
            return found
        if len(self.producers) >= self.limits.max_producers:
            raise Exhausted(
                "TOO_MANY_PRODUCERS",
                f"{name} cannot publish: this information server knows {self.limits.max_producers} producers already; "
                "raise max_producers or remove some",
                producer=name,
                retry_after_s=60,
            )
        made = self.producers[name] = Producer(name, site, ProducerState.AWAITED, now)
        made.reason = f"{self.ways.get(name, name)} has not been heard by {self.name} since that started"
        self._publish_state(made, changes)
        return made

    def _move(self, producer: Producer, state: ProducerState, now: datetime, changes: _Changes) -> None:
        if (producer.state, state) not in _MOVES:
            raise RuntimeError(f"{producer.name} cannot go from {producer.state.value} to {state.value}")
        producer.state = state
        producer.since = now
        if state is ProducerState.UNREACHABLE:
            producer.reason = f"{self.ways.get(producer.name, producer.name)} is not heard by {self.name}"
        elif state is not ProducerState.GONE:
            producer.reason = ""
        self._publish_state(producer, changes)

    def _publish_state(self, producer: Producer, changes: _Changes) -> None:
        if self.level == "site":
            dn = site_dn(self.site).child("GridFabricProducerID", producer.name)
            made = Provenance(producer, producer.name, to_us(producer.since))
            entry = _status_entry(dn, "GridFabricProducer", producer.status, operational=made)
        else:
            way = self.ways.get(producer.name, "")
            if producer.name in self.regions:
                dn = GRID.child("GridFabricRegionID", producer.name)
                entry = _status_entry(dn, "GridFabricRegion", producer.status, way)
            else:
                entry = _status_entry(site_dn(producer.site), "GridFabricSite", producer.status, way)
        self._put(entry, changes)

    def _check_size(self, producer: Producer, publication: Publication, changes: _Changes) -> None:
        known = 0 if publication.snapshot else len(producer.entries)
        if known + len(publication.changed) <= self.limits.max_entries:
            return
        base = site_dn(producer.site)
        named = {one.dn.key + base.key for one in publication.changed}
        total = len(named if publication.snapshot else named | producer.entries.keys())
        if total > self.limits.max_entries and producer.unconfirmed and not publication.snapshot:
            self._confirm(producer, changes, but=named)  # makes room for what the snapshot names
            total = len(named | producer.entries.keys())
        if total > self.limits.max_entries:
            raise Exhausted(
                "PUBLICATION_TOO_LARGE",
                f"{producer.name} publishes {total} entries and {self.limits.max_entries} are allowed; "
                "publish less, or raise max_entries at this information server",
                producer=producer.name,
                entries=total,
                retry_after_s=60,
            )

    def _take(
        self, producer: Producer, publication: Publication, now: datetime, changes: _Changes
    ) -> tuple[tuple[Rejection, ...], tuple[Dn, ...]]:
        """What was not taken, and of what too little is known."""
        base = site_dn(producer.site)
        if publication.snapshot:
            producer.unconfirmed = set(producer.entries)
        elif producer.unconfirmed and not publication.changed and not publication.removed:
            self._confirm(producer, changes)
        for relative in sorted(publication.removed, key=len, reverse=True):
            key = relative.key + base.key
            if self._owner.get(key) == producer.name:
                self._remove(key, changes)
        rejected: list[Rejection] = []
        unknown: list[Dn] = []
        now_us = to_us(now)
        for one in sorted(publication.changed, key=depth):
            key = one.dn.key + base.key
            known = producer.entries.get(key)
            if one.partial and (known is None or key in producer.outdated):
                unknown.append(one.dn)
                continue
            attributes, differing = _merged(one, known)
            reason = None
            if known is None or self.tree.get(known.dn) is None:
                reason = self._reason_against_name(producer, one.dn, base)
            if reason is None:
                reason = self._reason_against(one.dn, attributes, differing, known)
            if reason is not None:
                if known is not None:
                    producer.outdated.add(key)
                rejected.append(Rejection(str(one.dn)[:200], reason))
                continue
            producer.unconfirmed.discard(key)
            producer.outdated.discard(key)
            if known is not None and known.attributes == attributes:
                continue  # nothing new: the shared provenance has moved already
            if known is not None and known.dn.rdns[: len(one.dn.rdns)] == one.dn.rdns:
                dn = known.dn
            else:
                dn = one.dn.below(base)
            made_at_us = min(one.made_at_us, now_us) if one.made_at_us > 0 else now_us  # nobody's clock makes it newer
            entry = Entry(dn, attributes, Provenance(producer, one.producer or producer.name, made_at_us))
            producer.entries[key] = entry
            self._owner[key] = producer.name
            self._put(entry, changes)
        return tuple(rejected), tuple(unknown)

    def _reason_against_name(self, producer: Producer, relative: Dn, base: Dn) -> str | None:
        """Why an entry cannot be taken under a name that is new; None if it can."""
        if producer.name in self.regions:
            return "a region has no entries of its own"
        if not len(relative):
            return "it is named like the site itself"
        for rdn in relative.rdns:
            for name, _ in rdn:
                if name.lower() in RESERVED_RDNS and not (
                    self.level != "site" and name.lower() == "gridfabricproducerid"
                ):
                    return f"{name} in a name is kept for information servers"
        owner = self._owner.get(relative.key + base.key)
        if owner is not None and owner != producer.name:
            return f"this name belongs to {owner}"
        if len(relative) > 1 and self.tree.get(relative.parent.below(base)) is None:
            return "its parent is not published"
        return None

    def _reason_against(
        self,
        name: Dn,
        attributes: Mapping[str, tuple[str, ...]],
        differing: Collection[str],
        known: Entry | None,
    ) -> str | None:
        """Why an entry with these attributes cannot be taken; None if it can. `differing` are those that are not as
        they are in `known`, the version before."""
        if len(attributes) > self.limits.max_attributes:
            return f"it has more than {self.limits.max_attributes} attributes"
        # Most changes make nothing longer, and to measure a whole entry costs as much as all else.
        grows = known is None or any(
            _length(attributes.get(one, ())) > _length(known.attributes.get(one, ())) for one in differing
        )
        if (
            grows
            and _length(attributes) + _length(chain.from_iterable(attributes.values())) > self.limits.max_entry_bytes
        ):
            return f"it is larger than {self.limits.max_entry_bytes} bytes"
        violation = GLUE_SCHEMA.violation(attributes, differing)
        if violation is not None:
            return violation
        for attribute, value in name.rdns[0]:
            if value not in attributes.get(attribute, ()) and value not in _written(attributes, attribute):
                return f"the {attribute[:64]} that it is named by is not among its attributes"
        return None

    def _confirm(self, producer: Producer, changes: _Changes, but: Set[Key] = frozenset()) -> None:
        """The snapshot is whole: what it did not name is gone."""
        for key in sorted(producer.unconfirmed - but, key=len, reverse=True):
            if key in producer.entries:
                self._remove(key, changes)
        producer.unconfirmed.clear()

    def _remove(self, key: Key, changes: _Changes) -> None:
        """Take an entry out, with all below it, whosever they are: a child without its parent cannot be shown."""
        owner = self.producers[self._owner[key]]
        for gone in self.tree.remove(owner.entries[key].dn, below=True):
            self._release(gone.dn.key)
            changes.remove(gone.dn)

    def _release(self, key: Key) -> None:
        owner = self.producers.get(self._owner.pop(key, ""))
        if owner is not None:
            owner.entries.pop(key, None)
            owner.unconfirmed.discard(key)
            owner.outdated.discard(key)

    def _drop_entries(self, producer: Producer, changes: _Changes, but_class: str = "") -> None:
        """Remove what it published. What a site is stays known when it cannot be reached: see `but_class`."""
        for key in sorted(producer.entries, key=len):
            entry = producer.entries.get(key)
            if entry is not None and but_class not in entry.attributes.get("objectClass", ()):
                self._remove(key, changes)
        producer.unconfirmed.clear()

    def _withdraw(self, producer: Producer, now: datetime, changes: _Changes) -> None:
        producer.sequence = None
        producer.last_seen = now
        producer.valid_until = now
        self._drop_entries(producer, changes)
        if producer.state is not ProducerState.WITHDRAWN:
            self._move(producer, ProducerState.WITHDRAWN, now, changes)

    def _forget(self, producer: Producer, changes: _Changes) -> None:
        dn = site_dn(self.site).child("GridFabricProducerID", producer.name)
        for gone in self.tree.remove(dn):
            changes.remove(gone.dn)
        del self.producers[producer.name]

    def _put(self, entry: Entry, changes: _Changes) -> None:
        try:
            self.tree.replace(entry)
        except TreeError:
            return  # its parent went in the same message; it comes back with the next snapshot
        changes.put(entry)


def _status_entry(
    dn: Dn,
    about: str,
    status: ProducerStatus,
    way: str = "",
    operational: Mapping[str, tuple[str, ...]] = NO_ATTRIBUTES,
) -> Entry:
    """What is published of a producer itself. `about` is the class and begins the names of its attributes."""
    ((name, value),) = dn.rdns[0]
    attributes: dict[str, str | int | tuple[str, ...] | list[str]] = {
        "objectClass": ("top", "MDS", about) if name == "mds-vo-name" else ("top", about),
        name: value,
        f"{about}State": status.state.published,
        f"{about}Since": ldap_time(status.since),
    }
    if status.last_seen is not None and status.state is not ProducerState.CURRENT:
        attributes[f"{about}LastSeen"] = ldap_time(status.last_seen)
    if status.reason:
        attributes[f"{about}Reason"] = status.reason
    if way:
        attributes[f"{about}Way"] = way
    return make_entry(dn, attributes, operational)


def _not_after(now: datetime, status: ProducerStatus | None) -> ProducerStatus | None:
    """Nobody's clock makes a status newer than it is here."""
    if status is None:
        return None
    last_seen = status.last_seen and min(status.last_seen, now)
    return ProducerStatus(status.state, min(status.since, now), last_seen, status.reason)


def _merged(one: Published, known: Entry | None) -> tuple[Mapping[str, tuple[str, ...]], Collection[str]]:
    """The attributes of an entry as it is to be, and which of them are not as they were."""
    attributes = one.attributes
    if known is None:
        return attributes, attributes
    before = known.attributes
    if not one.partial:
        return attributes, [name for name, values in attributes.items() if before.get(name) != values]
    merged = {**before, **attributes}
    if not all(attributes.values()):
        merged = {name: values for name, values in merged.items() if values}
    return merged, attributes


def _length(texts: Iterable[str]) -> int:
    return sum(map(len, texts))


def _written(attributes: Mapping[str, tuple[str, ...]], attribute: str) -> tuple[str, ...]:
    """The values of an attribute, however its name is written."""
    wanted = canonical_attribute(attribute)
    return next((values for name, values in attributes.items() if canonical_attribute(name) == wanted), ())


def _unknown(entry: Entry) -> Entry:
    """The entry as shown while its producer is unreachable."""
    present = [name for name in STATUS_ATTRIBUTES if name in entry.attributes]
    if not present:
        return entry
    attributes = dict(entry.attributes)
    for name in present:
        attributes[name] = (UNKNOWN,)
    return Entry(entry.dn, attributes, entry.operational)
