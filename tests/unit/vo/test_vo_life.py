"""Memberships of a running VO server: what time does, what the LDAP list shows, what survives."""

import asyncio
import socket
import sqlite3
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from support.grid import ORGANISATION, LabGrid

from agents.vo.client import VoClient
from agents.vo.door import VomsDoor
from agents.vo.issuing import Wanted
from fabric.clock import ManualClock, to_us
from fabric.errors import Conflict, Exhausted, GridError, NotFound, Refused
from fabric.ldap.client import LdapClient
from fabric.ldap.filters import Equality
from fabric.logs import null_logger
from fabric.tls_door import TlsStream
from security.validation import validate_client_chain

BASE = f"{ORGANISATION}/OU=Users/CN="
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
async def lab(tmp_path):
    async with LabGrid(tmp_path, clock=ManualClock(NOW)) as found:
        await found.start("vo", options={"groups": ["/cms/higgs"], "sweep_s": 3600})
        yield found


async def manager(lab: LabGrid) -> VoClient:
    return VoClient(await lab.channel("vo", credential=lab.operator()))


async def me(lab: LabGrid, name: str = "ada") -> VoClient:
    return VoClient(await lab.channel("vo", credential=lab.user(name, vo=None)))


async def listed(lab: LabGrid) -> list[str]:
    async with await LdapClient.connect("127.0.0.1", lab.port("vo.CERN", "ldap")) as client:
        found = await client.search("o=cms", Equality("objectClass", "gridMember"), attributes=("subject",))
        return sorted(entry.first("subject").removeprefix(BASE) for entry in found)


def organisation(lab: LabGrid):
    return lab.agents["vo.CERN"].agent.hosted["cms"].organisation


async def test_only_members_in_good_standing_are_in_the_list(lab):
    vo = await manager(lab)
    await (await me(lab)).request_membership("Ada")
    assert await listed(lab) == []
    await vo.approve(f"{BASE}ada", to_us(NOW + HOUR))
    await vo.add_member(f"{BASE}bob")
    assert await listed(lab) == ["ada", "bob"]
    await vo.suspend(f"{BASE}bob", "asked by security")
    assert await listed(lab) == ["ada"]
    await vo.add_member(f"{BASE}bob", "Bob with a new name")
    assert await listed(lab) == ["ada"], "new particulars take no suspension back"
    lab.clock.advance(3599)
    await organisation(lab).sweep()
    assert await listed(lab) == ["ada"]
    lab.clock.advance(1)
    await organisation(lab).sweep()
    assert await listed(lab) == []
    assert [line["by"] for line in lab.audit("vo.CERN", "member.expired")] == ["the clock"]
    await vo.renew(f"{BASE}ada")
    assert await listed(lab) == ["ada"]


async def test_a_new_policy_counts_when_its_grace_is_over(lab):
    vo, ada = await manager(lab), await me(lab)
    for name in ("ada", "bob"):
        await vo.add_member(BASE + name)
    await vo.publish_aup("one")
    assert await listed(lab) == []
    await ada.sign_aup(1)
    assert await listed(lab) == ["ada"]
    await vo.publish_aup("two", 3600)
    assert await listed(lab) == ["ada"]
    lab.clock.advance(3600)
    await organisation(lab).sweep()
    assert await listed(lab) == []
    with pytest.raises(Refused, match="signed only version 1") as caught:
        await ada.issue_attributes()
    assert caught.value.reason == "AUP_UNSIGNED"
    with pytest.raises(Conflict):
        await ada.sign_aup(1)
    await ada.sign_aup(2)
    assert await listed(lab) == ["ada"]


async def test_everything_survives_a_restart_and_ends_that_passed_meanwhile_count(lab):
    vo = await manager(lab)
    await vo.publish_aup("one")
    await (await me(lab)).request_membership()
    await (await me(lab)).sign_aup(1)
    await vo.approve(f"{BASE}ada", to_us(NOW + HOUR))
    await vo.grant(f"{BASE}ada", "/cms/higgs")
    await vo.set_attribute(f"{BASE}ada", "nickname", "ada")
    await lab.stop("vo.CERN")
    lab.clock.advance(1800)
    await lab.start("vo", options={"sweep_s": 3600})
    found = await (await manager(lab)).get_member(f"{BASE}ada")
    assert (list(found.member.groups), dict(found.member.attributes)) == (["/cms/higgs"], {"nickname": "ada"})
    assert found.objection == "" and await listed(lab) == ["ada"]
    await lab.stop("vo.CERN")
    lab.clock.advance(1800)
    await lab.start("vo", options={"sweep_s": 3600})
    assert await listed(lab) == []
    found = await (await manager(lab)).get_member(f"{BASE}ada")
    assert found.objection_reason == "MEMBER_EXPIRED"


async def test_a_store_from_before_memberships_had_a_life(lab):
    await (await manager(lab)).add_member(f"{BASE}ada")
    await lab.stop("vo.CERN")
    path = lab.directory / "agents" / "vo.CERN" / "vo.db"
    path.unlink()
    for more in path.parent.glob("vo.db-*"):
        more.unlink()
    old = sqlite3.connect(path)
    old.executescript(
        "CREATE TABLE members (subject VARCHAR NOT NULL PRIMARY KEY, common_name VARCHAR NOT NULL, "
        "email VARCHAR NOT NULL, groups VARCHAR NOT NULL, added_at_us BIGINT NOT NULL);"
        f"INSERT INTO members VALUES ('{BASE}ada', 'Ada', '', '[\"/cms/a/b\", \"/cms/c/Role=pilot\"]', 5);"
        "PRAGMA user_version = 1;"
    )
    old.close()
    await lab.start("vo")
    vo = await manager(lab)
    assert (await vo.get_member(f"{BASE}ada")).objection == "" and await listed(lab) == ["ada"]
    found = await vo.list_groups()
    assert list(found.groups) == ["/cms", "/cms/a", "/cms/a/b", "/cms/c"] and "pilot" in found.roles


async def test_who_may_see_what(lab):
    vo, ada, bob = await manager(lab), await me(lab), await me(lab, "bob")
    for name in ("ada", "bob"):
        await vo.add_member(BASE + name)
    await vo.suspend(f"{BASE}bob", "a secret reason")
    assert (await bob.get_member()).member.reason == "a secret reason"
    with pytest.raises(Refused) as caught:
        await ada.get_member(f"{BASE}bob")
    assert caught.value.reason == "MANAGER_REQUIRED"
    assert {member.reason for member in await ada.list_members()} == {""}
    assert {member.reason for member in await vo.list_members()} == {"", "a secret reason"}
    stranger = await me(lab, "eve")
    for call in (stranger.get_member(), stranger.sign_aup(1)):
        with pytest.raises(NotFound) as missing:
            await call
        assert missing.value.reason == "NOT_A_MEMBER"


async def test_nobody_but_managers_changes_anything(lab):
    ada = await me(lab)
    await (await manager(lab)).add_member(f"{BASE}ada")
    other = f"{BASE}bob"
    calls = (
        ada.add_member(other), ada.remove_member(other), ada.approve(other), ada.suspend(other, "x"),
        ada.restore(other), ada.renew(other), ada.add_group("/cms/x"), ada.remove_group("/cms/higgs"),
        ada.add_role("x"), ada.remove_role("VO-Admin"), ada.grant(f"{BASE}ada", "/cms/Role=VO-Admin"),
        ada.withdraw(other, "/cms/x"), ada.set_attribute(other, "a", "b"), ada.publish_aup("x"),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(Refused) as caught:
            await call
        assert caught.value.reason == "ADMINISTRATOR_REQUIRED"
    limited = VoClient(await lab.channel("vo", credential=lab.user("ada", vo=None, limited=True)))
    for call in (limited.sign_aup(1), limited.issue_attributes()):
        with pytest.raises(Refused) as caught:
            await call
        assert caught.value.reason == "LIMITED_PROXY"


async def test_asking_twice_changes_nothing_and_members_stay_members(lab):
    ada = await me(lab)
    first = await ada.request_membership("Ada", "a@example.org")
    again = await ada.request_membership("Other", "b@example.org")
    assert again.member == first.member
    await (await manager(lab)).approve(f"{BASE}ada")
    assert (await ada.request_membership()).objection == ""
    assert len(lab.audit("vo.CERN", "member.requested")) == 1


async def test_people_who_ask_cannot_fill_the_vo(lab):
    await lab.stop("vo.CERN")
    await lab.start("vo", options={"max_requests": 2, "max_members": 3, "sweep_s": 3600})
    for name in ("ada", "bob"):
        await (await me(lab, name)).request_membership()
    with pytest.raises(Exhausted) as caught:
        await (await me(lab, "eve")).request_membership()
    assert caught.value.reason == "REQUESTS_EXHAUSTED"
    await (await me(lab, "bob")).request_membership()
    await (await manager(lab)).approve(f"{BASE}ada")
    await (await me(lab, "eve")).request_membership()


async def test_policies_and_attributes_out_of_bounds(lab):
    vo = await manager(lab)
    await vo.add_member(f"{BASE}ada")
    calls = (
        (vo.publish_aup("  "), "AUP_INVALID"), (vo.publish_aup("x" * 70_000), "AUP_INVALID"),
        (vo.publish_aup("x", -1), "AUP_INVALID"), (vo.publish_aup("x", 1e12), "AUP_INVALID"),
        (vo.set_attribute(f"{BASE}ada", "no name", "x"), "ATTRIBUTE_INVALID"),
        (vo.set_attribute(f"{BASE}ada", "n", "x" * 1001), "ATTRIBUTE_INVALID"),
        (vo.set_attribute(f"{BASE}ada", "n", "bell\x07"), "ATTRIBUTE_INVALID"),
        (vo.withdraw(f"{BASE}ada", "/cms"), "FQAN_INVALID"),
        (vo.suspend(f"{BASE}nobody", "x"), "NOT_A_MEMBER"),
        (vo.suspend("not a name", "x"), "NAME_MALFORMED"),
        (vo.approve(f"{BASE}ada"), "MEMBER_STATE"),
        (vo.restore(f"{BASE}ada"), "MEMBER_STATE"),
        (vo.issue_attributes(lifetime_s=-1), "LIFETIME_INVALID"),
    )  # fmt: skip
    for call, reason in calls:
        with pytest.raises(GridError) as caught:
            await call
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("ban", "refused"),
    [
        ("vo: cms", True),
        ("fqan: /cms/higgs", True),
        ("fqan: /cms/Role=VO-Admin", False),  # not asked for, so not given
        ("network: 127.0.0.0/8", True),
        ("network: 192.0.2.0/24", False),
        ("vo: atlas", False),
    ],
)
async def test_what_is_banned_is_not_issued(lab, ban, refused):
    vo = await manager(lab)
    await vo.add_member(f"{BASE}ada", groups=["/cms/higgs", "/cms/Role=VO-Admin"])
    identity = validate_client_chain(lab.user("ada", vo=None).pem_chain(), lab.grid.trust, lab.grid.policy, NOW)
    lab.ban_file.write_text(f"{ban}\n")
    lab.agents["vo.CERN"].context.judge.refresh()
    if not refused:
        issued = await organisation(lab).issue(identity, (), Wanted(), "test", "127.0.0.1")
        assert issued.fqans == ("/cms", "/cms/higgs")
        return
    with pytest.raises(GridError) as caught:
        await organisation(lab).issue(identity, (), Wanted(), "test", "127.0.0.1")
    assert caught.value.reason == "BANNED" and not lab.audit("vo.CERN", "attributes.issued")


# The door


def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def ask(lab: LabGrid, *pieces: bytes, eof: bool = False) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.port("vo.CERN", "http"), ssl=tls())
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    if eof:
        writer.close()
        return b""
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01garbage",
        b"POST /generate-ac HTTP/1.1\r\n\r\n",
        b"GET /etc/passwd HTTP/1.1\r\n\r\n",
        b"GET /" + b"x" * 20_000,
        b"<voms><command>" + b"A" * 20_000,
    ],
    ids=["garbage", "post", "path", "long", "long xml"],
)
async def test_the_door_answers_anything_with_a_sentence(lab, data):
    answer = await ask(lab, data)
    assert b"<message>" in answer
    assert lab.audit("vo.CERN", "attributes.refused")


async def test_a_certificate_that_cannot_be_read_is_a_refusal_and_no_defect():
    class Unreadable:
        def get_peer_certificate(self, *, as_cryptography):
            raise ValueError("negative serial")

    class Stream(TlsStream):
        answer = b""

        async def read(self):
            return b"GET /generate-ac?fqans=/cms HTTP/1.0\n\n"

        async def write(self, data):
            self.answer = data

    stream = Stream(Unreadable(), None, "192.0.2.1:7")
    await VomsDoor("cms", None, None, null_logger()).serve(stream)
    assert stream.answer.startswith(b"HTTP/1.1 403") and b"cannot be read (negative serial)" in stream.answer


async def test_the_door_reads_requests_in_pieces_and_outlives_rude_clients(lab):
    request = b"0GET /generate-ac?fqans=/cms HTTP/1.0\nHost: x\n\n"
    answer = await ask(lab, *(request[i : i + 1] for i in range(len(request))))
    assert answer.startswith(b"HTTP/1.1 403") and b"without a certificate" in answer
    await ask(lab, eof=True)
    await ask(lab, b"0", eof=True)
    await ask(lab, b"GET /gen", eof=True)
    with socket.create_connection(("127.0.0.1", lab.port("vo.CERN", "http"))) as plain:
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        plain.settimeout(5)
        await asyncio.to_thread(plain.recv, 100)
    assert (await ask(lab, request)).startswith(b"HTTP/1.1 403")
