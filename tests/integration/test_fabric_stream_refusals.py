"""A stream that is refused before one message was read: the sentence arrives as it was said, every time.

The server ends the call while the client may be about to write, or writing. Whatever of the two comes first, the
client gets the server's reason and never a word of the transport's own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from gridfabric.information.v1 import information_pb2, information_pb2_grpc
from gridfabric.storage.v1 import storage_pb2, storage_pb2_grpc
from support.grid import LabGrid
from support.toy_agent import ToyAgent, methods

from fabric.context import AgentContext
from fabric.errors import GridError, Refused
from fabric.rpc import rules
from fabric.rpc.channel import SecureChannel
from fabric.rpc.server import RpcService

TIMES = 25
FULL = 256 * 1024
"""A message that does not fit into the first window of a stream."""
SENTENCE = "this servicer takes nothing today; come back tomorrow"


class Grumpy(storage_pb2_grpc.StorageServicer, information_pb2_grpc.InformationServicer):
    """Refuses before it reads; on `Publish` it has said something before."""

    async def Put(self, request_iterator: AsyncIterator[Any], context: Any) -> Any:
        raise Refused("TOY_GRUMPY", SENTENCE, mood="bad")

    async def Publish(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        for sequence in range(3):
            yield information_pb2.PublishResponse(acknowledged_sequence=sequence)
        raise Refused("TOY_GRUMPY", SENTENCE, mood="bad")


class StrictAgent(ToyAgent):
    """Streams by rules that refuse most callers."""

    put: rules.Rule = rules.full_user
    publish: rules.Rule = rules.full_user

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        storage, information = self.services
        self.services = [
            RpcService(storage.servicer, storage.add_to_server, {**storage.rules, "Put": self.put}),
            RpcService(information.servicer, information.add_to_server, {**information.rules, "Publish": self.publish}),
        ]


class BrokersOnlyAgent(StrictAgent):
    put = publish = rules.services("broker")


class GrumpyAgent(ToyAgent):
    """Lets everybody in and refuses in the servicer."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        grumpy = Grumpy()
        self.services = [
            RpcService(
                grumpy,
                storage_pb2_grpc.add_StorageServicer_to_server,
                dict.fromkeys(methods(storage_pb2, "Storage"), rules.user),
            ),
            RpcService(
                grumpy,
                information_pb2_grpc.add_InformationServicer_to_server,
                dict.fromkeys(methods(information_pb2, "Information"), rules.user),
            ),
        ]


def pieces(size: int, count: int = 3) -> list[Any]:
    return [storage_pb2.PutRequest(data=bytes(size)) for _ in range(count)]


def publications(size: int, count: int = 3) -> list[Any]:
    return [information_pb2.PublishRequest(producer="x" * size, sequence=n + 1) for n in range(count)]


async def later(requests: list[Any]) -> AsyncIterator[Any]:
    for request in requests:
        yield request


async def put_from_list(channel: SecureChannel, size: int) -> None:
    await storage_pb2_grpc.StorageStub(channel).Put(iter(pieces(size)))


async def put_from_generator(channel: SecureChannel, size: int) -> None:
    await storage_pb2_grpc.StorageStub(channel).Put(later(pieces(size)))


async def put_by_writing(channel: SecureChannel, size: int) -> None:
    call: Any = storage_pb2_grpc.StorageStub(channel).Put()
    for piece in pieces(size):
        await call.write(piece)
    await call.done_writing()
    await call


async def publish_from_generator(channel: SecureChannel, size: int) -> None:
    async for _ in information_pb2_grpc.InformationStub(channel).Publish(later(publications(size))):
        pass


async def publish_by_writing(channel: SecureChannel, size: int) -> None:
    call: Any = information_pb2_grpc.InformationStub(channel).Publish()
    for message in publications(size):
        await call.write(message)
    await call.done_writing()
    async for _ in call:
        pass


async def publish_and_read_nothing(channel: SecureChannel, size: int) -> None:
    call: Any = information_pb2_grpc.InformationStub(channel).Publish()
    while True:
        for message in publications(size):
            await call.write(message)


Way = Callable[[SecureChannel, int], Awaitable[None]]
WAYS: list[Way] = [
    put_from_list, put_from_generator, put_by_writing, publish_from_generator, publish_by_writing,
    publish_and_read_nothing,
]  # fmt: skip


async def refusals(channel: SecureChannel, way: Way, size: int) -> set[tuple[str, str]]:
    """Reasons and sentences of many attempts."""
    found: set[tuple[str, str]] = set()
    for _ in range(TIMES):
        with pytest.raises(GridError) as caught:
            await way(channel, size)
        found.add((caught.value.reason, caught.value.sentence))
    return found


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path) as found:
        yield found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("caller", "reason"),
    [("limited", "LIMITED_PROXY"), ("nobody", "SESSION_MISSING"), ("wrong service", "SERVICE_REQUIRED")],
)
async def test_refused_by_rule(lab: LabGrid, way: Way, caller: str, reason: str) -> None:
    await lab.start("storage", builder=BrokersOnlyAgent if caller == "wrong service" else StrictAgent)
    credential = {
        "limited": lambda: lab.user("alice", limited=True),
        "nobody": lambda: None,
        "wrong service": lambda: lab.service("catalog"),
    }[caller]()
    channel = await lab.channel("storage", credential=credential)
    (found,) = await refusals(channel, way, 10)
    said = {(line["reason"], line["sentence"]) for line in lab.audit("storage.CERN", "call.refused")}
    assert found in said
    assert found[0] == reason


@pytest.mark.parametrize("size", [10, FULL])
@pytest.mark.parametrize("way", WAYS)
async def test_refused_by_the_servicer_while_the_client_writes(lab: LabGrid, way: Way, size: int) -> None:
    await lab.start("storage", builder=GrumpyAgent)
    channel = await lab.channel("storage", credential=lab.user("alice"))
    assert await refusals(channel, way, size) == {("TOY_GRUMPY", SENTENCE)}
