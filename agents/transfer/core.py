"""The queue at work: takes files in, gives them their turn, and keeps every step before the next is made."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from agents.transfer import machine, policy
from agents.transfer import store as rows
from agents.transfer.config import TransferOptions
from agents.transfer.effects import NO_PROXY, SMALL_BYTES, Effects, Entry, NoProxy, Prepared
from agents.transfer.elements import Elements
from agents.transfer.links import Link, Links, Waiting
from agents.transfer.machine import Canceled, Chosen, Cleaned, Copied, Event, Failed, Moving, Present, Registered, Waits
from agents.transfer.model import Job, TransferState, element_of, is_at, is_foreign
from agents.transfer.policy import Action, Pauses, Side
from fabric import failpoints
from fabric.bell import Bell
from fabric.clock import to_us
from fabric.context import AgentContext
from fabric.errors import Exhausted, GridError, InvalidRequest, NotFound, Refused
from fabric.ids import UNIQUE_ID_LENGTH
from fabric.store import Store

PROGRESS_S = 1.0
"""How often progress is kept."""
FORGET_S = 3600.0
CLEAN_FIRST_S, CLEAN_MAX_S = 1.0, 600.0
"""Pauses between attempts to remove what nobody wants."""


@dataclass(slots=True)
class Item:
    """A file that has not ended, or has left something behind."""

    number: int
    job: Job
    lfn: str
    guid: str
    size_bytes: int
    transfer: machine.Transfer
    sources: tuple[str, ...]
    """Where there was a replica when it was last looked."""
    since_us: int
    """When it was submitted."""
    moved_bytes: int = 0
    kept_bytes: int = 0
    """Of these, what the store knows of."""
    ended_at_us: int = 0
    task: asyncio.Task[None] | None = None
    """Its turn, while that can be ended."""
    wanted_end: Canceled | None = None
    cleanings: int = 0

    @property
    def key(self) -> str:
        """Its name in the queue."""
        return str(self.number)

    @property
    def put_id(self) -> str:
        """Its name at the destination, the same at every attempt."""
        return f"transfer-{self.job.job_id[:UNIQUE_ID_LENGTH]}-{self.number}"

    @property
    def copy(self) -> tuple[str, str]:
        """What it makes: two of the same do not run at once."""
        return self.guid, self.job.destination


class _Turn:
    """The files of a batch that are not through with their turn, and the pause of those that it ends for."""

    def __init__(self, batch: Sequence[Item]) -> None:
        self.items = {item.number: item for item in batch}
        self.pause_s = 0.0


class TransferCore:
    """All transfers of the agent."""

    def __init__(
        self, context: AgentContext, options: TransferOptions, store: Store, elements: Elements, effects: Effects
    ) -> None:
        self._context, self._options, self._store, self.elements = context, options, store, elements
        self._pauses = Pauses(options.retry_first_s, options.retry_max_s, options.max_attempts)
        self._effects = effects
        self.links = Links(
            options.vo_shares,
            max_active=options.max_active,
            max_per_element=options.max_per_element,
            max_per_link=options.max_per_link,
            cap_of=elements.cap,
        )
        self.items: dict[int, Item] = {}
        """Those that have not ended."""
        self.copies: Counter[tuple[str, str]] = Counter()
        """Of these, by what they make."""
        self.owners: Counter[str] = Counter()
        """Of them, how many each has."""
        self._held: dict[str, list[Item]] = defaultdict(list)
        """By owner: those that wait for a proxy."""
        self._running: dict[tuple[str, str], list[Item]] = {}
        """By what they make: others that wait for the one that makes it now."""
        self._dirty: list[tuple[float, int, Item]] = []
        self.unwanted: set[int] = set()
        """Files that have ended and may have left a copy."""
        self._bell, self._cleaning = Bell(), Bell()
        self.finished = 0
        self.ended_listeners: list[Callable[[Item], None]] = []

    async def start(self) -> None:
        """Take up what the store has."""
        known, found = await self._store.read(rows.unfinished)
        interrupted: list[tuple[int, machine.Transfer, int, int]] = []
        for file in found:
            item = Item(
                file.number, known[file.job_id], file.lfn, file.guid, file.size_bytes, file.transfer,
                (file.transfer.source,), file.submitted_at_us, ended_at_us=file.ended_at_us,
            )  # fmt: skip
            if item.transfer.ended:
                self._clean_later(item, 0.0)
                continue
            after = machine.step(item.transfer, Waits("", ""), self._pauses).transfer
            if after != item.transfer:
                item.transfer = after
                interrupted.append((item.number, after, 0, 0))
            self._enter(item)
        await self._store.write(lambda connection: rows.update(connection, interrupted))
        delegations = self._context.delegations
        delegations.on_change(self._delegation_changed)
        delegations.jobs_of = lambda subject: sorted(
            {item.job.job_id for item in self.items.values() if item.job.owner == subject}
        )
        delegations.stop_jobs = self.stop_jobs
        self._context.spawn(self._run(), "transfers")
        self._context.spawn(self._keep_progress(), "progress of transfers")
        self._context.spawn(self._tune(), "optimiser of links")
        self._context.spawn(self._clean(), "removal of unwanted copies")
        self._context.spawn(self._forget(), "removal of old transfers")

    # -- taking in ---------------------------------------------------------------------------------------------------

    def require_room(self, owner: str, files: int) -> None:
        """Raises Exhausted(QUEUE_FULL)."""
        options = self._options
        if len(self.items) + files > options.max_queued or self.owners[owner] + files > options.max_queued_per_owner:
            raise Exhausted(
                "QUEUE_FULL",
                f"{len(self.items)} files wait here, {self.owners[owner]} of them yours, and at most "
                f"{options.max_queued} may, {options.max_queued_per_owner} of one owner; submit the rest later",
                retry_after_s=60,
            )

    async def submit(
        self, job: Job, names: Sequence[str], *, once_more: bool = False
    ) -> tuple[int, dict[str, GridError]]:
        """Queue files by name. How many the job has now that were named, and why the others cannot be copied.
        `once_more`: also those that it has had."""
        self.require_room(job.owner, len(names))
        entries, unknown = await self._effects.lookup(job.owner, names)
        refused: dict[str, GridError] = {
            name: NotFound("LFN_NOT_FOUND", f"the catalogue has no file {name}", lfn=name) for name in unknown
        }
        new: list[tuple[rows.NewFile, tuple[str, ...]]] = []
        for entry in entries:
            there = _there(entry, job)
            sources = _sources(entry, job)
            if entry.content is None:
                refused[entry.lfn] = InvalidRequest("IS_DIRECTORY", f"{entry.lfn} is a directory; name its files")
                continue
            if there:
                transfer = machine.step(machine.Transfer(), Present(there), self._pauses).transfer
            elif not sources:
                where = f" at {self.elements.name(job.source)}" if job.source else ""
                refused[entry.lfn] = NotFound("NO_REPLICA", f"{entry.lfn} has no replica{where} to copy from")
                continue
            else:
                transfer = machine.Transfer(source=sources[0])  # chosen when it is queued
            new.append((rows.NewFile(entry.lfn, entry.guid, entry.content.size_bytes, transfer), sources))

        def keep(connection: sa.Connection) -> list[tuple[int, rows.NewFile]]:
            if once_more:
                rows.again(connection, job.job_id, [file.guid for file, _ in new])
            return rows.add(connection, job, [file for file, _ in new])

        kept = await self._store.write(keep)
        failpoints.reached("transfer.submit.committed")
        sources_of = {file.guid: sources for file, sources in new}
        for number, file in kept:
            if not file.transfer.ended:
                self._enter(
                    Item(
                        number,
                        job,
                        file.lfn,
                        file.guid,
                        file.size_bytes,
                        file.transfer,
                        sources_of[file.guid],
                        job.submitted_at_us,
                    )
                )
        self._bell.ring()
        return len(new), refused

    def _enter(self, item: Item) -> None:
        self.items[item.number] = item
        self.owners[item.job.owner] += 1
        self.copies[item.copy] += 1
        self._queue(item)

    def _queue(self, item: Item, pause_s: float = 0.0) -> None:
        """It waits for room, first on the best link."""
        if not item.transfer.surl:
            source = self._best(item.sources, item.job.destination, item.transfer.avoid)
            item.transfer = item.transfer._replace(source=source)
        not_before_s = self._context.clock.monotonic() + pause_s if pause_s else 0.0
        job = item.job
        alone = item.size_bytes > SMALL_BYTES or is_foreign(item.transfer.source) or is_foreign(job.destination)
        together = "" if alone else job.owner
        waiting = Waiting(item.transfer.source, job.destination, job.vo, item.size_bytes, job.priority, together)
        self.links.add(item.key, waiting, not_before_s)
        self._bell.ring()

    def _best(self, sources: Sequence[str], destination: str, avoid: Sequence[str]) -> str:
        """The source of this grid with the least to do; where it failed, the one where that was longest ago."""
        ages = {source: len(avoid) - place for place, source in enumerate(avoid)}
        return min(sources, key=lambda one: (ages.get(one, 0), is_foreign(one), self.links.load(one, destination)))

    # -- ending ------------------------------------------------------------------------------------------------------

    async def cancel(self, job: Job, event: Canceled) -> int:
        """End what has not ended. How many files that were."""
        return await self._cancel_all([item for item in self.items.values() if item.job.job_id == job.job_id], event)

    async def stop_jobs(self, owner: str, reason: str, sentence: str) -> int:
        """End everything of an owner whose rights were taken away."""
        event = Canceled(reason, sentence)
        return await self._cancel_all([item for item in self.items.values() if item.job.owner == owner], event)

    async def _cancel_all(self, items: Iterable[Item], event: Canceled) -> int:
        waiting: list[Item] = []
        tasks: set[asyncio.Task[None]] = set()
        ended = 0
        for item in items:
            if item.transfer.surl:
                continue  # it is being registered
            if item.task is None:
                waiting.append(item)
            else:
                item.wanted_end = event
                tasks.add(item.task)
                ended += 1
        for task in tasks:
            task.cancel()
        await self._apply_all([(item, event) for item in waiting])
        if tasks:
            await asyncio.wait(tasks)
        return len(waiting) + ended

    # -- steps -------------------------------------------------------------------------------------------------------

    async def _apply(self, item: Item, event: Event) -> float:
        """Make a step, keep it, then do what follows; the pause before the next attempt."""
        return (await self._apply_all([(item, event)]))[0]

    async def _apply_all(self, events: Sequence[tuple[Item, Event]]) -> list[float]:
        now_us = to_us(self._context.clock.now())
        pauses: list[float] = []
        changed: list[Item] = []
        ended: list[Item] = []
        for item, event in events:
            before = item.transfer
            after, pause_s = machine.step(before, event, self._pauses)
            pauses.append(pause_s)
            if after == before:
                continue
            item.transfer = after
            if after.ended and not before.ended:
                item.ended_at_us = now_us
                self._leave(item)
                ended.append(item)
            changed.append(item)
        if changed:
            kept = [(item.number, item.transfer, item.moved_bytes, item.ended_at_us) for item in changed]
            await self._store.write(lambda connection: rows.update(connection, kept))
            for item in changed:
                item.kept_bytes = item.moved_bytes
            for item in ended:
                self._after_end(item)
        return pauses

    def _leave(self, item: Item) -> None:
        del self.items[item.number]
        self.links.discard(item.key)
        self.owners[item.job.owner] -= 1
        if not self.owners[item.job.owner]:
            del self.owners[item.job.owner]
        self.copies[item.copy] -= 1
        if not self.copies[item.copy]:
            del self.copies[item.copy]
        with contextlib.suppress(ValueError):
            self._held.get(item.job.owner, []).remove(item)

    def _after_end(self, item: Item) -> None:
        transfer, job = item.transfer, item.job
        self._context.log.audit(
            "transfer.ended", owner=job.owner, vo=job.vo, job_id=job.job_id, lfn=item.lfn, guid=item.guid,
            state=transfer.state.value, source=transfer.source, destination=job.destination, surl=transfer.surl or None,
            size_bytes=item.size_bytes, attempt=transfer.attempt, reason=transfer.reason or None,
        )  # fmt: skip
        if transfer.state is TransferState.FINISHED:
            self.finished += 1
        for listener in self.ended_listeners:
            listener(item)
        if transfer.touched:
            self._clean_later(item, 0.0)
        self._bell.ring()

    # -- turns -------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            heard = self._bell.rung
            now_s = self._context.clock.monotonic()
            turns: dict[str, list[list[Item]]] = defaultdict(list)
            for keys in self.links.take(now_s):
                taken = [self.items[int(key)] for key in keys]
                link, batch = self._link(taken[0]), list[Item]()
                for item in taken:
                    if item.copy in self._running:
                        self._running[item.copy].append(item)
                        self._unused(item, link)
                    else:
                        self._running[item.copy] = []
                        batch.append(item)
                if batch:
                    turns[batch[0].job.owner].append(batch)
                else:
                    self.links.done(link.source, link.destination)
            for owner, batches in turns.items():
                items = [item for batch in batches for item in batch]
                preparing = self._context.spawn(self._prepare(owner, items), f"transfers of {owner}")
                for batch in batches:
                    task = self._context.spawn(self._carry(batch, preparing), f"transfer {batch[0].number}")
                    for item in batch:
                        item.task = task
            await self._bell.wait(self.links.next_s(now_s, 60.0), heard)

    def _link(self, item: Item) -> Link:
        return self.links.link(item.transfer.source, item.job.destination)

    def _unused(self, item: Item, link: Link) -> None:
        if link.cap is not None:
            link.cap.take(item.moved_bytes - item.size_bytes)

    async def _prepare(self, owner: str, items: Sequence[Item]) -> Prepared | GridError | NoProxy:
        """What the files of a turn have in common: one write, one look-up. An error is for each of them."""
        try:
            await self._apply_all([(item, Chosen()) for item in items])
            return await self._effects.prepare(owner, [f"guid:{item.guid}" for item in items])
        except (GridError, NoProxy) as error:
            return error

    async def _carry(self, batch: list[Item], preparing: asyncio.Task[Prepared | GridError | NoProxy]) -> None:
        """One turn of files that go together."""
        link, turn = self._link(batch[0]), _Turn(batch)
        try:
            try:
                prepared = await asyncio.shield(preparing)
                events = await self._copied(batch, link, prepared)
                if any(isinstance(event, Copied) for _, event in events):
                    failpoints.reached("transfer.copy.answered")
            except asyncio.CancelledError:
                if all(item.wanted_end is None for item in batch):
                    raise
                prepared = None
                events = [(item, item.wanted_end or Waits("", "")) for item in batch]
            await self._settle(turn, link, events)
            if turn.items:
                failpoints.reached("transfer.copy.kept")
            if isinstance(prepared, Prepared):
                await self._register(turn, link, prepared)
        except GridError as error:  # of our own store: what was not kept is done again
            self._context.log.warning(
                "transfer.not_kept", lfn=batch[0].lfn, reason=error.reason, sentence=error.sentence
            )
            turn.pause_s = self._pauses.first_s
        finally:
            for item in list(turn.items.values()):
                self._leave_turn(turn, link, item, turn.pause_s)
            self.links.done(link.source, link.destination)
            self._bell.ring()

    async def _settle(self, turn: _Turn, link: Link, events: Sequence[tuple[Item, Event]]) -> float:
        """Keep what became of files. Those that are not to be registered leave the turn; the longest pause of the
        others."""
        for item, _ in events:
            item.task = None  # from here on an end that somebody wants is an event of its own
        pauses = await self._apply_all(events)
        longest_s = 0.0
        for (item, _), pause_s in zip(events, pauses, strict=True):
            if item.transfer.surl and not item.transfer.ended:
                longest_s = max(longest_s, pause_s)
            else:
                self._leave_turn(turn, link, item, pause_s)
        return longest_s

    def _leave_turn(self, turn: _Turn, link: Link, item: Item, pause_s: float) -> None:
        del turn.items[item.number]
        item.task = None
        self._unused(item, link)
        for twin in self._running.pop(item.copy, []):
            if not twin.transfer.ended:
                self._queue(twin)
        if item.number not in self.items:
            return
        item.moved_bytes = 0
        if item.transfer.reason in NO_PROXY and not self._effects.has_proxy(item.job.owner):
            self._held[item.job.owner].append(item)
        else:
            self._queue(item, pause_s)

    async def _copied(
        self, batch: Sequence[Item], link: Link, prepared: Prepared | GridError | NoProxy
    ) -> list[tuple[Item, Event]]:
        """What becomes of each file: copied, if it was to be."""
        if isinstance(prepared, NoProxy):
            return [(item, Waits(prepared.error.reason, prepared.error.sentence)) for item in batch]
        if isinstance(prepared, GridError):
            return [(item, self._failed(item, link, Side.CATALOGUE, prepared)) for item in batch]
        events: list[tuple[Item, Event]] = []
        together: list[tuple[Item, Entry, str]] = []
        for item in batch:
            entry = prepared.entries.get(item.guid)
            found = self._before_copy(item, link, entry)
            if not isinstance(found, str):
                events.append((item, found))
                continue
            assert entry is not None
            is_small = item.size_bytes <= SMALL_BYTES and not is_foreign(item.job.destination)
            if is_small and found.startswith(f"srm://{link.source}/{item.job.vo}/"):
                together.append((item, entry, found))
            else:
                events.append((item, await self._copy(item, link, prepared, entry, found)))
        return events + (await self._copy_together(together, link, prepared) if together else [])

    def _before_copy(self, item: Item, link: Link, entry: Entry | None) -> Event | str:
        """The SURL to copy from, or why nothing is copied."""
        if entry is None or entry.content is None:
            gone = NotFound("LFN_NOT_FOUND", f"{item.lfn} was removed from the catalogue", lfn=item.lfn)
            return self._failed(item, link, Side.CATALOGUE, gone)
        sources = _sources(entry, item.job)
        item.sources = sources or item.sources
        if item.transfer.surl:
            return Copied(item.transfer.surl)
        if there := _there(entry, item.job):
            return Present(there)
        at = {element_of(replica.surl): replica.surl for replica in entry.replicas}
        source = at.get(link.source)
        if source is not None:
            return source
        sentence = f"{item.lfn} has no replica at {self.elements.name(link.source)} any more"
        error = NotFound("REPLICA_GONE" if sources else "NO_REPLICA", sentence, lfn=item.lfn)
        return self._failed(item, link, Side.SOURCE if sources else Side.CATALOGUE, error)

    async def _copy(self, item: Item, link: Link, prepared: Prepared, entry: Entry, source: str) -> Event:
        def progress(size_bytes: int) -> None:
            self._moved(item, link, size_bytes)

        cap = int(link.cap.bytes_per_s) if link.cap is not None else 0
        try:
            surl = await self._effects.copy(prepared, entry, source, item.job, item.put_id, cap, progress)
        except GridError as error:
            return self._failed(item, link, _side(error), error)
        progress(item.size_bytes - item.moved_bytes)
        return Copied(surl)

    async def _copy_together(
        self, files: Sequence[tuple[Item, Entry, str]], link: Link, prepared: Prepared
    ) -> list[tuple[Item, Event]]:
        rest = iter(files)

        def tell(outcomes: Sequence[str | GridError]) -> None:
            for outcome, (item, _, _) in zip(outcomes, rest):  # noqa: B905  the others come later
                if isinstance(outcome, str):
                    self._moved(item, link, item.size_bytes)

        cap = int(link.cap.bytes_per_s) if link.cap is not None else 0
        wanted = [(entry, source, item.put_id) for item, entry, source in files]
        outcomes = await self._effects.copy_together(prepared, wanted, files[0][0].job, cap, tell)
        return [
            (item, Copied(found) if isinstance(found, str) else self._failed(item, link, _side(found), found))
            for (item, _, _), found in zip(files, outcomes, strict=True)
        ]

    def _moved(self, item: Item, link: Link, size_bytes: int) -> None:
        item.moved_bytes += size_bytes
        link.seen.moved_bytes += size_bytes
        if size_bytes and item.transfer.state is TransferState.READY:
            item.transfer = machine.step(item.transfer, Moving(), self._pauses).transfer

    async def _register(self, turn: _Turn, link: Link, prepared: Prepared) -> None:
        """Tell the catalogue of the copies of a turn until it has heard of each, or has refused it for good."""
        while turn.items:
            items = list(turn.items.values())
            new = [(prepared.entries[item.guid], item.transfer.surl) for item in items]
            events: list[tuple[Item, Event]] = []
            for item, error in zip(items, await self._effects.register(prepared, new), strict=True):
                if error is None:
                    link.seen.finished += 1
                    link.finished += 1
                    events.append((item, Registered()))
                else:
                    events.append((item, self._failed(item, link, Side.CATALOGUE, error)))
            failpoints.reached("transfer.register.answered")
            await asyncio.sleep(await self._settle(turn, link, events))

    def _failed(self, item: Item, link: Link, side: Side, error: GridError) -> Failed:
        action = policy.action_of(side, error)
        if action is Action.LATER:
            link.seen.busy += 1
        elif action not in (Action.END, Action.STAGED) and side is not Side.CATALOGUE:
            link.seen.failed += 1
            link.failed += 1
        self._context.log.warning(
            "transfer.attempt_failed", job_id=item.job.job_id, lfn=item.lfn, source=link.source,
            destination=link.destination, attempt=item.transfer.attempt, side=side.value, action=action.value,
            reason=error.reason, sentence=error.sentence,
        )  # fmt: skip
        return Failed(side, error, item.sources)

    def _delegation_changed(self, owner: str, delegation_id: str) -> None:
        for item in self._held.pop(owner, []):
            self._queue(item)

    # -- in the background -------------------------------------------------------------------------------------------

    async def _keep_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            moved = [item for item in self.items.values() if item.moved_bytes != item.kept_bytes]
            if moved:
                kept = [(item.number, item.transfer, item.moved_bytes, 0) for item in moved]
                await self._store.write(lambda connection, kept=kept: rows.update(connection, kept))
                for item in moved:
                    item.kept_bytes = item.moved_bytes

    async def _tune(self) -> None:
        while True:
            await asyncio.sleep(self._options.tune_every_s)
            for link in self.links:
                link.look(self._options.tune_every_s)
            self._bell.ring()

    def _clean_later(self, item: Item, pause_s: float) -> None:
        self.unwanted.add(item.number)
        heapq.heappush(self._dirty, (self._context.clock.monotonic() + pause_s, item.number, item))
        self._cleaning.ring()

    async def _clean(self) -> None:
        """Remove copies that nobody wants, one after the other."""
        while True:
            heard = self._cleaning.rung
            now_s = self._context.clock.monotonic()
            if not self._dirty or self._dirty[0][0] > now_s:
                await self._cleaning.wait(self._dirty[0][0] - now_s if self._dirty else 3600.0, heard)
                continue
            item = heapq.heappop(self._dirty)[2]
            try:
                await self._effects.take_back(item.job, item.guid, item.put_id, item.transfer.source)
                failpoints.reached("transfer.clean.answered")
            except (Refused, InvalidRequest) as error:
                self._left_behind(item, error)
            except GridError as error:
                if to_us(self._context.clock.now()) < item.ended_at_us + int(self._options.clean_for_s * 1e6):
                    item.cleanings += 1
                    self._clean_later(item, min(CLEAN_FIRST_S * 2 ** min(item.cleanings, 20), CLEAN_MAX_S))
                    continue
                self._left_behind(item, error)
            await self._apply(item, Cleaned())
            self.unwanted.discard(item.number)

    def _left_behind(self, item: Item, error: GridError) -> None:
        self._context.log.audit(
            "transfer.left_behind", owner=item.job.owner, destination=item.job.destination, put_id=item.put_id,
            sentence=error.sentence,
        )  # fmt: skip

    async def _forget(self) -> None:
        while True:
            before_us = to_us(self._context.clock.now()) - int(self._options.keep_s * 1e6)
            await self._store.write(lambda connection, before_us=before_us: rows.forget(connection, before_us))
            await asyncio.sleep(FORGET_S)


def _side(error: GridError) -> Side:
    return Side.SOURCE if error.facts.get("side") == "source" else Side.DESTINATION


def _there(entry: Entry, job: Job) -> str:
    """A replica that is where the job wants one; empty: there is none."""
    return next((replica.surl for replica in entry.replicas if is_at(replica.surl, job.destination)), "")


def _sources(entry: Entry, job: Job) -> tuple[str, ...]:
    """Where a file may be copied from."""
    return tuple(dict.fromkeys(one for r in entry.replicas if job.can_read(one := element_of(r.surl))))
