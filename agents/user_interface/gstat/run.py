"""`grid gstat`: look, check, ask the sites, and show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agents.user_interface import console, information, information_history
from agents.user_interface.exits import UsageProblem
from agents.user_interface.gstat import checks, maps, model, page, probes
from agents.user_interface.gstat.model import Row, Site, Status
from fabric.errors import GridError
from fabric.text import counted
from security.errors import CredentialError, os_error_text
from security.files import write_atomic

MAX_SHOWN = 40
"""Findings on a terminal; --json and --html have all."""
MAX_CHANGES = 200
"""Changes of state that are shown."""


STATES = (
    "select At, Site, GridFabricSiteState, Gone from GridFabricSiteHistory where GridFabricSiteState is not null "
    f"order by Id desc limit {MAX_CHANGES}"
)


@dataclass(frozen=True)
class History:
    """What became of the sites lately."""

    changes: tuple[tuple[str, str, str], ...] = ()
    """When, which site, its information server's new state; latest first."""
    missing: str = ""
    """Why there is none."""


@dataclass(frozen=True)
class Look:
    """The grid as it was seen."""

    at: datetime
    sites: tuple[Site, ...]
    rows: tuple[Row, ...]
    total: Row
    flags: tuple[str, ...]
    """What is stated of the whole grid and not so, and top servers that show different things."""
    history: History


async def look(server: tuple[str, int]) -> Look:
    """Read the tree of a top server and ask every site. Raises Unavailable, NotFound, InvalidRequest."""
    entries = await information.search(server, "(objectClass=*)", information.ATTRIBUTES)
    now = datetime.now(UTC)
    sites = model.sites_of(entries)
    storage = {entry.first("GlueSEUniqueID") for site in sites.values() for entry in site.of_class("GlueSE")}
    for site in sites.values():
        site.findings += checks.check(site, storage, now)
    await probes.probe(sites.values())
    rows = model.regions(sites.values())
    total = model.row_of("all", list(sites.values()))
    flags = [*model.wrong_totals(sites.values(), rows, total), *divergence(entries)]
    return Look(now, tuple(sites.values()), tuple(rows), total, tuple(flags), await history())


async def history() -> History:
    """The changes of state that the top server keeps: asked with the user's proxy, and missed without one."""
    try:
        answer = await information_history.ask(STATES)
    except (GridError, CredentialError, UsageProblem) as error:
        return History(missing=error.sentence)
    return History(tuple((str(at), str(site), str(state)) for at, site, state, gone in answer.rows if not gone))


def divergence(entries: Sequence[Any]) -> list[str]:
    """How the top server that was asked stands with the others and with regions, where it is not well."""
    found: list[str] = []
    for entry in entries:
        if entry.first("GridFabricRegionState") in ("unreachable", "withdrawn"):
            since = entry.first("GridFabricRegionSince")
            found.append(f"the region server {entry.first('GridFabricRegionID')} is not heard since {since}")
        state, name = entry.first("GridFabricTopState"), entry.first("GridFabricTopID")
        if state == "diverged":
            differing = counted(information.number(entry, "GridFabricTopDiffering"), "entry")
            found.append(
                f"the top server {name} shows otherwise: {differing}, since {entry.first('GridFabricTopSince')}"
            )
        elif state == "unreachable":
            found.append(f"the top server {name} is not heard")
    return found


async def command(server: tuple[str, int], html: Path | None, map_file: Path | None, *, as_json: bool) -> None:
    """Print the table; write the page and the map. Raises UsageProblem, Unavailable."""
    draw = maps.by_name(map_file) if map_file is not None else None
    if map_file is not None and draw is None:
        raise UsageProblem(f"{map_file} has no ending that says what it shall be: {', '.join(maps.FORMATS)}")
    seen = await look(server)
    if html is not None:
        _write(
            html,
            page.page(
                seen.at, seen.sites, seen.rows, seen.total, seen.flags, seen.history.changes, seen.history.missing
            ),
        )
    if map_file is not None and draw is not None:
        _write(map_file, draw(seen.sites))
    if as_json:
        console.print_json(as_data(seen))
    else:
        _print(seen)


def _write(path: Path, content: str | bytes) -> None:
    try:
        write_atomic(path, content if isinstance(content, bytes) else content.encode(), 0o644)
    except OSError as error:
        raise UsageProblem(f"{path} cannot be written ({os_error_text(error)})", "FILE_UNWRITABLE") from None


def as_data(seen: Look) -> dict[str, Any]:
    """For JSON."""
    return {
        "at": console.time_text(seen.at),
        "regions": [asdict(row) for row in seen.rows],
        "total": asdict(seen.total),
        "flags": list(seen.flags),
        "history": asdict(seen.history),
        "sites": [
            {
                "site": site.name,
                "region": site.region,
                "country": site.country,
                "status": site.status.value,
                "information": site.state,
                "entries": len(site.entries),
                "changed_at": site.changed_at and console.time_text(site.changed_at),
                "response_s": None if site.response_s is None else round(site.response_s, 3),
                "cpus": site.cpus,
                "processors": site.processors,
                "cpu_dow": site.promised_cpus,
                "disk_tb": site.disk_tb,
                "disk_is_estimated": site.disk_is_estimated,
                "measured_tb": site.measured_tb,
                "latitude": site.latitude,
                "longitude": site.longitude,
                "findings": [{"status": f.status.value, "sentence": f.sentence} for f in site.findings],
            }
            for site in seen.sites
        ],
    }


def _print(seen: Look) -> None:
    console.print_table(page.COLUMNS, [page.cells(row) for row in (*seen.rows, seen.total)])
    print(page.FOOTNOTE)
    for flag in seen.flags:
        print(f"!  {flag}")
    serious = [site for site in seen.sites if site.status.rank >= Status.NOTE.rank]
    lines = [
        f"{finding.status.value:5} {site.name}: {finding.sentence}"
        for site in sorted(serious, key=lambda site: (-site.status.rank, site.name))
        for finding in site.findings
        if finding.status.rank >= Status.NOTE.rank
    ]
    for line in lines[:MAX_SHOWN]:
        print(line)
    if len(lines) > MAX_SHOWN:
        print(f"and {len(lines) - MAX_SHOWN} more: --json, --html")
