"""Around the pure machine: every change it makes goes to LDAP (the tree itself), to subscribers and to the top."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Generator
from datetime import datetime

from agents.information import wire
from agents.information.feed import Feed
from agents.information.machine import InformationMachine, site_dn
from agents.information.model import Change, Outcome, Provenance, Publication
from agents.information.turns import Turns
from fabric.clock import Clock
from fabric.glue13 import site_of
from fabric.information import Publisher
from fabric.ldap import Dn, Entry
from fabric.logs import Logger

STEP_ENTRIES = 16
"""Taken before others may have a turn: a millisecond if they are changes, a few if they are new."""


class InformationService:
    """One information server's state and who is told about it."""

    def __init__(self, machine: InformationMachine, feed: Feed, *, clock: Clock, log: Logger) -> None:
        self.machine = machine
        self.feed = feed
        self.above: dict[str, Publisher] = {}
        """Towards the next level, by site or region: a site has one, a region one for each of its own, a top none."""
        self._whole: dict[str, asyncio.Event] = {}
        """Of a region: set once a whole snapshot of the site or region has come."""
        self._clock = clock
        self._log = log
        self._turns = Turns()
        self._streams = itertools.count(1)
        self._depth = len(site_dn(machine.site))

    def open_stream(self, name: str, site: str) -> int:
        """A producer connected; returns its stream's number. Raises Exhausted."""
        stream = next(self._streams)
        self._tell(self.machine.open_stream(name, site, stream, self._clock.now()))
        return stream

    def is_current_stream(self, name: str, stream: int) -> bool:
        """False once the producer has opened a newer one."""
        producer = self.machine.producers.get(name)
        return producer is not None and producer.stream == stream

    async def publish(self, name: str, stream: int, publication: Publication) -> Outcome:
        """One message of a producer, without `change`, which everybody was told of. Raises Exhausted."""
        outcome = await self._turns.run(self._take(name, stream, publication))
        for rejection in outcome.rejected[:10]:
            self._log.warning("entry.rejected", producer=name, dn=rejection.dn, reason=rejection.reason)
        if len(outcome.rejected) > 10:
            self._log.warning("entry.rejected_more", producer=name, count=len(outcome.rejected) - 10)
        return outcome

    def _take(self, name: str, stream: int, publication: Publication) -> Generator[None, None, Outcome]:
        taken: list[Outcome] = []
        for part in publication.parts(STEP_ENTRIES):
            if taken:
                yield
            outcome = self.machine.publish(name, stream, part, self._clock.now())
            self._tell(outcome.change)
            if outcome.became is not None:
                self._log.info("producer." + outcome.became.value, producer=name)
            taken.append(outcome)
            is_sign = not (part.snapshot or part.changed or part.removed or outcome.resend_snapshot)
            if is_sign and name in self._whole:
                self._whole[name].set()
        return Outcome(
            publication.sequence,
            any(outcome.resend_snapshot for outcome in taken),
            rejected=tuple(rejection for outcome in taken for rejection in outcome.rejected),
            unknown=tuple(dn for outcome in taken for dn in outcome.unknown),
        )

    def publish_own(self, name: str, make: Callable[[datetime], list[Entry]]) -> None:
        """This server's own entries."""
        now = self._clock.now()
        self._tell(self.machine.publish_own(name, make(now), now))

    def publish_top(self, name: str, state: str, differing: int, since: datetime | None) -> None:
        """How this top server stands with another one."""
        self._tell(self.machine.publish_top(name, state, differing, since))

    def tick(self) -> None:
        """Let leases and graces end."""
        change, moved = self.machine.tick(self._clock.now())
        self._tell(change)
        for producer in moved:
            self._log.warning("producer." + producer.state.value, producer=producer.name, entries=len(producer.entries))

    def _tell(self, change: Change) -> None:
        if not change:
            return
        self.feed.publish(change)
        if not self.above:
            return
        for dn in change.removed:
            relative, publisher = self._relative(dn), self.above.get(site_of(dn))
            if publisher is not None and len(relative):
                publisher.remove(relative)
        for entry in change.changed:
            name = site_of(entry.dn) or entry.first("GridFabricRegionID")
            publisher = self.above.get(name)
            if publisher is None:
                continue
            relative = self._relative(entry.dn)
            if len(relative):
                made = entry.operational
                made_by, at = (made.made_by, made.made_at_us) if isinstance(made, Provenance) else ("", 0)
                publisher.put(Entry(relative, entry.attributes), made_by, at)
            elif (producer := self.machine.producers.get(name)) is not None and self.machine.level != "site":
                publisher.say(wire.status_to_wire(producer.status))

    def relay(self, name: str, publisher: Publisher, patience_s: float) -> Coroutine[None, None, None]:
        """Of a region: publish this site or region at the next level, until cancelled.

        A region that starts anew takes nothing away there: it says nothing of a site before it has all of it, or
        before what is known there of the site from before has gone anyway (`patience_s`).
        """
        whole = self._whole[name] = asyncio.Event()
        self.above[name] = publisher
        publisher.say(wire.status_to_wire(self.machine.producers[name].status))

        async def run() -> None:
            try:
                async with asyncio.timeout(patience_s):
                    await whole.wait()
            except TimeoutError:
                self._log.warning("region.awaits", producer=name)
            await publisher.run()

        return run()

    def _relative(self, dn: Dn) -> Dn:
        """A name below the site's entry, without the site's part; the empty name for all others."""
        return dn.relative_to(self._depth)
