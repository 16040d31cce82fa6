"""Forks agent processes from one that has imported everything, so that an agent starts in a tenth of the time.

Safe because this process has one thread and has never used gRPC, Ray's core or a database: it only imports them. Ray's
library reads its RAY_* variables when it is loaded, so it is loaded when the launcher has said which they are
(`prime`), and a worker whose RAY_* variables are others is refused (it then starts the ordinary way). A driver, which
is for a command of the grid's operator, takes the variables that were loaded. When this process dies, agents go on, and
whatever comes later starts the ordinary way.

Run as `python -m clusters.node.fork_server SOCKET`. The wire: 4 bytes of length with three descriptors, then JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import random
import runpy
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

MAX_ORDER_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1

LIBRARIES = (
    "argparse", "asyncio", "colorsys", "gettext", "ssl", "sqlite3", "zoneinfo", "grpc.aio", "grpc_health.v1.health",
    "grpc_reflection.v1alpha.reflection", "grpc_status.rpc_status", "google.rpc.error_details_pb2", "sqlalchemy",
    "sqlalchemy.dialects.sqlite", "cryptography.x509", "cryptography.hazmat.backends.openssl.backend",
    "cryptography.hazmat.primitives.serialization.pkcs12", "OpenSSL.crypto", "psutil", "fabric.agent",
    "fabric.authorisation", "fabric.http", "fabric.information_publisher", "fabric.map_updater", "fabric.rpc.channel",
    "fabric.rpc.delegation", "fabric.rpc.probe", "fabric.rpc.server", "fabric.store", "fabric.trust_updater",
    "fabric.ban_updater", "fabric.bulletin", "fabric.host_credential", "fabric.trust_push", "fabric.vo_updater",
    "fabric.vos",
)  # fmt: skip
RAY = (
    "ray", "ray.actor", "ray._private.node", "ray._private.parameter", "ray._private.async_compat",
    "ray._private.runtime_env.setup_hook", "ray._private.arrow_serialization", "ray._common.usage.usage_lib",
    "ray._common.pydantic_compat", "ray.core.generated.usage_pb2", "ray.util.serialization_addons", "fabric.actor",
)  # fmt: skip
"""All that a worker would import while it starts: what is here is paid for once."""


def agent_modules() -> Iterator[str]:
    """The composition root of every agent that is installed."""
    import agents

    for module in pkgutil.iter_modules(agents.__path__):
        if module.ispkg:
            yield f"agents.{module.name}.agent"


def preload(names: Iterator[str] | tuple[str, ...]) -> None:
    """Import what there is; what cannot be imported will say so in the agent that needs it."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def ray_variables(environment: dict[str, str]) -> dict[str, str]:
    """What Ray's library reads when it is loaded."""
    return {name: value for name, value in environment.items() if name.startswith("RAY_")}


def threads() -> int:
    """Threads of this process: more than one and forking is not safe."""
    return len(os.listdir("/proc/self/task"))


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """One order and its descriptors. Raises OSError, ValueError."""
    connection.settimeout(10)
    head, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
    length = int.from_bytes(head, "big")
    if len(head) != 4 or not 0 < length <= MAX_ORDER_BYTES:
        raise ValueError("not an order")
    data = bytearray()
    while len(data) < length:
        piece = connection.recv(length - len(data))
        if not piece:
            raise ValueError("cut short")
        data += piece
    order = json.loads(data)
    if not isinstance(order, dict):
        raise ValueError("not an order")
    return order, descriptors


def become_worker(order: dict[str, Any], descriptors: list[int]) -> None:
    """In the new process: take over descriptors, environment and arguments, and run the worker's script."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    for descriptor in descriptors:
        if descriptor > 2:
            os.close(descriptor)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["directory"])
    random.seed()
    sys.argv = list(order["arguments"])
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")


def prime(variables: dict[str, str]) -> dict[str, str]:
    """Load Ray under these variables. Returns all that it has read."""
    os.environ.update(variables)
    preload(RAY)
    preload(agent_modules())
    gc.collect()
    gc.freeze()
    return ray_variables(dict(os.environ))


def why_not(primed: dict[str, str], order: dict[str, Any], descriptors: list[int]) -> str:
    """Why this process is not to be forked here; said once on standard error, for who wonders about a slow start."""
    wanted = ray_variables(order["environment"])
    if primed != wanted:
        different = sorted(name for name in primed.keys() | wanted if primed.get(name) != wanted.get(name))
        reason = f"other values of {', '.join(different)}"
    elif len(descriptors) != 3 or threads() != 1:
        reason = "three descriptors and one thread are needed"
    else:
        return ""
    sys.stderr.write(f"fork server: a process starts the ordinary way: {reason}\n")
    return reason


def serve(listener: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Answer until this is a new process; then its order and descriptors."""
    primed: dict[str, str] | None = None
    while True:
        connection, _ = listener.accept()
        with connection:
            descriptors: list[int] = []
            answer = 0
            try:
                order, descriptors = receive(connection)
                if "prime" in order:
                    primed = primed or prime(order["prime"])
                else:
                    environment = order["environment"]
                    if order.get("driver"):
                        environment |= primed or {}
                    else:
                        primed = primed or prime(ray_variables(environment))  # faster than the launcher's word
                    if why_not(primed or {}, order, descriptors) == "":
                        answer = os.fork()
                        if answer == 0:
                            listener.close()
                            return order, descriptors
                connection.sendall(str(answer).encode())
            except (OSError, ValueError, KeyError):
                pass  # whoever asked starts the process the ordinary way
            for descriptor in descriptors:
                os.close(descriptor)


def main() -> None:
    """Preload, listen, fork."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    path = sys.argv[1]
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(512)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    preload(LIBRARIES)
    order, descriptors = serve(listener)
    become_worker(order, descriptors)


if __name__ == "__main__":
    main()
