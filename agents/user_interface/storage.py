"""What `grid storage` does, in the name of the grid's operator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agents.storage import client
from agents.user_interface import console, data
from agents.user_interface.connection import as_operator
from agents.user_interface.exits import Ended, ExitCode


@asynccontextmanager
async def _channel(se: str, state: Path | None) -> AsyncIterator[Any]:
    async with as_operator(state) as grid:
        element = await data.find_element(grid, se)
        yield await grid.channel_to(element.host, element.port)


def _state_of(pool: client.PoolInfo) -> str:
    if not pool.answers:
        return "away"
    return "drained" if pool.state == "draining" and not pool.files else pool.state


async def list_pools(se: str, state: Path | None, *, as_json: bool) -> None:
    """`grid storage pool ls`."""
    async with _channel(se, state) as channel:
        pools = await client.pools(channel)
    if as_json:
        console.print_json([{**asdict(pool), "state": _state_of(pool)} for pool in pools])
        return
    console.print_table(
        ["POOL", "STATE", "FILES", "USED", "FREE", "OBSTACLE"],
        [
            [
                pool.path, _state_of(pool), pool.files, console.bytes_text(pool.used_bytes),
                console.bytes_text(pool.free_bytes) if pool.answers else "", pool.obstacle,
            ]
            for pool in pools
        ],
    )  # fmt: skip


async def change_pool(what: str, se: str, path: str, state: Path | None, *, as_json: bool) -> None:
    """`grid storage pool add|drain|rm`."""
    async with _channel(se, state) as channel:
        if what == "add":
            path = await client.add_pool(channel, path)
            text = "new files may go there"
        elif what == "drain":
            await client.drain_pool(channel, path)
            text = f"its files move to the other pools; see: grid storage pool ls {se}"
        else:
            await client.remove_pool(channel, path)
            text = "no longer used"
    if as_json:
        console.print_json({"pool": path, "done": what})
    else:
        print(f"{path}: {text}")


def _round(began_at_us: int, ended_at_us: int) -> dict[str, str]:
    """When the last round was, as `console.print_facts` wants it; 0 is not yet."""
    times = {"round began": began_at_us, "round ended": ended_at_us}
    return {title: console.time_us_text(at_us) if at_us else "not yet" for title, at_us in times.items()}


async def scrub(se: str, state: Path | None, *, now: bool, as_json: bool) -> None:
    """`grid storage scrub`."""
    async with _channel(se, state) as channel:
        found = await client.scrub(channel, now=now)
    if as_json:
        console.print_json(asdict(found))
    else:
        console.print_facts(
            {
                **_round(found.began_at_us, found.ended_at_us),
                "looked at": f"{found.files} files, {console.bytes_text(found.size_bytes)}",
                "damaged or lost": found.damaged,
            }
        )
        if found.examples:
            console.print_table(
                ["SURL", "DAMAGE", "OWNER", "NAME"],
                [[file.surl, file.damage, file.owner, file.name_hint] for file in found.examples],
            )
    if found.damaged:
        raise Ended(ExitCode.FAILED)


async def reconcile(se: str, state: Path | None, *, now: bool, as_json: bool) -> None:
    """`grid storage reconcile`."""
    async with _channel(se, state) as channel:
        found = await client.reconcile(channel, now=now)
    if as_json:
        console.print_json(asdict(found))
    else:
        console.print_facts(
            {
                **_round(found.began_at_us, found.ended_at_us),
                "dark": found.dark,
                "lost": found.lost,
                "removed": found.removed,
                **({"obstacle": found.obstacle} if found.obstacle else {}),
            }
        )
        if found.examples:
            rows = [[stray.kind, stray.surl, console.time_us_text(stray.since_us)] for stray in found.examples]
            console.print_table(["KIND", "SURL", "SINCE"], rows)
    if found.dark or found.lost:
        raise Ended(ExitCode.FAILED)
