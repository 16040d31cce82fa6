"""From a description to the settings of every agent. Pure: no clock, disk, socket or process in here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clusters.model import AgentDescription, GridDescription, HostDescription
from clusters.paths import StatePaths
from fabric.errors import Conflict

PACKED_VALID_FOR_S = 60.0
"""How long what an agent of a pack publishes stands without a sign of life. Those of a pack wait for each other's
turns, and a grid of packs is a large one on a small machine: a late word is no loss. Changes travel at once as ever."""

PACKED: Mapping[str, float] = {
    "publish_valid_for_s": PACKED_VALID_FOR_S, "trust_poll_s": 5.0, "crl_refresh_s": 10.0, "keepalive_s": 15.0,
}  # fmt: skip
"""The section `fabric` of agents of a pack: what is pushed, too, is looked at less often, and so are connections."""
PACKED_WORKER: Mapping[str, float] = {"disk_check_s": 10.0}

Ports = Mapping[str, Mapping[str, int]]
"""Agent name to protocol to port."""


@dataclass(frozen=True)
class PlannedAgent:
    """One agent with everything needed to start it."""

    description: AgentDescription
    settings: Mapping[str, Any]
    """The plain dict of docs/architecture.md section 3."""
    hosts: tuple[str, ...]
    """Names and addresses for its certificate."""

    @property
    def name(self) -> str:
        """Unique in the grid."""
        return self.description.name

    @property
    def host(self) -> str:
        """The Ray label of its machine."""
        return self.description.host

    @property
    def subject(self) -> str:
        """The DN of its certificate."""
        settings = self.settings
        return f"{settings['organisation']}/OU={settings['site']}/CN={settings['kind']}/{settings['name']}"


@dataclass(frozen=True)
class Pack:
    """Agents that share one Ray actor, which is one process."""

    actor: str
    """Its name: that of the first agent."""
    host: str
    agents: tuple[str, ...]
    """All of them, in starting order."""

    def order(self, names: Collection[str]) -> dict[str, Any]:
        """How `clusters.node.driver` is told of some of these agents."""
        return {
            "actor": self.actor,
            "host": self.host,
            "agents": [name for name in self.agents if name in names],
            "size": len(self.agents),
        }


def packs(grid: GridDescription, names: Collection[str]) -> tuple[Pack, ...]:
    """How these agents share processes: a central one has its own, the others of a host are taken `grid.pack` at a
    time, site by site. The same for some hosts of a grid as for all."""
    alone: list[Pack] = []
    by_host: dict[str, list[str]] = {}
    for agent in grid.agents():
        if agent.name in names:
            if agent.about.central or grid.pack == 1:
                alone.append(Pack(agent.name, agent.host, (agent.name,)))
            else:
                by_host.setdefault(agent.host, []).append(agent.name)
    shared = [
        Pack(found[start], host, tuple(found[start : start + grid.pack]))
        for host, found in by_host.items()
        for start in range(0, len(found), grid.pack)
    ]
    return (*alone, *shared)


def lab_ports(grid: GridDescription, known: Ports, choose: Callable[[], int]) -> Ports:
    """Ports for a grid on one machine: those known from before, wanted ones, else `choose()` (never the same twice)."""
    ports: dict[str, dict[str, int]] = {}
    taken = {port for protocols in known.values() for port in protocols.values()}
    taken |= {port for agent in grid.agents() for port in agent.ports.values()}
    for agent in grid.agents():
        before = known.get(agent.name, {})
        mine: dict[str, int] = {}
        for protocol in agent.about.ports:
            port = agent.ports.get(protocol) or before.get(protocol)
            while port is None or (port in taken and protocol not in before and protocol not in agent.ports):
                port = choose()
            taken.add(port)
            mine[protocol] = port
        ports[agent.name] = mine
    _refuse_shared(grid, ports)
    return ports


def well_known_ports(grid: GridDescription) -> Ports:
    """Ports for a grid on many machines: each kind's own; the second of a kind on one host gets the next free one."""
    taken: dict[str, set[int]] = {}
    for agent in grid.agents():
        taken.setdefault(agent.host, set()).update(agent.ports.values())
    ports: dict[str, dict[str, int]] = {}
    for agent in grid.agents():
        mine = ports[agent.name] = {}
        for protocol, default in agent.about.ports.items():
            port = agent.ports.get(protocol)
            if port is None:
                port = default
                while port in taken[agent.host]:
                    port += 1
            taken[agent.host].add(port)
            mine[protocol] = port
    _refuse_shared(grid, ports)
    return ports


def _refuse_shared(grid: GridDescription, ports: Ports) -> None:
    owners: dict[tuple[str, int], str] = {}
    for agent in grid.agents():
        for protocol, port in ports[agent.name].items():
            other = owners.setdefault((agent.host, port), agent.name)
            if other != agent.name or list(ports[agent.name].values()).count(port) > 1:
                raise Conflict(
                    "PORT_SHARED",
                    f"{grid.source}: {agent.name} and {other} both want port {port} on {agent.host}; "
                    f"change ports.{protocol} of one of them",
                    port=port,
                )


def make_plan(
    grid: GridDescription, ports: Ports, state: StatePaths, site: str | None = None
) -> tuple[PlannedAgent, ...]:
    """Every agent, or those of one site, with endpoints of what it may need, in starting order."""
    hosts = grid.hosts()
    everything = {agent.name: endpoint(agent, hosts[agent.host], ports[agent.name]) for agent in grid.agents()}
    chosen = [agent for agent in grid.agents() if site is None or agent.site == site]
    planned = [
        PlannedAgent(
            agent,
            _settings(grid, agent, hosts[agent.host], ports[agent.name], state, everything),
            hosts_of(hosts[agent.host]),
        )
        for agent in chosen
    ]
    return tuple(sorted(planned, key=lambda agent: agent.description.about.order))


def endpoint(agent: AgentDescription, host: HostDescription, ports: Mapping[str, int]) -> dict[str, Any]:
    """How others reach an agent: one item of settings["endpoints"][kind]."""
    return {"name": agent.name, "site": agent.site, "host": host.advertise, **ports}


def endpoints_for(
    grid: GridDescription, everything: Mapping[str, Mapping[str, Any]], site: str | None
) -> dict[str, list[dict[str, Any]]]:
    """By kind, for an agent: the central services and those of `site` (of every site for None). Own site first. Never
    workers."""
    found: dict[str, list[dict[str, Any]]] = {}
    agents = sorted(grid.agents(), key=lambda agent: agent.site != site)
    for agent in agents:
        if agent.kind != "worker" and (site is None or agent.site == site or agent.about.central):
            found.setdefault(agent.kind, []).append(dict(everything[agent.name]))
    return found


def hosts_of(host: HostDescription) -> tuple[str, ...]:
    """Names and addresses by which others reach the agents of a host: what their certificates are for."""
    names = [host.advertise, host.address]
    if host.address == "127.0.0.1":
        names.append("localhost")
    return tuple(dict.fromkeys(name for name in names if name not in ("0.0.0.0", "::")))


def _invitable(grid: GridDescription) -> dict[str, dict[str, list[str]]]:
    """What the authority lets each site enrol: site to `<kind>/<name>` to host names."""
    hosts = grid.hosts()
    return {
        site.name: {f"{a.about.folder}/{a.name}": list(hosts_of(hosts[a.host])) for a in site.agents}
        for site in grid.sites
    }


def _settings(
    grid: GridDescription,
    agent: AgentDescription,
    host: HostDescription,
    ports: Mapping[str, int],
    state: StatePaths,
    everything: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    return {
        "grid": grid.name,
        "kind": agent.about.folder,
        "name": agent.name,
        "site": agent.site,
        "host": agent.host,
        "listen": host.address,
        "advertise": host.advertise,
        "ports": dict(ports),
        "state_dir": str(state.agent(agent.site, agent.name)),
        "certificates": str(state.certificates),
        "credential": str(state.credential(agent.site, agent.name)),
        "organisation": grid.organisation,
        "vos": [vo.name for vo in grid.vos],
        "endpoints": endpoints_for(grid, everything, None if agent.about.central else agent.site),
        "options": _options(grid, agent),
        "fabric": {**(PACKED if grid.pack > 1 else {}), **agent.fabric},
    }


def _below(grid: GridDescription, regions: Iterable[str]) -> dict[str, list[str]]:
    """By region server: the sites and regions that it publishes beside itself."""
    found: dict[str, list[str]] = {}
    for region in regions:
        options = grid.regions()[region].options
        nested = _below(grid, options.get("regions", ()))
        found[region] = [*options.get("sites", ()), *nested, *(name for names in nested.values() for name in names)]
    return found


def _options(grid: GridDescription, agent: AgentDescription) -> dict[str, Any]:
    """The agent's own options, with what the description says elsewhere. What is written for the agent itself wins."""
    known: dict[str, Any] = {}
    if agent.kind == "authority":
        known["sites"] = _invitable(grid)
    elif agent.kind == "information" and (site := grid.site(agent.site)) is not None:
        known = {"location": site.location, "web": site.web, "email": site.contact}
        if site.latitude or site.longitude:
            known |= {"latitude": site.latitude, "longitude": site.longitude}
        known["region"] = grid.region_of(agent.site)
        if grid.pack > 1:
            known |= {"valid_for_s": PACKED_VALID_FOR_S, "refresh_s": PACKED_VALID_FOR_S / 4}
    elif agent.kind == "region":
        known = {"region": grid.region_of(agent.name), "below": _below(grid, agent.options.get("regions", ()))}
    elif agent.kind == "top":
        known = {"below": _below(grid, [name for name in grid.regions() if not grid.region_of(name)])}
    elif agent.kind == "worker" and grid.pack > 1:
        known = dict(PACKED_WORKER)
    return {**agent.about.options, **known, **agent.options}
