"""Which VO servers this host believes, and what their attribute certificates say of a verified chain.

Believed are the `.lsc` files of the vomsdir, as everywhere in the field, and the grid's own VO servers by their names
`<organisation>/OU=<site>/CN=vo/<name>`, which only the grid's authority can give. Nobody else, and nobody about a VO
that is not let in here.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from fabric.settings import Settings
from fabric.vos import Vos
from security.errors import SecurityError
from security.names import DistinguishedName
from security.trust import TrustSnapshot
from security.validation import Identity, ValidationPolicy
from security.voms import VomsAttributes, VomsDirectory, verify_attributes
from security.vos import VoServer

VOMSDIR = "vomsdir"
"""Folder beside the directory of authorities, unless the settings name another."""

_Stamp = tuple[tuple[str, int, int], ...]
Names = tuple[DistinguishedName, ...]


class VomsServers:
    """Looks at the vomsdir again when asked to; judging never touches the disk."""

    def __init__(
        self,
        directory: Path,
        organisation: DistinguishedName,
        authority: DistinguishedName,
        vos: Vos,
        hosts: Iterable[str] = (),
    ) -> None:
        """A directory that is missing adds nothing to the servers that `vos` names, whose certificates are from
        `authority`. `hosts`: names of this one, which what is for some hosts only must name."""
        self._hosts = frozenset(host.lower() for host in hosts)
        self._directory, self._organisation, self._vos = directory, organisation, vos
        self._authority = authority
        self._seen: tuple[_Stamp, int] | None = None
        self._believed = VomsDirectory({})
        self.generation = 0
        """Counts changes."""
        self.refresh()

    @classmethod
    def of(cls, settings: Settings, vos: Vos, authority: DistinguishedName) -> VomsServers:
        """For one agent."""
        named = settings.fabric.vomsdir
        directory = Path(named) if named else settings.certificates.parent / VOMSDIR
        return cls(directory, DistinguishedName.parse(settings.organisation), authority, vos, [settings.advertise])

    def refresh(self, max_age_s: float = 0.0) -> bool:
        """True if the files or the VOs have changed since the last look; a damaged file speaks for nobody. A look at
        the same folder by another agent of this process counts if it is not older than that."""
        seen = (self._look(max_age_s), self._vos.generation)
        if seen == self._seen:
            return False
        self._seen = seen
        listed: Mapping[str, tuple[Names, ...]] = {}
        if seen[0]:
            with contextlib.suppress(SecurityError):  # nobody is believed for a folder that cannot be read
                listed = VomsDirectory.load(self._directory).chains
        own = {vo: self._speakers(vo) for vo in self._vos.served}
        self._believed = VomsDirectory(
            {vo: (*own.get(vo, ()), *listed.get(vo, ())) for vo in {*own, *listed}},
            self._vos.refused(),
            self._hosts,
        )
        self.generation += 1
        return True

    def _speakers(self, vo: str) -> tuple[Names, ...]:
        return tuple(
            (server_subject(self._organisation, server), self._authority)
            for server in self._vos.servers_of(vo)
            if server.site
        )

    def _look(self, max_age_s: float) -> _Stamp:
        now = time.monotonic()
        looked_at, stamp = _looks.get(self._directory, (-math.inf, ()))
        if now - looked_at >= max_age_s:
            stamp = _stamp(self._directory)
            _looks[self._directory] = now, stamp
        return stamp

    def attributes_of(
        self, identity: Identity, trust: TrustSnapshot, policy: ValidationPolicy, now: datetime
    ) -> tuple[VomsAttributes, ...]:
        """What the chain carries, all of it verified. One attribute certificate that is not good refuses the chain.

        Raises SecurityError ATTRIBUTE_INVALID, VO_DISSOLVED, VO_NOT_ACCEPTED, or why the server's own chain is refused.
        """
        if not identity.is_proxy:
            return ()
        return verify_attributes(identity, self._believed, trust, policy, now)


_looks: dict[Path, tuple[float, _Stamp]] = {}
"""When a folder was last looked at in this process, and what was there."""


def _stamp(directory: Path) -> _Stamp:
    found: list[tuple[str, int, int]] = []
    try:
        for path in sorted(directory.glob("*/*.lsc")):
            status = os.stat(path)
            found.append((str(path), status.st_mtime_ns, status.st_size))
    except OSError:
        return ()
    return tuple(found)


def server_subject(organisation: DistinguishedName, server: VoServer) -> DistinguishedName:
    """The name in the certificate of a VO server of the grid."""
    return organisation.child("OU", server.site).child("CN", f"vo/{server.name}")
