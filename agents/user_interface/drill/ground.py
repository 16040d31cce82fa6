"""The ground of a drill: a running grid, its people, and an umpire who sees only what any client or `ps` can see."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
from cryptography import x509

from agents.authority.client import AuthorityClient
from agents.bookkeeping.client import BookkeepingClient, state_name
from agents.user_interface import users
from agents.user_interface.connection import Grid, open_grid
from agents.user_interface.drill.people import (
    ATTACKER,
    HONEST,
    LOOK_EVERY_S,
    USER_KINDS,
    VICTIM,
    Job,
    Person,
    listener,
    proxy_of,
)
from agents.user_interface.drill.score import Mark, Score, Verdict
from agents.user_interface.endpoints import Endpoints
from agents.user_interface.vos import vo_client
from agents.vo.client import VoClient
from fabric.errors import GridError
from fabric.settings import Endpoint
from security.authority import CertificateAuthority
from security.credentials import Credential
from security.proxies import new_request

REFUSED_WITHIN_S = 60.0
"""A service that has not refused by then did not."""
SERVED_AGAIN_S = 30.0
"""For every service to know somebody again, or to be up again."""
COMMAND_TIMEOUT_S = 60.0
HONEST_PAUSE_S = 0.02
AT_ONCE = 16
"""Certificates asked of the authority at one moment."""
NAMES = ("Ada", "Bela", "Carla", "Dmitri", "Elif", "Fatou", "Goran", "Hanna", "Ines", "Jun", "Kofi", "Lena", "Milo",
         "Nadia", "Oskar", "Priya", "Quentin", "Rosa", "Sven", "Tomoko", "Uma", "Viktor", "Wanda", "Yusuf")  # fmt: skip


Act = Callable[[Endpoint], Awaitable[GridError | None]]
"""What somebody tries at a service: why it was refused, or None."""


class NotHereError(Exception):
    """This grid lacks what a drill needs."""


class Ground:
    """A grid, and the drill that is under way on it."""

    def __init__(
        self, services: Endpoints, administrator: Credential, state: Path, folder: Path, *, seed: int, speed: float
    ) -> None:
        self.services, self.state, self.folder = services, state, folder
        self.certificates = Path(services.certificates)
        self._administrator = administrator
        self._seed, self._speed = seed, speed
        self._grid_stack, self._drill_stack = AsyncExitStack(), AsyncExitStack()
        self._crowds: defaultdict[str, list[tuple[str, Credential]]] = defaultdict(list)
        self.operator: Grid
        self.score = Score()
        self.dice = random.Random(seed)
        """For every choice of a drill; the same for the same seed and drill."""
        self._acted: float | None = None

    async def __aenter__(self) -> Ground:
        self.operator = await self._open(self._administrator, self._grid_stack)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._grid_stack.aclose()

    async def _open(self, credential: Credential, stack: AsyncExitStack) -> Grid:
        return await stack.enter_async_context(open_grid(self.services, credential, self.certificates))

    # -- a drill -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def playing(self, name: str) -> AsyncGenerator[Score]:
        """One drill: an empty score; at its end everything is put right that was asked for with `afterwards`."""
        self.dice = random.Random(f"{self._seed} {name}")
        self._acted = None
        async with AsyncExitStack() as self._drill_stack:
            self.score = Score()
            yield self.score

    def begin(self) -> None:
        """Everybody is there: the clock of the drill starts."""
        self.score.began = time.monotonic()

    def afterwards(self, act: Callable[[], Awaitable[object]]) -> None:
        """Do this at the end of the drill, however that is."""
        self._drill_stack.push_async_callback(act)

    def at_end(self, act: Callable[[], object]) -> None:
        """As `afterwards`, for what needs no waiting."""
        self._drill_stack.callback(act)

    def seconds(self, usual: float) -> float:
        """A time that a drill waits out, by the speed of the clocks."""
        return usual / self._speed

    # -- writing down ------------------------------------------------------------------------------------------------

    def mark(self, who: str, what: str, service: str = "") -> None:
        """Write down what happened now."""
        self.score.marks.append(Mark(self.score.now_ms(), who, what, service))

    def attack(self, what: str) -> None:
        """The attacker acts."""
        self.mark(ATTACKER, what)

    def defend(self, what: str) -> None:
        """The defender acts: the stopwatch of the refusals that follow starts here."""
        self._acted = time.monotonic()
        self.mark("defender", what)

    def note(self, what: str) -> None:
        """What this grid cannot play as it would be elsewhere."""
        self.score.notes.append(what)

    def expect(self, holds: bool, failure: str) -> None:
        """The umpire's judgement."""
        if not holds:
            self.mark("umpire", f"FAILED: {failure}")
            self.score.failures.append(failure)

    # -- people ------------------------------------------------------------------------------------------------------

    async def enrol(self, counts: Mapping[str, int]) -> None:
        """New members of VOs whom every service knows, for `member`. Needs no other service than the authority's."""
        last: list[Credential] = []
        limit = asyncio.Semaphore(AT_ONCE)
        for vo, count in counts.items():
            client = await self.vo(vo)

            async def one(name: str, vo: str = vo, client: VoClient = client) -> None:
                async with limit:
                    certificate = await self.certificate_of(name)
                    await client.add_member(str(certificate.identity), name)
                    self._crowds[vo].append((name, certificate))

            await asyncio.gather(*(one(self._new_name()) for _ in range(count)))
            self._crowds[vo].sort(key=lambda row: row[0])
            last.append(self._crowds[vo][-1][1])
        for certificate in last:
            async with open_grid(self.services, proxy_of(certificate), self.certificates) as grid:
                if unknown := await users.await_known(grid):
                    raise TimeoutError(f"{certificate.identity} is not known to {', '.join(unknown)}")

    def _new_name(self) -> str:
        return f"{self.dice.choice(NAMES)} {self.dice.randrange(10_000, 100_000)}"

    async def certificate_of(self, name: str, lifetime_s: float = 0, authority: str = "") -> Credential:
        """A certificate for somebody of that name, who is no member of anything; by default of the first authority."""
        key, request = new_request()
        client = await self.authority()
        pem = await client.issue_user(name, request, int(lifetime_s), renew=True, authority=authority)
        return Credential(x509.load_pem_x509_certificate(pem), key)

    async def member(self, part: str, vo: str = "") -> Person:
        """A member of a VO (the grid's first) whom every service knows, with a proxy."""
        vo = vo or self.operator.vo
        if not self._crowds[vo]:
            await self.enrol({vo: 1})
        name, certificate = self._crowds[vo].pop(self.dice.randrange(len(self._crowds[vo])))
        return await self.person(certificate, name, part)

    async def attacker(self) -> Person:
        """A member with bad intentions."""
        return await self.member(ATTACKER)

    async def victim(self) -> Person:
        """A member whom something happens to."""
        return await self.member(VICTIM)

    async def person(self, certificate: Credential, name: str, part: str) -> Person:
        """Somebody with a new proxy of this certificate."""
        return await self.bearer(proxy_of(certificate), name, part, certificate=certificate)

    async def bearer(
        self,
        credential: Credential,
        name: str,
        part: str = ATTACKER,
        *,
        certificate: Credential | None = None,
        doors: Mapping[tuple[str, int], int] | None = None,
    ) -> Person:
        """Somebody with exactly this credential."""
        grid = await self._open(credential, self._drill_stack)
        return Person(self, name, part, certificate or credential, credential, grid, doors or {})

    def endpoints(self, *kinds: str) -> list[Endpoint]:
        """The services that users call, or those of these kinds."""
        return [endpoint for kind in kinds or USER_KINDS for endpoint in self.services.all(kind)]

    def one(self, kind: str) -> Endpoint:
        """The first service of a kind. Raises NotHereError."""
        if not self.services.all(kind):
            raise NotHereError(f"this grid has no {kind} service")
        return self.services.all(kind)[0]

    def second_vo(self) -> str:
        """A VO other than the first, so that nobody else is disturbed. Raises NotHereError."""
        if len(self.services.vos) < 2:
            raise NotHereError("this grid has one VO, and the drill would disturb all its members")
        return self.services.vos[1]

    # -- the defender ------------------------------------------------------------------------------------------------

    async def authority(self) -> AuthorityClient:
        """The authority, for the operator."""
        return AuthorityClient(await self.operator.channel("authority"))

    async def vo(self, name: str = "") -> VoClient:
        """A VO server, for the operator."""
        return await vo_client(self.operator, name or self.operator.vo)

    async def ban(self, kind: str, value: str, *, sites: Sequence[str] = ()) -> Callable[[], Awaitable[object]]:
        """Ban until the end of the drill; returns how to lift it before."""
        authority = await self.authority()
        made = await authority.ban(kind, value, reason="drill", sites=sites)

        async def lift() -> None:
            await authority.lift(made.id)

        self.afterwards(lift)
        return lift

    def authority_files(self) -> CertificateAuthority:
        """The authority's own keys, for who owns its host. Closed at the end of the drill. Raises NotHereError."""
        for path in self.state.glob("sites/*/*/ca/ca.pem"):
            opened = CertificateAuthority.open(path.parent)
            self.at_end(opened.close)
            return opened
        raise NotHereError("the authority of this grid is on another machine")

    def freeze(self, endpoint: Endpoint) -> Callable[[], Awaitable[None]]:
        """The process of a service stands still until the end of the drill; returns how to wake it before."""
        process = self._process_of(endpoint)
        process.suspend()

        async def thaw() -> None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

        self.afterwards(thaw)
        return thaw

    async def restart(self, endpoint: Endpoint) -> None:
        """Kill the process of a service and wait until another one listens in its place."""
        process = self._process_of(endpoint)
        process.kill()
        self.mark("umpire", f"{endpoint.name} is killed and starts again")
        deadline = time.monotonic() + SERVED_AGAIN_S
        while (found := listener(endpoint.rpc)) is None or found == process:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{endpoint.name} did not start again within {SERVED_AGAIN_S:g} s")
            await asyncio.sleep(LOOK_EVERY_S)

    def _process_of(self, endpoint: Endpoint) -> psutil.Process:
        process = listener(endpoint.rpc)
        if process is None:
            raise NotHereError(f"{endpoint.name} is not a process of this machine that we may touch")
        return process

    def credential_file(self, endpoint: Endpoint) -> Path:
        """The host credential of an agent, for who owns its host. Raises NotHereError."""
        return self._of_host(endpoint, "credential")

    def state_of(self, endpoint: Endpoint) -> Path:
        """The state folder of an agent, for who owns its host. Raises NotHereError."""
        return self._of_host(endpoint, "state_dir")

    def _of_host(self, endpoint: Endpoint, setting: str) -> Path:
        settings = self.state / "settings" / f"{endpoint.name}.json"
        found = Path(json.loads(settings.read_text("utf-8"))[setting]) if settings.exists() else None
        if found is None or not found.exists():
            raise NotHereError(f"{endpoint.name} is on another machine")
        return found

    async def command(self, *arguments: str) -> Any:
        """What `grid ARGUMENTS --json` prints for the operator. Raises RuntimeError if it fails."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agents.user_interface.main", *arguments, "--state", str(self.state), "--json",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                output, errors = await process.communicate()
        except TimeoutError:
            process.kill()
            raise
        if process.returncode:
            raise RuntimeError(f"grid {' '.join(arguments)} ended with {process.returncode}: {errors.decode()[-300:]}")
        return json.loads(output)

    # -- honest people -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def honest_work(self) -> AsyncGenerator[None]:
        """Somebody works all the while; what fails counts against the defence."""
        person = await self.member(HONEST)

        async def work() -> None:
            slowest_ms = 0.0
            for endpoint in itertools.cycle(self.endpoints()):
                self.score.honest_calls += 1
                began = time.monotonic()
                refusal = await person.attempt(endpoint)
                slowest_ms = max(slowest_ms, (time.monotonic() - began) * 1000)
                self.score.figures["slowest call of the honest user, ms"] = round(slowest_ms, 1)
                if refusal is not None:
                    self.score.honest_failures += 1
                    self.mark(HONEST, refusal.sentence, endpoint.name)
                await asyncio.sleep(HONEST_PAUSE_S)

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

    def _verdict(
        self, person: Person, service: str, refusal: GridError | None, *, expected: bool, since: float
    ) -> None:
        after_ms = round((time.monotonic() - since) * 1000, 1) if refusal is not None else None
        self.score.verdicts.append(
            Verdict(
                self.score.now_ms(), service, person.name, person.part, "served" if refusal is None else "refused",
                expected, after_ms, refusal.reason if refusal is not None else "",
                refusal.sentence if refusal is not None else "",
            )
        )  # fmt: skip

    async def serves(
        self,
        person: Person,
        endpoints: Sequence[Endpoint] | None = None,
        *,
        within_s: float = 0,
        act: Act | None = None,
    ) -> None:
        """The control: every service serves this person, at once or within a while."""
        began = time.monotonic()
        attempt = act or person.attempt

        async def look(endpoint: Endpoint) -> None:
            refusal = await attempt(endpoint)
            while refusal is not None and time.monotonic() < began + within_s:
                await asyncio.sleep(LOOK_EVERY_S)
                refusal = await attempt(endpoint)
            self._verdict(person, endpoint.name, refusal, expected=refusal is None, since=began)
            sentence = refusal.sentence if refusal is not None else ""
            self.expect(refusal is None, f"{endpoint.name} refused {person.name}: {sentence}")

        await asyncio.gather(*map(look, self.endpoints() if endpoints is None else endpoints))
        self.mark("umpire", f"{person.name} is served")

    async def refuses(
        self,
        person: Person,
        *reasons: str,
        endpoints: Sequence[Endpoint] | None = None,
        act: Act | None = None,
    ) -> None:
        """Each service is asked again and again until it refuses, for one of these reasons; how long that took is
        counted from what the defender did."""
        began = time.monotonic()
        since = self._acted or began

        async def watch(endpoint: Endpoint) -> None:
            while time.monotonic() < began + REFUSED_WITHIN_S:
                refusal = await (act or person.attempt)(endpoint)
                if refusal is not None:
                    self._judge_refusal(person, endpoint.name, refusal, reasons, since)
                    return
                await asyncio.sleep(LOOK_EVERY_S)
            self._verdict(person, endpoint.name, None, expected=False, since=since)
            self.expect(False, f"{endpoint.name} still serves {person.name} after {REFUSED_WITHIN_S:g} s")

        await asyncio.gather(*map(watch, self.endpoints() if endpoints is None else endpoints))

    async def refuses_act(self, person: Person, service: str, act: Awaitable[object], *reasons: str) -> None:
        """One act of the person is refused at once, for one of these reasons."""
        began = time.monotonic()
        try:
            await act
        except GridError as error:
            self._judge_refusal(person, service, error, reasons, began)
        else:
            self._verdict(person, service, None, expected=False, since=began)
            self.expect(False, f"{service} did for {person.name} what it must refuse")

    def _judge_refusal(
        self, person: Person, service: str, refusal: GridError, reasons: Sequence[str], since: float
    ) -> None:
        expected = refusal.reason in reasons
        self._verdict(person, service, refusal, expected=expected, since=since)
        self.mark("umpire", f"{person.name} is refused: {refusal.sentence}", service)
        self.expect(expected, f"{service} refused with {refusal.reason}, not {' or '.join(reasons)}")

    async def done(self, person: Person, job_id: str) -> None:
        """Wait until a job has ended well."""
        bookkeeping = BookkeepingClient(await person.grid.channel("bookkeeping"))
        deadline = time.monotonic() + REFUSED_WITHIN_S
        state = ""
        while state != "DONE":
            if time.monotonic() > deadline:
                raise TimeoutError(f"the job of {person.name} is {state or 'unknown'} after {REFUSED_WITHIN_S:g} s")
            await asyncio.sleep(LOOK_EVERY_S)
            state = next((state_name(job.state) for job in await bookkeeping.query(job_ids=[job_id])), "")
        self.mark("umpire", f"the job of {person.name} has ended")

    async def gone(self, *jobs: Job) -> None:
        """Wait until no process of these jobs is left; into the score."""
        since = self._acted or time.monotonic()
        if await self.eventually(lambda: not any(job.processes() for job in jobs), "processes of the job still run"):
            self.score.stopped_ms = round((time.monotonic() - since) * 1000, 1)
            self.mark("umpire", "the last process is gone")

    async def eventually(self, holds: Callable[[], object], failure: str, within_s: float = REFUSED_WITHIN_S) -> bool:
        """Look again and again until this holds; if it does not in time, that is a failure."""
        deadline = time.monotonic() + within_s
        while not holds():
            if time.monotonic() > deadline:
                self.expect(False, f"{failure} after {within_s:g} s")
                return False
            await asyncio.sleep(LOOK_EVERY_S)
        return True
