"""The VO server, put together."""

from __future__ import annotations

from datetime import timedelta

from gridfabric.vo.v1 import vo_pb2_grpc

from agents.vo import store as rows
from agents.vo.config import parse_config
from agents.vo.directory import MemberDirectory
from agents.vo.door import VomsDoor
from agents.vo.issuing import Issued, Issuer, Wanted
from agents.vo.organisation import Organisation
from agents.vo.servicer import VoServicer, rules
from fabric.agent import Agent, AgentContext, AgentHealth, AgentState
from fabric.errors import Unavailable, from_security
from fabric.glue13 import service_entries
from fabric.glue_model import Service
from fabric.information_publisher import InformationPublisher
from fabric.ldap.server import LdapServer
from fabric.rpc.server import RpcService
from fabric.tls_door import TlsDoor
from security.errors import SecurityError, os_error_text
from security.validation import ChainInput, Identity, validate_client_chain


class VoAgent(Agent):
    """Members are in ``vo.db``; the LDAP tree is made from it at start and follows it."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        settings = context.settings
        self._config = config = parse_config(settings.options, settings.vos)
        store = context.store("vo", rows.metadata, rows.MIGRATIONS)
        self._directory = MemberDirectory(config.vo, (), context.clock.now())
        issuer = Issuer(
            config.vo,
            f"{settings.advertise}:{settings.ports.get('http', settings.rpc_port)}",
            lambda: context.credential,
            max_lifetime=timedelta(seconds=config.max_attribute_lifetime_s),
            default=timedelta(seconds=config.attribute_lifetime_s),
        )
        self._organisation = Organisation(
            config, store, self._directory, issuer, context.judge, context.clock, context.log
        )
        self._organisation.recover()
        self.servicer = VoServicer(self._organisation)
        self.services = [
            RpcService(self.servicer, vo_pb2_grpc.add_VirtualOrganisationServicer_to_server, rules(config.vo))
        ]
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
        if "http" in settings.ports:
            door = VomsDoor(self._config.vo, self._validate, self._issue, self.context.log)
            limit = self._config.max_connections_per_address
            tls = TlsDoor(self.context.credential, door.serve, self.context.log, max_per_address=limit)
            await tls.start(settings.listen, settings.ports["http"])
            self.context.close_at_end(tls)
        self.context.spawn(self._organisation.watch(), "watch memberships")
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

    def _validate(self, chain: ChainInput) -> Identity:
        context = self.context
        return validate_client_chain(chain, context.trust.snapshot(), context.policy, context.clock.now())

    async def _issue(self, identity: Identity, wanted: Wanted, address: str) -> Issued:
        context = self.context
        try:
            carried = context.voms.attributes_of(
                identity, context.trust.snapshot(), context.policy, context.clock.now()
            )
        except SecurityError as error:
            raise from_security(error) from error
        return await self._organisation.issue(identity, carried, wanted, "https", address)

    async def stop(self) -> None:
        if self._publisher is not None:
            await self._publisher.stop()

    def health(self) -> AgentHealth:
        organisation = self._organisation
        waiting = f"{organisation.requests} wait for a manager's decision" if organisation.requests else ""
        numbers = {
            "members": float(len(self._directory)),
            "requests": float(organisation.requests),
            "attribute_certificates": float(organisation.issued),
        }
        return AgentHealth(AgentState.GREEN, waiting, numbers)


def build(context: AgentContext) -> Agent:
    """The agent for these settings. Raises GridError."""
    return VoAgent(context)
