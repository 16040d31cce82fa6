"""What the tree says, held against what answers: every site's own server, and a connection to every service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from agents.user_interface.gstat.model import Finding, Site, Status
from agents.user_interface.information import number
from fabric.ldap.client import LdapClient, LdapError
from fabric.ldap.entry import Entry
from security.errors import os_error_text

AT_ONCE = 16
"""Sites that are asked at a time."""
TIMEOUT_S = 10.0
"""For one answer."""
SLOW_S = 5.0
"""An answer that takes longer is worth a word."""
MAX_SERVICES = 64
"""Of one site: who publishes a thousand must not make every user knock at a thousand doors."""

_MEASURED = (
    "GlueCEInfoTotalCPUs", "GlueCEStateFreeJobSlots", "GlueCEStateRunningJobs", "GlueCEStateWaitingJobs",
    "GlueSETotalOnlineSize",
)  # fmt: skip


async def probe(sites: Iterable[Site]) -> None:
    """Ask every site that is heard; findings and response times are added to the sites. Raises nothing."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(site: Site) -> None:
        async with limit:
            await _server(site)
            await _doors(site)

    await asyncio.gather(*(one(site) for site in sites if site.state != "awaited"))


async def _server(site: Site) -> None:
    address = site_server(site)
    if address is None:
        site.findings.append(Finding(Status.WARN, "the address of its information server is not published"))
        return
    began = time.monotonic()
    try:
        async with await LdapClient.connect(*address, timeout_s=TIMEOUT_S) as client:
            own = await client.search(f"mds-vo-name={site.name},mds-vo-name=local,o=grid", "(objectClass=*)")
    except LdapError as error:
        site.findings.append(Finding(Status.ERROR, f"its information server does not answer: {error.sentence}"))
        return
    site.response_s = time.monotonic() - began
    if site.response_s > SLOW_S:
        site.findings.append(Finding(Status.NOTE, f"its information server took {site.response_s:.1f} s to answer"))
    site.findings += compare(site.entries, own)


def site_server(site: Site) -> tuple[str, int] | None:
    """Where the site's own LDAP server is, as its GlueService says."""
    for entry in site.of_class("GlueService"):
        if entry.first("GlueServiceType") == "bdii_site":
            return address_of(entry.first("GlueServiceEndpoint"))
    return None


def address_of(url: str) -> tuple[str, int] | None:
    """Host and port of a URL that names both."""
    try:
        parts = urlsplit(url)
        return (parts.hostname, parts.port) if parts.hostname and parts.port else None
    except ValueError:
        return None


def compare(top: Iterable[Entry], own: Iterable[Entry]) -> list[Finding]:
    """What a site's server and the top server say differently. Values that move may differ for a moment."""
    above = {entry.dn.key: entry for entry in top}
    below = {entry.dn.key: entry for entry in own if "GridFabricSite" not in entry.attributes.get("objectClass", ())}
    found: list[Finding] = []
    if missing := below.keys() - above.keys():
        found.append(Finding(Status.WARN, f"the top server lacks {len(missing)} of its {len(below)} entries"))
    if extra := above.keys() - below.keys():
        found.append(Finding(Status.WARN, f"the top server shows {len(extra)} entries that its own does not"))
    moved = [
        f"{name} {number(above[key], name)} at the top and {number(below[key], name)} at the site"
        for key in above.keys() & below.keys()
        for name in _MEASURED
        if number(above[key], name) != number(below[key], name)
    ]
    return [*found, *(Finding(Status.NOTE, text) for text in moved[:5])]


async def _doors(site: Site) -> None:
    said: dict[tuple[str, int], str] = {}
    for entry in site.of_class("GlueService"):
        address = address_of(entry.first("GlueServiceEndpoint"))
        if address is not None and entry.first("GlueServiceStatus") == "OK":
            said.setdefault(address, entry.first("GlueServiceUniqueID"))
    if len(said) > MAX_SERVICES:
        site.findings.append(Finding(Status.NOTE, f"it has {len(said)} services; {MAX_SERVICES} were looked at"))
    site.findings += await knock(list(said.items())[:MAX_SERVICES])


async def knock(doors: Sequence[tuple[tuple[str, int], str]]) -> list[Finding]:
    """Services that are published as OK, and where nobody takes a connection. All at a time."""
    return [finding for finding in await asyncio.gather(*(_knock(*door) for door in doors)) if finding is not None]


async def _knock(address: tuple[str, int], name: str) -> Finding | None:
    where = f"{address[0]}:{address[1]}"
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_connection(*address)
        writer.close()
    except TimeoutError:
        return Finding(Status.ERROR, f"{name} is published as OK, and {where} does not answer")
    except OSError as error:
        return Finding(Status.ERROR, f"{name} is published as OK, and {where} takes no calls: {os_error_text(error)}")
    return None
