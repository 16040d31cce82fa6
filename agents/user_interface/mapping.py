"""`grid mkgridmap`: a grid-mapfile from the member lists of VO servers, as edg-mkgridmap made it."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agents.user_interface import console, endpoints
from agents.user_interface.exits import UsageProblem
from fabric.errors import Conflict, Unavailable
from fabric.ldap.client import LdapClient, LdapError
from fabric.ldap.filters import Equality
from fabric.member_lists import hold
from security.errors import SecurityError, utc_text
from security.files import read_bounded, write_atomic
from security.mapfile import GridMapFile, MapEntry
from security.names import DistinguishedName

ASK_TIMEOUT_S = 20.0
MAX_MEMBERS = 200_000
MAX_KEPT_BYTES = 128 * 1024 * 1024

_URL = re.compile(
    r"(?:ldap://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})/(?:o=)?(?P<vo>[A-Za-z0-9_.-]{1,100})"
    r"(?:=(?P<account>\.?[a-z_][a-z0-9_.-]{0,63}))?\Z"
)


@dataclass(frozen=True)
class Source:
    """One member list: where it is, and to what its people are mapped."""

    host: str
    port: int
    vo: str
    account: str

    @property
    def url(self) -> str:
        """How it is named to people and in the file of last good lists."""
        return f"ldap://{self.host}:{self.port}/o={self.vo}"


@dataclass(frozen=True)
class MemberList:
    """What a source said, and when; `problem` if that was not now."""

    source: Source
    subjects: tuple[str, ...]
    at: datetime
    problem: str = ""


def parse_source(text: str) -> Source:
    """`ldap://host:port/o=cms`, `host:port/cms`, with `=ACCOUNT` behind where it is not `.cms`. Raises UsageProblem."""
    found = _URL.match(text)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise UsageProblem(f"--from {text[:100]!r} is not HOST:PORT/VO or HOST:PORT/VO=ACCOUNT")
    return Source(found["host"].strip("[]"), int(found["port"]), found["vo"], found["account"] or f".{found['vo']}")


def known_sources(environ: Mapping[str, str], state: Path | None) -> tuple[Source, ...]:
    """The member lists of the grid that the environment names."""
    services = endpoints.find(environ, state)
    servers = [server for server in services.all("vo") if server.ldap]
    found: list[Source] = []
    for vo in services.vos:
        named = [server for server in servers if server.name in (vo, f"vo.{vo}")] or servers
        found += [Source(server.host, server.ldap, vo, f".{vo}") for server in named]
    if not found:
        raise UsageProblem("no member list is known; name them with --from HOST:PORT/VO")
    return tuple(found)


async def ask(source: Source) -> tuple[str, ...]:
    """The members as a server names them now. Raises LdapError, TimeoutError."""
    async with asyncio.timeout(ASK_TIMEOUT_S):
        async with await LdapClient.connect(source.host, source.port, timeout_s=ASK_TIMEOUT_S) as client:
            found = await client.search(
                f"o={source.vo}", Equality("objectClass", "gridMember"), attributes=("subject",)
            )
    if len(found) > MAX_MEMBERS:
        raise LdapError(4, f"{source.url} has more than {MAX_MEMBERS} members")
    return tuple(dict.fromkeys(entry.first("subject") for entry in found))


async def collect(sources: Sequence[Source], kept: Mapping[str, MemberList], now: datetime) -> list[MemberList]:
    """Each list as it is now, else the last good one with why. Raises Unavailable for one never heard of."""

    async def one(source: Source) -> MemberList:
        try:
            return MemberList(source, await ask(source), now)
        except (LdapError, TimeoutError, OSError) as error:
            last = kept.get(source.url)
            if last is None:
                raise Unavailable(
                    "MEMBER_LIST_MISSING",
                    f"the member list {source.url} cannot be read ({error}) and there is no earlier one; nothing was "
                    "written",
                    url=source.url,
                ) from None
            return MemberList(source, last.subjects, last.at, str(error) or "no answer in time")

    return list(await asyncio.gather(*(one(source) for source in sources)))


def merge(lists: Sequence[MemberList]) -> tuple[tuple[MapEntry, ...], list[str]]:
    """One line for each person, accounts in the order of the lists; and sentences for names that cannot be mapped."""
    accounts: dict[DistinguishedName, list[str]] = {}
    problems: list[str] = []
    for found in lists:
        for text in found.subjects:
            try:
                subject = DistinguishedName.parse(text)
                GridMapFile((MapEntry(subject, (found.source.account,)),)).emit()
            except SecurityError as error:
                problems.append(f"{found.source.url}: {error.sentence}")
                continue
            mine = accounts.setdefault(subject, [])
            if found.source.account not in mine:
                mine.append(found.source.account)
    return tuple(MapEntry(subject, tuple(mine)) for subject, mine in accounts.items()), problems


def read_kept(path: Path) -> dict[str, MemberList]:
    """The last good lists; none if the file is missing or damaged."""
    try:
        raw = json.loads(read_bounded(path, MAX_KEPT_BYTES))
        found: dict[str, MemberList] = {}
        for url, item in raw.items():
            source = parse_source(str(url))
            at = datetime.fromtimestamp(float(item["at"]), UTC)
            found[source.url] = MemberList(source, tuple(map(str, item["subjects"])), at)
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageProblem):
        return {}


def write_kept(path: Path, lists: Sequence[MemberList]) -> None:
    """Keep what was heard, with its age. Raises OSError."""
    data = {found.source.url: {"at": found.at.timestamp(), "subjects": found.subjects} for found in lists}
    write_atomic(path, json.dumps(data).encode(), 0o644)


async def make(
    sources: Sequence[Source], out: Path, *, share: float, least: int, confirm: str, now: datetime
) -> dict[str, Any]:
    """Write the map file, unless too many would lose access. Raises Conflict MAP_SHRUNK, Unavailable, OSError."""
    kept_path = out.with_name(f"{out.name}.lists.json")
    kept = read_kept(kept_path)
    lists = await collect(sources, kept, now)
    entries, problems = merge(lists)
    try:
        before = [entry.subject for entry in GridMapFile.load(out).entries] if out.exists() else []
    except SecurityError:
        before = []
    after = [entry.subject for entry in entries]
    held = hold(before, after, share=share, least=least)
    if held is not None and held.digest != confirm:
        raise Conflict(
            "MAP_SHRUNK",
            f"{out} would shrink from {held.before} to {held.after} people and was not written; {held.names} would "
            f"lose access; if that is right: --confirm {held.digest}",
            digest=held.digest,
            lost=len(held.lost),
            names="; ".join(str(name) for name in held.lost[:50]),
        )
    GridMapFile(entries).write(out)
    write_kept(kept_path, lists)
    gained = set(after) - set(before)
    return {
        "file": str(out),
        "people": len(entries),
        "gained": len(gained),
        "lost": sorted(str(name) for name in set(before) - set(after)),
        "problems": problems,
        "lists": [
            {
                "url": found.source.url,
                "members": len(found.subjects),
                "at": utc_text(found.at),
                "age_s": int((now - found.at).total_seconds()),
                "problem": found.problem,
            }
            for found in lists
        ],
    }


async def make_command(
    texts: Sequence[str],
    out: Path,
    share: float,
    least: int,
    confirm: str,
    state: Path | None,
    *,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid mkgridmap`."""
    sources = tuple(parse_source(text) for text in texts) or known_sources(environ, state)
    facts = await make(sources, out, share=share, least=least, confirm=confirm, now=datetime.now(UTC))
    for found in facts["lists"]:
        if found["problem"]:
            age = console.hours_text(found["age_s"])
            console.warn(f"{found['url']} does not answer ({found['problem']}); its list of {age} ago is used")
    for problem in facts["problems"]:
        console.warn(problem)
    if as_json:
        console.print_json(facts)
        return
    print(f"{facts['file']}: {facts['people']} people, {facts['gained']} new, {len(facts['lost'])} gone")
    for name in facts["lost"]:
        print(f"  gone: {name}")
