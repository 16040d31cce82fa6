"""The bookkeeping agent, put together."""

from __future__ import annotations

from gridfabric.bookkeeping.v1 import bookkeeping_pb2_grpc

from agents.bookkeeping import tables
from agents.bookkeeping.archive import Archive
from agents.bookkeeping.config import BookkeepingOptions
from agents.bookkeeping.servicer import RULES, BookkeepingServicer
from fabric.agent import Agent, AgentHealth, AgentState
from fabric.context import AgentContext
from fabric.glue13 import agent_entries
from fabric.rpc.server import RpcService
from fabric.settings import parse_options


class BookkeepingAgent(Agent):
    """Events in, histories and states out. Everything acknowledged is in ``bookkeeping.db``."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        options = parse_options(BookkeepingOptions, context.settings.options)
        self.store = context.store("bookkeeping", tables.metadata, tables.MIGRATIONS, database=options.database)
        self.servicer = BookkeepingServicer(self.store, options, context.vos, context.clock)
        self.services = [RpcService(self.servicer, bookkeeping_pb2_grpc.add_BookkeepingServicer_to_server, RULES)]

        self.archive = Archive(self.store, context.state_dir / "archive", options, context.clock, context.log)

    async def start(self) -> None:
        self.context.spawn(self.archive.run(), "archive")
        self.context.publisher.follow(lambda: agent_entries(self.context.settings, self.context.vos.served))

    def health(self) -> AgentHealth:
        return AgentHealth(
            AgentState.GREEN,
            "",
            {
                "events": self.servicer.recorded,
                "duplicates": self.servicer.duplicates,
                "watchers": self.servicer.watching,
                "archived": self.archive.moved,
            },
        )


def build(context: AgentContext) -> Agent:
    """The agent for these settings. Raises InvalidRequest SETTINGS_INVALID."""
    return BookkeepingAgent(context)
