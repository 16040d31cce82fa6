"""The broker renews the proxies of jobs that name a credential store, and the jobs' history says when it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from integration.test_workload_broker import TRUE, Workload
from integration.test_workload_grid import Grid
from support.grid import ORGANISATION, LabGrid

from agents.bookkeeping.client import state_name
from agents.broker.client import BrokerClient
from agents.myproxy.client import MyProxyClient
from agents.myproxy.renewal import ends_at
from agents.vo.client import VoClient
from fabric.errors import InvalidRequest, NotFound
from fabric.rpc.delegation import DEFAULT_ID, delegate
from security.credentials import Credential
from security.proxies import create_proxy
from security.voms import proxy_extension

ALICE = f"{ORGANISATION}/OU=Users/CN=alice"
JDL = TRUE + 'MyProxyServer = "localhost"; '
FAST = {"renew_retry_s": 0.1, "proxy_poll_s": 0.05}


@pytest.fixture
async def workload(tmp_path: Path) -> AsyncIterator[Workload]:
    async with LabGrid(tmp_path) as lab:
        found = Workload(lab)
        lab.plan("myproxy")
        await lab.start("myproxy", options={"scrypt_log2_n": 10, "key_type": "ec-p256"})
        yield found


def store(lab: LabGrid) -> MyProxyClient:
    port = lab.port("myproxy.CERN", "myproxy")
    return MyProxyClient("localhost", port, lab._trust, lab.grid.policy, lab.clock, lab.user("alice"))


async def submit(workload: Workload, jdl: str = JDL, minutes: float = 3, jobs: int = 1) -> list[str]:
    """Jobs of alice that stay queued, with a proxy that ends soon."""
    await workload.start("ce1", **FAST)
    workload.ces["ce1"].runs = False
    proxy = workload.lab.user("alice")
    channel = await workload.lab.channel("broker", credential=proxy)
    await delegate(channel, proxy, lifetime=timedelta(minutes=minutes))
    return [(await BrokerClient(channel).submit(jdl)).job_id for _ in range(jobs)]


async def notes(workload: Workload, job_id: str, words: str) -> list[str]:
    """What the job's history says with these words, as soon as it says so."""
    client = await workload.bookkeeping()
    async with asyncio.timeout(60):
        while True:
            events = (await client.history(job_id)).events
            if texts := [text for event in events if words in (text := event.fields.get("text", ""))]:
                return texts
            await asyncio.sleep(0.05)


def delegated(workload: Workload, agent: str):
    return workload.lab.agents[agent].context.delegations.get(ALICE)


async def test_queued_jobs_get_a_renewed_proxy_also_at_the_gatekeeper(workload: Workload) -> None:
    await store(workload.lab).put(ALICE)
    first, second = await submit(workload, minutes=600, jobs=2)
    broker = workload.lab.agents["broker.CERN"].agent
    await workload.until(lambda: workload.ces["ce1"].jobs)
    before = delegated(workload, "ce1")
    assert broker.core.renewals.renewed == 0  # there is time
    proxy = workload.lab.user("alice")
    channel = await workload.lab.channel("broker", credential=proxy)
    await delegate(channel, proxy, lifetime=timedelta(minutes=2))
    for job_id in (first, second):
        (text,) = await notes(workload, job_id, "renewed")
        assert "was renewed by localhost" in text
    until = workload.lab.clock.now() + timedelta(hours=11)
    assert delegated(workload, "broker.CERN").not_after > until
    await workload.until(lambda: delegated(workload, "ce1").certificate != before.certificate)
    await workload.until(lambda: delegated(workload, "ce1").not_after > until)
    (line,) = workload.lab.audit("broker.CERN", "proxy.renewed")
    assert line["owner"] == ALICE


async def test_a_renewal_that_fails_is_told_early_and_once(workload: Workload) -> None:
    (job_id,) = await submit(workload)  # nothing is stored
    texts = await notes(workload, job_id, "RENEWAL_FAILED")
    assert "no proxy is given" in texts[-1] and "which ends at" in texts[-1]
    broker = workload.lab.agents["broker.CERN"].agent
    failed = broker.core.renewals.failed
    await workload.until(lambda: broker.core.renewals.failed > failed + 2)
    assert len(await notes(workload, job_id, "RENEWAL_FAILED")) == 1
    await store(workload.lab).put(ALICE)  # the user acts
    await notes(workload, job_id, "was renewed")


async def test_a_banned_owner_is_not_renewed(workload: Workload) -> None:
    await store(workload.lab).put(ALICE)
    lab = workload.lab
    own = lab.directory / "bans of the store"
    own.write_text(f'"{ALICE}"\n')
    await lab.stop("myproxy.CERN")
    await lab.start("myproxy", options={"scrypt_log2_n": 10}, fabric={"ban_file": str(own)})
    (job_id,) = await submit(workload)
    texts = await notes(workload, job_id, "RENEWAL_FAILED")
    assert "banned" in texts[-1]
    assert lab.audit("myproxy.CERN", "credential.delegated") == []


async def test_a_store_that_is_down_is_asked_again(workload: Workload) -> None:
    await store(workload.lab).put(ALICE)
    await workload.lab.stop("myproxy.CERN")
    (job_id,) = await submit(workload)
    assert "cannot be reached" in (await notes(workload, job_id, "RENEWAL_FAILED"))[-1]
    await workload.lab.start("myproxy", options={"scrypt_log2_n": 10})
    await notes(workload, job_id, "was renewed")


async def test_a_stored_credential_that_ends_as_soon_is_no_renewal(workload: Workload) -> None:
    await store(workload.lab).put(ALICE, lifetime=timedelta(minutes=6))
    (job_id,) = await submit(workload)
    assert "store another credential with: myproxy-init" in (await notes(workload, job_id, "RENEWAL_FAILED"))[-1]


async def with_attributes(workload: Workload, *fqans: str, lifetime_s: float = 0) -> Credential:
    """A proxy of alice with attributes of the VO server, which then exists."""
    lab = workload.lab
    operator = VoClient(await lab.channel("vo", name="vo.cms", credential=lab.operator()))
    await operator.add_member(ALICE, groups=list(fqans))
    proxy = lab.user("alice")
    answer = await VoClient(await lab.channel("vo", name="vo.cms", credential=proxy)).issue_attributes(
        fqans, lifetime_s
    )
    extension = proxy_extension([answer.attribute_certificate])
    return create_proxy(proxy, lifetime=timedelta(hours=10), now=lab.clock.now(), extensions=[extension])


@pytest.fixture
async def vo(workload: Workload) -> None:
    workload.lab.plan("vo", name="vo.cms")
    await workload.lab.start("vo", name="vo.cms", options={"groups": ["/cms/higgs"], "roles": ["VO-Admin", "pilot"]})


def fqans_of(workload: Workload) -> tuple[str, ...]:
    core = workload.lab.agents["broker.CERN"].agent.core
    (found,) = core.renewals._attributes(delegated(workload, "broker.CERN"))
    return found.fqans


async def test_groups_and_roles_are_renewed_too(workload: Workload, vo: None) -> None:
    wanted = ("/cms/higgs/Role=pilot", "/cms/higgs")
    await store(workload.lab).put(ALICE)
    await workload.start("ce1", **FAST)
    workload.ces["ce1"].runs = False
    proxy = await with_attributes(workload, *wanted, lifetime_s=180)  # they end before the proxy does
    channel = await workload.lab.channel("broker", credential=proxy)
    await delegate(channel, proxy, lifetime=timedelta(hours=9))
    before = fqans_of(workload)
    job_id = (await BrokerClient(channel).submit(JDL)).job_id
    await notes(workload, job_id, "was renewed")
    assert fqans_of(workload) == before == ("/cms/higgs/Role=pilot", "/cms/higgs", "/cms")
    assert ends_at(delegated(workload, "broker.CERN")) > workload.lab.clock.now() + timedelta(hours=8)


async def test_a_suspended_member_is_not_renewed(workload: Workload, vo: None) -> None:
    await store(workload.lab).put(ALICE)
    await workload.start("ce1", **FAST, renew_before_s=0)
    workload.ces["ce1"].runs = False
    proxy = await with_attributes(workload, "/cms/higgs", lifetime_s=3600)
    channel = await workload.lab.channel("broker", credential=proxy)
    await delegate(channel, proxy, lifetime=timedelta(hours=9))
    job_id = (await BrokerClient(channel).submit(JDL)).job_id
    operator = VoClient(await workload.lab.channel("vo", name="vo.cms", credential=workload.lab.operator()))
    await operator.suspend(ALICE, "lost a laptop")
    core = workload.lab.agents["broker.CERN"].agent.core
    await core.renewals._renew(ALICE, DEFAULT_ID, delegated(workload, "broker.CERN"))
    assert "lost a laptop" in (await notes(workload, job_id, "RENEWAL_FAILED"))[-1]
    assert core.renewals.renewed == 0


async def test_what_the_owner_did_meanwhile_stays(workload: Workload) -> None:
    await store(workload.lab).put(ALICE)
    (job_id,) = await submit(workload, minutes=600)
    core = workload.lab.agents["broker.CERN"].agent.core
    old = delegated(workload, "broker.CERN")
    proxy = workload.lab.user("alice")
    channel = await workload.lab.channel("broker", credential=proxy)
    await delegate(channel, proxy, lifetime=timedelta(minutes=590))
    newer = delegated(workload, "broker.CERN")
    await core.renewals._renew(ALICE, DEFAULT_ID, old)
    assert delegated(workload, "broker.CERN") is newer
    core.context.delegations.destroy(ALICE, "default")
    await core.renewals._renew(ALICE, DEFAULT_ID, newer)
    with pytest.raises(NotFound):
        delegated(workload, "broker.CERN")
    assert (core.renewals.renewed, core.renewals.failed) == (0, 0) and job_id


async def test_jobs_that_name_no_store_are_left_alone(workload: Workload) -> None:
    await store(workload.lab).put(ALICE)
    await submit(workload, TRUE)
    broker = workload.lab.agents["broker.CERN"].agent
    await workload.until(lambda: workload.ces["ce1"].jobs)
    await asyncio.wait_for(broker.core.renewals._renew(ALICE, DEFAULT_ID, delegated(workload, "broker.CERN")), 60)
    assert (broker.core.renewals.renewed, broker.core.renewals.failed) == (0, 0)


@pytest.mark.parametrize("server", ["elsewhere.example.org", "localhost:1", "", "a b", "localhost:99999999"])
async def test_a_store_that_the_broker_does_not_use_is_refused_at_once(workload: Workload, server: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await submit(workload, TRUE + f'MyProxyServer = "{server}";')
    assert caught.value.reason == "MYPROXY_SERVER_UNKNOWN"
    assert "it uses localhost:" in caught.value.sentence


async def test_a_running_process_sees_the_renewed_proxy(tmp_path: Path) -> None:
    """Credential store, broker, gatekeeper, worker, process: all real."""
    async with LabGrid(tmp_path) as lab:
        lab.plan("myproxy")
        grid = Grid(lab)
        await grid.start()
        await lab.start("myproxy", options={"scrypt_log2_n": 10, "key_type": "ec-p256"})
        await store(lab).put(ALICE)
        proxy = lab.user("alice")
        channel = await lab.channel("broker", credential=proxy)
        await delegate(channel, proxy, lifetime=timedelta(hours=9))
        longer = "until openssl x509 -checkend 38000 -noout -in $X509_USER_PROXY; do sleep 0.1; done"  # 10.5 hours
        jdl = f'Executable = "/bin/sh"; Arguments = "-c \'{longer}\'"; MyProxyServer = "localhost"; '
        job_id = (await BrokerClient(channel).submit(jdl)).job_id
        client = await grid.bookkeeping()
        async with asyncio.timeout(60):
            while state_name((await client.query(job_ids=[job_id]))[0].state) != "RUNNING":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        core = lab.agents["broker.CERN"].agent.core
        assert core.renewals.renewed == 0  # with nine hours left
        await core.renewals._renew(ALICE, DEFAULT_ID, lab.agents["broker.CERN"].context.delegations.get(ALICE))
        (job,) = await grid.ended([job_id])
        assert (state_name(job.state), core.renewals.renewed) == ("DONE", 1)
