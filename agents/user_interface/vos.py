"""The VOs of the grid: where the server of each is, and what `grid vo create` and its kin do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.authority.client import AuthorityClient
from agents.user_interface import console, endpoints
from agents.user_interface.connection import Grid, as_operator, open_for_user
from agents.user_interface.jobs import jobs_under_way, print_under_way
from agents.vo.client import VoClient
from fabric.errors import GridError, NotFound, Unavailable
from fabric.settings import Endpoint
from security.errors import utc_text
from security.vos import EVERYWHERE, Vo, VoList

SERVED_WITHIN_S = 20.0
"""A new VO's door is open within a second, if its server is up."""
SERVED_POLL_S = 0.1


async def server_of(grid: Grid, vo: str) -> Endpoint:
    """The server of a VO: by its name, else the only one of a grid with this VO, else as the grid's list of VOs says.

    Raises NotFound VO_UNKNOWN, Refused VO_DISSOLVED.
    """
    servers = grid.services.all("vo")
    named = [server for server in servers if server.name in (vo, f"vo.{vo}")]
    if not named and len(servers) == 1 and vo in (grid.services.vos or (vo,)):
        named = list(servers)
    if named:
        return named[0]
    known = grid.services.vos
    if grid.services.all("authority"):
        listed = await AuthorityClient(await grid.channel("authority")).vos()
        found = listed.get(vo)
        if found is not None and found.servers:
            server = found.servers[0]
            return Endpoint("vo", server.name, server.host, server.site, server.rpc, server.ldap, server.http)
        known = listed.accepted_at("")
    raise NotFound("VO_UNKNOWN", f"no server of the VO {vo!r} is known; VOs of this grid: {', '.join(known)}", vo=vo)


async def vo_client(grid: Grid, vo: str) -> VoClient:
    """Calls to the server of a VO in the name of the grid's credential. Raises as `server_of`."""
    server = await server_of(grid, vo)
    return VoClient(await grid.channel_to(server.host, server.rpc), vo)


async def listing(grid: Grid) -> VoList:
    """Every VO of the grid, also those that were dissolved."""
    return await AuthorityClient(await grid.channel("authority")).vos()


async def show(state: Path | None, *, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """`grid vo ls`, for operators and users."""
    operator = os.access(endpoints.state_folder(state, environ) / "admin.pem", os.R_OK)
    async with as_operator(state) if operator else open_for_user(environ, state) as grid:
        found = [facts(vo) for vo in (await listing(grid)).vos]
    if as_json:
        console.print_json(found)
        return
    rows = [(vo["name"], vo["state"], " ".join(vo["sites"]) or "-", vo["server"], vo["reason"] or "-") for vo in found]
    console.print_table(("VO", "STATE", "SITES", "SERVER", "REASON"), rows)


def facts(vo: Vo) -> dict[str, Any]:
    """One VO for people and programs."""
    server = vo.servers[0] if vo.servers else None
    opening = server is None or not server.http
    return {
        "name": vo.name,
        "state": "dissolved" if vo.dissolved_at else "opening" if opening else "open",
        "sites": ["all" if site == EVERYWHERE else site for site in sorted(vo.sites)] if not vo.dissolved_at else [],
        "server": server.name if server else "",
        "voms": f"{server.host}:{server.http}" if server and server.http and not vo.dissolved_at else "",
        "dissolved_at": utc_text(vo.dissolved_at) if vo.dissolved_at else "",
        "reason": vo.reason,
    }


def _say(listed: VoList, name: str, done: str, *, as_json: bool) -> None:
    vo = listed.get(name)
    assert vo is not None
    if as_json:
        console.print_json(facts(vo))
    else:
        console.say(done)


async def create(name: str, server: str, state: Path | None, *, as_json: bool) -> None:
    """`grid vo create`: returns when its server speaks for it. Raises Unavailable VO_NOT_SERVED."""
    async with as_operator(state) as grid:
        authority = AuthorityClient(await grid.channel("authority"))
        listed = await authority.create_vo(name, server)
        deadline = asyncio.get_running_loop().time() + SERVED_WITHIN_S
        while (vo := listed.get(name)) is None or not vo.servers[0].http:
            if asyncio.get_running_loop().time() > deadline:
                where = vo.servers[0].name if vo is not None else "its server"
                raise Unavailable(
                    "VO_NOT_SERVED",
                    f"the VO {name} exists, but {where} does not serve it yet; look at that agent with: grid status. "
                    "It serves the VO when it is back; nobody can use it before",
                    vo=name,
                )
            await asyncio.sleep(SERVED_POLL_S)
            listed = await authority.vos()
    _say(listed, name, f"the VO {name} exists; next: grid vo accept {name} --site SITE", as_json=as_json)


async def accept(name: str, sites: Sequence[str], state: Path | None, *, as_json: bool) -> None:
    """`grid vo accept`."""
    async with as_operator(state) as grid:
        listed = await AuthorityClient(await grid.channel("authority")).accept_vo(name, sites)
    _say(listed, name, f"{', '.join(sites)} let members of {name} in", as_json=as_json)


async def refuse(name: str, sites: Sequence[str], state: Path | None, *, as_json: bool) -> None:
    """`grid vo refuse`."""
    async with as_operator(state) as grid:
        listed = await AuthorityClient(await grid.channel("authority")).refuse_vo(name, sites)
    _say(listed, name, f"{', '.join(sites)} let no member of {name} in", as_json=as_json)


async def dissolve(name: str, reason: str, state: Path | None, *, dry_run: bool, as_json: bool) -> None:
    """`grid vo dissolve`."""
    async with as_operator(state) as grid:
        if dry_run:
            _print_hits(await would_end(grid, name), as_json=as_json)
            return
        listed = await AuthorityClient(await grid.channel("authority")).dissolve_vo(name, reason)
    _say(listed, name, f"the VO {name} is dissolved; its name is never used again", as_json=as_json)


async def would_end(grid: Grid, name: str) -> dict[str, Any]:
    """What a VO has: members, jobs under way, sites. What could not be asked is said."""
    vo = (await listing(grid)).get(name)
    if vo is None:
        raise NotFound("VO_UNKNOWN", f"there is no VO {name[:64]!r} in this grid; grid vo ls shows them", vo=name[:64])
    silent: list[str] = []
    members: list[str] = []
    jobs: list[dict[str, str]] = []
    try:
        members = [member.subject for member in await (await vo_client(grid, name)).list_members()]
    except GridError as error:
        silent.append(f"members of {name}: {error.sentence}")
    try:
        jobs = await jobs_under_way(grid, vo=name)
    except GridError as error:
        silent.append(f"jobs of {name}: {error.sentence}")
    return {**facts(vo), "members": members, "jobs": jobs, "unknown": silent}


def _print_hits(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        console.print_json(found)
        return
    members, jobs = found["members"], found["jobs"]
    console.say(
        f"would end {found['name']} at {', '.join(found['sites']) or 'no site'}: {len(members)} members, {len(jobs)} "
        "jobs under way; its files stay, for operators only"
    )
    print_under_way(jobs, found["unknown"])
