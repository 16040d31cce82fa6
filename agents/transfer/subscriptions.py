"""Subscriptions: every file of a directory, now and later, gets its copies, as transfers of the queue.

Told by the catalogue of what is new or has lost a replica; looks at everything when it begins to be told, and now and
then. What is to be done follows from catalogue and queue alone, so nothing but the subscription itself is kept.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from agents.transfer import store as rows
from agents.transfer.config import TransferOptions
from agents.transfer.core import Item, TransferCore
from agents.transfer.effects import Effects, NoProxy
from agents.transfer.model import MAX_SUBMITTED, Subscription, TransferState, element_of
from fabric.bell import Bell
from fabric.clock import to_us
from fabric.context import AgentContext
from fabric.errors import GridError, InvalidRequest
from fabric.store import Store

RETRY_FIRST_S, RETRY_MAX_S = 1.0, 60.0
MAX_FAILED = 1000
"""Files of a subscription that are remembered as failed until it is looked at them again."""


@dataclass(slots=True)
class Lag:
    """How far a subscription is behind. `queued` are copies, `cause` says why they are not there."""

    files: int
    queued: int
    lag_s: float
    cause: str


@dataclass(slots=True)
class _Kept:
    subscription: Subscription
    files: int = 0
    trouble: str = "it has not looked at its files yet"
    pause_s: float = RETRY_FIRST_S
    failed: dict[str, Item] = field(default_factory=dict)
    """By GUID."""
    task: asyncio.Task[None] | None = None


class Subscriptions:
    """All subscriptions of the agent."""

    def __init__(
        self, context: AgentContext, options: TransferOptions, store: Store, core: TransferCore, effects: Effects
    ) -> None:
        self._context, self._options, self._store = context, options, store
        self._core, self._effects = core, effects
        self._kept: dict[str, _Kept] = {}
        self._proxies = Bell()
        core.ended_listeners.append(self._ended)

    async def start(self) -> None:
        """Follow what was subscribed."""
        self._context.delegations.on_change(lambda owner, delegation_id: self._proxies.ring())
        for subscription in await self._store.read(rows.subscribed):
            self._follow(subscription)

    async def subscribe(self, wanted: Subscription) -> None:
        """Keep it and begin. Again: nothing changes. Raises InvalidRequest(SUBSCRIPTION_INVALID), GridError."""
        matching = self._core.elements.matching(wanted.at)
        if not 0 < wanted.copies <= len(matching):
            raise InvalidRequest(
                "SUBSCRIPTION_INVALID",
                f"{wanted.copies} copies cannot be at {wanted.at!r}, which means {len(matching)} storage elements here",
            )
        async with aclosing(self._effects.watch(wanted.owner, wanted.directory)) as changes:
            try:
                await anext(changes)  # the directory is there, and its owner may list it
            except NoProxy as error:
                raise error.error from None
        await self._store.write(lambda connection: rows.subscribe(connection, wanted, self._options.max_subscriptions))
        if wanted.subscription_id not in self._kept:
            self._follow(wanted)

    async def unsubscribe(self, subscription_id: str, owner: str | None) -> None:
        """Stop. What is queued already goes on. Again, or another's: nothing."""
        kept = self._kept.get(subscription_id)
        if kept is None or owner not in (None, kept.subscription.owner):
            return
        await self._store.write(lambda connection: rows.unsubscribe(connection, subscription_id))
        self._kept.pop(subscription_id, None)
        if kept.task is not None:
            kept.task.cancel()

    def lags(self, owner: str | None) -> list[tuple[Subscription, Lag]]:
        """An owner's subscriptions; None: everybody's."""
        queued: defaultdict[str, list[Item]] = defaultdict(list)
        for item in self._core.items.values():
            queued[item.job.job_id.partition("@")[0]].append(item)
        return [
            (kept.subscription, self._lag(kept, queued[subscription_id]))
            for subscription_id, kept in self._kept.items()
            if owner in (None, kept.subscription.owner)
        ]

    def _lag(self, kept: _Kept, queued: Sequence[Item]) -> Lag:
        late = [*queued, *kept.failed.values()]
        now_us = to_us(self._context.clock.now())
        lag_s = (now_us - min(item.since_us for item in late)) / 1e6 if late else 0.0
        reasons = Counter(item.transfer.sentence or item.transfer.state.value for item in late)
        cause = kept.trouble or (reasons.most_common(1)[0][0] if reasons else "")
        return Lag(kept.files, len(late), lag_s, cause)

    @property
    def owners(self) -> set[str]:
        """Of all of them."""
        return {kept.subscription.owner for kept in self._kept.values()}

    # -- following ---------------------------------------------------------------------------------------------------

    def _follow(self, subscription: Subscription) -> None:
        kept = self._kept[subscription.subscription_id] = _Kept(subscription)
        kept.task = self._context.spawn(self._keep(kept), f"subscription {subscription.subscription_id}")

    async def _keep(self, kept: _Kept) -> None:
        while True:
            heard = self._proxies.rung
            try:
                await self._listen(kept)
            except NoProxy as error:
                kept.trouble = error.error.sentence
                await self._proxies.wait(RETRY_MAX_S, heard)
            except GridError as error:
                kept.trouble = error.sentence
                await asyncio.sleep(kept.pause_s)
                kept.pause_s = min(2 * kept.pause_s, RETRY_MAX_S)

    async def _listen(self, kept: _Kept) -> None:
        subscription, clock = kept.subscription, self._context.clock
        async with aclosing(self._effects.watch(subscription.owner, subscription.directory)) as changes:
            look_at_s = 0.0
            async for guids, missed in changes:
                if missed or clock.monotonic() >= look_at_s:
                    look_at_s = clock.monotonic() + self._options.look_again_s
                    await self._look(kept)
                elif guids:
                    found, _ = await self._effects.lookup(subscription.owner, [f"guid:{guid}" for guid in guids])
                    await self._want(kept, [e for e in found if e.lfn.startswith(subscription.directory + "/")])

    async def _look(self, kept: _Kept) -> None:
        """At every file."""
        files = 0
        kept.failed.clear()
        async with aclosing(self._effects.below(kept.subscription.owner, kept.subscription.directory)) as pages:
            async for entries in pages:
                files += len(entries)
                await self._want(kept, entries)
        kept.files, kept.trouble, kept.pause_s = files, "", RETRY_FIRST_S

    async def _want(self, kept: _Kept, entries: Sequence[Any]) -> None:
        """Queue the copies that are missing, each where least is waiting."""
        core, subscription = self._core, kept.subscription
        matching = core.elements.matching(subscription.at)
        waiting = Counter({element: core.links.load_to(element) for element in matching})
        wanted: defaultdict[str, list[str]] = defaultdict(list)
        for entry in entries:
            at = {element_of(replica.surl) for replica in entry.replicas}
            free = [one for one in matching if one not in at and (entry.guid, one) not in core.copies]
            missing = subscription.copies - (len(matching) - len(free))
            if not at or missing <= 0:
                continue
            for element in sorted(free, key=lambda one: waiting[one])[:missing]:
                waiting[element] += 1
                wanted[element].append(f"guid:{entry.guid}")
        now_us = to_us(self._context.clock.now())
        for element, names in wanted.items():
            for start in range(0, len(names), MAX_SUBMITTED):
                job = subscription.job(element, now_us)
                await core.submit(job, names[start : start + MAX_SUBMITTED], once_more=True)

    def _ended(self, item: Item) -> None:
        kept = self._kept.get(item.job.job_id.partition("@")[0])
        if kept is None:
            return
        if item.transfer.state is TransferState.FINISHED:
            kept.failed.pop(item.guid, None)
        elif len(kept.failed) < MAX_FAILED:
            kept.failed[item.guid] = item
