"""How a grid is: every agent with its health, process and use of memory; an answer also when the grid is dead."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from clusters import inventory, ray
from clusters.model import GridDescription
from clusters.paths import StatePaths
from clusters.plan import PlannedAgent, make_plan, packs
from fabric.errors import GridError

HEALTH_DEADLINE_S = 6.0


@dataclass(frozen=True)
class AgentStatus:
    """One agent as `grid status` shows it."""

    name: str
    kind: str
    site: str
    host: str
    state: str
    """starting, green, degraded, draining, stopped; failed: it ended by itself; silent: no answer in time; waiting: its
    host has not joined."""
    detail: str = ""
    ports: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    pid: int = 0
    restarts: int = 0
    packed: int = 1
    """Agents in this process: memory and processor time are an equal share of it."""
    memory_bytes: int = 0
    """Of this process alone (unique set size); 0 where it is not on this machine."""
    cpu_s: float = 0.0


@dataclass(frozen=True)
class GridStatus:
    """A grid as `grid status` shows it."""

    grid: str
    state: str
    """The state folder."""
    running: bool
    detail: str
    mode: str
    trust: str
    """`shared`: all sites in one Ray on one machine; `separate`: one Ray for each site."""
    accounts: str
    """`pool`: payloads run under pool accounts; `caller`: under the user who started the grid."""
    agents: tuple[AgentStatus, ...]

    @property
    def green(self) -> bool:
        """Whether everything is up."""
        return self.running and all(agent.state == "green" for agent in self.agents)


def status_of(agent: PlannedAgent, answer: Mapping[str, Any]) -> AgentStatus:
    return AgentStatus(
        agent.name,
        agent.description.kind,
        agent.description.site,
        agent.host,
        str(answer.get("state", "unknown")),
        str(answer.get("detail", "")),
        dict(agent.settings["ports"]),
        dict(answer.get("numbers", {})),
        int(answer.get("pid", 0)),
        int(answer.get("restarts", 0)),
        int(answer.get("packed", 1)),
    )


def with_process(status: AgentStatus, here: str) -> AgentStatus:
    """With memory and processor time, where the process is on this machine: the host `here`."""
    if status.host != here or not status.pid:
        return status
    try:
        process = psutil.Process(status.pid)
        times = process.cpu_times()
        memory = process.memory_full_info().uss
    except (psutil.Error, ValueError):
        return status
    return replace(status, memory_bytes=int(memory) // status.packed, cpu_s=(times.user + times.system) / status.packed)


def head_host(description: GridDescription, site: str | None) -> str:
    """The host on which a site is started: its first one."""
    where = description.site(site) if site is not None else None
    return (where or description.sites[0]).hosts[0].name


def status(state: Path) -> GridStatus:
    """How the grid of a state folder is now; answers within seconds also when it is dead. Raises GRID_UNKNOWN."""
    paths = StatePaths(state.absolute())
    description = inventory.read_description(paths)
    known = inventory.read_inventory(paths)
    run = inventory.read_run(paths)
    ports = known.ports if known else {}
    agents = make_plan(description, ports, paths, run.site if run else known.site if known else None)
    separate = "shared" if description.mode == "lab" else "separate"
    accounts = "pool" if os.geteuid() == 0 else "caller"

    def answer(running: bool, detail: str, found: Sequence[AgentStatus] = ()) -> GridStatus:
        shown = {status.name: status for status in found}
        all_agents = tuple(shown.get(a.name) or status_of(a, {"state": "stopped"}) for a in agents)
        return GridStatus(
            description.name, str(paths.root), running, detail, description.mode, separate, accounts, all_agents
        )

    if run is None:
        return answer(False, "the grid is down; start it with: grid up")
    if not inventory.is_up(run):
        return answer(False, "the grid has died; its state is safe. Clean up and start again with: grid up")
    if not run.address:
        return answer(False, "the grid is being started, or its start was interrupted; stop it with: grid down")
    client = ray.client_of(run, paths)
    try:
        client.connect(run.address)
        by_name = {agent.name: agent for agent in agents}
        orders = [pack.order(by_name) for pack in packs(description, by_name)]
        found = [
            with_process(status_of(by_name[row["agent"]], row), run.host or head_host(description, run.site))
            for row in client.call("health", HEALTH_DEADLINE_S + 5, packs=orders, deadline_s=HEALTH_DEADLINE_S)
        ]
    except GridError as error:
        return answer(False, f"{error.sentence}; stop what is left with: grid down")
    finally:
        client.close()
    bad = [status for status in found if status.state != "green"]
    return answer(True, f"{len(bad)} of {len(found)} agents are not green" if bad else "all agents are green", found)
