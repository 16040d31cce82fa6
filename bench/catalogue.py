"""Section `catalogue`: names registered, looked up and listed, with what the catalogue's own process spends on each."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from agents.catalog import client as catalog
from bench.lab import VO, Lab, since
from bench.measure import Bench, timed

AT_ONCE = 16
IN_BULK = 1000


def run(bench: Bench, lab: Lab) -> None:
    """One directory is filled; then look-ups one by one and in bulk, and the whole directory listed."""
    asyncio.run(_run(bench, lab))


async def _run(bench: Bench, lab: Lab) -> None:
    count, singles = bench.size(100_000, 10_000), bench.size(4000, 1000)
    directory = f"lfn:/grid/{VO}/bench/{uuid.uuid4().hex}"
    names = [f"{directory}/file-{number:07d}" for number in range(count)]
    chosen = random.Random(1).sample(names, singles)
    async with lab.open() as grid:
        channel = await grid.channel("catalog")

        async def measure(key: str, title: str, items: int, trials: int, work: Callable[[], Awaitable[Any]]) -> None:
            rates: list[float] = []
            costs: list[float] = []
            for _ in range(trials):
                before = lab.cpu()
                seconds, _ = await timed(work())
                rates.append(items / seconds)
                costs.append(1e6 * since(before, lab.cpu())["catalog.LAB"] / items)
            bench.add(key, title, "1/s", rates)
            bench.add(f"{key}_cpu", f"{title}: processor time of the catalogue", "us", costs)

        title = f"files registered, {IN_BULK} a call, on disk before the answer"
        await measure("register_many", title, count, 1, lambda: _register(channel, names))
        await measure("lookup", "look-ups of one name", singles, bench.trials, lambda: _look_up(channel, chosen))
        await measure(
            "lookup_many",
            f"names looked up, {IN_BULK} a call",
            count,
            bench.trials,
            lambda: catalog.lookup(channel, names),
        )
        title = f"entries listed of a directory of {count:,}".replace(",", " ")
        await measure("list", title, count, bench.trials, lambda: _list(channel, directory, count))


async def _register(channel: Any, names: list[str]) -> None:
    for start in range(0, len(names), IN_BULK):
        new = [
            catalog.NewFile(
                name, catalog.new_guid(), catalog.Content(1, "0" * 8, "0" * 64),
                f"srm://bench.invalid:8443/{VO}/{uuid.uuid4().hex}",
            )
            for name in names[start : start + IN_BULK]
        ]  # fmt: skip
        refused = [error for error in await catalog.register_many(channel, new) if error is not None]
        if refused:
            raise refused[0]


async def _look_up(channel: Any, names: list[str]) -> None:
    waiting = iter(names)

    async def worker() -> None:
        for name in waiting:
            await catalog.replicas(channel, name)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())


async def _list(channel: Any, directory: str, count: int) -> None:
    found = [entry async for entry in catalog.list_directory(channel, directory)]
    if len(found) != count:
        raise RuntimeError(f"{len(found)} entries of {count} were listed")
