"""The VOs that one agent serves now: those of the grid's list as it was heard last, else of the grid description."""

from __future__ import annotations

import os
from pathlib import Path

from fabric.logs import Logger
from fabric.settings import Endpoint, Settings
from security.errors import SecurityError
from security.vos import EVERYWHERE, Vo, VoList, VoServer

LET_IN_BY_SITES = frozenset({"gatekeeper", "storage", "worker"})
"""Kinds of agents with which a site decides whose VO may use it. The others serve the whole grid."""


class Vos:
    """Looks at this agent's copy of the list when asked to. A copy that cannot be read lets no VO in; one that is
    missing was not fetched yet."""

    def __init__(self, described: VoList, copy: Path, site: str, log: Logger) -> None:
        """`site` is empty for a central service."""
        self._copy, self._site, self._log = copy, site, log
        self._stamp: tuple[int, int, int] | None = None
        self.listed = described
        self.error: SecurityError | None = None
        self.generation = 0
        """Counts changes."""
        self.refresh()

    @classmethod
    def of(cls, settings: Settings, log: Logger) -> Vos:
        """For one agent."""
        site = settings.site if settings.kind in LET_IN_BY_SITES else ""
        return cls(described(settings), vo_list_path(settings), site, log)

    def refresh(self) -> bool:
        """True if the copy has changed since the last look. One stat."""
        try:
            status = os.stat(self._copy)
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        except FileNotFoundError:
            return False
        except OSError:
            stamp = (0, 0, 0)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self.listed, self.error = VoList.load(self._copy), None
        except SecurityError as error:
            self.error = error
            self._log.error("vos.unreadable", path=str(self._copy), sentence=error.sentence)
        self.generation += 1
        return True

    @property
    def served(self) -> tuple[str, ...]:
        """The VOs whose members are let in here, in the order of their making."""
        return () if self.error is not None else self.listed.accepted_at(self._site)

    def refusal(self, vo: str) -> SecurityError | None:
        """Why a VO is not let in here; None also for a VO that is none of this grid's."""
        if self.error is not None:
            return self.error
        found = self.listed.get(vo)
        return None if found is None else found.refusal(self._site)

    def refused(self) -> dict[str, SecurityError]:
        """Every VO of the grid that is not let in here, and why."""
        found = {vo.name: self.refusal(vo.name) for vo in self.listed.vos}
        return {name: refusal for name, refusal in found.items() if refusal is not None}

    def servers_of(self, vo: str) -> tuple[VoServer, ...]:
        """Who speaks for a VO that is let in here; nobody for another."""
        found = self.listed.get(vo)
        return () if found is None or self.refusal(vo) is not None else found.servers


def vo_list_path(settings: Settings) -> Path:
    """Where this agent's copy of the grid's list of VOs is."""
    return settings.state_dir / "vos.json"


def described(settings: Settings) -> VoList:
    """The VOs of the grid description, which every site accepts."""
    servers = settings.endpoints("vo")
    return VoList(
        tuple(
            Vo(name, number, _servers_of(name, servers, len(settings.vos)), frozenset({EVERYWHERE}))
            for number, name in enumerate(settings.vos)
        )
    )


def _servers_of(vo: str, servers: tuple[Endpoint, ...], vos: int) -> tuple[VoServer, ...]:
    """Those named after the VO, or all where there is only one VO."""
    named = tuple(server for server in servers if server.name in (vo, f"vo.{vo}"))
    return tuple(
        VoServer(server.name, server.site, server.host, server.rpc, server.ldap, server.http)
        for server in named or (servers if vos == 1 else ())
    )
