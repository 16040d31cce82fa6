"""Who plays in a drill: people with certificates and proxies, their calls, and their jobs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from gridfabric.security.v1 import security_pb2, security_pb2_grpc

from agents.bookkeeping.client import BookkeepingClient
from agents.broker.client import BrokerClient
from agents.catalog import client as catalog
from agents.gatekeeper import client as gatekeeper
from agents.storage import client as storage
from agents.transfer.client import TransferClient
from agents.user_interface.connection import Grid
from fabric.errors import DeadlineExceeded, GridError, Unavailable
from fabric.settings import Endpoint
from security.credentials import Credential
from security.proxies import create_proxy

if TYPE_CHECKING:
    from agents.user_interface.drill.ground import Ground

ATTACKER, VICTIM, HONEST = "attacker", "victim", "honest user"
STARTED_WITHIN_S = 60.0
UNREACHABLE_FOR_S = 10.0
"""How long a service may be away, on a machine that has much else to do, before that counts as a refusal."""
REPEATED = "calls repeated because a service did not answer"
LOOK_EVERY_S = 0.02
PROXY_LIFETIME = timedelta(hours=2)


@dataclass(frozen=True)
class Job:
    """A job whose processes anybody can find by an argument that no other process has."""

    owner: Person
    job_id: str
    mark: str

    def processes(self) -> list[int]:
        """The ids of its processes."""
        return processes_with(self.mark)

    async def cancel(self) -> None:
        """Ask for its end, if its owner may still do that."""
        with contextlib.suppress(GridError):
            await BrokerClient(await self.owner.grid.channel("broker")).cancel([self.job_id])


@dataclass
class Person:
    """Somebody with a credential, and the part that they play."""

    ground: Ground
    name: str
    part: str
    certificate: Credential
    proxy: Credential
    grid: Grid
    doors: Mapping[tuple[str, int], int]
    """Ports to use instead of a service's own, for who comes from elsewhere; empty for others."""

    @property
    def subject(self) -> str:
        """The DN."""
        return str(self.certificate.identity)

    async def channel_to(self, endpoint: Endpoint) -> Any:
        """To a service, by this person's way."""
        port = self.doors.get((endpoint.host, endpoint.rpc), endpoint.rpc)
        return await self.grid.channel_to(endpoint.host, port)

    async def call(self, endpoint: Endpoint) -> None:
        """One ordinary call, by what the directory of authorities says now. Raises GridError."""
        await asyncio.to_thread(self.grid.channels.trust.refresh)
        await _CALLS[endpoint.kind](await self.channel_to(endpoint))

    async def attempt(self, endpoint: Endpoint) -> GridError | None:
        """One ordinary call; why it was refused, or None. A service that does not answer has refused nobody: it is
        called again for a while, and the score says how often."""
        deadline = time.monotonic() + UNREACHABLE_FOR_S
        while True:
            try:
                await self.call(endpoint)
                return None
            except (Unavailable, DeadlineExceeded) as error:
                if time.monotonic() > deadline:
                    return error
                figures = self.ground.score.figures
                figures[REPEATED] = figures.get(REPEATED, 0) + 1
                await asyncio.sleep(LOOK_EVERY_S)
            except GridError as error:
                return error

    async def enter(self, endpoint: Endpoint) -> GridError | None:
        """As `attempt`, for who is no user and is let in if only that is what stops the call."""
        refusal = await self.attempt(endpoint)
        return None if refusal is not None and refusal.reason == "USER_REQUIRED" else refusal

    async def submit(self, jdl: str, folder: Path | None = None) -> str:
        """Delegate and submit; the job's id. Raises GridError."""
        broker = await self.grid.channel("broker")
        await self.grid.delegate(broker)
        return (await BrokerClient(broker).submit(jdl, folder or self.ground.folder)).job_id

    async def run_forever(self, requirements: str = "true") -> Job:
        """A job that sleeps; returns once its process is seen. It is cancelled at the end of the drill."""
        seconds = f"3{self.ground.dice.randrange(10**8, 10**9)}"
        jdl = f'Executable = "/bin/sleep"; Arguments = "{seconds}"; Requirements = {requirements};'
        return await self._started(Job(self, await self.submit(jdl), seconds))

    async def run_payload(self, script: str) -> Job:
        """A shell script of the person's own, which is given a mark as its first argument."""
        mark = f"mark{self.ground.dice.randrange(10**8, 10**9)}"
        folder = self.ground.folder / mark
        folder.mkdir()
        (folder / "payload.sh").write_text(script, "utf-8")
        jdl = f'Executable = "/bin/sh"; Arguments = "payload.sh {mark}"; InputSandbox = {{"payload.sh"}};'
        return await self._started(Job(self, await self.submit(jdl, folder), mark))

    async def _started(self, job: Job) -> Job:
        self.ground.afterwards(job.cancel)
        deadline = time.monotonic() + STARTED_WITHIN_S
        while not job.processes():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the job of {self.name} did not start within {STARTED_WITHIN_S:g} s")
            await asyncio.sleep(LOOK_EVERY_S)
        self.ground.mark(self.part, f"a job of {self.name} runs")
        return job


def proxy_of(certificate: Credential, lifetime: timedelta = PROXY_LIFETIME, **kind: Any) -> Credential:
    """A proxy made now."""
    return create_proxy(certificate, lifetime=lifetime, now=datetime.now(UTC), **kind)


def processes_with(argument: str) -> list[int]:
    """Ids of processes that have this argument."""
    found: list[int] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if argument in process.cmdline():
                found.append(process.pid)
    return found


def listener(port: int) -> psutil.Process | None:
    """The process that listens on this port of this machine, as far as we may see."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and getattr(connection.laddr, "port", 0) == port and connection.pid:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                return psutil.Process(connection.pid)
    return None


async def _delegated(channel: Any) -> None:
    stub: Any = security_pb2_grpc.DelegationStub(channel)
    await stub.List(security_pb2.DelegationListRequest())


_CALLS: Mapping[str, Callable[[Any], Awaitable[Any]]] = {
    "broker": _delegated,
    "bookkeeping": lambda channel: BookkeepingClient(channel).query(limit=1),
    "catalog": lambda channel: catalog.list_page(channel, "/grid", page_size=1),
    "gatekeeper": lambda channel: gatekeeper.status(channel, []),
    "storage": storage.space,
    "transfer": lambda channel: TransferClient(channel).jobs(),
}
USER_KINDS = tuple(_CALLS)
"""Services that users call."""
