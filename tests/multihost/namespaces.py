"""Hosts made of Linux namespaces on one virtual switch: each has its own address, /dev/shm, Ray folder and state.

Needs root and iproute2. Whatever is made is named after the process that made it and is removed by `close`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

STATE = Path("/var/tmp/gridfabric-multihost")
"""Where every host has its own state: the same path in each, another folder behind it."""
ROOT = Path(__file__).resolve().parents[2]


def why_not() -> str:
    """Why hosts cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    for tool in ("ip", "nsenter", "unshare"):
        if shutil.which(tool) is None:
            return f"needs the command {tool} (apt install iproute2 util-linux)"
    name = f"gfprobe{os.getpid()}"
    probe = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if probe.returncode != 0:
        return f"cannot make network namespaces here ({probe.stderr.strip()})"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Host:
    """One machine of the test."""

    def __init__(self, network: Network, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.namespace = f"{network.prefix}{name}"
        self._port = f"{network.prefix}p{name}"
        self._network = network
        self.private = network.folder / name
        self.private.mkdir()
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        _ip("link", "set", self._port, "master", network.bridge, "up")
        for arguments in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            _ip("-n", self.namespace, *arguments)
        mounts = (
            "mount -t tmpfs tmpfs /dev/shm && mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray "
            f"&& mount --bind {self.private} {STATE}"
        )
        self._holder = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "--propagation", "private", "sh", "-c",
             f"{mounts} && echo ready && exec sleep infinity"],
            stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            raise RuntimeError(f"the host {name} cannot be made")

    def command(self, arguments: Sequence[str]) -> list[str]:
        """What runs a command on this host."""
        return ["nsenter", "--target", str(self._holder.pid), "--mount", "--net", "--", *arguments]

    def run(
        self,
        arguments: Sequence[str],
        *,
        timeout_s: float = 60,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there and wait."""
        done = subprocess.run(
            self.command(arguments),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self.environment(env),
            cwd="/",
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{self.name}: {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    def grid(
        self, *arguments: str, timeout_s: float = 60, env: Mapping[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run the `grid` command there."""
        return self.run(
            [sys.executable, "-m", "agents.user_interface.main", *arguments], timeout_s=timeout_s, env=env, check=check
        )

    def python(self, script: str, *arguments: str, timeout_s: float = 120) -> str:
        """Run a few lines of Python there."""
        return self.run([sys.executable, "-c", script, *arguments], timeout_s=timeout_s).stdout

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Of commands there: nothing of the test's own grid or credentials."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "VIRTUAL_ENV") if name in os.environ}
        base = {"HOME": str(STATE), "GRIDFABRIC_STATE": str(STATE / "state"), "PYTHONPATH": f"{ROOT}:{ROOT}/proto/gen"}
        return kept | base | dict(more or {})

    def processes(self) -> list[int]:
        """What runs there, besides that which keeps the machine."""
        found = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True)
        return [int(pid) for pid in found.stdout.split() if int(pid) != self._holder.pid]

    def link(self, *, up: bool) -> None:
        """Plug its cable in, or pull it out."""
        _ip("link", "set", self._port, "up" if up else "down")

    def close(self) -> None:
        """Take the machine away; what still runs there is killed."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            found = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
            for pid in found.stdout.split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()
        subprocess.run(["ip", "netns", "del", self.namespace], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._port], capture_output=True, check=False)


class Network:
    """A switch with hosts on it: 10.77.0.0/24, unknown to the rest of the machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        STATE.mkdir(mode=0o755, exist_ok=True)
        self.prefix = f"g{os.getpid() % 100000}"
        self.bridge = f"{self.prefix}br"
        self.hosts: dict[str, Host] = {}
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("link", "set", self.bridge, "up")

    def host(self, name: str, address: str) -> Host:
        """One more machine."""
        self.hosts[name] = Host(self, name, address)
        return self.hosts[name]

    def close(self) -> None:
        """Take everything away."""
        for host in self.hosts.values():
            host.close()
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)
        with contextlib.suppress(OSError):
            STATE.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)


def wait_until(what, deadline_s: float, why: str):
    """The first true answer of `what`, asked again and again. Fails with `why` when the time is over."""
    deadline = time.monotonic() + deadline_s
    while True:
        answer = what()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not in {deadline_s:g} s: {why}"
        time.sleep(0.2)
