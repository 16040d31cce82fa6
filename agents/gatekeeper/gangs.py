"""Gangs: jobs of several slots that start on all of them or on none. Pure; what is decided when is in machine.py."""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from enum import StrEnum


class Phase(StrEnum):
    """Where the part of a gang is that one worker has."""

    ASSIGNED = "ASSIGNED"
    """Sent, and perhaps being prepared."""
    READY = "READY"
    """Everything is in place; it waits for the others. Not kept over a restart: the worker tells it again."""
    STARTED = "STARTED"
    ENDED = "ENDED"


@dataclass(frozen=True, slots=True)
class Part:
    """The ranks of a gang that one worker has; those of all parts follow each other. Seconds and bytes."""

    worker: str
    ranks: int
    phase: Phase = Phase.ASSIGNED
    failed: bool = False
    """It ended by no fault of the payload."""
    wall_s: float = 0.0
    user_s: float = 0.0
    system_s: float = 0.0
    max_rss_bytes: int = 0


Parts = tuple[Part, ...]


def place(slots: int, hosts: int, each: int, spare: Mapping[str, int]) -> Parts | None:
    """A gang on the fewest workers that have room for it, but on `hosts` at least, with at least `each` slots on each,
    those with the most room first; None if it has no room. `spare`: free slots by worker."""
    names = sorted((name for name, free in spare.items() if free >= each), key=lambda name: (-spare[name], name))
    for count in range(max(1, hosts), min(slots // each, len(names)) + 1):
        chosen = names[:count]
        left = slots - count * each
        if sum(spare[name] for name in chosen) < slots:
            continue
        parts: list[Part] = []
        for name in chosen:
            more = min(left, spare[name] - each)
            parts.append(Part(name, each + more))
            left -= more
        return tuple(parts)
    return None


def earliest(
    slots: int, hosts: int, each: int, spare: Mapping[str, int], ends: Sequence[tuple[int, str, int]]
) -> int | None:
    """When a gang surely has room if nothing else starts; None: not by these ends. `ends`: until when something runs at
    the latest, on which worker, with how many slots."""
    ends = sorted(ends)

    def fits(count: int) -> bool:
        free = dict(spare)
        for _, worker, freed in ends[:count]:
            free[worker] = free.get(worker, 0) + freed
        return place(slots, hosts, each, free) is not None

    count = bisect.bisect_left(range(1, len(ends) + 1), True, key=fits)
    return ends[count][0] if count < len(ends) else None


def first_rank(parts: Parts, worker: str) -> int:
    """Of this worker's part."""
    before = 0
    for part in parts:
        if part.worker == worker:
            break
        before += part.ranks
    return before


def part_of(parts: Parts, worker: str) -> Part | None:
    """This worker's."""
    return next((part for part in parts if part.worker == worker), None)


def put(parts: Parts, changed: Part) -> Parts:
    """With one part in the place of the same worker's."""
    return tuple(changed if part.worker == changed.worker else part for part in parts)


def without_ready(parts: Parts, worker: str = "") -> Parts:
    """After a restart, or when a worker's stream ended: who was ready has to say it again."""
    return tuple(
        replace(part, phase=Phase.ASSIGNED) if part.phase is Phase.READY and worker in ("", part.worker) else part
        for part in parts
    )


def dumps(parts: Parts) -> str:
    """For a row; empty for none."""
    return json.dumps([astuple(part) for part in parts]) if parts else ""


def loads(text: str) -> Parts:
    """What `dumps` made."""
    if not text:
        return ()
    rows: Sequence[Sequence[object]] = json.loads(text)
    return tuple(Part(worker, ranks, Phase(phase), *rest) for worker, ranks, phase, *rest in rows)  # type: ignore[arg-type]
