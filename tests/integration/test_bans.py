"""The grid's ban list from an operator's call to the last session and process; real TLS, sessions and processes."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from gridfabric.security.v1 import security_pb2, security_pb2_grpc
from support.grid import LabGrid, Offset
from support.site import ENDED, Site, job

from agents.authority.client import AuthorityClient
from agents.gatekeeper import client as gatekeeper
from agents.storage import client as storage
from fabric.errors import Conflict, GridError, InvalidRequest, Refused

FOLLOW: dict[str, Any] = {"ban_updater": True, "trust_poll_s": 3600.0}
"""A look at the disk once an hour only: all else came over the stream."""
PROMPT_S = 60.0


@pytest.fixture
async def lab() -> AsyncIterator[LabGrid]:
    # Payloads run under pool accounts, which must reach their scratch directories.
    with tempfile.TemporaryDirectory(prefix="gridfabric-bans-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        async with LabGrid(Path(folder), clock=Offset(), fabric=FOLLOW) as made:
            made.plan("authority")
            yield made


async def start_authority(lab: LabGrid) -> AuthorityClient:
    await lab.start("authority", options={"directory": str(lab.grid.ca.directory), "sites": {}})
    return AuthorityClient(await lab.channel("authority", credential=lab.operator()))


async def space(lab: LabGrid, who: str, site: str = "CERN") -> Any:
    return await storage.space(await lab.channel("storage", site=site, credential=lab.user(who)))


async def refused(lab: LabGrid, who: str, site: str = "CERN") -> GridError:
    """Why the storage element refuses somebody, once it does."""
    async with asyncio.timeout(PROMPT_S):
        while True:
            try:
                await space(lab, who, site)
            except GridError as error:
                return error
            await asyncio.sleep(0.01)


async def accepted(lab: LabGrid, who: str, site: str = "CERN") -> None:
    async with asyncio.timeout(PROMPT_S):
        while True:
            try:
                await space(lab, who, site)
                return
            except Refused:
                await asyncio.sleep(0.01)


async def test_a_ban_ends_streams_and_jobs_of_the_banned_and_of_nobody_else(lab: LabGrid) -> None:
    authority = await start_authority(lab)
    site = Site(lab)
    await site.start()
    bob = lab.user("bob")
    bobs_channel = await lab.channel("gatekeeper", credential=bob)
    await gatekeeper.status(bobs_channel, [])
    sleeper = job("-c", "sleep 300")
    await site.submit(sleeper)
    await site.reaches(sleeper, pb.JOB_STATE_RUNNING)

    async def follow() -> list[pb.JobUpdate]:
        return [update async for update in gatekeeper.watch(site.channel)]

    following = asyncio.create_task(follow())
    made = await authority.ban("subject", str(lab.user_certificate("alice").identity), reason="laptop stolen")
    assert made.author == str(lab.operator().identity)
    with pytest.raises(Refused) as caught:
        async with asyncio.timeout(PROMPT_S):
            await following
    assert caught.value.reason == "BANNED"
    assert "laptop stolen" in caught.value.sentence
    assert lab.audit("gatekeeper.CERN", "session.closed")[-1]["sentence"] == caught.value.sentence
    async with asyncio.timeout(PROMPT_S):
        while not lab.audit("gatekeeper.CERN", "jobs.stopped"):  # noqa: ASYNC110  another agent's doing
            await asyncio.sleep(0.01)
    await gatekeeper.status(bobs_channel, [])  # bob did not notice

    assert await authority.lift(made.id)
    async with asyncio.timeout(PROMPT_S):
        while True:
            try:
                (seen,) = await gatekeeper.status(site.channel, [sleeper.job_id])
            except Refused:
                await asyncio.sleep(0.01)
                continue
            if seen.state in ENDED:
                break
            await asyncio.sleep(0.01)
    assert seen.state == pb.JOB_STATE_CANCELLED


async def test_a_ban_at_one_site_holds_there_and_ends_by_itself(lab: LabGrid) -> None:
    authority = await start_authority(lab)
    await lab.start("storage", site="CERN")
    await lab.start("storage", site="RAL")
    await space(lab, "alice", "RAL")
    until = datetime.now(UTC) + timedelta(hours=1)
    await authority.ban("vo", "cms", sites=["RAL"], until=until, reason="maintenance")
    assert "maintenance" in (await refused(lab, "alice", "RAL")).sentence
    await space(lab, "alice", "CERN")
    assert isinstance(lab.clock, Offset)
    lab.clock.ahead = timedelta(hours=1, seconds=2)
    await accepted(lab, "alice", "RAL")
    assert await authority.bans() == []


async def test_bans_outlive_restarts_and_the_absence_of_the_authority(lab: LabGrid) -> None:
    authority = await start_authority(lab)
    await lab.start("storage")
    await authority.ban("pattern", "/*/CN=alice")
    assert (await refused(lab, "alice")).reason == "BANNED"
    await lab.stop("authority.CERN")
    await lab.stop("storage.CERN")
    await lab.start("storage")
    assert (await refused(lab, "alice")).reason == "BANNED"
    await space(lab, "bob")
    await lab.stop("storage.CERN")
    copy = lab.certificates / ".gridfabric-bans"
    copy.write_text("what is this\n")
    await lab.start("storage")
    assert (await refused(lab, "bob")).reason == "BAN_LIST_UNREADABLE"
    authority = await start_authority(lab)
    await accepted(lab, "bob")  # the list came again, and alice is still on it
    assert (await refused(lab, "alice")).reason == "BANNED"


async def test_only_operators_ban_and_nonsense_is_refused(lab: LabGrid) -> None:
    authority = await start_authority(lab)
    for who in (lab.user("alice"), lab.user("eve", vo=None), lab.service("storage")):
        other = AuthorityClient(await lab.channel("authority", credential=who))
        for attempt in (other.ban("vo", "cms"), other.lift("1")):
            with pytest.raises(Refused):
                await attempt
    with pytest.raises(Refused):
        await AuthorityClient(await lab.channel("authority", credential=lab.user("alice"))).bans()
    past = datetime.now(UTC) - timedelta(seconds=1)
    for kind, value, more in (
        ("vos", "cms", {}),
        ("vo", "c ms", {}),
        ("subject", "alice", {}),
        ("subject", "/CN=a | until 2020-01-01T00:00:00Z", {}),
        ("network", "0.0.0.0/0", {}),
        ("pattern", "/*", {}),
        ("vo", "cms", {"until": past}),
        ("vo", "cms", {"reason": "a\nb"}),
        ("vo", "cms", {"sites": ["R AL"]}),
        ("vo", "cms", {"ban_id": "../1"}),
    ):
        with pytest.raises(InvalidRequest) as caught:
            await authority.ban(kind, value, **more)
        assert caught.value.reason == "BAN_INVALID"
    assert await authority.bans() == []


async def test_a_recalled_delegation_is_refused_everywhere_and_its_jobs_end(lab: LabGrid) -> None:
    await start_authority(lab)
    site = Site(lab)
    await site.start()
    await lab.start("storage")
    sleeper = job("-c", "sleep 300")
    await site.submit(sleeper)
    await site.reaches(sleeper, pb.JOB_STATE_RUNNING)
    alice = str(lab.user_certificate("alice").identity)
    stolen = lab.agents["gatekeeper.CERN"].context.delegations.get(alice)
    await storage.space(await lab.channel("storage", credential=stolen))

    ledger: Any = security_pb2_grpc.DelegationStub(site.channel)
    (entry,) = (await ledger.List(security_pb2.DelegationListRequest())).delegations
    assert (entry.subject, list(entry.job_ids), entry.jobs) == (alice, [sleeper.job_id], 1)
    assert 0 < entry.since_us < entry.expires_at_us
    bobs: Any = security_pb2_grpc.DelegationStub(await lab.channel("gatekeeper", credential=lab.user("bob")))
    assert not (await bobs.List(security_pb2.DelegationListRequest())).delegations
    for attempt in (
        bobs.List(security_pb2.DelegationListRequest(subject=alice)),
        bobs.Recall(security_pb2.DelegationRecallRequest(subject=alice)),
    ):
        with pytest.raises(Refused) as caught:
            await attempt
        assert caught.value.reason == "NOT_OWNER"

    own = AuthorityClient(await lab.channel("authority", credential=site.alice))
    until = datetime.now(UTC) + timedelta(hours=1)
    await own.ban("certificate", f"{entry.serial} {entry.issuer}", until=until)
    async with asyncio.timeout(PROMPT_S):
        while True:
            try:
                await storage.space(await lab.channel("storage", credential=stolen))
            except Refused as error:
                assert error.reason == "BANNED"
                break
            await asyncio.sleep(0.01)
    (recalled,) = (await ledger.Recall(security_pb2.DelegationRecallRequest())).recalled
    assert recalled.serial == entry.serial
    (ended,) = await site.ended(sleeper)
    assert ended.state == pb.JOB_STATE_CANCELLED
    assert ended.reason in ("DELEGATION_RECALLED", "BANNED")  # whichever came first
    assert not (await ledger.List(security_pb2.DelegationListRequest())).delegations
    await space(lab, "alice")  # her own proxy stays good
    assert lab.audit("gatekeeper.CERN", "delegation.recalled")[0]["serials"] == [entry.serial]


async def test_users_ban_only_proxies_that_they_signed(lab: LabGrid) -> None:
    await start_authority(lab)
    alice = str(lab.user_certificate("alice").identity)
    # Also somebody whom the authority does not yet know as a member.
    own = AuthorityClient(await lab.channel("authority", credential=lab.user("alice", vo=None)))
    until = datetime.now(UTC) + timedelta(hours=1)
    for kind, value, more in (
        ("vo", "cms", {"until": until}),
        ("subject", alice, {"until": until}),
        ("certificate", f"1 {lab.grid.ca.subject}", {"until": until}),
        ("certificate", f"1 {alice}2", {"until": until}),
        ("certificate", f"1 {alice}", {"until": until, "sites": ["CERN"]}),
    ):
        with pytest.raises(Refused) as refusal:
            await own.ban(kind, value, **more)
        assert refusal.value.reason == "NOT_OWNER"
    for end in (None, until + timedelta(days=20)):
        with pytest.raises(InvalidRequest):
            await own.ban("certificate", f"1 {alice}", until=end)
    await own.ban("certificate", f"1 {alice}/CN=17", until=until)


async def test_a_call_may_be_repeated(lab: LabGrid) -> None:
    authority = await start_authority(lab)
    first = await authority.ban("vo", "cms", ban_id="one")
    assert await authority.ban("vo", "cms", ban_id="one") == first
    with pytest.raises(Conflict):
        await authority.ban("vo", "atlas", ban_id="one")
    assert [ban.value for ban in await authority.bans()] == ["cms"]
    assert await authority.lift("one") and not await authority.lift("one")
    assert [line["event"] for line in lab.audit("authority.CERN") if line["event"].startswith("ban.")] == [
        "ban.added",
        "ban.lifted",
    ]


async def test_agents_of_one_process_hear_by_one_stream_and_none_of_them_makes_the_others_deaf(lab: LabGrid) -> None:
    """One event loop here stands for a pack: so it has one listener among the agents and the authority itself."""
    authority = await start_authority(lab)
    sites = ("CERN", "RAL", "DESY")
    for site in sites:
        await lab.start("storage", site=site)
        await space(lab, "alice", site)

    async def listener(*, after: str = "") -> str:
        """The one agent that has streams open at the authority, once it is not `after`."""
        async with asyncio.timeout(PROMPT_S):
            while True:
                sessions = lab.agents["authority.CERN"].server.sessions
                found = [session.peer.agent_name for session in sessions if session.streams]
                assert len(found) <= 1
                if found and found[0] != after:
                    return found[0]
                await asyncio.sleep(0.01)

    first = await listener()
    await authority.ban("subject", str(lab.service(*first.split(".")[:1], site=first.split(".")[1]).subject))
    second = await listener(after=first)
    await authority.ban("subject", str(lab.user_certificate("alice").identity))
    for site in sites:
        assert (await refused(lab, "alice", site)).reason == "BANNED"
    if second.startswith("storage"):
        await lab.stop(second)
        await listener(after=second)
    await authority.ban("subject", str(lab.user_certificate("bob").identity))
    for site in sites:
        if f"storage.{site}" in lab.agents:
            assert (await refused(lab, "bob", site)).reason == "BANNED"
