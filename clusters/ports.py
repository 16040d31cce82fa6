"""Choosing ports that stay free: below the range from which the kernel takes ports for outgoing connections."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

from fabric.errors import Exhausted

LOWEST, HIGHEST = 20_000, 32_000
"""Linux takes 32768-60999 for outgoing connections: a port there may be in use when an agent comes back to it."""
MAX_TRIES = 2000


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


def chooser(address: str, rng: random.Random | None = None) -> Callable[[], int]:
    """A function that gives a free port each time. It may give the same twice. Raises Exhausted NO_FREE_PORT."""
    rng = rng or random.SystemRandom()

    def choose() -> int:
        for _ in range(MAX_TRIES):
            port = rng.randrange(LOWEST, HIGHEST)
            if is_free(address, port):
                return port
        raise Exhausted("NO_FREE_PORT", f"no free port from {LOWEST} to {HIGHEST} on {address}; stop what uses them")

    return choose
