"""What is remembered of a grid between commands: `inventory.json` (what it is) and `run.json` (what runs)."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clusters.load import loads
from clusters.model import GridDescription
from clusters.paths import StatePaths
from clusters.plan import Ports
from clusters.processes import Identity, is_running
from fabric.errors import Conflict, DataCorrupted, NotFound
from security.errors import os_error_text
from security.files import write_atomic

VERSION = 1


@dataclass(frozen=True)
class Inventory:
    """What a state folder is for. Outlives the grid's stop, so that ports stay the same."""

    grid: str
    site: str | None
    source: str
    ports: Ports
    version: int = VERSION


@dataclass(frozen=True)
class Run:
    """What was started. Written before the first process, so that `down` finds it also after a crash in between."""

    run: str
    """Random; in the environment of every process of this run."""
    temp_dir: str
    address: str = ""
    """Of Ray's head."""
    loopback: bool = True
    site: str | None = None
    host: str = ""
    """Not empty: this machine has joined the Ray of its site, and the site's first machine stops the agents."""
    adopted: bool = False
    """Ray was there before and stays after: only the agents are ours."""
    agents: tuple[str, ...] = ()
    """Names, in starting order."""
    processes: Mapping[str, Identity] = field(default_factory=dict)
    started_at: str = ""


def is_up(run: Run) -> bool:
    """Whether the Ray of a run is there, as far as this machine can tell without asking it."""
    if run.adopted:
        return True
    launcher = run.processes.get("launcher")
    return launcher is not None and is_running(launcher)


@contextmanager
def changing(state: StatePaths) -> Iterator[None]:
    """Hold the state folder against other commands. Raises Conflict STATE_BUSY, STATE_UNUSABLE."""
    try:
        state.make()
        descriptor = os.open(state.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Conflict(  # not Unavailable: the same command never succeeds later
            "STATE_UNUSABLE",
            f"the state folder {state.root} cannot be used ({os_error_text(error)}); choose another with --state",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                "STATE_BUSY", f"another command is changing the grid in {state.root}; wait until it is done"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataCorrupted(
            "STATE_DAMAGED", f"{path} cannot be read ({os_error_text(error)}); remove it if no grid runs there"
        ) from error


def read_inventory(state: StatePaths) -> Inventory | None:
    """None if there was never a grid. Raises DataCorrupted."""
    raw = _read(state.inventory)
    if raw is None:
        return None
    try:
        return Inventory(**raw)
    except TypeError as error:
        raise DataCorrupted("STATE_DAMAGED", f"{state.inventory} is not an inventory ({error})") from error


def read_run(state: StatePaths) -> Run | None:
    """None if nothing was started. Raises DataCorrupted."""
    raw = _read(state.run)
    if raw is None:
        return None
    try:
        processes = {name: Identity(**row) for name, row in raw.pop("processes", {}).items()}
        return Run(**{**raw, "agents": tuple(raw.get("agents", ())), "processes": processes})
    except (TypeError, AttributeError) as error:
        raise DataCorrupted("STATE_DAMAGED", f"{state.run} is not a run ({error})") from error


def read_description(state: StatePaths) -> GridDescription:
    """The description that was started. Raises NotFound GRID_UNKNOWN."""
    try:
        text = state.description.read_text("utf-8")
    except OSError:
        raise NotFound(
            "GRID_UNKNOWN", f"no grid was started with the state folder {state.root}; start one with: grid up lab"
        ) from None
    return loads(text, state.description)


def write(path: Path, value: Any, mode: int = 0o644) -> None:
    """A dataclass or plain value as JSON, atomically."""
    plain = asdict(value) if hasattr(value, "__dataclass_fields__") else value
    write_atomic(path, json.dumps(plain, indent=1).encode() + b"\n", mode)
