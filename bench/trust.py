"""Section `trust`: from a change of trust to its last effect, on grids of packed sites.

At every site a user has an open session with a stream at the gatekeeper and a process that runs on the worker. Then the
user is banned, or the certificate revoked. The end of each stream is seen by its client, the end of each process by
the kernel (a pidfd), both on the clock of the machine. An honest user has the same everywhere and must lose nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from gridfabric.gatekeeper.v1 import gatekeeper_pb2_grpc as pb_grpc

from agents.authority.client import AuthorityClient
from agents.gatekeeper import client as gatekeeper
from agents.user_interface import endpoints, users
from agents.user_interface.connection import Grid, open_grid
from agents.user_interface.endpoints import Endpoints
from bench import helpers
from bench.lab import ADMINISTRATION_S, VO, processor_s, run_pids, state_folder, uss
from bench.measure import Bench, Table, show
from clusters import deploy, load
from fabric.errors import GridError
from fabric.settings import Endpoint
from security.proxies import create_proxy

DESCRIPTION = """
[grid]
name = "bench"
mode = "lab"
organisation = "/O=Bench"
pack = {pack}
[[vo]]
name = "cms"
[[site]]
name = "S{{001..{sites:03}}}"
information = {{ fabric = {seldom} }}
gatekeeper = {{ fabric = {seldom} }}
worker = {{ slots = 4, fabric = {seldom} }}
"""
SELDOM = "{ trust_poll_s = 5.0, map_refresh_s = 10.0, crl_refresh_s = 10.0 }"
"""Changes are pushed; what is only looked at by the clock is looked at less often where 600 agents share two cores."""
PACK = 290
"""Agents in a process: with one process for each processor these do not spend the second on taking turns."""
SIZES = (1, 20, 192)
UP_S = 600.0
LARGE_TRIALS = 3
AT_ONCE = 4
"""Sites that are prepared at a time."""
READY_S = 600.0
"""For everybody to have streams and processes everywhere."""
EFFECT_S = 60.0
"""What has not ended by then did not."""
SETTLE_S = 5.0
AFTER_S = 1.0
"""For what a change leaves to be done: copies on disk, audit lines."""
STEP_MS = 100
BAR = 40


@dataclass
class Member:
    """A user with a stream and a process at every site."""

    grid: Grid
    number: int
    streams: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])
    ended_at: list[float] = field(default_factory=list[float])
    """When each stream ended, on the machine's monotonic clock."""

    @property
    def subject(self) -> str:
        """The DN."""
        return self.grid.identity

    def argument(self, site: int) -> str:
        """Of the process at a site: half an hour, and who and where after the point."""
        return f"1800.{self.number:03}{site:03}"

    def processes(self, sites: int) -> list[int]:
        """Ids of the processes that run, by the process table."""
        wanted = {f"sleep\0{self.argument(site)}\0".encode() for site in range(sites)}
        found: list[int] = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if path.read_bytes().rpartition(b"/")[2] in wanted:
                    found.append(int(path.parent.name))
        return found


@dataclass(frozen=True)
class Effect:
    """One change: milliseconds until each stream and each process had ended."""

    answered_ms: float
    streams_ms: list[float]
    processes_ms: list[float]
    processor_ms: float
    """Processor time of the whole grid until a while after the last effect, less what it uses at rest."""
    stolen: float
    """Part of the machine's time, from the change to the last effect, that its host gave to others (`steal`)."""

    @property
    def last_ms(self) -> float:
        """The last effect."""
        return max(*self.streams_ms, *self.processes_ms)


def run(bench: Bench, sizes: Sequence[int] = ()) -> None:
    """One grid after another."""
    for sites in sizes or (SIZES[:2] if bench.quick else SIZES):
        with state_folder(bench, f"trust-{sites}") as state:
            began = time.perf_counter()
            text = DESCRIPTION.format(pack=PACK, sites=sites, seldom=SELDOM)
            deploy.up(load.loads(text, bench.folder / "trust.toml"), state, deadline_s=UP_S)
            took_s = time.perf_counter() - began
            agents = 3 * sites + 2
            bench.add(f"trust_up_{sites}", f"grid up, {sites} packed sites ({agents} agents)", "s", [took_s])
            memory = sum(uss(pid) for pid in run_pids(state)) / (1 << 20)
            bench.add(f"trust_memory_{sites}", f"memory of {sites} packed sites with Ray", "MiB", [memory])
            asyncio.run(_measure(bench, state, sites))
        _floor(bench, sites)


async def _measure(bench: Bench, state: Path, sites: int) -> None:
    services = endpoints.read_file(state / endpoints.ENDPOINTS_FILE)
    trusted = state / "certificates"
    trials = bench.trials if sites < SIZES[-1] else min(bench.trials, LARGE_TRIALS)
    async with (
        open_grid(services, users.administrator(state), trusted) as operator,
        contextlib.AsyncExitStack() as stack,
    ):
        authority = AuthorityClient(await operator.channel("authority"))
        people = _people(stack, operator, services, trusted, bench.folder / f"trust-users-{sites}")
        honest = await anext(people)
        await _everywhere(honest)
        kept = set(honest.processes(sites))

        async def ban(member: Member) -> None:
            await authority.ban("subject", member.subject, reason="bench")

        async def revoke(member: Member) -> None:
            await authority.revoke(subject=member.subject)

        changes: dict[str, Callable[[Member], Awaitable[None]]] = {"ban": ban, "revocation": revoke}
        for name, change in changes.items():
            effects: list[Effect] = []
            for _ in range(trials):
                member = await anext(people)
                await _everywhere(member)
                effects.append(await _effect(member, change, sites, run_pids(state)))
                if honest.ended_at or set(honest.processes(sites)) != kept:
                    raise RuntimeError(f"the {name} of {member.subject} hit an honest user")
            _report(bench, name, sites, effects)


async def _people(
    stack: contextlib.AsyncExitStack, operator: Grid, services: Endpoints, trusted: Path, folder: Path
) -> AsyncIterator[Member]:
    """New members of the VO, one after another."""
    for number in range(1, 1000):
        async with asyncio.timeout(ADMINISTRATION_S):
            user = await users.add(operator, f"bench {number}", VO, [], folder / str(number))
        proxy = create_proxy(user.credential, lifetime=timedelta(hours=12), now=datetime.now(UTC))
        yield Member(await stack.enter_async_context(open_grid(services, proxy, trusted)), number)


async def _everywhere(member: Member) -> None:
    """Until the member has a stream and a process at each site."""
    found = member.grid.services.all("gatekeeper")
    limit = asyncio.Semaphore(AT_ONCE)
    ready = [asyncio.get_running_loop().create_future() for _ in found]

    async def begin(site: int, endpoint: Endpoint) -> None:
        async with limit:
            channel = await _admitted(member.grid, endpoint)
            await member.grid.delegate(channel)
            job_id = f"https://localhost:9000/bench-{member.number:03}-{site:03}-0000"
            description = pb.JobDescription(executable="/bin/sleep", arguments=[member.argument(site)], vo=VO)
            [outcome] = await gatekeeper.submit(channel, [pb.Job(job_id=job_id, attempt=1, description=description)])
            if not outcome.accepted:
                raise RuntimeError(f"{endpoint.name} did not take the job: {outcome.sentence}")
            member.streams.append(asyncio.create_task(_follow(member, channel, ready[site])))
            await ready[site]

    try:
        async with asyncio.timeout(READY_S):
            await asyncio.gather(*(begin(site, endpoint) for site, endpoint in enumerate(found)))
            while len(member.processes(len(found))) < len(found):  # noqa: ASYNC110 - the process table rings no bell
                await asyncio.sleep(0.2)
    except TimeoutError:
        there = len(member.processes(len(found)))
        raise RuntimeError(f"only {there} of {len(found)} processes were there after {READY_S:g} s") from None
    await asyncio.sleep(SETTLE_S)  # what preparation left behind is not part of the effect


async def _admitted(grid: Grid, endpoint: Endpoint) -> Any:
    """A channel with a session, once the gatekeeper has heard of the new member."""
    while True:
        try:
            channel = await grid.channel_to(endpoint.host, endpoint.rpc)
            await channel.ready()
            return channel
        except GridError as error:
            if error.reason not in ("NOT_MAPPED", "MEMBERS_UNKNOWN"):
                raise
        await asyncio.sleep(0.5)


async def _follow(member: Member, channel: Any, running: asyncio.Future[None]) -> None:
    """The member's updates, until the session is closed."""
    stub: Any = pb_grpc.GatekeeperStub(channel)
    try:
        async with stub.Watch(pb.WatchRequest()) as stream:
            async for response in stream:
                for update in response.updates:
                    if update.state == pb.JOB_STATE_RUNNING and not running.done():
                        running.set_result(None)
                    elif update.state == pb.JOB_STATE_FAILED and not running.done():
                        running.set_exception(RuntimeError(f"the job did not start: {update.sentence}"))
    except GridError as error:
        member.ended_at.append(time.monotonic())
        if not running.done():
            running.set_exception(error)


async def _effect(
    member: Member, change: Callable[[Member], Awaitable[None]], sites: int, grid: Sequence[int]
) -> Effect:
    order = {"pids": member.processes(sites), "deadline_s": EFFECT_S}
    rest, rested_at = processor_s(grid), time.monotonic()
    await asyncio.sleep(SETTLE_S)
    used, began_at = processor_s(grid), time.monotonic()
    rest = (used - rest) / (began_at - rested_at)
    with helpers.beside("exits", order) as exits:
        began, before = time.monotonic(), psutil.cpu_times()
        await change(member)
        answered = time.monotonic()
        _, late = await asyncio.wait(member.streams, timeout=EFFECT_S)
        gone = await asyncio.to_thread(exits)
        after = psutil.cpu_times()
    if late or len(gone["at"]) < sites:
        raise RuntimeError(
            f"after {EFFECT_S:g} s {len(late)} streams and {sites - len(gone['at'])} processes were left"
        )
    await asyncio.sleep(AFTER_S)
    used = processor_s(grid) - used - rest * (time.monotonic() - began_at)
    return Effect(
        1000 * (answered - began),
        [1000 * (at - began) for at in member.ended_at],
        [1000 * (at - began) for at in gone["at"]],
        1000 * used,
        (after.steal - before.steal) / max(sum(after) - sum(before), 0.01),
    )


def _floor(bench: Bench, sites: int) -> None:
    """What one process needs that kills as many by itself, seen in the same way."""
    sleeping = [subprocess.Popen(["/bin/sleep", "1800"]) for _ in range(sites)]
    try:
        with helpers.beside("exits", {"pids": [one.pid for one in sleeping], "deadline_s": EFFECT_S}) as exits:
            began = time.monotonic()
            for one in sleeping:
                one.send_signal(signal.SIGTERM)
            gone = exits()
    finally:
        for one in sleeping:
            one.kill()
            one.wait()
    last_ms = 1000 * (max(gone["at"]) - began)
    bench.add(f"trust_floor_{sites}", f"{sites} processes killed and seen gone, no grid", "ms", [last_ms])


def _report(bench: Bench, change: str, sites: int, effects: Sequence[Effect]) -> None:
    title = f"{change} to its last effect, {sites} site{'s' if sites > 1 else ''}"
    stolen = statistics.median(effect.stolen for effect in effects)
    note = f"{sites} sessions with streams, {sites} processes; {stolen:.0%} of the machine were stolen"
    bench.add(f"trust_{change}_{sites}", title, "ms", [effect.last_ms for effect in effects], note=note)
    each = [effect.processor_ms / sites for effect in effects]
    bench.add(f"trust_{change}_processor_{sites}", f"processor time of the grid for a {change}, a site", "ms", each)
    streams = [at for effect in effects for at in effect.streams_ms]
    processes = [at for effect in effects for at in effect.processes_ms]
    rows = [
        _spread("authority answered", [effect.answered_ms for effect in effects]),
        _spread("session closed, stream ended", streams),
        _spread("process gone", processes),
    ]
    bench.tables.append(Table(f"{title}, ms", ("what", "seen", "median", "p90", "last"), tuple(rows)))
    if sites > 1:
        bench.tables.append(_histogram(f"{title}: when", streams, processes))


def _spread(what: str, values: Sequence[float]) -> tuple[str, ...]:
    p90 = sorted(values)[math.ceil(0.9 * len(values)) - 1]
    return (what, str(len(values)), show(statistics.median(values)), show(p90), show(max(values)))


def _histogram(title: str, streams: Sequence[float], processes: Sequence[float]) -> Table:
    """How many sessions and processes ended in each step of time."""
    steps = range(int(max(*streams, *processes) // STEP_MS) + 1)
    closed, gone = ([sum(at // STEP_MS == step for at in found) for step in steps] for found in (streams, processes))
    highest = max(*closed, *gone)
    rows = [
        (
            f"{step * STEP_MS} - {(step + 1) * STEP_MS}",
            str(closed[step]), "█" * -(-BAR * closed[step] // highest),
            str(gone[step]), "█" * -(-BAR * gone[step] // highest),
        )
        for step in steps
    ]  # fmt: skip
    return Table(title, ("ms", "sessions", "", "processes", " "), tuple(rows))
