"""Resource, site and top level with OpenLDAP's own ldapsearch; a site by the name that EDG and LCG clients use."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.grid import LabGrid
from support.waiting import until

from agents.information.agent import build as build_information
from fabric.agent import AgentState

pytestmark = pytest.mark.skipif(shutil.which("ldapsearch") is None, reason="Debian package ldap-utils is not installed")

AREAS = "(objectClass=GlueSA)"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path) as lab:
        for kind in ("top", "information", "storage"):
            lab.plan(kind)
        yield lab


async def ldapsearch(lab: LabGrid, agent: str, *arguments: str) -> tuple[int, list[str], str]:
    """The result code, the DNs, and all that was printed."""
    process = await asyncio.create_subprocess_exec(
        "ldapsearch", "-x", "-LLL", "-o", "ldif-wrap=no", "-H", f"ldap://127.0.0.1:{lab.port(agent, 'ldap')}",
        *arguments,
        env={"PATH": "/usr/bin:/bin", "LDAPNOINIT": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    text = out.decode()
    return process.returncode or 0, [line[4:] for line in text.splitlines() if line.startswith("dn: ")], text


async def names(lab: LabGrid, agent: str, *arguments: str) -> list[str]:
    code, found, _ = await ldapsearch(lab, agent, *arguments)
    return found if code == 0 else []


async def test_an_agent_answers_for_itself_without_its_site(lab: LabGrid) -> None:
    await lab.start("storage")
    base = "mds-vo-name=resource,o=grid"
    (area,) = await until(lambda: names(lab, "storage.CERN", "-b", base, AREAS), "the storage area at the resource")
    assert area.endswith(f",{base}")

    code, found, text = await ldapsearch(lab, "storage.CERN", "-b", "o=grid", "-s", "one")
    assert (code, found) == (0, [base]), text
    _, found, text = await ldapsearch(lab, "storage.CERN", "-b", base, "-s", "one", "(objectClass=GlueSE)", "*", "+")
    assert len(found) == 1
    for line in ("GlueSEStatus: Production", "GridFabricProducer: storage.CERN", "GridFabricState: current",
                 "GridFabricValidUntil: 2"):  # fmt: skip
        assert line in text
    code, _, text = await ldapsearch(lab, "storage.CERN", "-b", "mds-vo-name=local,o=grid")
    assert code == 32
    assert "Matched DN: o=grid" in text
    _, _, text = await ldapsearch(lab, "storage.CERN", "-b", "cn=Subschema", "-s", "base", "attributeTypes")
    assert "NAME 'GlueSAStateAvailableSpace'" in text


async def test_the_same_entries_at_every_level_and_by_the_site_s_own_name(lab: LabGrid) -> None:
    await lab.start("top", options={"level": "top"}, builder=build_information)
    await lab.start("information")
    await lab.start("storage")
    await until(lambda: names(lab, "top.CERN", "-b", "o=grid", AREAS), "the storage area at the top")

    bases = {
        "storage.CERN": "mds-vo-name=resource,o=grid",
        "information.CERN": "mds-vo-name=CERN,o=grid",
        "top.CERN": "mds-vo-name=CERN,mds-vo-name=local,o=grid",
    }
    below: list[set[str]] = []
    for agent, base in bases.items():
        code, found, text = await ldapsearch(
            lab, agent, "-b", base, "(|(objectClass=GlueSETop)(objectClass=GlueSATop))"
        )
        assert code == 0, text
        assert found
        assert all(name.endswith(f",{base}") for name in found), found
        below.append({name.removesuffix(f",{base}") for name in found})
    assert below[0] == below[1] == below[2]

    real = "mds-vo-name=CERN,mds-vo-name=local,o=grid"

    async def is_the_same_by_both_names(scope: str) -> bool:  # unless an entry came between the two searches
        by_alias = await names(lab, "information.CERN", "-b", "MDS-VO-NAME=cern,o=Grid", "-s", scope)
        by_name = await names(lab, "information.CERN", "-b", real, "-s", scope)
        return bool(by_name) and [name.replace(",mds-vo-name=local", "") for name in by_name] == by_alias

    for scope in ("base", "one", "sub", "children"):
        await until(lambda scope=scope: is_the_same_by_both_names(scope), f"the same by both names, {scope}")

    async def in_pages() -> list[str]:
        paged = await names(lab, "information.CERN", "-b", "mds-vo-name=CERN,o=grid", "-E", "pr=2/noprompt")
        return paged if len(paged) == len(await names(lab, "information.CERN", "-b", real)) else []

    paged = await until(in_pages, "as many in pages as at once")
    assert await names(lab, "information.CERN", "-b", paged[-1], "-s", "base") == [paged[-1]]

    code, _, text = await ldapsearch(lab, "information.CERN", "-b", "cn=x,mds-vo-name=CERN,o=grid")
    assert code == 32
    assert "Matched DN: mds-vo-name=CERN,o=grid" in text
    assert len(await names(lab, "information.CERN", "-b", "o=grid", AREAS)) == 1, "seen from above there is no alias"
    assert await names(lab, "top.CERN", "-b", "mds-vo-name=local,o=grid", AREAS)
    code, _, text = await ldapsearch(lab, "top.CERN", "-b", "mds-vo-name=CERN,o=grid")
    assert code == 10 and f":{lab.port('information.CERN', 'ldap')}/" in text, "the site's own server knows that name"


async def test_a_resource_level_waits_for_its_port(lab: LabGrid) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", lab.port("storage.CERN", "ldap")))
        holder.listen()
        agent = await lab.start("storage")

        async def is_degraded() -> bool:
            health = agent.health()
            return health.state is AgentState.DEGRADED and "by LDAP" in health.detail

        await until(is_degraded, "the health says that the port is taken")
    await until(lambda: names(lab, "storage.CERN", "-b", "o=grid", AREAS), "the port is opened when it is free")
    assert "ldap" not in agent.context.problems
