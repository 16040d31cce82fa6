"""What `grid votag` and `grid swdir` do, in the name of a user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agents.gatekeeper import client
from agents.user_interface import console
from agents.user_interface.connection import open_for_user
from agents.user_interface.sites import gatekeepers_of


async def _ask(where: str, **changes: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    async with open_for_user() as grid:
        for endpoint in gatekeepers_of(grid, where):
            tags, area = await client.tags(await grid.channel_to(endpoint.host, endpoint.rpc), **changes)
            rows.append({"gatekeeper": endpoint.name, "tags": tags, "software_area": area})
    return rows


async def change(where: str, add: Sequence[str], remove: Sequence[str], *, as_json: bool) -> None:
    """`grid votag`: changes, if any, and what there is then."""
    rows = await _ask(where, add=add, remove=remove)
    if as_json:
        console.print_json(rows)
        return
    for row in rows:
        console.say(f"{row['gatekeeper']}: {' '.join(row['tags']) or 'no tags'}")


async def area(where: str, *, as_json: bool) -> None:
    """`grid swdir`."""
    rows = [{name: row[name] for name in ("gatekeeper", "software_area")} for row in await _ask(where)]
    if as_json:
        console.print_json(rows)
        return
    for row in rows:
        console.say(f"{row['gatekeeper']}: {row['software_area'] or 'no worker has told yet'}")
