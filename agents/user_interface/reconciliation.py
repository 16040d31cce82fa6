"""`grid data audit`: what a storage element has, compared with what the catalogue lists there.

Both are read in order of SURL, page by page, and merged; what differs is a suspect until it was looked at a second
time, a while later, at both ends. So a file that comes or goes meanwhile is no difference: a put stores before it
registers and a removal deletes before it unlists, and neither takes as long as the pause between the looks. A service
that does not answer ends the audit: silence is no proof of anything.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Protocol

from agents.catalog import client as catalog
from agents.storage import client as storage
from agents.user_interface import console, data
from agents.user_interface.connection import Grid, open_for_user
from agents.user_interface.data import Element
from agents.user_interface.exits import Ended, ExitCode, describe
from agents.user_interface.proxy import now_utc
from fabric.clock import to_us
from fabric.errors import DataCorrupted, GridError, NotFound
from security.errors import SecurityError

MAX_SUSPECTS = 5000
"""Suspects that are held before they are looked at again: bounds the memory, however much differs."""
SETTLE_S = 10.0
"""From the last suspect to the second look: longer than a put or a removal takes from one end to the other."""
LOOKS_AT_ONCE = 16
SHOWN = 10_000
"""Differences in a report in JSON; all are counted."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A file that only one of the two has."""

    surl: str
    file: storage.FileInfo | None
    """Dark: as the storage element has it. None: lost."""

    @property
    def kind(self) -> str:
        """`dark` or `lost`."""
        return "lost" if self.file is None else "dark"


class Ends(Protocol):
    """The two sides of a comparison, of one VO at one storage element."""

    async def stored(self, token: str) -> tuple[list[storage.FileInfo], str]:
        """A page of what is there, in order of SURL, and the token of the next one."""
        ...

    async def listed(self, after: str) -> tuple[list[str], bool]:
        """A page of the SURLs that should be there, in order, above `after`; whether there are more."""
        ...

    async def still_stored(self, surls: Sequence[str]) -> set[str]:
        """Those of them that are there now."""
        ...

    async def still_listed(self, surls: Sequence[str]) -> set[str]:
        """Those of them that are listed now."""
        ...


async def differences(
    ends: Ends, before_us: int, pause: Callable[[], Awaitable[None]]
) -> AsyncIterator[list[Difference]]:
    """What differs, in batches: dark files made before `before_us`, and lost replicas. `pause` is called between the
    first look at a batch and the second."""
    suspects: list[Difference] = []
    async for difference in _suspects(ends, before_us):
        suspects.append(difference)
        if len(suspects) >= MAX_SUSPECTS:
            await pause()
            yield await _confirmed(ends, suspects)
            suspects = []
    if suspects:
        await pause()
        yield await _confirmed(ends, suspects)


async def _suspects(ends: Ends, before_us: int) -> AsyncIterator[Difference]:
    listed, more, above = await _page_of_listed(ends, "")
    token: str | None = ""
    while token is not None:
        files, next_token = await ends.stored(token)
        token = next_token or None
        for file in files:
            while more and (not listed or listed[-1] < file.surl):
                for surl in listed:
                    yield Difference(surl, None)
                listed, more, above = await _page_of_listed(ends, above)
            position = 0
            while position < len(listed) and listed[position] < file.surl:
                yield Difference(listed[position], None)
                position += 1
            is_listed = position < len(listed) and listed[position] == file.surl
            listed = listed[position + is_listed :]
            if not is_listed and not file.named and file.created_at_us < before_us:
                yield Difference(file.surl, file)
    while listed or more:
        for surl in listed:
            yield Difference(surl, None)
        listed, more, above = await _page_of_listed(ends, above) if more else ([], False, above)


async def _page_of_listed(ends: Ends, after: str) -> tuple[list[str], bool, str]:
    """A page, whether there are more, and its last SURL."""
    listed, more = await ends.listed(after)
    return listed, more and bool(listed), listed[-1] if listed else after


async def _confirmed(ends: Ends, suspects: Sequence[Difference]) -> list[Difference]:
    surls = [suspect.surl for suspect in suspects]
    stored = await ends.still_stored(surls)
    listed = await ends.still_listed(surls)
    return [s for s in suspects if (s.surl in listed, s.surl in stored) == (s.file is None, s.file is not None)]


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

    async def apply(self, difference: Difference) -> dict[str, Any]:
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
