"""Composition root of the catalogue."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gridfabric.catalog.v1 import catalog_pb2_grpc

from agents.catalog.config import parse_config
from agents.catalog.servicer import RULES, CatalogueServicer
from agents.catalog.store import MIGRATIONS, CatalogStore, metadata
from fabric import glue13, glue_model
from fabric.agent import Agent, AgentHealth, AgentState
from fabric.clock import utc_text
from fabric.context import AgentContext
from fabric.information_publisher import InformationPublisher
from fabric.ldap import Entry
from fabric.rpc.server import RpcService

GLUE_TYPE = "org.gridfabric.catalog"


class CatalogAgent(Agent):
    """The catalogue of the grid."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        config = parse_config(context.settings.options)
        store = CatalogStore(context.store("catalog", metadata, MIGRATIONS, database=config.database))
        self.servicer = CatalogueServicer(store, config, context.settings, clock=context.clock, log=context.log)
        add: Any = catalog_pb2_grpc.add_CatalogueServicer_to_server
        self.services = [RpcService(self.servicer, add, RULES)]
        self._started_at = ""
        self._publisher: InformationPublisher | None = None

    async def started(self) -> None:
        """Publish."""
        self._started_at = utc_text(self.context.clock.now())
        self._publisher = InformationPublisher(self.context, tuple(self.entries()))
        await self._publisher.start()

    async def stop(self) -> None:
        """Withdraw. Everything acknowledged is on disk already."""
        if self._publisher is not None:
            await self._publisher.stop()

    def health(self) -> AgentHealth:
        """How many files were registered since the start."""
        return AgentHealth(AgentState.GREEN, numbers={"registered": float(self.servicer.registered)})

    def entries(self) -> Iterable[Entry]:
        """GlueService."""
        settings = self.context.settings
        port = self.context.rpc.port if self.context.rpc is not None else settings.rpc_port
        address = f"{settings.advertise}:{port}"
        return glue13.service_entries(
            glue_model.Service(
                unique_id=f"{GLUE_TYPE}:{address}",
                kind=GLUE_TYPE,
                endpoint=f"grpc://{address}",
                site=settings.site,
                name=settings.name,
                vos=self.context.vos.served,
                started=self._started_at,
            )
        )


def build(context: AgentContext) -> CatalogAgent:
    """See docs/architecture.md, section 3."""
    return CatalogAgent(context)
