"""OpenLDAP's tools at an agent's LDAP door over TLS: the grid's host certificate, and who a certificate says one is."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.grid import LabGrid

from agents.information.agent import build
from fabric.ldap import LdapClient
from fabric.ldap import protocol as p
from security.credentials import Credential

pytestmark = pytest.mark.skipif(shutil.which("ldapwhoami") is None, reason="Debian package ldap-utils is not installed")


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path) as lab:
        lab.plan("information")
        await lab.start("information", options={"level": "site"}, builder=build)
        yield lab


async def ask(lab: LabGrid, *command: str, certificate: Credential | None = None) -> tuple[int, str]:
    """A tool against the information server; its exit code and all it said."""
    folder = lab.directory / "tools"
    folder.mkdir(exist_ok=True)
    authorities = folder / "authorities.pem"
    authorities.write_bytes(b"".join(path.read_bytes() for path in sorted(lab.certificates.glob("*.0"))))
    environment = {"PATH": "/usr/bin:/bin", "LDAPTLS_CACERT": str(authorities), "LDAPTLS_REQCERT": "demand"}
    if certificate is not None:
        certificate.save(folder / "client.pem")
        environment |= {"LDAPTLS_CERT": str(folder / "client.pem"), "LDAPTLS_KEY": str(folder / "client.pem")}
    url = f"ldap://127.0.0.1:{lab.port('information.CERN', 'ldap')}"
    process = await asyncio.create_subprocess_exec(
        command[0], "-H", url, *command[1:], env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode()


EXTERNAL = ("ldapwhoami", "-ZZ", "-Q", "-Y", "EXTERNAL")


async def test_a_search_over_tls_needs_no_certificate(lab: LabGrid) -> None:
    code, text = await ask(lab, "ldapsearch", "-x", "-ZZ", "-LLL", "-b", "o=glue", "-s", "base", "o")
    assert (code, text.splitlines()[0]) == (0, "dn: o=glue"), text
    code, text = await ask(lab, "ldapsearch", "-x", "-LLL", "-b", "", "-s", "base", "+")
    for line in ("namingContexts: o=grid", "namingContexts: o=glue", "supportedSASLMechanisms: EXTERNAL"):
        assert line in text
    assert "supportedExtension: 1.3.6.1.4.1.1466.20037" in text


async def test_a_certificate_says_who_one_is(lab: LabGrid) -> None:
    code, text = await ask(lab, *EXTERNAL, certificate=lab.user_certificate("alice"))
    assert code == 0 and "CN=alice" in text, text
    code, text = await ask(lab, *EXTERNAL, "-X", "dn:cn=somebody else", certificate=lab.user_certificate("alice"))
    assert code == 49 and "nobody else" in text, text


async def test_refusals_say_why(lab: LabGrid) -> None:
    async with await LdapClient.connect("127.0.0.1", lab.port("information.CERN", "ldap")) as client:
        client.send(p.BindRequest("", mechanism="EXTERNAL"))
        answer = (await client.receive()).operation
        assert isinstance(answer, p.Result)
        assert answer.code == p.ResultCode.CONFIDENTIALITY_REQUIRED and "StartTLS" in answer.message
    code, text = await ask(lab, "ldapwhoami", "-x", "-ZZ", "-D", "cn=alice", "-w", "secret")
    assert code == 7 and "passwords are not taken here" in text, text
    code, text = await ask(lab, "ldapwhoami", "-ZZ", "-Q", "-Y", "PLAIN", "-U", "alice", "-w", "secret")
    assert code != 0, text
    alice = lab.user_certificate("alice")
    lab.revoke(alice)
    lab.agents["information.CERN"].context.trust.refresh()
    code, text = await ask(lab, *EXTERNAL, certificate=alice)
    assert code == 49 and "revoked" in text, text


async def test_strangers_get_no_name(lab: LabGrid) -> None:
    for certificate in (None, lab.grid.unknown_ca_user("alice"), lab.grid.expired_user("alice")):
        code, text = await ask(lab, *EXTERNAL, certificate=certificate)
        assert code != 0 and "CN=alice" not in text, text
