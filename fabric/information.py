"""The two sides of the information system that every agent may need: publish entries, follow the tree.

`Publisher` keeps an agent's entries at its site's information server (or a site's at the top): a snapshot on every new
stream, changes as they happen, a sign of life when nothing does. `Subscriber` keeps a copy of the tree, and `GridView`
what a broker matches on. Both come back by themselves after any loss of the connection.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
from collections import ChainMap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from gridfabric.information.v1 import information_pb2 as pb

from fabric.clock import Clock, to_us
from fabric.errors import GridError, Unavailable
from fabric.glue13 import CeView, bound_storage, ce_views, site_of, storage_space
from fabric.information_tree import ATTRIBUTE_PRODUCER, PRODUCED_AT_US
from fabric.ldap import Dn, Entry, parse_dn
from fabric.logs import Logger
from fabric.rpc.calls import each_within
from fabric.settings import Endpoint

REFRESH_S = 2.0
"""A sign of life this often: a few bytes."""
VALID_FOR_S = 8.0
"""Silence after which a producer counts as lost: four signs of life."""
TOGETHER_S = 0.01
"""What changes this soon after the first change travels with it."""
GATHER_S = 0.2
"""Least time between two messages with changes: the first goes at once, and what follows soon is gathered, for a
message costs a server as much as several entries."""
MAX_MESSAGE_ENTRIES = 1000
MAX_MESSAGE_BYTES = 1024 * 1024
"""One message stays well below the 4 MiB that gRPC takes."""
MAX_BACKOFF_S = 2.0
"""Longest pause between attempts to reach an information server: what was lost must be back soon."""
SILENCE_S = 10.0
"""A subscription that is silent this long is given up and made anew."""

Connect = Callable[[Endpoint], Awaitable[Any]]
"""Gives an `InformationStub` for an endpoint; with an agent's context:
`async def connect(e): return InformationStub(await context.channels.get(e.host, e.rpc))`."""


def entry_to_wire(
    entry: Entry,
    *,
    producer: str = "",
    produced_at_us: int = 0,
    valid_until_us: int = 0,
    known: Mapping[str, tuple[str, ...]] | None = None,
) -> pb.Entry:
    """An entry as it travels. `known` are the attributes that the other side has of it: only differences travel."""
    attributes: Iterable[tuple[str, tuple[str, ...]]] = entry.attributes.items()
    if known is not None:
        gone = ((name, ()) for name in known if name not in entry.attributes)
        attributes = (*((name, values) for name, values in attributes if known.get(name) != values), *gone)
    return pb.Entry(
        dn=str(entry.dn),
        attributes=[pb.Attribute(name=name, values=values) for name, values in attributes],
        producer=producer,
        produced_at_us=produced_at_us,
        valid_until_us=valid_until_us,
        partial=known is not None,
    )


def entry_from_wire(wire: pb.Entry) -> Entry:
    """See `attributes_from_wire`. Raises DnError for a name that is none."""
    return Entry(parse_dn(wire.dn), attributes_from_wire(wire))


def attributes_from_wire(wire: pb.Entry) -> dict[str, tuple[str, ...]]:
    """Those of a partial entry that are gone are there without values."""
    partial = wire.partial
    pairs = ((attribute.name, _shared(tuple(attribute.values))) for attribute in wire.attributes)
    return {sys.intern(name): values for name, values in pairs if values or partial}


@lru_cache(maxsize=32768)
def _shared(values: tuple[str, ...]) -> tuple[str, ...]:
    """The same object for equal values: nine of ten attributes of a large tree have the values of another entry's."""
    return values


def in_messages(entries: Iterable[pb.Entry]) -> Iterable[list[pb.Entry]]:
    """Entries in groups that fit into one message each."""
    group: list[pb.Entry] = []
    size = 0
    for entry in entries:
        length = entry.ByteSize()
        if group and (len(group) >= MAX_MESSAGE_ENTRIES or size + length > MAX_MESSAGE_BYTES):
            yield group
            group, size = [], 0
        group.append(entry)
        size += length
    if group:
        yield group


class Publisher:
    """Keeps entries published at one or more information servers.

    Entries have names relative to the site (`fabric.glue13` makes such). Call `replace` with all of them whenever they
    may have changed: only differences travel. Run `run` as a background task; end with `withdraw`.
    """

    def __init__(
        self,
        producer: str,
        endpoints: Sequence[Endpoint],
        connect: Connect,
        *,
        log: Logger,
        clock: Clock,
        refresh_s: float = REFRESH_S,
        valid_for_s: float = VALID_FOR_S,
    ) -> None:
        """`producer` is the agent's own name (a site's name for a site's information server)."""
        self.producer = producer
        self.refresh_s = refresh_s
        self.valid_for_s = valid_for_s
        self.log = log
        self.clock = clock
        self.connect = connect
        self.entries: dict[tuple[str, ...], tuple[Entry, str, int]] = {}
        """By key: the entry, who made it and when (microseconds)."""
        self.changes = 0
        """Counts changes of `entries`."""
        self.status: pb.ProducerStatus | None = None
        """Of a region for one of its sites: how it stands with it, if it is not current."""
        self._links = [_PublisherLink(self, endpoint) for endpoint in endpoints]

    @property
    def connected(self) -> int:
        """How many information servers have acknowledged all so far on a living stream."""
        return sum(link.is_current for link in self._links)

    def replace(self, entries: Iterable[Entry]) -> None:
        """Publish exactly these from now on."""
        now_us = to_us(self.clock.now())
        new = {entry.dn.key: entry for entry in entries}
        for key in [key for key in self.entries if key not in new]:
            self._mark(self.entries.pop(key)[0].dn)
        for key, entry in new.items():
            old = self.entries.get(key)
            if old is None or old[0].attributes != entry.attributes:
                self.entries[key] = (entry, self.producer, now_us)
                self._mark(entry.dn)

    def put(self, entry: Entry, made_by: str = "", made_at_us: int = 0) -> None:
        """Publish one more entry, or a new version of it."""
        self.entries[entry.dn.key] = (entry, made_by or self.producer, made_at_us or to_us(self.clock.now()))
        self._mark(entry.dn)

    def remove(self, dn: Dn) -> None:
        """Publish it no more; a name that is not published is no error."""
        if self.entries.pop(dn.key, None) is not None:
            self._mark(dn)

    def say(self, status: pb.ProducerStatus | None) -> None:
        """Say how the producer is, if it is another that speaks for it."""
        self.status = status
        for link in self._links:
            link.wake.set()

    def _mark(self, dn: Dn) -> None:
        self.changes += 1
        for link in self._links:
            link.pending[dn.key] = dn
            link.wake.set()

    def break_streams(self) -> None:
        """Give up the streams of now; new ones are made. For drills, and when the network is known to have changed."""
        for link in self._links:
            link.break_stream()

    async def run(self) -> None:
        """Keep a stream to every information server until cancelled. Never raises for a server that is not there."""
        async with asyncio.TaskGroup() as group:
            for link in self._links:
                group.create_task(link.run())

    async def withdraw(self, timeout_s: float = 1.0) -> None:
        """Say that we stop: the entries go at once, everywhere. Call it before `run` is cancelled."""
        for link in self._links:
            link.say_goodbye()
        waiting = [link.gone.wait() for link in self._links if link.is_open]
        if waiting:
            try:
                async with asyncio.timeout(timeout_s):
                    await asyncio.gather(*waiting)
            except TimeoutError:
                self.log.warning("publish.goodbye_unheard", producer=self.producer)


class _PublisherLink:
    """One publisher's stream to one information server."""

    def __init__(self, owner: Publisher, endpoint: Endpoint) -> None:
        self._owner = owner
        self._endpoint = endpoint
        self.pending: dict[tuple[str, ...], Dn] = {}
        """Names that changed since they were last sent."""
        self._sent: dict[tuple[str, ...], Mapping[str, tuple[str, ...]]] = {}
        """The attributes of each entry as last sent on the stream of now."""
        self.wake = asyncio.Event()
        self._heard = asyncio.Event()
        self.gone = asyncio.Event()
        self.is_open = False
        self._stream = 0
        self._sequence = 0
        self._acknowledged = 0
        self._news = 0
        """The last message that was more than a sign of life."""
        self._news_at = -math.inf
        """When it was sent (monotonic)."""
        self._snapshot_due = True
        self._ending = asyncio.Event()
        self._was_lost = False
        self._call: Any = None

    @property
    def is_current(self) -> bool:
        """True if all news were acknowledged and nothing waits. Signs of life are acknowledged now and then."""
        return self.is_open and 0 < self._news <= self._acknowledged and not (self.pending or self._snapshot_due)

    def say_goodbye(self) -> None:
        """Send a withdrawal next."""
        self._ending.set()
        self.wake.set()
        self._heard.set()

    def break_stream(self) -> None:
        """Cancel the stream of now, if there is one."""
        if self._call is not None:
            self._call.cancel()

    async def run(self) -> None:
        """Connect, publish, and again."""
        backoff_s = 0.1
        while not self._ending.is_set():
            started = self._owner.clock.monotonic()
            try:
                stub = await self._owner.connect(self._endpoint)
                await self._publish(stub)
                reason = "the stream ended"
            except GridError as error:
                reason = error.sentence
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                reason = "the stream was given up"  # grpc says so when the call was cancelled, not this task
            except Exception as error:  # a plain grpc error, or a defect: this loop must go on either way
                reason = f"{type(error).__name__}: {error}"
            finally:
                self.is_open = False
            if self._ending.is_set():
                break
            if not self._was_lost:
                self._was_lost = True
                self._owner.log.warning("publish.lost", server=self._endpoint.address, reason=reason)
            if self._owner.clock.monotonic() - started > 2 * MAX_BACKOFF_S:
                backoff_s = 0.1
            await asyncio.sleep(backoff_s * random.uniform(0.7, 1.3))
            backoff_s = min(MAX_BACKOFF_S, backoff_s * 2)
        self.gone.set()

    async def _publish(self, stub: Any) -> None:
        self._stream += 1
        self._sequence = self._acknowledged = self._news = 0
        self._snapshot_due = True
        self.is_open = True
        call = self._call = stub.Publish(self._messages(self._stream))
        silence_s = self._owner.valid_for_s
        silent = (
            f"the information server {self._endpoint.address} did not acknowledge anything for {silence_s:g} s; "
            "a new stream is made"
        )
        try:
            async for response in each_within(call, silence_s, "INFORMATION_SILENT", silent):
                self._hear(response)
        finally:
            call.cancel()

    def _hear(self, response: pb.PublishResponse) -> None:
        self._acknowledged = max(self._acknowledged, response.acknowledged_sequence)
        self._heard.set()
        for text in response.resend_dns:
            dn = parse_dn(text)
            self._sent.pop(dn.key, None)
            self.pending[dn.key] = dn
            self.wake.set()
        if response.resend_snapshot:
            self._snapshot_due = True
            self.wake.set()
        elif self._was_lost:
            self._was_lost = False
            self._owner.log.info("publish.restored", server=self._endpoint.address)

    async def _messages(self, stream: int) -> AsyncIterator[pb.PublishRequest]:
        """What to send on one stream. A stream that was replaced must not take changes away from its successor."""
        while stream == self._stream:
            if self._ending.is_set():
                yield self._message(withdraw=True)
                return
            if self._snapshot_due:
                self._snapshot_due = False
                for message in self._snapshot():
                    yield message
                whole = self._message()  # says that the snapshot is whole
                self._is_news()
                yield whole
            elif self.pending:
                for message in self._changes():
                    self._is_news()
                    yield message
            else:
                yield self._message()
            if stream == self._stream and not (self.pending or self._ending.is_set() or self._snapshot_due):
                self.wake.clear()
                try:
                    async with asyncio.timeout(self._owner.refresh_s):
                        await self.wake.wait()
                except TimeoutError:
                    continue
            await self._gather()
            await self._heard_of_the_news()

    def _is_news(self) -> None:
        self._news, self._news_at = self._sequence, self._owner.clock.monotonic()

    async def _gather(self) -> None:
        """Let more changes come, unless this is the end."""
        left_s = self._news_at + GATHER_S - self._owner.clock.monotonic()
        try:
            async with asyncio.timeout(max(left_s, TOGETHER_S)):
                await self._ending.wait()
        except TimeoutError:
            return

    async def _heard_of_the_news(self) -> None:
        """One batch is under way at a time, so that a busy server gets fewer and larger ones. A stream on which nothing
        is acknowledged ends."""
        while self._acknowledged < self._news and not self._ending.is_set():
            self._heard.clear()
            await self._heard.wait()

    def _message(self, **fields: Any) -> pb.PublishRequest:
        self._sequence += 1
        owner = self._owner
        return pb.PublishRequest(
            producer=owner.producer,
            sequence=self._sequence,
            valid_for_ms=int(owner.valid_for_s * 1000),
            status=owner.status,
            **fields,
        )

    def _snapshot(self) -> Iterable[pb.PublishRequest]:
        self.pending.clear()
        self._sent = {key: made[0].attributes for key, made in self._owner.entries.items()}
        entries = sorted(self._owner.entries.values(), key=lambda made: len(made[0].dn))
        groups = in_messages(entry_to_wire(e, producer=by, produced_at_us=at) for e, by, at in entries)
        is_first = True
        for group in groups:
            yield self._message(snapshot=is_first, changed=group)
            is_first = False
        if is_first:
            yield self._message(snapshot=True)

    def _changes(self) -> Iterable[pb.PublishRequest]:
        pending, self.pending = self.pending, {}
        made = [self._owner.entries.get(key) for key in pending]
        gone = {key: dn for key, dn in pending.items() if key not in self._owner.entries}
        for key in gone:
            self._sent.pop(key, None)
        removed = list(map(str, gone.values()))
        present = sorted((one for one in made if one is not None), key=lambda one: len(one[0].dn))
        while removed:
            part, removed = removed[:MAX_MESSAGE_ENTRIES], removed[MAX_MESSAGE_ENTRIES:]
            yield self._message(removed_dns=part)
        for group in in_messages(self._difference(e, by, at) for e, by, at in present):
            yield self._message(changed=group)

    def _difference(self, entry: Entry, made_by: str, made_at_us: int) -> pb.Entry:
        known = self._sent.get(entry.dn.key)
        self._sent[entry.dn.key] = entry.attributes
        return entry_to_wire(entry, producer=made_by, produced_at_us=made_at_us, known=known)


class TreeCopy:
    """A copy of the tree, fed with the messages of one subscription after another.

    A snapshot may come in several messages; until it is whole the entries of before are shown.
    """

    def __init__(self) -> None:
        self.by_site: dict[str, dict[tuple[str, ...], Entry]] = {}
        """The entries by site (empty for the tree's own top) and name."""
        self.dirty: set[str] = set()
        """Sites that changed since somebody emptied this."""
        self.is_complete = False
        """True once a whole snapshot has been seen."""
        self._staged: dict[tuple[str, ...], Entry] | None = None

    @property
    def entries(self) -> dict[tuple[str, ...], Entry]:
        """All entries by name; made anew at each call."""
        return {key: entry for site in self.by_site.values() for key, entry in site.items()}

    def get(self, dn: Dn) -> Entry | None:
        """The entry of this name."""
        return self.by_site.get(site_of(dn), {}).get(dn.key)

    @property
    def is_whole(self) -> bool:
        """True if this is the tree of one moment: a snapshot has been seen, and none is under way."""
        return self.is_complete and self._staged is None

    def apply(self, message: pb.SubscribeResponse) -> tuple[list[Entry], list[Dn]]:
        """Take one message in; returns the entries that are new or different, and the names that are gone.

        Raises Unavailable INFORMATION_GAP for the difference to an entry that is not known here.
        """
        if message.snapshot:
            self._staged = {}
        changed = [self._received(wire) for wire in message.changed]
        removed = [parse_dn(text) for text in message.removed_dns]
        if self._staged is None:
            self._take(changed, removed)
            return changed, removed
        for dn in removed:
            self._staged.pop(dn.key, None)
        for entry in changed:
            self._staged[entry.dn.key] = entry
        if changed or removed or message.snapshot:
            return [], []
        before, staged, self._staged = self.entries, self._staged, None
        news = [entry for key, entry in staged.items() if key not in before or before[key] != entry]
        gone = [entry.dn for key, entry in before.items() if key not in staged]
        self._take(news, gone)
        self.is_complete = True
        return news, gone

    def _take(self, changed: Iterable[Entry], removed: Iterable[Dn]) -> None:
        for dn in removed:
            site = site_of(dn)
            self.dirty.add(site)
            entries = self.by_site.get(site, {})
            entries.pop(dn.key, None)
            if not entries:
                self.by_site.pop(site, None)
        for entry in changed:
            site = site_of(entry.dn)
            self.dirty.add(site)
            self.by_site.setdefault(site, {})[entry.dn.key] = entry

    def _received(self, wire: pb.Entry) -> Entry:
        received = entry_from_wire(wire)
        attributes = received.attributes
        if wire.partial:
            known = self.get(received.dn) if self._staged is None else self._staged.get(received.dn.key)
            if known is None:
                text = f"the information server sent a part of {wire.dn[:200]!r}, which is not known here; asking again"
                raise Unavailable("INFORMATION_GAP", text)
            merged = {**known.attributes, **attributes}
            attributes = {name: values for name, values in merged.items() if values}
        operational = {ATTRIBUTE_PRODUCER: (wire.producer,)} if wire.producer else {}
        if wire.produced_at_us:
            operational[PRODUCED_AT_US] = (str(wire.produced_at_us),)
        return Entry(received.dn, attributes, operational)


class GridView:
    """The computing elements of the grid as a broker matches them, kept from a `TreeCopy` (one view per copy).

    Only the views of sites that changed are made anew, and those of sites whose CEs are bound to storage elsewhere.
    """

    def __init__(self, copy: TreeCopy) -> None:
        self._copy = copy
        self._views: dict[str, CeView] = {}
        self._storage: dict[str, dict[str, int]] = {}
        """By site: its storage elements that are heard, with their free space."""
        self._borrowers: set[str] = set()
        """Sites with CEs that name storage of other sites as close."""

    def elements(self) -> dict[str, CeView]:
        """Every known GlueCE by its unique id, usable or not. The same dict until something changes."""
        dirty, self._copy.dirty = self._copy.dirty, set()
        if not dirty:
            return self._views
        for site in dirty:
            self._look_at(site)
        dirty |= self._borrowers
        views = {name: view for name, view in self._views.items() if view.site not in dirty}
        everywhere: Mapping[str, int] = ChainMap(*self._storage.values())
        for site in dirty:
            storage = everywhere if site in self._borrowers else self._storage.get(site, {})
            views.update(ce_views(self._copy.by_site.get(site, {}).values(), storage))
        self._views = views
        return views

    def _look_at(self, site: str) -> None:
        entries = self._copy.by_site.get(site, {}).values()
        own = storage_space(entries)
        if own:
            self._storage[site] = own
        else:
            self._storage.pop(site, None)
        if bound_storage(entries) <= own.keys():
            self._borrowers.discard(site)
        else:
            self._borrowers.add(site)


class Subscriber:
    """Follows the tree at the first information server that answers, and keeps `copy` and `view` up to date."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        connect: Connect,
        *,
        log: Logger,
        clock: Clock,
        object_classes: Sequence[str] = (),
        on_change: Callable[[list[Entry], list[Dn]], None] | None = None,
    ) -> None:
        """`on_change` is called after every message with what is new or different and what is gone."""
        self._endpoints = tuple(endpoints)
        self._connect = connect
        self._log = log
        self._clock = clock
        self._classes = tuple(object_classes)
        self._on_change = on_change
        self._was_lost = False
        self.copy = TreeCopy()
        self.view = GridView(self.copy)
        self.heard_at: float | None = None
        """Monotonic time of the last message; None before the first."""

    @property
    def age_s(self) -> float:
        """Seconds since the information server was last heard; infinite before the first time."""
        return float("inf") if self.heard_at is None else self._clock.monotonic() - self.heard_at

    @property
    def is_following(self) -> bool:
        """True while the copy is the tree of the server, give or take what is on its way."""
        return self.copy.is_whole and not self._was_lost

    async def run(self) -> None:
        """Follow until cancelled, moving on to the next server when one is lost."""
        backoff_s = 0.1
        turn = 0
        while True:
            endpoint = self._endpoints[turn % len(self._endpoints)] if self._endpoints else None
            turn += 1
            started = self._clock.monotonic()
            try:
                if endpoint is None:
                    raise Unavailable("NO_INFORMATION", "the settings name no information server to follow")
                await self._follow(await self._connect(endpoint))
                reason = "the stream ended"
            except GridError as error:
                reason = error.sentence
            except Exception as error:  # a plain grpc error, or a defect: this loop must go on either way
                reason = f"{type(error).__name__}: {error}"
            if not self._was_lost:
                self._was_lost = True
                self._log.warning("subscribe.lost", server=endpoint.address if endpoint else "", reason=reason)
            if self._clock.monotonic() - started > 2 * MAX_BACKOFF_S:
                backoff_s = 0.1
            await asyncio.sleep(backoff_s * random.uniform(0.7, 1.3))
            backoff_s = min(MAX_BACKOFF_S, backoff_s * 2)

    async def _follow(self, stub: Any) -> None:
        call = stub.Subscribe(pb.SubscribeRequest(object_classes=self._classes))
        silent = f"the information server was silent for {SILENCE_S:g} s; asking again"
        try:
            async for message in each_within(call, SILENCE_S, "INFORMATION_SILENT", silent):
                self.heard_at = self._clock.monotonic()
                if self._was_lost:
                    self._was_lost = False
                    self._log.info("subscribe.restored")
                changed, removed = self.copy.apply(message)
                if self._on_change is not None and (changed or removed):
                    self._on_change(changed, removed)
        finally:
            call.cancel()
