"""Hands changes of the tree to those who follow it: a slow reader gets the latest of each entry, not every step."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from agents.information.model import Change
from fabric.errors import Exhausted
from fabric.ldap import Dn, Entry


class Subscription:
    """What one reader has not been given yet: by name, the entry as it is now or its name if it is gone.

    Never more than the tree itself, however slow the reader.
    """

    def __init__(self, classes: frozenset[str], sequence: int) -> None:
        self.sequence = sequence
        self._classes = classes
        self._pending: dict[tuple[str, ...], Entry | Dn] = {}
        self._wake = asyncio.Event()

    def wants(self, entry: Entry) -> bool:
        """True if the reader asked for entries of this class."""
        if not self._classes:
            return True
        return not self._classes.isdisjoint(map(str.lower, entry.attributes.get("objectClass", ())))

    def note(self, change: Change, sequence: int) -> None:
        """Remember a change for the reader."""
        self.sequence = sequence
        for dn in change.removed:
            self._pending.pop(dn.key, None)
            self._pending[dn.key] = dn
        for entry in change.changed:
            if self.wants(entry):
                self._pending.pop(entry.dn.key, None)
                self._pending[entry.dn.key] = entry
        if self._pending:
            self._wake.set()

    async def next(self, timeout_s: float) -> Change:
        """What is new; an empty change if nothing was within `timeout_s`."""
        if not self._pending:
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                return Change()
        values, self._pending = list(self._pending.values()), {}
        return Change(
            tuple(value for value in values if isinstance(value, Entry)),
            tuple(value for value in values if isinstance(value, Dn)),
        )


class Feed:
    """All subscriptions, and the number of the last change."""

    def __init__(self, max_subscribers: int) -> None:
        self.sequence = 0
        self._max_subscribers = max_subscribers
        self._subscriptions: set[Subscription] = set()

    def __len__(self) -> int:
        return len(self._subscriptions)

    def publish(self, change: Change) -> None:
        """Give a change to every subscription."""
        if not change:
            return
        self.sequence += 1
        for subscription in self._subscriptions:
            subscription.note(change, self.sequence)

    def open(self, classes: Iterable[str]) -> Subscription:
        """Start following from now. Raises Exhausted."""
        if len(self._subscriptions) >= self._max_subscribers:
            raise Exhausted(
                "TOO_MANY_SUBSCRIBERS",
                f"{self._max_subscribers} services follow this information server already; use LDAP, or another server",
                retry_after_s=10,
            )
        subscription = Subscription(frozenset(name.lower() for name in classes), self.sequence)
        self._subscriptions.add(subscription)
        return subscription

    def close(self, subscription: Subscription) -> None:
        """The reader is gone."""
        self._subscriptions.discard(subscription)
