"""The VO server, put together."""

from __future__ import annotations

from gridfabric.vo.v1 import vo_pb2_grpc

from agents.vo import store as rows
from agents.vo.config import parse_config
from agents.vo.directory import MemberDirectory
from agents.vo.servicer import RULES, VoServicer
from fabric.agent import Agent, AgentContext, AgentHealth, AgentState
from fabric.errors import Unavailable
from fabric.glue13 import Service, service_entries
from fabric.information_publisher import InformationPublisher
from fabric.ldap.server import LdapServer
from fabric.rpc.server import RpcService
from security.errors import os_error_text


class VoAgent(Agent):
    """Members are in ``vo.db``; the LDAP tree is made from it at start and follows it."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        settings = context.settings
        self._config = parse_config(settings.options, settings.vos)
        store = context.store("vo", rows.metadata)
        members = store.read_sync(lambda connection: list(rows.every(connection)))
        self._directory = MemberDirectory(self._config.vo, members, context.clock.now())
        self.servicer = VoServicer(store, self._directory, self._config, context.clock, context.log)
        self.services = [RpcService(self.servicer, vo_pb2_grpc.add_VirtualOrganisationServicer_to_server, RULES)]
        self._publisher: InformationPublisher | None = None

    async def start(self) -> None:
        settings = self.context.settings
        ldap = LdapServer(self._directory.tree, host=settings.listen, port=settings.ports.get("ldap", 0))
        try:
            await ldap.start()
        except OSError as error:
            raise Unavailable(
                "PORT_IN_USE",
                f"{settings.name} cannot listen on {settings.listen}:{settings.ports.get('ldap')}"
                f" ({os_error_text(error)})",
            ) from error
        self.context.close_at_end(ldap)
        entries = service_entries(
            Service(
                unique_id=settings.name,
                kind="org.gridfabric.vo",
                endpoint=f"https://{settings.advertise}:{settings.rpc_port}",
                site=settings.site,
                name=self._config.vo,
                vos=(self._config.vo,),
            )
        )
        self._publisher = InformationPublisher(self.context, entries, resource_level=False)
        await self._publisher.start()

    async def stop(self) -> None:
        if self._publisher is not None:
            await self._publisher.stop()

    def health(self) -> AgentHealth:
        return AgentHealth(AgentState.GREEN, "", {"members": float(len(self._directory))})


def build(context: AgentContext) -> Agent:
    """The agent for these settings. Raises GridError."""
    return VoAgent(context)
