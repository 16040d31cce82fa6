"""What a grid is made of: the description as frozen values, and the table of the kinds of agents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One kind of agent as a description names it."""

    name: str
    folder: str
    """The folder in agents/ that implements it."""
    ports: Mapping[str, int]
    """Protocols that it serves, with the well-known port of each."""
    order: int
    """Agents of a higher order are stopped first: those that give work before those that do it."""
    central: bool = False
    """For the whole grid: told the endpoints of every site, an endpoint of every agent, in a process of its own."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options that make this kind of its folder's agent."""


def _kinds(*kinds: Kind) -> Mapping[str, Kind]:
    return MappingProxyType({kind.name: kind for kind in kinds})


KINDS = _kinds(
    Kind("authority", "authority", {"rpc": 8443, "http": 8080}, 0, central=True),
    Kind("vo", "vo", {"rpc": 15000, "ldap": 3890, "http": 15001}, 1, central=True),
    Kind("top", "information", {"rpc": 2181, "ldap": 2180, "ldaps": 2182}, 2, central=True, options={"level": "top"}),
    Kind(
        "region",
        "information",
        {"rpc": 2191, "ldap": 2190, "ldaps": 2192},
        2,
        central=True,
        options={"level": "region"},
    ),
    Kind("information", "information", {"rpc": 2171, "ldap": 2170, "ldaps": 2172}, 3, options={"level": "site"}),
    Kind("bookkeeping", "bookkeeping", {"rpc": 9000}, 4, central=True),
    Kind("catalog", "catalog", {"rpc": 5010}, 5, central=True),
    Kind("myproxy", "myproxy", {"rpc": 7511, "myproxy": 7512}, 6, central=True),
    Kind("transfer", "transfer", {"rpc": 7443}, 10, central=True),
    Kind("keystore", "keystore", {"rpc": 7521}, 6, central=True),
    Kind("storage", "storage", {"rpc": 8446, "ldap": 2135, "http": 8447}, 6),
    Kind("gatekeeper", "gatekeeper", {"rpc": 2119, "ldap": 2135}, 7),
    Kind("worker", "worker", {"rpc": 2125}, 8),
    Kind("broker", "broker", {"rpc": 7772}, 9, central=True),
)
"""Every kind that a description may name. The ports are the defaults in `hosts` mode."""

MODES = ("lab", "hosts")
LAB_HOST = "lab"
"""In lab mode every agent is placed on this one host."""


@dataclass(frozen=True)
class HostDescription:
    """One machine."""

    name: str
    """The Ray label `host`; unique in the grid."""
    site: str
    address: str
    """Where its agents listen (an address of this machine, or 0.0.0.0)."""
    advertise: str
    """What others use to reach it: a name or an address. In the certificates of its agents."""


@dataclass(frozen=True)
class AgentDescription:
    """One agent."""

    kind: str
    """A key of KINDS."""
    name: str
    """Unique in the grid."""
    site: str
    host: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """For agents/<folder>/config.py, which checks them."""
    fabric: Mapping[str, Any] = field(default_factory=dict)
    """For fabric.settings.FabricOptions."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """Ports wanted instead of the kind's own."""

    @property
    def about(self) -> Kind:
        """The kind's row of the table."""
        return KINDS[self.kind]


@dataclass(frozen=True)
class SiteDescription:
    """One administrative domain."""

    name: str
    location: str = ""
    latitude: float = 0.0
    longitude: float = 0.0
    web: str = ""
    contact: str = ""
    hosts: tuple[HostDescription, ...] = ()
    agents: tuple[AgentDescription, ...] = ()


@dataclass(frozen=True)
class AuthorityDescription:
    """The certification authority of the grid."""

    site: str
    subject: str
    lifetime_s: float
    host_lifetime_s: float
    user_lifetime_s: float
    crl_lifetime_s: float


@dataclass(frozen=True)
class VoDescription:
    """One virtual organisation."""

    name: str
    site: str
    agent: str
    """The name of its server."""


@dataclass(frozen=True)
class GridDescription:
    """A whole grid. Made by `clusters.load`, which has checked everything that these types cannot say."""

    name: str
    mode: str
    organisation: str
    authority: AuthorityDescription
    vos: tuple[VoDescription, ...]
    sites: tuple[SiteDescription, ...]
    source: Path
    pack: int = 1
    """Agents of one host that share a process; central ones always have their own."""
    text: str = field(default="", repr=False)
    """The file as it was read: kept beside the state, so that a later command sees what was started."""

    def agents(self) -> Iterator[AgentDescription]:
        """Every agent, site by site."""
        for site in self.sites:
            yield from site.agents

    def hosts(self) -> Mapping[str, HostDescription]:
        """Every host by name."""
        return {host.name: host for site in self.sites for host in site.hosts}

    def regions(self) -> Mapping[str, AgentDescription]:
        """The region servers by name."""
        return {agent.name: agent for agent in self.agents() if agent.kind == "region"}

    def region_of(self, name: str) -> str:
        """The region server at which a site, or another region server, publishes; empty: at the top servers."""
        for region in self.regions().values():
            if name in region.options.get("regions" if name in self.regions() else "sites", ()):
                return region.name
        return ""

    def site(self, name: str) -> SiteDescription | None:
        """A site by name."""
        return next((site for site in self.sites if site.name == name), None)
