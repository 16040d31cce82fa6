"""The authority agent, put together."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence

from gridfabric.authority.v1 import authority_pb2_grpc, bans_pb2_grpc, trust_pb2_grpc, vos_pb2_grpc

from agents.authority import store as rows
from agents.authority.authorities import Authorities, Trusted, refusals
from agents.authority.bans import RULES as BAN_RULES
from agents.authority.bans import BansServicer
from agents.authority.config import parse_config
from agents.authority.register import Register
from agents.authority.servicer import RULES, AuthorityServicer
from agents.authority.trust import RULES as TRUST_RULES
from agents.authority.trust import TrustServicer, trust_set
from agents.authority.vos import RULES as VO_RULES
from agents.authority.vos import VosServicer
from fabric import trust_push
from fabric.agent import Agent, AgentHealth, AgentState
from fabric.clock import to_us
from fabric.context import AgentContext
from fabric.glue13 import agent_entries
from fabric.http import Content
from fabric.rpc.server import RpcService
from security.authority import CertificateAuthority
from security.certificates import pem

LOOK_EVERY_S = 60.0
"""How often the age of the revocation lists is looked at; short-lived lists more often."""
PEM_TYPE = "application/x-pem-file"


class AuthorityAgent(Agent):
    """Issues, revokes, publishes. Certificates are in the library's own registers, the rest in ``authority.db``."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        settings = context.settings
        self._config = parse_config(settings.options, settings.state_dir)
        with refusals():
            first = CertificateAuthority.open(self._config.directory)
        self._authorities = Authorities(
            first,
            settings.state_dir / "authorities",
            self._config,
            settings.organisation,
            context.clock.now,
            f"http://{settings.advertise}:{settings.ports['http']}" if "http" in settings.ports else "",
        )
        register = Register(self._authorities, self._config, settings.organisation, context.clock.now)
        self._store = context.store("authority", rows.metadata, rows.MIGRATIONS)
        self._crl_number = 0
        self._publishing = asyncio.Lock()
        self._files: dict[str, Content] = {}
        self.servicer = AuthorityServicer(
            self._authorities, register, self._store, self._config, context.clock, context.log, self.announce
        )
        self._bans = BansServicer(self._store, context.clock, context.log)
        self._vos = VosServicer(settings, self._config.sites, self._store, context.clock, context.log)
        self._trust = TrustServicer(self._authorities, register, self._store, context.log, self.announce)
        self.services = [
            RpcService(self.servicer, authority_pb2_grpc.add_AuthorityServicer_to_server, RULES),
            RpcService(self._bans, bans_pb2_grpc.add_BansServicer_to_server, BAN_RULES),
            RpcService(self._vos, vos_pb2_grpc.add_VosServicer_to_server, VO_RULES),
            RpcService(self._trust, trust_pb2_grpc.add_TrustServicer_to_server, TRUST_RULES),
        ]

    async def start(self) -> None:
        self._authorities.open(await self._store.read(rows.all_authorities))
        await self.announce(list(self._authorities.all_own()))
        await self.context.http(lambda path: self._files.get(path))
        self.context.spawn(self._renew(), "renew revocation lists")
        subject = str(self._authorities.first.subject)
        self.context.publisher.follow(lambda: agent_entries(self.context.settings, self.context.vos.served, subject))

    async def announce(self, names: Sequence[str]) -> int:
        """New lists of these authorities, if any; then the trust set as it is now to everybody: served by HTTP, in
        force on this host, and on its way to the others. Returns the number of the last list."""
        async with self._publishing:  # so that a lower number never replaces a higher one
            crl_number = await asyncio.to_thread(self._authorities.publish, names)
            now_us = to_us(self.context.clock.now())
            number = await self._store.write(lambda connection: rows.next_trust_number(connection, now_us))
            trusted = await asyncio.to_thread(self._authorities.trusted)
            self._files = {path: content for one in trusted for path, content in _files_of(one)}
            self._files["/bundle"] = Content(pem([one.certificate for one in trusted]), PEM_TYPE, str(number))
            own, now = self.context.settings.certificates, self.context.clock.now()
            await asyncio.to_thread(trust_push.install, own, trust_set(number, trusted, whole=True), now)
            self._trust.tell(trust_set(number, trusted))
        self._crl_number = crl_number or self._crl_number
        self.context.news.ring()
        self.context.log.info("trust.announced", number=number, crl_number=crl_number, lists=list(names))
        return crl_number

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK_EVERY_S, self._config.crl_lifetime_s / 20))
            await self.renew_if_due()

    async def renew_if_due(self) -> None:
        """New revocation lists where half of the current one's life is over."""
        due = await asyncio.to_thread(self._authorities.due)
        if due:
            await self.announce(due)

    async def stop(self) -> None:
        self._authorities.close()

    def health(self) -> AgentHealth:
        numbers = {
            "crl_number": float(self._crl_number),
            "issued": float(self.servicer.issued),
            "revoked": float(self.servicer.revoked),
        }
        return AgentHealth(AgentState.GREEN, "", numbers)


def _files_of(one: Trusted) -> Iterator[tuple[str, Content]]:
    """By path: what HTTP serves of one key. What its authority's keys have in common is the same for each."""
    yield f"/certificates/{one.stem}.{one.index}", Content(pem([one.certificate]), PEM_TYPE, one.stem)
    for kind, text in (("signing_policy", one.signing_policy), ("namespaces", one.namespaces), ("info", one.info)):
        if text:
            content = Content(text.encode(), "text/plain", hashlib.sha256(text.encode()).hexdigest()[:32])
            yield f"/certificates/{one.stem}.{kind}", content
            if kind == "signing_policy":
                yield f"/{one.stem}.{kind}", content
    if one.crl is not None:
        crl = Content(one.crl.pem, PEM_TYPE, one.crl.etag)
        yield f"/crl/{one.stem}.r{one.index}", crl
        yield f"/certificates/{one.stem}.r{one.index}", crl


def build(context: AgentContext) -> Agent:
    """The agent for these settings. Raises GridError."""
    return AuthorityAgent(context)
