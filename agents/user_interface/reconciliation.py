"""`grid data audit`: what a storage element has, compared with what the catalogue lists there, and cures.

Compared as in `agents/storage/comparison.py`. A service that does not answer ends the audit: silence is no proof of
anything.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from agents.catalog import client as catalog
from agents.storage import client as storage
from agents.storage.client import SETTLE_S, Difference, differences
from agents.user_interface import console, data
from agents.user_interface.connection import Grid, open_for_user
from agents.user_interface.data import Element
from agents.user_interface.exits import Ended, ExitCode, describe
from agents.user_interface.proxy import now_utc
from fabric.clock import to_us
from fabric.errors import DataCorrupted, GridError, NotFound
from security.errors import SecurityError

LOOKS_AT_ONCE = 16
SHOWN = 10_000
"""Differences in a report in JSON; all are counted."""


class GridEnds:
    """Catalogue and storage element of a grid."""

    def __init__(self, names: Any, channel: Any, element: Element, vo: str) -> None:
        self._names, self._channel, self._vo = names, channel, vo
        self._address = f"[{element.host}]:{element.port}" if ":" in element.host else f"{element.host}:{element.port}"

    async def stored(self, token: str) -> tuple[list[storage.FileInfo], str]:
        """See Ends."""
        return await storage.list_page(self._channel, self._vo, token)

    async def listed(self, after: str) -> tuple[list[str], bool]:
        """See Ends."""
        return await catalog.replicas_at(self._names, self._address, self._vo, after)

    async def still_stored(self, surls: Sequence[str]) -> set[str]:
        """See Ends."""
        found: set[str] = set()
        for start in range(0, len(surls), LOOKS_AT_ONCE):
            part = surls[start : start + LOOKS_AT_ONCE]
            there = await asyncio.gather(*(storage.exists(self._channel, surl) for surl in part))
            found.update(surl for surl, is_there in zip(part, there, strict=True) if is_there)
        return found

    async def still_listed(self, surls: Sequence[str]) -> set[str]:
        """See Ends."""
        found, _ = await catalog.lookup(self._names, surls)
        return {replica.surl for entry in found for replica in entry.replicas}


# -- the command -----------------------------------------------------------------------------------------------------


async def audit_command(
    se: str,
    dark: str,
    lost: str,
    grace: str,
    every: str | None,
    *,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
    settle_s: float = SETTLE_S,
) -> None:
    """`grid data audit`."""
    while True:
        left = await _audit_once(se, dark, lost, grace, settle_s, as_json=as_json, environ=environ)
        if every is None:
            if left:
                raise Ended(ExitCode.FAILED)
            return
        await asyncio.sleep(console.parse_duration(every))


async def _audit_once(
    se: str, dark: str, lost: str, grace: str, settle_s: float, *, as_json: bool, environ: Mapping[str, str]
) -> int:
    """How many differences are left."""
    counts = {"dark": 0, "lost": 0, "repaired": 0}
    rows: list[dict[str, Any]] = []
    before_us = to_us(now_utc() - timedelta(seconds=console.parse_duration(grace)))
    async with open_for_user(environ) as grid:
        data.require_vo(grid)
        element = await data.find_element(grid, se)
        cure = Cure(grid, element, dark=dark, lost=lost)
        ends = GridEnds(
            await grid.channel("catalog"), await grid.channel_to(element.host, element.port), element, grid.vo
        )
        async for batch in differences(ends, before_us, lambda: asyncio.sleep(settle_s)):
            for difference in batch:
                row = await cure.apply(difference)
                counts[difference.kind] += 1
                counts["repaired"] += "error" not in row and row["done"] != "report"
                if len(rows) < SHOWN:
                    rows.append(row)
                _say(row)
    left = counts["dark"] + counts["lost"] - counts["repaired"]
    if as_json:
        console.print_json({**counts, "left": left, "differences": rows})
    else:
        print(f"{element.name}: {counts['dark']} dark, {counts['lost']} lost, {counts['repaired']} repaired")
    return left


def _say(row: Mapping[str, Any]) -> None:
    if "error" in row:
        console.warn(f"{row['surl']}: {row['error']['sentence']}")
    else:
        done = "" if row["done"] == "report" else f"  {row['done']}"
        console.say(f"{row['kind']}  {row['surl']}  {row['size_bytes']} bytes  {row['name']}{done}")


class Cure:
    """What becomes of differences, with the user's rights."""

    def __init__(self, grid: Grid, element: Element, *, dark: str, lost: str) -> None:
        self._grid, self._element = grid, element
        self._wanted = {"dark": str(dark), "lost": str(lost)}
        self._delegated = False

    async def apply(self, difference: Difference[storage.FileInfo]) -> dict[str, Any]:
        """A row for the report: what was done, or why it could not be."""
        wanted = self._wanted[difference.kind]
        row: dict[str, Any] = {"kind": difference.kind, "surl": difference.surl, "done": wanted}
        try:
            if difference.file is not None:
                row |= {"size_bytes": difference.file.size_bytes, "name": difference.file.name_hint}
                await self._dark(difference.file, wanted)
            else:
                row |= await self._lost(difference.surl, wanted)
        except (GridError, SecurityError) as error:
            row["error"] = describe(error)
        return row

    async def _dark(self, file: storage.FileInfo, wanted: str) -> None:
        if wanted == "report":
            return
        names = await self._grid.channel("catalog")
        if file.damage:
            raise DataCorrupted(file.damage, f"{file.surl} is damaged or lost on its disk, and was left as it is")
        if wanted == "register":
            file_id = storage.parse_surl(file.surl).file_id
            content = catalog.Content(file.size_bytes, file.checksums.adler32, file.checksums.sha256)
            lfn = f"lfn:/grid/{file.vo}/lost+found/{file_id}"
            await catalog.register(names, lfn, catalog.new_guid(), content, surl=file.surl)
            return
        found, _ = await catalog.lookup(names, [file.surl])
        if not found:
            await storage.remove(await self._channel(), file.surl)

    async def _lost(self, surl: str, wanted: str) -> dict[str, Any]:
        names = await self._grid.channel("catalog")
        found, _ = await catalog.lookup(names, [surl])
        if not found:
            return {"size_bytes": 0, "name": ""}
        file = found[0]
        if wanted == "replicate":
            others = tuple(replica for replica in file.replicas if not data.is_at(replica, self._element))
            if not others:
                raise NotFound("NO_REPLICA", f"{data.lfn_of(file)} has no other replica to make this one anew from")
            if not self._delegated:
                await self._grid.delegate(await self._channel())
                self._delegated = True
            await data.replicate(self._grid, replace(file, replicas=others), self._element)
        if wanted != "report":
            await catalog.remove_replica(names, data.lfn_of(file), surl)
        return {"size_bytes": data.content_of(file).size_bytes, "name": data.lfn_of(file)}

    async def _channel(self) -> Any:
        return await self._grid.channel_to(self._element.host, self._element.port)
