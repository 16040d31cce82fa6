"""The worker pool: the gatekeeper's end of each worker's stream. The only batch system so far.

A different one (Slurm, PBS) would take the same commands (`RunOnWorker`, `KillOnWorker`, `AcknowledgeWorker`) and
feed the
same events; the machine knows nothing of streams or wire types.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from typing import Any

from cryptography import x509
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb

from agents.gatekeeper import store as rows
from agents.gatekeeper import wire
from agents.gatekeeper.driver import Driver, Output
from agents.gatekeeper.model import (
    KILL_REASONS,
    AcknowledgeWorker,
    Command,
    CreditGiven,
    Event,
    GoOnWorker,
    Job,
    JobReturned,
    JobStarted,
    KillOnWorker,
    PartReady,
    RunOnWorker,
    WorkerArrived,
    WorkerLeft,
)
from fabric.clock import to_us
from fabric.errors import GridError, InvalidRequest, NotFound, from_security
from security.credentials import Credential
from security.errors import SecurityError
from security.proxies import sign_request

MAX_ORDER_BYTES = 2 * 1024 * 1024
MAX_INLINE_OUTPUT_BYTES = 256 * 1024
"""Of one job in a report; the worker sends larger ones by StoreOutput."""
MAX_WORKERS = 2000
MAX_HELD = 20_000
MAX_PEEK_BYTES = 256 * 1024
PEEK_TIMEOUT_S = 15.0
"""A worker answers after 5 s at the latest, be it that there is nothing."""
PROXY_LIFETIME = timedelta(hours=24)
"""Cut to the delegation's own life."""


class _Link:
    """One open stream of a worker."""

    def __init__(self, worker: str, stream: int) -> None:
        self.worker, self.stream = worker, stream
        self.run: list[RunOnWorker] = []
        self.go: list[GoOnWorker] = []
        self.cancel: list[KillOnWorker] = []
        self.acknowledged: list[AcknowledgeWorker] = []
        self.proxies: list[pb.ProxyGranted] = []
        self.requests: dict[str, tuple[bytes, x509.Certificate]] = {}
        """Owner to the worker's certificate request and the delegated proxy that it was signed with."""
        self.peeks: list[pb.Peek] = []
        self.peeking: dict[int, asyncio.Future[pb.PeekedRequest | None]] = {}
        """Who waits for the answer to which peek."""
        self.wake = asyncio.Event()
        self.closed = ""


class WorkerPool:
    """All workers' streams."""

    def __init__(self, context: Any, store: Any, heartbeat_s: float, contact: Callable[[], str]) -> None:
        self._context, self._store = context, store
        self._heartbeat_s, self._contact = heartbeat_s, contact
        self._links: dict[str, _Link] = {}
        self._streams = itertools.count(1)
        self._peek_ids = itertools.count(random.getrandbits(40))  # not those of before a restart
        self.driver: Driver
        self.facts: dict[str, dict[str, str]] = {}
        """What each worker that was here told about itself."""
        self._draining = False

    # ---- commands

    def perform(self, commands: Sequence[Command]) -> None:
        """Queue orders on the streams that they are meant for; a stream that is gone needs none (its successor says
        hello)."""
        for command in commands:
            link = self._links.get(command.worker)
            if link is None or link.stream != command.stream:
                continue
            if isinstance(command, RunOnWorker):
                link.run.append(command)
            elif isinstance(command, GoOnWorker):
                link.go.append(command)
            elif isinstance(command, KillOnWorker):
                link.cancel.append(command)
            else:
                link.acknowledged.append(command)
            link.wake.set()

    def reconnect(self) -> None:
        """End every stream: each worker opens a new one and says what it holds."""
        for link in self._links.values():
            link.closed = "the gatekeeper compares notes"
            link.wake.set()

    def drain(self) -> None:
        """Tell every worker that no more jobs come."""
        self._draining = True
        for link in self._links.values():
            link.wake.set()

    # ---- files of jobs

    async def peek(self, job: Job, name: str, offset: int) -> pb.PeekedRequest | None:
        """The next piece of a file of a job that is with a worker; None when the worker is away or does not answer."""
        link = self._links.get(job.worker)
        if link is None:
            return None
        peek = pb.Peek(
            id=next(self._peek_ids), job_id=job.job_id, attempt=job.attempt, run=job.run, name=name, offset=offset
        )
        answer = link.peeking[peek.id] = asyncio.get_running_loop().create_future()
        link.peeks.append(peek)
        link.wake.set()
        try:
            async with asyncio.timeout(PEEK_TIMEOUT_S):
                return await answer
        except TimeoutError:
            return None
        finally:
            del link.peeking[peek.id]

    def peeked(self, worker: str, answer: pb.PeekedRequest) -> None:
        """A worker's answer. Raises NotFound PEEK_UNKNOWN, InvalidRequest PIECE_TOO_LARGE."""
        if len(answer.data) > MAX_PEEK_BYTES:
            raise InvalidRequest("PIECE_TOO_LARGE", f"{worker} sent a piece of more than {MAX_PEEK_BYTES} bytes")
        link = self._links.get(worker)
        waiting = link.peeking.get(answer.id) if link is not None else None
        if waiting is None or waiting.done():
            raise NotFound("PEEK_UNKNOWN", "nobody waits for this piece any more")
        waiting.set_result(answer)

    # ---- one stream

    async def serve(self, name: str, reports: AsyncIterator[pb.WorkerReport]) -> AsyncIterator[pb.WorkerOrder]:
        """The Work stream of the worker with this certificate."""
        try:
            async with asyncio.timeout(4 * self._heartbeat_s + 5):
                hello = await anext(reports)
        except (TimeoutError, StopAsyncIteration):
            raise InvalidRequest("HELLO_EXPECTED", f"{name} opened a stream and said nothing") from None
        if not hello.HasField("hello") or len(hello.hello.held) > MAX_HELD or not 0 <= hello.hello.slots <= 100_000:
            raise InvalidRequest(
                "HELLO_EXPECTED", f"the first report of {name} is not a hello with at most {MAX_HELD} jobs"
            )
        if name not in self._links and len(self._links) >= MAX_WORKERS:
            raise InvalidRequest("TOO_MANY_WORKERS", f"this gatekeeper serves at most {MAX_WORKERS} workers")
        link = _Link(name, next(self._streams))
        older = self._links.get(name)
        if older is not None:
            older.closed = "the worker opened a newer stream"
            older.wake.set()
        self._links[name] = link
        self.facts[name] = dict(itertools.islice(hello.hello.facts.items(), 50))
        held = tuple((job.job_id, job.attempt, job.run) for job in hello.hello.held)
        await self.driver.ask([WorkerArrived(name, link.stream, hello.hello.slots, held)])
        self._context.log.info("worker.arrived", worker=name, slots=hello.hello.slots, held=len(held))
        reader = asyncio.ensure_future(self._read(link, reports))
        try:
            yield pb.WorkerOrder(
                welcome=pb.Welcome(
                    heartbeat_ms=int(self._heartbeat_s * 1000),
                    contact=self._contact(),
                    now_us=to_us(self._context.clock.now()),
                )
            )
            async for order in self._orders(link):
                yield order
        finally:
            reader.cancel()
            if self._links.get(name) is link:
                del self._links[name]
            for waiting in link.peeking.values():
                if not waiting.done():
                    waiting.set_result(None)
            self.driver.feed([WorkerLeft(name, link.stream)])
            self._context.log.info("worker.left", worker=name, why=link.closed or "its stream ended")

    async def _orders(self, link: _Link) -> AsyncIterator[pb.WorkerOrder]:
        drain_sent = False
        while not link.closed:
            try:
                async with asyncio.timeout(self._heartbeat_s / 2):
                    await link.wake.wait()
            except TimeoutError:
                yield pb.WorkerOrder()  # heartbeat
                continue
            link.wake.clear()
            async for batch in self._run_orders(_taken(link.run)):
                yield batch
            # After the orders: a cancellation must never overtake the order that it cancels.
            order = pb.WorkerOrder(drain=self._draining and not drain_sent)
            drain_sent = self._draining
            for kill in _taken(link.cancel):
                order.cancel.add(
                    job_id=kill.job_id, attempt=kill.attempt, run=kill.run, reason=kill.reason,
                    at_once=kill.reason in KILL_REASONS,
                )  # fmt: skip
            for go in _taken(link.go):
                order.go.add(job_id=go.job_id, attempt=go.attempt, run=go.run)
            for done in _taken(link.acknowledged):
                order.acknowledged.add(job_id=done.job_id, attempt=done.attempt, run=done.run)
            order.peek.extend(_taken(link.peeks))
            if link.proxies:
                order.proxy.CopyFrom(link.proxies.pop(0))
            if link.proxies:
                link.wake.set()
            if order.ByteSize():
                yield order

    async def _run_orders(self, runs: list[RunOnWorker]) -> AsyncIterator[pb.WorkerOrder]:
        if not runs:
            return
        cached = self.driver.descriptions
        missing = [run.job.job_id for run in runs if run.job.job_id not in cached]
        read = await self._store.read(lambda connection: rows.descriptions(connection, missing)) if missing else {}
        order, size = pb.WorkerOrder(), 0
        for run in runs:
            if run.run != run.job.run:
                continue  # it came back meanwhile
            taken = cached.get if run.job.parts else cached.pop  # each worker of a gang gets it
            description = taken(run.job.job_id, None) or read.get(run.job.job_id)
            if description is None:
                continue  # purged meanwhile
            if size + len(description) > MAX_ORDER_BYTES:
                yield order
                order, size = pb.WorkerOrder(), 0
            order.run.append(wire.run_to_wire(run.job, run.run, description, run.worker, self.facts))
            size += len(description) + 500
        if size:
            yield order

    async def _read(self, link: _Link, reports: AsyncIterator[pb.WorkerReport]) -> None:
        try:
            while not link.closed:
                async with asyncio.timeout(4 * self._heartbeat_s):
                    report = await anext(reports)
                await self._take(link, report)
        except StopAsyncIteration:
            link.closed = "the worker ended its stream"
        except TimeoutError:
            link.closed = f"the worker was silent for {4 * self._heartbeat_s:g} s"
        except asyncio.CancelledError:
            raise
        except GridError as error:
            link.closed = error.sentence
        except Exception as error:
            link.closed = f"reading its stream failed: {type(error).__name__}"
            self._context.log.exception("worker.stream_failed", error, worker=link.worker)
        finally:
            link.wake.set()

    async def _take(self, link: _Link, report: pb.WorkerReport) -> None:
        name = link.worker
        events: list[Event] = []
        payloads: dict[int, list[Output]] = {}
        for ready in report.ready:
            events.append(PartReady(name, ready.job_id, ready.attempt, ready.run))
        for started in report.started:
            events.append(JobStarted(name, started.job_id, started.attempt, started.run, started.at_us, started.pid))
        for finished in report.finished:
            payloads[len(events)] = await self._outputs(name, finished)
            events.append(wire.ended_from_wire(name, finished))
        for back in report.refused:
            events.append(JobReturned(name, back.job_id, back.attempt, back.run))
        if report.HasField("credit"):
            credit = report.credit
            events.append(
                CreditGiven(name, link.stream, max(0, credit.slots), credit.seen, report.unfit[:500], credit.busy)
            )
        if events:
            self.driver.feed(events, payloads)
        if report.HasField("proxy_wanted"):
            await self._grant(link, report.proxy_wanted.owner, report.proxy_wanted.request_pem)

    async def _outputs(self, worker: str, finished: pb.Finished) -> list[Output]:
        """The output of a report; files said to be in the sandbox area must be there."""
        outputs: list[Output] = []
        inline = 0
        for file in finished.outputs[: wire.MAX_SANDBOX_FILES + 2]:
            wire.check_name(file.name, "output sandbox")
            if file.data or not file.size_bytes:
                inline += len(file.data)
                if inline > MAX_INLINE_OUTPUT_BYTES or len(file.data) != file.size_bytes:
                    raise InvalidRequest(
                        "OUTPUT_TOO_LARGE", f"{worker} sent too much output inline for {finished.job_id}"
                    )
                outputs.append(Output(file.name, file.size_bytes, file.sha256, file.data))
            else:
                outputs.append(Output(file.name, file.size_bytes, file.sha256, None))
        return outputs

    # ---- proxies

    async def _grant(self, link: _Link, owner: str, request_pem: bytes) -> None:
        """Sign a limited proxy of the owner's delegation for the worker's key, if the worker has a job of this
        owner."""
        granted = pb.ProxyGranted(owner=owner)
        machine = self.driver.machine
        worker = machine.workers.get(link.worker)
        entitled = worker is not None and any(
            machine.jobs[job_id].owner == owner for job_id in worker.held if job_id in machine.jobs
        )
        try:
            if not entitled:
                raise InvalidRequest("NOT_ENTITLED", f"{link.worker} has no job of {owner} and gets no proxy of it")
            granted.chain_pem, delegated = await self._signed(owner, request_pem)
            link.requests[owner] = (request_pem, delegated.certificate)
            self._context.log.audit(
                "proxy.granted", worker=link.worker, owner=owner, until=delegated.not_after.isoformat()
            )
        except GridError as error:
            granted.reason, granted.sentence = error.reason, error.sentence
            self._context.log.audit(
                "proxy.refused", worker=link.worker, owner=owner, reason=error.reason, sentence=error.sentence
            )
        link.proxies.append(granted)
        link.wake.set()

    async def _signed(self, owner: str, request_pem: bytes) -> tuple[bytes, Credential]:
        credential = self._context.delegations.get(owner)
        now = self._context.clock.now()
        try:
            chain = await asyncio.to_thread(
                sign_request, request_pem, credential, lifetime=PROXY_LIFETIME, now=now, limited=True
            )
        except SecurityError as error:
            raise from_security(error) from error
        return chain, credential

    async def renew(self) -> None:
        """Sign again where the owner's delegation was refreshed since; the worker keeps its key."""
        for link in list(self._links.values()):
            for owner, (request_pem, delegated) in list(link.requests.items()):
                try:
                    if self._context.delegations.get(owner).certificate == delegated:
                        continue
                    chain, credential = await self._signed(owner, request_pem)
                except GridError:
                    continue  # expired or destroyed: the jobs go on with what they have
                link.requests[owner] = (request_pem, credential.certificate)
                link.proxies.append(pb.ProxyGranted(owner=owner, chain_pem=chain))
                link.wake.set()


def _taken(items: list[Any]) -> list[Any]:
    taken = items[:]
    items.clear()
    return taken
