"""Authorities made, added, rolled over and removed on a running grid, pushed to every agent; real TLS and sessions."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from gridfabric.authority.v1 import trust_pb2, trust_pb2_grpc
from support.grid import ORGANISATION, LabGrid
from unit.authority.test_authority_register import request

from agents.authority import trust
from agents.authority.client import AuthorityClient
from agents.storage import client as storage
from fabric import trust_push
from fabric.agent import running
from fabric.bulletin import Follower
from fabric.errors import Conflict, GridError, InvalidRequest, NotFound, Refused, Unauthenticated
from fabric.http import Content, HttpServer
from fabric.logs import null_logger
from fabric.rpc.delegation import delegate
from fabric.settings import Settings
from fabric.trust_updater import published_urls
from security.authority import CertificateAuthority
from security.certificates import issuer_among, subject_hash
from security.credentials import Credential, generate_key
from security.installation import install_authority
from security.names import DistinguishedName
from security.testing import shared_key

PUSHED: dict[str, Any] = {"trust_updater": True, "crl_refresh_s": 3600.0, "trust_poll_s": 3600.0}
"""Nobody looks at the disk or asks by HTTP: what arrives was pushed."""
PROMPT_S = 60.0
DAY = timedelta(days=1)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path, fabric=PUSHED) as made:
        made.plan("authority")
        trust_push.remember(made.certificates, [made.grid.ca.certificate])
        yield made


async def start(lab: LabGrid, **options: Any) -> AuthorityClient:
    await lab.start("authority", options={"directory": str(lab.grid.ca.directory), "sites": {}, **options})
    return AuthorityClient(await lab.channel("authority", credential=lab.operator()))


async def space(lab: LabGrid, who: Credential) -> Any:
    return await storage.space(await lab.channel("storage", credential=who))


async def refusal(lab: LabGrid, who: Credential) -> GridError:
    """Why the storage element refuses somebody, once it does."""
    async with asyncio.timeout(PROMPT_S):
        while True:
            try:
                await space(lab, who)
            except GridError as error:
                return error
            await asyncio.sleep(0.005)


async def accepted(lab: LabGrid, who: Credential) -> None:
    async with asyncio.timeout(PROMPT_S):
        while True:
            try:
                await space(lab, who)
                return
            except GridError:
                await asyncio.sleep(0.005)


async def test_a_revocation_is_pushed_to_every_agent_in_no_time(lab: LabGrid) -> None:
    authority = await start(lab)
    await lab.start("storage")
    alice = lab.user("alice")
    await space(lab, alice)
    began = time.monotonic()
    await authority.revoke(subject=str(alice.identity), reason="keyCompromise")
    error = await refusal(lab, alice)
    assert error.reason == "CERTIFICATE_REVOKED"
    print(f"revocation to the first refusal: {(time.monotonic() - began) * 1e3:.0f} ms")
    await space(lab, lab.user("bob"))


def leaf(lab: LabGrid, name: str) -> x509.Certificate:
    """What a server shows to whoever connects now."""
    pem = ssl.get_server_certificate(("localhost", lab.port(name)), timeout=5)
    return x509.load_pem_x509_certificate(pem.encode())


async def renewed(lab: LabGrid, *names: str) -> None:
    """Until these servers show certificates of the key that signs now."""
    async with asyncio.timeout(PROMPT_S):
        for name in names:
            while issuer_among(await asyncio.to_thread(leaf, lab, name), [lab.grid.ca.certificate]) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_a_roll_over_without_a_restart_and_the_end_of_the_old_key(lab: LabGrid) -> None:
    authority = await start(lab)
    await lab.start("storage")
    alice = lab.user("alice")
    await space(lab, alice)
    made = await authority.roll_over("grid")
    assert len(made.keys) == 2
    lab.grid.ca.close()
    lab.grid.ca = CertificateAuthority.open(lab.grid.ca.directory)
    with pytest.raises(Conflict) as caught:
        await authority.roll_over("grid")
    assert caught.value.reason == "ROLLOVER_UNDER_WAY"
    await space(lab, alice)  # an old certificate is as good as ever
    await renewed(lab, "authority.CERN", "storage.CERN")
    await space(lab, alice)
    with pytest.raises(Conflict) as caught:
        await authority.retire("grid")
    assert "CN=alice" in caught.value.sentence and "storage" not in caught.value.sentence
    del lab._users["alice"]
    lab.refresh_trust()
    new = lab.user("alice")
    operator = AuthorityClient(await lab.channel("authority", credential=lab.operator()))
    await space(lab, new)
    with pytest.raises(Conflict) as caught:
        await operator.retire("grid")
    assert caught.value.reason == "OLD_KEY_IN_USE" and "CN=alice" in caught.value.sentence
    await space(lab, alice)
    (ending,) = await operator.retire("grid", now=True)
    assert (ending.subject, ending.serial) == (str(alice.identity), f"{alice.certificates[-1].serial_number:X}")
    assert (await refusal(lab, alice)).reason in ("UNKNOWN_CA", "BAD_SIGNATURE")
    lab.refresh_trust()
    await space(lab, new)
    for name in ("authority.CERN", "storage.CERN"):
        assert not lab.agents[name].context.problems
    stem = subject_hash(lab.grid.ca.certificate)
    assert sorted(path.name for path in lab.certificates.glob(f"{stem}.*[0-9]")) == [f"{stem}.0", f"{stem}.r0"]


async def test_a_list_too_large_for_a_message_is_fetched_when_it_is_announced(
    lab: LabGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "MAX_PUSHED_CRL_BYTES", 0)
    elsewhere = lab.directory / "elsewhere"
    shutil.copytree(lab.certificates, elsewhere)
    lab.plan("storage")
    authority = await start(lab)
    settings = Settings.from_dict({**lab.settings("storage.CERN"), "certificates": str(elsewhere)})
    async with running(settings):
        alice = lab.user("alice")
        await space(lab, alice)
        await authority.revoke(subject=str(alice.identity))
        assert (await refusal(lab, alice)).reason == "CERTIFICATE_REVOKED"
        await space(lab, lab.user("bob"))


async def test_a_foreign_authority_comes_and_goes_with_everything_that_it_carried(lab: LabGrid) -> None:
    authority = await start(lab)
    await lab.start("storage")
    other = CertificateAuthority.create(
        lab.directory / "other", "/O=Else/CN=Their CA", lifetime=DAY, now=lab.clock.now(), key_type="ec-p256"
    )
    key = generate_key("ec-p256")
    eve = Credential(other.issue_user("Eve", key.public_key(), lifetime=DAY, now=lab.clock.now()), key)
    lab.enrol(eve)
    assert (await refusal(lab, eve)).reason == "UNKNOWN_CA"
    added = await authority.add_authority(
        other.ca_pem(), other.signing_policy(), other.build_crl(lab.clock.now(), timedelta(hours=1))
    )
    assert added.name == "Their CA" and added.is_foreign
    await accepted(lab, eve)
    for one in (eve, lab.user("bob")):
        await delegate(await lab.channel("storage", credential=one), one)
    assert await authority.remove_authority("Their CA", dry_run=True) == []
    await space(lab, eve)
    held = lab.agents["storage.CERN"].context.delegations
    assert len(held.all()) == 2
    await authority.remove_authority(added.hash)
    assert (await refusal(lab, eve)).reason == "UNKNOWN_CA"
    await space(lab, lab.user("bob"))
    async with asyncio.timeout(PROMPT_S):
        while len(held.all()) > 1:  # noqa: ASYNC110  another task's doing
            await asyncio.sleep(0.01)
    kept = {one.name for one in (lab.directory / "agents/storage.CERN/delegations").iterdir()}
    assert len(kept) == 2 and held.all()[0][0].endswith("/CN=bob")
    with pytest.raises(NotFound) as caught:
        held.get(str(eve.identity))
    assert caught.value.reason == "DELEGATION_MISSING" and "Their CA" in caught.value.sentence
    (erased,) = lab.audit("storage.CERN", "delegation.recalled")
    assert erased["owner"] == str(eve.identity) and "Their CA" in erased["sentence"]
    assert [one.name for one in await authority.authorities()] == ["grid"]
    events = [line["event"] for line in lab.audit("authority.CERN") if line["event"].startswith("authority.")]
    assert events == ["authority.added", "authority.removed"]


async def test_every_host_fetches_the_lists_of_an_authority_from_elsewhere(lab: LabGrid) -> None:
    other = CertificateAuthority.create(
        lab.directory / "other", "/O=Else/CN=Their CA", lifetime=DAY, now=lab.clock.now(), key_type="ec-p256"
    )
    key = generate_key("ec-p256")
    eve = Credential(other.issue_user("Eve", key.public_key(), lifetime=DAY, now=lab.clock.now()), key)
    lab.enrol(eve)
    crl = other.build_crl(lab.clock.now(), timedelta(hours=1))
    web = HttpServer(lambda path: Content(crl) if path == "/their.crl" else None, null_logger())
    await web.start("127.0.0.1", 0)
    elsewhere = lab.directory / "elsewhere"
    shutil.copytree(lab.certificates, elsewhere)
    lab.plan("storage")
    authority = await start(lab)
    settings = Settings.from_dict({**lab.settings("storage.CERN"), "certificates": str(elsewhere)})
    try:
        async with running(settings):
            url = f"http://127.0.0.1:{web.port}/their.crl"
            with pytest.raises(InvalidRequest) as caught:
                await authority.add_authority(other.ca_pem(), other.signing_policy(), crl_url=["https://127.0.0.1/x"])
            assert caught.value.reason == "CRL_URL_INVALID"
            added = await authority.add_authority(other.ca_pem(), other.signing_policy(), crl_url=[url])
            await accepted(lab, eve)  # lists are required
            for directory in (elsewhere, lab.certificates):
                assert published_urls(directory, added.hash) == (url,)
    finally:
        await web.close()
        other.close()


async def test_only_operators_change_authorities_and_nobody_renews_for_another(lab: LabGrid) -> None:
    authority = await start(lab)
    for who in (lab.user("alice"), lab.user("eve", vo=None), lab.service("storage")):
        other = AuthorityClient(await lab.channel("authority", credential=who))
        for attempt in (
            other.authorities(), other.create_authority("mine"), other.add_authority(b"", ""),
            other.remove_authority("grid"), other.roll_over("grid"), other.retire("grid"),
        ):  # fmt: skip
            with pytest.raises(Refused):
                await attempt
    with pytest.raises(Refused):
        await AuthorityClient(await lab.channel("authority", credential=lab.user("alice"))).renew(request())
    with pytest.raises(Conflict) as caught:
        await authority.renew(request())
    assert caught.value.reason == "RENEWAL_NOT_DUE"
    with pytest.raises(Conflict) as caught:
        await authority.remove_authority(str(lab.grid.ca.subject))
    assert caught.value.reason == "AUTHORITY_IN_USE"
    for unknown in ("nobody", "", "00000000"):
        with pytest.raises(NotFound):
            await authority.remove_authority(unknown)
    assert [one.name for one in await authority.authorities()] == ["grid"]


async def test_a_credential_that_was_replaced_on_disk_is_used_and_a_wrong_one_is_not(lab: LabGrid) -> None:
    await start(lab)
    agent = await lab.start("storage", fabric={"trust_poll_s": 0.05})
    path = agent.context.settings.credential
    before = await asyncio.to_thread(leaf, lab, "storage.CERN")
    wrong = lab.service("catalog")
    wrong.save(path)
    async with asyncio.timeout(PROMPT_S):
        while "credential" not in agent.context.problems:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert await asyncio.to_thread(leaf, lab, "storage.CERN") == before
    new = lab.service("storage")
    new.save(path)
    async with asyncio.timeout(PROMPT_S):
        while await asyncio.to_thread(leaf, lab, "storage.CERN") != new.certificate:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert "credential" not in agent.context.problems
    await space(lab, lab.user("alice"))


async def test_a_certificate_for_the_authoritys_host_is_not_enough_to_speak_for_it(lab: LabGrid) -> None:
    lab.service("storage").save(lab.settings("authority.CERN")["credential"])
    await start(lab)
    listener = await lab.start("storage", fabric={"trust_updater": False})
    taken: list[Any] = []

    async def take(message: Any) -> None:
        taken.append(message)

    stub: Any = trust_pb2_grpc.TrustStub
    follower = Follower(
        listener.context, "authorities", lambda channel: stub(channel).Watch(trust_pb2.WatchTrustRequest()), take, take
    )
    with pytest.raises(Unauthenticated) as caught:
        async with asyncio.timeout(PROMPT_S):
            await follower._follow()
    assert caught.value.reason == "NOT_THE_AUTHORITY" and taken == []


async def test_a_host_certificate_near_its_end_is_renewed(lab: LabGrid) -> None:
    path = lab.settings(lab.plan("storage"))["credential"]
    subject = f"{ORGANISATION}/OU=CERN/CN=storage/storage.CERN"
    ending = lab.grid.host("localhost", "127.0.0.1", subject=subject, lifetime=timedelta(seconds=100))
    ending.save(path)
    await start(lab)
    await lab.start("storage")
    assert await asyncio.to_thread(leaf, lab, "storage.CERN") == ending.certificate
    async with asyncio.timeout(PROMPT_S):
        while await asyncio.to_thread(leaf, lab, "storage.CERN") == ending.certificate:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    renewed = Credential.load(path)
    assert renewed.subject == ending.subject and renewed.not_after > ending.not_after
    await space(lab, lab.user("alice"))
    assert lab.audit("authority.CERN", "certificate.renewed")[0]["subject"] == subject


async def test_an_authority_that_may_sign_anything_here_names_no_operators_agents_or_vo_servers(lab: LabGrid) -> None:
    """A site's manager installed it by hand, with a namespace of everything."""
    await start(lab)
    await lab.start("storage")
    life, now, key = timedelta(days=1), lab.clock.now(), shared_key("ec-p256", 400)
    rogue = CertificateAuthority.create(
        lab.directory / "rogue", "/C=YY/O=Rogue/CN=Rogue CA", lifetime=9 * life, now=now, key=key, namespace="/*"
    )
    try:
        install_authority(lab.certificates, rogue.certificate, rogue.signing_policy(), rogue.build_crl(now, life))
        lab.agents["storage.CERN"].context.news.ring()
        lab.agents["authority.CERN"].context.news.ring()
        mine = shared_key("ec-p256", 401)

        def issued(subject: str) -> Credential:
            made = rogue.issue_host(
                ["localhost"], mine.public_key(), subject=subject, lifetime=life, now=now, renew=True
            )
            return Credential(made, mine)

        operator = issued(f"{ORGANISATION}/OU=Operators/CN=root")
        agent = issued(f"{ORGANISATION}/OU=CERN/CN=broker/broker.CERN")
        for kind, who in (("authority", operator), ("storage", operator), ("storage", agent)):
            error = await known_and_refused(lab, kind, who)
            assert error.reason == "ISSUER_NOT_OWN"
            assert f"only {lab.grid.ca.subject} gives" in error.sentence and "narrow its namespace" in error.sentence
        judge = lab.agents["storage.CERN"].context.judge
        with pytest.raises(Refused) as caught:  # nor does a server with such a certificate speak for the authority
            judge.by_name(DistinguishedName.parse(f"{ORGANISATION}/OU=CERN/CN=authority/authority.CERN"), rogue.subject)
        assert caught.value.reason == "ISSUER_NOT_OWN"
    finally:
        rogue.close()


async def known_and_refused(lab: LabGrid, kind: str, who: Credential) -> GridError:
    """Why an agent refuses somebody, once it knows the authority of the certificate."""
    async with asyncio.timeout(PROMPT_S):
        while True:
            channel = await lab.channel(kind, credential=who)
            with pytest.raises(GridError) as caught:
                await channel.ready()
            if caught.value.reason != "UNKNOWN_CA":
                return caught.value
            await asyncio.sleep(0.02)
