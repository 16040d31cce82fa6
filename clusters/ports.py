"""Choosing ports that stay free: below the range from which the kernel takes ports for outgoing connections, and no two
grids that start at the same time the same ones."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable, Iterator

from fabric.errors import Exhausted

LOWEST, HIGHEST = 20_000, 32_000
"""Linux takes 32768-60999 for outgoing connections: a port there may be in use when an agent comes back to it."""
BLOCK = 50
"""Ports that a grid which starts reserves at a time."""


def is_free(address: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def chooser(address: str) -> Iterator[Callable[[], int]]:
    """A function that gives another free port each time, and keeps it from other choosers of this machine until the
    end. It raises Exhausted NO_FREE_PORT."""
    with contextlib.ExitStack() as reserved:
        found = _free(address, reserved)

        def choose() -> int:
            for port in found:
                return port
            raise Exhausted(
                "NO_FREE_PORT", f"no free port from {LOWEST} to {HIGHEST} on {address}; stop what uses them"
            )

        yield choose


def _free(address: str, reserved: contextlib.ExitStack) -> Iterator[int]:
    for first in random.sample(range(LOWEST, HIGHEST, BLOCK), k=len(range(LOWEST, HIGHEST, BLOCK))):
        if _reserve(first, reserved):
            yield from (port for port in range(first, min(first + BLOCK, HIGHEST)) if is_free(address, port))


def _reserve(first: int, until: contextlib.ExitStack) -> bool:
    """A block of ports, by a name that the kernel gives to one process of a network namespace, and takes back when it
    ends."""
    name = until.enter_context(socket.socket(socket.AF_UNIX))
    try:
        name.bind(f"\0gridfabric-ports-{first}")
    except OSError:
        return False
    return True
