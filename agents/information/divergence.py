"""How far this top server is from another one: which entries differ, and for how long.

Sites publish to every top server, each on a stream of its own, so a change arrives at two of them a moment apart. What
differs for longer than that is divergence: one of the two does not hear a site, or lost something.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from agents.information.service import InformationService
from fabric.context import AgentContext
from fabric.information import Subscriber
from fabric.information_publisher import connector
from fabric.information_tree import LOCAL
from fabric.ldap import Dn, Entry
from fabric.settings import Endpoint
from fabric.text import counted

LOOK_S = 1.0
"""How often what is published is brought up to date, at most."""
OWN_ATTRIBUTES = frozenset(("GridFabricSiteSince", "GridFabricSiteLastSeen", "GridFabricSiteReason"))
"""When and how a server itself saw something: never equal, and no divergence."""

Key = tuple[str, ...]


class TopState(enum.Enum):
    """How two top servers stand."""

    CURRENT = "current"
    """They show the same."""
    DIVERGED = "diverged"
    """Entries differ for longer than a change takes."""
    UNREACHABLE = "unreachable"
    """The other is not heard, so nothing is known."""


@dataclass(frozen=True)
class Reading:
    """What the meter shows."""

    state: TopState
    differing: int = 0
    """Entries that differ for longer than a change takes."""
    since: datetime | None = None
    """Of the oldest of them."""


class DivergenceMeter:
    """Compares entries by name and content as they change on either side. Pure."""

    def __init__(self, settle_s: float) -> None:
        """`settle_s`: how long a change may be at one server only."""
        self._settle = timedelta(seconds=settle_s)
        self._differing: dict[Key, datetime] = {}

    def compare(self, dn: Dn, mine: Entry | None, other: Entry | None, now: datetime) -> None:
        """One name, as it is on both sides now. What is not below a site says nothing of the grid and is left out."""
        key = dn.key
        if len(key) <= len(LOCAL) or key[-len(LOCAL) :] != LOCAL.key:
            return
        if _content(mine) == _content(other):
            self._differing.pop(key, None)
        else:
            self._differing.setdefault(key, now)

    def read(self, now: datetime) -> Reading:
        """What stands now."""
        old = [since for since in self._differing.values() if now - since > self._settle]
        return Reading(TopState.DIVERGED, len(old), min(old)) if old else Reading(TopState.CURRENT)


def _content(entry: Entry | None) -> dict[str, tuple[str, ...]] | None:
    if entry is None:
        return None
    return {name: values for name, values in entry.attributes.items() if name not in OWN_ATTRIBUTES}


class TopWatcher:
    """Follows another top server and publishes what the meter reads (`GridFabricTopID=<its name>,o=grid`).

    Divergence degrades this agent; a top server that is not heard does not, as that is its own defect.
    """

    def __init__(self, context: AgentContext, service: InformationService, other: Endpoint, settle_s: float) -> None:
        self.other = other
        self._context = context
        self._service = service
        self._settle_s = settle_s
        self._meter = DivergenceMeter(settle_s)
        self._look_s = min(LOOK_S, settle_s)
        self._followed = Subscriber(
            [other], connector(context), log=context.log, clock=context.clock, on_change=self._other_changed
        )

    async def run(self) -> None:
        """Compare until cancelled."""
        own = self._service.feed.open(())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._followed.run())
                while True:
                    change = await own.next(self._look_s)
                    self._look_at((entry.dn for entry in change.changed), change.removed)
                    self._tell()
                    if change:
                        await asyncio.sleep(self._look_s)
        finally:
            self._service.feed.close(own)

    def reading(self) -> Reading:
        """What stands now."""
        if not self._followed.is_following or self._followed.age_s > self._settle_s:
            return Reading(TopState.UNREACHABLE)
        return self._meter.read(self._context.clock.now())

    def _other_changed(self, changed: list[Entry], removed: list[Dn]) -> None:
        self._look_at((entry.dn for entry in changed), removed)

    def _look_at(self, changed: Iterable[Dn], removed: Iterable[Dn]) -> None:
        now, tree, copy = self._context.clock.now(), self._service.machine.tree, self._followed.copy
        for dns in (changed, removed):
            for dn in dns:
                self._meter.compare(dn, tree.get(dn), copy.get(dn), now)

    def _tell(self) -> None:
        reading = self.reading()
        self._service.publish_top(self.other.name, reading.state.value, reading.differing, reading.since)
        if reading.state is TopState.DIVERGED:
            self._context.problem(
                f"divergence.{self.other.name}",
                f"{counted(reading.differing, 'entry')} not as at {self.other.name}: one of the two does not hear "
                "a site, or both have different old news of it; compare: grid gstat",
            )
        else:
            self._context.solved(f"divergence.{self.other.name}")
