"""Which VO servers this host believes, and what their attribute certificates say of a verified chain.

Believed are the `.lsc` files of the vomsdir, as everywhere in the field, and the grid's own VO servers by their names
`<organisation>/OU=<site>/CN=vo/<name>`, which only the grid's authority can give. Nobody else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from fabric.settings import Endpoint, Settings
from security.errors import SecurityError
from security.names import DistinguishedName
from security.trust import TrustSnapshot
from security.validation import Identity, ValidationPolicy
from security.voms import VomsAttributes, VomsDirectory, verify_attributes

VOMSDIR = "vomsdir"
"""Folder beside the directory of authorities, unless the settings name another."""

_Stamp = tuple[tuple[str, int, int], ...]
Names = tuple[DistinguishedName, ...]


class VomsServers:
    """Looks at the vomsdir again when asked to; judging never touches the disk."""

    def __init__(self, directory: Path, own: Mapping[str, tuple[Names, ...]] | None = None) -> None:
        """`own` are chains of names that are believed without a file. A directory that is missing adds nothing."""
        self._directory, self._own = directory, dict(own or {})
        self._stamp: _Stamp | None = None
        self._believed = VomsDirectory(self._own)
        self.refresh()

    @classmethod
    def of(cls, settings: Settings) -> VomsServers:
        """For one agent."""
        named = settings.fabric.vomsdir
        directory = Path(named) if named else settings.certificates.parent / VOMSDIR
        organisation = DistinguishedName.parse(settings.organisation)
        own: dict[str, tuple[Names, ...]] = {}
        for vo in settings.vos:
            servers = servers_of(vo, settings.endpoints("vo"), len(settings.vos))
            own[vo] = tuple((organisation.child("OU", s.site).child("CN", f"vo/{s.name}"),) for s in servers if s.site)
        return cls(directory, own)

    def refresh(self) -> bool:
        """True if the files have changed since the last look; a damaged one speaks for nobody."""
        stamp = self._look()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        listed: Mapping[str, tuple[Names, ...]] = {}
        if stamp:
            with contextlib.suppress(SecurityError):  # nobody is believed for a folder that cannot be read
                listed = VomsDirectory.load(self._directory).chains
        self._believed = VomsDirectory(
            {vo: (*self._own.get(vo, ()), *listed.get(vo, ())) for vo in {*self._own, *listed}}
        )
        return True

    def _look(self) -> _Stamp:
        found: list[tuple[str, int, int]] = []
        try:
            for path in sorted(self._directory.glob("*/*.lsc")):
                status = os.stat(path)
                found.append((str(path), status.st_mtime_ns, status.st_size))
        except OSError:
            return ()
        return tuple(found)

    def attributes_of(
        self, identity: Identity, trust: TrustSnapshot, policy: ValidationPolicy, now: datetime
    ) -> tuple[VomsAttributes, ...]:
        """What the chain carries, all of it verified. One attribute certificate that is not good refuses the chain.

        Raises ValidationError ATTRIBUTE_INVALID, or why the server's own chain is refused.
        """
        if not identity.is_proxy:
            return ()
        return verify_attributes(identity, self._believed, trust, policy, now)


def servers_of(vo: str, servers: tuple[Endpoint, ...], vos: int) -> tuple[Endpoint, ...]:
    """The VO servers of one VO: those named after it, or all where there is only one VO."""
    named = tuple(server for server in servers if server.name in (vo, f"vo.{vo}"))
    return named or (servers if vos == 1 else ())
