"""A computing element and a storage space kept for groups and roles: published, matched, refused, used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from support.grid import ORGANISATION, LabGrid
from support.site import Site, job

from agents.broker.client import BrokerClient
from agents.gatekeeper import client as ce_client
from agents.storage import client as se_client
from fabric.errors import GridError, Refused, Unauthenticated
from fabric.rpc.delegation import delegate
from security import proxies, voms
from security.authority import CertificateAuthority
from security.credentials import Credential
from security.installation import install_authority
from security.testing import shared_key

PRODUCTION = "/cms/Role=production"
TRUE = 'Executable = "/bin/true"; VirtualOrganisation = "cms";'


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path, vos=["cms", "atlas"]) as made:
        made.plan("vo", name="vo.cms")
        made.plan("vo", name="vo.atlas")
        for name, vo in (("alice", "cms"), ("bob", "atlas")):
            made.user(name, vo=vo)  # known before any agent reads the map file
        yield made


def forged(lab: LabGrid, signer: Credential | None = None) -> Credential:
    """The role, signed by somebody who is no VO server."""
    alice, signer = lab.user_certificate("alice"), signer or lab.grid.user(f"{ORGANISATION}/OU=Users/CN=vo")
    life, now = timedelta(hours=1), lab.clock.now()
    encoded = voms.create_attribute_certificate(
        signer, alice.certificate, vo="cms", uri="localhost:1", fqans=[PRODUCTION], lifetime=life, now=now
    )
    return proxies.create_proxy(alice, lifetime=life, now=now, extensions=[voms.proxy_extension([encoded])])


async def refused(kind: type[GridError], reason: str, awaitable: Any) -> GridError:
    with pytest.raises(kind) as caught:
        await awaitable
    assert caught.value.reason == reason, caught.value
    return caught.value


async def outcome(lab: LabGrid, proxy: Credential, vo: str = "cms") -> tuple[str, str]:
    """What the gatekeeper says to a job of this proxy: the reason and the sentence, empty if it is taken."""
    channel = await lab.channel("gatekeeper", credential=proxy)
    await delegate(channel, proxy)
    one = job("-c", "true")
    one.description.vo = vo
    (found,) = await ce_client.submit(channel, [one])
    return found.reason, found.sentence


async def test_a_queue_for_a_role_takes_only_who_shows_it(lab: LabGrid) -> None:
    await Site(lab).start(gatekeeper={"access": [PRODUCTION, "/cms/higgs"]})
    assert await outcome(lab, lab.user("alice", fqans=[PRODUCTION, "/cms"])) == ("", "")
    assert await outcome(lab, lab.user("alice", fqans=["/cms", "/cms/higgs/top"])) == ("", "")
    reason, sentence = await outcome(lab, lab.user("alice"))
    assert reason == "ACCESS_DENIED" and "shows no groups or roles; make a proxy" in sentence
    reason, sentence = await outcome(lab, lab.user("alice", fqans=["/cms"]))
    assert reason == "ACCESS_DENIED" and "shows /cms; make a proxy with it: grid proxy init --voms cms:" in sentence
    reason, sentence = await outcome(lab, lab.user("bob", vo="atlas", fqans=["/atlas/Role=production"]), "atlas")
    assert reason == "ACCESS_DENIED" and "of atlas shows /atlas/Role=production" in sentence
    lines = lab.audit("gatekeeper.CERN", "job.refused")
    assert [line["reason"] for line in lines] == ["ACCESS_DENIED"] * 3 and lines[-1]["sentence"] == sentence
    await refused(Unauthenticated, "ATTRIBUTE_INVALID", outcome(lab, forged(lab)))


async def test_jobs_go_to_the_queue_of_their_role_and_list_match_says_why_not(lab: LabGrid) -> None:
    kinds = ("information", "bookkeeping", "gatekeeper", "worker", "broker")
    for kind in kinds:
        lab.plan(kind)
    options: dict[str, dict[str, Any]] = {
        "information": {"heartbeat_s": 0.2},
        "gatekeeper": {"heartbeat_s": 0.5, "access": [PRODUCTION]},
        "worker": {"slots": 2},
    }
    for kind in kinds:
        await lab.start(kind, options=options.get(kind))
    plain, role = lab.user("alice", fqans=["/cms"]), lab.user("alice", fqans=[PRODUCTION, "/cms"])
    channel = await lab.channel("broker", credential=role)
    await delegate(channel, role)
    broker = BrokerClient(channel)
    end = time.monotonic() + 20
    while not [match for match in await broker.list_match(TRUE) if match.matches]:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    (match,) = await BrokerClient(await lab.channel("broker", credential=plain)).list_match(TRUE)
    assert not match.matches
    assert match.failing_term == 'Member("VO:cms", other.GlueCEAccessControlBaseRule)'
    assert match.explanation == f"the CE takes VOMS:{PRODUCTION}; your proxy shows /cms"
    answer = await broker.submit(TRUE)
    async with asyncio.timeout(60):
        async for update in ce_client.watch(await lab.channel("gatekeeper", credential=role)):
            if update.job_id == answer.job_id and update.state == pb.JOB_STATE_DONE:
                break


async def test_a_space_for_a_group_is_written_by_it_and_read_by_the_vo(lab: LabGrid, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"some data")
    await lab.start("storage", options={"reserve_bytes": 0, "write_access": ["/cms/production"]})

    async def channel(name: str = "alice", vo: str = "cms", **more: Any) -> Any:
        return await lab.channel("storage", credential=lab.user(name, vo=vo, **more))

    writer = await channel(fqans=["/cms", "/cms/production"])
    stored = await se_client.put_file(writer, tmp_path / "data", "cms")
    reader = await channel(fqans=["/cms"])
    await se_client.get_file(reader, stored.surl, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"some data"
    error = await refused(Refused, "ACCESS_DENIED", se_client.put_file(reader, tmp_path / "data", "cms"))
    assert "writing to the space of cms is kept here for /cms/production" in error.sentence
    await refused(Refused, "ACCESS_DENIED", se_client.remove(reader, stored.surl))
    await refused(Refused, "ACCESS_DENIED", se_client.put_file(await channel(), tmp_path / "data", "cms"))
    bob = await channel("bob", "atlas", fqans=["/atlas/production"])
    await refused(Refused, "ACCESS_DENIED", se_client.put_file(bob, tmp_path / "data", "atlas"))
    await refused(Refused, "OTHER_VO", se_client.put_file(bob, tmp_path / "data", "cms"))
    of_a_job = await channel(fqans=["/cms/production"], limited=True)
    await se_client.put_file(of_a_job, tmp_path / "data", "cms")
    await se_client.remove(writer, stored.surl)


async def test_what_is_no_fqan_is_refused_when_the_agent_starts(lab: LabGrid) -> None:
    for kind, options in (("gatekeeper", {"access": ["cms"]}), ("storage", {"write_access": ["VOMS:/cms"]})):
        with pytest.raises(GridError) as caught:
            await lab.start(kind, options=options)
        assert caught.value.reason == "SETTINGS_INVALID" and "is no FQAN such as" in caught.value.sentence


async def test_attributes_for_some_hosts_only(lab: LabGrid) -> None:
    await Site(lab).start(gatekeeper={"access": [PRODUCTION]})
    alice, server, life, now = (
        lab.user_certificate("alice"),
        lab.service("vo", "vo.cms"),
        timedelta(hours=1),
        lab.clock.now(),
    )

    def proxy(*targets: str) -> Credential:
        encoded = voms.create_attribute_certificate(
            server, alice.certificate, vo="cms", uri="localhost:1", fqans=[PRODUCTION], lifetime=life, now=now,
            targets=targets,
        )  # fmt: skip
        return proxies.create_proxy(alice, lifetime=life, now=now, extensions=[voms.proxy_extension([encoded])])

    assert await outcome(lab, proxy("ce.example.org", "LocalHost")) == ("", "")
    error = await refused(Unauthenticated, "ATTRIBUTE_INVALID", outcome(lab, proxy("ce.example.org")))
    assert "it is only for ce.example.org, not for localhost" in error.sentence and "--target" in error.sentence


async def test_a_vo_server_named_by_another_authority_speaks_for_nobody(lab: LabGrid) -> None:
    """One that a site's manager installed by hand, with a namespace of everything."""
    life, now = timedelta(days=1), lab.clock.now()
    rogue = CertificateAuthority.create(
        lab.directory / "rogue", "/C=YY/O=Rogue/CN=CA", lifetime=9 * life, now=now, key=shared_key("ec-p256", 402),
        namespace="/*",
    )  # fmt: skip
    try:
        install_authority(lab.certificates, rogue.certificate, rogue.signing_policy(), rogue.build_crl(now, life))
        key = shared_key("ec-p256", 403)
        subject = f"{ORGANISATION}/OU=CERN/CN=vo/vo.cms"
        made = rogue.issue_host(["localhost"], key.public_key(), subject=subject, lifetime=life, now=now)
    finally:
        rogue.close()
    await Site(lab).start(gatekeeper={"access": [PRODUCTION]})
    assert await outcome(lab, lab.user("alice", fqans=[PRODUCTION])) == ("", "")
    error = await refused(Unauthenticated, "ATTRIBUTE_INVALID", outcome(lab, forged(lab, Credential(made, key))))
    assert "names /C=XX/O=TestGrid/OU=CERN/CN=vo/vo.cms" in error.sentence
