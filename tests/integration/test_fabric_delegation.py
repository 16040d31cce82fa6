"""Delegation over real sessions: the key stays with the receiver, and only the owner's own proxies are taken."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gridfabric.security.v1 import security_pb2 as pb
from gridfabric.security.v1 import security_pb2_grpc
from gridfabric.storage.v1 import storage_pb2, storage_pb2_grpc
from support.grid import LabGrid, Offset
from support.toy_agent import ToyAgent

from fabric.agent import RunningAgent
from fabric.errors import Exhausted, GridError, InvalidRequest, NotFound, Unauthenticated
from fabric.rpc import delegation as module
from fabric.rpc.delegation import DelegationStore, delegate, delegation_remaining_s
from security import proxies
from security.credentials import generate_key

ALICE = "/C=XX/O=TestGrid/OU=Users/CN=alice"
NAME = "storage.CERN"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path) as found:
        yield found


@pytest.fixture
async def toy(lab: LabGrid) -> RunningAgent:
    return await lab.start("storage", builder=ToyAgent)


async def refusal(call: Any) -> GridError:
    with pytest.raises(GridError) as found:
        await call
    return found.value


async def put(lab: LabGrid, caller: Any, sign: Any) -> Any:
    """Request as `caller`, then Put whatever `sign(request_pem)` returns."""
    stub: Any = security_pb2_grpc.DelegationStub(await lab.channel("storage", credential=caller))
    asked = await stub.Request(pb.DelegationRequest())
    return await stub.Put(pb.DelegationPutRequest(chain_pem=sign(asked.request_pem)))


def signer(lab: LabGrid, credential: Any, **more: Any) -> Any:
    return lambda request: proxies.sign_request(
        request, credential, lifetime=timedelta(hours=1), now=lab.clock.now(), **more
    )


async def test_a_delegated_proxy_acts_for_its_owner(lab: LabGrid, toy: RunningAgent) -> None:
    alice = lab.user("alice")
    channel = await lab.channel("storage", credential=alice)
    assert await delegation_remaining_s(channel) == 0
    await delegate(channel, alice, lifetime=timedelta(hours=1))
    assert 3500 < await delegation_remaining_s(channel) <= 3600
    held = toy.context.delegations.get(ALICE)
    assert held.key.private_numbers() != alice.key.private_numbers()
    stub: Any = storage_pb2_grpc.StorageStub(await lab.channel("storage", credential=held))
    await stub.Remove(storage_pb2.RemoveRequest())
    assert lab.audit(NAME, "delegation.stored")[-1]["peer"] == ALICE


async def test_a_limited_delegation_stays_limited(lab: LabGrid, toy: RunningAgent) -> None:
    alice = lab.user("alice")
    await delegate(await lab.channel("storage", credential=alice), alice, "data", limited=True)
    held = toy.context.delegations.get(ALICE, "data")
    stub: Any = storage_pb2_grpc.StorageStub(await lab.channel("storage", credential=held))
    assert (await refusal(stub.Remove(storage_pb2.RemoveRequest()))).reason == "LIMITED_PROXY"


async def test_the_files_are_private_and_survive_a_restart(lab: LabGrid, toy: RunningAgent) -> None:
    alice = lab.user("alice")
    await delegate(await lab.channel("storage", credential=alice), alice)
    folder = toy.context.state_dir / "delegations"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [p.stat().st_mode & 0o777 for p in folder.iterdir()] == [0o600, 0o600]
    before = toy.context.delegations.get(ALICE)
    await lab.stop(NAME)
    again = await lab.start("storage", builder=ToyAgent)
    assert again.context.delegations.get(ALICE).pem_chain() == before.pem_chain()


async def test_a_newer_delegation_replaces_and_listeners_hear(lab: LabGrid, toy: RunningAgent) -> None:
    heard: list[tuple[str, str]] = []
    toy.context.delegations.on_change(lambda subject, name: heard.append((subject, name)))
    alice = lab.user("alice")
    channel = await lab.channel("storage", credential=alice)
    await delegate(channel, alice, lifetime=timedelta(hours=1))
    await delegate(channel, alice, lifetime=timedelta(hours=2))
    assert await delegation_remaining_s(channel) > 3700
    assert len(list((toy.context.state_dir / "delegations").iterdir())) == 2
    stub: Any = security_pb2_grpc.DelegationStub(channel)
    for _ in range(2):
        await stub.Destroy(pb.DelegationDestroyRequest())
    assert heard == [(ALICE, "default")] * 3
    assert list((toy.context.state_dir / "delegations").iterdir()) == []
    assert (await refusal(stub.Show(pb.DelegationShowRequest()))).reason == "DELEGATION_MISSING"


async def test_two_commands_of_one_person_delegate_at_the_same_time(lab: LabGrid, toy: RunningAgent) -> None:
    alice = lab.user("alice")
    stub: Any = security_pb2_grpc.DelegationStub(await lab.channel("storage", credential=alice))
    first, second = [await stub.Request(pb.DelegationRequest()) for _ in range(2)]
    sign = signer(lab, alice)
    for request in (first, second):
        await stub.Put(pb.DelegationPutRequest(chain_pem=sign(request.request_pem)))
        assert toy.context.delegations.get(ALICE)
    error = await refusal(stub.Put(pb.DelegationPutRequest(chain_pem=sign(first.request_pem))))
    assert error.reason == "DELEGATION_NOT_REQUESTED"


async def test_nobody_sees_or_touches_the_delegations_of_others(lab: LabGrid, toy: RunningAgent) -> None:
    alice, bob = lab.user("alice"), lab.user("bob")
    await delegate(await lab.channel("storage", credential=alice), alice)
    stub: Any = security_pb2_grpc.DelegationStub(await lab.channel("storage", credential=bob))
    assert isinstance(await refusal(stub.Show(pb.DelegationShowRequest())), NotFound)
    await stub.Destroy(pb.DelegationDestroyRequest())
    assert toy.context.delegations.get(ALICE)


async def test_a_chain_for_another_key_is_refused(lab: LabGrid, toy: RunningAgent) -> None:
    alice = lab.user("alice")
    error = await refusal(put(lab, alice, lambda request: alice.pem_chain()))
    assert isinstance(error, InvalidRequest) and error.reason == "DELEGATION_WRONG_KEY"


async def test_a_chain_of_another_person_is_refused(lab: LabGrid, toy: RunningAgent) -> None:
    error = await refusal(put(lab, lab.user("alice"), signer(lab, lab.user("bob"))))
    assert isinstance(error, InvalidRequest) and error.reason == "DELEGATION_WRONG_SUBJECT"
    assert "bob" in error.sentence and "alice" in error.sentence


async def test_a_limited_caller_cannot_delegate_full_rights(lab: LabGrid, toy: RunningAgent) -> None:
    limited = lab.user("alice", limited=True)
    await put(lab, limited, signer(lab, limited))
    held = toy.context.delegations.get(ALICE)
    stub: Any = storage_pb2_grpc.StorageStub(await lab.channel("storage", credential=held))
    assert (await refusal(stub.Remove(storage_pb2.RemoveRequest()))).reason == "LIMITED_PROXY"


@pytest.mark.parametrize("chain", [b"", b"garbage", b"x" * 70_000])
async def test_what_is_no_chain_is_refused(lab: LabGrid, toy: RunningAgent, chain: bytes) -> None:
    assert isinstance(await refusal(put(lab, lab.user(), lambda request: chain)), InvalidRequest)


async def test_an_unknown_authority_is_refused(lab: LabGrid, toy: RunningAgent) -> None:
    stranger = lab.grid.unknown_ca_user("alice")
    error = await refusal(put(lab, lab.user("alice"), signer(lab, stranger)))
    assert isinstance(error, Unauthenticated) and error.reason == "UNKNOWN_CA"


async def test_put_without_request_and_twice(lab: LabGrid, toy: RunningAgent) -> None:
    alice = lab.user("alice")
    stub: Any = security_pb2_grpc.DelegationStub(await lab.channel("storage", credential=alice))
    asked = await stub.Request(pb.DelegationRequest())
    chain = signer(lab, alice)(asked.request_pem)
    await stub.Put(pb.DelegationPutRequest(chain_pem=chain))
    error = await refusal(stub.Put(pb.DelegationPutRequest(chain_pem=chain)))
    assert error.reason == "DELEGATION_NOT_REQUESTED"


@pytest.mark.parametrize("name", ["../x", "a b", "x" * 65, "\0"])
async def test_ids_are_plain_words(lab: LabGrid, toy: RunningAgent, name: str) -> None:
    stub: Any = security_pb2_grpc.DelegationStub(await lab.channel("storage", credential=lab.user()))
    error = await refusal(stub.Request(pb.DelegationRequest(delegation_id=name)))
    assert error.reason == "DELEGATION_ID_INVALID"


async def test_without_a_session_there_is_no_delegation(lab: LabGrid, toy: RunningAgent) -> None:
    stub: Any = security_pb2_grpc.DelegationStub(await lab.channel("storage"))
    assert (await refusal(stub.Request(pb.DelegationRequest()))).reason == "SESSION_MISSING"


async def test_expired_and_damaged_credentials(lab: LabGrid, tmp_path: Path) -> None:
    clock = Offset()
    store = DelegationStore(
        tmp_path / "d", trust=lab.grid.trust_store, policy=lab.grid.policy, clock=clock, log=lab.log
    )
    alice = lab.user_certificate("alice")
    request = store.request(ALICE, "short")
    chain = proxies.sign_request(request, alice, lifetime=timedelta(hours=1), now=clock.now())
    store.put(ALICE, "short", chain)
    clock.ahead = timedelta(hours=1, seconds=1)
    with pytest.raises(Unauthenticated) as found:
        store.get(ALICE, "short")
    assert found.value.reason == "DELEGATION_EXPIRED" and found.value.facts["subject"] == ALICE
    next((tmp_path / "d").glob("*.pem")).write_bytes(b"damaged")
    again = DelegationStore(
        tmp_path / "d", trust=lab.grid.trust_store, policy=lab.grid.policy, clock=clock, log=lab.log
    )
    assert again.all() == []


async def test_everything_is_bounded(lab: LabGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PER_SUBJECT", 2)
    monkeypatch.setattr(module, "MAX_REQUESTS", 4)
    monkeypatch.setattr(module, "MAX_REQUESTS_PER_SUBJECT", 2)
    store = DelegationStore(
        tmp_path / "d", trust=lab.grid.trust_store, policy=lab.grid.policy, clock=lab.clock, log=lab.log
    )
    sign = signer(lab, lab.user("alice"))
    for name in ("a", "b"):
        store.put(ALICE, name, sign(store.request(ALICE, name)))
    with pytest.raises(Exhausted):
        store.put(ALICE, "c", sign(store.request(ALICE, "c")))
    store.put(ALICE, "a", sign(store.request(ALICE, "a")))
    for name in ("x", "y", "z"):
        store.request("/CN=other", name)
    with pytest.raises(InvalidRequest):
        store.put("/CN=other", "x", b"")
    store.request("/CN=third", "x")
    with pytest.raises(Exhausted):
        store.request("/CN=fourth", "x")


def test_keys_are_made_by_the_receiver() -> None:
    key, request = proxies.new_request()
    assert b"PRIVATE" not in request
    assert key.private_numbers() != generate_key("ec-p256").private_numbers()
