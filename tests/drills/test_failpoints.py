"""Killed at every write point: broker, gatekeeper, worker, starter and bookkeeping die by SIGKILL at each of their
failpoints, all in the same minutes, while users submit jobs. No acknowledged job is lost, none runs twice."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from support.grid import LabGrid
from support.ordeal import Ordeal
from support.proof import TIMES

from agents.bookkeeping import failpoints as bookkeeping
from agents.broker import failpoints as broker
from agents.gatekeeper import failpoints as gatekeeper
from agents.worker import failpoints as worker
from fabric import failpoints as fabric

STORE = [name for name in fabric.NAMES if name.startswith("store.")]
POINTS = {
    "broker": [*fabric.NAMES, *broker.NAMES],
    "gatekeeper": [*fabric.NAMES, *gatekeeper.NAMES],
    "worker": [*STORE, *worker.NAMES],
    # The archive takes what ended weeks ago: tests/unit/bookkeeping/test_bookkeeping_archive.py
    "bookkeeping": [*STORE, *(name for name in bookkeeping.NAMES if ".archive." not in name)],
}


def order(kind: str, number: int) -> list[str]:
    """Of the deaths of one round: when a failpoint is reached first, in later rounds some time later."""
    chance = random.Random(f"{kind} {number}")
    points = chance.sample(POINTS[kind], len(POINTS[kind]))
    return points if number == 0 else [f"{point}:{chance.randint(1, 6)}" for point in points]


@pytest.mark.timeout(1000 + 200 * TIMES)
async def test_killed_at_every_write_point(tmp_path: Path) -> None:
    async with LabGrid(tmp_path) as lab, Ordeal(lab) as ordeal:
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as users:
            for name in ("first", "second"):
                users.create_task(ordeal.submit_until(enough, name))
            async with asyncio.TaskGroup() as deaths:
                for kind in POINTS:
                    points = [point for number in range(TIMES) for point in order(kind, number)]
                    deaths.create_task(ordeal.die_at_each(kind, points))
            enough.set()
        await ordeal.judge()
        await ordeal.nothing_is_left()
        wanted = sum(len(points) for points in POINTS.values()) * TIMES
        assert len(ordeal.deaths) == wanted
        print(f"{len(ordeal.deaths)} deaths, {len(ordeal.recorded.acknowledged)} jobs, none lost, none run twice")
