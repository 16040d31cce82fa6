"""`grid data stage`: files that are on tape come to disk, and waiting for them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from agents.catalog import client as catalog
from agents.storage import client as storage
from agents.user_interface import console, data
from agents.user_interface.connection import Grid, open_for_user
from agents.user_interface.exits import describe
from agents.user_interface.patience import Patience
from fabric.errors import Conflict, DataCorrupted, GridError, NotFound
from security.errors import SecurityError

PART = 1000
"""Files in one request."""


async def _replica(grid: Grid, file: catalog.Entry, se: str | None) -> catalog.Replica:
    """The one at `se`; else one that is on disk already, else the first. Raises NotFound(NO_REPLICA)."""
    element = await data.find_element(grid, se) if se is not None else None
    chosen = [replica for replica in file.replicas if element is None or data.is_at(replica, element)]
    if not chosen:
        raise NotFound("NO_REPLICA", f"{data.lfn_of(file)} has no replica{f' at {se}' if se else ''}")
    for replica in chosen if len(chosen) > 1 else ():
        try:
            info = await storage.stat(await grid.channel_to(*data.door(replica.surl)), replica.surl)
        except GridError:
            continue  # another one may be readable
        if info.locality in ("ONLINE", "ONLINE_AND_NEARLINE"):
            return replica
    return chosen[0]


async def _bring_online(grid: Grid, address: tuple[str, int], surls: Sequence[str], pin_s: float) -> list[Any]:
    channel = await grid.channel_to(*address)
    try:
        return [
            staging
            for start in range(0, len(surls), PART)
            for staging in await storage.bring_online(channel, surls[start : start + PART], pin_s)
        ]
    except Conflict as error:
        if error.reason != "NO_TAPES":
            raise
        return [storage.Staging(surl, "ONLINE", 0, 0, "") for surl in surls]


async def stage_command(
    lfns: Sequence[str],
    se: str | None,
    *,
    wait: bool,
    pin: str | None,
    release: bool,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid data stage`."""
    names = [data.check_name(lfn) for lfn in lfns]
    pin_s = float(console.parse_duration(pin)) if pin is not None else 0.0
    rows: dict[str, dict[str, Any]] = {}
    failures: list[Exception] = []
    async with open_for_user(environ) as grid:
        files = await data.lookup(grid, names)
        by_element: defaultdict[tuple[str, int], dict[str, str]] = defaultdict(dict)
        for file in files:
            replica = await _replica(grid, file, se)
            by_element[data.door(replica.surl)][replica.surl] = data.lfn_of(file)
        patience = Patience()
        for address, wanted in by_element.items():
            try:
                if release:
                    await storage.release(await grid.channel_to(*address), list(wanted))
                    rows |= {surl: {"lfn": lfn, "surl": surl, "state": "released"} for surl, lfn in wanted.items()}
                    continue
                while True:
                    found = await _bring_online(grid, address, list(wanted), pin_s)
                    rows |= {each.surl: _row(wanted[each.surl], each) for each in found}
                    later = [each for each in found if each.retry_after_s]
                    if not (wait and later):
                        break
                    await patience.wait(later[0].sentence, later[0].retry_after_s)
            except (GridError, SecurityError) as error:
                failures.append(error)
                rows |= {surl: {"lfn": lfn, "error": describe(error)} for surl, lfn in wanted.items()}
    lost = [row for row in rows.values() if row.get("state") == "lost"]
    failures += [DataCorrupted("FILE_LOST", row["error"]["sentence"]) for row in lost]
    data.print_rows(list(rows.values()), failures, _text, as_json=as_json)


def _row(lfn: str, staging: storage.Staging) -> dict[str, Any]:
    row: dict[str, Any] = {"lfn": lfn, "surl": staging.surl, "locality": staging.locality}
    if staging.locality == "LOST":
        lost = DataCorrupted("FILE_LOST", f"{lfn}: {staging.surl} is lost; repair it with: grid data repair {lfn}")
        return {**row, "state": "lost", "error": describe(lost)}
    if staging.retry_after_s:
        return {**row, "state": "staging", "retry_after_s": staging.retry_after_s, "sentence": staging.sentence}
    return {**row, "state": "online"}


def _text(row: dict[str, Any]) -> str:
    if row["state"] == "staging":
        return f"{row['lfn']}  staging, ask again in {row['retry_after_s']} s"
    return f"{row['lfn']}  {row['state']}"
