"""The information server's section of the cluster file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class InformationOptions:
    """Every option with its default."""

    level: str = field(default="site", metadata={"choices": ("site", "region", "top")})
    """`site`: agents of this site publish here. `top`: the servers of all sites and regions publish here. `region`:
    between the two."""
    region: str = ""
    """The region server that this server publishes at; empty: the top servers."""
    sites: tuple[str, ...] = ()
    """Of a region: the sites that publish here."""
    regions: tuple[str, ...] = ()
    """Of a region: the region servers that publish here."""
    below: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """By region server that publishes here: the sites and regions that it may publish beside itself."""
    valid_for_s: float = field(default=8.0, metadata={"minimum": 0.1})
    """How long this site's own entries stand at the top without a sign of life."""
    refresh_s: float = field(default=2.0, metadata={"minimum": 0.05})
    """How often this server shows a sign of life to the top when nothing changes."""
    longest_valid_for_s: float = field(default=600.0, metadata={"minimum": 1.0})
    """The longest time a producer may ask for."""
    grace_s: float = field(default=30.0)
    """How long entries of a lost producer are still shown, with status Unknown, before they are removed."""
    forget_s: float = field(default=24 * 3600.0)
    """How long a lost or withdrawn agent's state stays published. Sites are never forgotten."""
    heartbeat_s: float = field(default=2.0, metadata={"minimum": 0.05})
    """How often subscribers get a sign of life when nothing changes."""
    divergence_after_s: float = field(default=5.0, metadata={"minimum": 0.1})
    """Entries that differ for longer between this top server and another one are divergence."""
    history_s: float = field(default=24 * 3600.0, metadata={"minimum": 0.0})
    """How long a top server keeps changes of the tree for queries. 0: no history."""
    history_tuples: int = field(default=1_000_000, metadata={"minimum": 1})
    """Kept of each table at most, about 400 bytes each; the oldest go first."""
    history_database: str = ""
    """A PostgreSQL server for the history, as `postgresql://info@db.example.org/gridfabric`; empty: a file."""
    history_reader: str = ""
    """The role as which queries of users run there. It can log in, and nothing else is granted to it by others."""
    max_producers: int = field(default=2000, metadata={"minimum": 1})
    """Agents of a site, or sites of a grid."""
    max_entries: int = field(default=20_000, metadata={"minimum": 1})
    """Entries of one producer; the largest site of EGEE had a few thousand."""
    max_attributes: int = field(default=256, metadata={"minimum": 1})
    """Attributes of one entry; a GlueCE has 45."""
    max_entry_bytes: int = field(default=64 * 1024)
    """Names and values of one entry."""
    max_subscribers: int = field(default=256, metadata={"minimum": 1})
    """Subscribe streams at once."""
    max_ldap_connections: int = field(default=2000, metadata={"minimum": 1})
    """LDAP clients at once."""
    description: str = ""
    """GlueSiteDescription."""
    email: str = ""
    """Contact of the site."""
    location: str = ""
    """`Geneva, Switzerland`."""
    latitude: float | None = None
    """Degrees north."""
    longitude: float | None = None
    """Degrees east."""
    web: str = ""
    """The site's web page."""
    sponsors: tuple[str, ...] = ()
    """GlueSiteSponsor."""
    other_info: tuple[str, ...] = ()
    """GlueSiteOtherInfo, for instance `EGEE_ROC=CERN`."""
