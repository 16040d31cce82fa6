"""`grid up`, `status`, `down`, `host invite`: what clusters.deploy does, shown to a person or a program."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.user_interface import console, endpoints
from agents.user_interface.exits import Ended, ExitCode, UsageProblem
from agents.user_interface.signals import terminate_as_interrupt, undisturbed
from fabric.text import counted

_COLOURS = {
    "green": "green",
    "starting": "yellow",
    "degraded": "yellow",
    "draining": "yellow",
    "waiting": "dim",
    "stopped": "dim",
}
REFRESH_S = 0.1
"""Of the live table; a first look for `--watch` takes longer anyway."""
WATCH_EVERY_S = 2.0


class AgentBoard:
    """A live table of agents: one row for each site, one cell for each agent, turning green."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._agents: dict[str, Any] = {}
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def update(self, agent: Any) -> None:
        """An agent's status now."""
        with self._lock:
            self._agents[agent.name] = agent

    def count(self) -> tuple[int, int]:
        """Green and all."""
        with self._lock:
            return sum(agent.state == "green" for agent in self._agents.values()), len(self._agents)

    def __rich__(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            agents = list(self._agents.values())
        green = sum(agent.state == "green" for agent in agents)
        table = Table.grid(padding=(0, 2))
        table.add_row(
            Text(f"{self.title}", style="bold"),
            Text(f"{green} of {len(agents)} agents green, {time.monotonic() - self._began:.0f} s"),
        )
        for site in dict.fromkeys(agent.site for agent in agents):
            row = Text()
            for agent in agents:
                if agent.site == site:
                    colour = _COLOURS.get(agent.state, "red")
                    row.append("● ", style=colour)
                    row.append(f"{agent.kind}  ", style=colour if agent.state != "green" else "")
            table.add_row(Text(f"  {site}"), row)
        for agent in agents:
            if agent.state not in ("green", "starting") and agent.detail:
                table.add_row("", Text(f"{agent.name}: {agent.detail}", style="red"))
        return table


@contextmanager
def board(title: str) -> Iterator[Callable[[Any], None]]:
    """Show agents coming up; gives the function to be told of each. Plain lines when not on a terminal."""
    shown = AgentBoard(title)
    if console.mode.as_json:
        yield shown.update
        return
    if console.is_terminal():
        from rich.live import Live

        with Live(shown, console=console.rich_console(), refresh_per_second=1 / REFRESH_S):
            yield shown.update
        return
    printed: set[str] = set()
    began = time.monotonic()

    def line(agent: Any) -> None:
        shown.update(agent)
        green, total = shown.count()
        if agent.state == "green" and agent.name not in printed:
            printed.add(agent.name)
            if green == total or green % 5 == 0:
                print(f"  {green} of {total} agents green after {time.monotonic() - began:.1f} s", flush=True)
        elif agent.state in ("failed", "silent"):
            print(f"  {agent.name} is {agent.state}: {agent.detail}", flush=True)

    print(title, flush=True)
    yield line


def state_for(name: str, state: Path | None, environ: Mapping[str, str]) -> Path:
    """The state folder of a grid that is to be started: a new one, or a grid's. `down --purge` removes it as a whole.

    Raises UsageProblem for a folder with anything else in it.
    """
    from clusters.paths import StatePaths, default_state

    paths = StatePaths((state or default_state(name, environ, os.getuid())).absolute())
    found = {path.name for path in paths.root.iterdir()} if paths.root.is_dir() else set[str]()
    if found - {paths.lock.name} and paths.inventory.name not in found:
        raise UsageProblem(f"{paths.root} has other things in it; give a grid a folder of its own with --state")
    return paths.root


def up_command(
    reference: Path,
    state: Path | None,
    *,
    site: str | None,
    detach: bool,
    invitation: Path | None,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid up`."""
    from clusters import deploy, load

    description = load.load(reference)
    folder = state_for(description.name, state, environ)
    title = f"{description.name}{f', site {site}' if site else ''}: {folder}"
    with terminate_as_interrupt(), board(title) as on_progress:
        running = deploy.up(description, folder, site=site, invitation=invitation, on_progress=on_progress)
    if as_json:
        facts = {"grid": description.name, "state": str(folder), "seconds": round(running.seconds, 2)}
        console.print_json({**facts, "agents": [_agent_data(agent) for agent in running.agents]})
    else:
        print(f"all {len(running.agents)} agents green after {running.seconds:.1f} s")
        print(f'next: export GRIDFABRIC_STATE={folder}; eval "$(grid env)"')
    if detach:
        return
    console.say("Ctrl-C stops the grid")
    try:
        _wait_for_end()
    finally:
        console.say("stopping")
        with undisturbed():
            deploy.down(folder)


def _wait_for_end() -> None:
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: ended.set())
    try:
        while not ended.wait(3600):
            pass
    except KeyboardInterrupt:
        pass


def _agent_data(agent: Any) -> dict[str, Any]:
    return {
        "name": agent.name,
        "kind": agent.kind,
        "site": agent.site,
        "host": agent.host,
        "state": agent.state,
        "detail": agent.detail,
        "ports": dict(agent.ports),
        "pid": agent.pid,
        "restarts": agent.restarts,
        "memory_bytes": agent.memory_bytes,
        "cpu_s": round(agent.cpu_s, 2),
        "numbers": dict(agent.numbers),
    }


def status_command(state: Path | None, *, watch: bool, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """`grid status`."""
    from clusters import deploy

    folder = endpoints.state_folder(state, environ)
    found = deploy.status(folder)
    if as_json:
        console.print_json(
            {
                "grid": found.grid,
                "state": found.state,
                "running": found.running,
                "green": found.green,
                "detail": found.detail,
                "mode": found.mode,
                "trust": found.trust,
                "accounts": found.accounts,
                "agents": [_agent_data(agent) for agent in found.agents],
            }
        )
    elif watch and console.is_terminal():
        from rich.live import Live

        with Live(_status_table(found), console=console.rich_console(), auto_refresh=False) as live:
            try:
                while True:
                    live.update(_status_table(found), refresh=True)
                    time.sleep(WATCH_EVERY_S)
                    found = deploy.status(folder)
            except KeyboardInterrupt:
                pass
    else:
        print(f"{found.grid}: {found.detail}")
        print(f"mode {found.mode}, trust {found.trust}, accounts {found.accounts}, state {found.state}")
        console.print_table(STATUS_COLUMNS, _status_rows(found))
    if not found.green:
        raise Ended(ExitCode.FAILED)


STATUS_COLUMNS = ("AGENT", "SITE", "HOST", "STATE", "PORTS", "MEMORY", "CPU", "RESTARTS", "DETAIL")


def _status_rows(found: Any) -> list[Sequence[object]]:
    return [
        (
            agent.name,
            agent.site,
            agent.host,
            agent.state,
            " ".join(f"{name}:{port}" for name, port in agent.ports.items()),
            console.bytes_text(agent.memory_bytes) if agent.memory_bytes else "",
            f"{agent.cpu_s:.1f} s" if agent.cpu_s else "",
            agent.restarts,
            agent.detail,
        )
        for agent in found.agents
    ]


def _status_table(found: Any) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = f"{found.grid}: {found.detail} (trust {found.trust}, accounts {found.accounts})"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in STATUS_COLUMNS:
        table.add_column(column)
    for row in _status_rows(found):
        state = str(row[3])
        table.add_row(
            *(Text(str(cell), style=_COLOURS.get(state, "red") if n == 3 else "") for n, cell in enumerate(row))
        )
    return table


def down_command(state: Path | None, *, purge: bool, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """`grid down`."""
    from clusters import deploy

    folder = endpoints.state_folder(state, environ)
    killed = deploy.down(folder, purge=purge)
    if as_json:
        console.print_json({"state": str(folder), "killed": killed, "purged": purge})
        return
    print(f"the grid of {folder} is down{' and its state removed' if purge else ''}")
    if killed:
        print(f"killed, as they did not end by themselves: {counted(len(killed), 'process')}")


def invite_command(
    site: str,
    host: str | None,
    out: Path | None,
    state: Path | None,
    *,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid host invite`."""
    from clusters import deploy

    folder = endpoints.state_folder(state, environ)
    invitation = deploy.invite(folder, site, host)
    path = out or Path(f"{host or site}.json")
    invitation.save(path)
    if as_json:
        console.print_json({"grid": invitation.grid, "site": site, "host": host, "invitation": str(path)})
        return
    print(
        f"{path}: take it, and the grid description, to the machine {host or f'of {site}'} (it holds a secret); there:"
    )
    if host:
        print(f"  grid host join FILE --invitation {path.name}")
    else:
        print(f"  grid up FILE --site {site} --invitation {path.name} --detach")


def join_command(
    reference: Path,
    invitation: Path,
    state: Path | None,
    *,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid host join`."""
    from clusters import deploy, load

    description = load.load(reference)
    folder = state_for(description.name, state, environ)
    agents = deploy.host_join(description, folder, invitation=invitation)
    if as_json:
        console.print_json({"grid": description.name, "state": str(folder), "agents": agents})
        return
    print(f"joined; these agents are started here: {', '.join(agents) or 'none'}")
    print(f"next: grid status --state {folder}    leave again: grid down --state {folder}")


def demo_description(
    reference: str, environment: Mapping[str, str], tags: Sequence[str], *, pool_accounts: bool
) -> Any:
    """The grid description with the VO's software at every worker: variables for jobs, tags for the information system.

    Without usable pool accounts jobs run as the caller, also if that is root. Raises GridError.
    """
    from clusters import load

    description = load.load(reference)

    def adapted(agent: Any) -> Any:
        options = dict(agent.options)
        if agent.kind == "worker":
            options["environment"] = {**options.get("environment", {}), **environment}
            options["software"] = [*options.get("software", []), *tags]
            if not pool_accounts and os.geteuid() == 0:
                options["run_as_root"] = True
        elif agent.kind == "gatekeeper" and not pool_accounts:
            options["account_mode"] = "caller"
        return replace(agent, options=options)

    sites = tuple(replace(site, agents=tuple(map(adapted, site.agents))) for site in description.sites)
    return replace(description, sites=sites)


def start(description: Any, state: Path) -> Any:
    """Start a grid with the live table. Returns what runs. Raises GridError; interrupted, it leaves nothing running."""
    from clusters import deploy

    with board(f"{description.name}: starting") as on_progress:
        return deploy.up(description, state, on_progress=on_progress)


def stop(state: Path) -> list[int]:
    """Stop the grid of a state folder, whatever is left of it. Returns the process ids that had to be killed."""
    from clusters import deploy

    return deploy.down(state)


def remove(state: Path) -> None:
    """Remove the state folder of a grid that is down."""
    from clusters import deploy

    deploy.remove_state(state)
