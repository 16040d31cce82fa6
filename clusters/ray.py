"""A private Ray: started, found again, spoken to, ended. Nothing of Ray is imported in this process."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from clusters import processes
from clusters.inventory import Run
from clusters.node import driver, launcher, worker_entry
from clusters.node.launcher import NodeConfiguration, NodeStatus
from clusters.paths import StatePaths
from clusters.processes import RUN_VARIABLE
from fabric.errors import DeadlineExceeded, Unavailable
from security.files import write_atomic

START_DEADLINE_S = 60.0
CONNECT_DEADLINE_S = 30.0
FORK_DEADLINE_S = 10.0
"""For a fork server that still imports; without its answer a driver of our own is started."""
LOOPBACK = "127.0.0.1"


def python_path() -> list[str]:
    """Folders from which this package and the generated code come: other processes look there too."""
    import gridfabric.security.v1

    import clusters

    own = Path(clusters.__file__).resolve().parents[1]
    generated = Path(gridfabric.security.v1.__path__[0]).resolve().parents[2]
    return list(dict.fromkeys([str(own), str(generated)]))


def make_token(path: Path) -> None:
    """A new token, only for us, unless there is one."""
    if not path.exists():
        write_atomic(path, secrets.token_hex(32).encode(), 0o600)


def environment(base: Mapping[str, str], token: Path, run: str, *, loopback: bool) -> dict[str, str]:
    """The environment of everything that has to do with this Ray."""
    kept = {name: value for name, value in base.items() if not name.startswith("RAY_")}
    path = [*python_path(), *filter(None, base.get("PYTHONPATH", "").split(os.pathsep))]
    return kept | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
        "PYTHONUNBUFFERED": "1",
        RUN_VARIABLE: run,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        # Agents are few and each is a process that stays: nothing to prepare, nothing to clean up when idle.
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_metrics_collection": "0",
        # Agents serve: they are not Ray's batch work, which it would run at nice 15.
        "RAY_worker_niceness": "0",
        # Ray's name for "this machine alone": it then keeps to 127.0.0.1, as it does on a Mac.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0" if loopback else "1",
    }


def own_environment(base: Mapping[str, str], run: str) -> dict[str, str]:
    """The environment of a driver of somebody's Ray, found by RAY_ADDRESS and what goes with it."""
    path = [*python_path(), *filter(None, base.get("PYTHONPATH", "").split(os.pathsep))]
    return {**base, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)), "PYTHONUNBUFFERED": "1", RUN_VARIABLE: run}


def launch(
    configuration: NodeConfiguration, env: Mapping[str, str], folder: Path, log: Path
) -> subprocess.Popen[bytes]:
    """Start a node in the background; `wait_ready` says when it is there."""
    file = folder / "ray-node.json"
    write_atomic(file, json.dumps(asdict(configuration)).encode(), 0o600)
    Path(configuration.status_file).unlink(missing_ok=True)
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "clusters.node.launcher", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=dict(env),
            start_new_session=True,
            cwd="/",
        )


def wait_ready(launcher: subprocess.Popen[bytes], status_file: Path, log: Path) -> NodeStatus:
    """The node's status once it runs. Raises Unavailable RAY_FAILED."""
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        status = read_status(status_file)
        if status is not None and status.error:
            raise Unavailable("RAY_FAILED", f"Ray did not start: {status.error}; see {log}")
        if status is not None:
            return status
        if launcher.poll() is not None:
            raise Unavailable("RAY_FAILED", f"Ray did not start (exit code {launcher.returncode}); see {log}")
        time.sleep(0.02)
    raise Unavailable("RAY_FAILED", f"Ray did not start in {START_DEADLINE_S:g} s; see {log}")


def read_status(path: Path) -> NodeStatus | None:
    """What a launcher wrote; None if nothing yet."""
    try:
        return NodeStatus(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


class RayClient:
    """A driver process and the calls to it. Every wait has a deadline, after which the driver is ended."""

    def __init__(self, env: Mapping[str, str], log: Path, fork_server: str = "") -> None:
        """`fork_server`: the socket of the node's, which has Ray imported already."""
        self._log = log
        self._env = dict(env)
        self._fork_server = fork_server
        self._driver: processes.Identity | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._orders: IO[bytes] | None = None
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader: threading.Thread | None = None

    def connect(self, address: str, deadline_s: float = CONNECT_DEADLINE_S) -> None:
        """Raises Unavailable RAY_UNREACHABLE."""
        arguments = [driver.__file__, address]
        with self._log.open("ab") as log:
            for start in (self._fork, self._spawn):
                orders, self._orders = _pipe()
                answers, to_answers = _pipe()
                with orders, to_answers:
                    pid = start(arguments, (orders.fileno(), to_answers.fileno(), log.fileno()))
                if pid:
                    break
                self._orders.close()  # a driver that the fork server makes too late ends by that
                answers.close()
        self._driver = processes.identify(pid)
        self._reader = threading.Thread(target=self._read, args=(answers,), daemon=True)
        self._reader.start()
        for _ in self._until_done(time.monotonic() + deadline_s, f"Ray at {address}"):
            pass

    def _fork(self, arguments: list[str], descriptors: tuple[int, int, int]) -> int:
        """The process id of a driver that the node's fork server has made; 0: it does not."""
        if not self._fork_server:
            return 0
        try:
            return worker_entry.ask_fork_server(
                self._fork_server, arguments, self._env, "/", descriptors, driver=True, timeout_s=FORK_DEADLINE_S
            )
        except (OSError, ValueError):
            return 0

    def _spawn(self, arguments: list[str], descriptors: tuple[int, int, int]) -> int:
        """The process id of a driver that is our own child."""
        self._child = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=descriptors[0], stdout=descriptors[1], stderr=descriptors[2],
            env=self._env, start_new_session=True, cwd="/",
        )  # fmt: skip
        return self._child.pid

    def call(self, what: str, within_s: float, /, **arguments: Any) -> Iterator[dict[str, Any]]:
        """One order; yields answers as they come. Raises Unavailable, DeadlineExceeded."""
        if self._orders is None or self._orders.closed:
            raise Unavailable("RAY_UNREACHABLE", "the connection to Ray is closed; run: grid status")
        try:
            self._orders.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
            self._orders.flush()
        except OSError as error:
            raise Unavailable(
                "RAY_UNREACHABLE", f"the connection to Ray broke ({error.strerror}); see {self._log}"
            ) from error
        yield from self._until_done(time.monotonic() + within_s, f"Ray ({what})")

    def close(self) -> None:
        """End the driver; the actors stay. May be called twice."""
        if self._orders is not None:
            with contextlib.suppress(OSError):
                self._orders.close()
        if self._reader is not None:
            self._reader.join(2)  # until it has ended by itself
        self._kill()
        if self._child is not None:
            self._child.wait()

    def _kill(self) -> None:
        if self._driver is not None:
            processes.signal_and_wait([self._driver], 0)

    def _read(self, answers: IO[bytes]) -> None:
        with answers:
            for line in answers:
                with contextlib.suppress(ValueError):
                    self._answers.put(json.loads(line))
        self._answers.put(None)

    def _until_done(self, deadline: float, what: str) -> Iterator[dict[str, Any]]:
        while True:
            try:
                answer = self._answers.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                self._kill()
                raise DeadlineExceeded("RAY_SILENT", f"{what} did not answer in time; see {self._log}") from None
            if answer is None:
                raise Unavailable("RAY_UNREACHABLE", f"{what} cannot be reached; see {self._log}")
            if "error" in answer:
                raise Unavailable("RAY_FAILED", f"{what}: {answer['error']}")
            if answer.get("done"):
                return
            yield answer


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    """A pipe to read from, and to write to."""
    reader, writer = os.pipe()
    return open(reader, "rb"), open(writer, "wb")


def client_of(run: Run, paths: StatePaths) -> RayClient:
    """For the Ray of a run; not connected yet."""
    if run.adopted:
        return RayClient(own_environment(os.environ, run.run), paths.log)
    fork_server = launcher.fork_server_socket(Path(run.temp_dir))
    return RayClient(environment(os.environ, paths.token, run.run, loopback=run.loopback), paths.log, fork_server)


def end(run: str, pids: Mapping[str, processes.Identity], temp_dir: str) -> list[int]:
    """End a node and everything that belongs to this run; remove its folder. Returns what had to be killed."""
    launcher = pids.get("launcher")
    if launcher is not None and processes.is_running(launcher):
        processes.signal_and_wait([launcher], grace_s=8.0)
    killed = processes.end_run(run, session=launcher.pid if launcher is not None else 0)
    processes.remove_folder(temp_dir)
    return killed
