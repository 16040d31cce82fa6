"""Finding and ending exactly those processes that a run of a grid started, also after a crash.

Every process of a run has the run's random id in its environment; a process id alone is never enough to be killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

RUN_VARIABLE = "GRIDFABRIC_RUN"
TEMP_PREFIX = "gf-"
"""Of the folders in /tmp that belong to a run."""
STARTER = "agents.worker.starter"
MAX_ENVIRONMENT_BYTES = 256 * 1024


@dataclass(frozen=True)
class Identity:
    """A process that cannot be confused with a later one of the same number."""

    pid: int
    started_at: float
    """As psutil tells it: seconds since the epoch."""


def identify(pid: int) -> Identity | None:
    """None if there is no such process."""
    try:
        return Identity(pid, psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def is_running(identity: Identity) -> bool:
    """Whether that very process is there and not a zombie."""
    try:
        process = psutil.Process(identity.pid)
        return abs(process.create_time() - identity.started_at) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def of_run(run: str, session: int = 0) -> list[Identity]:
    """Every process with this run's id in its environment, except the caller.

    Ray writes a title `ray::...` over the environment of its helpers: such a process is of the run if it is in the
    launcher's session (0 if that is not known).
    """
    wanted = f"{RUN_VARIABLE}={run}".encode()
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()):
        try:
            ours = wanted in _read(pid, "environ").split(b"\0") or (
                session
                and _read(pid, "cmdline").startswith(b"ray::")
                and os.getsid(pid) == session
                and os.stat(f"/proc/{pid}").st_uid == os.getuid()
            )
        except OSError:
            continue  # gone, or somebody else's
        if ours and (identity := identify(pid)) is not None:
            found.append(identity)
    return found


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as stream:
        return stream.read(MAX_ENVIRONMENT_BYTES)


def starters_below(folder: Path) -> list[Identity]:
    """Starters of workers whose state is below a folder: they outlive their agents and have their own environment."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        is_starter = any(STARTER in argument for argument in arguments)
        if is_starter and any(Path(argument).is_relative_to(folder) for argument in arguments):
            identity = identify(process.pid)
            if identity is not None:
                found.append(identity)
    return found


def signal_and_wait(identities: Iterable[Identity], grace_s: float) -> list[int]:
    """SIGTERM, then after `grace_s` SIGKILL. Returns what had to be killed. Reaps our own children."""
    waiting = [identity for identity in identities if is_running(identity)]
    _signal(waiting, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while waiting and time.monotonic() < deadline:
        _reap(waiting)
        waiting = [identity for identity in waiting if is_running(identity)]
        if waiting:
            time.sleep(0.02)
    _signal(waiting, signal.SIGKILL)
    killed = [identity.pid for identity in waiting]
    deadline = time.monotonic() + 5.0
    while any(is_running(identity) for identity in waiting) and time.monotonic() < deadline:
        _reap(waiting)
        time.sleep(0.02)
    return killed


def end_run(run: str, grace_s: float = 3.0, session: int = 0) -> list[int]:
    """End every process of a run, and those that they start meanwhile. Returns what had to be killed.

    `session` is the launcher's process id, 0 if unknown: then helpers that Ray has given a title are left to end alone.
    """
    killed: list[int] = []
    for _ in range(5):
        left = of_run(run, session)
        if not left:
            break
        killed += signal_and_wait(left, grace_s)
    return killed


def remove_folder(path: str) -> None:
    """Remove a run's temporary folder; refuses anything that does not look like one."""
    folder = Path(path)
    if path and folder.name.startswith(TEMP_PREFIX) and folder.parent == Path("/tmp"):
        shutil.rmtree(folder, ignore_errors=True)


def _signal(identities: Iterable[Identity], number: signal.Signals) -> None:
    for identity in identities:
        with contextlib.suppress(OSError):
            if is_running(identity):
                os.kill(identity.pid, number)


def _reap(identities: Iterable[Identity]) -> None:
    for identity in identities:
        with contextlib.suppress(OSError):
            os.waitpid(identity.pid, os.WNOHANG)
