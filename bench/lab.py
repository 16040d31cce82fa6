"""A real grid for the length of some measurements: Ray, agents, a user with a proxy; and where its CPU time goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil

from agents.user_interface import endpoints, users
from agents.user_interface.connection import Grid, open_grid
from agents.user_interface.endpoints import Endpoints
from bench.measure import Bench
from clusters import deploy, inventory, load, processes
from clusters.deploy import AgentStatus, RunningGrid
from clusters.paths import StatePaths
from security.credentials import Credential
from security.proxies import create_proxy

DESCRIPTION = """
[grid]
name = "bench"
mode = "lab"
organisation = "/O=Bench"
{packed}[[vo]]
name = "cms"
[[site]]
name = "LAB"
location = "this machine"
top = {{}}
information = {{}}
broker = {{}}
bookkeeping = {{}}
catalog = {{}}
storage = {{}}
gatekeeper = {{}}
worker = {{ count = {workers}, slots = {slots}, processes = 16384 }}
[[site]]
name = "FAR"
location = "this machine"
information = {{}}
storage = {{}}
"""
VO = "cms"
PACK = 20
"""Workers of one process, where there are several."""
ADMINISTRATION_S = 60.0


@dataclass(frozen=True)
class Lab:
    """A grid that is up, and its one user."""

    state: Path
    services: Endpoints
    proxy: Credential
    agents: tuple[AgentStatus, ...]

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Grid]:
        """Connections in the user's name."""
        async with open_grid(self.services, self.proxy, self.state / "certificates") as grid:
            yield grid

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far, by agent; and of the payloads, of Ray, and of this process."""
        found = {agent.name: _cpu(agent.pid) for agent in self.agents}
        starters = processes.starters_below(self.state)
        found["starter"] = sum(_cpu(identity.pid) for identity in starters)
        found["payloads"] = sum(_cpu(identity.pid, children=True) for identity in starters)
        known = {agent.pid for agent in self.agents} | {identity.pid for identity in starters}
        found["Ray"] = sum(_cpu(pid) for pid in run_pids(self.state) if pid not in known)
        used = resource.getrusage(resource.RUSAGE_SELF)
        found["client"] = used.ru_utime + used.ru_stime
        return found


def _cpu(pid: int, *, children: bool = False) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return times.children_user + times.children_system if children else times.user + times.system


def run_pids(state: Path) -> list[int]:
    """Every process of the grid, Ray's too."""
    run = inventory.read_run(StatePaths(state))
    return [identity.pid for identity in processes.of_run(run.run)] if run else []


def processor_s(pids: Iterable[int]) -> float:
    """CPU seconds so far of these processes together."""
    return sum(map(_cpu, pids))


def uss(pid: int) -> int:
    """Bytes that only this process has; 0 when it is gone."""
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return 0


@contextlib.contextmanager
def state_folder(bench: Bench, name: str) -> Iterator[Path]:
    """A place for a grid; whatever runs from there is stopped in the end. Jobs' accounts can walk to it."""
    state = bench.folder / name
    try:
        yield state
    finally:
        deploy.down(state, purge=True)
        shutil.rmtree(state, ignore_errors=True)


@contextlib.contextmanager
def started(bench: Bench, slots: int, workers: int = 1) -> Iterator[Lab]:
    """A grid of one site, another storage element elsewhere, and one user. Several workers share processes."""
    with state_folder(bench, "lab") as state:
        bench.say("  (starting a grid)")
        packed = f"pack = {PACK}\n" if workers > 1 else ""
        description = DESCRIPTION.format(slots=slots, workers=workers, packed=packed)
        running = deploy.up(load.loads(description, bench.folder / "bench.toml"), state)
        proxy = asyncio.run(asyncio.wait_for(_user(running, bench.folder), ADMINISTRATION_S))
        yield Lab(state, endpoints.read_file(state / endpoints.ENDPOINTS_FILE), proxy, running.agents)


async def _user(running: RunningGrid, folder: Path) -> Credential:
    """A member of the VO, known to every service, with a proxy."""
    services = endpoints.read_file(running.state / endpoints.ENDPOINTS_FILE)
    trusted = running.state / "certificates"
    async with open_grid(services, users.administrator(running.state), trusted) as grid:
        user = await users.add(grid, "bench", VO, [], folder / f"user-{time.monotonic_ns()}")
    proxy = create_proxy(user.credential, lifetime=timedelta(hours=12), now=datetime.now(UTC))
    async with open_grid(services, proxy, trusted) as grid:
        unknown = await users.await_known(grid)
    if unknown:
        raise RuntimeError(f"the new user is not known to {', '.join(unknown)}")
    return proxy


def since(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """CPU seconds between two looks."""
    return {name: max(0.0, seconds - before.get(name, 0.0)) for name, seconds in after.items()}


def processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))
