"""The refusal table: every wrong credential and every bad input is refused with a typed reason, and the client reads
the very sentence that the server wrote to its audit log."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as gk
from gridfabric.gatekeeper.v1.gatekeeper_pb2_grpc import GatekeeperStub
from support.grid import VO, LabGrid
from support.waiting import until

from fabric.errors import GridError
from fabric.rpc.delegation import delegate
from security.credentials import Credential

CE = "gatekeeper.CERN"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path) as lab:
        lab.user("alice")
        await lab.start("gatekeeper")
        yield lab


async def refused(lab: LabGrid, credential: Credential | None, agent: str = "gatekeeper") -> GridError:
    """The error of a submission of one job with this credential."""
    channel = await lab.channel(agent, credential=credential)
    job = gk.Job(
        job_id="https://localhost:9000/abc", attempt=1, description=gk.JobDescription(executable="/bin/true", vo=VO)
    )
    with pytest.raises(GridError) as caught:
        await GatekeeperStub(channel).Submit(gk.SubmitRequest(jobs=[job]))
    return caught.value


def same_sentence_in_audit(lab: LabGrid, error: GridError, agent: str = CE) -> None:
    sentences = [line.get("sentence") for line in lab.audit(agent)]
    assert error.sentence in sentences, (error.sentence, sentences)


Make = Callable[[LabGrid], Credential]
alice: Make = lambda lab: lab.user_certificate("alice")  # noqa: E731

CREDENTIALS: dict[str, tuple[str, Make]] = {
    "unknown CA": ("UNKNOWN_CA", lambda lab: lab.grid.unknown_ca_user("alice")),
    "forged under the CA's name": ("BAD_SIGNATURE", lambda lab: lab.grid.forged_user("alice")),
    "expired proxy": ("PROXY_EXPIRED", lambda lab: lab.grid.expired_proxy(alice(lab))),
    "expired user certificate": ("CERTIFICATE_EXPIRED", lambda lab: lab.grid.expired_user_proxy("alice")),
    "proxy from the future": ("NOT_YET_VALID", lambda lab: lab.grid.future_proxy(alice(lab))),
    "too deep for its path length": (
        "PROXY_PATH_LENGTH_EXCEEDED",
        lambda lab: lab.grid.pathlen_exceeded_chain(alice(lab)),
    ),
    "wrong subject name": ("PROXY_NAME_INVALID", lambda lab: lab.grid.wrong_name_proxy(alice(lab))),
    "full proxy made from a limited one": ("PROXY_RIGHTS_WIDENED", lambda lab: lab.grid.full_below_limited(alice(lab))),
    "unknown policy language": ("PROXY_POLICY_UNKNOWN", lambda lab: lab.grid.unknown_policy_language(alice(lab))),
    "outside the CA's namespace": ("NAMESPACE_VIOLATION", lambda lab: lab.grid.outside_namespace_user("eve")),
    "not on the member list": ("NOT_MAPPED", lambda lab: lab.user("mallory", vo=None)),
    "limited proxy submits": ("LIMITED_PROXY", lambda lab: lab.user("alice", limited=True)),
}


@pytest.mark.parametrize("case", CREDENTIALS)
async def test_a_wrong_credential_is_refused_with_the_same_sentence_on_both_ends(lab: LabGrid, case: str) -> None:
    reason, make = CREDENTIALS[case]
    credential = make(lab)
    error = await refused(lab, credential)
    assert error.reason == reason, error.sentence
    assert "Traceback" not in error.sentence and "\n" not in error.sentence
    if reason not in ("NOT_MAPPED", "LIMITED_PROXY"):
        assert error.facts["subject"] and error.facts["issuer"] and error.facts["serial"]
    same_sentence_in_audit(lab, error)


async def test_a_proxy_of_a_revoked_user_names_the_revoked_certificate(lab: LabGrid) -> None:
    proxy = lab.user("alice")
    generation = lab.agents[CE].context.trust.snapshot().generation
    lab.revoke(lab.user_certificate("alice"))
    await until(lambda: lab.agents[CE].context.trust.snapshot().generation > generation)
    error = await refused(lab, proxy)
    assert error.reason == "CERTIFICATE_REVOKED"
    assert str(lab.user_certificate("alice").identity) in error.sentence
    same_sentence_in_audit(lab, error)


async def test_a_revoked_proxy_serial_is_refused_though_openssl_never_looks_it_up(lab: LabGrid) -> None:
    proxy = lab.user("alice")
    generation = lab.agents[CE].context.trust.snapshot().generation
    lab.grid.revoke_proxy(proxy)
    await until(lambda: lab.agents[CE].context.trust.snapshot().generation > generation)
    error = await refused(lab, proxy)
    assert error.reason == "PROXY_REVOKED"
    same_sentence_in_audit(lab, error)


async def test_an_expired_revocation_list_refuses_everybody_and_says_what_to_do(lab: LabGrid) -> None:
    proxy = lab.user("alice")
    await lab.channel("gatekeeper", credential=proxy)
    generation = lab.agents[CE].context.trust.snapshot().generation
    lab.grid.expired_crl()
    await until(lambda: lab.agents[CE].context.trust.snapshot().generation > generation)
    error = await refused(lab, proxy)
    assert error.reason == "CRL_EXPIRED"
    assert "fetch" in error.sentence


async def test_a_host_certificate_with_another_name_is_refused_by_the_client(tmp_path: Path) -> None:
    async with LabGrid(tmp_path) as lab:
        name = lab.plan("gatekeeper")
        wrong = lab.grid.host("elsewhere.example.org", subject="/C=XX/O=TestGrid/OU=CERN/CN=gatekeeper/gatekeeper.CERN")
        wrong.save(Path(lab.settings(name)["credential"]))
        await lab.start("gatekeeper")
        error = await refused(lab, lab.user("alice"))
        assert error.reason == "HOST_NAME_MISMATCH"
        assert "elsewhere.example.org" in error.sentence and "localhost" in error.sentence


async def test_a_session_token_is_worthless_after_revocation(lab: LabGrid) -> None:
    proxy = lab.user("alice")
    channel = await lab.channel("gatekeeper", credential=proxy)
    stub = GatekeeperStub(channel)
    await stub.Status(gk.StatusRequest())
    opened, metadata = await channel.ready()
    lab.revoke(lab.user_certificate("alice"))
    await until(lambda: lab.audit(CE, "session.closed"))
    with pytest.raises(GridError) as caught:
        await stub.Status(gk.StatusRequest())
    assert caught.value.reason == "CERTIFICATE_REVOKED"
    raw = opened.channel.unary_unary("/gridfabric.gatekeeper.v1.Gatekeeper/Status")
    with pytest.raises(Exception) as replay:
        await raw(b"", metadata=metadata, timeout=5)
    assert "revoked" in str(replay.value)
    same_sentence_in_audit(lab, caught.value)


async def test_a_request_without_a_session(lab: LabGrid) -> None:
    error = await refused(lab, None)
    assert error.reason == "SESSION_MISSING"
    same_sentence_in_audit(lab, error)


async def test_ten_thousand_garbage_bytes_on_every_port_change_nothing(lab: LabGrid) -> None:
    for agent in ("information", "bookkeeping", "storage", "catalog", "broker"):
        await lab.start(agent)
    garbage = os.urandom(10_000)
    for name in list(lab.agents):
        for protocol in ("rpc", "ldap", "http"):
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", lab.port(name, protocol))
            except ConnectionRefusedError:
                continue  # this agent has no such door
            writer.write(garbage)
            try:
                await asyncio.wait_for(writer.drain(), 60)
                writer.write_eof()
                await asyncio.wait_for(reader.read(), 60)
            except OSError:
                pass
            writer.close()
    channel = await lab.channel("gatekeeper", credential=lab.user("alice"))
    await GatekeeperStub(channel).Status(gk.StatusRequest())
    for agent in lab.agents.values():
        assert agent.health().state == "green", agent.health()


async def test_a_message_over_the_limit_is_refused_with_a_sentence(lab: LabGrid) -> None:
    channel = await lab.channel("gatekeeper", credential=lab.user("alice"))
    with pytest.raises(GridError) as caught:
        await GatekeeperStub(channel).Status(gk.StatusRequest(job_ids=["x" * (5 * 1024 * 1024)]))
    assert caught.value.reason == "MESSAGE_TOO_LARGE"


async def test_a_delegation_that_is_not_the_callers_is_refused(lab: LabGrid) -> None:
    channel = await lab.channel("gatekeeper", credential=lab.user("alice"))
    with pytest.raises(GridError) as caught:
        await delegate(channel, lab.user("bob"))
    assert caught.value.reason
