"""One user's machine with the C tools of VOMS, as Debian ships them."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from support.grid import ORGANISATION, LabGrid

from security import voms
from security.credentials import Credential
from security.names import DistinguishedName
from security.testing import shared_key
from security.validation import validate_client_chain


class Desk:
    """One user's machine: certificates, vomses, vomsdir, and the C tools."""

    def __init__(self, lab: LabGrid, folder: Path, server: DistinguishedName, port: int, vo: str = "cms") -> None:
        """`server` on `port` of this machine speaks for `vo`."""
        self.lab, self.folder = lab, folder
        folder.mkdir()
        self.proxy = folder / "proxy.pem"
        self.user: tuple[Path, Path] = (folder, folder)
        self.vomses = folder / "vomses"
        self.vomses.write_text(f'"{vo}" "localhost" "{port}" "{server}" "{vo}"\n')
        self.vomsdir = folder / "vomsdir"
        (self.vomsdir / vo).mkdir(parents=True)
        (self.vomsdir / vo / "localhost.lsc").write_text(voms.lsc_text([server, lab.grid.ca.subject]))

    def log_in(self, name: str, *, key_type: str = "rsa-2048") -> Credential:
        """Certificate and key of a person; the C tools sign with RSA keys only."""
        subject = f"{ORGANISATION}/OU=Users/CN={name}"
        key = shared_key(key_type, 40 + len(name))
        certificate = self.lab.grid.ca.issue_user(
            DistinguishedName.parse(subject),
            key.public_key(),
            lifetime=timedelta(days=30),
            now=self.lab.grid.now,
            renew=True,
        )
        found = Credential(certificate, key)
        self.user = self.lab.grid.save_user(found, self.folder / name)
        return found

    async def run(self, *command: str, stdin: bytes | None = None, **more: str) -> str:
        """Output of a tool, with its exit code as the first word."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "X509_CERT_DIR": str(self.lab.certificates),
            "X509_VOMS_DIR": str(self.vomsdir),
            "X509_USER_CERT": str(self.user[0]),
            "X509_USER_KEY": str(self.user[1]),
            "X509_USER_PROXY": str(self.proxy),
            **more,
        }
        process = await asyncio.create_subprocess_exec(
            *command,
            env={name: value for name, value in environment.items() if value},
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(60):
            output, _ = await process.communicate(stdin)
        return f"{process.returncode} {output.decode('utf-8', 'replace')}"

    async def init(self, request: str, *options: str, **more: str) -> str:
        """`voms-proxy-init -voms REQUEST`, which verifies what it gets."""
        return await self.run(
            "voms-proxy-init", "-vomses", str(self.vomses), "-voms", request, "-out", str(self.proxy), *options, **more
        )

    def ours(self) -> tuple[voms.VomsAttributes, ...]:
        """What our validator finds in the proxy."""
        lab, now = self.lab, datetime.now(UTC)
        identity = validate_client_chain(Credential.load(self.proxy).pem_chain(), lab.grid.trust, lab.grid.policy, now)
        servers = voms.VomsDirectory.load(self.vomsdir)
        return voms.verify_attributes(identity, servers, lab.grid.trust, lab.grid.policy, now)
