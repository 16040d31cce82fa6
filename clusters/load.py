"""Reading a grid description. Anything wrong is one `InvalidRequest` DESCRIPTION_INVALID: file, key, cure."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from clusters.model import (
    KINDS,
    LAB_HOST,
    MODES,
    AgentDescription,
    AuthorityDescription,
    GridDescription,
    HostDescription,
    SiteDescription,
    VoDescription,
)
from clusters.units import parse_duration
from fabric.errors import InvalidRequest, NotFound
from security.errors import os_error_text

PRESETS = Path(__file__).parent
"""Descriptions that come with the package."""
MAX_DESCRIPTION_BYTES = 1 << 20
RESERVED_UNITS = ("Users", "Operators")
MAX_COUNT = 1000
"""Agents made by one `count`, sites made by one range of names, agents in one process."""

_GRID_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,38}[a-z0-9])?\Z")
_SITE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,38}[A-Za-z0-9])?\Z")
_AGENT_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?\Z")
_SITE_RANGE = re.compile(r"(?P<before>[^{}]*)\{(?P<first>[0-9]{1,4})\.\.(?P<last>[0-9]{1,4})\}(?P<after>[^{}]*)\Z")
_HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?\Z")

_AGENT_KEYS = {"name", "host", "ports", "count", "fabric"}
"""Of a short form; every other key is an option of the agent."""
_SHORT_FORMS = tuple(kind for kind in KINDS if kind not in ("authority", "vo"))
_LAB = HostDescription(LAB_HOST, "", "127.0.0.1", "localhost")


def presets() -> tuple[str, ...]:
    """Names of the descriptions that come with the package."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.toml")))


def find(reference: str | Path, folder: Path | None = None) -> Path:
    """The file meant by a path or by the name of a preset (`edg-2003`, `clusters/edg-2003.toml`).

    A file that exists wins. Raises NotFound DESCRIPTION_NOT_FOUND.
    """
    text = str(reference)
    path = (folder or Path()) / text
    if path.is_file():
        return path
    stem = Path(text).stem if text.endswith(".toml") else text
    named_preset = stem == text or Path(text).parts[:-1] in ((), ("clusters",))
    preset = PRESETS / f"{stem}.toml"
    if named_preset and "/" not in stem and preset.is_file():
        return preset
    near = difflib.get_close_matches(stem, presets(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"give a path, or one of: {', '.join(presets())}"
    raise NotFound("DESCRIPTION_NOT_FOUND", f"there is no grid description {text!r}; {hint}", file=text)


def load(reference: str | Path, folder: Path | None = None) -> GridDescription:
    """Read and check a description, by path or preset name. Raises InvalidRequest or NotFound; opens no port."""
    path = find(reference, folder)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_DESCRIPTION_BYTES + 1)
    except OSError as error:
        raise InvalidRequest("DESCRIPTION_INVALID", f"{path} cannot be read ({os_error_text(error)})") from error
    if len(data) > MAX_DESCRIPTION_BYTES:
        raise InvalidRequest("DESCRIPTION_INVALID", f"{path} is larger than {MAX_DESCRIPTION_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest("DESCRIPTION_INVALID", f"{path} is not UTF-8 text ({error})") from error
    return loads(text, path)


def loads(text: str, source: Path = Path("description")) -> GridDescription:
    """As `load`, from text."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest("DESCRIPTION_INVALID", f"{source}: not TOML: {error}", file=str(source)) from error
    return _Reader(source).grid(raw, text)


@dataclass(frozen=True)
class _Table:
    """One table of the file, read key by key; a key that nobody read is unknown."""

    reader: _Reader
    where: str
    raw: Mapping[str, Any]

    def known(self, keys: Iterable[str]) -> None:
        keys = set(keys)
        for key in self.raw:
            if key not in keys:
                near = difflib.get_close_matches(key, sorted(keys), n=1, cutoff=0.6)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(keys))}"
                raise self.wrong(key, f"is not known; {hint}")

    def text(self, key: str, default: str | None = None, form: re.Pattern[str] | None = None) -> str:
        value = self.raw.get(key, default)
        if value is None:
            raise self.wrong(key, f'is missing; add {key} = "..."')
        if not isinstance(value, str):
            raise self.wrong(key, f"must be a text in quotes, not {value!r}")
        if form is not None and not form.match(value):
            raise self.wrong(key, f"has characters that are not allowed: {value!r}; use letters, digits, '-' and '.'")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(key, f"must be a number, not {value!r}")
        return float(value)

    def count(self, key: str) -> int:
        value = self.raw.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
            raise self.wrong(key, f"must be a whole number from 1 to {MAX_COUNT}, not {value!r}")
        return value

    def duration(self, key: str, default: str) -> float:
        value = self.raw.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, f'needs a unit; write a text such as {key} = "12h"')
        try:
            return parse_duration(value)
        except ValueError as error:
            raise self.wrong(key, str(error)) from None

    def table(self, key: str) -> _Table:
        value = self.raw.get(key, {})
        if not isinstance(value, Mapping):
            raise self.wrong(key, f"must be a table, not {value!r}")
        return _Table(self.reader, f"{self.where}{key}.", value)

    def tables(self, key: str, single: bool = False) -> list[_Table]:
        value = self.raw.get(key, [])
        if single and isinstance(value, Mapping):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise self.wrong(key, f"must be {'a table or ' if single else ''}a list of tables ([[{key}]])")
        return [
            _Table(self.reader, f"{self.where}{key}.{item.get('name') or item.get('kind') or index + 1}.", item)
            for index, item in enumerate(value)
        ]

    def wrong(self, key: str, problem: str) -> InvalidRequest:
        return self.reader.wrong(f"{self.where}{key}", problem)


def _with_batch_worker(agents: list[AgentDescription]) -> list[AgentDescription]:
    """A gatekeeper with a batch system of its own host needs one worker there, which the description need not name; a
    worker that is named follows the gatekeeper's choice."""
    gatekeeper = next((agent for agent in agents if agent.kind == "gatekeeper"), None)
    batch = gatekeeper.options.get("batch", "fabric") if gatekeeper is not None else "fabric"
    if gatekeeper is None or batch not in ("fork", "slurm"):
        return agents
    queues = gatekeeper.options.get("queues")
    named = [queue for queue in queues if isinstance(queue, Mapping)] if isinstance(queues, list) else []
    partitions = {queue.get("name"): queue["partition"] for queue in named if queue.get("partition")}
    defaults = {"batch": batch, "partitions": partitions} if partitions else {"batch": batch}
    if not any(agent.kind == "worker" for agent in agents):
        agents = [*agents, AgentDescription("worker", f"worker.{gatekeeper.site}", gatekeeper.site, gatekeeper.host)]
    return [
        replace(agent, options={**defaults, **agent.options}) if agent.kind == "worker" else agent for agent in agents
    ]


class _Reader:
    def __init__(self, source: Path) -> None:
        self.source = source

    def wrong(self, key: str, problem: str) -> InvalidRequest:
        return InvalidRequest("DESCRIPTION_INVALID", f"{self.source}: {key} {problem}", file=str(self.source), key=key)

    def grid(self, raw: Mapping[str, Any], text: str) -> GridDescription:
        top = _Table(self, "", raw)
        top.known({"grid", "authority", "vo", "site"})
        about = top.table("grid")
        about.known({"name", "mode", "organisation", "pack"})
        name = about.text("name", form=_GRID_NAME)
        mode = about.text("mode", "lab")
        if mode not in MODES:
            raise about.wrong("mode", f"must be one of {', '.join(MODES)}, not {mode!r}")
        organisation = self._organisation(about)
        site_tables = top.tables("site")
        if not site_tables:
            raise top.wrong("site", "is missing; add at least one [[site]]")
        sites = [self._site(one, mode) for table in site_tables for one in self._equal_sites(table)]
        self._unique("site", [site.name for site in sites])
        self._unique("host", [host.name for site in sites for host in site.hosts if mode != "lab"])
        authority, authority_agent = self._authority(top.table("authority"), organisation, sites)
        vos, vo_agents = self._vos(top.tables("vo"), sites)
        extra = [authority_agent, *vo_agents]
        complete = tuple(
            SiteDescription(
                site.name, site.location, site.latitude, site.longitude, site.web, site.contact, site.hosts,
                (*(agent for agent in extra if agent.site == site.name), *site.agents),
            )
            for site in sites
        )  # fmt: skip
        pack = about.count("pack")
        grid = GridDescription(name, mode, organisation, authority, vos, complete, self.source, pack, text)
        self._check(grid)
        return grid

    def _organisation(self, about: _Table) -> str:
        organisation = about.text("organisation", "/O=Grid")
        if not re.fullmatch(r"(?:/(?:C|O|OU|DC|ST|L)=[^/=]+)+", organisation):
            raise about.wrong(
                "organisation", f"must be the start of a DN such as /C=CH/O=Physics, not {organisation!r}"
            )
        return organisation

    def _equal_sites(self, table: _Table) -> list[_Table]:
        """`name = "S{001..192}"` stands for 192 equal sites, as the shell expands it."""
        written = table.raw.get("name")
        found = _SITE_RANGE.match(written) if isinstance(written, str) else None
        if found is None:
            return [table]
        first, last = int(found["first"]), int(found["last"])
        if not 0 <= last - first < MAX_COUNT:
            raise table.wrong("name", f"must count up, to {MAX_COUNT} sites at most, not {written!r}")
        width = len(found["first"]) if found["first"].startswith("0") else 0
        names = [f"{found['before']}{number:0{width}}{found['after']}" for number in range(first, last + 1)]
        return [_Table(self, f"site.{name}.", {**table.raw, "name": name}) for name in names]

    def _site(self, table: _Table, mode: str) -> SiteDescription:
        table.known({"name", "location", "latitude", "longitude", "web", "contact", "host", "agent", *_SHORT_FORMS})
        name = table.text("name", form=_SITE_NAME)
        if name in RESERVED_UNITS:
            raise table.wrong("name", f"cannot be {name}: that is the name of an organisational unit of people")
        hosts = [self._host(host, name) for host in table.tables("host")]
        if mode == "lab":
            hosts = [HostDescription(LAB_HOST, name, _LAB.address, _LAB.advertise)]
        elif not hosts:
            raise table.wrong(
                "host", f"is missing; site {name} needs a [[site.host]] with name and address in hosts mode"
            )
        return SiteDescription(
            name,
            table.text("location", ""),
            table.number("latitude", 0.0),
            table.number("longitude", 0.0),
            table.text("web", ""),
            table.text("contact", ""),
            tuple(hosts),
            tuple(_with_batch_worker(list(self._agents(table, name, tuple(hosts), mode)))),
        )

    def _host(self, table: _Table, site: str) -> HostDescription:
        table.known({"name", "address", "advertise"})
        name = table.text("name", form=_HOST_NAME)
        address = table.text("address")
        try:
            anywhere = ip_address(address).is_unspecified
        except ValueError:
            raise table.wrong("address", f"must be an IP address of the host, not {address!r}") from None
        advertise = table.text("advertise", "" if anywhere else address)
        if not advertise:
            raise table.wrong(
                "advertise", f"is missing; {address} is every address, say by which name others reach {name}"
            )
        return HostDescription(name, site, address, advertise)

    def _agents(
        self, table: _Table, site: str, hosts: tuple[HostDescription, ...], mode: str
    ) -> Iterable[AgentDescription]:
        seen: dict[str, int] = {}
        for kind in _SHORT_FORMS:
            if kind not in table.raw:
                continue
            for entry in table.tables(kind, single=True):
                options = {key: value for key, value in entry.raw.items() if key not in _AGENT_KEYS}
                yield from self._agent(entry, kind, options, site, hosts, mode, seen)
        for entry in table.tables("agent"):
            entry.known(_AGENT_KEYS | {"kind", "options"})
            kind = entry.text("kind")
            if kind not in _SHORT_FORMS:
                near = difflib.get_close_matches(kind, _SHORT_FORMS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known kinds: {', '.join(_SHORT_FORMS)}"
                raise entry.wrong("kind", f"is not known: {kind!r}; {hint}")
            yield from self._agent(entry, kind, dict(entry.table("options").raw), site, hosts, mode, seen)

    def _agent(
        self,
        entry: _Table,
        kind: str,
        options: Mapping[str, Any],
        site: str,
        hosts: tuple[HostDescription, ...],
        mode: str,
        seen: dict[str, int],
    ) -> Iterable[AgentDescription]:
        count = entry.count("count")
        given = entry.text("name", "", None)
        host = self._host_of(entry, hosts, mode, site)
        ports = self._ports(entry, kind)
        if count > 1 and ports:
            raise entry.wrong("ports", "cannot be the same for several agents; write one entry for each")
        for number in range(1, count + 1):
            seen[kind] = seen.get(kind, 0) + 1
            if given:
                name = given if count == 1 else f"{given}{number}"
            else:
                name = f"{kind}.{site}" if seen[kind] == 1 else f"{kind}{seen[kind]}.{site}"
            if not _AGENT_NAME.match(name):
                raise entry.wrong("name", f"must be letters, digits, '-', '_' and '.', at most 64, not {name!r}")
            yield AgentDescription(kind, name, site, host, options, dict(entry.table("fabric").raw), ports)

    def _host_of(self, entry: _Table, hosts: tuple[HostDescription, ...], mode: str, site: str) -> str:
        name = entry.text("host", "")
        if mode == "lab":
            return LAB_HOST
        if not name:
            return hosts[0].name
        if name not in [host.name for host in hosts]:
            known = ", ".join(host.name for host in hosts)
            raise entry.wrong("host", f"is not a host of site {site}: {name!r}; its hosts are {known}")
        return name

    def _ports(self, entry: _Table, kind: str) -> Mapping[str, int]:
        ports = entry.table("ports")
        ports.known(KINDS[kind].ports)
        for protocol, port in ports.raw.items():
            if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
                raise ports.wrong(protocol, f"must be a port number, not {port!r}")
        return dict(ports.raw)

    def _central(self, table: _Table, kind: str, name: str, sites: list[SiteDescription]) -> AgentDescription:
        """An authority or a VO server, which stand outside the site that runs them."""
        wanted = table.text("site", sites[0].name)
        site = next((site for site in sites if site.name == wanted), None)
        if site is None:
            known = ", ".join(site.name for site in sites)
            raise table.wrong("site", f"is not a site of this grid: {wanted!r}; its sites are {known}")
        mode = "lab" if site.hosts[0].name == LAB_HOST else "hosts"
        return AgentDescription(
            kind,
            table.text("agent", name, _AGENT_NAME),
            site.name,
            self._host_of(table, site.hosts, mode, site.name),
            dict(table.table("options").raw),
            dict(table.table("fabric").raw),
            self._ports(table, kind),
        )

    def _authority(
        self, table: _Table, organisation: str, sites: list[SiteDescription]
    ) -> tuple[AuthorityDescription, AgentDescription]:
        table.known(
            {
                "site", "host", "agent", "options", "fabric", "ports", "subject", "lifetime", "host_lifetime",
                "user_lifetime", "crl_lifetime",
            }
        )  # fmt: skip
        site = table.text("site", sites[0].name)
        agent = self._central(table, "authority", f"authority.{site}", sites)
        subject = table.text("subject", f"{organisation}/CN=Certification Authority")
        if not subject.startswith(f"{organisation}/"):
            raise table.wrong("subject", f"must be below the organisation {organisation}, not {subject!r}")
        crl_lifetime_s = table.duration("crl_lifetime", "7d")
        options = {
            **agent.options,
            "crl_lifetime_s": crl_lifetime_s,
            "host_lifetime_s": table.duration("host_lifetime", "365d"),
            "user_lifetime_s": table.duration("user_lifetime", "365d"),
        }
        authority = AuthorityDescription(
            agent.site,
            subject,
            table.duration("lifetime", "3650d"),
            options["host_lifetime_s"],
            options["user_lifetime_s"],
            crl_lifetime_s,
        )
        return authority, AgentDescription(
            agent.kind, agent.name, agent.site, agent.host, options, agent.fabric, agent.ports
        )

    def _vos(
        self, tables: list[_Table], sites: list[SiteDescription]
    ) -> tuple[tuple[VoDescription, ...], list[AgentDescription]]:
        vos, agents = [], []
        for table in tables:
            table.known({"name", "site", "host", "agent", "options", "fabric", "ports"})
            name = table.text("name", form=_GRID_NAME)
            agent = self._central(table, "vo", f"vo.{name}", sites)
            agents.append(
                AgentDescription(
                    agent.kind,
                    agent.name,
                    agent.site,
                    agent.host,
                    {**agent.options, "vo": name},
                    agent.fabric,
                    agent.ports,
                )
            )
            vos.append(VoDescription(name, agent.site, agent.name))
        if not vos:
            raise self.wrong("vo", 'is missing; add [[vo]] with name = "..."')
        self._unique("vo", [vo.name for vo in vos])
        return tuple(vos), agents

    def _check(self, grid: GridDescription) -> None:
        """What needs the whole: unique agent names, one of each central service, a site's parts complete."""
        self._unique("agent", [agent.name for agent in grid.agents()])
        for kind in ("bookkeeping", "catalog"):
            found = [agent.name for agent in grid.agents() if agent.kind == kind]
            if len(found) > 1:
                raise self.wrong(
                    f"site.{kind}", f"is there {len(found)} times ({', '.join(found)}); a grid has one {kind}"
                )
        for site in grid.sites:
            kinds = {agent.kind for agent in site.agents}
            if "worker" in kinds and "gatekeeper" not in kinds:
                raise self.wrong(f"site.{site.name}.worker", "has no gatekeeper to draw jobs from; add gatekeeper = {}")
            if kinds & {"gatekeeper", "storage"} and "information" not in kinds:
                raise self.wrong(
                    f"site.{site.name}.information", "is missing: nobody would find the site; add information = {}"
                )

        self._check_regions(grid)

    def _check_regions(self, grid: GridDescription) -> None:
        """Each site and each region publishes at one server, and all of them end at the top."""
        regions, names = grid.regions(), {site.name for site in grid.sites}
        for name in names & regions.keys():
            raise self.wrong(f"region.{name}.name", "cannot be the name of a site too")
        at: dict[tuple[str, str], str] = {}
        for region in regions.values():
            where = f"site.{region.site}.region"
            for key, known in (("sites", names), ("regions", regions.keys())):
                listed = region.options.get(key, [])
                if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
                    raise self.wrong(f"{where}.{key}", f"must be a list of names, not {listed!r}")
                for name in listed:
                    if name not in known:
                        raise self.wrong(f"{where}.{key}", f"names {name!r}, which is none of the {key} of this grid")
                    if (key, name) in at:
                        raise self.wrong(
                            f"{where}.{key}", f"names {name}, which publishes at {at[key, name]}; it can at one only"
                        )
                    at[key, name] = region.name
            if not region.options.get("sites") and not region.options.get("regions"):
                raise self.wrong(f"{where}.sites", 'is missing; say who publishes there: sites = ["..."]')
        for name in regions:
            above = name
            for _ in regions:
                above = at.get(("regions", above), "")
            if above:
                raise self.wrong(f"region.{name}.regions", "is below itself: its sites would never reach the top")

    def _unique(self, what: str, names: list[str]) -> None:
        for name in names:
            if names.count(name) > 1:
                raise self.wrong(
                    f"{what}.{name}", f"is there {names.count(name)} times; every {what} needs its own name"
                )
