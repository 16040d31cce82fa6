"""What the broker counts in memory: waiting jobs per cluster, its own jobs per CE, and how fast they end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from agents.broker.matching import CeLoad
from agents.broker.model import ENDED, ComputingElement, JobState
from agents.broker.store import Counts
from agents.broker.tables import Change

_PENDING = frozenset({JobState.READY, JobState.SCHEDULED})
RATE_TIME_S = 2.0
"""Over how long the speed of a CE is averaged."""


class Board:
    """Counts that follow every committed change. Order does not matter: only sums are kept."""

    def __init__(self, counts: Counts | None = None) -> None:
        self.waiting: dict[int, int] = dict(counts.waiting) if counts else {}
        self.loads: dict[str, CeLoad] = {}
        self.links: dict[tuple[str, str], int] = {}
        """Unfinished jobs at a gatekeeper, by (owner, gatekeeper)."""
        self.owners: dict[str, int] = dict(counts.owners) if counts else {}
        """Unfinished jobs of each owner."""
        self.refused = 0
        """Events that did not belong to the state of their job."""
        self.ended = 0
        self._ended_at: dict[str, float] = {}
        for (owner, ce, gatekeeper, state), count in (counts.at_ce if counts else {}).items():
            self._place(owner, ce, gatekeeper, state, count, 0)

    def load(self, ce: str) -> CeLoad:
        found = self.loads.get(ce)
        if found is None:
            found = self.loads[ce] = CeLoad()
        return found

    def _place(self, owner: str, ce: str, gatekeeper: str, state: JobState, count: int, at_us: int) -> None:
        load = self.load(ce)
        if state in _PENDING:
            load.pending += count
            if state is JobState.SCHEDULED:
                load.moved(count, 0, at_us)
        elif state is JobState.RUNNING:
            load.moved(0, count, at_us)
        else:
            return
        key = (owner, gatekeeper)
        left = self.links.get(key, 0) + count
        if left:
            self.links[key] = left
        else:
            self.links.pop(key, None)

    def apply(self, changes: Iterable[Change], now_s: float) -> bool:
        """Count committed changes; ``now_s`` is monotonic. True if there is something to match or more room."""
        look_again = False
        ended: dict[str, int] = {}
        for change in changes:
            before, after = change.before, change.after
            self.refused += change.refused
            if before is not None and before.state is after.state and before.ce == after.ce:
                continue
            if before is None:
                self._own(change.owner, 1)
            elif after.state in ENDED and before.state not in ENDED:
                self._own(change.owner, -1)
            if before is not None:
                if before.state is JobState.WAITING:
                    self._wait(change.before_cluster, -1)
                elif before.ce:
                    self._place(change.owner, before.ce, before.gatekeeper, before.state, -1, change.at_us)
            if after.state is JobState.WAITING:
                self._wait(change.after_cluster, 1)
                look_again = True
            elif after.ce:
                self._place(change.owner, after.ce, after.gatekeeper, after.state, 1, change.at_us)
            if before is not None and before.ce and after.state not in _PENDING:
                look_again = True
                if after.state is not JobState.RUNNING:
                    ended[before.ce] = ended.get(before.ce, 0) + 1
                    self.ended += 1
        for ce, count in ended.items():
            self._count_ended(ce, count, now_s)
        return look_again

    def _own(self, owner: str, count: int) -> None:
        left = self.owners.get(owner, 0) + count
        if left:
            self.owners[owner] = left
        else:
            self.owners.pop(owner, None)

    def _wait(self, cluster: int, count: int) -> None:
        left = self.waiting.get(cluster, 0) + count
        if left:
            self.waiting[cluster] = left
        else:
            self.waiting.pop(cluster, None)

    def _count_ended(self, ce: str, count: int, now_s: float) -> None:
        load = self.load(ce)
        load.ended_per_s = self.rate(ce, now_s) + count / RATE_TIME_S
        self._ended_at[ce] = now_s

    def rate(self, ce: str, now_s: float) -> float:
        """Jobs per second that have been ending at a CE, fading when none does."""
        load = self.load(ce)
        passed = now_s - self._ended_at.get(ce, now_s)
        return load.ended_per_s * math.exp(-passed / RATE_TIME_S)

    def reported(self, ces: Mapping[str, ComputingElement], before: Mapping[str, ComputingElement]) -> None:
        """The CEs as they are now and were before: what a new report says includes our jobs of its moment."""
        for key, ce in ces.items():
            old = before.get(key)
            if old is None or _counted(old) != _counted(ce):
                self.load(key).reported(ce.produced_at_us)


def _counted(ce: ComputingElement) -> tuple[int, ...]:
    return (ce.produced_at_us, ce.free_slots, ce.running, ce.waiting)
