"""What VOMS clients and servers of any make read of this grid's VOs: `vomses` (where to ask) and `.lsc` (whom to
believe)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clusters.paths import StatePaths
from clusters.plan import PlannedAgent
from fabric.settings import Settings
from fabric.voms_servers import servers_of
from security.certificates import issuer_of
from security.credentials import Credential
from security.files import write_atomic
from security.names import DistinguishedName
from security.voms import lsc_text

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,250}\Z")


@dataclass(frozen=True)
class VomsServer:
    """One VO server as clients know it."""

    vo: str
    host: str
    port: int
    subject: DistinguishedName

    @property
    def vomses_line(self) -> str:
        """`"nick" "host" "port" "DN" "vo"`"""
        return f'"{self.vo}" "{self.host}" "{self.port}" "{self.subject}" "{self.vo}"\n'


def voms_servers(settings: Settings) -> tuple[VomsServer, ...]:
    """The VO servers that an agent knows and that speak VOMS. Names that would not fit into a path are left out."""
    organisation = DistinguishedName.parse(settings.organisation)
    found = [
        VomsServer(vo, server.host, server.http, organisation.child("OU", server.site).child("CN", f"vo/{server.name}"))
        for vo in settings.vos
        for server in servers_of(vo, settings.endpoints("vo"), len(settings.vos))
        if server.http and server.site
    ]
    return tuple(server for server in found if _PLAIN.match(server.vo) and _PLAIN.match(server.host))


def write(folder: Path, servers: Iterable[VomsServer], issuer: DistinguishedName) -> None:
    """`vomses` and `vomsdir/<vo>/<host>.lsc` in a folder, for everybody to read. May be repeated. Raises OSError."""
    listed = list(servers)
    for server in listed:
        path = folder / "vomsdir" / server.vo / f"{server.host}.lsc"
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(path, lsc_text([server.subject, issuer]).encode(), 0o644)
    write_atomic(folder / "vomses", "".join(server.vomses_line for server in listed).encode(), 0o644)


def write_for(paths: StatePaths, agents: Sequence[PlannedAgent]) -> None:
    """Into the state folder, from what the agents of this host know. Their credentials are there already."""
    for agent in agents[:1]:
        settings = Settings.from_dict(agent.settings)
        issuer = issuer_of(Credential.load(settings.credential).certificate)
        write(paths.root, voms_servers(settings), issuer)
