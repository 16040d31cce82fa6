"""Our VO server and the C client of VOMS as Debian ships it: what it asks, what it gets, what it says of a refusal."""

from __future__ import annotations

import asyncio
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.grid import ORGANISATION, LabGrid

from agents.vo.client import VoClient
from security import voms
from security.credentials import Credential
from security.names import DistinguishedName
from security.testing import shared_key
from security.validation import validate_client_chain

pytestmark = pytest.mark.skipif(shutil.which("voms-proxy-init") is None, reason="voms-clients is not installed")

PILOT, PRODUCTION = "/cms/higgs/Role=pilot", "/cms/Role=production"
OPTIONS = {"groups": ["/cms/higgs", "/cms/top"], "roles": ["VO-Admin", "production", "pilot"]}


class Desk:
    """One user's machine: certificates, vomses, vomsdir, and the C tools."""

    def __init__(self, lab: LabGrid, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        folder.mkdir()
        self.proxy = folder / "proxy.pem"
        self.user: tuple[Path, Path] = (folder, folder)
        server = lab.service("vo", "vo.CERN").subject
        port = lab.port("vo.CERN", "http")
        self.vomses = folder / "vomses"
        self.vomses.write_text(f'"cms" "localhost" "{port}" "{server}" "cms"\n')
        self.vomsdir = folder / "vomsdir"
        (self.vomsdir / "cms").mkdir(parents=True)
        (self.vomsdir / "cms" / "localhost.lsc").write_text(voms.lsc_text([server, lab.grid.ca.subject]))

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

    async def run(self, *command: str, **more: str) -> str:
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
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(30):
            output, _ = await process.communicate()
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


@pytest.fixture
async def lab(tmp_path):
    async with LabGrid(tmp_path, key_type="rsa-2048") as found:
        await found.start("vo", options=OPTIONS)
        yield found


@pytest.fixture
async def desk(lab, tmp_path):
    return Desk(lab, tmp_path / "desk")


async def manager(lab: LabGrid) -> VoClient:
    return VoClient(await lab.channel("vo", credential=lab.operator()))


async def test_a_member_gets_all_groups_and_no_role(lab, desk):
    ada = desk.log_in("ada")
    await (await manager(lab)).add_member(str(ada.subject), groups=["/cms/higgs", PRODUCTION])
    told = await desk.init("cms", "-debug")
    assert told.startswith("0 "), told
    (found,) = desk.ours()
    assert found.fqans == ("/cms", "/cms/higgs")
    told = await desk.run("voms-proxy-info", "-all")
    assert told.startswith("0 ") and "attribute : /cms/higgs/Role=NULL/Capability=NULL" in told, told
