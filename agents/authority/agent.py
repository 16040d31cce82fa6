"""The authority agent, put together."""

from __future__ import annotations

import asyncio

from cryptography.hazmat.primitives.serialization import Encoding
from gridfabric.authority.v1 import authority_pb2_grpc, bans_pb2_grpc, vos_pb2_grpc

from agents.authority import store as rows
from agents.authority.bans import RULES as BAN_RULES
from agents.authority.bans import BansServicer
from agents.authority.config import parse_config
from agents.authority.register import PublishedCrl, Register, refusals
from agents.authority.servicer import RULES, AuthorityServicer
from agents.authority.vos import RULES as VO_RULES
from agents.authority.vos import VosServicer
from fabric.agent import Agent, AgentContext, AgentHealth, AgentState
from fabric.glue13 import agent_entries
from fabric.http import Content
from fabric.rpc.server import RpcService
from security.authority import CertificateAuthority
from security.certificates import subject_hash
from security.installation import install_crl

LOOK_EVERY_S = 60.0
"""How often the age of the revocation list is looked at; a short-lived list more often."""
PEM_TYPE = "application/x-pem-file"


class AuthorityAgent(Agent):
    """Issues, revokes, publishes. Certificates are in the library's own register, invitations in ``authority.db``."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        settings = context.settings
        self._config = parse_config(settings.options, settings.state_dir)
        with refusals():
            self._authority = CertificateAuthority.open(self._config.directory)
        self._register = Register(self._authority, self._config, settings.organisation, context.clock.now)
        self._store = context.store("authority", rows.metadata)
        self._crl: PublishedCrl | None = None
        self._publishing = asyncio.Lock()
        self._files = self._fixed_files()
        self.servicer = AuthorityServicer(
            self._register, self._store, self._config, context.clock, context.log, self.publish
        )
        self._bans = BansServicer(self._store, context.clock, context.log)
        self._vos = VosServicer(settings, self._config.sites, self._store, context.clock, context.log)
        self.services = [
            RpcService(self.servicer, authority_pb2_grpc.add_AuthorityServicer_to_server, RULES),
            RpcService(self._bans, bans_pb2_grpc.add_BansServicer_to_server, BAN_RULES),
            RpcService(self._vos, vos_pb2_grpc.add_VosServicer_to_server, VO_RULES),
        ]

    def _fixed_files(self) -> dict[str, Content]:
        """By path: what never changes."""
        stem = subject_hash(self._authority.certificate)
        pem = self._authority.certificate.public_bytes(Encoding.PEM)
        certificate = Content(pem, PEM_TYPE, stem)
        policy = Content(self._authority.signing_policy().encode(), "text/plain", stem)
        namespaces = Content(self._authority.namespaces().encode(), "text/plain", stem)
        settings = self.context.settings
        crl_url = (
            f"http://{settings.advertise}:{settings.ports['http']}/crl/{stem}.r0" if "http" in settings.ports else ""
        )
        info = Content(self._authority.info(crl_url).encode(), "text/plain", stem)
        return {
            f"/certificates/{stem}.0": certificate,
            "/bundle": certificate,
            f"/{stem}.signing_policy": policy,
            f"/certificates/{stem}.signing_policy": policy,
            f"/certificates/{stem}.namespaces": namespaces,
            f"/certificates/{stem}.info": info,
        }

    def _route(self, path: str) -> Content | None:
        crl = self._crl
        stem = subject_hash(self._authority.certificate)
        if crl is not None and path in (f"/crl/{stem}.r0", f"/certificates/{stem}.r0"):
            return Content(crl.pem, PEM_TYPE, crl.etag)
        return self._files.get(path)

    async def start(self) -> None:
        await self.publish()
        await self.context.http(self._route)
        self.context.spawn(self._renew(), "renew revocation list")
        subject = str(self._authority.subject)
        self.context.publisher.follow(lambda: agent_entries(self.context.settings, self.context.vos.served, subject))

    async def publish(self) -> PublishedCrl:
        """A new revocation list: served by HTTP at once and installed on this host."""
        async with self._publishing:  # so that a lower number never replaces a higher one
            crl = await asyncio.to_thread(self._register.new_crl)
            self._crl = crl
            await asyncio.to_thread(self._install, crl)
        self.context.log.info("crl.published", number=crl.number, next_update=crl.next_update.isoformat())
        return crl

    def _install(self, crl: PublishedCrl) -> None:
        with refusals():
            install_crl(self.context.settings.certificates, crl.pem, self.context.clock.now())

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK_EVERY_S, self._config.crl_lifetime_s / 20))
            await self.renew_if_due()

    async def renew_if_due(self) -> None:
        """A new revocation list when half of the current one's life is over."""
        crl = self._crl
        left_s = (crl.next_update - self.context.clock.now()).total_seconds() if crl else 0.0
        if left_s < self._config.crl_lifetime_s / 2:
            await self.publish()

    async def stop(self) -> None:
        self._authority.close()

    def health(self) -> AgentHealth:
        number = float(self._crl.number) if self._crl is not None else 0.0
        numbers = {"crl_number": number, "issued": float(self.servicer.issued), "revoked": float(self.servicer.revoked)}
        return AgentHealth(AgentState.GREEN, "", numbers)


def build(context: AgentContext) -> Agent:
    """The agent for these settings. Raises GridError."""
    return AuthorityAgent(context)
