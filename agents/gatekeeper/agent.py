"""The gatekeeper put together: recover, serve, hand out, record, publish, clean."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from gridfabric.bookkeeping.v1 import bookkeeping_pb2, bookkeeping_pb2_grpc
from gridfabric.gatekeeper.v1 import gatekeeper_pb2_grpc

from agents.gatekeeper import publish, wire
from agents.gatekeeper import store as rows
from agents.gatekeeper.accounts import Accounts
from agents.gatekeeper.broker_fences import BrokerFences
from agents.gatekeeper.config import GatekeeperOptions, QueueOptions
from agents.gatekeeper.driver import Driver
from agents.gatekeeper.following import Following
from agents.gatekeeper.machine import GatekeeperMachine, Worker
from agents.gatekeeper.model import (
    KILL_REASONS,
    CancelAsked,
    Closure,
    Job,
    Purged,
    QueueRules,
    Rules,
    State,
    Ticked,
    Update,
)
from agents.gatekeeper.sandbox import SandboxArea
from agents.gatekeeper.servicer import (
    GATEKEEPER_RULES,
    WORKER_PORT_RULES,
    GatekeeperServicer,
    Sandbox,
    Software,
    WorkerPortServicer,
)
from agents.gatekeeper.workers import WorkerPool
from fabric import access, glue_model
from fabric.agent import OTHERS_AFTER_S, Agent, AgentHealth, AgentState
from fabric.clock import to_us, utc_text
from fabric.context import AgentContext
from fabric.errors import GridError, from_security
from fabric.outbox import Outbox
from fabric.rpc.server import RpcService
from fabric.settings import parse_options
from fabric.text import counted
from security.credentials import Credential
from security.errors import SecurityError
from security.trust import TrustSnapshot
from security.validation import Identity, validate_client_chain

CLEAN_EVERY_S = 10.0
QUIET_TICKS = 4
"""Where nothing waits for time to pass, the clock ticks so many times slower."""
JUDGE_OWNERS_S = 60.0
"""Owners of jobs are judged after every change of trust, map or bans, and this often besides."""
KEPT_AFTER_S = 3.0
"""That jobs were stopped is kept so much later, when every process has its kill and most ends have been reported:
until then whoever restarts judges their owner again."""


@dataclass(frozen=True)
class _Verified:
    """What an owner's delegated proxy says, by which trust and when it was verified."""

    identity: Identity
    proxy: Credential
    trust: int
    at: datetime


class Gatekeeper(Agent):
    """One computing element."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        settings = context.settings
        self.options = parse_options(GatekeeperOptions, settings.options, f"options of {settings.name}")
        self.queues = self.options.every_queue()
        for queue in self.queues.values():
            access.check(queue.access, f"options of {settings.name}, access of {queue.name}")
        self._store = context.store("gatekeeper", rows.metadata, rows.MIGRATIONS)
        self._outbox = Outbox(self._store, settings.name)
        self._accounts = Accounts(
            context.state_dir / "gridmapdir",
            self.options,
            context.log,
            per_pool=settings.fabric.mapping == "vo-groups",
        )
        area = SandboxArea(
            context.state_dir / "sandbox",
            max_bytes=self.options.sandbox_area_bytes,
            max_files=self.options.sandbox_area_files,
            max_file_bytes=max(self.options.max_sandbox_file_bytes, self.options.max_output_sandbox_bytes),
        )
        self._sandbox = Sandbox(area, self._store, context.clock)
        self.machine = GatekeeperMachine(
            Rules(
                worker_lost_us=int(self.options.worker_lost_s * 1e6),
                max_queued=self.options.max_queued,
                max_running=self.options.max_running,
                shares=self.options.shares,
                queues={name: QueueRules(queue.max_queued, queue.max_running) for name, queue in self.queues.items()},
            )
        )
        self._pool = WorkerPool(context, self._store, self.options.heartbeat_s, self._contact)
        self._driver = Driver(
            self.machine,
            self._store,
            context.clock,
            context.log,
            perform=self._pool.perform,
            record=self._record,
            changed=self._on_change,
            reconnect_workers=self._pool.reconnect,
        )
        self._pool.driver = self._driver
        context.delegations.on_change(lambda _subject, _id: self._renew.set())
        context.delegations.jobs_of = self._jobs_of
        context.delegations.stop_jobs = self._stop_jobs_of
        self._renew = asyncio.Event()
        self._publish_wanted = asyncio.Event()
        self._published: Any = None
        self._started_text = utc_text(context.clock.now())
        self._stopping = False
        self._leases = 0
        self._verified: dict[str, _Verified] = {}
        self._software = Software(
            area=lambda: next((facts["software_area"] for facts in self._facts() if "software_area" in facts), ""),
            changed=self._publish_wanted.set,
        )
        self._broker_fences = BrokerFences(self._store)
        self.services: Sequence[RpcService] = (
            RpcService(
                GatekeeperServicer(
                    context=context,
                    options=self.options,
                    driver=self._driver,
                    store=self._store,
                    sandbox=self._sandbox,
                    accounts=self._accounts,
                    software=self._software,
                    broker_fences=self._broker_fences,
                    following=Following(self._pool, self._driver, self._store, self._sandbox),
                ),
                gatekeeper_pb2_grpc.add_GatekeeperServicer_to_server,
                GATEKEEPER_RULES,
            ),
            RpcService(
                WorkerPortServicer(self._pool, self._driver, self._sandbox, self.options),
                gatekeeper_pb2_grpc.add_WorkerPortServicer_to_server,
                WORKER_PORT_RULES,
            ),
        )

    @property
    def port(self) -> int:
        """The gRPC port; 0 before it is bound when the system chooses it."""
        rpc = self.context.rpc
        return rpc.port if rpc is not None and rpc.port else self.context.settings.rpc_port

    def _contact(self) -> str:
        return f"{self.context.settings.advertise}:{self.port}/jobmanager-{self.options.batch}"

    def computing_element(self, queue: str) -> str:
        """GlueCEUniqueID of a queue."""
        return f"{self._contact()}-{queue}"

    # ---- life

    async def start(self) -> None:
        """Recover, then begin."""
        began = time.monotonic()
        await asyncio.to_thread(self._accounts.create, self.context.vos)
        live, attempts, sequence = await self._store.read(rows.load)
        await self._broker_fences.load()
        self._software.tags = await self._store.read(rows.load_tags)
        self.machine.closures = await self._store.read(rows.load_closures)
        self.machine.recover(live, attempts, sequence, to_us(self.context.clock.now()))
        known = await self._store.read(rows.sandbox_all)
        missing, removed = await asyncio.to_thread(self._sandbox.area.open, known)
        if missing:
            await self._store.write(lambda connection: rows.sandbox_drop(connection, sorted(missing)))
        self.context.log.info(
            "gatekeeper.recovered",
            jobs=len(live),
            sequence=sequence,
            sandbox_files=self._sandbox.area.files,
            sandbox_lost=len(missing),
            sandbox_removed=removed,
            account_mode=self._accounts.mode,
            took_s=round(time.monotonic() - began, 3),
        )
        spawn = self.context.spawn
        spawn(self._driver.run(), "driver")
        spawn(self._tick(), "ticker")
        spawn(self._clean(), "cleaner")
        spawn(self._renew_proxies(), "proxy renewal")
        spawn(self._follow_vos(), "VOs")
        spawn(self._judge_owners(), "owners judged again")
        spawn(self._accounts.run(self._owners, self.context.clock.monotonic), "leases")
        if self.context.settings.endpoints("bookkeeping"):
            spawn(self._outbox.run(self._deliver), "events to bookkeeping")

    async def started(self) -> None:
        """The port is open."""
        self.context.spawn(self._publish(), "publisher")
        self._publish_wanted.set()

    async def stop(self) -> None:
        """Take nothing new, tell the workers, flush events, give back leases without jobs."""
        self._stopping = True
        whole = self.machine.closures.get("", Closure())
        self.machine.closures[""] = dataclasses.replace(whole, draining=True)
        self._pool.drain()
        await self._accounts.release(self._owners, self.context.clock.monotonic(), 0.0)
        if self.context.settings.endpoints("bookkeeping"):
            try:
                await asyncio.wait_for(self._outbox.drained(), 2.0)
            except TimeoutError:
                self.context.log.warning(
                    "events.left", detail="bookkeeping did not take all events; they are kept for the next start"
                )

    async def _owners(self) -> set[str]:
        return await self._store.read(rows.owners)

    # ---- bookkeeping

    def _record(self, connection: sa.Connection, updates: Sequence[Update], accepted: set[str]) -> None:
        settings = self.context.settings
        events = wire.events_to_wire(updates, settings.name, settings.site, self.computing_element, accepted)
        if events:
            self._outbox.add(connection, [event.SerializeToString() for event in events])

    async def _deliver(self, batch: Sequence[Any]) -> None:
        endpoint = self.context.settings.endpoint("bookkeeping")
        channel = await self.context.channels.get(endpoint.host, endpoint.rpc)
        request = bookkeeping_pb2.RecordRequest()
        for item in batch:
            event = bookkeeping_pb2.Event.FromString(item.payload)
            event.sequence = item.sequence
            request.events.append(event)
        await bookkeeping_pb2_grpc.BookkeepingStub(channel).Record(request)

    # ---- background

    async def _tick(self) -> None:
        while True:
            pause_s = min(1.0, max(0.05, self.options.worker_lost_s / 4))
            await asyncio.sleep(pause_s * (1 if self.machine.waits_for_time else QUIET_TICKS))
            self._driver.feed([Ticked()])
            if self._driver.blocked:
                self.context.problem("store", f"nothing can be kept: {self._driver.blocked}")
            else:
                self.context.solved("store")

    async def _renew_proxies(self) -> None:
        while True:
            await self._renew.wait()
            self._renew.clear()
            await self._pool.renew()

    async def _follow_vos(self) -> None:
        """Pool accounts for VOs that are new here, and what is published."""
        seen = -1
        while True:
            heard = self.context.judged.rung
            if seen != self.context.vos.generation or "pool accounts" in self.context.problems:
                seen = self.context.vos.generation
                try:
                    await asyncio.to_thread(self._accounts.create, self.context.vos)
                    self.context.solved("pool accounts")
                except GridError as error:
                    self.context.problem("pool accounts", error.sentence)
                self._publish_wanted.set()
            await self.context.judged.wait(JUDGE_OWNERS_S, heard)

    async def _judge_owners(self) -> None:
        """When trust, bans, VOs or the map change: jobs of people and VOs that would be refused now are stopped (option
        `revoked_jobs`)."""
        judged_by = -1
        while self.options.revoked_jobs == "kill":
            heard, trust = self.context.judged.rung, self.context.trust.snapshot()
            for vo, refusal in self.context.vos.refused().items():
                if refusal.reason.value in KILL_REASONS:
                    self._stop_refused([job for job in self._under_way() if job.vo == vo], refusal, vo=vo)
            owners = {job.owner for job in self._under_way()}
            self._verified = {owner: known for owner, known in self._verified.items() if owner in owners}
            named: set[str] = set()
            if judged_by not in (-1, trust.generation):
                named = {owner for owner in owners if self._is_named(owner, trust)}
                await self._judge(named)
                await self.context.judged.wait(OTHERS_AFTER_S, heard)
            judged_by = trust.generation
            await self._judge(owners - named)
            await self.context.judged.wait(JUDGE_OWNERS_S, heard)

    def _is_named(self, owner: str, trust: TrustSnapshot) -> bool:
        try:
            return trust.names(self.context.delegations.get(owner).certificates)
        except GridError:
            return False

    async def _judge(self, owners: set[str]) -> None:
        for owner in owners:
            refusal = await self._objection(owner)
            if refusal is not None:  # an expired or missing delegation is no reason: the jobs have their own
                self._stop_refused([job for job in self._under_way() if job.owner == owner], refusal, owner=owner)

    def _stop_refused(self, jobs: Sequence[Job], refusal: GridError | SecurityError, **whose: str) -> None:
        """Processes first; what is kept, reported and published of it comes when those of all sites are gone."""
        if not jobs:
            return
        reason = str(refusal.reason)
        running = [CancelAsked(job.job_id, reason) for job in jobs if job.state is State.RUNNING]
        others = [CancelAsked(job.job_id, reason) for job in jobs if job.state is not State.RUNNING]
        if running:
            self._pool.perform(self.machine.stop([wish.job_id for wish in running], reason))
            asyncio.get_running_loop().call_later(KEPT_AFTER_S, self._driver.feed, running)
        if others:
            self._driver.feed(others)
        self._audit_stop(len(jobs), reason, refusal.sentence, **whose)

    def _audit_stop(self, jobs: int, reason: str, sentence: str, **whose: str) -> None:
        self.context.log.audit("jobs.stopped", **whose, jobs=jobs, reason=reason, sentence=sentence)

    async def _objection(self, owner: str) -> GridError | None:
        """Why the owner's jobs may not go on."""
        context = self.context
        try:
            identity = await self._identity_of(owner)
            attributes = context.voms.attributes_of(
                identity, context.trust.snapshot(), context.policy, context.clock.now()
            )
            context.judge.judge(identity, unmapped=False, attributes=attributes)
        except SecurityError as error:
            refusal = from_security(error)
        except GridError as error:
            refusal = error
        else:
            return None
        return refusal if refusal.reason in KILL_REASONS else None

    async def _identity_of(self, owner: str) -> Identity:
        """By the delegated proxy, whose chain is verified again when trust has changed, and now and then."""
        context = self.context
        proxy, trust, now = context.delegations.get(owner), context.trust.snapshot(), context.clock.now()
        known = self._verified.get(owner)
        fresh = known is not None and known.proxy is proxy and (now - known.at).total_seconds() < JUDGE_OWNERS_S
        if known is not None and fresh and trust.still_accepts(known.identity.certificates, known.trust, now):
            return known.identity
        identity = await asyncio.to_thread(validate_client_chain, proxy.certificates, trust, context.policy, now)
        self._verified[owner] = _Verified(identity, proxy, trust.generation, now)
        return identity

    def _under_way(self) -> list[Job]:
        """Live jobs not stopped for such a reason yet. One that somebody cancelled may still use its grace."""
        return [job for job in self.machine.jobs.values() if job.cancel_reason not in KILL_REASONS]

    def _jobs_of(self, owner: str) -> list[str]:
        return [job.job_id for job in self._under_way() if job.owner == owner]

    async def _stop_jobs_of(self, owner: str, reason: str, sentence: str) -> None:
        """For the ledger of delegations, which erases next: kept when it returns, also what `stop` only ordered."""
        if self.options.revoked_jobs != "kill" and reason in KILL_REASONS:
            return
        if jobs := self._jobs_of(owner):
            self._audit_stop(len(jobs), reason, sentence, owner=owner)
        live = [job.job_id for job in self.machine.jobs.values() if job.owner == owner]
        if live:
            await self._driver.ask([CancelAsked(job_id, reason) for job_id in live])

    async def _clean(self) -> None:
        while True:
            await asyncio.sleep(CLEAN_EVERY_S)
            try:
                await self._clean_once()
            except (GridError, OSError) as error:  # a full disk is the very time to try again
                self.context.log.warning("clean.failed", detail=str(error))

    async def _clean_once(self) -> None:
        now_us = to_us(self.context.clock.now())
        area, options = self._sandbox.area, self.options
        crowded = area.bytes > 0.8 * area.max_bytes or area.files > 0.8 * area.max_files
        linger_s = 60.0 if crowded else options.sandbox_linger_s
        before_us = now_us - int(linger_s * 1e6)

        def take_unused(connection: sa.Connection) -> list[tuple[str, int]]:
            # Files go on the writer's thread: an upload of the same file notes itself either before or after this.
            found = rows.sandbox_take_unused(connection, before_us, 500)
            area.remove(found)
            return found

        unused = await self._store.write(take_unused)
        if unused:
            self.context.log.info("sandbox.cleaned", files=len(unused), bytes=sum(size for _, size in unused))
        old_us = now_us - int(options.keep_ended_s * 1e6)
        ended = await self._store.read(lambda c, b=old_us: rows.ended_before(c, b))
        if ended:
            await self._driver.ask([Purged(job_id) for job_id in ended])
            self.context.log.warning("jobs.purged_unfetched", jobs=len(ended))
        fence_us = now_us - int(options.fence_memory_s * 1e6)
        forgotten = await self._store.write(lambda c, b=fence_us: rows.forget_fences(c, b))
        self.machine.forget(forgotten)
        self._leases = await asyncio.to_thread(self._accounts.leases)
        free = area.free_disk_bytes()
        if free < options.min_free_disk_bytes:
            self.context.problem("disk", f"only {free} bytes of disk are free: new jobs are refused")
        elif area.files > 0.9 * area.max_files:
            self.context.problem(
                "disk", f"the sandbox area holds {area.files} of at most {area.max_files} files (i-nodes)"
            )
        else:
            self.context.solved("disk")

    # ---- information

    def _on_change(self) -> None:
        self._publish_wanted.set()

    def _measure(self) -> publish.Measured:
        full = self._sandbox.area.free_disk_bytes() < self.options.min_free_disk_bytes or bool(self._driver.blocked)
        return publish.Measured(
            tuple(self._measure_queue(queue, full) for queue in self.queues.values()),
            self.machine.counts()[0],
            (
                publish.GANG_TAG,
                *((publish.OPEN_MPI_TAG,) if self._have_open_mpi() else ()),
                *(tag for vo in self.context.vos.served for tag in self._software.tags.get(vo, ())),
            ),
            self.machine.closures.get("", Closure()),
        )

    def _have_open_mpi(self) -> bool:
        workers = self._connected()
        return bool(workers) and all(wire.OPEN_MPI_FACT in self._pool.facts.get(one.name, {}) for one in workers)

    def _measure_queue(self, queue: QueueOptions, full: bool) -> publish.QueueMeasured:
        machine = self.machine
        total, free, _, _ = machine.counts()
        running = machine.running_in[queue.name]
        if queue.max_running:
            total, free = min(total, queue.max_running), min(free, max(0, queue.max_running - running))
        status, why = self._status(queue.name, full)
        ahead = (other.name for other in self.queues.values() if other.priority >= queue.priority)
        vos, fqans = access.published(queue.access, self.context.vos.served)
        return publish.QueueMeasured(
            name=queue.name,
            total_slots=total,
            free_slots=free if status == glue_model.PRODUCTION else 0,
            running=running,
            waiting=machine.waiting_in[queue.name],
            ahead=sum(machine.waiting_in[name] for name in ahead),
            status=status,
            why=why,
            mean_wall_s=round(self._driver.mean_wall_s.get(queue.name, 0.0), 1),
            max_wall_s=queue.max_wall_s,
            max_cpu_s=queue.max_cpu_s,
            max_waiting=queue.max_queued or self.options.max_queued,
            priority=queue.priority,
            vos=vos,
            fqans=fqans,
        )

    def _status(self, queue: str, full: bool) -> tuple[str, str]:
        """GlueCEStateStatus and why."""
        closures, now_us = self.machine.closures_of(queue), to_us(self.context.clock.now())
        draining = next((closure for closure in closures if closure.draining), None)
        held = next((closure for closure in closures if closure.holds(now_us)), None)
        if draining is not None:
            return (glue_model.CLOSED if held else glue_model.DRAINING), draining.reason or "it stops"
        if full:
            return glue_model.CLOSED, "no disk is free"
        if held is not None:
            return glue_model.QUEUEING, held.reason
        return glue_model.PRODUCTION, "; ".join(self._unfit())

    def _facts(self) -> list[dict[str, str]]:
        return [self._pool.facts[name] for name in sorted(self.machine.workers) if name in self._pool.facts]

    def _connected(self) -> list[Worker]:
        return [worker for worker in self.machine.workers.values() if worker.stream]

    def _unfit(self) -> list[str]:
        """Which workers take no jobs, and why."""
        return [f"{worker.name}: {worker.unfit}" for worker in self._connected() if worker.unfit]

    async def _publish(self) -> None:
        settings = self.context.settings
        while True:
            await self._publish_wanted.wait()
            self._publish_wanted.clear()
            measured = self._measure()
            if measured != self._published:
                self._published = measured
                self.context.publisher.replace(
                    publish.entries(
                        settings,
                        contact=self._contact(),
                        port=self.port,
                        lrms=self.options.batch,
                        measured=measured,
                        operating_system=self.options.operating_system,
                        facts=self._facts(),
                        started=self._started_text,
                    )
                )
            await asyncio.sleep(self.options.publish_min_interval_s)

    # ---- health

    def health(self) -> AgentHealth:
        """Green with at least one worker; numbers for `grid status`."""
        total, free, running, waiting = self.machine.counts()
        connected = len(self._connected())
        numbers = {
            "slots": float(total),
            "free": float(free),
            "running": float(running),
            "waiting": float(waiting),
            "workers": float(connected),
            "leases": float(self._leases),
            "accepted": float(self._driver.numbers.accepted),
            "sandbox_files": float(self._sandbox.area.files),
            "sandbox_bytes": float(self._sandbox.area.bytes),
        }
        for state in (State.DONE, State.FAILED, State.CANCELLED):
            numbers[state.value.lower()] = float(self._driver.numbers.ended.get(state.value, 0))
        if self._stopping:
            return AgentHealth(AgentState.DRAINING, "stopping", numbers)
        states = {queue: self._status(queue, full=False) for queue in self.queues}
        shut = {queue: state for queue, state in states.items() if state[0] != glue_model.PRODUCTION}
        if shut:
            told = publish.told_of({queue: f"{status}: {why}" for queue, (status, why) in shut.items()}, len(states))
            state = AgentState.DRAINING if len(shut) == len(states) else AgentState.GREEN
            return AgentHealth(state, f"{told}; {running} run, {waiting} wait", numbers)
        unfit = self._unfit()
        mode = (
            "accounts leased, jobs run under them"
            if self._accounts.mode == "pool"
            else "jobs run as the caller, leases recorded"
        )
        detail = f"{counted(connected, 'worker')}, {mode}" + (f"; {'; '.join(unfit)[:200]}" if unfit else "")
        state = AgentState.DEGRADED if unfit and not free else AgentState.GREEN
        return AgentHealth(state, detail, numbers)


def build(context: AgentContext) -> Agent:
    """For the shell."""
    return Gatekeeper(context)
