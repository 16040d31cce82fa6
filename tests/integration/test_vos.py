"""The grid's list of VOs from an operator's call to the last session; real TLS, sessions and streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gridfabric.authority.v1 import vos_pb2, vos_pb2_grpc
from support.grid import LabGrid

from agents.authority.client import AuthorityClient
from agents.storage import client as storage
from agents.vo.client import VoClient
from fabric.errors import GridError, InvalidRequest, NotFound, Refused, Unavailable
from fabric.ldap.client import LdapClient, LdapError
from fabric.ldap.filters import Equality
from fabric.rpc.delegation import delegate
from security.proxies import create_proxy
from security.voms import proxy_extension
from security.vos import EVERYWHERE, VoList, VoServer

FOLLOW: dict[str, Any] = {"vo_updater": True, "trust_poll_s": 3600.0}
"""A look at the disk once an hour only: all else came over the stream."""
PROMPT_S = 60.0
SITES = ("CERN", "RAL")


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path, fabric=FOLLOW) as made:
        made.plan("authority")
        made.plan("vo", name="vo.cms")
        yield made


async def start_authority(lab: LabGrid) -> AuthorityClient:
    await lab.start(
        "authority", options={"directory": str(lab.grid.ca.directory), "sites": {name: {} for name in SITES}}
    )
    return AuthorityClient(await lab.channel("authority", credential=lab.operator()))


async def space(lab: LabGrid, who: str, vo: str, site: str = "CERN") -> Any:
    return await storage.space(await lab.channel("storage", site=site, credential=lab.user(who, vo=vo)))


async def refusal_of(lab: LabGrid, who: str, vo: str, reason: str, site: str = "CERN") -> GridError:
    """Why the storage element refuses somebody, once it does for that reason."""
    async with asyncio.timeout(PROMPT_S):
        while True:
            try:
                await space(lab, who, vo, site)
            except GridError as error:
                if error.reason == reason:
                    return error
            await asyncio.sleep(0.01)


async def test_the_description_comes_first_and_names_are_never_used_twice(lab: LabGrid) -> None:
    authority = await start_authority(lab)
    (cms,) = (await authority.vos()).vos
    assert (cms.name, cms.number, cms.sites) == ("cms", 0, {EVERYWHERE})
    assert [server.name for server in cms.servers] == ["vo.cms"]

    first, second = await asyncio.gather(authority.create_vo("atlas"), authority.create_vo("atlas"))
    assert first == second and [(vo.name, vo.number) for vo in first.vos] == [("cms", 0), ("atlas", 1)]
    atlas = first.get("atlas")
    assert atlas is not None and atlas.sites == frozenset() and atlas.servers[0].http == 0
    made = (await authority.accept_vo("atlas", ["RAL"])).get("atlas")
    assert made is not None and made.sites == {"RAL"}
    narrowed = (await authority.refuse_vo("cms", ["RAL"])).get("cms")
    assert narrowed is not None and narrowed.sites == {"CERN"}

    ended = await authority.dissolve_vo("atlas", "merged into cms")
    assert await authority.dissolve_vo("atlas", "again") == ended
    for attempt in (authority.create_vo("atlas"), authority.accept_vo("atlas", ["RAL"])):
        with pytest.raises(Refused, match="merged into cms") as refused:
            await attempt
        assert refused.value.reason == "VO_DISSOLVED"
    assert [(vo.name, vo.number) for vo in (await authority.create_vo("lhcb")).vos][-1] == ("lhcb", 2)

    await lab.stop("authority.CERN")
    again = await start_authority(lab)
    kept = await again.vos()
    assert kept.get("atlas") == ended.get("atlas") and kept.get("cms") == narrowed
    assert [line["event"] for line in lab.audit("authority.CERN") if line["event"].startswith("vo.")] == [
        "vo.created", "vo.accepted", "vo.refused", "vo.dissolved", "vo.created",
    ]  # fmt: skip


async def test_what_cannot_be_done_is_said(lab: LabGrid) -> None:
    authority = await start_authority(lab)
    for wrong in ("", "CMS", "cms2", "../x", "a b", "x" * 50):
        with pytest.raises(InvalidRequest) as caught:
            await authority.create_vo(wrong)
        assert caught.value.reason == "VO_INVALID"
    for attempt, kind, reason in (
        (authority.create_vo("cms", "vo.other"), NotFound, "VO_SERVER_UNKNOWN"),
        (authority.create_vo("atlas", "authority.CERN"), NotFound, "VO_SERVER_UNKNOWN"),
        (authority.accept_vo("atlas", ["CERN"]), NotFound, "VO_UNKNOWN"),
        (authority.dissolve_vo("atlas"), NotFound, "VO_UNKNOWN"),
        (authority.accept_vo("cms", []), InvalidRequest, "SITE_UNKNOWN"),
        (authority.accept_vo("cms", ["CERN", "XXX"]), InvalidRequest, "SITE_UNKNOWN"),
        (authority.dissolve_vo("cms", "x" * 301), InvalidRequest, "REASON_INVALID"),
        (authority.dissolve_vo("cms", "a\nb"), InvalidRequest, "REASON_INVALID"),
    ):
        with pytest.raises(kind) as error:
            await attempt
        assert error.value.reason == reason
    assert (await authority.vos()).accepted_at("RAL") == ("cms",)
    lab.plan("vo", name="vo.two")
    with pytest.raises(NotFound):
        await authority.create_vo("two", "vo.two")  # the authority was started before it was planned


async def test_only_operators_change_the_list_and_only_its_server_serves_a_vo(lab: LabGrid) -> None:
    authority = await start_authority(lab)
    await authority.create_vo("atlas")
    for who in (lab.user("alice"), lab.service("storage"), lab.service("vo", "vo.cms")):
        other = AuthorityClient(await lab.channel("authority", credential=who))
        for attempt in (
            other.create_vo("lhcb"),
            other.accept_vo("atlas", ["CERN"]),
            other.refuse_vo("cms", ["CERN"]),
            other.dissolve_vo("cms"),
        ):
            with pytest.raises(Refused) as caught:
                await attempt
            assert caught.value.reason == "ADMINISTRATOR_REQUIRED"
        assert len((await other.vos()).vos) == 2
    for who, name in ((lab.service("vo", "vo.evil"), "atlas"), (lab.service("vo", "vo.cms"), "cms")):
        stub: Any = vos_pb2_grpc.VosStub(await lab.channel("authority", credential=who))
        with pytest.raises(Refused) as caught:
            await stub.Serve(vos_pb2.ServeVoRequest(name=name, http_port=1))
        assert caught.value.reason == "NOT_OWNER"
    stub = vos_pb2_grpc.VosStub(await lab.channel("authority", credential=lab.service("vo", "vo.cms")))
    told = VoList.parse((await stub.Serve(vos_pb2.ServeVoRequest(name="atlas", http_port=4711))).text).get("atlas")
    assert told is not None and told.servers[0].http == 4711


async def test_a_dissolved_vo_is_refused_everywhere_and_for_good(lab: LabGrid) -> None:
    authority = await start_authority(lab)
    for site in SITES:
        await lab.start("storage", site=site)
        await space(lab, "alice", "cms", site)
    (lab.directory / "data").write_bytes(b"some data")
    hers = await lab.channel("storage", credential=lab.user("alice"))
    kept = await storage.put_file(hers, lab.directory / "data", "cms")
    await delegate(hers, lab.user("alice"))
    with pytest.raises(Refused):  # a VO that lives is none of the operator's business
        await storage.stat(await lab.channel("storage", credential=lab.operator()), kept.surl)
    await authority.dissolve_vo("cms", "experiment over")
    for site in SITES:
        error = await refusal_of(lab, "alice", "cms", "VO_DISSOLVED", site)
        assert isinstance(error, Refused) and "the VO cms was dissolved at" in error.sentence
        assert "experiment over" in error.sentence
    assert lab.audit("storage.CERN", "session.closed")[-1]["reason"] == "VO_DISSOLVED"
    operator = await lab.channel("storage", credential=lab.operator())  # the files stay
    assert [file.surl async for file in storage.list_files(operator, "cms")] == [kept.surl]
    assert await storage.read_range(operator, kept.surl) == b"some data"
    await storage.remove(operator, kept.surl)
    async with asyncio.timeout(PROMPT_S):
        while lab.agents["storage.CERN"].context.delegations.all():  # noqa: ASYNC110  another agent's doing
            await asyncio.sleep(0.01)
    assert "experiment over" in lab.audit("storage.CERN", "delegation.recalled")[0]["sentence"]
    with pytest.raises(NotFound):
        await storage.stat(operator, kept.surl)
    await lab.stop("storage.RAL")
    await lab.stop("authority.CERN")
    await lab.start("storage", site="RAL")  # with nobody to ask
    await refusal_of(lab, "alice", "cms", "VO_DISSOLVED", "RAL")


async def test_a_site_that_accepts_no_more_refuses_and_others_do_not(lab: LabGrid) -> None:
    authority = await start_authority(lab)
    for site in SITES:
        await lab.start("storage", site=site)
    await authority.refuse_vo("cms", ["RAL"])
    error = await refusal_of(lab, "alice", "cms", "VO_NOT_ACCEPTED", "RAL")
    assert "the site RAL does not accept the VO cms" in error.sentence
    await space(lab, "alice", "cms", "CERN")
    await authority.accept_vo("cms", ["RAL"])
    async with asyncio.timeout(PROMPT_S):
        while True:
            try:
                await space(lab, "alice", "cms", "RAL")
                break
            except Refused:
                await asyncio.sleep(0.01)


async def test_a_new_vo_works_only_where_it_is_accepted(lab: LabGrid) -> None:
    authority = await start_authority(lab)
    for site in SITES:
        await lab.start("storage", site=site, options={"quota_bytes": 1000})
    await authority.create_vo("atlas")
    await refusal_of(lab, "bob", "atlas", "VO_NOT_ACCEPTED")
    await authority.accept_vo("atlas", ["CERN"])
    async with asyncio.timeout(PROMPT_S):
        while True:
            try:
                found = await space(lab, "bob", "atlas")
                break
            except Refused:
                await asyncio.sleep(0.01)
    assert {use.vo: use.quota_bytes for use in found.vos} == {"cms": 1000, "atlas": 1000}
    await refusal_of(lab, "bob", "atlas", "VO_NOT_ACCEPTED", "RAL")


@pytest.mark.parametrize("text", ["", "{", '{"vos": 1}'])
async def test_a_copy_that_cannot_be_read_lets_no_member_in_until_it_comes_again(lab: LabGrid, text: str) -> None:
    copy = lab.directory / "agents" / "storage.CERN" / "vos.json"
    lab.plan("storage")
    copy.write_text(text)
    await lab.start("storage")
    error = await refusal_of(lab, "alice", "cms", "VO_LIST_UNREADABLE")
    assert "list of VOs" in error.sentence
    await storage.space(await lab.channel("storage", credential=lab.operator()))  # no VO's
    await start_authority(lab)
    async with asyncio.timeout(PROMPT_S):
        while True:
            try:
                await space(lab, "alice", "cms")
                break
            except Refused:
                await asyncio.sleep(0.01)
    assert json.loads(copy.read_text())["vos"][0]["name"] == "cms"


# ---- the VO server


async def served(authority: AuthorityClient, vo: str) -> VoServer:
    """Where a VO's server is, once its door is open."""
    async with asyncio.timeout(PROMPT_S):
        while True:
            found = (await authority.vos()).get(vo)
            if found is not None and found.servers and found.servers[0].http:
                return found.servers[0]
            await asyncio.sleep(0.01)


async def members(port: int, vo: str) -> list[str]:
    """What the member list says to anybody. Raises LdapError where there is none."""
    async with await LdapClient.connect("localhost", port, timeout_s=5) as client:
        found = await client.search(f"o={vo}", Equality("objectClass", "gridMember"), attributes=("subject",))
    return [entry.first("subject") for entry in found]


async def test_a_vo_server_speaks_for_a_new_vo_until_it_is_dissolved(lab: LabGrid) -> None:
    authority = await start_authority(lab)
    await authority.create_vo("atlas")  # its server is not up yet
    await authority.accept_vo("atlas", ["CERN"])
    own_map = {"map_updater": True, "map_file": str(lab.directory / "own-mapfile"), "map_refresh_s": 0.1}
    await lab.start("storage", fabric=own_map)
    await lab.start("vo", name="vo.cms")
    server = await served(authority, "atlas")
    assert server.http not in (0, lab.port("vo.cms", "http"))

    ada = lab.user("ada", vo=None)
    name = str(lab.user_certificate("ada").identity)
    channel = await lab.channel("vo", name="vo.cms", credential=lab.operator())
    cms, atlas = VoClient(channel), VoClient(channel, "atlas")
    await atlas.add_member(name)
    await atlas.grant(name, "/atlas/Role=VO-Admin")
    assert await cms.list_members() == [] and await members(server.ldap, "cms") == []
    assert await members(server.ldap, "atlas") == [name]
    async with asyncio.timeout(PROMPT_S):
        while True:
            try:
                await storage.space(await lab.channel("storage", credential=ada))
                break
            except (Refused, Unavailable) as error:
                assert error.reason in ("NOT_MAPPED", "MEMBERS_UNKNOWN")
                await asyncio.sleep(0.05)

    mine = VoClient(await lab.channel("vo", name="vo.cms", credential=ada), "atlas")
    issued = await mine.issue_attributes(["/atlas/Role=VO-Admin"])
    manager = create_proxy(
        lab.user_certificate("ada"), lifetime=timedelta(hours=1), now=lab.clock.now(),
        extensions=[proxy_extension([issued.attribute_certificate])],
    )  # fmt: skip
    as_manager = await lab.channel("vo", name="vo.cms", credential=manager)
    await VoClient(as_manager, "atlas").add_group("/atlas/higgs")
    with pytest.raises(Refused) as refused:
        await VoClient(as_manager, "cms").add_group("/cms/higgs")
    assert refused.value.reason == "ADMINISTRATOR_REQUIRED"
    with pytest.raises(NotFound) as unknown:
        await VoClient(channel, "lhcb").list_members()
    assert unknown.value.reason == "VO_UNKNOWN"

    await lab.stop("vo.cms")
    await lab.start("vo", name="vo.cms")
    assert await served(authority, "atlas") == server  # the same port
    async with asyncio.timeout(PROMPT_S):
        while not await _answers(server.http):  # noqa: ASYNC110  another agent's doing
            await asyncio.sleep(0.01)
    channel = await lab.channel("vo", name="vo.cms", credential=lab.operator())
    assert [member.subject for member in await VoClient(channel, "atlas").list_members()] == [name]

    await authority.dissolve_vo("atlas", "merged")
    async with asyncio.timeout(PROMPT_S):
        while await _answers(server.http):  # noqa: ASYNC110  another agent's doing
            await asyncio.sleep(0.01)
    with pytest.raises(LdapError):
        await members(server.ldap, "atlas")
    with pytest.raises(Refused, match="merged") as over:
        await VoClient(channel, "atlas").list_members()
    assert over.value.reason == "VO_DISSOLVED"
    with pytest.raises(Refused, match="merged") as dead:  # an attribute certificate from before
        await lab.channel("vo", name="vo.cms", credential=manager)
        await VoClient(await lab.channel("vo", name="vo.cms", credential=manager), "cms").get_member()
    assert dead.value.reason == "VO_DISSOLVED"
    async with asyncio.timeout(PROMPT_S):
        while name in (lab.directory / "own-mapfile").read_text():  # noqa: ASYNC110  another agent's doing
            await asyncio.sleep(0.01)
    assert (lab.directory / "agents" / "vo.cms" / "vo-atlas.db").exists()
    await cms.add_member(name)  # the other VO does not notice
    assert lab.audit("vo.cms", "vo.closed")[-1]["vo"] == "atlas"


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("localhost", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_a_door_whose_port_was_taken_is_found_at_another(lab: LabGrid) -> None:
    authority = await start_authority(lab)
    await authority.create_vo("atlas")
    await lab.start("vo", name="vo.cms")
    before = await served(authority, "atlas")
    await lab.stop("vo.cms")
    thief = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", before.http)
    try:
        await lab.start("vo", name="vo.cms")
        async with asyncio.timeout(PROMPT_S):
            while (await served(authority, "atlas")).http == before.http:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        thief.close()
