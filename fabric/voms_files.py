"""What VOMS clients and servers of any make read of this grid's VOs: `vomses` (where to ask) and `.lsc` (whom to
believe)."""

from __future__ import annotations

import re
from pathlib import Path

from fabric.voms_servers import VOMSDIR, server_subject
from security.files import write_if_changed
from security.names import DistinguishedName
from security.voms import lsc_text
from security.vos import VoList

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,250}\Z")


def write(folder: Path, listed: VoList, organisation: DistinguishedName, issuer: DistinguishedName) -> None:
    """`vomses` and `vomsdir/<vo>/<host>.lsc` in a folder, for everybody to read; nothing of a VO that was dissolved.

    May be repeated. Names that would not fit into a path are left out. Raises OSError.
    """
    lines: list[str] = []
    for vo in listed.vos:
        for server in vo.servers:
            if not (server.http and server.site and _PLAIN.match(vo.name) and _PLAIN.match(server.host)):
                continue
            path = folder / VOMSDIR / vo.name / f"{server.host}.lsc"
            if vo.dissolved_at is not None:
                path.unlink(missing_ok=True)
                continue
            subject = server_subject(organisation, server)
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_if_changed(path, lsc_text([subject, issuer]).encode(), 0o644)
            lines.append(f'"{vo.name}" "{server.host}" "{server.http}" "{subject}" "{vo.name}"\n')
    write_if_changed(folder / "vomses", "".join(lines).encode(), 0o644)
