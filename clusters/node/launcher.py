"""One Ray node as a process of our own: `python -m clusters.node.launcher CONFIGURATION.json`.

Leaner than `ray start`: no dashboard, no autoscaler, no client server, no log monitor (a grid uses none of them),
listening on the loopback address alone where the grid is on one machine. Everything that it starts dies with it. It
writes what it started to the file named in the configuration, and ends on SIGTERM, or when a part of the node dies.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from clusters.node import worker_entry
from security.files import write_atomic

WATCH_EVERY_S = 0.5
RAY_FOLDER = "r"
"""Ray opens its own folder to everybody, who could then replace its sockets: it is kept below one that is only ours."""
FIRST_JOB_ID = "01000000"
"""Ray's name for the first program that connects: the one that starts the agents, which stay its own."""


@dataclass(frozen=True)
class NodeConfiguration:
    """What a node is to be."""

    address: str
    """Of this machine, as other nodes reach it; 127.0.0.1: nobody else does."""
    temp_dir: str
    """Short: unix socket paths end at 107 characters. Removed at the end."""
    status_file: str
    """Where to write `NodeStatus`."""
    labels: dict[str, str]
    slots: int
    """Processes that may start at the same time."""
    head: str = ""
    """host:port of the head to join; empty: be the head."""
    port: int = 0
    """Of the head; 0: any."""
    object_store_bytes: int = 80_000_000
    fork_server: bool = True
    python_path: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class NodeStatus:
    """What a node became."""

    address: str = ""
    """host:port of the cluster's head."""
    node_id: str = ""
    processes: dict[str, int] = field(default_factory=dict)
    """Name to process id."""
    error: str = ""


class _Stop(Exception):
    """SIGTERM or SIGINT."""


def _on_signal(number: int, frame: FrameType | None) -> None:
    raise _Stop


def fork_server_socket(temp_dir: Path) -> str:
    """Where the fork server of a node listens."""
    return str(temp_dir / "fork.sock")


def start_fork_server(temp_dir: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start it; it imports while the node starts."""
    path = fork_server_socket(temp_dir)
    process = subprocess.Popen([sys.executable, "-m", "clusters.node.fork_server", path], stdin=subprocess.DEVNULL)
    return process, path


def prime_fork_server(path: str, variables: dict[str, str]) -> None:
    """Tell it under which variables Ray's library is to be loaded; it does that before whatever it is asked next.
    Without it agents start more slowly: never fails."""
    order = json.dumps({"prime": variables}).encode()
    for _ in range(100):
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
                server.settimeout(30)
                server.connect(path)
                server.sendall(len(order).to_bytes(4, "big") + order)
            return
        except OSError:
            time.sleep(0.05)


def start_node(configuration: NodeConfiguration) -> Any:
    """The Ray node with only what a grid needs."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    class LeanNode(Node):
        def start_api_server(self, **_: Any) -> None:
            """No dashboard."""

        def start_monitor(self) -> None:
            """No autoscaler."""

        def start_log_monitor(self) -> None:
            """Agents write their own logs."""

    parameters = RayParams(
        node_ip_address=configuration.address,
        num_cpus=configuration.slots,
        num_gpus=0,
        object_store_memory=configuration.object_store_bytes,
        temp_dir=str(Path(configuration.temp_dir) / RAY_FOLDER),
        labels=configuration.labels,
        include_dashboard=False,
        include_log_monitor=False,
        no_monitor=True,
        min_worker_port=0,
        max_worker_port=0,
        node_manager_port=0,
        object_manager_port=0,
        setup_worker_path=worker_entry.__file__,
        resources={},
    )
    if configuration.head:
        parameters.update(gcs_address=configuration.head)
    else:
        parameters.update(gcs_server_port=configuration.port)
    # spawn_reaper: the kernel kills what this process started when this process dies
    return LeanNode(parameters, head=not configuration.head, shutdown_at_exit=False, spawn_reaper=True)


def run(configuration: NodeConfiguration) -> int:
    """Start the node, watch it, stop it. The exit code."""
    temp_dir = Path(configuration.temp_dir)
    temp_dir.mkdir(mode=0o700)
    fork_server: subprocess.Popen[bytes] | None = None
    node: Any = None
    try:
        if configuration.fork_server:
            fork_server, path = start_fork_server(temp_dir)
            os.environ[worker_entry.FORK_SERVER] = path
        node = start_node(configuration)
        processes = {name: entries[0].process.pid for name, entries in node.all_processes.items() if entries}
        processes["launcher"] = os.getpid()
        if fork_server is not None:
            processes["fork_server"] = fork_server.pid
            variables = {"RAY_RAYLET_PID": str(processes["raylet"]), "RAY_JOB_ID": FIRST_JOB_ID}
            variables |= {name: os.environ[name] for name in ("RAY_CLIENT_MODE",) if name in os.environ}
            variables.setdefault("RAY_CLIENT_MODE", "0")
            variables["RAY_LD_PRELOAD_ON_WORKERS"] = os.environ.get("RAY_LD_PRELOAD_ON_WORKERS", "0")
            prime_fork_server(path, variables)
        _report(configuration, NodeStatus(node.gcs_address, node.node_id, processes))
        while not node.dead_processes():
            if not Path(configuration.status_file).parent.is_dir():
                return 1  # the state folder was removed: no command could find this grid, to stop it
            time.sleep(WATCH_EVERY_S)
        names = ", ".join(str(name) for name, _ in node.dead_processes())
        _report(
            configuration, NodeStatus(error=f"{names} of the Ray node ended; see {temp_dir} and the launcher's log")
        )
        return 1
    except _Stop:
        return 0
    except Exception as error:
        _report(configuration, NodeStatus(error=f"{type(error).__name__}: {error}"))
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            node.kill_all_processes(check_alive=False, allow_graceful=True)
        if fork_server is not None:
            fork_server.kill()
            fork_server.wait()
        shutil.rmtree(temp_dir, ignore_errors=True)


def _report(configuration: NodeConfiguration, status: NodeStatus) -> None:
    write_atomic(Path(configuration.status_file), json.dumps(asdict(status)).encode(), 0o600)


def main() -> int:
    """Read the configuration and run."""
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)
    configuration = NodeConfiguration(**json.loads(Path(sys.argv[1]).read_bytes()))
    return run(configuration)


if __name__ == "__main__":
    sys.exit(main())
