"""The worker's life line: one stream to its gatekeeper, opened again whenever it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from gridfabric.gatekeeper.v1 import gatekeeper_pb2_grpc

from agents.worker.model import Job, Name, Result
from fabric import failpoints
from fabric.errors import GridError, Unavailable
from fabric.pace import Pace
from fabric.settings import Endpoint

GATHER_S = 0.005
"""Reports this close together travel in one message."""
MAX_GATHER_S = 0.1
"""And these, when many come."""
MAX_REPORT_BYTES = 1024 * 1024
MAX_REPORTS = 500
WELCOME_TIMEOUT_S = 30.0


class Link:
    """Reports up, orders down. `intake` handles one order and is awaited, in order, also across a reconnect."""

    def __init__(
        self,
        context: Any,
        endpoint: Endpoint,
        *,
        hello: Callable[[], pb.Hello],
        opened: Callable[[pb.Welcome], None],
        credit: Callable[[], tuple[int, str, int]],
        intake: Callable[[pb.WorkerOrder], Awaitable[None]],
        reconnect_max_s: float,
    ) -> None:
        self._context, self._endpoint = context, endpoint
        self._hello, self._opened, self._credit, self._intake = hello, opened, credit, intake
        self._reconnect_max_s = reconnect_max_s
        self._orders: asyncio.Queue[pb.WorkerOrder] = asyncio.Queue(64)
        self._started: deque[Job] = deque()
        self._ready: deque[Name] = deque()
        self._finished: deque[tuple[Name, Result]] = deque()
        self._refused: deque[Name] = deque()
        self._wanted: deque[tuple[str, bytes]] = deque()
        self._wake = asyncio.Event()
        self._pace = Pace(GATHER_S, MAX_GATHER_S)
        self._broken = asyncio.Event()
        self._seen = 0
        self._told: tuple[int, int, str] | None = None
        self.connected = False
        self.last_error = "not connected yet"

    # ---- up

    def started(self, jobs: Sequence[Job]) -> None:
        """Tell that these run."""
        self._started.extend(jobs)
        self._wake.set()

    def ready(self, jobs: Sequence[Job]) -> None:
        """Tell that these parts of gangs wait for the others."""
        self._ready.extend(job.name for job in jobs)
        self._wake.set()

    def finished(self, jobs: Sequence[Job]) -> None:
        """Tell how these ended."""
        self._finished.extend((job.name, job.result) for job in jobs if job.result is not None)
        self._wake.set()

    def report(self, name: Name, result: Result) -> None:
        """Tell about a job that is not here."""
        self._finished.append((name, result))
        self._wake.set()

    def give_back(self, names: Sequence[Name]) -> None:
        """Tell that these never ran here and never will."""
        self._refused.extend(names)
        self._wake.set()

    def want_proxy(self, owner: str, request_pem: bytes) -> None:
        """Ask for a limited proxy."""
        self._wanted.append((owner, request_pem))
        self._wake.set()

    def poke(self) -> None:
        """The credit may have changed."""
        self._wake.set()

    def reopen(self) -> None:
        """Say hello again, on a new stream."""
        self._broken.set()

    # ---- life

    async def run(self) -> None:
        """Keep a stream for ever."""
        handling = asyncio.ensure_future(self._handle())
        pause_s = 0.1
        try:
            while True:
                began = self._context.clock.monotonic()
                try:
                    await self._session()
                    self.last_error = "the gatekeeper ended the stream"
                except GridError as error:
                    if error.sentence != self.last_error:
                        self._context.log.warning("gatekeeper.lost", reason=error.reason, sentence=error.sentence)
                    self.last_error = error.sentence
                except Exception as error:  # whatever it was: a worker without its gatekeeper is of no use
                    self._context.log.exception("gatekeeper.stream_defect", error)
                    self.last_error = f"a defect in the stream: {type(error).__name__}"
                self.connected = False
                if self._context.clock.monotonic() - began > 5:
                    pause_s = 0.1
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, self._reconnect_max_s)
        finally:
            handling.cancel()

    async def _handle(self) -> None:
        """Orders one by one. Never cancelled in the middle of one by a lost stream."""
        while True:
            order = await self._orders.get()
            try:
                await self._intake(order)
            except Exception as error:
                # The order is lost: a new hello tells the gatekeeper what is held and what is not.
                self._context.log.exception("order.defect", error)
                self._broken.set()
            finally:
                self._orders.task_done()

    async def _session(self) -> None:
        channel = await self._context.channels.get(self._endpoint.host, self._endpoint.rpc)
        stream = gatekeeper_pb2_grpc.WorkerPortStub(channel).Work()
        async with stream:
            # Whatever the last stream brought is either kept or dropped before the hello is made: nothing of it may
            # come to life afterwards.
            await self._orders.join()
            self._broken.clear()
            self._seen, self._told = 0, None
            self._ready.clear()
            self._started.clear()
            self._finished.clear()
            self._refused.clear()
            await stream.write(pb.WorkerReport(hello=self._hello()))
            try:
                async with asyncio.timeout(WELCOME_TIMEOUT_S):
                    welcome = await stream.read()
            except TimeoutError:
                welcome = None
            if not isinstance(welcome, pb.WorkerOrder) or not welcome.HasField("welcome"):
                raise Unavailable("NO_WELCOME", f"the gatekeeper {self._endpoint.name} did not answer the hello")
            heartbeat_s = welcome.welcome.heartbeat_ms / 1000 or 5.0
            self.connected, self.last_error = True, ""
            self._context.log.info("gatekeeper.connected", gatekeeper=self._endpoint.name)
            self._opened(welcome.welcome)
            reading = asyncio.ensure_future(self._read(stream, heartbeat_s))
            writing = asyncio.ensure_future(self._write(stream, heartbeat_s))
            breaking = asyncio.ensure_future(self._broken.wait())
            tasks = (reading, writing, breaking)
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task.done():
                        task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, stream: Any, heartbeat_s: float) -> None:
        while True:
            try:
                async with asyncio.timeout(4 * heartbeat_s):
                    order = await stream.read()
            except TimeoutError:
                raise Unavailable(
                    "GATEKEEPER_SILENT", f"{self._endpoint.name} was silent for {4 * heartbeat_s:g} s; connecting again"
                ) from None
            if not isinstance(order, pb.WorkerOrder):
                return  # end of stream
            if order.ByteSize():
                await self._orders.put(order)

    def count_seen(self, orders: int) -> None:
        """The intake has taken this many RunJob orders of the present stream into its credit."""
        self._seen += orders
        self._wake.set()

    async def _write(self, stream: Any, heartbeat_s: float) -> None:
        said_at = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(heartbeat_s / 2):
                    await self._wake.wait()
                await self._pace.gather()
            if time.monotonic() - said_at >= heartbeat_s / 2:  # also if it is woken all the time and has no news
                self._told, said_at = None, time.monotonic()
            self._wake.clear()
            self._pace.took(len(self._started) + len(self._finished))
            while (report := self._next_report()) is not None:
                await stream.write(report)
                if report.finished:
                    failpoints.reached("worker.report.sent")

    def _next_report(self) -> pb.WorkerReport | None:
        report = pb.WorkerReport()
        while self._ready and len(report.ready) < MAX_REPORTS:
            name = self._ready.popleft()
            report.ready.add(job_id=name.job_id, attempt=name.attempt, run=name.run)
        while self._started and len(report.started) < MAX_REPORTS:
            job = self._started.popleft()
            report.started.add(
                job_id=job.name.job_id, attempt=job.name.attempt, run=job.name.run, at_us=job.started_at_us, pid=job.pid
            )
        size = 0
        while self._finished and len(report.finished) < MAX_REPORTS and size < MAX_REPORT_BYTES:
            finished = _finished_to_wire(*self._finished.popleft())
            size += finished.ByteSize()
            report.finished.append(finished)
        while self._refused and len(report.refused) < MAX_REPORTS:
            name = self._refused.popleft()
            report.refused.add(job_id=name.job_id, attempt=name.attempt, run=name.run)
        if self._wanted:
            owner, request_pem = self._wanted.popleft()
            report.proxy_wanted.owner, report.proxy_wanted.request_pem = owner, request_pem
        slots, unfit, busy = self._credit()
        if self._told != (slots, self._seen, unfit):
            self._told = (slots, self._seen, unfit)
            report.credit.slots, report.credit.seen, report.credit.busy = slots, self._seen, busy
            report.unfit = unfit
            return report
        return report if report.ByteSize() else None


def _finished_to_wire(name: Name, result: Result) -> pb.Finished:
    wire = pb.Finished(
        job_id=name.job_id,
        attempt=name.attempt,
        run=name.run,
        at_us=result.at_us,
        exit_code=result.exit_code,
        reason=result.reason,
        sentence=result.sentence,
        failed=result.failed,
        started=result.started,
        usage=pb.Usage(
            wall_s=result.wall_s, user_s=result.user_s, system_s=result.system_s, max_rss_bytes=result.max_rss_bytes
        ),
    )
    for output in result.outputs:
        wire.outputs.add(name=output.name, size_bytes=output.size_bytes, sha256=output.sha256, data=output.data or b"")
    return wire
