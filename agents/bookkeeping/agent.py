"""The bookkeeping agent, put together."""

from __future__ import annotations

from gridfabric.bookkeeping.v1 import bookkeeping_pb2_grpc

from agents.bookkeeping import store as rows
from agents.bookkeeping.config import BookkeepingOptions
from agents.bookkeeping.servicer import RULES, BookkeepingServicer
from fabric.agent import Agent, AgentContext, AgentHealth, AgentState
from fabric.glue13 import Service, service_entries
from fabric.information_publisher import InformationPublisher
from fabric.rpc.server import RpcService
from fabric.settings import parse_options


class BookkeepingAgent(Agent):
    """Events in, histories and states out. Everything acknowledged is in ``bookkeeping.db``."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        options = parse_options(BookkeepingOptions, context.settings.options)
        self.store = context.store("bookkeeping", rows.metadata)
        self.servicer = BookkeepingServicer(self.store, options, context.settings.vos)
        self.services = [RpcService(self.servicer, bookkeeping_pb2_grpc.add_BookkeepingServicer_to_server, RULES)]
        self.publisher: InformationPublisher | None = None

    async def start(self) -> None:
        settings = self.context.settings
        entries = service_entries(
            Service(
                unique_id=settings.name,
                kind="org.gridfabric.bookkeeping",
                endpoint=f"https://{settings.advertise}:{settings.rpc_port}",
                site=settings.site,
                vos=settings.vos,
            )
        )
        self.publisher = InformationPublisher(self.context, entries)
        await self.publisher.start()

    async def stop(self) -> None:
        if self.publisher is not None:
            await self.publisher.stop()

    def health(self) -> AgentHealth:
        return AgentHealth(
            AgentState.GREEN,
            "",
            {
                "events": self.servicer.recorded,
                "duplicates": self.servicer.duplicates,
                "watchers": self.servicer.watching,
            },
        )


def build(context: AgentContext) -> Agent:
    """The agent for these settings. Raises InvalidRequest SETTINGS_INVALID."""
    return BookkeepingAgent(context)
