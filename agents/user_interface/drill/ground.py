"""The ground of a drill: a running grid, its people, and an umpire who sees only what any client or `ps` can see."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from gridfabric.security.v1 import security_pb2, security_pb2_grpc

from agents.authority.client import AuthorityClient
from agents.bookkeeping.client import BookkeepingClient
from agents.broker.client import BrokerClient
from agents.catalog import client as catalog
from agents.gatekeeper import client as gatekeeper
from agents.storage import client as storage
from agents.user_interface import attributes, users
from agents.user_interface.connection import Grid, open_grid
from agents.user_interface.endpoints import Endpoints
from agents.vo.client import VoClient
from fabric.errors import GridError
from fabric.settings import Endpoint
from security.credentials import Credential
from security.proxies import create_proxy

REFUSED_WITHIN_S = 60.0
"""A service that has not refused by then did not."""
LOOK_EVERY_S = 0.01
PROXY_LIFETIME = timedelta(hours=2)
KINDS = ("broker", "bookkeeping", "catalog", "gatekeeper", "storage")
"""Services that users call."""


@dataclass(frozen=True)
class Mark:
    """One thing that happened, `at_ms` after the drill began."""

    at_ms: float
    who: str
    what: str
    service: str = ""


@dataclass
class Score:
    """What the umpire wrote down. A drill is passed when nothing is in `failures`."""

    marks: list[Mark] = field(default_factory=list[Mark])
    refused_ms: dict[str, float] = field(default_factory=dict[str, float])
    """By service: how long after the defender acted (or at once, for attacks that nobody needs to stop)."""
    sentences: dict[str, str] = field(default_factory=dict[str, str])
    failures: list[str] = field(default_factory=list[str])
    honest_calls: int = 0
    honest_failures: int = 0
    stopped_ms: float | None = None
    """Until the last process of the attacker was gone; None where there was none."""


class Ground:
    """A grid, and the drill that is under way on it."""

    def __init__(self, services: Endpoints, administrator: Credential, state: Path, folder: Path) -> None:
        self.services, self.state, self.folder = services, state, folder
        self.certificates = Path(services.certificates)
        self._administrator = administrator
        self._stack = AsyncExitStack()
        self._numbers = itertools.count(1)
        self.operator: Grid
        self.score = Score()
        self._began = time.monotonic()

    async def __aenter__(self) -> Ground:
        self.operator = await self._open(self._administrator)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._stack.aclose()

    async def _open(self, credential: Credential) -> Grid:
        return await self._stack.enter_async_context(open_grid(self.services, credential, self.certificates))

    # -- writing down ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A new drill: an empty score, the clock at nothing."""
        self.score, self._began = Score(), time.monotonic()

    def mark(self, who: str, what: str, service: str = "") -> None:
        """Write down what happened now."""
        self.score.marks.append(Mark(round((time.monotonic() - self._began) * 1000, 1), who, what, service))

    def expect(self, holds: bool, failure: str) -> None:
        """The umpire's judgement."""
        if not holds:
            self.mark("umpire", f"FAILED: {failure}")
            self.score.failures.append(failure)

    # -- people ------------------------------------------------------------------------------------------------------

    async def authority(self) -> AuthorityClient:
        """The authority, for the operator."""
        return AuthorityClient(await self.operator.channel("authority"))

    async def vo(self) -> VoClient:
        """The VO server, for the operator."""
        return await attributes.vo_client(self.operator, self.operator.vo)

    async def user(self, name: str) -> Person:
        """A new member of the VO whom every service knows."""
        called = f"{name} {next(self._numbers)}"
        made = await users.add(self.operator, called, self.operator.vo, [], self.folder / called.replace(" ", "-"))
        person = await self.person(made.credential, called)
        unknown = await users.await_known(person.grid)
        if unknown:
            raise RuntimeError(f"{called} is not known to {', '.join(unknown)}")
        return person

    async def person(self, certificate: Credential, name: str) -> Person:
        """Somebody with a proxy of this certificate."""
        proxy = create_proxy(certificate, lifetime=PROXY_LIFETIME, now=datetime.now(UTC))
        return Person(self, name, certificate, proxy, await self._open(proxy))

    async def bearer(self, credential: Credential, name: str) -> Person:
        """Somebody with exactly this credential."""
        return Person(self, name, credential, credential, await self._open(credential))

    def endpoints(self, kinds: Sequence[str] = KINDS) -> list[Endpoint]:
        """The services that users call."""
        return [endpoint for kind in kinds for endpoint in self.services.all(kind)]

    @asynccontextmanager
    async def honest(self, person: Person) -> AsyncIterator[None]:
        """Somebody works all the while; what fails counts against the defence."""

        async def work() -> None:
            for endpoint in itertools.cycle(self.endpoints()):
                self.score.honest_calls += 1
                refusal = await person.attempt(endpoint)
                if refusal is not None:
                    self.score.honest_failures += 1
                    self.mark("honest user", refusal.sentence, endpoint.name)
                await asyncio.sleep(LOOK_EVERY_S)

        working = asyncio.create_task(work())
        try:
            yield
        finally:
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working
            failures = self.score.honest_failures
            self.expect(not failures, f"{failures} of {self.score.honest_calls} calls of an honest user failed")

    # -- the umpire --------------------------------------------------------------------------------------------------

    async def accepted_everywhere(self, person: Person, endpoints: Sequence[Endpoint] | None = None) -> None:
        """The control: every service serves this person."""
        for endpoint in self.endpoints() if endpoints is None else endpoints:
            refusal = await person.attempt(endpoint)
            sentence = refusal.sentence if refusal is not None else ""
            self.expect(refusal is None, f"{endpoint.name} refused {person.name}: {sentence}")
        self.mark("umpire", f"{person.name} is served everywhere")

    async def refused_everywhere(
        self, person: Person, reasons: Sequence[str], endpoints: Sequence[Endpoint] | None = None
    ) -> None:
        """Each service is asked again and again until it refuses; how long that took goes into the score."""
        began = time.monotonic()

        async def watch(endpoint: Endpoint) -> None:
            while time.monotonic() < began + REFUSED_WITHIN_S:
                refusal = await person.attempt(endpoint)
                if refusal is not None:
                    self.score.refused_ms[endpoint.name] = round((time.monotonic() - began) * 1000, 1)
                    self.score.sentences[endpoint.name] = refusal.sentence
                    self.mark("umpire", f"refuses: {refusal.sentence}", endpoint.name)
                    self.expect(
                        refusal.reason in reasons, f"{endpoint.name} refused with {refusal.reason}, not {reasons[0]}"
                    )
                    return
                await asyncio.sleep(LOOK_EVERY_S)
            self.expect(False, f"{endpoint.name} still serves {person.name} after {REFUSED_WITHIN_S:g} s")

        await asyncio.gather(*(watch(e) for e in (self.endpoints() if endpoints is None else endpoints)))

    async def gone(self, mark: str) -> None:
        """Wait until no process has this argument; into the score."""
        began = time.monotonic()
        while processes_with(mark):
            if time.monotonic() > began + REFUSED_WITHIN_S:
                self.expect(False, f"processes {processes_with(mark)} still run after {REFUSED_WITHIN_S:g} s")
                return
            await asyncio.sleep(LOOK_EVERY_S)
        self.score.stopped_ms = round((time.monotonic() - began) * 1000, 1)
        self.mark("umpire", "the last process of the attacker is gone")


@dataclass
class Person:
    """Somebody with a credential."""

    ground: Ground
    name: str
    certificate: Credential
    proxy: Credential
    grid: Grid

    @property
    def subject(self) -> str:
        """The DN."""
        return str(self.certificate.identity)

    async def attempt(self, endpoint: Endpoint) -> GridError | None:
        """One ordinary call; why it was refused, or None."""
        try:
            await _CALLS[endpoint.name.partition(".")[0]](await self.grid.channel_to(endpoint.host, endpoint.rpc))
        except GridError as error:
            return error
        return None

    async def run_forever(self) -> str:
        """A job that sleeps; returns once its process is seen. The result finds the process."""
        seconds = f"3{int(time.time() * 1e6) % 10**9}"
        broker = await self.grid.channel("broker")
        await self.grid.delegate(broker)
        jdl = f'Executable = "/bin/sleep"; Arguments = "{seconds}";'
        await BrokerClient(broker).submit(jdl)
        deadline = time.monotonic() + REFUSED_WITHIN_S
        while not processes_with(seconds):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the job of {self.name} did not start")
            await asyncio.sleep(LOOK_EVERY_S)
        self.ground.mark(self.name, "a job runs")
        return seconds


def processes_with(argument: str) -> list[int]:
    """Ids of processes that have this argument."""
    found: list[int] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if argument in process.cmdline():
                found.append(process.pid)
    return found


async def _delegated(channel: Any) -> None:
    stub: Any = security_pb2_grpc.DelegationStub(channel)
    await stub.List(security_pb2.DelegationListRequest())


_CALLS: Mapping[str, Callable[[Any], Awaitable[Any]]] = {
    "broker": _delegated,
    "bookkeeping": lambda channel: BookkeepingClient(channel).query(limit=1),
    "catalog": lambda channel: catalog.list_page(channel, "/grid", page_size=1),
    "gatekeeper": lambda channel: gatekeeper.status(channel, []),
    "storage": storage.space,
}
