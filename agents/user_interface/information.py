"""`grid info`: searches of the information tree by LDAP, and what its GLUE 1.3 means."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from agents.user_interface import console, endpoints
from agents.user_interface.exits import UsageProblem
from fabric.errors import GridError, InvalidRequest, NotFound, Unavailable
from fabric.ldap.client import LdapClient, LdapError
from fabric.ldap.entry import Entry
from fabric.ldap.filter_text import FilterSyntaxError
from fabric.ldap.tree import Scope

BASE = "o=grid"
TIMEOUT_S = 10.0
WHOLE_TREE_S = 120.0
"""A server renders the whole of `o=glue` when it is first asked for it; on a busy machine that takes a while."""
_SCOPES = {"base": Scope.BASE, "one": Scope.ONE, "sub": Scope.SUBTREE}
NO_SUCH_OBJECT, REFERRAL = 32, 10
UNAVAILABLE = 52


@dataclass(frozen=True)
class ComputingElement:
    """One CE as published."""

    name: str
    site: str
    status: str
    total: int
    free: int
    running: int
    waiting: int
    vos: tuple[str, ...]
    fresh: str
    close_ses: tuple[str, ...] = ()


@dataclass(frozen=True)
class StorageElement:
    """One SE as published."""

    name: str
    site: str
    host: str
    port: int
    total_bytes: int
    used_bytes: int
    free_bytes: int
    vos: tuple[str, ...]
    fresh: str
    kind: str = ""
    """GlueSEArchitecture: `disk`."""


async def search(
    server: tuple[str, int],
    filter: str,
    attributes: Sequence[str] = (),
    *,
    base: str = BASE,
    scope: str = "sub",
    timeout_s: float = TIMEOUT_S,
) -> list[Entry]:
    """Entries from an LDAP server; from another top server, with a word of warning, where a top one does not answer.

    Raises Unavailable, NotFound, InvalidRequest, UsageProblem.
    """
    candidates = [server, *_other_tops(server)]
    while True:
        host, port = candidates.pop(0)
        try:
            async with await LdapClient.connect(host, port, timeout_s=timeout_s) as client:
                return await client.search(base, filter, scope=_SCOPES[scope], attributes=attributes)
        except FilterSyntaxError as error:
            raise UsageProblem(f"the filter {filter!r} cannot be read: {error}") from None
        except LdapError as error:
            if error.code != UNAVAILABLE or not candidates:
                raise _grid_error(error, base, f"{host}:{port}") from None
            console.warn(f"{error.sentence}; asking the top server {candidates[0][0]}:{candidates[0][1]}")


def _other_tops(server: tuple[str, int]) -> list[tuple[str, int]]:
    """The other top servers, if this is one."""
    try:
        tops = [(top.host, top.ldap) for top in endpoints.find(os.environ).all("top") if top.ldap]
    except (GridError, UsageProblem):
        return []  # a server named on the command line needs no grid
    return [top for top in tops if top != server] if server in tops else []


def _grid_error(error: LdapError, base: str, server: str) -> GridError:
    if error.code == UNAVAILABLE:
        return Unavailable(
            "LDAP_UNREACHABLE", f"{error.sentence}; is the grid up, and GRIDFABRIC_TOP_LDAP its address?", server=server
        )
    if error.code == NO_SUCH_OBJECT:
        return NotFound("NO_SUCH_ENTRY", f"{server} has no entry {base}", base=base, server=server)
    if error.code == REFERRAL:
        return NotFound("NO_SUCH_ENTRY", f"{server}: {error.sentence}", base=base, server=server)
    return InvalidRequest("LDAP_REFUSED", f"{server} refused the search: {error.sentence}", code=error.code)


def top_server() -> tuple[str, int]:
    """The top information server. Raises NotFound."""
    return endpoints.find(os.environ).one("top", "ldap")


def server_address(text: str | None) -> tuple[str, int]:
    """The server a user names, or the top one. Raises NotFound, UsageProblem."""
    return endpoints.parse_address(text, "--server") if text else top_server()


def site_of(entry: Entry) -> str:
    """The site of an entry: the first mds-vo-name of its DN that is not a level's name."""
    for part in str(entry.dn).split(","):
        name, _, value = part.partition("=")
        if name.strip().lower() == "mds-vo-name" and value.strip() not in ("local", "resource", "grid"):
            return value.strip()
    return entry.first("GlueSiteUniqueID")


def number(entry: Entry, *names: str) -> int:
    """The first of these attributes that is a number, else 0."""
    for name in names:
        text = entry.first(name)
        try:
            return int(float(text))
        except ValueError:
            continue
    return 0


def vos_of(entry: Entry, *names: str) -> tuple[str, ...]:
    """VOs out of access rules such as `VO:cms` and `/cms/production`."""
    found: dict[str, None] = {}
    for name in names:
        for rule in entry.get(name.lower()) or ():
            text = rule.removeprefix("VO:").removeprefix("VOMS:").strip("/").split("/")[0]
            if text:
                found[text] = None
    return tuple(found)


def freshness(entry: Entry) -> str:
    """How the information servers stand with who published it: current, unreachable, withdrawn, awaited."""
    return entry.first("GridFabricState") or "current"


ATTRIBUTES = ("*", "+")
"""User and operational attributes: age and provenance are among the latter."""


async def computing_elements(server: tuple[str, int]) -> list[ComputingElement]:
    """Every CE in the tree, with its close SEs."""
    entries = await search(server, "(|(objectClass=GlueCE)(objectClass=GlueCESEBind))", ATTRIBUTES)
    close: dict[str, list[str]] = {}
    for entry in entries:
        element = entry.first("GlueCESEBindCEUniqueID")
        if element:
            close.setdefault(element, []).append(entry.first("GlueCESEBindSEUniqueID"))
    found = [
        ComputingElement(
            name=entry.first("GlueCEUniqueID"),
            site=site_of(entry),
            status=entry.first("GlueCEStateStatus", "Unknown"),
            total=number(entry, "GlueCEInfoTotalCPUs", "GlueCEPolicyAssignedJobSlots", "GlueCEPolicyMaxRunningJobs"),
            free=number(entry, "GlueCEStateFreeJobSlots", "GlueCEStateFreeCPUs"),
            running=number(entry, "GlueCEStateRunningJobs"),
            waiting=number(entry, "GlueCEStateWaitingJobs"),
            vos=vos_of(entry, "GlueCEAccessControlBaseRule"),
            fresh=freshness(entry),
            close_ses=tuple(close.get(entry.first("GlueCEUniqueID"), ())),
        )
        for entry in entries
        if entry.first("GlueCEUniqueID")
    ]
    return sorted(found, key=lambda ce: (ce.site, ce.name))


async def storage_elements(server: tuple[str, int], vo: str | None = None) -> list[StorageElement]:
    """Every SE in the tree, or those of a VO; space summed over the storage areas that it may use.

    Areas that share what is free (there is less in all than their sum) have it once.
    """
    wanted = "(|(objectClass=GlueSE)(objectClass=GlueSA)(objectClass=GlueSEAccessProtocol)(objectClass=GlueService))"
    entries = await search(server, wanted, ATTRIBUTES)
    areas: dict[str, list[Entry]] = {}
    doors: dict[str, tuple[str, int]] = {}
    # An element's own protocol goes before others that it may speak.
    for entry in sorted(entries, key=lambda entry: entry.first("GlueSEAccessProtocolType") != "gridfabric"):
        for key in entry.get("gluechunkkey") or ():
            name, _, value = key.partition("=")
            if name == "GlueSEUniqueID" and (entry.first("GlueSALocalID") or entry.first("GlueSARoot")):
                areas.setdefault(value, []).append(entry)
        door = _door(entry)
        if door is not None:
            doors.setdefault(door[0], door[1])
    found = []
    for entry in entries:
        name = entry.first("GlueSEUniqueID")
        if not name or entry.first("GlueSALocalID"):
            continue
        parts = [
            area for area in areas.get(name, []) if vo is None or vo in vos_of(area, "GlueSAAccessControlBaseRule")
        ]
        if vo is not None and not parts:
            continue
        host, port = doors.get(name) or (name.rpartition(":")[0] or name, number(entry, "GlueSEPort"))
        rooms = [_area_bytes(area, "Free") for area in parts]
        is_common = sum(number(area, "GlueSATotalOnlineSize") for area in parts) > number(
            entry, "GlueSETotalOnlineSize"
        )
        free = max(rooms) if is_common else sum(rooms)
        used = sum(_area_bytes(area, "Used") for area in parts)
        total = free + used or number(entry, "GlueSETotalOnlineSize") * 10**9
        vos = tuple(dict.fromkeys(vo for area in parts for vo in vos_of(area, "GlueSAAccessControlBaseRule")))
        found.append(
            StorageElement(
                name,
                site_of(entry),
                host,
                port,
                total,
                used,
                free,
                vos,
                freshness(entry),
                entry.first("GlueSEArchitecture"),
            )
        )
    return sorted(found, key=lambda se: (se.site, se.name))


def _area_bytes(area: Entry, which: str) -> int:
    """GLUE 1.3: GlueSAStateAvailableSpace and UsedSpace are in KB, the Online sizes in GB (1e9)."""
    kilobytes = {"Free": "GlueSAStateAvailableSpace", "Used": "GlueSAStateUsedSpace"}[which]
    return number(area, kilobytes) * 1024 if area.first(kilobytes) else number(area, f"GlueSA{which}OnlineSize") * 10**9


def _door(entry: Entry) -> tuple[str, tuple[str, int]] | None:
    """(SE, (host, port)) of an entry that says where an SE's gRPC port is."""
    name, text = "", ""
    if entry.first("GlueSEAccessProtocolEndpoint"):
        text = entry.first("GlueSEAccessProtocolEndpoint")
        for key in entry.get("gluechunkkey") or ():
            if key.startswith("GlueSEUniqueID="):
                name = key.partition("=")[2]
    elif entry.first("GlueServiceType").lower() in ("srm", "storage", "gridfabric.storage"):
        name, text = entry.first("GlueServiceUniqueID"), entry.first("GlueServiceEndpoint")
    address = text.partition("://")[2].split("/")[0] or text
    host, _, port = address.rpartition(":")
    return (name, (host.strip("[]"), int(port))) if name and host and port.isdigit() else None


def slots_of(elements: Iterable[ComputingElement]) -> int:
    """What there is to run jobs in: the queues of a gatekeeper share its slots."""
    most: dict[str, int] = {}
    for ce in elements:
        gatekeeper = ce.name.partition("/")[0]
        most[gatekeeper] = max(most.get(gatekeeper, 0), ce.total)
    return sum(most.values())


async def sites_command(*, as_json: bool) -> None:
    """`grid info sites`."""
    server = top_server()
    published = await search(server, "(objectClass=GlueSite)", ATTRIBUTES)
    elements = await computing_elements(server)
    stores = await storage_elements(server)
    names = sorted({site_of(e) for e in published} | {c.site for c in elements} | {s.site for s in stores})
    states = {site_of(entry): freshness(entry) for entry in published}
    rows: list[dict[str, Any]] = []
    for name in names:
        mine = [ce for ce in elements if ce.site == name]
        space = [se for se in stores if se.site == name]
        rows.append(
            {
                "site": name,
                "ces": len(mine),
                "slots": slots_of(mine),
                "free": sum(ce.free for ce in mine),
                "running": sum(ce.running for ce in mine),
                "waiting": sum(ce.waiting for ce in mine),
                "ses": len(space),
                "free_bytes": sum(se.free_bytes for se in space),
                "information": states.get(name) or next((ce.fresh for ce in mine), "current"),
            }
        )
    _print(rows, as_json=as_json)


def ce_rows(elements: Iterable[ComputingElement]) -> list[dict[str, Any]]:
    """For JSON and tables."""
    return [
        {
            "ce": ce.name,
            "site": ce.site,
            "status": ce.status,
            "slots": ce.total,
            "free": ce.free,
            "running": ce.running,
            "waiting": ce.waiting,
            "vos": list(ce.vos),
            "close_ses": list(ce.close_ses),
            "information": ce.fresh,
        }
        for ce in elements
    ]


async def ces_command(vo: str | None, *, as_json: bool) -> None:
    """`grid info ces`."""
    found = [ce for ce in await computing_elements(top_server()) if vo is None or vo in ce.vos]
    _print(ce_rows(found), as_json=as_json, vo=vo)


def se_rows(elements: Iterable[StorageElement]) -> list[dict[str, Any]]:
    """For JSON and tables."""
    return [
        {
            "se": se.name,
            "site": se.site,
            "address": f"{se.host}:{se.port}" if se.port else "",
            "total_bytes": se.total_bytes,
            "used_bytes": se.used_bytes,
            "free_bytes": se.free_bytes,
            "vos": list(se.vos),
            "information": se.fresh,
        }
        for se in elements
    ]


async def ses_command(vo: str | None, *, as_json: bool) -> None:
    """`grid info ses`."""
    _print(se_rows(await storage_elements(top_server(), vo)), as_json=as_json, vo=vo)


def _print(rows: list[dict[str, Any]], *, as_json: bool, vo: str | None = None) -> None:
    if as_json:
        console.print_json(rows)
        return
    if not rows:
        print("nothing is published yet" if vo is None else f"nothing is published for the VO {vo}")
        return
    columns = [name.removesuffix("_bytes").replace("_", " ").upper() for name in rows[0]]
    console.print_table(columns, [[_shown(name, value) for name, value in row.items()] for row in rows])


def _shown(name: str, value: Any) -> object:
    if name.endswith("_bytes"):
        return console.bytes_text(value)
    return ", ".join(value) if isinstance(value, list) else value


async def query_command(
    filter: str, attributes: Sequence[str], *, base: str, scope: str, server: str | None, as_json: bool
) -> None:
    """`grid info query`: LDIF, or JSON."""
    entries = await search(server_address(server), filter, attributes, base=base, scope=scope)
    if as_json:
        console.print_json(
            [
                {"dn": str(entry.dn), "attributes": {k: list(v) for k, v in entry.attributes.items()}}
                for entry in entries
            ]
        )
        return
    for entry in entries:
        print(ldif_line("dn", str(entry.dn)))
        for name, values in entry.attributes.items():
            for value in values:
                print(ldif_line(name, value))
        print()


def ldif_line(name: str, value: str) -> str:
    """One attribute as RFC 2849 wants it: base64 where the value could be misread."""
    safe = value.isascii() and value.isprintable() and not value.startswith((" ", ":", "<")) and not value.endswith(" ")
    return f"{name}: {value}" if safe else f"{name}:: {base64.b64encode(value.encode()).decode()}"
