"""One user's jobs at one gatekeeper: deliver, cancel, purge and follow them, in the user's name.

What is to be done is read from the store each time, so a link can be lost and made again at any moment. Rules:

* a job is marked as sent, durably, before the first Submit that names it; from then on only the gatekeeper can say
  whether it has the job, and an unanswered Submit is repeated (it is idempotent by job id and attempt);
* updates and the sequence of the last one are stored in one transaction, so none is lost or counted twice.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from gridfabric.gatekeeper.v1 import gatekeeper_pb2_grpc as pb_grpc

from agents.broker import machine, policy, wire
from agents.broker import store as rows
from agents.broker.model import JobDescription, JobState, SandboxFile
from agents.broker.tables import Change, JobRow
from fabric import failpoints
from fabric.errors import (
    Conflict,
    Exhausted,
    GridError,
    InvalidRequest,
    NotFound,
    Refused,
    Unauthenticated,
    Unavailable,
)
from fabric.pace import Pace

if TYPE_CHECKING:
    from agents.broker.core import BrokerCore

IDLE_S = 20.0
"""A link with nothing to do is kept this long."""
MAX_MESSAGE_BYTES = 3 * 1024 * 1024
"""Of one Submit, below the 4 MiB of the wire."""
MAX_SANDBOX_ROUNDS = 3
"""A gatekeeper that keeps missing files it was sent is treated as failing."""
RECONCILE_LIMIT = 5000
CANCELS_AT_ONCE = 1000
"""Jobs in one Cancel."""
CE_FULL_PAUSE_S = 1.0
MAX_GATHER_S = 0.15
"""Updates this close together are stored together, when many come."""
MAX_PENDING_UPDATES = 5000
"""Updates read from a stream and not stored yet; beyond, the gatekeeper waits."""

_DEFINITE = (InvalidRequest, Refused, Unauthenticated, Exhausted, Conflict, NotFound)
"""Errors with which a gatekeeper says that it took nothing of this call."""


class _Unreachable(Exception):
    """Connecting failed, so nothing was sent."""

    def __init__(self, error: GridError) -> None:
        super().__init__(str(error))
        self.error = error


class Link:
    """See the module. ``run`` is its life."""

    def __init__(self, core: BrokerCore, owner: str, gatekeeper: str) -> None:
        self._core = core
        self.owner = owner
        self.gatekeeper = gatekeeper
        host, _, port = gatekeeper.rpartition(":")
        self._host, self._port = host, int(port or 0)
        self._wake = asyncio.Event()
        self._known: set[str] = set()
        """Sandbox files that the gatekeeper has had."""
        self._delegated = b""
        """Fingerprint of the proxy that was last delegated to it."""
        self._acknowledged: set[tuple[str, int]] = set()
        """(job id, attempt) that Submit has acknowledged: an update which says no more need not touch the store."""
        self._cancel_sent: dict[tuple[str, int], float] = {}
        self._failures = 0
        self._failing_since: float | None = None
        self._watching: asyncio.Task[None] | None = None
        self._reconcile_at = 0.0
        self.trouble = ""
        """Why it does not get on, for ``locate`` and health; empty if it does."""

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    async def run(self) -> None:
        """Until there is nothing to do for a while."""
        core = self._core
        try:
            while True:
                self._wake.clear()
                pause_s = IDLE_S
                try:
                    await self._work()
                    self._succeeded()
                except _Unreachable as failure:
                    pause_s = await self._failed(failure.error, nothing_sent=True)
                except GridError as error:
                    pause_s = await self._failed(error, nothing_sent=False)
                except Exception as error:  # a defect must not strand this user's jobs here
                    core.log.exception("link.defect", error, owner=self.owner, gatekeeper=self.gatekeeper)
                    core.context.problem(
                        f"link {self.gatekeeper}", f"a defect in the link to {self.gatekeeper}: {error}"
                    )
                    pause_s = core.options.backoff_most_s
                self._keep_watching()
                if pause_s != IDLE_S:
                    await asyncio.sleep(pause_s)
                    continue
                if self._cancel_sent:
                    pause_s = core.options.repeat_cancel_s
                elif self.has_jobs:
                    pause_s = max(0.5, min(IDLE_S, self._reconcile_at - core.now_s))
                try:
                    async with asyncio.timeout(pause_s):
                        await self._wake.wait()
                except TimeoutError:
                    if self.has_jobs or await self._owes_anything():
                        continue
                    if not self.has_jobs and not self._wake.is_set():  # no await between this look and the end
                        return
        finally:
            core.forget(self)
            if self._watching is not None:
                self._watching.cancel()

    @property
    def has_jobs(self) -> bool:
        return (self.owner, self.gatekeeper) in self._core.board.links

    async def _owes_anything(self) -> bool:
        return bool(
            await self._core.store.read(lambda c: rows.purgeable(c, self.owner, self.gatekeeper, 1))
            or await self._core.store.read(lambda c: rows.ready(c, self.owner, self.gatekeeper, 1))
        )

    async def follow_anew(self) -> None:
        """Ask the gatekeeper for the newest state of all its jobs of this user: some of another broker were adopted."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])
        await self._core.store.write(lambda c: rows.set_watch_sequence(c, self.owner, self.gatekeeper, 0))
        self._reconcile_at = 0.0
        self.wake()

    # -- connection and trouble ----------------------------------------------------------------------------------------

    async def _stub(self) -> pb_grpc.GatekeeperStub:
        """A stub with an established session in the user's name. Raises _Unreachable."""
        try:
            credential = self._core.credential(self.owner)
            channel = await self._core.context.channels.get(self._host, self._port, credential=credential)
            await channel.ready()
        except GridError as error:
            raise _Unreachable(error) from error
        self._core.answers(self.gatekeeper)
        return pb_grpc.GatekeeperStub(channel)

    async def _delegate(self) -> None:
        """The user's proxy at the gatekeeper is made from the one we have now. Raises _Unreachable."""
        had = self._delegated
        try:
            self._delegated = await self._core.delegate_to(self._host, self._port, self.owner, had)
        except GridError as error:
            raise _Unreachable(error) from error
        if self._delegated != had:
            self._core.log.info("link.delegated", owner=self.owner, gatekeeper=self.gatekeeper)

    def _succeeded(self) -> None:
        if self._failures:
            self._core.log.info("link.recovered", owner=self.owner, gatekeeper=self.gatekeeper, failures=self._failures)
            self._core.unblock(self.gatekeeper)
        self._failures, self._failing_since, self.trouble = 0, None, ""

    async def _failed(self, error: GridError, *, nothing_sent: bool) -> float:
        """Note the trouble; take jobs back that never left. Seconds to wait."""
        core, options = self._core, self._core.options
        self._failures += 1
        if self._failing_since is None:
            self._failing_since = core.now_s
        self.trouble = error.sentence
        pause_s = min(options.backoff_most_s, options.backoff_first_s * 2 ** min(self._failures - 1, 20))
        pause_s = max(pause_s * random.uniform(0.7, 1.3), min(error.retry_after_s or 0.0, options.backoff_most_s))
        log = core.log.warning if self._failures == 1 else core.log.info
        log(
            "link.failed", owner=self.owner, gatekeeper=self.gatekeeper, reason=error.reason, sentence=error.sentence,
            failures=self._failures, again_in_s=round(pause_s, 2),
        )  # fmt: skip
        if error.reason in ("DELEGATION_MISSING", "DELEGATION_EXPIRED"):
            self._delegated = b""
            core.look_at_proxies()
            return pause_s
        if _about_session(error) or error.reason == "BOOKKEEPING_BEHIND":
            return pause_s
        if nothing_sent and isinstance(error, (Refused, Unauthenticated)) and "peer" not in error.facts:
            # It is this user whom the CE refuses, not the CE that is not to be trusted (that names the peer).
            await self._give_back(machine.Rejected(0, error.reason, error.sentence))
            return pause_s
        if error.reason != "MEMBERS_UNKNOWN":  # which is about this user only
            core.block(self.gatekeeper, pause_s, error.sentence)
            core.suspects.add(self.gatekeeper)
        if core.now_s - self._failing_since >= options.take_back_after_s:
            await self._give_back(machine.TakenBack(f"CE_UNREACHABLE: {error.sentence}"))
        return pause_s

    async def _give_back(self, event: machine.Event) -> None:
        """Jobs that were never sent go elsewhere; those that may be there stay, as only this gatekeeper knows."""
        core = self._core

        def change(connection: sa.Connection) -> list[Change]:
            found = rows.unsent(connection, self.owner, self.gatekeeper)
            chosen = [(row, (_for_attempt(event, row.job.attempt),)) for row in found]
            return rows.step_rows(connection, chosen, core.now_us, core.sink)

        await core.commit(change)

    async def take_back(self, reason: str) -> None:
        """Its CE has left the information system: what was not sent is matched again."""
        await self._give_back(machine.TakenBack(reason))

    # -- work ----------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        for _ in range(MAX_SANDBOX_ROUNDS * 1000):
            if not await self._deliver():
                break
        await self._cancel()
        await self._purge()
        if self.has_jobs:
            await self._stub()
            await self._delegate()
            await self._reconcile()

    async def _deliver(self) -> bool:
        """One batch. False if there was nothing."""
        core = self._core

        def load(
            connection: sa.Connection,
        ) -> tuple[list[JobRow], dict[int, JobDescription], dict[int, dict[str, SandboxFile]]]:
            found = rows.ready(connection, self.owner, self.gatekeeper, core.options.deliver_batch)
            found = [row for row in found if row.job.sent == found[0].job.sent]
            missing = {row.description for row in found} - core.descriptions.keys()
            loaded = rows.load_descriptions(connection, missing)
            files = rows.load_files(connection, {row.submission for row in found})
            return found, loaded, files

        found, loaded, files = await core.store.read(load)
        if not found:
            return False
        core.remember_descriptions(loaded)
        stub = await self._stub()
        await self._delegate()
        self._keep_watching()
        jobs: list[pb.Job] = []
        marked = {key: core.descriptions[key].marked() for key in {row.description for row in found}}
        size = 0
        wanted: dict[str, SandboxFile] = {}
        for row in found:
            description = core.descriptions[row.description]
            if row.parameter:
                description = description.with_parameter(row.parameter, marked[row.description])
            own = files[row.submission]
            job = wire.gatekeeper_job(row, description, own, description.vo, core.storage_address)
            size += job.ByteSize()
            if jobs and size > MAX_MESSAGE_BYTES:
                break
            jobs.append(job)
            for path in description.input_sandbox:
                file = own[path]
                wanted[file.sha256] = file
        try:
            await self._send_files(stub, wanted)
        except _Unreachable as failure:
            if failure.error.reason == "SANDBOX_LOST":  # a damaged disk of ours: no CE can be blamed, no retry can help
                lost = {sha256 for sha256 in wanted if not core.sandbox.has(sha256)}
                gone = machine.GivenUp("SANDBOX_LOST", failure.error.sentence)
                await self._apply(
                    [
                        (job.job_id, gone)
                        for job in jobs
                        if any(file.sha256 in lost for file in job.description.input_sandbox)
                    ]
                )
                return True
            raise
        first_time = not found[0].job.sent
        if first_time:
            await core.succession.recorded()
            ids = [row.id for row in found[: len(jobs)]]
            still = set(await core.store.write(lambda connection: rows.mark_sent(connection, ids)))
            failpoints.reached("broker.deliver.marked")
            jobs = [job for job, row in zip(jobs, found, strict=False) if row.id in still]
            if not jobs:
                return True
        await self._submit(stub, jobs, first_time)
        return True

    async def _send_files(self, stub: pb_grpc.GatekeeperStub, wanted: dict[str, SandboxFile]) -> None:
        ask = [sha256 for sha256 in wanted if sha256 not in self._known]
        if not ask:
            return
        try:
            answer = await stub.MissingSandbox(pb.MissingSandboxRequest(sha256=ask))
            for sha256 in answer.sha256:
                if sha256 in wanted:
                    if not self._core.sandbox.has(sha256):
                        raise Unavailable("SANDBOX_LOST", f"the file {wanted[sha256].name} (sha256 {sha256}) is lost")
                    await stub.PutSandbox(self._core.sandbox.messages(wanted[sha256], pb.PutSandboxRequest))
        except GridError as error:
            raise _Unreachable(error) from error  # no job was named yet
        self._known.update(ask)
        if len(self._known) > 100_000:
            self._known = set(ask)

    async def _submit(self, stub: pb_grpc.GatekeeperStub, jobs: Sequence[pb.Job], first_time: bool) -> None:
        core = self._core
        attempts = {job.job_id: job.attempt for job in jobs}
        try:
            response = await stub.Submit(core.succession.stamp(pb.SubmitRequest(jobs=jobs)))
        except _DEFINITE as error:
            if error.reason == "BROKER_FENCED":
                core.succession.fenced()
                raise
            if error.reason in ("DELEGATION_MISSING", "DELEGATION_EXPIRED"):
                self._delegated = b""
                raise
            if not first_time or _about_session(error):
                raise
            # The whole call was refused and nothing of it was ever sent before: it is surely not there.
            later = isinstance(error, Exhausted)
            events = [
                (
                    job_id,
                    machine.TakenBack(error.sentence)
                    if later
                    else machine.Rejected(attempt, error.reason, error.sentence),
                )
                for job_id, attempt in attempts.items()
            ]
            await self._apply(events)
            if later:
                core.block(self.gatekeeper, error.retry_after_s or CE_FULL_PAUSE_S, error.sentence)
            core.log.warning(
                "link.refused", owner=self.owner, gatekeeper=self.gatekeeper, reason=error.reason,
                sentence=error.sentence, jobs=len(jobs),
            )  # fmt: skip
            return
        failpoints.reached("broker.deliver.answered")
        events = []
        lost_files = 0
        for outcome in response.outcomes:
            attempt = attempts.get(outcome.job_id)
            if attempt is None:
                continue
            if outcome.accepted:
                events.append((outcome.job_id, machine.Accepted(attempt)))
            elif outcome.reason == "SANDBOX_MISSING":
                lost_files += 1
            else:
                if policy.rule_for(outcome.reason).action is policy.Action.LATER:
                    core.block(self.gatekeeper, CE_FULL_PAUSE_S, outcome.sentence or outcome.reason)
                events.append(
                    (outcome.job_id, machine.Rejected(attempt, outcome.reason or "REFUSED", outcome.sentence))
                )
        await self._apply(events)
        core.delivered += len(events)
        if len(self._acknowledged) > 50_000:
            self._acknowledged.clear()
        self._acknowledged.update(
            (job_id, event.attempt) for job_id, event in events if isinstance(event, machine.Accepted)
        )
        if lost_files:
            self._known.clear()
            raise Unavailable(
                "SANDBOX_MISSING", f"{self.gatekeeper} lacks sandbox files of {lost_files} jobs; sending them again"
            )

    async def _apply(self, events: Sequence[tuple[str, machine.Event]]) -> None:
        if not events:
            return
        core = self._core
        await core.commit(
            lambda connection: rows.step_ids(
                connection, events, core.now_us, core.sink, owner=self.owner, gatekeeper=self.gatekeeper
            )
        )

    async def _cancel(self) -> None:
        """Ask the CE for each once, and again while it says nothing. Goes through all of them: those it was asked for
        a moment ago must not stand before the others."""
        core = self._core
        now_s = core.now_s
        self._cancel_sent = {
            key: at for key, at in self._cancel_sent.items() if now_s - at < core.options.repeat_cancel_s
        }
        after, found = 0, CANCELS_AT_ONCE
        while found == CANCELS_AT_ONCE:
            page = await core.store.read(
                lambda c, after=after: rows.cancelling(c, self.owner, self.gatekeeper, after, CANCELS_AT_ONCE)
            )
            found = len(page)
            if page:
                after = page[-1][0]
            due = [(job_id, attempt) for _, job_id, attempt in page if (job_id, attempt) not in self._cancel_sent]
            if not due:
                continue
            stub = await self._stub()
            answer = await stub.Cancel(pb.CancelRequest(job_ids=[job_id for job_id, _ in due]))
            self._cancel_sent.update(dict.fromkeys(due, now_s))
            unknown = set(answer.unknown)
            await self._apply([(job_id, machine.UnknownAtCe(attempt)) for job_id, attempt in due if job_id in unknown])

    async def _purge(self) -> None:
        core = self._core
        while found := await core.store.read(lambda c: rows.purgeable(c, self.owner, self.gatekeeper, 1000)):
            stub = await self._stub()
            await stub.Purge(pb.PurgeRequest(job_ids=found))
            failpoints.reached("broker.purge.answered")
            await core.store.write(lambda connection, found=found: rows.purged(connection, found))

    async def _reconcile(self) -> None:
        """Ask by name for jobs not heard of for long: an update can be lost only by a CE that lost its disk."""
        core = self._core
        if core.now_s < self._reconcile_at:
            return
        after_s = core.options.reconcile_after_s
        self._reconcile_at = core.now_s + after_s
        before_us = core.now_us - int(after_s * 1e6)
        found = await core.store.read(lambda c: rows.silent(c, self.owner, self.gatekeeper, before_us, RECONCILE_LIMIT))
        if not found:
            return
        stub = await self._stub()
        answer = await stub.Status(pb.StatusRequest(job_ids=[row.job_id for row in found]))
        known = {update.job_id for update in answer.jobs}
        events = [(update.job_id, event) for update in answer.jobs if (event := wire.update_event(update)) is not None]
        for row in found:
            if row.job_id not in known:
                sentence = f"{self.gatekeeper} had acknowledged the job and does not know it any more"
                started = row.job.state is JobState.RUNNING
                events.append((row.job_id, machine.Failed(row.job.attempt, "CE_FORGOT", sentence, started)))
        await self._apply(events)

    # -- updates -------------------------------------------------------------------------------------------------------

    def _keep_watching(self) -> None:
        if self.has_jobs and (self._watching is None or self._watching.done()):
            name = f"watch {self.gatekeeper} for {self.owner}"
            self._watching = self._core.context.spawn(self._watch(), name)

    async def _watch(self) -> None:
        core = self._core
        pause_s = core.options.backoff_first_s
        while self.has_jobs:
            opened_s = core.now_s
            try:
                stub = await self._stub()
                after = await core.store.read(lambda c: rows.watch_sequence(c, self.owner, self.gatekeeper))
                opened_s = core.now_s
                await self._follow(stub.Watch(pb.WatchRequest(after_sequence=after)))
            except _Unreachable as failure:
                self.trouble = failure.error.sentence
            except GridError as error:
                core.log.info("link.watch_ended", gatekeeper=self.gatekeeper, owner=self.owner, reason=error.reason)
            if core.now_s - opened_s > core.options.backoff_most_s:  # it was a good stream
                pause_s = core.options.backoff_first_s
            self._reconcile_at = min(self._reconcile_at, core.now_s + 10.0)
            await asyncio.sleep(pause_s * random.uniform(0.7, 1.3))
            pause_s = min(core.options.backoff_most_s, pause_s * 2)

    async def _follow(self, call: Any) -> None:
        """Take updates in until the stream ends; those of a moment share one transaction."""
        pending: list[pb.JobUpdate] = []
        pace = Pace(self._core.options.update_gather_s, MAX_GATHER_S)

        async def take_all() -> None:
            while pending:
                await pace.gather()
                batch, pending[:] = list(pending), []
                pace.took(len(batch))
                try:
                    await self._take(batch)
                except Exception:
                    call.cancel()  # what was not stored comes again on a new stream
                    raise

        taking: asyncio.Task[None] | None = None
        try:
            async for response in call:
                pending.extend(response.updates)
                if taking is not None and (taking.done() or len(pending) > MAX_PENDING_UPDATES):
                    await taking
                    taking = None
                if pending and taking is None:
                    taking = asyncio.get_running_loop().create_task(take_all())
        finally:
            call.cancel()
            if taking is not None:
                await taking

    async def _take(self, updates: Sequence[pb.JobUpdate]) -> None:
        """Updates and their last sequence, in one transaction."""
        core = self._core
        events: list[tuple[str, machine.Event]] = []
        for update in updates:
            event = wire.update_event(update)
            key = (update.job_id, update.attempt)
            if event is None or (isinstance(event, machine.Accepted) and key in self._acknowledged):
                continue
            self._acknowledged.discard(key)
            events.append((update.job_id, event))
        last = max(update.sequence for update in updates)
        happened_us = {update.job_id: update.at_us for update in updates}
        failpoints.reached("broker.update.received")

        def change(connection: sa.Connection) -> list[Change]:
            changes = rows.step_ids(
                connection, events, core.now_us, core.sink, owner=self.owner, gatekeeper=self.gatekeeper
            )
            rows.set_watch_sequence(connection, self.owner, self.gatekeeper, last)
            return [replace(one, at_us=happened_us.get(one.job_id, one.at_us)) for one in changes]

        await core.commit(change)


def _about_session(error: GridError) -> bool:
    """The CE was restarted under the call; a new session is made for the next one."""
    return isinstance(error, Unauthenticated) and error.reason.startswith("SESSION_")


def _for_attempt(event: machine.Event, attempt: int) -> machine.Event:
    if isinstance(event, machine.Rejected):
        return machine.Rejected(attempt, event.reason, event.sentence)
    return event
