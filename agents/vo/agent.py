"""The VO server, put together."""

from __future__ import annotations

from collections.abc import Iterable

from gridfabric.authority.v1 import vos_pb2, vos_pb2_grpc
from gridfabric.vo.v1 import vo_pb2_grpc

from agents.vo.config import parse_config
from agents.vo.hosted import HostedVo
from agents.vo.servicer import RULES, VoServicer
from fabric.agent import Agent, AgentHealth, AgentState
from fabric.context import AgentContext
from fabric.errors import GridError
from fabric.glue13 import agent_entries
from fabric.information_publisher import InformationPublisher
from fabric.ldap.entry import Entry
from fabric.ldap.server import LdapServer
from fabric.ldap.tree import EntryTree
from fabric.rpc.server import RpcService
from security.errors import Reason

LOOK_S = 60.0
"""The list of VOs is looked at after every change, and this often besides."""
RETRY_S = 1.0
"""As long as the authority does not know where a door is, or a VO cannot be served."""


class VoAgent(Agent):
    """Speaks for the VO of the grid description and for those that the grid's list of VOs gives it: each has its own
    members, base in the LDAP tree and VOMS door. A VO that was dissolved has none of these any more."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        settings = context.settings
        self._config = parse_config(settings.options, settings.vos)
        self._tree = EntryTree((), indexed=("subject", "cn"))
        self.hosted: dict[str, HostedVo] = {}
        """The VOs that are served now."""
        self._opening: dict[str, HostedVo] = {}
        if self._config.vo in self._mine():
            self._opening[self._config.vo] = HostedVo(context, self._config, self._config.vo, self._tree)
        self.servicer = VoServicer(self._config.vo, self.hosted, context.vos)
        self.services = [RpcService(self.servicer, vo_pb2_grpc.add_VirtualOrganisationServicer_to_server, RULES)]
        self._publisher: InformationPublisher | None = None

    def _mine(self) -> list[str]:
        """The VOs to serve, as far as is known now."""
        name, vos = self.context.settings.name, self.context.vos
        given = [vo.name for vo in vos.listed.vos if any(server.name == name for server in vo.servers)]
        wanted = dict.fromkeys([self._config.vo, *given])
        return [vo for vo in wanted if (why := vos.refusal(vo)) is None or why.reason is not Reason.VO_DISSOLVED]

    async def start(self) -> None:
        settings = self.context.settings
        ldap = LdapServer(self._tree, host=settings.listen, port=settings.ports.get("ldap", 0))
        await ldap.start()
        self.context.close_at_end(ldap)
        for vo in list(self._opening):
            await self._open(vo)
        self.context.spawn(self._follow(), "VOs")
        self._publisher = InformationPublisher(self.context, self._entries, resource_level=False)
        await self._publisher.start()

    def _entries(self) -> Iterable[Entry]:
        return agent_entries(self.context.settings, tuple(self.hosted), ", ".join(self.hosted))

    async def _follow(self) -> None:
        """Serve what the grid's list says, and tell the authority where."""
        while True:
            heard = self.context.judged.rung
            limit_s = LOOK_S
            try:
                await self._serve()
                await self._report()
                self.context.solved("VOs served")
            except GridError as error:
                self.context.problem("VOs served", f"not every VO is served: {error.sentence}")
                limit_s = RETRY_S
            await self.context.judged.wait(limit_s, heard)

    async def _serve(self) -> None:
        if self.context.vos.error is not None:
            return  # a list that cannot be read closes no VO for good
        mine = self._mine()
        for vo in [vo for vo in self.hosted if vo not in mine]:
            await self.hosted.pop(vo).close()
            self.context.log.audit("vo.closed", vo=vo)
        for vo in mine:
            if vo not in self.hosted:
                if vo not in self._opening:
                    self._opening[vo] = HostedVo(self.context, self._config, vo, self._tree)
                await self._open(vo)

    async def _open(self, vo: str) -> None:
        hosted = self._opening[vo]
        await hosted.open()
        self.hosted[vo] = self._opening.pop(vo)
        self.context.close_at_end(hosted)
        self.context.log.audit("vo.opened", vo=vo, http_port=hosted.port)

    async def _report(self) -> None:
        for vo, hosted in self.hosted.items():
            told = {server.http for server in self.context.vos.servers_of(vo)}
            if vo == self._config.vo or told == {hosted.port}:
                continue
            authority = self.context.settings.endpoint("authority")
            channel = await self.context.channels.get(authority.host, authority.rpc)
            await vos_pb2_grpc.VosStub(channel).Serve(vos_pb2.ServeVoRequest(name=vo, http_port=hosted.port))

    async def stop(self) -> None:
        if self._publisher is not None:
            await self._publisher.stop()

    def health(self) -> AgentHealth:
        organisations = [hosted.organisation for hosted in self.hosted.values()]
        requests = sum(organisation.requests for organisation in organisations)
        waiting = f"{requests} wait for a manager's decision" if requests else ""
        numbers = {
            "vos": float(len(self.hosted)),
            "members": float(sum(len(hosted.directory) for hosted in self.hosted.values())),
            "requests": float(requests),
            "attribute_certificates": float(sum(organisation.issued for organisation in organisations)),
        }
        return AgentHealth(AgentState.GREEN, waiting, numbers)


def build(context: AgentContext) -> Agent:
    """The agent for these settings. Raises GridError."""
    return VoAgent(context)
