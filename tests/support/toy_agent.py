"""An agent that does nothing useful, over the storage and information protocols: enough to see every kind of call.

`Stat` does what its `surl` says; `Put` counts bytes; `Get` sends pieces; `Publish` echoes sequences; `Remove` needs a
full proxy; `List` a broker; `Repair` a worker of the same site; `Space` an operator.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, ClassVar

from gridfabric.information.v1 import information_pb2, information_pb2_grpc
from gridfabric.storage.v1 import storage_pb2, storage_pb2_grpc

from fabric.agent import Agent, AgentHealth, AgentState
from fabric.context import AgentContext
from fabric.errors import Conflict, Exhausted
from fabric.rpc import rules
from fabric.rpc.peer import Peer, current_peer
from fabric.rpc.server import RpcService


class ToyStorage(storage_pb2_grpc.StorageServicer):
    """See the module."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.traces: list[str] = []
        self.streams_ended: list[str] = []
        self.release = asyncio.Event()

    async def Stat(self, request: Any, context: Any) -> Any:
        peer = current_peer(context)
        self.peers.append(peer)
        self.traces.append(peer.trace_id)
        if request.surl == "conflict":
            raise Conflict("TOY_CONFLICT", f"{peer.subject} asked for a conflict; do not", colour="blue")
        if request.surl == "exhausted":
            raise Exhausted("TOY_EXHAUSTED", "come back later", retry_after_s=7)
        if request.surl == "defect":
            raise RuntimeError("secret internals")
        if request.surl == "slow":
            await self.release.wait()
        return storage_pb2.StatResponse()

    async def Put(self, request_iterator: AsyncIterator[Any], context: Any) -> Any:
        size = 0
        async for piece in request_iterator:
            size += len(piece.data)
        return storage_pb2.PutResponse(size_bytes=size)

    async def Get(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            yield storage_pb2.GetResponse(data=b"first")
            if request.surl == "endless":
                await self.release.wait()
            if request.surl == "conflict":
                raise Conflict("TOY_CONFLICT", "half way")
            yield storage_pb2.GetResponse(data=b"second")
        finally:
            self.streams_ended.append(request.surl)

    async def Remove(self, request: Any, context: Any) -> Any:
        return storage_pb2.RemoveResponse()

    async def List(self, request: Any, context: Any) -> Any:
        return storage_pb2.ListResponse()

    async def PrepareToPut(self, request: Any, context: Any) -> Any:
        return storage_pb2.PrepareToPutResponse()

    async def Repair(self, request: Any, context: Any) -> Any:
        return storage_pb2.RepairResponse()

    async def Space(self, request: Any, context: Any) -> Any:
        return storage_pb2.SpaceResponse()


def methods(module: Any, service: str) -> list[str]:
    """The names of a service's methods."""
    return [method.name for method in module.DESCRIPTOR.services_by_name[service].methods]


class ToyInformation(information_pb2_grpc.InformationServicer):
    """Publish echoes; the rest is not implemented."""

    async def Publish(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in request_iterator:
            yield information_pb2.PublishResponse(acknowledged_sequence=request.sequence)


class ToyAgent(Agent):
    """Give the class as `builder` to `LabGrid.start`."""

    RULES: ClassVar[dict[str, rules.Rule]] = {
        **dict.fromkeys(methods(storage_pb2, "Storage"), rules.user),
        "Stat": rules.any_of(rules.user, rules.any_service),
        "Remove": rules.full_user,
        "List": rules.services("broker"),
        "Repair": rules.site_services("worker"),
        "Space": rules.administrator,
    }

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        self.storage = ToyStorage()
        self.services = [
            RpcService(self.storage, storage_pb2_grpc.add_StorageServicer_to_server, self.RULES),
            RpcService(
                ToyInformation(),
                information_pb2_grpc.add_InformationServicer_to_server,
                dict.fromkeys(methods(information_pb2, "Information"), rules.user),
            ),
        ]
        _ = context.delegations

    def health(self) -> AgentHealth:
        return AgentHealth(AgentState.GREEN, numbers={"stats": float(len(self.storage.peers))})
