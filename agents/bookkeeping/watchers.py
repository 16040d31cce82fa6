"""Who watches which jobs: each watcher gets the newest record of each of its jobs, put together while it is busy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from agents.bookkeeping.model import JobRecord


class Watcher:
    """One watch stream. What waits for it is bounded by the number of jobs that it watches."""

    def __init__(self, keys: frozenset[str]) -> None:
        self.keys = keys
        self.pending: dict[str, JobRecord] = {}
        self.changed = asyncio.Event()

    def put(self, record: JobRecord) -> None:
        """The newest record replaces an older one that was not taken yet."""
        self.pending[record.job_id] = record
        self.changed.set()

    def take(self) -> list[JobRecord]:
        """Everything that changed since the last take."""
        found = list(self.pending.values())
        self.pending.clear()
        self.changed.clear()
        return found


class Watchers:
    """All watch streams of this agent."""

    def __init__(self) -> None:
        self._by_key: dict[str, set[Watcher]] = {}
        self.count = 0

    def add(self, keys: Iterable[str]) -> Watcher:
        """Watch these jobs, and the children of those that are parents."""
        watcher = Watcher(frozenset(keys))
        for key in watcher.keys:
            self._by_key.setdefault(key, set()).add(watcher)
        self.count += 1
        return watcher

    def remove(self, watcher: Watcher) -> None:
        self.count -= 1
        for key in watcher.keys:
            watching = self._by_key[key]
            watching.discard(watcher)
            if not watching:
                del self._by_key[key]

    def publish(self, records: Iterable[JobRecord]) -> None:
        """Hand changed records to those who watch them."""
        if not self._by_key:
            return
        for record in records:
            for key in (record.job_id, record.parent):
                if key and not (record.is_parent and key == record.job_id):
                    for watcher in self._by_key.get(key, ()):
                        watcher.put(record)
