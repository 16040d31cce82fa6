"""What a worker asks of the batch system that runs its processes: the starter on this host, or a cluster's own.

Plain data only, no wire type: a further batch system is one more class.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

BATCH_SYSTEMS = ("fork", "slurm")


@dataclass(frozen=True)
class Listing:
    """What the batch system has of us."""

    running: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Key to process id and start in microseconds since the epoch."""
    waiting: frozenset[str] = frozenset()
    """Submitted and not started."""


class BatchSystem(Protocol):
    """Orders are dicts as `payloads.Payloads.fork` takes them; `key` names one hand-out for ever.

    Promises: a key is started at most once; how it ended is kept for `exit_of` before `ended` is told; whatever was
    promised holds when the worker, or the batch system, is killed and comes back.

    Told to the worker as messages: `started`, `ended`, `refused` and `lost` with `jobs` (the latter two: key and why),
    `gone` with `keys` (never started, and never will be unless it is submitted again).
    """

    lost: asyncio.Event
    """Set when nothing is known any more; `connect` again."""
    outlives_reboot: bool
    """Whether jobs may go on when this host boots."""
    places_ranks: bool
    """Whether it finds nodes for the ranks of a gang: orders then have `gang`, and the program as their command."""

    @property
    def problem(self) -> str:
        """Why it takes no jobs now; empty: it does."""
        ...

    async def connect(self) -> Listing:
        """What it has. Raises GridError when it can have no jobs at all."""
        ...

    async def capacity(self) -> int:
        """Payloads that may run at a time; 0: not known now."""
        ...

    def was_started(self, key: str) -> bool:
        """Whether a key that is in no listing may have been started."""
        ...

    def exit_of(self, key: str) -> dict[str, Any] | None:
        """How it ended, until it is forgotten; None: it has not, or nobody knows. Also before `connect`."""
        ...

    def kill_remains(self, keys: set[str]) -> int:
        """Whatever is left of jobs that were lost; returns how many processes were found. Blocking."""
        ...

    def submit(self, orders: Sequence[dict[str, Any]]) -> None:
        """Run these as soon as there is room."""
        ...

    def cancel(self, keys: Sequence[str], reason: str, *, at_once: bool = False) -> None:
        """Stop these: SIGTERM and grace if not `at_once`, SIGKILL to everything of them. Answered by `ended` with the
        reason, or `gone`."""
        ...

    def withdraw(self, keys: Sequence[str]) -> None:
        """Take back those of these that are not started; answered by `gone` for them alone."""
        ...

    def forget(self, keys: Sequence[str]) -> None:
        """Remove their records."""
        ...

    def shutdown(self) -> None:
        """Cancel everything with the reason WORKER_STOPPED; `lost` is set when that is done."""
        ...

    def close(self) -> None:
        """Let go; what runs goes on."""
        ...
