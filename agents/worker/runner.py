"""Carries out what the worker's machine decides: rows, directories, proxies, processes, output, reports.

Cheap steps of many jobs go to one thread call; steps that move files are a task per job, at most `max_staging` at a
time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from gridfabric.gatekeeper.v1 import gatekeeper_pb2_grpc

from agents.worker import open_mpi, payloads, ranks, scratch, wrapper
from agents.worker import store as rows
from agents.worker.batch import BatchSystem, Listing
from agents.worker.broker_info import broker_info
from agents.worker.config import WorkerOptions
from agents.worker.data import DataMover
from agents.worker.health import BlackHole
from agents.worker.link import Link
from agents.worker.machine import WorkerMachine
from agents.worker.model import (
    IN_SLOT,
    AcknowledgedByGatekeeper,
    Collected,
    Commands,
    Event,
    GoAhead,
    Job,
    KillAsked,
    LinkOpened,
    Looked,
    Name,
    NotRunning,
    Ordered,
    OutputFile,
    Phase,
    Prepared,
    PrepareFailed,
    ProcessEnded,
    ProcessLost,
    ProcessStarted,
    Result,
    StartRefused,
)
from agents.worker.parts import PART_LOST
from agents.worker.perusal import Perusal
from agents.worker.proxies import OwnerProxies
from agents.worker.sandbox_cache import SandboxCache, is_passing
from agents.worker.shepherd import TERMINATED
from agents.worker.slurm import SlurmClient
from agents.worker.spares import Spares
from agents.worker.starter_client import StarterClient
from fabric import failpoints
from fabric.clock import to_us
from fabric.errors import GridError
from fabric.pace import Pace
from security.credentials import Credential

MAX_INFOS = 256
"""`.BrokerInfo` files kept in memory, of jobs without input data."""
MAX_INLINE_BYTES = 64 * 1024
"""Output of one job that travels inside its report."""
PIECE_BYTES = 1024 * 1024
MAX_PEEK_BYTES = 256 * 1024
MAX_PEEKS = 128
"""Readers of files of running jobs that wait here at a time."""
PEEK_S = 5.0
MPI_ASK_S = 30.0
PEEK_LOOK_S = 0.2
"""A file is looked at so often, for PEEK_S, until it has grown."""
GATHER_S = 0.002
MAX_GATHER_S = 0.05
"""How long events are gathered before a turn: usually, and when many come."""
REPORTED_AFTER_S = 1.0
"""What was killed because its owner is believed no more is reported so much later: other sites' kills come first."""
_LIMITS = {
    "WALL_TIME": "it ran longer than its wall time limit",
    "CPU_TIME": "it used more processor time than its limit",
    "MEMORY": "its processes together used more memory than its limit",
    "PROCESSES": "it had more processes than this node allows a job",
    "DISK": "its directory took more bytes than its limit",
    "INODES": "its directory had more files than this node allows a job",
    "FILE_SIZE": "a file of it grew over its disk limit",
}


class Runner:
    """Everything between the gatekeeper's orders and the batch system's processes."""

    def __init__(self, context: Any, options: WorkerOptions, store: Any, root: Path, endpoint: Any) -> None:
        self.context, self.options, self._store, self.root = context, options, store, root
        self.state_dir: Path = context.state_dir
        self._jobs_dir = self.state_dir / "jobs"
        self._log = context.log
        self._endpoint = endpoint
        self.machine = WorkerMachine(
            options.slot_count(), max_unacknowledged=options.max_unacknowledged, prefetch=options.prefetch
        )
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.batch: BatchSystem = self._batch_system()
        self._spares = Spares(root)
        self.link = Link(
            context,
            endpoint,
            hello=self._hello,
            opened=self._link_opened,
            credit=lambda: (self.machine.credit, self.machine.unfit, self.machine.busy),
            intake=self._intake,
            reconnect_max_s=options.reconnect_max_s,
        )
        self.proxies = OwnerProxies(ask=self.link.want_proxy, clock=context.clock, renewed=self._proxy_renewed)
        self._cache = SandboxCache(
            self.state_dir / "sandbox", max_bytes=options.cache_bytes, max_files=options.cache_files, fetch=self._fetch
        )
        self._data = DataMover(context.settings, context.channels, retry_s=options.staging_retry_s, log=context.log)
        self._perusal = Perusal(root, self._data, self.proxies, context.log)
        self._black_hole = BlackHole(
            jobs=options.black_hole_jobs,
            fast_s=options.black_hole_fast_s,
            window_s=options.black_hole_window_s,
            pause_s=options.black_hole_pause_s,
        )
        self._disk_problem = self._clock_problem = ""
        self._contact = ""
        self._usual_info = functools.lru_cache(MAX_INFOS)(self._broker_info)
        self._peeking: set[int] = set()
        self._asking: set[str] = set()
        """Keys of parts of gangs that wait for mpirun's word."""
        self._staging = asyncio.Semaphore(options.max_staging)
        self._events: list[Event] = []
        self._wake = asyncio.Event()
        self._pace = Pace(GATHER_S, MAX_GATHER_S)
        self.finished = self.failed = 0
        self.stopping = False
        self.facts: dict[str, str] = {}
        self._certificates: Path = context.settings.certificates

    def _batch_system(self) -> BatchSystem:
        options = self.options
        if options.batch == "slurm":
            return SlurmClient(self.state_dir, options, on_message=self._from_batch, log=self._log)
        return StarterClient(
            self.state_dir,
            options.orphan_timeout_s,
            self.machine.slots,
            on_message=self._from_batch,
            log=self._log,
        )

    # ---- life

    async def recover(self) -> None:
        """Find out what became of every order held, and remove what belongs to none."""
        await asyncio.to_thread(scratch.make_root, self.root, for_others=os.geteuid() == 0)
        await asyncio.to_thread(self._spares.open)
        await asyncio.to_thread(self._cache.open)
        await asyncio.to_thread(self._jobs_dir.mkdir, 0o700, exist_ok=True)
        await asyncio.to_thread(self._mirror_certificates)
        held = await self._store.read(rows.load)
        for key, boot_id, order in held:
            run = pb.RunJob.FromString(order)
            job = _job(run, Phase.STARTING)
            rebooted = boot_id != self.boot_id and not self.batch.outlives_reboot
            if rebooted and self.batch.exit_of(key) is None:
                # Nothing of before the reboot says whether it ran: it may have, so it is not started again here.
                job.exit_record = {"lost": "WORKER_REBOOTED", "text": "the node was rebooted while it had the job"}
            self.machine.adopt(job)
        listing = await self.batch.connect()
        await self._reconcile(listing, fresh=True)
        strange = await asyncio.to_thread(self._strange) - {key for key, _, _ in held}
        if strange:
            await self._remove_strange(strange)
        self._log.info("worker.recovered", held=len(held), running=len(listing.running), orphans_removed=len(strange))

    def _strange(self) -> set[str]:
        """Keys of all directories and records that are here."""
        return set(scratch.keys(self.root)) | set(scratch.keys(self._jobs_dir))

    async def _remove_strange(self, keys: set[str]) -> None:
        """Directories, processes and records of jobs that have no row."""
        await asyncio.to_thread(self.batch.kill_remains, keys)
        await asyncio.to_thread(self._remove_scratch, sorted(keys))
        self.batch.forget(sorted(keys))

    async def run(self) -> None:
        """For ever: events in batches through the machine."""
        while True:
            await self._wake.wait()
            await self._pace.gather()
            self._wake.clear()
            events, self._events = self._events, []
            self._pace.took(len(events))
            if not events:
                continue
            try:
                await self._perform(self.machine.handle(events, to_us(self.context.clock.now())))
            except Exception as error:  # the other jobs go on; what this batch concerned may wait for the next start
                self._log.exception("runner.defect", error, events=len(events))
                self.context.problem("runner", f"a defect stopped some jobs' progress: {type(error).__name__}")

    def feed(self, events: Sequence[Event]) -> None:
        """Something happened."""
        self._events.extend(events)
        self._wake.set()

    async def keep_batch(self) -> None:
        """For ever: when the batch system is lost, connect again and compare notes."""
        while True:
            await self.batch.lost.wait()
            if self.stopping:
                return
            self._log.warning("batch.lost")
            try:
                listing = await self.batch.connect()
                await self._reconcile(listing, fresh=False)
                self.context.solved("batch system")
            except (GridError, OSError) as error:  # no processes or no disk: later there may be
                self.context.problem("batch system", f"no {self.options.batch}: {error}")
                self.batch.lost.set()
                await asyncio.sleep(1.0)

    async def _reconcile(self, listing: Listing, *, fresh: bool) -> None:
        """What each job that should be with the batch system really is."""
        running, waiting = listing.running, listing.waiting
        mine = {job.key: job for job in self.machine.jobs.values() if job.phase in IN_SLOT}
        events: list[Event] = []
        lost: list[Job] = []
        for key, job in mine.items():
            record = self.batch.exit_of(key)
            if record is not None:
                events.append(ProcessEnded(key, record))
            elif key in running:
                events.append(ProcessStarted(key, *running[key]))
            elif job.exit_record is not None and "lost" in job.exit_record:
                events.append(ProcessLost(key, job.exit_record["lost"], job.exit_record["text"]))
                lost.append(job)
            elif key not in waiting and self.batch.was_started(key):
                lost.append(job)
                events.append(ProcessLost(key, "STARTER_LOST", "the process that watched over it was killed"))
            elif key not in waiting:
                if fresh:
                    self._again(job)
                else:
                    events.append(NotRunning(key))
        if lost:
            killed = await asyncio.to_thread(self.batch.kill_remains, {job.key for job in lost})
            self._log.warning("batch.jobs_lost", jobs=len(lost), processes_killed=killed)
        strange = [key for key in running if key not in mine]
        if strange:
            self.batch.cancel(strange, "FORGOTTEN")
        self.feed(events)

    def _again(self, job: Job) -> None:
        """At start: it was never started; prepare it anew."""
        self.machine.again(job)
        self.feed([Ordered(job)])

    async def stop(self, timeout_s: float) -> None:
        """Take nothing more; kill and report what runs (policy `kill`), or leave it to the batch system (`leave`)."""
        self.stopping = True
        self.machine.unfit = "this worker is stopping"
        self.link.poke()
        if self.options.stop_policy == "kill":
            for job in list(self.machine.jobs.values()):
                self.feed([KillAsked(job.name, "WORKER_STOPPED")])
            until = time.monotonic() + timeout_s
            while time.monotonic() < until and self.machine.jobs:
                if not self.link.connected and not self.machine.in_slots:
                    break  # nobody to report to: rows and results stay for the next start
                await asyncio.sleep(0.02)
            self.batch.shutdown()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await self.batch.lost.wait()
            # What was killed here has no output to keep; its exit record stays for the report of the next start.
            stopped = [job.key for job in self.machine.jobs.values() if job.kill_reason == "WORKER_STOPPED"]
            await asyncio.to_thread(self._remove_scratch, stopped)
        self.batch.close()
        await asyncio.to_thread(self._spares.close)
        if self.root.parent == Path("/var/tmp"):
            await asyncio.sleep(0.05)  # a look at the disk that began before is over
            await asyncio.to_thread(shutil.rmtree, self.root / "certificates", True)
            with contextlib.suppress(OSError):
                self.root.rmdir()

    # ---- commands

    async def _perform(self, todo: Commands) -> None:
        if todo.prepare:
            self._prepare(todo.prepare)
        if todo.start:
            self.batch.submit([self._start_order(job) for job in todo.start])
            failpoints.reached("worker.start.ordered")
        for job in todo.kill:
            self.batch.cancel([job.key], job.kill_reason, at_once=job.at_once)
        if todo.withdraw:
            self.batch.withdraw(todo.withdraw)
        if todo.report_ready:
            self.link.ready(todo.report_ready)
        if todo.report_started:
            self.link.started(todo.report_started)
            for job in todo.report_started:
                self._log.audit("job.started", **_whose(job), executable=job.order.description.executable, pid=job.pid)
                if job.order.description.perusal.interval_s and not job.order.first_rank:
                    self._spawn(self._perusal.run(job), f"perusal {job.key}")
                if job.order.open_mpi and job.order.first_rank and job.key not in self._asking:
                    self._asking.add(job.key)
                    self._spawn(self._bring_daemon(job), f"mpi {job.key}")
        if todo.collect:
            self._collect(todo.collect)
        if todo.report:
            self._report(todo.report)
        for name, reason in todo.unknown:
            self.link.report(
                name, Result(self.machine.now_us, reason=reason, sentence="the worker did not have the job")
            )
        gone = [*todo.forget, *todo.give_back]
        if gone:
            keys = [job.key for job in gone]
            # The row first: should we die in between, files without a row are rubbish, a row without files a second
            # run.
            await self._retrying(lambda: self._store.write(lambda connection: rows.delete(connection, keys)))
            failpoints.reached("worker.row.deleted")
            if todo.give_back:
                self.link.give_back([job.name for job in todo.give_back])
            self.batch.forget(keys)
            await asyncio.to_thread(self._remove_directories, gone)
        self.link.poke()

    def _remove_directories(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if _ended_alone(job) and not self.batch.outlives_reboot:  # nothing of it can run on, here or on other nodes
                self._spares.keep(job.key, owner=job.owner, uid=job.order.uid, gid=job.order.gid)
            else:
                scratch.remove(self.root, job.key)

    def _remove_scratch(self, keys: Sequence[str]) -> None:
        for key in keys:
            scratch.remove(self.root, key)

    async def _retrying(self, write: Callable[[], Awaitable[Any]]) -> None:
        while True:
            try:
                await write()
                self.context.solved("store")
                return
            except GridError as error:
                if error.reason == "STORE_CLOSED":
                    raise
                self.context.problem("store", error.sentence)
                await asyncio.sleep(1.0)

    def _report(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            result = job.result
            assert result is not None
            self.finished += 1
            self.failed += result.failed
            self._black_hole.ended(job.owner, result, time.monotonic())
            self._log.audit(
                "job.ended",
                **_whose(job),
                exit_code=result.exit_code,
                reason=result.reason or None,
                sentence=result.sentence or None,
                wall_s=result.wall_s,
                cpu_s=result.user_s + result.system_s,
            )
        # Fitness first: the report frees a slot at the gatekeeper, which would send the next job into a black hole.
        self._judge_fitness()
        self.link.finished(jobs)

    def _spawn(self, coro: Coroutine[Any, Any, Any], name: str) -> None:
        self.context.spawn(coro, name)

    # ---- orders in

    async def _intake(self, order: pb.WorkerOrder) -> None:
        events: list[Event] = []
        if order.run:
            events += await self._keep_orders(list(order.run))
        for kill in order.cancel:
            name = Name(kill.job_id, kill.attempt, kill.run)
            events.append(KillAsked(name, kill.reason or "CANCELLED", kill.at_once))
        for go in order.go:
            events.append(GoAhead(Name(go.job_id, go.attempt, go.run)))
        for done in order.acknowledged:
            events.append(AcknowledgedByGatekeeper(Name(done.job_id, done.attempt, done.run)))
        for peek in order.peek:
            if len(self._peeking) < MAX_PEEKS:  # who gets no answer asks again
                self._spawn(self._peek(peek), f"peek {peek.id}")
        if order.HasField("proxy"):
            proxy = order.proxy
            self.proxies.granted(proxy.owner, proxy.chain_pem, proxy.reason, proxy.sentence)
        if events:
            # At once, not by way of the queue: the hello of a next stream must know of them.
            await self._perform(self.machine.handle(events, to_us(self.context.clock.now())))
        if order.run:
            self.link.count_seen(len(order.run))

    async def _keep_orders(self, runs: list[pb.RunJob]) -> list[Event]:
        now_us = to_us(self.context.clock.now())
        jobs = [_job(run, Phase.PREPARING) for run in runs]
        new = [(job.key, self.boot_id, now_us, job.order.SerializeToString()) for job in jobs]
        if self.machine.unfit:
            self.link.give_back([job.name for job in jobs])
            return []
        try:
            await self._store.write(lambda connection: rows.insert(connection, new))
            failpoints.reached("worker.order.committed")
        except GridError as error:
            self._log.error("orders.not_kept", jobs=len(jobs), reason=error.reason, sentence=error.sentence)
            self.link.give_back([job.name for job in jobs])
            return []
        return [Ordered(job) for job in jobs]

    def _hello(self) -> pb.Hello:
        hello = pb.Hello(worker=self.context.settings.name, slots=self.machine.slots, facts=self.facts)
        for job in self.machine.jobs.values():
            hello.held.add(job_id=job.name.job_id, attempt=job.name.attempt, run=job.name.run)
        return hello

    def _link_opened(self, welcome: pb.Welcome) -> None:
        skew_s = abs(to_us(self.context.clock.now()) - welcome.now_us) / 1e6
        too_much = welcome.now_us and skew_s > self.options.max_clock_skew_s
        self._clock_problem = f"CLOCK: this clock is {skew_s:.0f} s away from the gatekeeper's" if too_much else ""
        self._judge_fitness()
        self._contact = welcome.contact
        self.proxies.reconnected({job.owner for job in self.machine.jobs.values()})
        self.feed([LinkOpened()])

    # ---- prepare

    def _prepare(self, jobs: Sequence[Job]) -> None:
        simple: list[tuple[Job, Credential]] = []
        for job in jobs:
            credential = self.proxies.cached(job.owner)
            files = job.order.description.input_sandbox
            ready = credential is not None and not job.order.description.input_data
            if ready and credential is not None and all(self._cache.cached(file.sha256) for file in files):
                simple.append((job, credential))
            else:
                self._spawn(self._prepare_slowly(job), f"prepare {job.key}")
        if simple:
            self._spawn(self._prepare_quickly(simple), "prepare")

    async def _prepare_quickly(self, jobs: list[tuple[Job, Credential]]) -> None:
        self.feed(await asyncio.to_thread(self._make_many, jobs))

    def _make_many(self, jobs: list[tuple[Job, Credential]]) -> list[Event]:
        return [self._make_directory(job, credential) for job, credential in jobs]

    async def _prepare_slowly(self, job: Job) -> None:
        description = job.order.description
        try:
            credential = await self.proxies.get(job.owner)
            async with self._staging:
                for file in description.input_sandbox:
                    await self._patient(lambda f=file: self._cache.get(f.sha256, f.size_bytes))
                event = await asyncio.to_thread(self._make_directory, job, credential)
                if isinstance(event, Prepared) and description.input_data:
                    if job.phase is not Phase.PREPARING:
                        raise GridError("CANCELLED", "killed while its input was staged")
                    replicas = await self._data.bring(
                        description.input_data, self.root / job.key, credential, job.order.uid, job.order.gid
                    )
                    protocols = tuple(description.data_access_protocols)
                    info = self._broker_info(f"{self._contact}-{job.order.queue}", description.vo, protocols, replicas)
                    await asyncio.to_thread(
                        scratch.replace_file, self.root, job.key, scratch.BROKER_INFO_NAME, info, uid=job.order.uid,
                        gid=job.order.gid,
                    )  # fmt: skip
        except GridError as error:
            reason = error.reason
            if description.input_data and reason not in ("CANCELLED", "SANDBOX_FILE_UNKNOWN"):
                reason = "INPUT_DATA_UNAVAILABLE" if "INPUT" not in reason and "PROXY" not in reason else reason
            event = PrepareFailed(job.key, reason, error.sentence)
        except OSError as error:
            event = _disk_failure(job.key, error)
        except Exception as error:
            self._log.exception("prepare.defect", error, job_id=job.name.job_id)
            event = PrepareFailed(job.key, "WORKER_DEFECT", f"preparing failed on this node: {type(error).__name__}")
        self.feed([event])

    async def _patient(self, attempt: Callable[[], Awaitable[Any]]) -> Any:
        """Keep trying for `staging_retry_s` while the gatekeeper is away."""
        until, pause_s = time.monotonic() + self.options.staging_retry_s, 0.1
        while True:
            try:
                return await attempt()
            except GridError as error:
                if not is_passing(error) or time.monotonic() + pause_s > until:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 2.0)

    def _make_directory(self, job: Job, credential: Credential) -> Event:
        order = job.order
        problem = self._account_problem(order.uid)
        if problem:
            return PrepareFailed(job.key, "ACCOUNT_UNUSABLE", problem)
        description = order.description
        programs = {
            program.removeprefix("./")
            for program in (
                description.executable,
                description.prologue.executable,
                description.epilogue.executable,
            )
        }
        inputs = []
        for file in order.description.input_sandbox:
            path = self._cache.cached(file.sha256)
            if path is None:
                return PrepareFailed(
                    job.key, "SANDBOX_EVICTED", f"{file.name} left this node's cache too early; try again"
                )
            inputs.append(scratch.Input(file.name, path, file.executable or file.name in programs))
        info = self._usual_info(
            f"{self._contact}-{order.queue}", description.vo, tuple(description.data_access_protocols)
        )
        files = {scratch.PROXY_NAME: credential.dumps(), scratch.BROKER_INFO_NAME: info}
        if order.gang:
            files[ranks.MACHINES_NAME] = ranks.machine_file(_machines(order))
        try:
            self._spares.create(job.key, owner=job.owner, uid=order.uid, gid=order.gid, files=files, inputs=inputs)
        except OSError as error:
            return _disk_failure(job.key, error)
        failpoints.reached("worker.directory.made")
        return Prepared(job.key)

    def _account_problem(self, uid: int) -> str:
        own = os.geteuid()
        if uid > 0 and own not in (0, uid):
            return f"the gatekeeper wants uid {uid}, and this worker runs as uid {own} and cannot change it"
        if uid <= 0 and own == 0 and not self.options.run_as_root:
            return "the gatekeeper maps to the worker's own user, which is root here: refused (option run_as_root)"
        return ""

    async def _fetch(self, sha256: str) -> Any:
        channel = await self.context.channels.get(self._endpoint.host, self._endpoint.rpc)
        stub = gatekeeper_pb2_grpc.WorkerPortStub(channel)
        async for message in stub.FetchSandbox(pb.FetchSandboxRequest(sha256=sha256), timeout=600):
            yield message.data

    def _proxy_renewed(self, owner: str, credential: Credential) -> None:
        running = [job for job in self.machine.jobs.values() if job.owner == owner and job.phase in IN_SLOT]
        if running:
            self._spawn(self._rewrite_proxies(running, credential.dumps()), "renew proxies")

    async def _rewrite_proxies(self, jobs: Sequence[Job], data: bytes) -> None:
        def rewrite() -> None:
            for job in jobs:
                with contextlib.suppress(OSError):
                    scratch.replace_file(
                        self.root, job.key, scratch.PROXY_NAME, data, uid=job.order.uid, gid=job.order.gid
                    )

        await asyncio.to_thread(rewrite)
        self._log.info("proxy.renewed", jobs=len(jobs), owner=jobs[0].owner)

    # ---- start

    def _start_order(self, job: Job) -> dict[str, Any]:
        order, description = job.order, job.order.description
        path = str(self.root / job.key)
        command = _command(path, description)
        machines = _machines(order)
        placed = bool(order.gang) and self.batch.places_ranks
        if placed:
            pass  # by whoever knows the nodes: parts.py
        elif order.open_mpi:
            command = open_mpi.other() if order.first_rank else open_mpi.first(command, machines, path)
        elif order.gang:
            command = ranks.launcher(
                command,
                first=order.first_rank,
                count=job.slots,
                stdout=description.std_output,
                stderr=description.std_error,
                grace_s=self.options.term_grace_s,
            )
        if _is_wrapped(description):
            command = wrapper.wrapped(
                command,
                _command(path, description.prologue),
                _command(path, description.epilogue),
                time_s=self.options.script_s,
                grace_s=self.options.term_grace_s,
            )
        limits = description.limits
        gang = {
            "hosts": description.hosts or 1,
            "slots_per_host": description.slots_per_host or 1,
            "open_mpi": order.open_mpi,
            "silent_s": self.options.shepherd_silent_s,
        }
        return {
            **({"gang": gang} if placed else {}),
            "key": job.key,
            "cwd": path,
            "executable": command[0],
            "argv": command,
            "env": self._environment(job, path),
            "stdin": description.std_input or None,
            "stdout": description.std_output or None,
            "stderr": description.std_error or None,
            "uid": order.uid,
            "gid": order.gid,
            "wall_s": limits.wall_s,
            "cpu_s": limits.cpu_s * job.slots,
            "memory_bytes": limits.memory_bytes * job.slots,
            "file_bytes": limits.disk_bytes,
            "open_files": self.options.open_files,
            "processes": self.options.processes,
            "grace_s": self.options.term_grace_s,
            "queue": order.queue,
            "slots": job.slots,
        }

    async def _bring_daemon(self, job: Job) -> None:
        """Ask for mpirun's word until it is here or the part is over."""
        name = job.name
        request = pb.FirstPartFileRequest(
            job_id=name.job_id, attempt=name.attempt, run=name.run, name=open_mpi.daemon_file(_part_number(job.order))
        )
        try:
            while job.phase is Phase.RUNNING:
                try:
                    channel = await self.context.channels.get(self._endpoint.host, self._endpoint.rpc)
                    told = await gatekeeper_pb2_grpc.WorkerPortStub(channel).FirstPartFile(request, timeout=MPI_ASK_S)
                    if told.data:
                        await asyncio.to_thread(
                            scratch.replace_file, self.root, job.key, open_mpi.DAEMON_NAME,
                            told.data, uid=job.order.uid, gid=job.order.gid,
                        )  # fmt: skip
                        return
                except GridError as error:
                    self._log.info("mpi.no_answer", job_id=name.job_id, reason=error.reason)
                except OSError as error:
                    self._log.warning("mpi.not_written", job_id=name.job_id, detail=str(error))
                await asyncio.sleep(PEEK_LOOK_S)
        finally:
            self._asking.discard(job.key)

    def _environment(self, job: Job, path: str) -> dict[str, str]:
        order, description, settings = job.order, job.order.description, self.context.settings
        close = self._data.close_storage
        vo = "".join(c if c.isalnum() else "_" for c in description.vo).upper()
        environment = {
            "PATH": self.options.path,
            "LANG": "C.UTF-8",
            f"VO_{vo}_SW_DIR": f"{self.options.software_area}/{description.vo}",
            **self.options.environment,
            **description.environment,
            "HOME": path,
            "TMPDIR": path,
            "USER": order.account,
            "LOGNAME": order.account,
            "X509_USER_PROXY": f"{path}/{scratch.PROXY_NAME}",
            "X509_CERT_DIR": str(self._certificates),
            "GRIDFABRIC_JOB_ID": job.name.job_id,
            "GRIDFABRIC_ATTEMPT": str(job.name.attempt),
            "GRIDFABRIC_SITE": settings.site,
            "GRIDFABRIC_WORKER": settings.name,
            "GRIDFABRIC_CLOSE_SE": close.address if close is not None else "",
            "GLITE_WMS_JOBID": job.name.job_id,
            "EDG_WL_JOBID": job.name.job_id,
            "GLITE_WMS_RB_BROKERINFO": f"{path}/{scratch.BROKER_INFO_NAME}",
            "EDG_WL_RB_BROKERINFO": f"{path}/{scratch.BROKER_INFO_NAME}",
            payloads.MARKER: job.key,
            **(ranks.environment(path, _machines(order)) if order.gang else {}),
        }
        for catalogue in settings.endpoints("catalog")[:1]:
            environment["GRIDFABRIC_CATALOG"] = catalogue.address
        return environment

    def _broker_info(
        self, ce: str, vo: str, protocols: tuple[str, ...], replicas: Mapping[str, Sequence[str]] | None = None
    ) -> bytes:
        settings = self.context.settings
        return broker_info(
            ce=ce,
            close_storage=settings.endpoints("storage", site=settings.site),
            storage=settings.endpoints("storage"),
            replicas=replicas or {},
            protocols=protocols,
            vo=vo,
        )

    def _from_batch(self, message: dict[str, Any]) -> None:
        kind = message["event"]
        if kind == "started":
            self.feed([ProcessStarted(key, pid, at_us) for key, pid, at_us in message["jobs"]])
        elif kind == "ended":
            self.feed([ProcessEnded(record["key"], record) for record in message["jobs"]])
        elif kind == "refused":
            self.feed([StartRefused(key, why) for key, why in message["jobs"]])
        elif kind == "lost":
            self.feed([ProcessLost(key, "BATCH_LOST", text) for key, text in message["jobs"]])
        elif kind == "gone":
            self.feed([NotRunning(key) for key in message["keys"]])

    # ---- collect

    def _collect(self, jobs: Sequence[Job]) -> None:
        simple = []
        for job in jobs:
            record = job.exit_record or {}
            if record.get("error") or job.kill_reason or not _wants_data(job, record):
                simple.append(job)
            else:
                self._spawn(self._collect_slowly(job), f"collect {job.key}")
        if calm := [job for job in simple if not job.at_once]:
            self._spawn(self._collect_quickly(calm), "collect")
        if urgent := [job for job in simple if job.at_once]:
            self._spawn(self._collect_later(urgent), "collect")

    async def _collect_later(self, jobs: list[Job]) -> None:
        await asyncio.sleep(REPORTED_AFTER_S)
        await self._collect_quickly(jobs)

    async def _collect_quickly(self, jobs: list[Job]) -> None:
        """Jobs whose output most likely fits into the report; those where it does not are done singly."""
        gathered = await asyncio.to_thread(lambda: [self._gather(job) for job in jobs])
        events: list[Event] = []
        for job, result in zip(jobs, gathered, strict=True):
            if result is None:
                self._spawn(self._collect_slowly(job), f"collect {job.key}")
            else:
                events.append(Collected(job.key, result))
        self.feed(events)

    def _gather(self, job: Job) -> Result | None:
        """The result with its output inline; None if it does not fit."""
        result = self._result(job)
        explained = not result.failed or result.reason == "PROLOGUE_FAILED"  # by the job's own output, then
        if not explained or (job.kill_reason and job.kill_reason not in _LIMITS):
            return result
        outputs: list[OutputFile] = []
        missing: list[str] = []
        total = 0
        for name in _output_names(job):
            with self._output(job, name, missing) as descriptor:
                if descriptor is None:
                    continue
                total += os.fstat(descriptor).st_size
                if total > MAX_INLINE_BYTES:
                    return None
                outputs.append(_inline(name, os.read(descriptor, MAX_INLINE_BYTES + 1)))
        return _with_outputs(result, outputs, missing)

    def _result(self, job: Job) -> Result:
        """From the exit record, and from what the wrapper wrote."""
        result = _result_of(job.exit_record or {}, job)
        if result.failed or result.reason:
            return result
        result = _with_stages(result, self._stages(job), job.order.description, self.options.script_s)
        if job.order.gang and not job.order.open_mpi and result.exit_code and not result.sentence:
            result = replace(result, sentence=ranks.first_failed(self._piece(job, ranks.FAILED_NAME, 0)))
        limit = job.order.description.limits.disk_bytes
        if limit and not result.sentence and (full := scratch.full_file(self.root, job.key, limit)):
            # The signal went to a child, or was turned into an error; who ends with 0 all the same has not noticed.
            sentence = f"its file {full[:200]!r} has reached the limit of {limit} bytes, where writing fails"
            result = replace(result, sentence=sentence, reason="" if result.exit_code else "FILE_SIZE")
        return result

    def _stages(self, job: Job) -> dict[str, str]:
        if not _is_wrapped(job.order.description):
            return {}
        return wrapper.read_stages(self._piece(job, wrapper.STAGES_NAME, 0))

    async def _collect_slowly(self, job: Job) -> None:
        record = job.exit_record or {}
        result = self._result(job)
        try:
            async with self._staging:
                if _wants_data(job, record) and not result.reason:
                    await self._keep_data(job)
                outputs, missing = await self._store_outputs(job)
                failpoints.reached("worker.output.sent")
                result = _with_outputs(result, outputs, missing)
        except _DataError as error:
            outputs, missing = await self._outputs_anyway(job)
            result = _with_outputs(_failed(result, error.reason, error.sentence), outputs, missing)
        except GridError as error:
            result = _failed(result, "OUTPUT_FAILED" if error.reason != "FENCED" else "FENCED", error.sentence)
        except OSError as error:
            result = _failed(result, "OUTPUT_FAILED", f"output cannot be read on this node ({error.strerror})")
        except Exception as error:
            self._log.exception("collect.defect", error, job_id=job.name.job_id)
            result = _failed(result, "WORKER_DEFECT", f"collecting output failed on this node: {type(error).__name__}")
        self.feed([Collected(job.key, result)])

    async def _outputs_anyway(self, job: Job) -> tuple[list[OutputFile], list[str]]:
        """Standard output helps to see what went wrong, but is not worth another failure."""
        try:
            return await self._store_outputs(job)
        except (GridError, OSError):
            return [], []

    async def _keep_data(self, job: Job) -> None:
        description = job.order.description
        try:
            credential = await self.proxies.get(job.owner)
        except GridError as error:
            raise _DataError("OUTPUT_DATA_FAILED", error.sentence) from error
        for output in description.output_data:
            try:
                descriptor = scratch.open_output(self.root, job.key, output.file, job.order.uid)
            except FileNotFoundError:
                raise _DataError("OUTPUT_DATA_MISSING", f"the job ended well but did not write {output.file}") from None
            except scratch.OutputError as error:
                raise _DataError("OUTPUT_DATA_FAILED", str(error)) from error
            try:
                kept = await self._data.keep(
                    descriptor,
                    file=output.file,
                    lfn=output.lfn,
                    wanted=output.storage_element,
                    vo=description.vo,
                    job_id=job.name.job_id,
                    attempt=job.name.attempt,
                    credential=credential,
                )
            except GridError as error:
                raise _DataError("OUTPUT_DATA_FAILED", f"{output.file}: {error.sentence}") from error
            finally:
                os.close(descriptor)
            self._log.info(
                "data.kept", job_id=job.name.job_id, lfn=kept.lfn, surl=kept.surl, guid=kept.guid, bytes=kept.size_bytes
            )

    async def _store_outputs(self, job: Job) -> tuple[list[OutputFile], list[str]]:
        outputs: list[OutputFile] = []
        missing: list[str] = []
        room = MAX_INLINE_BYTES
        for name in _output_names(job):
            with self._output(job, name, missing) as descriptor:
                if descriptor is None:
                    continue
                size_bytes = os.fstat(descriptor).st_size
                if size_bytes <= room:
                    outputs.append(_inline(name, os.read(descriptor, size_bytes)))
                    room -= outputs[-1].size_bytes
                elif size_bytes > self.options.max_output_file_bytes:
                    missing.append(
                        f"{name} (of {size_bytes} bytes, over the limit of {self.options.max_output_file_bytes})"
                    )
                else:
                    sha256 = await asyncio.to_thread(_digest, descriptor, size_bytes)
                    await self._patient(
                        lambda d=descriptor, n=name, s=size_bytes, h=sha256: self._send(job, d, n, s, h)
                    )
                    outputs.append(OutputFile(name, size_bytes, sha256, None))
        return outputs, missing

    @contextlib.contextmanager
    def _output(self, job: Job, name: str, missing: list[str]) -> Iterator[int | None]:
        """An output file open for reading; None, and why among the `missing`, if there is none that may be taken."""
        try:
            descriptor = scratch.open_output(self.root, job.key, name, job.order.uid)
        except (FileNotFoundError, scratch.OutputError) as error:
            missing.append(str(error) if isinstance(error, scratch.OutputError) else name)
            yield None
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    async def _send(self, job: Job, descriptor: int, name: str, size_bytes: int, sha256: str) -> None:
        async def messages() -> Any:
            yield pb.StoreOutputRequest(
                job_id=job.name.job_id,
                attempt=job.name.attempt,
                run=job.name.run,
                name=name,
                size_bytes=size_bytes,
                sha256=sha256,
            )
            offset = 0
            while offset < size_bytes:
                piece = await asyncio.to_thread(os.pread, descriptor, min(PIECE_BYTES, size_bytes - offset), offset)
                if not piece:
                    return
                offset += len(piece)
                yield pb.StoreOutputRequest(data=piece)

        channel = await self.context.channels.get(self._endpoint.host, self._endpoint.rpc)
        await gatekeeper_pb2_grpc.WorkerPortStub(channel).StoreOutput(messages(), timeout=600)

    # ---- files of running jobs

    async def _peek(self, peek: pb.Peek) -> None:
        """Answer with the next piece of a file as soon as there is one."""
        self._peeking.add(peek.id)
        key = Name(peek.job_id, peek.attempt, peek.run).key
        until = time.monotonic() + PEEK_S
        try:
            while True:
                job = self.machine.jobs.get(key)
                over = job is not None and job.phase in (Phase.COLLECTING, Phase.REPORTED)
                data = await asyncio.to_thread(self._piece, job, peek.name, peek.offset) if job is not None else b""
                if data or over or job is None or time.monotonic() > until:
                    break
                await asyncio.sleep(PEEK_LOOK_S)
            channel = await self.context.channels.get(self._endpoint.host, self._endpoint.rpc)
            await gatekeeper_pb2_grpc.WorkerPortStub(channel).Peeked(pb.PeekedRequest(id=peek.id, data=data, over=over))
        except GridError as error:
            self._log.info("peek.unanswered", job_id=peek.job_id, reason=error.reason)
        finally:
            self._peeking.discard(peek.id)

    def _piece(self, job: Job, name: str, offset: int) -> bytes:
        return scratch.read_output(self.root, job.key, name, job.order.uid, offset, MAX_PEEK_BYTES)

    # ---- watching

    async def watch(self) -> None:
        """For ever: room on the disk, and what each job takes of it."""
        while True:
            await asyncio.sleep(self.options.disk_check_s)
            try:
                await self._look_at_disk()
            except OSError as error:
                self._log.warning("disk.unreadable", detail=str(error))
            self.feed([Looked(time.monotonic())])

    def _mirror_certificates(self) -> None:
        """Pool accounts need the authorities too; where they cannot walk to them they get a copy that is kept fresh."""
        source = self.context.settings.certificates
        if os.geteuid() == 0 and not scratch.reachable(source):
            self._certificates = self.root / "certificates"
            scratch.mirror(source, self._certificates)

    def _judge_fitness(self) -> None:
        """Whether this node takes jobs, and if not, why: told to the gatekeeper at once."""
        if self.stopping:
            return
        unfit = self._disk_problem or self._clock_problem or self.batch.problem or self._black_hole.sentence
        if unfit == self.machine.unfit:
            return
        if not unfit or not self.machine.unfit:
            self._log.warning("worker.unfit" if unfit else "worker.fit_again", sentence=unfit)
        self.machine.unfit = unfit
        self.link.poke()

    async def clean(self) -> None:
        """For ever: directories and records that no job of ours has, seen twice."""
        seen: set[str] = set()
        while True:
            await asyncio.sleep(self.options.clean_every_s)
            strange = await asyncio.to_thread(self._strange)
            strange = {key for key in strange if key not in self.machine.jobs}
            dead, seen = seen & strange, strange
            if dead and not self.stopping:
                await self._remove_strange(dead)
                self._log.warning("worker.cleaned", directories=len(dead))

    async def _count_slots(self) -> None:
        """The batch system has not said yet how much it runs at a time; the gatekeeper is told by a new hello."""
        self.machine.slots = await self.batch.capacity()
        if self.machine.slots:
            self.link.reopen()

    async def _look_at_disk(self) -> None:
        if self.stopping:
            return
        await asyncio.to_thread(self._mirror_certificates)
        await asyncio.to_thread(self._spares.drop_old)
        if not self.machine.slots:
            await self._count_slots()
        free_bytes, free_inodes = await asyncio.to_thread(scratch.free, self.root)
        state_bytes, _ = await asyncio.to_thread(scratch.free, self.state_dir)
        self._disk_problem = ""
        if min(free_bytes, state_bytes) < self.options.min_free_bytes:
            free = min(free_bytes, state_bytes)
            self._disk_problem = f"DISK_FULL: {free} bytes are free, {self.options.min_free_bytes} are needed"
        elif 0 <= free_inodes < self.options.min_free_inodes:
            self._disk_problem = f"DISK_FULL: {free_inodes} i-nodes are free, {self.options.min_free_inodes} are needed"
        else:
            try:
                await asyncio.to_thread(scratch.try_out, self.root)
            except OSError as error:
                self._disk_problem = f"SCRATCH_FAILED: {self.root} cannot be written ({error.strerror})"
        self._black_hole.looked(time.monotonic())
        self._judge_fitness()
        events: list[Event] = []
        for job in [job for job in self.machine.jobs.values() if job.phase is Phase.RUNNING]:
            limit = job.order.description.limits.disk_bytes
            size, inodes = await asyncio.to_thread(scratch.usage, self.root / job.key, self.options.max_scratch_inodes)
            if (limit and size > limit) or inodes > self.options.max_scratch_inodes:
                self._log.warning("job.over_disk", job_id=job.name.job_id, bytes=size, inodes=inodes)
                events.append(KillAsked(job.name, "DISK" if limit and size > limit else "INODES"))
        if events:
            self.feed(events)


class _DataError(Exception):
    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(reason, sentence)
        self.reason, self.sentence = reason, sentence


def _whose(job: Job) -> dict[str, Any]:
    """For the audit log: which job of whom, under which account."""
    order = job.order
    return {
        "job_id": job.name.job_id, "attempt": job.name.attempt, "owner": job.owner, "account": order.account,
        "uid": order.uid,
    }  # fmt: skip


def _disk_failure(key: str, error: OSError) -> PrepareFailed:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return PrepareFailed(
        key, "DISK_FULL" if full else "SCRATCH_FAILED", f"no scratch directory on this node ({error.strerror})"
    )


def _ended_alone(job: Job) -> bool:
    """Its first process has been waited for, and whatever it left behind was killed then."""
    record = job.exit_record or {}
    return "exit_code" in record and not record.get("reason") and not job.kill_reason


def _wants_data(job: Job, record: dict[str, Any]) -> bool:
    """Output data is moved only for a payload that says that it went well: half a file would be registered for good."""
    ended_well = record.get("exit_code") == 0 and not record.get("reason") and not job.kill_reason
    return bool(job.order.description.output_data) and ended_well


def _output_names(job: Job) -> list[str]:
    """The output sandbox; the standard streams are in it only if it names them. Of a gang it is rank 0's, and of the
    other ranks their standard streams, which mpirun brings to rank 0's."""
    order = job.order
    names = list(order.description.output_sandbox)
    if not order.gang:
        return names
    if order.open_mpi:
        return [] if order.first_rank else names
    streams = {order.description.std_output, order.description.std_error} & set(names)
    others = range(order.first_rank, order.first_rank + job.slots)
    return [
        *(names if order.first_rank == 0 else ()),
        *(ranks.stream_name(name, rank) for rank in others if rank for name in sorted(streams)),
    ]


def _result_of(record: dict[str, Any], job: Job) -> Result:
    error = record.get("error")
    common = {
        "at_us": int(record.get("ended_at_us", 0)),
        "wall_s": float(record.get("wall_s", 0.0)),
        "user_s": float(record.get("user_s", 0.0)),
        "system_s": float(record.get("system_s", 0.0)),
        "max_rss_bytes": int(record.get("max_rss_bytes", 0)),
    }
    if error:
        sentence = f"{job.order.description.executable} could not be started: {error['stage']}: {error['text']}"
        return Result(**common, exit_code=127, reason="EXEC_FAILED", sentence=sentence, failed=True)
    reason = record.get("reason") or ""
    if reason == TERMINATED:
        text = "the batch system ended it before its limits"
        return Result(**common, reason=reason, sentence=text, failed=True, started=True)
    if reason == PART_LOST:
        text = "its part on one node died; the other ranks were stopped"
        return Result(**common, reason=reason, sentence=text, failed=True, started=True)
    if reason == "WORKER_STOPPED":
        return Result(**common, reason=reason, sentence="the worker was stopped", failed=True, started=True)
    sentence = f"the job was stopped: {_LIMITS[reason]}" if reason in _LIMITS else ""
    return Result(**common, exit_code=int(record["exit_code"]), reason=reason, sentence=sentence, started=True)


def _job(run: pb.RunJob, phase: Phase) -> Job:
    name = Name(run.job_id, run.attempt, run.run)
    before, slots = 0, 1
    for part in run.gang:
        if before == run.first_rank:
            slots = part.ranks
        before += part.ranks
    return Job(name.key, name, run.owner, run, phase, slots=slots, waits_for_go=bool(run.gang))


def _machines(order: pb.RunJob) -> ranks.Machines:
    return [(part.host, part.ranks) for part in order.gang]


def _part_number(order: pb.RunJob) -> int:
    before = itertools.accumulate((part.ranks for part in order.gang), initial=0)
    return next(number for number, first in enumerate(before) if first == order.first_rank)


def _command(path: str, program: Any) -> list[str]:
    """Of a JobDescription or Script: its program, in the job's directory unless it says where, and arguments."""
    executable = program.executable
    if not executable:
        return []
    if not executable.startswith("/"):
        executable = f"{path}/{executable.removeprefix('./')}"
    return [executable, *program.arguments]


def _is_wrapped(description: Any) -> bool:
    return bool(description.prologue.executable or description.epilogue.executable)


def _with_stages(result: Result, stages: dict[str, str], description: Any, time_s: float) -> Result:
    """What prologue and epilogue mean for a job that was not stopped."""

    def ended(stage: str, program: str) -> str:
        code = stages[stage]
        return (
            f"the {stage} {program} was stopped after {time_s:g} s"
            if code in wrapper.TIMED_OUT
            else f"the {stage} {program} ended with {code}"
        )

    if stages.get("prologue", "0") != "0":
        sentence = ended("prologue", description.prologue.executable)
        return _failed(result, "PROLOGUE_FAILED", f"{sentence}; the job was not started")
    if stages.get("payload") == wrapper.NOT_EXECUTABLE:
        return _failed(result, "EXEC_FAILED", f"{description.executable} is not there or not executable on this node")
    if stages.get("epilogue", "0") != "0":
        return replace(result, sentence=ended("epilogue", description.epilogue.executable))
    return result


def _failed(result: Result, reason: str, sentence: str) -> Result:
    return Result(
        result.at_us, result.exit_code, reason, sentence[:900], True, True, result.wall_s, result.user_s,
        result.system_s,
        result.max_rss_bytes,
    )  # fmt: skip


def _inline(name: str, data: bytes) -> OutputFile:
    return OutputFile(name, len(data), hashlib.sha256(data).hexdigest(), data)


def _with_outputs(result: Result, outputs: list[OutputFile], missing: list[str]) -> Result:
    sentence = result.sentence
    if missing:
        note = f"output sandbox files not found: {', '.join(missing)}"[:500]
        sentence = f"{sentence}; {note}" if sentence else note
    return Result(
        result.at_us, result.exit_code, result.reason, sentence, result.failed, result.started, result.wall_s,
        result.user_s,
        result.system_s, result.max_rss_bytes, tuple(outputs),
    )  # fmt: skip


def _digest(descriptor: int, size_bytes: int) -> str:
    digest, offset = hashlib.sha256(), 0
    while offset < size_bytes:
        piece = os.pread(descriptor, min(PIECE_BYTES, size_bytes - offset), offset)
        if not piece:
            break
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()
