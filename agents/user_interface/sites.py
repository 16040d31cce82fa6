"""What `grid site` does, in the name of the grid's operator."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agents.gatekeeper import client
from agents.user_interface import console
from agents.user_interface.connection import Grid, as_operator
from fabric.clock import to_us, utc_text
from fabric.errors import NotFound
from fabric.settings import Endpoint

COLUMNS = ("gatekeeper", "queue", "running", "waiting")


def gatekeepers_of(grid: Grid, where: str) -> list[Endpoint]:
    """Those of a site, or the one of this name. Raises NotFound SITE_UNKNOWN."""
    found = [endpoint for endpoint in grid.services.all("gatekeeper") if where in (endpoint.site, endpoint.name)]
    if not found:
        known = ", ".join(sorted({endpoint.site for endpoint in grid.services.all("gatekeeper")}))
        raise NotFound("SITE_UNKNOWN", f"no gatekeeper belongs to {where[:80]!r}; sites with one: {known}")
    return found


async def drain(where: str, reason: str, queue: str, state: Path | None, *, as_json: bool) -> None:
    """`grid site drain`."""
    await _close(where, state, "draining", as_json=as_json, draining=True, reason=reason, queue=queue)


async def maintenance(
    where: str, reason: str, begins_s: float, lasts_s: float | None, queue: str, state: Path | None, *, as_json: bool
) -> None:
    """`grid site maintenance`."""
    begins = datetime.now(UTC) + timedelta(seconds=begins_s)
    ends = begins + timedelta(seconds=lasts_s) if lasts_s is not None else None
    text = f"maintenance from {utc_text(begins)} {f'to {utc_text(ends)}' if ends else 'until resumed'}"
    ends_at_us = to_us(ends) if ends else 0
    closure = {"reason": reason, "begins_at_us": to_us(begins), "ends_at_us": ends_at_us, "queue": queue}
    await _close(where, state, text, as_json=as_json, **closure)


async def resume(where: str, queue: str, state: Path | None, *, as_json: bool) -> None:
    """`grid site resume`."""
    await _close(where, state, "open", as_json=as_json, queue=queue)


async def _close(where: str, state: Path | None, text: str, *, as_json: bool, **closure: Any) -> None:
    rows = []
    async with as_operator(state) as grid:
        for endpoint in gatekeepers_of(grid, where):
            running, waiting = await client.close(await grid.channel_to(endpoint.host, endpoint.rpc), **closure)
            queue = f"{closure['queue']}: {text}" if closure["queue"] else text
            rows.append({"gatekeeper": endpoint.name, "queue": queue, "running": running, "waiting": waiting})
    if as_json:
        console.print_json(rows)
    else:
        console.print_table(COLUMNS, [[str(row[column]) for column in COLUMNS] for row in rows])
