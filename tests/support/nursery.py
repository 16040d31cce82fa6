"""Agents as processes of their own that start quickly: forked from one that has imported everything and done nothing.

    async with Nursery() as nursery:
        agent = await nursery.start(settings, out, failpoint="store.ran")
        assert await agent.ended() == -signal.SIGKILL

Run as a program it is that process: a line of JSON for each agent to start on its standard input, and on its standard
output `[number, pid]` when it was forked and `[number, pid, status]` when it has ended. It dies, and all of them, with
whoever started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("information", "bookkeeping", "broker", "gatekeeper", "worker", "catalog", "storage", "transfer")


class Child:
    """An agent's process."""

    def __init__(self, nursery: Nursery, name: str, state_dir: Path) -> None:
        self._nursery, self.name, self._state_dir = nursery, name, state_dir
        self.pid = 0
        self.status: int | None = None
        """As `subprocess` has it: negative for a signal."""

    async def ready(self) -> None:
        """Wait until its port is open. Raises AssertionError if it ends before that."""

        def is_ready() -> bool:
            assert self.status is None, f"{self.name} ended with {self.status}; see {self._state_dir}.out"
            with contextlib.suppress(OSError, ValueError):
                return self.pid != 0 and json.loads((self._state_dir / "ready").read_text())["pid"] == self.pid
            return False

        await until(is_ready, f"{self.name} is ready")

    async def ended(self, deadline_s: float = 60.0) -> int:
        """Wait for its end; how it ended."""
        await until(lambda: self.status is not None, f"{self.name} has ended", deadline_s=deadline_s)
        assert self.status is not None
        return self.status

    async def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal and wait for the end."""
        await until(lambda: self.pid, f"{self.name} was forked")
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(self.pid, number)
        await self.ended()


class Nursery:
    """The process that forks them, and what it says."""

    def __init__(self) -> None:
        self._children: dict[int, Child] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Nursery:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto' / 'gen'}:{ROOT / 'tests'}"}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "support.nursery",
            cwd=ROOT,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._tasks.append(asyncio.create_task(self._listen()))
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        for task in self._tasks:
            await task

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            number, pid, *status = json.loads(line)
            child = self._children[number]
            child.pid = pid
            if status:
                child.status = status[0]

    def start(self, settings: dict[str, Any], *, failpoint: str = "", faults: str = "") -> Child:
        """Order one; it is forked soon. `faults`: the seed of a bad network (support/faults.py)."""
        state_dir = Path(settings["state_dir"])
        path = state_dir.parent / f"{settings['name']}.json"
        path.write_text(json.dumps(settings))
        child = Child(self, settings["name"], state_dir)
        number = len(self._children)
        self._children[number] = child
        order = {
            "number": number,
            "settings": str(path),
            "out": f"{state_dir}.out",
            "failpoint": failpoint,
            "faults": faults,
            "counts": f"{state_dir}.faults",
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return child


def main() -> None:
    """Preload, read orders, fork, reap."""
    import gc
    import importlib
    import selectors

    from clusters.node.fork_server import LIBRARIES, preload
    from fabric import failpoints

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    preload(LIBRARIES)
    for kind in KINDS:
        importlib.import_module(f"agents.{kind}.agent")
    gc.collect()
    gc.freeze()
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(wake_read, selectors.EVENT_READ)
    children: dict[int, int] = {}
    text = b""

    def tell(*words: int) -> None:
        os.write(1, json.dumps(words).encode() + b"\n")

    def become(order: dict[str, Any]) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        for descriptor in (wake_read, wake_write, selector.fileno()):  # type: ignore[attr-defined]
            os.close(descriptor)
        out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if order["failpoint"]:
            os.environ[failpoints.VARIABLE] = order["failpoint"]
        failpoints.arm(order["failpoint"])
        if order["faults"]:
            from support.faults import install

            install(order["faults"], Path(order["counts"]))
        from fabric.agent import main as run

        status = 70
        try:
            status = run([order["settings"]])
        finally:
            os._exit(status)

    while True:
        for key, _ in selector.select():
            if key.fd == wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
            else:
                data = os.read(0, 65536)
                if not data:
                    for pid in children:
                        os.kill(pid, signal.SIGKILL)
                    return
                *lines, text = (text + data).split(b"\n")
                for line in lines:
                    order = json.loads(line)
                    pid = os.fork()
                    if pid == 0:
                        become(order)
                    children[pid] = order["number"]
                    tell(order["number"], pid)
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            if pid in children:
                tell(children.pop(pid), pid, os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
