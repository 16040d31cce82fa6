"""Calls over real TLS ports with real sessions: what is refused, by whom, and with which words on both ends."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from gridfabric.information.v1 import information_pb2, information_pb2_grpc
from gridfabric.security.v1 import security_pb2 as pb
from gridfabric.security.v1 import security_pb2_grpc
from gridfabric.storage.v1 import storage_pb2, storage_pb2_grpc
from support.grid import LabGrid
from support.toy_agent import ToyAgent, ToyStorage

from fabric.agent import RunningAgent
from fabric.errors import (
    Conflict,
    DeadlineExceeded,
    Defect,
    Exhausted,
    GridError,
    InvalidRequest,
    Refused,
    Unauthenticated,
    Unavailable,
)
from fabric.rpc import channel as channel_module
from fabric.rpc import rules
from fabric.rpc.agreed import MAX_MESSAGE_BYTES
from fabric.rpc.calls import StreamCall
from fabric.rpc.channel import SecureChannel
from fabric.rpc.server import RpcService
from security import proxies
from security.credentials import Credential, generate_key
from security.session import prove

NAME = "storage.CERN"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path) as found:
        yield found


@pytest.fixture
async def toy(lab: LabGrid) -> RunningAgent:
    return await lab.start("storage", builder=ToyAgent)


def storage_of(agent: RunningAgent) -> ToyStorage:
    assert isinstance(agent.agent, ToyAgent)
    return agent.agent.storage


async def stub_for(lab: LabGrid, credential: Any = None) -> Any:
    return storage_pb2_grpc.StorageStub(await lab.channel("storage", credential=credential))


async def refusal(call: Any) -> GridError:
    with pytest.raises(GridError) as found:
        await call
    return found.value


def same_words(lab: LabGrid, error: GridError, event: str = "call.refused") -> dict[str, Any]:
    """The audit line of this refusal: its sentence is what the client was told."""
    lines = [line for line in lab.audit(NAME, event) if line["reason"] == error.reason]
    assert lines, f"no audit line for {error!r}"
    assert lines[-1]["sentence"] == error.sentence
    return lines[-1]


# -- sessions --------------------------------------------------------------------------------------------------------


async def test_a_user_has_a_session_and_the_server_knows_who_it_is(lab: LabGrid, toy: RunningAgent) -> None:
    channel = await lab.channel("storage", credential=lab.user("alice"))
    await storage_pb2_grpc.StorageStub(channel).Stat(storage_pb2.StatRequest())
    peer = storage_of(toy).peers[-1]
    assert peer.subject == channel.subject == "/C=XX/O=TestGrid/OU=Users/CN=alice"
    assert (peer.vo, peer.account, peer.is_limited, peer.agent_kind) == ("cms", ".cms", False, "")
    opened = lab.audit(NAME, "session.opened")[-1]
    assert opened["peer"] == peer.subject and opened["session_id"] == peer.session_id
    assert opened["agent"] == NAME and opened["site"] == "CERN" and opened["at"].endswith("Z")


async def test_a_call_without_a_session_is_refused_in_the_same_words_on_both_ends(
    lab: LabGrid, toy: RunningAgent
) -> None:
    error = await refusal((await stub_for(lab)).Stat(storage_pb2.StatRequest()))
    assert isinstance(error, Unauthenticated) and error.reason == "SESSION_MISSING"
    line = same_words(lab, error)
    assert line["method"].endswith("Storage/Stat") and line["remote"]


async def test_an_invented_session_is_unknown(lab: LabGrid, toy: RunningAgent) -> None:
    stub = await stub_for(lab)
    error = await refusal(stub.Stat(storage_pb2.StatRequest(), metadata=(("gridfabric-session", "A" * 43),)))
    assert error.reason == "SESSION_UNKNOWN"
    same_words(lab, error)


async def test_many_callers_share_one_session(lab: LabGrid, toy: RunningAgent) -> None:
    stub = await stub_for(lab, lab.user())
    await asyncio.gather(*(stub.Stat(storage_pb2.StatRequest()) for _ in range(50)))
    assert len(lab.audit(NAME, "session.opened")) == 1


async def test_no_audit_or_log_line_holds_a_session_token(lab: LabGrid, toy: RunningAgent) -> None:
    await (await stub_for(lab, lab.user())).Stat(storage_pb2.StatRequest())
    token = next(iter(toy.server.sessions)).token
    for name in ("log.jsonl", "audit.jsonl"):
        assert token not in (lab.directory / "agents" / NAME / name).read_text()


async def handshake(lab: LabGrid, credential: Any, **change: bytes) -> pb.EstablishResponse:
    """Begin and Establish by hand, with parts of the request replaced."""
    stub: Any = security_pb2_grpc.SecurityContextStub(await lab.channel("storage"))
    leaf = await leaf_of(lab.port(NAME))
    nonce = (await stub.Begin(pb.BeginRequest())).nonce
    request = pb.EstablishRequest(nonce=nonce, chain_pem=credential.pem_chain(), proof=prove(credential, nonce, leaf))
    for name, value in change.items():
        setattr(request, name, value)
    return await stub.Establish(request)


async def leaf_of(port: int) -> bytes:
    def fetch() -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        with socket.create_connection(("127.0.0.1", port), 5) as plain, context.wrap_socket(plain) as connection:
            return connection.getpeercert(binary_form=True) or b""

    return await asyncio.to_thread(fetch)


async def test_a_nonce_works_once(lab: LabGrid, toy: RunningAgent) -> None:
    stub: Any = security_pb2_grpc.SecurityContextStub(await lab.channel("storage"))
    alice = lab.user()
    nonce = (await stub.Begin(pb.BeginRequest())).nonce
    proof = prove(alice, nonce, await leaf_of(lab.port(NAME)))
    request = pb.EstablishRequest(nonce=nonce, chain_pem=alice.pem_chain(), proof=proof)
    answers = await asyncio.gather(*(stub.Establish(request) for _ in range(5)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, GridError)]
    assert len(refused) == 4 and {error.reason for error in refused} == {"NONCE_REPLAYED"}
    same_words(lab, refused[0])


async def test_a_nonce_of_nobody_is_refused(lab: LabGrid, toy: RunningAgent) -> None:
    for nonce in (b"", b"x" * 31, os.urandom(32), os.urandom(5000)):
        assert (await refusal(handshake(lab, lab.user(), nonce=nonce))).reason == "NONCE_UNKNOWN"


async def test_a_proof_by_another_key_is_refused(lab: LabGrid, toy: RunningAgent) -> None:
    error = await refusal(handshake(lab, lab.user("alice"), chain_pem=lab.user("bob").pem_chain()))
    assert isinstance(error, Unauthenticated) and error.reason == "BAD_SIGNATURE"
    assert "bob" in error.sentence
    same_words(lab, error)


async def test_a_proof_made_for_another_server_is_refused(lab: LabGrid, toy: RunningAgent) -> None:
    alice, other = lab.user(), lab.service("storage", "other").certificate.public_bytes(Encoding.DER)
    stub: Any = security_pb2_grpc.SecurityContextStub(await lab.channel("storage"))
    nonce = (await stub.Begin(pb.BeginRequest())).nonce
    error = await refusal(
        stub.Establish(pb.EstablishRequest(nonce=nonce, chain_pem=alice.pem_chain(), proof=prove(alice, nonce, other)))
    )
    assert error.reason == "BAD_SIGNATURE"


@pytest.mark.parametrize("chain", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
async def test_an_unreadable_chain_is_refused(lab: LabGrid, toy: RunningAgent, chain: bytes) -> None:
    assert (await refusal(handshake(lab, lab.user(), chain_pem=chain))).reason == "CHAIN_MALFORMED"


async def test_a_chain_beyond_64_kib_is_refused(lab: LabGrid, toy: RunningAgent) -> None:
    error = await refusal(handshake(lab, lab.user(), chain_pem=b"x" * (64 * 1024 + 1)))
    assert isinstance(error, InvalidRequest) and error.reason == "CHAIN_TOO_LONG"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        ("unknown_ca_user", "UNKNOWN_CA"),
        ("expired_proxy", "PROXY_EXPIRED"),
        ("pathlen_exceeded_chain", "PROXY_PATH_LENGTH_EXCEEDED"),
        ("wrong_name_proxy", "PROXY_NAME_INVALID"),
        ("forged_proxy", "BAD_SIGNATURE"),
    ],
)
async def test_a_bad_credential_is_refused_by_name(lab: LabGrid, toy: RunningAgent, make: str, reason: str) -> None:
    stub = await stub_for(lab, getattr(lab.grid, make)())
    error = await refusal(stub.Stat(storage_pb2.StatRequest()))
    assert isinstance(error, Unauthenticated) and error.reason == reason
    assert error.facts["subject"] in error.sentence
    same_words(lab, error)


async def test_a_stranger_to_the_map_file_gets_no_session(lab: LabGrid, toy: RunningAgent) -> None:
    error = await refusal((await stub_for(lab, lab.user("eve", vo=None))).Stat(storage_pb2.StatRequest()))
    assert isinstance(error, Refused) and error.reason == "NOT_MAPPED"
    assert "/OU=Users/CN=eve" in error.sentence and error.facts["serial"]
    same_words(lab, error)
    assert len(toy.server.sessions) == 0


async def test_sessions_of_one_owner_are_bounded_and_the_oldest_renews_itself(lab: LabGrid) -> None:
    agent = await lab.start("storage", builder=ToyAgent, fabric={"max_sessions_per_owner": 2})
    stubs = [await stub_for(lab, lab.user("alice", hours=hours)) for hours in (1, 2, 3)]
    for stub in (*stubs, *stubs):
        await stub.Stat(storage_pb2.StatRequest())
    assert len(agent.server.sessions) == 2
    assert {line["reason"] for line in lab.audit(NAME, "session.closed")} == {"SESSION_EXPIRED"}


# -- rules -----------------------------------------------------------------------------------------------------------


async def test_a_limited_proxy_reads_and_starts_nothing(lab: LabGrid, toy: RunningAgent) -> None:
    stub = await stub_for(lab, lab.user("alice", limited=True))
    await stub.Stat(storage_pb2.StatRequest())
    assert storage_of(toy).peers[-1].is_limited
    error = await refusal(stub.Remove(storage_pb2.RemoveRequest()))
    assert isinstance(error, Refused) and error.reason == "LIMITED_PROXY"
    assert same_words(lab, error)["peer"] == "/C=XX/O=TestGrid/OU=Users/CN=alice"
    await (await stub_for(lab, lab.user("alice"))).Remove(storage_pb2.RemoveRequest())


async def test_services_are_known_by_their_names(lab: LabGrid, toy: RunningAgent) -> None:
    broker = await stub_for(lab, lab.service("broker", site="RAL"))
    await broker.List(storage_pb2.ListRequest())
    await broker.Stat(storage_pb2.StatRequest())
    peer = storage_of(toy).peers[-1]
    assert (peer.agent_kind, peer.agent_site, peer.agent_name) == ("broker", "RAL", "broker.RAL")
    assert (await refusal(broker.Repair(storage_pb2.RepairRequest()))).reason == "SERVICE_REQUIRED"
    assert (await refusal(broker.Remove(storage_pb2.RemoveRequest()))).reason == "USER_REQUIRED"
    worker = await stub_for(lab, lab.service("worker", site="RAL"))
    error = await refusal(worker.Repair(storage_pb2.RepairRequest()))
    assert isinstance(error, Refused) and error.reason == "OTHER_SITE"
    await (await stub_for(lab, lab.service("worker", site="CERN"))).Repair(storage_pb2.RepairRequest())


async def test_operators_are_no_users_and_users_no_operators(lab: LabGrid, toy: RunningAgent) -> None:
    operator = await stub_for(lab, lab.operator())
    await operator.Space(storage_pb2.SpaceRequest())
    assert (await refusal(operator.Stat(storage_pb2.StatRequest()))).reason == "USER_REQUIRED"
    error = await refusal((await stub_for(lab, lab.user())).Space(storage_pb2.SpaceRequest()))
    assert error.reason == "ADMINISTRATOR_REQUIRED"


async def test_names_that_only_look_like_services_are_strangers(lab: LabGrid, toy: RunningAgent) -> None:
    for subject in (
        "/C=XX/O=TestGrid/OU=Users/CN=broker\\x2Fbroker.CERN",
        "/C=XX/O=TestGrid/OU=CERN/OU=deep/CN=broker/broker.CERN",
        "/C=XX/O=TestGrid/OU=CERN/CN=broker",
        "/C=XX/O=TestGrid/CN=broker/broker.CERN",
    ):
        credential = lab.grid.user(subject)
        assert (await refusal((await stub_for(lab, credential)).List(storage_pb2.ListRequest()))).reason == "NOT_MAPPED"


async def test_a_method_without_a_rule_keeps_the_server_from_starting(lab: LabGrid) -> None:
    class Forgetful(ToyAgent):
        RULES = {name: rule for name, rule in ToyAgent.RULES.items() if name != "Put"}  # noqa: RUF012

    with pytest.raises(ValueError, match="no rule for Put"):
        await lab.start("storage", builder=Forgetful)


async def test_a_rule_without_a_method_keeps_the_server_from_starting(lab: LabGrid) -> None:
    class Mistyped(ToyAgent):
        RULES = {**ToyAgent.RULES, "Putt": rules.user}  # noqa: RUF012

    with pytest.raises(ValueError, match="Putt"):
        await lab.start("storage", builder=Mistyped)


async def test_a_method_that_would_block_keeps_the_server_from_starting(lab: LabGrid) -> None:
    class Blocking(ToyStorage):
        def Stat(self, request: Any, context: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return storage_pb2.StatResponse()

    class BlockingAgent(ToyAgent):
        def __init__(self, context: Any) -> None:
            super().__init__(context)
            add = storage_pb2_grpc.add_StorageServicer_to_server
            self.services = [RpcService(Blocking(), add, self.RULES)]

    with pytest.raises(ValueError, match="must be an async method"):
        await lab.start("storage", builder=BlockingAgent)


# -- errors ----------------------------------------------------------------------------------------------------------


async def test_a_servicers_error_arrives_as_it_was_raised(lab: LabGrid, toy: RunningAgent) -> None:
    stub = await stub_for(lab, lab.user())
    error = await refusal(stub.Stat(storage_pb2.StatRequest(surl="conflict")))
    assert isinstance(error, Conflict) and error.reason == "TOY_CONFLICT"
    assert dict(error.facts) == {"colour": "blue"}
    assert same_words(lab, error)["status"] == "FAILED_PRECONDITION"
    again = await refusal(stub.Stat(storage_pb2.StatRequest(surl="exhausted")))
    assert isinstance(again, Exhausted) and again.retry_after_s == 7


async def test_a_defect_tells_the_caller_an_incident_and_nothing_else(lab: LabGrid, toy: RunningAgent) -> None:
    error = await refusal((await stub_for(lab, lab.user())).Stat(storage_pb2.StatRequest(surl="defect")))
    assert isinstance(error, Defect)
    assert error.facts["incident"] in error.sentence and "secret" not in error.sentence
    same_words(lab, error)
    log = (lab.directory / "agents" / NAME / "log.jsonl").read_text()
    assert "secret internals" in log and error.facts["incident"] in log


async def test_a_message_over_the_limit_is_refused_in_the_same_words(lab: LabGrid, toy: RunningAgent) -> None:
    stub = await stub_for(lab, lab.user())
    error = await refusal(stub.Stat(storage_pb2.StatRequest(surl="x" * (MAX_MESSAGE_BYTES + 1))))
    assert isinstance(error, InvalidRequest) and error.reason == "MESSAGE_TOO_LARGE"
    same_words(lab, error)
    huge = await refusal(stub.Stat(storage_pb2.StatRequest(surl="x" * (3 * MAX_MESSAGE_BYTES))))
    assert huge.reason == "MESSAGE_TOO_LARGE" and str(lab.port(NAME)) in huge.sentence
    streamed = await refusal(stub.Put([storage_pb2.PutRequest(data=b"x" * (MAX_MESSAGE_BYTES + 1))]))
    assert streamed.reason == "MESSAGE_TOO_LARGE"
    await stub.Stat(storage_pb2.StatRequest())


async def test_a_message_of_another_type_is_malformed(lab: LabGrid, toy: RunningAgent) -> None:
    channel = await lab.channel("storage", credential=lab.user())
    call = channel.unary_unary("/gridfabric.storage.v1.Storage/Stat", lambda raw: raw, lambda raw: raw)
    error = await refusal(call(b"\xff" * 50))
    assert isinstance(error, InvalidRequest) and error.reason == "MESSAGE_MALFORMED"


async def test_a_refused_caller_is_not_read(lab: LabGrid, toy: RunningAgent) -> None:
    """What nobody may send is not even parsed: the refusal is about the session, not about the message."""
    channel = await lab.channel("storage")
    call = channel.unary_unary("/gridfabric.storage.v1.Storage/Stat", lambda raw: raw, lambda raw: raw)
    assert (await refusal(call(b"\xff" * 50))).reason == "SESSION_MISSING"


async def test_methods_that_are_not_there(lab: LabGrid, toy: RunningAgent) -> None:
    channel = await lab.channel("storage", credential=lab.user())
    nowhere = channel.unary_unary("/no.Such/Method", lambda raw: raw, lambda raw: raw)
    assert (await refusal(nowhere(b""))).reason == "METHOD_UNKNOWN"
    stream = information_pb2_grpc.InformationStub(channel).Subscribe(information_pb2.SubscribeRequest())
    assert (await refusal(anext(aiter(stream)))).reason == "METHOD_UNKNOWN"


async def test_a_deadline_is_an_error_that_names_the_peer(lab: LabGrid, toy: RunningAgent) -> None:
    stub = await stub_for(lab, lab.user())
    await stub.Stat(storage_pb2.StatRequest())
    error = await refusal(stub.Stat(storage_pb2.StatRequest(surl="slow"), timeout=0.2))
    assert isinstance(error, DeadlineExceeded) and str(lab.port(NAME)) in error.sentence


async def test_nobody_listens(lab: LabGrid) -> None:
    lab.plan("storage")
    error = await refusal((await stub_for(lab, lab.user())).Stat(storage_pb2.StatRequest()))
    assert isinstance(error, Unavailable) and error.reason == "SERVER_UNREACHABLE"
    assert str(lab.port(NAME)) in error.sentence


async def test_somebody_else_listens(lab: LabGrid) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 this is a mail server\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        channel = await lab.channels.get("localhost", server.sockets[0].getsockname()[1], lab.user())
        error = await refusal(storage_pb2_grpc.StorageStub(channel).Stat(storage_pb2.StatRequest()))
    assert isinstance(error, Unavailable) and error.reason in ("SERVER_NOT_TLS", "SERVER_UNREACHABLE")


async def test_a_listener_that_says_nothing_costs_a_deadline_and_no_more(
    lab: LabGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[asyncio.StreamWriter] = []  # from Python 3.12 on a connection that nobody holds is closed
    server = await asyncio.start_server(lambda reader, writer: held.append(writer), "127.0.0.1", 0)
    async with server:
        channel = await lab.channels.get("localhost", server.sockets[0].getsockname()[1], lab.user())
        error = await refusal(storage_pb2_grpc.StorageStub(channel).Stat(storage_pb2.StatRequest(), timeout=0.2))
        for writer in held:
            writer.close()
    assert isinstance(error, DeadlineExceeded)


async def test_ten_thousand_garbage_bytes_disturb_nobody(lab: LabGrid, toy: RunningAgent) -> None:
    stub = await stub_for(lab, lab.user())
    await stub.Stat(storage_pb2.StatRequest())
    for garbage in (os.urandom(10_000), b"GET / HTTP/1.1\r\n\r\n" * 500, b"\x16\x03\x01\x02\x00" + os.urandom(9_995)):
        reader, writer = await asyncio.open_connection("127.0.0.1", lab.port(NAME))
        writer.write(garbage)
        async with asyncio.timeout(60):
            while await reader.read(65536):
                pass
        writer.close()
    await stub.Stat(storage_pb2.StatRequest())


async def test_metadata_over_the_limit_is_refused(lab: LabGrid, toy: RunningAgent) -> None:
    stub = await stub_for(lab, lab.user())
    await refusal(stub.Stat(storage_pb2.StatRequest(), metadata=(("x-large", "y" * 40_000),)))
    await stub.Stat(storage_pb2.StatRequest())


async def test_the_callers_trace_is_on_the_servers_lines(lab: LabGrid, toy: RunningAgent) -> None:
    from fabric import logs

    trace = logs.new_trace()
    stub = await stub_for(lab, lab.user())
    error = await refusal(stub.Stat(storage_pb2.StatRequest(surl="conflict")))
    assert storage_of(toy).traces == [trace]
    assert same_words(lab, error)["trace"] == trace
    await stub.Stat(storage_pb2.StatRequest(), metadata=(("gridfabric-trace", "no good trace!"),))
    assert storage_of(toy).traces[-1] not in ("no good trace!", "")


# -- streams ---------------------------------------------------------------------------------------------------------


async def test_all_four_kinds_of_call(lab: LabGrid, toy: RunningAgent) -> None:
    channel = await lab.channel("storage", credential=lab.user())
    stub: Any = storage_pb2_grpc.StorageStub(channel)
    pieces = [storage_pb2.PutRequest(data=b"x" * 1000) for _ in range(10)]
    assert (await stub.Put(pieces)).size_bytes == 10_000
    assert (await stub.Put(iter(pieces))).size_bytes == 10_000

    async def slowly() -> AsyncIterator[Any]:
        for piece in pieces:
            await asyncio.sleep(0)
            yield piece

    assert (await stub.Put(slowly())).size_bytes == 10_000
    assert [r.data async for r in stub.Get(storage_pb2.GetRequest())] == [b"first", b"second"]
    publish: StreamCall = information_pb2_grpc.InformationStub(channel).Publish()
    for number in range(3):
        await publish.write(information_pb2.PublishRequest(sequence=number))
        assert (await publish.read()).acknowledged_sequence == number
    await publish.done_writing()
    assert await publish.read() is grpc.aio.EOF
    put = stub.Put()
    await put.write(pieces[0])
    await put.done_writing()
    assert (await put).size_bytes == 1000


async def test_a_stream_that_is_refused_never_touches_its_requests(lab: LabGrid, toy: RunningAgent) -> None:
    touched: list[int] = []

    def requests() -> Any:
        touched.append(1)
        yield storage_pb2.PutRequest()

    stub = await stub_for(lab)
    assert (await refusal(stub.Put(requests()))).reason == "SESSION_MISSING"
    assert (await refusal(anext(aiter(stub.Get(storage_pb2.GetRequest()))))).reason == "SESSION_MISSING"
    call = stub.Put()
    assert (await refusal(call.write(storage_pb2.PutRequest()))).reason == "SESSION_MISSING"
    assert touched == []


async def test_what_the_iterable_of_requests_raises_is_what_the_caller_gets(lab: LabGrid, toy: RunningAgent) -> None:
    def requests() -> Any:
        yield storage_pb2.PutRequest(data=b"1")
        raise OSError("the disk went away")

    stub = await stub_for(lab, lab.user())
    with pytest.raises(OSError, match="disk went away"):
        await stub.Put(requests())


async def test_an_error_in_mid_stream(lab: LabGrid, toy: RunningAgent) -> None:
    stub = await stub_for(lab, lab.user())
    got: list[bytes] = []
    with pytest.raises(Conflict, match="half way"):
        async for piece in stub.Get(storage_pb2.GetRequest(surl="conflict")):
            got.append(piece.data)
    assert got == [b"first"]


async def wait_until(condition: Any, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition is somebody else's file or list
            await asyncio.sleep(0.01)


async def test_a_client_that_leaves_ends_the_servicers_work(lab: LabGrid, toy: RunningAgent) -> None:
    stub = await stub_for(lab, lab.user())
    async with stub.Get(storage_pb2.GetRequest(surl="endless")) as stream:
        assert (await stream.read()).data == b"first"
    await wait_until(lambda: storage_of(toy).streams_ended == ["endless"])
    assert not [line for line in lab.audit(NAME, "call.refused")]


async def open_stream(lab: LabGrid, credential: Any) -> Any:
    stream = (await stub_for(lab, credential)).Get(storage_pb2.GetRequest(surl="endless"))
    assert (await stream.read()).data == b"first"
    return stream


async def test_revoked_while_a_stream_is_open(lab: LabGrid, toy: RunningAgent) -> None:
    alice, bob = lab.user("alice"), lab.user("bob")
    stream, other = await open_stream(lab, alice), await open_stream(lab, bob)
    lab.revoke(lab.user_certificate("alice"))
    async with asyncio.timeout(60):
        error = await refusal(stream.read())
    assert isinstance(error, Unauthenticated) and error.reason == "CERTIFICATE_REVOKED"
    assert same_words(lab, error)["reason"] == same_words(lab, error, "session.closed")["reason"]
    # The token replayed, and a new session: the same reason, now from the closed session and from the validation.
    assert (await refusal((await stub_for(lab, alice)).Stat(storage_pb2.StatRequest()))).sentence == error.sentence
    assert (await refusal((await stub_for(lab, alice)).Stat(storage_pb2.StatRequest()))).reason == "CERTIFICATE_REVOKED"
    storage_of(toy).release.set()
    assert (await other.read()).data == b"second"


async def test_banned_while_a_stream_is_open(lab: LabGrid, toy: RunningAgent) -> None:
    stream = await open_stream(lab, lab.user("alice"))
    lab.ban("alice")
    async with asyncio.timeout(60):
        error = await refusal(stream.read())
    assert isinstance(error, Refused) and error.reason == "BANNED"
    same_words(lab, error)


async def test_expelled_from_the_vo_while_a_stream_is_open(lab: LabGrid, toy: RunningAgent) -> None:
    stream = await open_stream(lab, lab.user("alice"))
    lab.expel("alice")
    async with asyncio.timeout(60):
        error = await refusal(stream.read())
    assert isinstance(error, Refused) and error.reason == "NOT_MAPPED"


async def test_a_ban_list_that_cannot_be_read_refuses_everybody(lab: LabGrid, toy: RunningAgent) -> None:
    stream = await open_stream(lab, lab.user("alice"))
    lab.ban_file.write_text("not a name at all\n")
    async with asyncio.timeout(60):
        assert (await refusal(stream.read())).reason == "BAN_LIST_UNREADABLE"
    assert (await refusal((await stub_for(lab, lab.user("bob"))).Stat(storage_pb2.StatRequest()))).reason == (
        "BAN_LIST_UNREADABLE"
    )


async def test_a_session_that_ends_with_its_time_ends_its_streams_and_is_renewed(lab: LabGrid) -> None:
    toy = await lab.start("storage", builder=ToyAgent, fabric={"session_lifetime_s": 1})
    alice = lab.user("alice")
    stream = await open_stream(lab, alice)
    async with asyncio.timeout(60):
        error = await refusal(stream.read())
    assert error.reason == "SESSION_EXPIRED"
    await (await stub_for(lab, alice)).Stat(storage_pb2.StatRequest())
    assert len(toy.server.sessions) == 1


async def test_a_stopping_server_ends_streams_with_a_reason(lab: LabGrid, toy: RunningAgent) -> None:
    stream = await open_stream(lab, lab.user("alice"))
    await lab.stop(NAME)
    error = await refusal(stream.read())
    assert isinstance(error, Unavailable) and error.reason == "SERVER_STOPPING"


# -- servers that change ---------------------------------------------------------------------------------------------


async def test_a_restarted_server_is_found_again_without_a_word(lab: LabGrid, toy: RunningAgent) -> None:
    stub = await stub_for(lab, lab.user())
    await stub.Stat(storage_pb2.StatRequest())
    await lab.stop(NAME)
    assert isinstance(await refusal(stub.Stat(storage_pb2.StatRequest())), Unavailable)
    await lab.start("storage", builder=ToyAgent)
    async with asyncio.timeout(60):
        while True:
            try:
                await stub.Stat(storage_pb2.StatRequest())
                break
            except Unavailable:
                await asyncio.sleep(0.02)
    assert (await stub.Put([storage_pb2.PutRequest(data=b"xy")])).size_bytes == 2


async def test_a_stream_finds_the_restarted_server_too(lab: LabGrid, toy: RunningAgent) -> None:
    stub = await stub_for(lab, lab.user())
    await stub.Stat(storage_pb2.StatRequest())
    await lab.stop(NAME)
    await lab.start("storage", builder=ToyAgent)
    assert (await stub.Put([storage_pb2.PutRequest(data=b"xy")])).size_bytes == 2


async def test_a_server_with_a_new_certificate_is_judged_and_pinned_again(lab: LabGrid, toy: RunningAgent) -> None:
    stub = await stub_for(lab, lab.user())
    await stub.Stat(storage_pb2.StatRequest())
    await lab.stop(NAME)
    lab.service("storage", NAME).save(lab.directory / "agents" / f"{NAME}.pem")
    await lab.start("storage", builder=ToyAgent)
    await stub.Stat(storage_pb2.StatRequest())


async def test_calls_on_a_connection_from_before_a_renewal_go_on_until_they_end(
    lab: LabGrid, toy: RunningAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transfer takes longer than a roll-over of the authority."""
    monkeypatch.setattr(channel_module, "OLD_LINK_GRACE_S", 0.0)
    channel = await lab.channel("storage", credential=lab.user("alice"))
    stub: Any = storage_pb2_grpc.StorageStub(channel)

    async def renew() -> None:
        toy.context.use(lab.service("storage"))
        await lab.channels.move_from([lab.grid.ca.certificate])
        await asyncio.sleep(0.05)  # the old connection is being closed
        assert channel.shown == toy.context.credential.certificate
        await stub.Stat(storage_pb2.StatRequest())

    async def closed() -> None:
        async with asyncio.timeout(60):
            while lab.channels._leaving:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    before = channel.shown
    async with stub.Get(storage_pb2.GetRequest(surl="endless")) as stream:
        messages = aiter(stream)
        assert (await anext(messages)).data == b"first"
        await renew()
        assert channel.shown != before and len(lab.channels._leaving) == 1
        storage_of(toy).release.set()
        assert [message.data async for message in messages] == [b"second"]
    await closed()

    storage_of(toy).release.clear()
    async with stub.Get(storage_pb2.GetRequest(surl="endless")) as stream:
        messages = aiter(stream)
        assert (await anext(messages)).data == b"first"
        old = toy.context.credential
        await renew()
        lab.revoke(old)
        lab.refresh_trust()
        await lab.channels.trust_changed()
        with pytest.raises(GridError):
            await anext(messages)
    await closed()
    await stub.Stat(storage_pb2.StatRequest())


async def test_a_server_of_an_unknown_authority_gets_nothing(lab: LabGrid) -> None:
    lab.plan("storage")
    authority = lab.grid.unknown_authority()
    key = generate_key("ec-p256")
    certificate = authority.issue_host(
        ["localhost"], key.public_key(), lifetime=timedelta(days=1), now=lab.clock.now(), subject="storage/localhost"
    )
    Credential(certificate, key).save(lab.directory / "agents" / f"{NAME}.pem")
    await lab.start("storage", builder=ToyAgent)
    error = await refusal((await stub_for(lab, lab.user())).Stat(storage_pb2.StatRequest()))
    assert isinstance(error, Unauthenticated) and error.reason == "UNKNOWN_CA"
    assert error.facts["peer"] == f"localhost:{lab.port(NAME)}"
    assert lab.audit(NAME) == []


async def test_a_host_certificate_for_another_name_is_refused(lab: LabGrid) -> None:
    lab.plan("storage")
    wrong = lab.grid.host("elsewhere.example.org", subject="/C=XX/O=TestGrid/OU=CERN/CN=storage/storage.CERN")
    wrong.save(lab.directory / "agents" / f"{NAME}.pem")
    await lab.start("storage", builder=ToyAgent)
    error = await refusal((await stub_for(lab, lab.user())).Stat(storage_pb2.StatRequest()))
    assert isinstance(error, Unauthenticated) and error.reason == "HOST_NAME_MISMATCH"
    assert lab.audit(NAME, "session.opened") == []


async def test_a_server_whose_certificate_is_revoked_loses_its_clients(lab: LabGrid, toy: RunningAgent) -> None:
    stub = await stub_for(lab, lab.user())
    await stub.Stat(storage_pb2.StatRequest())
    lab.revoke(toy.context.credential)
    lab.refresh_trust()
    error = await refusal(stub.Stat(storage_pb2.StatRequest()))
    assert isinstance(error, Unauthenticated) and error.reason == "CERTIFICATE_REVOKED"


async def test_streams_to_a_revoked_server_are_ended_with_a_grid_error(lab: LabGrid, toy: RunningAgent) -> None:
    stream = await open_stream(lab, lab.user("alice"))
    reading = asyncio.create_task(refusal(stream.read()))
    await asyncio.sleep(0)
    lab.revoke(toy.context.credential)
    lab.refresh_trust()
    await lab.channels.trust_changed()
    async with asyncio.timeout(60):
        assert isinstance(await reading, Unavailable)


async def test_cancelling_a_task_is_not_turned_into_an_error(lab: LabGrid, toy: RunningAgent) -> None:
    stub = await stub_for(lab, lab.user())
    stream = await open_stream(lab, lab.user("alice"))
    tasks = [
        asyncio.create_task(stub.Stat(storage_pb2.StatRequest(surl="slow"))),
        asyncio.create_task(stream.read()),
    ]
    await wait_until(lambda: len(storage_of(toy).peers) == 1)
    for task in tasks:
        task.cancel()
    assert [type(found) for found in await asyncio.gather(*tasks, return_exceptions=True)] == [
        asyncio.CancelledError
    ] * 2


# -- the standard services -------------------------------------------------------------------------------------------


async def test_health_and_reflection_need_no_session(lab: LabGrid, toy: RunningAgent) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    channel = await lab.channel("storage")
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    ask = [reflection_pb2.ServerReflectionRequest(list_services="")]
    listed: Any = await anext(aiter(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(ask)))
    names = {service.name for service in listed.list_services_response.service}
    assert {"gridfabric.storage.v1.Storage", "gridfabric.security.v1.SecurityContext"} <= names


async def test_channels_that_are_closed_say_so(lab: LabGrid, toy: RunningAgent) -> None:
    await lab.channels.close()
    assert (await refusal(lab.channel("storage", credential=lab.user()))).reason == "CHANNELS_CLOSED"


async def test_a_channel_is_shared_by_the_same_credential_only(lab: LabGrid, toy: RunningAgent) -> None:
    alice, bob = lab.user("alice"), lab.user("bob")
    first: SecureChannel = await lab.channel("storage", credential=alice)
    assert first is await lab.channel("storage", credential=alice)
    assert first is not await lab.channel("storage", credential=bob)
    short = proxies.create_proxy(
        lab.user_certificate(), lifetime=alice.not_after - lab.clock.now(), now=lab.clock.now()
    )
    assert first is not await lab.channel("storage", credential=short)
