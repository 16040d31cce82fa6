"""Persist, then perform: feeds events to the machine in batches, one transaction per batch, then its commands.

While one batch is being synced the next one gathers, so a busy gatekeeper makes few large transactions and an idle one
answers at once. If the disk refuses (full), the same batch is tried again until it is kept: nobody has been told
anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import sqlalchemy as sa

from agents.gatekeeper import store as rows
from agents.gatekeeper.machine import GatekeeperMachine
from agents.gatekeeper.model import Command, Event, Outcome, State, Submitted, Turn, Update
from fabric import failpoints
from fabric.clock import to_us
from fabric.errors import Exhausted, GridError, Unavailable
from fabric.pace import Pace

MAX_EVENTS_PER_TURN = 4000
MAX_WAITING_EVENTS = 100_000
MAX_WATCH_BACKLOG = 50_000
"""Updates that one watcher may lag behind before its stream is ended."""
GATHER_S = 0.002
"""Events this close together share a transaction."""
MAX_GATHER_S = 0.1
"""And these, when many come."""
_RETRY_S = 1.0


@dataclass(slots=True)
class NewJob:
    """What a Submitted event carries for the store."""

    description: bytes
    inputs: Sequence[str]


@dataclass(slots=True)
class Output:
    """One output file that a report carries."""

    name: str
    size_bytes: int
    sha256: str
    data: bytes | None
    """None: already in the sandbox area."""


@dataclass(slots=True)
class _Group:
    events: Sequence[Event]
    payloads: Mapping[int, Any]
    """By position in `events`: NewJob of a Submitted, list[Output] of a JobEnded."""
    future: asyncio.Future[list[Outcome]] | None


class Recorder(Protocol):
    """Puts events for bookkeeping into the transaction."""

    def __call__(self, connection: sa.Connection, updates: Sequence[Update], accepted: set[str]) -> None: ...


class Watcher:
    """One reader of an owner's updates."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.updates: list[Update] = []
        self.overflowed = False
        self.changed = asyncio.Event()


@dataclass
class Numbers:
    """Counted since start, for health and tests."""

    turns: int = 0
    events: int = 0
    accepted: int = 0
    ended: dict[str, int] = field(default_factory=dict)


class Driver:
    """Owns the machine. Everything that changes a job goes through `feed` or `ask`."""

    def __init__(
        self,
        machine: GatekeeperMachine,
        store: Any,
        clock: Any,
        log: Any,
        *,
        perform: Callable[[Sequence[Command]], None],
        record: Recorder,
        changed: Callable[[], None],
        reconnect_workers: Callable[[], None] = lambda: None,
    ) -> None:
        self.machine, self._store, self._clock, self._log = machine, store, clock, log
        self._perform, self._record, self._changed = perform, record, changed
        self._reconnect_workers = reconnect_workers
        self._groups: list[_Group] = []
        self._waiting = 0
        self._wake = asyncio.Event()
        self._pace = Pace(GATHER_S, MAX_GATHER_S)
        self._watchers: set[Watcher] = set()
        self.descriptions: dict[str, bytes] = {}
        """Of jobs not yet handed out; others are read from the store."""
        self.numbers = Numbers()
        self.mean_wall_s: dict[str, float] = {}
        """How long payloads took lately, by queue."""
        self.blocked = ""
        """Why nothing can be kept now; empty when all is well."""

    # ---- in

    def feed(self, events: Sequence[Event], payloads: Mapping[int, Any] | None = None) -> None:
        """Hand in what happened; nobody waits for it."""
        self._add(_Group(events, payloads or {}, None))

    async def ask(self, events: Sequence[Event], payloads: Mapping[int, Any] | None = None) -> list[Outcome]:
        """Hand in what is wanted and wait until it is durable; the outcomes are those of its Submitted events, in
        order.

        Raises Exhausted GATEKEEPER_BUSY.
        """
        if self._waiting > MAX_WAITING_EVENTS:
            raise Exhausted("GATEKEEPER_BUSY", "the gatekeeper has too much waiting; try again later", retry_after_s=5)
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self._add(_Group(events, payloads or {}, future))
        return await future

    def _add(self, group: _Group) -> None:
        self._groups.append(group)
        self._waiting += len(group.events)
        self._wake.set()

    # ---- the loop

    async def run(self) -> None:
        """For ever; spawn it."""
        while True:
            await self._wake.wait()
            await self._pace.gather()
            groups = self._take()
            self._pace.took(sum(len(group.events) for group in groups))
            if not groups:
                continue
            try:
                await self._turn(groups)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                await self._begin_again(groups, error)

    async def _begin_again(self, groups: list[_Group], error: Exception) -> None:
        """A defect: memory may not be what the store holds. Forget it and recover, as a restart would."""
        self._log.exception("driver.defect", error, events=sum(len(group.events) for group in groups))
        for group in groups:
            if group.future is not None and not group.future.done():
                group.future.set_exception(
                    error if isinstance(error, GridError) else Unavailable("GATEKEEPER_RECOVERS", "a defect; try again")
                )
        if isinstance(error, GridError) and error.reason == "STORE_CLOSED":
            return
        live, attempts, sequence = await self._store.read(rows.load)
        self.machine.restart(live, attempts, sequence, to_us(self._clock.now()))
        self._reconnect_workers()

    def _take(self) -> list[_Group]:
        taken: list[_Group] = []
        count = 0
        while self._groups and count < MAX_EVENTS_PER_TURN:
            group = self._groups[0]
            if taken and count + len(group.events) > MAX_EVENTS_PER_TURN:
                break
            taken.append(group)
            count += len(group.events)
            del self._groups[0]
        self._waiting -= count
        if not self._groups:
            self._wake.clear()
        return taken

    async def _turn(self, groups: list[_Group]) -> None:
        events = [event for group in groups for event in group.events]
        turn = self.machine.turn(events, to_us(self._clock.now()))
        payloads: dict[int, Any] = {}
        for group in groups:
            payloads |= {id(group.events[position]): payload for position, payload in group.payloads.items()}
        if turn.changed or turn.purged or turn.closures is not None:
            await self._keep(turn, events, payloads)
            failpoints.reached("gatekeeper.turn.committed")
        self.numbers.turns += 1
        self.numbers.events += len(events)
        self.numbers.accepted += len(turn.accepted)
        for job in turn.ended:
            if job.state is State.DONE:
                mean_s = self.mean_wall_s.get(job.queue, 0.0)
                self.mean_wall_s[job.queue] = mean_s + 0.1 * (job.usage.wall_s - mean_s)
            self.numbers.ended[job.state.value] = self.numbers.ended.get(job.state.value, 0) + 1
        self._answer(groups, turn)
        self._tell(turn.updates)
        self._perform(turn.commands)
        failpoints.reached("gatekeeper.turn.performed")
        for job in turn.ended:
            self.descriptions.pop(job.job_id, None)
        self._changed()

    async def _keep(self, turn: Turn, events: Sequence[Event], payloads: Mapping[int, Any]) -> None:
        accepted_ids = {job.job_id for job in turn.accepted}
        new: dict[int, NewJob] = {
            id(event.job): payloads[id(event)]
            for event in events
            if isinstance(event, Submitted) and id(event) in payloads
        }
        inserts = [(job, new[id(job)].description, new[id(job)].inputs) for job in turn.accepted]
        for job, description, _ in inserts:
            self.descriptions[job.job_id] = description
        outputs = [
            (job.job_id, output.name, output.size_bytes, output.sha256, output.data)
            for job, event in turn.ended_by_report
            for output in payloads.get(id(event), ())
        ]
        now_us = to_us(self._clock.now())

        def write(connection: sa.Connection) -> None:
            rows.insert_jobs(connection, inserts)
            rows.update_jobs(connection, [job for job in turn.changed.values() if id(job) not in new])
            rows.release_inputs(connection, [job.job_id for job in turn.ended])
            rows.put_outputs(connection, outputs)
            rows.purge(connection, turn.purged, now_us)
            if turn.closures is not None:
                rows.set_closures(connection, turn.closures)
            if turn.updates:
                rows.set_sequence(connection, turn.updates[-1].sequence)
                self._record(connection, turn.updates, accepted_ids)

        while True:
            try:
                await self._store.write(write)
                break
            except GridError as error:
                if error.reason == "STORE_CLOSED":
                    raise
                if self.blocked != error.sentence:
                    self._log.error("store.refused", reason=error.reason, sentence=error.sentence)
                self.blocked = error.sentence
                await asyncio.sleep(_RETRY_S)
        if self.blocked:
            self._log.info("store.recovered")
            self.blocked = ""
        self._write_log(turn)

    def _write_log(self, turn: Turn) -> None:
        lines: list[tuple[str, dict[str, object]]] = []
        for update in turn.updates:
            fields: dict[str, object] = {
                "job_id": update.job_id,
                "attempt": update.attempt,
                "sequence": update.sequence,
            }
            if update.worker:
                fields["worker"] = update.worker
            if update.state in (State.DONE, State.FAILED, State.CANCELLED):
                fields |= {"exit_code": update.exit_code, "reason": update.reason, "wall_s": update.usage.wall_s}
            elif update.state is State.QUEUED:
                fields["owner"] = update.owner
            lines.append((f"job.{update.state.value.lower()}", fields))
        if lines:
            self._log.info_each(lines)

    # ---- out

    def _answer(self, groups: list[_Group], turn: Turn) -> None:
        outcomes = iter(turn.outcomes)
        for group in groups:
            mine = [next(outcomes) for event in group.events if isinstance(event, Submitted)]
            if group.future is not None and not group.future.done():
                group.future.set_result(mine)

    def watch(self, owner: str) -> Watcher:
        """Begin to gather the owner's updates; end with `unwatch`."""
        watcher = Watcher(owner)
        self._watchers.add(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        """Stop gathering."""
        self._watchers.discard(watcher)

    def _tell(self, updates: Sequence[Update]) -> None:
        if not updates or not self._watchers:
            return
        by_owner: dict[str, list[Update]] = {}
        for update in updates:
            by_owner.setdefault(update.owner, []).append(update)
        for watcher in self._watchers:
            mine = by_owner.get(watcher.owner)
            if not mine:
                continue
            if len(watcher.updates) + len(mine) > MAX_WATCH_BACKLOG:
                watcher.overflowed = True
            else:
                watcher.updates.extend(mine)
            watcher.changed.set()
