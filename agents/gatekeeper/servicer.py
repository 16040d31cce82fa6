"""The two services of a gatekeeper: for users (and brokers in their name), and for this site's workers."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from gridfabric.gatekeeper.v1 import gatekeeper_pb2_grpc

from agents.gatekeeper import store as rows
from agents.gatekeeper import wire
from agents.gatekeeper.accounts import Accounts
from agents.gatekeeper.broker_fences import BrokerFences
from agents.gatekeeper.config import GatekeeperOptions, QueueOptions
from agents.gatekeeper.driver import Driver, NewJob
from agents.gatekeeper.following import Following
from agents.gatekeeper.model import (
    CancelAsked,
    ClosureAsked,
    Event,
    HoldAsked,
    Job,
    Outcome,
    Purged,
    ReleaseAsked,
    State,
    Submitted,
)
from agents.gatekeeper.sandbox import SandboxArea, read_pieces, require_sha256
from agents.gatekeeper.workers import WorkerPool
from fabric import access
from fabric.clock import to_us
from fabric.errors import Conflict, Exhausted, GridError, InvalidRequest, NotFound, Refused, Unavailable
from fabric.pace import Pace
from fabric.rpc import rules
from fabric.rpc.peer import current_peer

MAX_JOBS_PER_SUBMIT = 500
MAX_IDS = 10_000
WATCH_PART = 500
"""Updates in one message."""
WATCH_GATHER_S = 0.01
MAX_WATCH_GATHER_S = 0.1
"""How long a live watcher waits for more updates to send together."""
MAX_OPEN_TRANSFERS = 64
"""Sandbox files that are sent or received at once; each holds one descriptor."""

GATEKEEPER_RULES = {
    "MissingSandbox": rules.full_user,
    "PutSandbox": rules.full_user,
    "Submit": rules.full_user,
    "Cancel": rules.full_user,
    "Hold": rules.full_user,
    "Release": rules.full_user,
    "Close": rules.administrator,
    "Tags": rules.full_user,
    "Watch": rules.user,
    "Status": rules.user,
    "GetOutput": rules.user,
    "Follow": rules.user,
    "Purge": rules.full_user,
}
WORKER_PORT_RULES = {
    "Work": rules.site_services("worker"),
    "FetchSandbox": rules.site_services("worker"),
    "Peeked": rules.site_services("worker"),
    "FirstPartFile": rules.site_services("worker"),
    "StoreOutput": rules.site_services("worker"),
}


class Sandbox:
    """The sandbox area with its rows: what both services use of it."""

    def __init__(self, area: SandboxArea, store: Any, clock: Any) -> None:
        self.area, self._store, self._clock = area, store, clock
        self._transfers = asyncio.Semaphore(MAX_OPEN_TRANSFERS)

    async def receive(self, sha256: str, size_bytes: int, first: bytes, more: AsyncIterator[Any]) -> None:
        """Take one file in; when this returns it is verified, synced and noted. A file that is here already is read and
        dropped."""
        async with self._transfers:
            upload = await asyncio.to_thread(self.area.begin, sha256, size_bytes)
            try:
                if first:
                    await asyncio.to_thread(upload.write, first)
                async for message in more:
                    if message.data:
                        await asyncio.to_thread(upload.write, message.data)
                await asyncio.to_thread(upload.finish)
            finally:
                upload.abandon()
        now_us = to_us(self._clock.now())

        def note(connection: Any) -> None:
            if not self.area.path(sha256).exists():  # the cleaner took the older copy just then
                raise Unavailable(
                    "SANDBOX_REMOVED", "the file was cleaned away while it was sent again; send it once more"
                )
            rows.sandbox_put(connection, sha256, size_bytes, now_us)

        await self._store.write(note)

    async def pieces(self, sha256: str, offset: int = 0) -> AsyncIterator[bytes]:
        """The bytes of a file from there on in pieces; at least one piece."""
        async with self._transfers:
            descriptor = self.area.open_file(sha256)
            try:
                first = True
                while (piece := await asyncio.to_thread(read_pieces, descriptor, offset)) or first:
                    yield piece
                    offset += len(piece)
                    first = False
            finally:
                os.close(descriptor)


@dataclass
class Software:
    """What the VOs have installed here, as they say."""

    area: Callable[[], str]
    """The software area of the worker nodes; empty while none has told."""
    changed: Callable[[], None]
    tags: dict[str, tuple[str, ...]] = field(default_factory=dict)


class GatekeeperServicer(gatekeeper_pb2_grpc.GatekeeperServicer):
    """For users. Everything is about the caller's own jobs."""

    def __init__(
        self,
        *,
        context: Any,
        options: GatekeeperOptions,
        driver: Driver,
        store: Any,
        sandbox: Sandbox,
        accounts: Accounts,
        software: Software,
        broker_fences: BrokerFences,
        following: Following,
    ) -> None:
        self.software, self._broker_fences, self._following = software, broker_fences, following
        self._context, self._options, self._driver = context, options, driver
        self._queues = options.every_queue()
        self._store, self._sandbox, self._accounts = store, sandbox, accounts

    async def MissingSandbox(self, request: pb.MissingSandboxRequest, context: Any) -> pb.MissingSandboxResponse:
        """Which files are not here; the others are kept from the cleaner for a while."""
        if len(request.sha256) > MAX_IDS:
            raise InvalidRequest("TOO_MANY", f"at most {MAX_IDS} files can be asked for at once")
        wanted = [require_sha256(sha256) for sha256 in request.sha256]
        now_us = to_us(self._context.clock.now())

        def look(connection: Any) -> set[str]:
            known = rows.sandbox_known(connection, wanted)
            rows.sandbox_touch(connection, sorted(known), now_us)
            return known

        known = await self._store.write(look) if wanted else set()
        return pb.MissingSandboxResponse(sha256=[sha256 for sha256 in dict.fromkeys(wanted) if sha256 not in known])

    async def PutSandbox(
        self, request_iterator: AsyncIterator[pb.PutSandboxRequest], context: Any
    ) -> pb.PutSandboxResponse:
        """One file; see Sandbox.receive."""
        self._require_disk()
        header = await _first(request_iterator, "PutSandbox")
        if header.size_bytes > self._options.max_sandbox_file_bytes:
            raise InvalidRequest(
                "SANDBOX_FILE_TOO_LARGE",
                f"a sandbox file of {header.size_bytes} bytes is over the limit of "
                f"{self._options.max_sandbox_file_bytes}; use a storage element",
                size_bytes=header.size_bytes,
                limit_bytes=self._options.max_sandbox_file_bytes,
            )
        await self._sandbox.receive(header.sha256, header.size_bytes, header.data, request_iterator)
        return pb.PutSandboxResponse()

    async def Submit(self, request: pb.SubmitRequest, context: Any) -> pb.SubmitResponse:
        """Check, map, keep, then answer per job."""
        peer = current_peer(context)
        if not 1 <= len(request.jobs) <= MAX_JOBS_PER_SUBMIT:
            raise InvalidRequest(
                "JOB_COUNT", f"a Submit carries 1 to {MAX_JOBS_PER_SUBMIT} jobs, not {len(request.jobs)}"
            )
        await self._broker_fences.check(
            peer.subject,
            (request.broker.broker, request.broker.epoch),
            [(item.broker, item.epoch) for item in request.over],
        )
        self._require_disk()
        if self._driver.blocked:
            raise Exhausted("STORE_FULL", f"new jobs cannot be kept: {self._driver.blocked}", retry_after_s=5)
        if await self._store.read(rows.job_count) >= self._options.max_kept:
            raise Exhausted(
                "TOO_MANY_KEPT",
                f"{self._options.max_kept} jobs are kept here; fetch the output of ended ones",
                retry_after_s=60,
            )
        outcomes: dict[int, Outcome] = {}
        wires: list[tuple[int, pb.Job]] = []
        for position, job in enumerate(request.jobs):
            try:
                queue = self._queue(job.queue)
                wire.check_job(job, self._options, queue, self._context.vos.served, peer.vo)
                access.require(queue.access, peer, f"this computing element's queue {queue.name}")
                job.queue = queue.name
                wires.append((position, job))
            except GridError as error:
                outcomes[position] = Outcome(job.job_id, accepted=False, reason=error.reason, sentence=error.sentence)
        if wires:
            self._context.delegations.get(
                peer.subject
            )  # raises DELEGATION_MISSING or _EXPIRED: its jobs could do nothing
            self._accounts.submitting[peer.subject] += 1
            try:
                account = await asyncio.to_thread(self._accounts.map, peer.subject, peer.account)
                missing = await self._missing(wires)
                await self._accept(peer, account, wires, missing, outcomes)
            finally:
                self._accounts.submitting[peer.subject] -= 1
                self._accounts.submitting += Counter()
        for position, outcome in sorted(outcomes.items()):
            if not outcome.accepted:
                job_id = request.jobs[position].job_id
                self._context.log.audit(
                    "job.refused", peer=peer.subject, job_id=job_id, reason=outcome.reason, sentence=outcome.sentence
                )
        return pb.SubmitResponse(outcomes=[wire.outcome_to_wire(outcomes[i]) for i in range(len(request.jobs))])

    def _queue(self, name: str) -> QueueOptions:
        """The queue of this name, or the first one. Raises NotFound QUEUE_UNKNOWN."""
        if not name:
            return next(iter(self._queues.values()))
        queue = self._queues.get(name)
        if queue is None:
            raise NotFound(
                "QUEUE_UNKNOWN", f"this gatekeeper has no queue {name[:80]!r}; its queues: {', '.join(self._queues)}"
            )
        return queue

    async def _missing(self, wires: Sequence[tuple[int, pb.Job]]) -> set[str]:
        wanted = sorted({file.sha256 for _, job in wires for file in job.description.input_sandbox})
        if not wanted:
            return set()
        now_us = to_us(self._context.clock.now())

        def look(connection: Any) -> set[str]:
            known = rows.sandbox_known(connection, wanted)
            rows.sandbox_touch(connection, sorted(known), now_us)
            return known

        return set(wanted) - await self._store.write(look)

    async def _accept(
        self,
        peer: Any,
        account: Any,
        wires: Sequence[tuple[int, pb.Job]],
        missing: set[str],
        outcomes: dict[int, Outcome],
    ) -> None:
        events: list[Event] = []
        payloads: dict[int, NewJob] = {}
        positions: list[int] = []
        job_ids: list[str] = []
        now_us = to_us(self._context.clock.now())
        shown = [
            level for fqan, level in self._options.priorities.items() if access.admits([fqan], peer.vo, peer.fqans)
        ]
        priority = max(shown, default=0)
        for position, job in wires:
            inputs = [file.sha256 for file in job.description.input_sandbox]
            lacking = next((sha256 for sha256 in inputs if sha256 in missing), None)
            if lacking is not None:
                sentence = f"the input sandbox file {lacking} is not here; send it with PutSandbox first"
                outcomes[position] = Outcome(job.job_id, accepted=False, reason="SANDBOX_MISSING", sentence=sentence)
                continue
            payloads[len(events)] = NewJob(job.description.SerializeToString(), inputs)
            vo, wall_s = job.description.vo, job.description.limits.wall_s
            slots, hosts, each = wire.spread(job.description, self._options.batch)
            events.append(
                Submitted(
                    Job(
                        job.job_id, job.attempt, peer.subject, vo, account.name, account.uid, account.gid, now_us,
                        priority=priority + self._queues[job.queue].priority, wall_s=wall_s,
                        fqan=next(iter(peer.fqans), ""), queue=job.queue,
                        slots=slots, hosts=hosts, slots_per_host=each,
                    )
                )
            )  # fmt: skip
            positions.append(position)
            job_ids.append(job.job_id)
        if not events:
            return
        self._context.log.audit_each(
            "job.submit",
            "job_ids",
            job_ids,
            **peer.trail,
            account=account.name,
            uid=account.uid,
        )
        for position, outcome in zip(positions, await self._driver.ask(events, payloads), strict=True):
            outcomes[position] = outcome

    def _require_disk(self) -> None:
        free = self._sandbox.area.free_disk_bytes()
        if free < self._options.min_free_disk_bytes:
            raise Exhausted(
                "DISK_FULL",
                f"only {free} bytes of disk are free here and {self._options.min_free_disk_bytes} are kept for what "
                "runs; "
                "try another computing element",
                retry_after_s=30,
            )

    async def _own(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """The caller's jobs among these. Another's job is unknown to him, in every answer alike."""
        if len(job_ids) > MAX_IDS:
            raise InvalidRequest("TOO_MANY", f"at most {MAX_IDS} jobs can be named at once")
        subject = current_peer().subject
        found = await self._store.read(lambda connection: rows.find_jobs(connection, list(dict.fromkeys(job_ids))))
        return {job_id: job for job_id, job in found.items() if job.owner == subject}

    async def Cancel(self, request: pb.CancelRequest, context: Any) -> pb.CancelResponse:
        """Durable when answered; the state CANCELLED follows when the processes are dead."""
        own = await self._own(request.job_ids)
        live = [job_id for job_id, job in own.items() if not job.ended]
        if live:
            await self._driver.ask([CancelAsked(job_id) for job_id in live])
        return pb.CancelResponse(unknown=[job_id for job_id in request.job_ids if job_id not in own])

    async def Hold(self, request: pb.HoldRequest, context: Any) -> pb.HoldResponse:
        """All of them, or none when one is unknown or does not wait any more."""
        jobs = await self._mine(request.job_ids)
        gone = next((job for job in jobs if job.state is not State.QUEUED), None)
        if gone is not None:
            raise Conflict(
                "JOB_NOT_WAITING",
                f"{gone.job_id} is {gone.state.value} and cannot be held; only jobs that wait can",
            )
        await self._driver.ask([HoldAsked(job.job_id) for job in jobs])
        return pb.HoldResponse()

    async def Release(self, request: pb.HoldRequest, context: Any) -> pb.HoldResponse:
        """Those that are not held stay as they are."""
        await self._driver.ask([ReleaseAsked(job.job_id) for job in await self._mine(request.job_ids)])
        return pb.HoldResponse()

    async def _mine(self, job_ids: Sequence[str]) -> list[Job]:
        """The caller's jobs of these ids. Raises NotFound when one is not his or not here."""
        own = await self._own(job_ids)
        unknown = next((job_id for job_id in job_ids if job_id not in own), None)
        if unknown is not None:
            raise NotFound("JOB_UNKNOWN", f"{unknown} is not a job of {current_peer().subject} here")
        return list(own.values())

    async def Close(self, request: pb.CloseRequest, context: Any) -> pb.CloseResponse:
        """Durable when answered, and published then."""
        closure = wire.closure_from_wire(request)
        machine = self._driver.machine
        if request.queue:
            self._queue(request.queue)
            whole = machine.closures.get("")
            if whole is not None:
                raise Conflict(
                    "ALL_QUEUES_SHUT",
                    f"all queues are shut here ({whole.reason}); open them all first, then shut single ones",
                )
        await self._driver.ask([ClosureAsked(closure, request.queue)])
        self._context.log.audit(
            "queue.closure",
            queue=request.queue or None,
            peer=current_peer(context).subject,
            draining=closure.draining,
            reason=closure.reason,
            begins_at_us=closure.begins_at_us,
            ends_at_us=closure.ends_at_us,
        )
        _, _, running, waiting = machine.counts()
        if request.queue:
            running, waiting = machine.running_in[request.queue], machine.waiting_in[request.queue]
        return pb.CloseResponse(running=running, waiting=waiting)

    async def Tags(self, request: pb.TagsRequest, context: Any) -> pb.TagsResponse:
        """Changes, if any, then what there is."""
        peer = current_peer(context)
        if request.add or request.remove:
            managers = self._options.software_managers or (f"/{peer.vo}/Role=lcgadmin",)
            access.require(managers, peer, "changing software tags")
            add = [wire.check_tag(tag, peer.vo) for tag in request.add]
            remove = [wire.check_tag(tag, peer.vo) for tag in request.remove]
            await self._store.write(lambda connection: rows.change_tags(connection, peer.vo, add, remove))
            self._context.log.audit("software.tags", peer=peer.subject, vo=peer.vo, add=add, remove=remove)
        self.software.tags = await self._store.read(rows.load_tags)
        self.software.changed()
        area = self.software.area()
        return pb.TagsResponse(
            tags=self.software.tags.get(peer.vo, ()), software_area=f"{area}/{peer.vo}" if area else ""
        )

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:
        """The newest update of each of the caller's jobs that was named and is here."""
        own = await self._own(request.job_ids)
        jobs = [wire.update_to_wire(rows.update_of(own[job_id])) for job_id in request.job_ids if job_id in own]
        return pb.StatusResponse(jobs=jobs)

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:
        """First what changed since, then what changes."""
        subject = current_peer(context).subject
        watcher = self._driver.watch(subject)
        try:
            sent = request.after_sequence
            while True:
                after = sent
                found = await self._store.read(lambda c, after=after: rows.changed_after(c, subject, after, WATCH_PART))
                if found:
                    sent = found[-1].sequence
                    yield pb.WatchResponse(updates=[wire.update_to_wire(rows.update_of(job)) for job in found])
                if len(found) < WATCH_PART:
                    break
            yield pb.WatchResponse(caught_up=True)
            async for response in self._live(watcher, sent):
                yield response
        finally:
            self._driver.unwatch(watcher)

    async def _live(self, watcher: Any, sent: int) -> AsyncIterator[pb.WatchResponse]:
        pace = Pace(WATCH_GATHER_S, MAX_WATCH_GATHER_S)
        while True:
            await watcher.changed.wait()
            await pace.gather()
            watcher.changed.clear()
            if watcher.overflowed:
                raise Exhausted(
                    "WATCH_TOO_SLOW", "this reader is too slow; watch again from its last sequence", retry_after_s=1
                )
            updates, watcher.updates = watcher.updates, []
            pace.took(len(updates))
            # What the read of the store has shown already, or a newer state of the same job, is not told again.
            fresh = [update for update in updates if update.sequence > sent]
            for start in range(0, len(fresh), WATCH_PART):
                yield pb.WatchResponse(
                    updates=[wire.update_to_wire(update) for update in fresh[start : start + WATCH_PART]]
                )

    async def GetOutput(self, request: pb.GetOutputRequest, context: Any) -> AsyncIterator[pb.GetOutputResponse]:
        """File by file; the first message of each file has its name."""
        job = (await self._own([request.job_id])).get(request.job_id)
        if job is None:
            raise NotFound("JOB_UNKNOWN", f"{request.job_id} is not a job of {current_peer(context).subject} here")
        if not job.ended:
            raise Conflict(
                "JOB_NOT_ENDED", f"{request.job_id} is {job.state.value}; its output is here when it has ended"
            )
        files = await self._store.read(lambda connection: rows.output_list(connection, job.job_id))
        for name, size_bytes, sha256, in_area in files:
            response = pb.GetOutputResponse(name=name, size_bytes=size_bytes, sha256=sha256)
            if not in_area:
                data = await self._store.read(lambda c, name=name: rows.output_data(c, job.job_id, name))
                response.data = data or b""
                yield response
                continue
            async for piece in self._sandbox.pieces(sha256):
                response.data = piece
                yield response
                response = pb.GetOutputResponse()

    async def Follow(self, request: pb.FollowRequest, context: Any) -> AsyncIterator[pb.FollowResponse]:
        """See Following.follow."""
        (job,) = await self._mine([request.job_id])
        pieces = self._following.follow(job, request)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]

    async def Purge(self, request: pb.PurgeRequest, context: Any) -> pb.PurgeResponse:
        """Ended jobs go; unknown ids are gone already."""
        own = await self._own(request.job_ids)
        living = next((job for job in own.values() if not job.ended), None)
        if living is not None:
            raise Conflict(
                "JOB_NOT_ENDED", f"{living.job_id} is {living.state.value}; cancel it first or wait for its end"
            )
        if own:
            await self._driver.ask([Purged(job_id) for job_id in own])
            self._accounts.look_soon()
        return pb.PurgeResponse()


class WorkerPortServicer(gatekeeper_pb2_grpc.WorkerPortServicer):
    """For workers of this site."""

    def __init__(self, pool: WorkerPool, driver: Driver, sandbox: Sandbox, options: GatekeeperOptions) -> None:
        self._pool, self._driver, self._sandbox, self._options = pool, driver, sandbox, options

    async def Work(
        self, request_iterator: AsyncIterator[pb.WorkerReport], context: Any
    ) -> AsyncIterator[pb.WorkerOrder]:
        """See WorkerPool.serve."""
        orders = self._pool.serve(current_peer(context).agent_name, aiter(request_iterator))
        try:
            async for order in orders:
                yield order
        finally:
            await orders.aclose()  # type: ignore[attr-defined]

    async def FetchSandbox(
        self, request: pb.FetchSandboxRequest, context: Any
    ) -> AsyncIterator[pb.FetchSandboxResponse]:
        """One file of the area in pieces."""
        async for piece in self._sandbox.pieces(request.sha256):
            yield pb.FetchSandboxResponse(data=piece)

    async def Peeked(self, request: pb.PeekedRequest, context: Any) -> pb.PeekedResponse:
        """To who waits for it."""
        self._pool.peeked(current_peer(context).agent_name, request)
        return pb.PeekedResponse()

    async def FirstPartFile(self, request: pb.FirstPartFileRequest, context: Any) -> pb.FirstPartFileResponse:
        """Read there, as for a reader of the owner."""
        worker = current_peer(context).agent_name
        job = self._driver.machine.current(worker, request.job_id, request.attempt, request.run)
        if job is None:
            raise Refused("FENCED", f"{request.job_id} attempt {request.attempt} is not with {worker}")
        if not request.name.startswith(wire.RESERVED_PREFIX) or "/" in request.name:
            raise InvalidRequest("FILE_NAME", f"{request.name[:80]!r} is no file that workers pass to each other")
        peeked = await self._pool.peek(job, request.name, 0)
        return pb.FirstPartFileResponse(data=peeked.data if peeked is not None else b"")

    async def StoreOutput(
        self, request_iterator: AsyncIterator[pb.StoreOutputRequest], context: Any
    ) -> pb.StoreOutputResponse:
        """One output file of a job that this worker has; it is tied to the job by the report that follows."""
        header = await _first(request_iterator, "StoreOutput")
        worker = current_peer(context).agent_name
        if self._driver.machine.current(worker, header.job_id, header.attempt, header.run) is None:
            raise Refused(
                "FENCED", f"{header.job_id} attempt {header.attempt} is not with {worker}; its output is not wanted"
            )
        wire.check_name(header.name, "output sandbox")
        if header.size_bytes > self._options.max_output_sandbox_bytes:
            raise InvalidRequest(
                "OUTPUT_TOO_LARGE",
                f"the output file {header.name!r} of {header.size_bytes} bytes is over the limit of "
                f"{self._options.max_output_sandbox_bytes}; write it to a storage element",
            )
        await self._sandbox.receive(header.sha256, header.size_bytes, header.data, request_iterator)
        return pb.StoreOutputResponse()


async def _first(requests: AsyncIterator[Any], method: str) -> Any:
    try:
        return await anext(aiter(requests))
    except StopAsyncIteration:
        raise InvalidRequest("EMPTY_STREAM", f"{method} was ended without a message") from None
