"""A grid up, looked at, and down again.

`up` may be called on a state folder where a grid was before: it takes the same ports and goes on with what the agents
stored. It cleans up after a crash first. Every answer has a deadline; every process that was started can be found.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clusters import enrolment, inventory, processes, ray, trust
from clusters.inventory import Inventory, Run
from clusters.model import GridDescription
from clusters.node.launcher import NodeConfiguration
from clusters.paths import StatePaths, default_state
from clusters.plan import (
    PlannedAgent,
    Ports,
    endpoint,
    lab_ports,
    make_plan,
    packs,
    well_known_ports,
)
from clusters.ports import chooser, is_free
from clusters.report import AgentStatus, GridStatus, head_host, status, status_of, with_process
from clusters.trust import Invitation
from fabric import voms_files
from fabric.errors import Conflict, GridError, InvalidRequest, NotFound, Unavailable
from fabric.logs import null_logger
from fabric.settings import Settings
from fabric.vos import Vos
from security.certificates import issuer_of
from security.credentials import Credential
from security.files import write_atomic
from security.names import DistinguishedName

GREEN_DEADLINE_S = 120.0
"""All agents green, on a slow machine with everything cold."""
STOP_DEADLINE_S = 20.0
"""For each group of agents that are stopped together."""
STARTER_GRACE_S = 8.0
"""A worker's starter ends its payloads first."""
PORT_PATIENCE_S = 5.0
"""A port may be held a moment longer by what is just ending."""
RAY_ADDRESS = "RAY_ADDRESS"
"""Environment variable with host:port of a Ray to use instead of starting one. Its nodes need labels host=NAME, its
token is found as Ray itself finds it, and gridfabric must be installed where its workers run."""
DEFAULT_RAY_PORT = 6390
"""Of a site's Ray head in `hosts` mode."""


Progress = Callable[[AgentStatus], None]


def _silent(_: AgentStatus) -> None:
    """For callers that want no progress."""


@dataclass(frozen=True)
class RunningGrid:
    """What `up` started."""

    description: GridDescription
    paths: StatePaths
    agents: tuple[AgentStatus, ...]
    seconds: float
    """How long it took."""

    @property
    def state(self) -> Path:
        """The state folder."""
        return self.paths.root

    def environment(self) -> dict[str, str]:
        """What a client needs to be told of this grid, besides the endpoints file."""
        return {"X509_CERT_DIR": str(self.paths.certificates), "GRIDFABRIC_STATE": str(self.paths.root)}

    def down(self) -> None:
        """Stop it."""
        down(self.paths.root)


def up(
    description: GridDescription,
    state: Path,
    *,
    site: str | None = None,
    invitation: Path | None = None,
    on_progress: Progress = _silent,
    deadline_s: float = GREEN_DEADLINE_S,
    fork_server: bool = True,
) -> RunningGrid:
    """Start a grid, or one site of it, and wait until all its agents are green (or degraded, with their reasons).

    Raises GridError with one sentence; then, and when interrupted (Ctrl-C), nothing of this attempt is left running.
    """
    began = time.monotonic()
    state = state.absolute()
    paths = StatePaths(state)
    if site is not None and description.site(site) is None:
        known = ", ".join(s.name for s in description.sites)
        raise NotFound("SITE_UNKNOWN", f"{description.name} has no site {site!r}; its sites are {known}", site=site)
    if description.mode == "hosts" and site is None:
        if len(description.sites) > 1:
            known = ", ".join(s.name for s in description.sites)
            raise InvalidRequest("SITE_NEEDED", f"{description.source} has several sites; say which: --site {known}")
        site = description.sites[0].name
    given = Invitation.load(invitation) if invitation is not None else None
    with inventory.changing(paths), chooser("127.0.0.1") as choose:
        _refuse_second(paths)
        ports = _ports(description, paths, site, choose)
        agents = make_plan(description, ports, paths, site)
        _save_inventory(description, paths, site, ports)
        run = _new_run(agents, site, loopback=description.mode == "lab")
        if description.mode == "hosts" and (address := os.environ.get(RAY_ADDRESS)):
            run = replace(run, adopted=True, address=address)
        inventory.write(paths.run, run, 0o600)
        try:
            found = _start(description, paths, agents, run, given, on_progress, deadline_s, fork_server)
        except BaseException:
            _end(paths)
            raise
        return RunningGrid(description, paths, found, time.monotonic() - began)


def _refuse_second(paths: StatePaths) -> None:
    """Clean up what a crash left; refuse while a grid runs."""
    run = inventory.read_run(paths)
    if run is None:
        return
    if inventory.is_up(run):
        raise Conflict(
            "GRID_RUNNING",
            f"a grid already runs from {paths.root}; look at it with: grid status, stop it with: grid down",
        )
    _end(paths)


def _ports(description: GridDescription, paths: StatePaths, site: str | None, choose: Callable[[], int]) -> Ports:
    if description.mode != "lab":
        return well_known_ports(description)
    if site is not None:
        raise InvalidRequest(
            "SITE_IN_LAB",
            f"{description.source} is a lab: all sites are on one machine; set grid.mode to 'hosts' for --site",
        )
    before = inventory.read_inventory(paths)
    if before is not None and before.grid != description.name:
        raise Conflict(
            "STATE_OTHER_GRID",
            f"{paths.root} belongs to the grid {before.grid}, not to {description.name}; choose another with --state",
        )
    return lab_ports(description, before.ports if before else {}, choose)


def _await_ports(agents: Sequence[PlannedAgent]) -> None:
    """Raises Conflict PORT_IN_USE naming the agent, before anything is started."""
    deadline = time.monotonic() + PORT_PATIENCE_S
    for agent in agents:
        address = agent.settings["listen"]
        for protocol, port in agent.settings["ports"].items():
            while not is_free(address, port):
                if time.monotonic() > deadline:
                    raise Conflict(
                        "PORT_IN_USE",
                        f"port {port} ({protocol} of {agent.name}) on {address} is used by another program, or "
                        "that is no address of this machine; stop that program or set ports in the description",
                        port=port,
                    )
                time.sleep(0.1)


def _save_inventory(description: GridDescription, paths: StatePaths, site: str | None, ports: Ports) -> None:
    hosts = description.hosts()
    endpoints: dict[str, list[dict[str, object]]] = {}
    for agent in description.agents():
        endpoints.setdefault(agent.kind, []).append(endpoint(agent, hosts[agent.host], ports[agent.name]))
    plain_ports = {name: dict(protocols) for name, protocols in ports.items()}
    inventory.write(paths.inventory, Inventory(description.name, site, str(description.source), plain_ports))
    write_atomic(paths.description, description.text.encode(), 0o644)
    inventory.write(
        paths.root / "endpoints.json",
        {
            "grid": description.name,
            "vos": [vo.name for vo in description.vos],
            "organisation": description.organisation,
            "certificates": str(paths.certificates),
            "endpoints": endpoints,
        },
    )


def _start(
    description: GridDescription,
    paths: StatePaths,
    agents: Sequence[PlannedAgent],
    run: Run,
    invitation: Invitation | None,
    on_progress: Progress,
    deadline_s: float,
    fork_server: bool,
) -> tuple[AgentStatus, ...]:
    """Ray and the certificates at the same time; then the actors; then wait."""
    head = head_host(description, run.site)
    here = [agent for agent in agents if run.loopback or agent.host == head]
    ray.make_token(paths.token)
    for agent in agents:
        elsewhere = {"state": "waiting", "detail": f"host {agent.host} has not joined"}
        on_progress(status_of(agent, {"state": "starting"} if agent in here else elsewhere))
    if run.adopted:
        _await_ports(here)
        _prepare(description, paths, here, invitation)
    else:
        configuration = NodeConfiguration(
            address=description.hosts()[head].address,
            temp_dir=run.temp_dir,
            status_file=str(paths.node_status),
            labels={"host": head},
            slots=max(4, len(packs(description, [agent.name for agent in agents]))),
            port=0 if run.loopback else DEFAULT_RAY_PORT,
            fork_server=fork_server,
        )
        run = _start_node(paths, here, run, configuration, lambda: _prepare(description, paths, here, invitation))
    client = ray.client_of(run, paths)
    try:
        client.connect(run.address)
        list(client.call("create", 30.0, packs=_with_settings(description, agents)))
        found = _wait_green(client, description, here, paths, on_progress, deadline_s)
        return (*found, *(status_of(agent, {"state": "waiting"}) for agent in agents if agent not in here))
    finally:
        client.close()


def _with_settings(description: GridDescription, agents: Sequence[PlannedAgent]) -> list[dict[str, Any]]:
    settings = {agent.name: dict(agent.settings) for agent in agents}
    return [
        {**pack.order(settings), "settings": [settings[name] for name in pack.agents]}
        for pack in packs(description, settings)
    ]


def _start_node(
    paths: StatePaths,
    here: Sequence[PlannedAgent],
    run: Run,
    configuration: NodeConfiguration,
    prepare: Callable[[], None],
) -> Run:
    """A Ray node of ours, with everything prepared meanwhile. Returns the run with its processes, recorded."""
    _await_ports(here)
    if configuration.head:  # agents may be placed here as soon as the node has joined
        prepare()
    env = ray.environment(os.environ, paths.token, run.run, loopback=run.loopback)
    launcher = ray.launch(configuration, env, paths.root, paths.log)
    identity = processes.identify(launcher.pid)
    run = replace(run, processes={"launcher": identity} if identity else {})
    inventory.write(paths.run, run, 0o600)
    with ThreadPoolExecutor(1) as worker:
        prepared = None if configuration.head else worker.submit(prepare)
        status = ray.wait_ready(launcher, Path(configuration.status_file), paths.log)
        if prepared is not None:
            prepared.result()
    known = {name: processes.identify(pid) for name, pid in status.processes.items()}
    run = replace(run, address=status.address, processes={n: i for n, i in known.items() if i is not None})
    inventory.write(paths.run, run, 0o600)
    return run


def _prepare(
    description: GridDescription, paths: StatePaths, here: Sequence[PlannedAgent], invitation: Invitation | None
) -> None:
    """Folders, settings, trust and credentials of the agents on this host."""
    now = datetime.now(UTC)
    _write_settings(paths, here)
    if any(agent.description.kind == "authority" for agent in here):
        trust.prepare_here(description, paths, here, now)
    else:
        enrolment.prepare_elsewhere(paths, here, invitation, now)
    _write_voms_files(paths, here[0])


def _write_voms_files(paths: StatePaths, agent: PlannedAgent) -> None:
    """What its agents know of the VOs, for this host's users; the agents go on with it."""
    settings = Settings.from_dict(agent.settings)
    issuer = issuer_of(Credential.load(settings.credential).certificate)
    organisation = DistinguishedName.parse(settings.organisation)
    voms_files.write(paths.root, Vos.of(settings, null_logger()).listed, organisation, issuer)


def _write_settings(paths: StatePaths, agents: Sequence[PlannedAgent]) -> None:
    """Folders of the agents, and their settings for who wants to run one by hand."""
    (paths.root / "settings").mkdir(mode=0o755, exist_ok=True)
    for agent in agents:
        folder = Path(agent.settings["state_dir"])
        folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        inventory.write(paths.settings(agent.name), dict(agent.settings))


def _wait_green(
    client: ray.RayClient,
    description: GridDescription,
    agents: Sequence[PlannedAgent],
    paths: StatePaths,
    on_progress: Progress,
    deadline_s: float,
) -> tuple[AgentStatus, ...]:
    by_name = {agent.name: agent for agent in agents}
    last = {agent.name: status_of(agent, {"state": "starting"}) for agent in agents}
    orders = [pack.order(by_name) for pack in packs(description, by_name)]
    for answer in client.call("watch", deadline_s + 15, packs=orders, deadline_s=deadline_s):
        found = status_of(by_name[answer["agent"]], answer)
        last[found.name] = found
        on_progress(found)
        if found.state == "failed":
            raise Unavailable(
                "AGENT_FAILED",
                f"{found.name} did not start: {found.detail}; its log is in {paths.agent(found.site, found.name)}",
            )
    bad = [status for status in last.values() if status.state not in ("green", "degraded")]
    if bad:
        names = "; ".join(f"{status.name} is {status.state} ({status.detail})" for status in bad[:5])
        raise Unavailable("GRID_NOT_GREEN", f"not everything came up in {deadline_s:g} s: {names}")
    return tuple(with_process(status, status.host) for status in last.values())


def down(state: Path, *, purge: bool = False) -> list[int]:
    """Stop the grid of a state folder: agents gracefully, then Ray, then whatever is left of what was started.

    Works after a crash and on a half-started grid; nothing to do is no error. `purge` removes the folder too.
    Returns the process ids that had to be killed. Raises NotFound GRID_UNKNOWN rather than remove any other folder.
    """
    paths = StatePaths(state.absolute())
    killed: list[int] = []
    if paths.inventory.exists() or paths.run.exists():
        with inventory.changing(paths):
            run = inventory.read_run(paths)
            if run is not None and run.address and not run.host and inventory.is_up(run):
                with contextlib.suppress(GridError):  # what does not stop by itself is killed below
                    _stop_agents(paths, run)
            killed = _end(paths)
    elif purge and paths.root.exists():
        raise NotFound("GRID_UNKNOWN", f"no grid was started with the folder {paths.root}; nothing is removed")
    if purge:
        remove_state(paths.root)
    return killed


def remove_state(state: Path) -> None:
    """Remove the state folder of a grid that is down, also what its workers keep elsewhere. May be called twice."""
    for link in state.glob("sites/*/*/scratch"):
        if link.is_symlink() and link.readlink().match("/var/tmp/gridfabric-*"):
            shutil.rmtree(link.readlink(), ignore_errors=True)
    shutil.rmtree(state, ignore_errors=True)
    if state.parent == default_state(state.name, {}, os.getuid()).parent:
        with contextlib.suppress(OSError):  # other grids are there
            state.parent.rmdir()


def _stop_agents(paths: StatePaths, run: Run) -> None:
    description = inventory.read_description(paths)
    order = {agent.name: agent.about.order for agent in description.agents()}
    client = ray.client_of(run, paths)
    try:
        client.connect(run.address)
        together = packs(description, run.agents)
        for names in _groups(run.agents, order):
            orders = [pack.order(names) for pack in together if set(names) & set(pack.agents)]
            list(client.call("stop", STOP_DEADLINE_S + 10, packs=orders, deadline_s=STOP_DEADLINE_S))
    finally:
        client.close()


def _groups(names: Sequence[str], order: Mapping[str, int]) -> Iterator[list[str]]:
    """Agents to stop together: givers of work, then those that do it, then those that all others report to."""
    for lowest, highest in ((9, 99), (7, 8), (4, 6), (0, 3)):
        group = [name for name in names if lowest <= order.get(name, 0) <= highest]
        if group:
            yield group


def _end(paths: StatePaths) -> list[int]:
    """Whatever is left of the run that is recorded; then forget it."""
    run = inventory.read_run(paths)
    if run is None:
        return []
    if run.adopted:  # its Ray goes on: at least our actors must not
        with contextlib.suppress(GridError):
            _stop_agents(paths, run)
    killed = ray.end(run.run, run.processes, run.temp_dir)
    killed += processes.signal_and_wait(processes.starters_below(paths.root / "sites"), STARTER_GRACE_S)
    paths.run.unlink(missing_ok=True)
    paths.node_status.unlink(missing_ok=True)
    return killed


def host_join(description: GridDescription, state: Path, *, invitation: Path, fork_server: bool = True) -> list[str]:
    """Make this machine a further host of a site whose first machine is up; the invitation says which.

    Returns the names of the agents that Ray now starts here (`status` tells how they are). `down` leaves again; the
    agents then wait for this host. Raises GridError; then nothing is left running.
    """
    paths = StatePaths(state.absolute())
    given = Invitation.load(invitation)
    if not given.host or given.host not in description.hosts():
        raise InvalidRequest(
            "INVITATION_FOR_SITE",
            f"{invitation} is not for one host of {description.name}; make one with: "
            f"grid host invite {given.site} --host NAME",
        )
    with inventory.changing(paths):
        _refuse_second(paths)
        ports = well_known_ports(description)
        here = [agent for agent in make_plan(description, ports, paths, given.site) if agent.host == given.host]
        _save_inventory(description, paths, given.site, ports)
        write_atomic(paths.token, given.ray_token.encode(), 0o600)
        run = replace(_new_run(here, given.site, loopback=False), host=given.host)
        inventory.write(paths.run, run, 0o600)
        configuration = NodeConfiguration(
            address=description.hosts()[given.host].address,
            temp_dir=run.temp_dir,
            status_file=str(paths.node_status),
            labels={"host": given.host},
            slots=max(4, len(packs(description, [agent.name for agent in here]))),
            head=given.ray_address,
            fork_server=fork_server,
        )
        try:
            _start_node(paths, here, run, configuration, lambda: _prepare(description, paths, here, given))
        except BaseException:
            _end(paths)
            raise
    return [agent.name for agent in here]


def _new_run(agents: Sequence[PlannedAgent], site: str | None, *, loopback: bool) -> Run:
    return Run(
        secrets.token_hex(16),
        f"/tmp/{processes.TEMP_PREFIX}{secrets.token_hex(4)}",
        loopback=loopback,
        site=site,
        agents=tuple(agent.name for agent in agents),
        started_at=datetime.now(UTC).isoformat(),
    )


def invite(state: Path, site: str, host: str | None = None) -> Invitation:
    """An invitation for the agents of one site, or for one further host of the site that runs here.

    By the operator's credential; the grid must be up. Raises GridError.
    """
    paths = StatePaths(state.absolute())
    description = inventory.read_description(paths)
    if description.site(site) is None:
        known = ", ".join(s.name for s in description.sites)
        raise NotFound("SITE_UNKNOWN", f"{description.name} has no site {site!r}; its sites are {known}", site=site)
    run = inventory.read_run(paths)
    if host is not None and (run is None or run.site != site or run.host or host not in description.hosts()):
        raise InvalidRequest(
            "HOST_NOT_HERE",
            f"host {host} can join site {site} only by an invitation from the first machine of {site}, while it is up",
        )
    given = enrolment.invite(description, paths, json.loads((paths.root / "endpoints.json").read_bytes()), site)
    if host is None or run is None:
        return given
    return replace(given, host=host, ray_address=run.address, ray_token=paths.token.read_text())


__all__ = ["AgentStatus", "GridStatus", "RunningGrid", "down", "host_join", "invite", "remove_state", "status", "up"]
