"""The tree as a table of sites and regions. Pure: entries in, values out."""

from __future__ import annotations

import enum
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from agents.user_interface import information
from fabric.information_tree import from_ldap_time
from fabric.ldap.entry import Entry

TB = 10**12
_TOTAL = re.compile(r"([a-z_]+) +([0-9]+(?:\.[0-9]+)?)\Z")


class Status(enum.Enum):
    """How a site is, best first; the words of EGEE's Service Availability Monitoring."""

    OK = "OK"
    """Nothing to say."""
    INFO = "INFO"
    """Useful to know."""
    NOTE = "NOTE"
    """Important to know."""
    WARN = "WARN"
    """May fail soon, or says what cannot be."""
    MAINT = "MAINT"
    """Said that it stops or takes no work."""
    NA = "NA"
    """Never heard."""
    ERROR = "ERROR"
    """Failed."""

    @property
    def rank(self) -> int:
        """0 for the best."""
        return list(Status).index(self)


@dataclass(frozen=True)
class Finding:
    """One thing to say of a site."""

    status: Status
    sentence: str


@dataclass
class Site:
    """One site as the top server shows it."""

    name: str
    entries: list[Entry] = field(default_factory=list)
    state: str = "awaited"
    """Of its information server: awaited, current, unreachable, withdrawn."""
    since: str = ""
    last_seen: datetime | None = None
    reason: str = ""
    """Why it is not current: who does not hear whom."""
    location: str = ""
    latitude: float | None = None
    longitude: float | None = None
    declared: Mapping[str, str] = field(default_factory=dict)
    """`NAME=value` of GlueSiteOtherInfo."""
    findings: list[Finding] = field(default_factory=list)
    response_s: float | None = None
    """How long its own server took for all of its entries; None: not asked, or no answer."""

    @property
    def changed_at(self) -> datetime | None:
        """When the youngest of its entries was made; None if none says so."""
        times = (time_of(entry, "GridFabricProducedAt") for entry in self.entries)
        return max((time for time in times if time is not None), default=None)

    @property
    def status(self) -> Status:
        """The worst of its findings."""
        return max((finding.status for finding in self.findings), key=lambda status: status.rank, default=Status.OK)

    @property
    def region(self) -> str:
        """EGEE_ROC, or EGI's name for the same."""
        return self.declared.get("EGEE_ROC") or self.declared.get("EGI_NGI") or ""

    @property
    def country(self) -> str:
        """What follows the last comma of its location; an international organisation has none."""
        return self.location.rpartition(",")[2].strip() if "," in self.location else ""

    def of_class(self, name: str) -> list[Entry]:
        """Its entries of an object class."""
        return [entry for entry in self.entries if name in entry.attributes.get("objectClass", ())]

    def sum(self, kind: str, attribute: str) -> int:
        """An attribute over all its entries of a class."""
        return sum(information.number(entry, attribute) for entry in self.of_class(kind))

    @property
    def cpus(self) -> int:
        """Job slots of its clusters."""
        return self.sum("GlueSubCluster", "GlueSubClusterLogicalCPUs")

    @property
    def processors(self) -> int:
        """Processors behind them; fewer where slots are light."""
        return self.sum("GlueSubCluster", "GlueSubClusterPhysicalCPUs")

    @property
    def promised_cpus(self) -> int | None:
        """What it promised in the description of work."""
        text = self.declared.get("EGEE_CPU_DOW", "")
        return int(text) if text.isdecimal() else None

    @property
    def disk_tb(self) -> float | None:
        """What it declares, in units of 10^12 bytes."""
        text = self.declared.get("EGEE_DISK_TB", "").rstrip("*")
        try:
            return float(text)
        except ValueError:
            return None

    @property
    def disk_is_estimated(self) -> bool:
        """True if it says so itself."""
        return self.declared.get("EGEE_DISK_TB", "").endswith("*")

    @property
    def measured_tb(self) -> float:
        """What its storage elements measure."""
        return self.sum("GlueSE", "GlueSETotalOnlineSize") / 1000


@dataclass(frozen=True)
class Row:
    """One region, or the whole grid."""

    region: str
    countries: int
    sites: int
    cpus: int
    processors: int
    free: int
    running: int
    waiting: int
    promised_cpus: int | None
    disk_tb: float | None
    disk_is_estimated: bool
    measured_tb: float
    states: Mapping[str, int]
    """Sites by status."""


def sites_of(entries: Iterable[Entry]) -> dict[str, Site]:
    """The sites of a tree, by name, as the top server lists them: also those that publish nothing."""
    found: dict[str, Site] = {}
    for entry in entries:
        name = information.site_of(entry)
        if not name:
            continue
        site = found.setdefault(name, Site(name))
        if entry.first("GridFabricSiteState"):
            site.state = entry.first("GridFabricSiteState")
            site.since = entry.first("GridFabricSiteSince")
            site.last_seen = time_of(entry, "GridFabricSiteLastSeen")
            site.reason = entry.first("GridFabricSiteReason")
            continue
        site.entries.append(entry)
        if "GlueSite" in entry.attributes.get("objectClass", ()):
            site.location = entry.first("GlueSiteLocation")
            site.latitude = _real(entry.first("GlueSiteLatitude"))
            site.longitude = _real(entry.first("GlueSiteLongitude"))
            texts = entry.get("gluesiteotherinfo") or ()
            site.declared = dict(text.split("=", 1) for text in texts if "=" in text)
    return dict(sorted(found.items()))


def time_of(entry: Entry, name: str) -> datetime | None:
    """A time of an entry; None if it is not there or is none."""
    try:
        return from_ldap_time(entry.first(name))
    except ValueError:
        return None


def _real(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def row_of(region: str, sites: Sequence[Site]) -> Row:
    """These sites added up. A country counts once."""
    states: defaultdict[str, int] = defaultdict(int)
    for site in sites:
        states[site.status.value] += 1
    promised = [site.promised_cpus for site in sites if site.promised_cpus is not None]
    disks = [site.disk_tb for site in sites if site.disk_tb is not None]
    return Row(
        region=region,
        countries=len({site.country for site in sites} - {""}),
        sites=len(sites),
        cpus=sum(site.cpus for site in sites),
        processors=sum(site.processors for site in sites),
        free=sum(site.sum("GlueCE", "GlueCEStateFreeJobSlots") for site in sites),
        running=sum(site.sum("GlueCE", "GlueCEStateRunningJobs") for site in sites),
        waiting=sum(site.sum("GlueCE", "GlueCEStateWaitingJobs") for site in sites),
        promised_cpus=sum(promised) if promised else None,
        disk_tb=round(sum(disks), 1) if disks else None,
        disk_is_estimated=any(site.disk_is_estimated for site in sites),
        measured_tb=round(sum(site.measured_tb for site in sites), 3),
        states=dict(states),
    )


def regions(sites: Iterable[Site]) -> list[Row]:
    """A row for each region, largest first as the slide has it, sites without one last."""
    by_region: defaultdict[str, list[Site]] = defaultdict(list)
    for site in sites:
        by_region[site.region].append(site)
    rows = [row_of(region, members) for region, members in by_region.items()]
    return sorted(rows, key=lambda row: (not row.region, -row.cpus, row.region))


def wrong_totals(sites: Iterable[Site], rows: Sequence[Row], total: Row) -> list[str]:
    """What sites state of the whole grid (`EGEE_TOTALS=cpu 28161, cpu_dow 20265`) and the rows do not add up to."""
    derived: Mapping[str, float] = {
        "countries": total.countries,
        "sites": total.sites,
        "cpu": total.cpus,
        "cpu_dow": total.promised_cpus or 0,
        "disk_tb": total.disk_tb or 0,
    }
    found: list[str] = []
    for site in sites:
        for part in filter(None, (text.strip() for text in site.declared.get("EGEE_TOTALS", "").split(","))):
            match = _TOTAL.match(part)
            if match is None or match[1] not in derived:
                found.append(f"{site.name} states {part[:60]!r}, which is no total; known: {', '.join(derived)}")
                continue
            name, stated = match[1], float(match[2])
            if stated != derived[name]:
                found.append(
                    f"{site.name} states a total {name} of {stated:g}, and the {len(rows)} regions add up to "
                    f"{derived[name]:g}, {abs(stated - derived[name]):g} {'less' if stated > derived[name] else 'more'}"
                )
    return found
