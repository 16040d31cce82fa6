"""Which file goes next, over all links. Pure.

A link is a pair of storage elements. On a link VOs have shares and files have priorities (`fabric/shares.py`). Between
links the one with the smallest part of its places taken goes first, so a link with a long queue delays no other one.
Small files of one owner go together: a batch takes one place, and counts for its VO as the files that it has.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from agents.transfer.optimiser import Look, Optimiser, TokenBucket
from fabric.shares import ShareQueue

MAX_BATCH, MAX_BATCH_BYTES = 256, 16 << 20
"""Files of a batch: what a storage element copies by one call, and so many bytes that others need not wait long."""


class Waiting(NamedTuple):
    """A file and the link that it waits on. `together`: those with the same word may share a place; empty: alone."""

    source: str
    destination: str
    vo: str
    size_bytes: int
    priority: int = 0
    together: str = ""


class Link:
    """What waits and runs between two storage elements."""

    def __init__(
        self, source: str, destination: str, shares: Mapping[str, float], max_limit: int, cap: TokenBucket | None
    ) -> None:
        self.source, self.destination, self.cap = source, destination, cap
        self.waiting = ShareQueue(shares)
        self.files: dict[str, Waiting] = {}
        """Those that wait, by key."""
        self.optimiser = Optimiser(max_limit)
        self.active = 0
        self.seen = Look()
        self.finished = 0
        self.failed = 0

    def look(self, interval_s: float) -> None:
        """Let the optimiser decide."""
        self.optimiser.look(self.seen, interval_s)
        self.seen = Look()


class Links:
    """All links with work, or with work since the start. A file waits on one link at a time, by a key."""

    def __init__(
        self,
        shares: Mapping[str, float],
        *,
        max_active: int,
        max_per_element: int,
        max_per_link: int,
        cap_of: Callable[[str, str], float],
    ) -> None:
        """`cap_of(source, destination)`: bytes a second, 0 for none."""
        self._shares, self._max_per_link, self._cap_of = shares, max_per_link, cap_of
        self._max_active, self._max_per_element = max_active, max_per_element
        self._links: dict[tuple[str, str], Link] = {}
        self._where: dict[str, Link] = {}
        self._later: list[tuple[float, str, Waiting]] = []
        self._paused: set[str] = set()
        self._busy: Counter[str] = Counter()
        self.active = 0

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links.values())

    def link(self, source: str, destination: str) -> Link:
        """The link, made at its first use."""
        found = self._links.get((source, destination))
        if found is None:
            cap = self._cap_of(source, destination)
            bucket = TokenBucket(cap) if cap else None
            found = self._links[source, destination] = Link(
                source, destination, self._shares, self._max_per_link, bucket
            )
        return found

    def load(self, source: str, destination: str) -> int:
        """Files that wait or run there."""
        found = self._links.get((source, destination))
        return len(found.waiting) + found.active if found is not None else 0

    def load_to(self, destination: str) -> int:
        """Files that wait or run to there."""
        return sum(len(link.waiting) + link.active for link in self if link.destination == destination)

    def add(self, key: str, file: Waiting, not_before_s: float = 0.0) -> None:
        """A file waits; until `not_before_s` it is not its turn."""
        if not_before_s:
            self._paused.add(key)
            heapq.heappush(self._later, (not_before_s, key, file))
            return
        link = self.link(file.source, file.destination)
        link.waiting.add(key, file.vo, file.priority, queue=file.together)
        link.files[key] = file
        self._where[key] = link

    def discard(self, key: str) -> None:
        """It waits no more; nothing if it did not."""
        self._paused.discard(key)
        link = self._where.pop(key, None)
        if link is not None:
            link.waiting.discard(key)
            del link.files[key]

    def next_s(self, now_s: float, most_s: float) -> float:
        """Seconds until something changes by itself, at most `most_s`."""
        found = most_s
        if self._later:
            found = min(found, self._later[0][0] - now_s)
        for link in self._links.values():
            if link.cap is not None and link.waiting and self._has_room(link):
                found = min(found, link.cap.wait_s(now_s))
        return max(found, 0.0)

    def take(self, now_s: float) -> Iterator[list[str]]:
        """The files whose turn it is now, those together that share a place, which is taken until `done`."""
        while self._later and self._later[0][0] <= now_s:
            _, key, file = heapq.heappop(self._later)
            if key in self._paused:
                self._paused.discard(key)
                self.add(key, file)
        while self.active < self._max_active:
            ready = [
                link
                for link in self._links.values()
                if link.waiting and self._has_room(link) and (link.cap is None or not link.cap.wait_s(now_s))
            ]
            if not ready:
                break
            link = min(ready, key=lambda one: one.active / one.optimiser.limit)
            self._count(link, 1)
            yield self._take_batch(link, now_s)
        for link in self._links.values():
            if link.waiting and link.active >= link.optimiser.limit:
                link.seen.waited = True

    def _take_batch(self, link: Link, now_s: float) -> list[str]:
        batch: list[str] = []
        size_bytes = 0
        key = link.waiting.take()
        while key is not None:
            del self._where[key]
            file = link.files.pop(key)
            batch.append(key)
            size_bytes += file.size_bytes
            if link.cap is not None:
                link.cap.take(file.size_bytes)
            if (
                not file.together
                or len(batch) == MAX_BATCH
                or size_bytes >= MAX_BATCH_BYTES
                or (link.cap is not None and link.cap.wait_s(now_s))
            ):
                break
            key = link.waiting.take_along(file.vo, file.together)
        return batch

    def done(self, source: str, destination: str) -> Link:
        """A place that was taken is free."""
        link = self.link(source, destination)
        self._count(link, -1)
        return link

    def _count(self, link: Link, by: int) -> None:
        link.active += by
        self.active += by
        self._busy[link.source] += by
        self._busy[link.destination] += by

    def _has_room(self, link: Link) -> bool:
        return link.active < link.optimiser.limit and all(
            self._busy[element] < self._max_per_element for element in (link.source, link.destination)
        )
