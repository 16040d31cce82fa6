"""OpenLDAP's own command line tools against our server."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from unit.ldap.ldap_trees import SCHEMA, grid_tree

from fabric.ldap import LdapServer
from security.testing import TestGrid

pytestmark = pytest.mark.skipif(shutil.which("ldapsearch") is None, reason="Debian package ldap-utils is not installed")


@pytest.fixture
async def server() -> AsyncIterator[LdapServer]:
    server = LdapServer(grid_tree(), schema=SCHEMA)
    await server.start()
    yield server
    await server.close()


async def run(*command: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        env={"PATH": "/usr/bin:/bin", **(environment or {"LDAPNOINIT": "1"})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


async def search(server: LdapServer, *arguments: str) -> tuple[int, list[str], str]:
    """The result code, the DNs, and all that was printed."""
    url = f"ldap://127.0.0.1:{server.port}"
    code, out, err = await run("ldapsearch", "-x", "-LLL", "-o", "ldif-wrap=no", "-H", url, *arguments)
    return code, [line[4:] for line in out.splitlines() if line.startswith("dn: ")], out + err


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (("-b", "o=grid", "-s", "base"), 1),
        (("-b", "o=grid", "-s", "one"), 1),
        (("-b", "o=grid", "-s", "sub"), 10),
        (("-b", "o=grid", "-s", "children"), 9),
        (("-b", "O=Grid", "(objectClass=GlueCE)"), 6),
        (("-b", "mds-vo-name=SITE1,mds-vo-name=local,o=grid", "(objectClass=GlueCE)"), 3),
        (("-b", "o=grid", "(&(objectClass=GlueCE)(GlueCEStateFreeJobSlots>=1))"), 4),
        (("-b", "o=grid", "(&(objectClass=GlueCE)(GlueCEStateFreeJobSlots<=1))"), 4),
        (("-b", "o=grid", "(&(objectClass=GlueCE)(!(GlueCEStateFreeJobSlots=0)))"), 4),
        (("-b", "o=grid", "(|(GlueCEUniqueID=ce0.site0*)(GlueCEUniqueID=*site1:2119/jobmanager-fork))"), 4),
        (("-b", "o=grid", "(GlueCEName~=queue number 2)"), 2),
        (("-b", "o=grid", "(GlueCEName=*e n*r 2)"), 2),
        (("-b", "o=grid", "(GlueCEUniqueID:caseIgnoreMatch:=CE0.SITE0:2119/JOBMANAGER-FORK)"), 1),
        (("-b", "o=grid", "(mds-vo-name:dn:=site0)"), 4),
        (("-b", "o=grid", "(GlueCEAccessControlBaseRule=VO:cms)"), 6),
        (("-b", "o=grid", "(nothing=here)"), 0),
        (("-b", "o=grid", "(GlueCEName=\\28\\29\\2a)"), 0),
        (("-b", "o=grid", "-E", "pr=3/noprompt"), 10),
        (("-b", "o=grid", "-E", "!pr=10/noprompt"), 10),
        (("-b", "o=grid", "-l", "5"), 10),
        (("-b", "o=grid", "-M", "(objectClass=GlueCE)"), 6),
        (("-b", "o=grid", "-a", "always", "(objectClass=GlueCE)"), 6),
    ],
)
async def test_searches(server: LdapServer, arguments: tuple[str, ...], count: int) -> None:
    code, names, text = await search(server, *arguments)
    assert (code, len(names)) == (0, count), text


async def test_the_command_of_the_manual(server: LdapServer) -> None:
    code, out, _ = await run(
        "ldapsearch", "-x", "-H", f"ldap://127.0.0.1:{server.port}", "-b", "o=grid", "(objectClass=GlueCE)"
    )
    assert code == 0
    assert "# numEntries: 6" in out
    assert "GlueCEStateFreeJobSlots: 2" in out
    assert "producer" not in out


async def test_attribute_selection(server: LdapServer) -> None:
    where = ("-b", "o=grid", "(GlueCEUniqueID=ce1.site0:2119/jobmanager-fork)")
    _, _, text = await search(server, *where, "gluecename", "PRODUCER")
    assert "GlueCEName: Queue  Number 1" in text
    assert "producer: gatekeeper.SITE0" in text
    assert "GlueCEUniqueID:" not in text
    _, _, text = await search(server, *where, "1.1")
    assert text.count("\n") == 2
    _, _, text = await search(server, *where, "+")
    assert "producer:" in text
    assert "GlueCEName" not in text
    _, _, text = await search(server, "-A", *where)
    assert "GlueCEName:\n" in text


async def test_limits_and_errors(server: LdapServer) -> None:
    code, names, text = await search(server, "-b", "o=grid", "-z", "4")
    assert (code, len(names)) == (4, 4), text
    code, _, text = await search(server, "-b", "cn=x,mds-vo-name=local,o=grid")
    assert code == 32
    assert "Matched DN: mds-vo-name=local,o=grid" in text
    code, _, text = await search(server, "-b", "no name")
    assert code == 34, text
    code, _, text = await search(server, "-b", "o=grid", "-E", "!1.2.3.4")
    assert code == 12, text
    code, _, text = await search(server, "-P", "2", "-b", "o=grid")
    assert code == 2, text
    code, _, text = await search(server, "-D", "cn=admin", "-w", "secret", "-b", "o=grid")
    assert code == 7, text


async def test_root_dse_and_schema(server: LdapServer) -> None:
    _, _, text = await search(server, "-b", "", "-s", "base", "+")
    for line in ("namingContexts: o=grid", "supportedLDAPVersion: 3", "supportedControl: 1.2.840.113556.1.4.319",
                 "vendorName: gridfabric", "subschemaSubentry: cn=Subschema"):  # fmt: skip
        assert line in text
    _, _, text = await search(server, "-b", "cn=Subschema", "-s", "base", "attributeTypes")
    assert "NAME 'GlueCEUniqueID'" in text


async def test_other_tools(server: LdapServer, tmp_path: Path) -> None:
    url = f"ldap://127.0.0.1:{server.port}"
    assert (await run("ldapwhoami", "-x", "-H", url))[1].strip() == "anonymous"
    assert (await run("ldapcompare", "-x", "-H", url, "o=grid", "o:GRID"))[0] == 6
    assert (await run("ldapcompare", "-x", "-H", url, "o=grid", "o:other"))[0] == 5
    change = tmp_path / "change.ldif"
    change.write_text("dn: o=grid\nchangetype: modify\nreplace: o\no: grid\n")
    assert (await run("ldapmodify", "-x", "-H", url, "-f", str(change)))[0] == 53
    change.write_text("dn: o=new\nobjectClass: organization\no: new\n")
    assert (await run("ldapadd", "-x", "-H", url, "-f", str(change)))[0] == 53
    assert (await run("ldapdelete", "-x", "-H", url, "o=grid"))[0] == 53
    assert (await run("ldapmodrdn", "-x", "-H", url, "o=grid", "o=x"))[0] == 53


async def test_start_tls_and_ldaps_and_passwords(tmp_path: Path) -> None:
    grid = TestGrid(tmp_path)
    host = grid.host("localhost", "127.0.0.1")
    credential = tmp_path / "host.pem"
    host.save(credential)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(credential)

    async def check(name: str, password: bytes) -> bool:
        return (name, password) == ("cn=alice,o=grid", b"right")

    authorities = tmp_path / "authorities.pem"
    authorities.write_bytes(b"".join(path.read_bytes() for path in sorted(grid.trust_directory.glob("*.0"))))
    environment = {"LDAPTLS_CACERT": str(authorities), "LDAPTLS_REQCERT": "demand"}
    for ldaps in (False, True):
        server = LdapServer(grid_tree(), tls=context, ldaps_port=0 if ldaps else None, bind=check)
        await server.start()
        secure = (
            ("-H", f"ldaps://127.0.0.1:{server.ldaps_port}")
            if ldaps
            else ("-ZZ", "-H", f"ldap://127.0.0.1:{server.port}")
        )
        base = ("ldapsearch", "-x", "-LLL", *secure, "-b", "o=grid", "-s", "base", "1.1")
        code, out, err = await run(*base, environment=environment)
        assert (code, out.strip()) == (0, "dn: o=grid"), err
        who = ("ldapwhoami", "-x", *secure, "-D", "cn=alice,o=grid", "-w")
        assert (await run(*who, "right", environment=environment))[1].strip() == "dn:cn=alice,o=grid"
        assert (await run(*who, "wrong", environment=environment))[0] == 49
        await server.close()
    grid.close()
