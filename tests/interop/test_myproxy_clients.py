"""Our credential store and the MyProxy clients as Debian ships them: what they store, get, list, and are refused."""

from __future__ import annotations

import asyncio
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.grid import ORGANISATION, LabGrid

from security.credentials import Credential
from security.names import DistinguishedName
from security.testing import shared_key
from security.validation import validate_client_chain

pytestmark = pytest.mark.skipif(shutil.which("myproxy-init") is None, reason="myproxy is not installed")

PASSPHRASE = b"open sesame\n"


class Desk:
    """One user's machine and the C tools."""

    def __init__(self, lab: LabGrid, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        folder.mkdir()
        self.proxy = folder / "proxy.pem"
        self.user: tuple[Path, Path] | None = None
        self.credential: Path | None = None

    def log_in(self, name: str, *, vo: str | None = "cms", key_type: str = "rsa-2048") -> Credential:
        """Certificate and key of a person; the C tools sign with RSA keys only."""
        self.lab._users[name] = found = self.certificate(f"{ORGANISATION}/OU=Users/CN={name}", key_type)
        if vo is not None:
            self.lab.user(name, vo=vo)
        self.user = self.lab.grid.save_user(found, self.folder / name)
        return found

    def certificate(self, subject: str, key_type: str = "rsa-2048") -> Credential:
        key = shared_key(key_type, 40 + len(subject))
        certificate = self.lab.grid.ca.issue_user(
            DistinguishedName.parse(subject),
            key.public_key(),
            lifetime=timedelta(days=30),
            now=self.lab.grid.now,
            renew=True,
        )
        return Credential(certificate, key)

    async def run(self, command: str, *options: str, stdin: bytes = b"", **more: str) -> str:
        """Output of a tool, with its exit code as the first word."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "LOGNAME": "ada",
            "X509_CERT_DIR": str(self.lab.certificates),
            "X509_USER_PROXY": str(self.proxy),
            "MYPROXY_SERVER": "localhost",
            "MYPROXY_SERVER_PORT": str(self.lab.port("myproxy.CERN", "myproxy")),
            "MYPROXY_SERVER_DN": str(self.lab.service("myproxy").subject),
            **({"X509_USER_CERT": str(self.user[0]), "X509_USER_KEY": str(self.user[1])} if self.user else {}),
            **more,
        }
        process = await asyncio.create_subprocess_exec(
            command,
            *options,
            env={name: value for name, value in environment.items() if value},
            cwd=self.folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(30):
            output, _ = await process.communicate(stdin)
        return f"{process.returncode} {output.decode('utf-8', 'replace')}"

    async def store(self, *options: str, passphrase: bytes = PASSPHRASE) -> str:
        stdin = ("-S",) if passphrase else ()
        return await self.run("myproxy-init", "-c", "24", *stdin, *options, stdin=passphrase)

    async def logon(self, *options: str, passphrase: bytes = PASSPHRASE, **more: str) -> str:
        stdin = ("-S",) if passphrase else ()
        nobody = {"X509_USER_CERT": "", "X509_USER_KEY": "", "X509_USER_PROXY": "/dev/null"}
        return await self.run(
            "myproxy-logon", *stdin, "-o", str(self.proxy), *options, stdin=passphrase, **{**nobody, **more}
        )

    def received(self):
        """What our validator finds in the proxy that the tool wrote."""
        lab = self.lab
        return validate_client_chain(
            Credential.load(self.proxy).pem_chain(), lab.grid.trust, lab.grid.policy, datetime.now(UTC)
        )


@pytest.fixture
async def lab(tmp_path):
    async with LabGrid(tmp_path, key_type="rsa-2048") as found:
        await found.start("myproxy", options={"scrypt_log2_n": 10})
        yield found


@pytest.fixture
async def desk(lab, tmp_path):
    return Desk(lab, tmp_path / "desk")


async def test_store_and_log_on_without_any_certificate(lab, desk):
    ada = desk.log_in("ada")
    told = await desk.store()
    assert told.startswith("0 ") and "now exists on localhost" in told, told
    told = await desk.logon("-t", "2")
    assert told.startswith("0 "), told
    found = desk.received()
    assert found.subject == ada.subject and found.proxy_depth == 3 and not found.is_limited
    left = found.not_after - datetime.now(UTC)
    assert timedelta(hours=1, minutes=55) < left <= timedelta(hours=2)
    told = await desk.run("grid-proxy-info", "-file", str(desk.proxy))
    assert told.startswith("0 ") and "RFC 3820 compliant impersonation proxy" in told, told
