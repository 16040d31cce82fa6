"""What `grid ban` does, in the name of the grid's operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gridfabric.authority.v1 import bans_pb2 as pb

from agents.authority.client import AuthorityClient
from agents.user_interface import console
from agents.user_interface.connection import Grid, as_operator
from agents.user_interface.exits import UsageProblem
from agents.user_interface.jobs import jobs_under_way, print_under_way
from agents.user_interface.vos import vo_client
from fabric.errors import GridError, NotFound
from security.bans import Ban, BanKind, BanList
from security.errors import SecurityError
from security.names import DistinguishedName

COLUMNS = ("id", "kind", "value", "sites", "until", "reason", "author")


def parse(what: str, *, until: datetime | None = None, reason: str = "", sites: Iterable[str] = ()) -> Ban:
    """A ban as it is written on the command line. Raises UsageProblem."""
    try:
        read = Ban.parse(what)
        if read.ban_id or read.until or read.author or read.reason or read.sites:
            raise ValueError("give the end, the reason and the sites as options")
        return Ban.of(read.kind, read.value, until=until, reason=reason, sites=sites)
    except (ValueError, SecurityError) as error:
        raise UsageProblem(f"this cannot be banned: {error}; see grid ban add --help") from None


async def add(
    what: str, reason: str, duration: str | None, sites: list[str], state: Path | None, *, dry_run: bool, as_json: bool
) -> None:
    """`grid ban add`."""
    until = None if duration is None else datetime.now(UTC) + timedelta(seconds=console.parse_duration(duration))
    ban = parse(what, until=until, reason=reason, sites=sites)
    async with as_operator(state) as grid:
        if dry_run:
            print_hits(await would_hit(grid, ban), as_json=as_json)
            return
        authority = AuthorityClient(await grid.channel("authority"))
        made = await authority.ban(ban.kind, ban.value, reason=reason, until=until, sites=sites)
    if as_json:
        console.print_json(row(made))
    else:
        console.say(f"banned: {made.kind} {made.value}; undo with: grid ban lift {made.id}")


async def show(state: Path | None, *, as_json: bool) -> None:
    """`grid ban ls`."""
    async with as_operator(state) as grid:
        found = [row(ban) for ban in await AuthorityClient(await grid.channel("authority")).bans()]
    if as_json:
        console.print_json(found)
    elif not found:
        console.say("nobody is banned")
    else:
        console.print_table(COLUMNS, [[_text(ban[column]) for column in COLUMNS] for ban in found])


async def lift(ban_id: str, state: Path | None, *, as_json: bool) -> None:
    """`grid ban lift`. Raises NotFound."""
    async with as_operator(state) as grid:
        if not await AuthorityClient(await grid.channel("authority")).lift(ban_id):
            raise NotFound("BAN_UNKNOWN", f"there is no ban {ban_id[:80]!r}; grid ban ls shows those in force")
    if as_json:
        console.print_json({"id": ban_id, "lifted": True})
    else:
        console.say(f"lifted: {ban_id}")


def row(ban: pb.Ban) -> dict[str, Any]:
    """One ban for people and programs."""
    return {
        "id": ban.id,
        "kind": ban.kind,
        "value": ban.value,
        "sites": list(ban.sites),
        "until": console.time_text(console.from_us(ban.until_us)),
        "reason": ban.reason,
        "author": ban.author,
    }


def _text(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


async def would_hit(grid: Grid, ban: Ban, meant: Callable[[str], bool] | None = None) -> dict[str, Any]:
    """Certificates in force, members and jobs under way that the ban would hit, and members of the names `meant`. What
    nobody can know is said: who calls from a network, and the certificates of other authorities."""
    bans = BanList((ban,))
    authority = AuthorityClient(await grid.channel("authority"))
    now = datetime.now(UTC)
    issued = [one for one in await authority.list_issued() if not one.revoked_at_us and one.not_after_us > _us(now)]
    people: dict[str, str] = {}
    certificates = []
    for one in issued:
        issuer = DistinguishedName.parse(one.issuer)
        if bans.names(DistinguishedName.parse(one.subject), int(one.serial, 16), issuer):
            certificates.append({"subject": one.subject, "serial": one.serial})
            people.setdefault(one.subject, "")
    silent: list[str] = []
    for vo in (await authority.vos()).accepted_at(""):
        try:
            client = await vo_client(grid, vo)
            members = await client.list_members()
        except GridError as error:
            silent.append(f"VO server of {vo}: {error.sentence}")
            continue
        for member in members:
            hit = (
                bans.names(DistinguishedName.parse(member.subject))
                or (meant is not None and meant(member.subject))
                or (ban.kind is BanKind.VO and ban.value == vo)
                or (ban.kind is BanKind.FQAN and bans.groups([f"/{vo}", *member.groups]))
            )
            if hit:
                people[member.subject] = vo
    jobs: list[dict[str, str]] = []
    for subject in people:
        jobs += await jobs_under_way(grid, owner=subject, limit=1000)
    return {
        "ban": ban.describe(),
        "people": [{"subject": subject, "vo": vo} for subject, vo in sorted(people.items())],
        "certificates": certificates,
        "jobs": jobs,
        "unknown": silent,
    }


def print_hits(found: dict[str, Any], *, as_json: bool) -> None:
    """For people and programs."""
    if as_json:
        console.print_json(found)
        return
    people, jobs = found["people"], found["jobs"]
    console.say(
        f"would hit {len(people)} people, {len(found['certificates'])} certificates, {len(jobs)} jobs under way"
    )
    if people:
        console.print_table(("subject", "vo"), [(person["subject"], person["vo"]) for person in people])
    print_under_way(jobs, found["unknown"])


def _us(moment: datetime) -> int:
    return int(moment.timestamp() * 1e6)
