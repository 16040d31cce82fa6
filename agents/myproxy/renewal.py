"""Delegated proxies are renewed at a credential store before they end, by services that hold them for work that waits.

One renewal serves everything that the service does for the owner. What is asked for is what the owner stored for it
(MyProxy renewal: the service's host certificate, and a proof of the proxy that it holds and that has not ended).
"""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from cryptography import x509

from agents.myproxy.client import MyProxyClient
from agents.vo.client import VoClient
from fabric.errors import GridError, InvalidRequest, from_security
from security import proxies
from security.errors import SecurityError
from security.validation import validate_client_chain
from security.voms import VomsAttributes, attribute_certificates, proxy_extension

if TYPE_CHECKING:
    from fabric.context import AgentContext
    from security.credentials import Credential

DEFAULT_PORT = 7512
LEAST_GAIN = timedelta(minutes=5)
"""A renewal that gains less is none: the stored credential is about to end as well."""

_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9._-]{1,253})(?::(?P<port>[0-9]{1,5}))?\Z")


class RenewalOptions(Protocol):
    """What a service's options say about it."""

    @property
    def renew_before_s(self) -> float:
        """Renewed when less than this, or half of its life, is left."""
        ...

    @property
    def renew_retry_s(self) -> float:
        """Pause between attempts for one owner."""
        ...

    @property
    def renewed_lifetime_s(self) -> float:
        """What the store is asked for; it may give less."""
        ...

    @property
    def myproxy_servers(self) -> tuple[str, ...]:
        """Stores besides the grid's own, host:port."""
        ...


@dataclass(frozen=True)
class Server:
    """A credential store."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Renewals(ABC):
    """Renews one owner after another when `look` finds it due. Who inherits says where, and whom to tell."""

    def __init__(self, context: AgentContext, options: RenewalOptions) -> None:
        """Raises InvalidRequest SETTINGS_INVALID."""
        self._context, self._options = context, options
        own = [Server(found.host, found.myproxy) for found in context.settings.endpoints("myproxy") if found.myproxy]
        kind = context.settings.kind
        self.servers = (*own, *(_parsed(text, kind) for text in options.myproxy_servers))
        self._running: set[str] = set()
        self._again_at: dict[str, float] = {}
        """By owner: monotonic time before which nothing is tried again."""
        self._told: dict[str, tuple[datetime, str]] = {}
        """By owner: the end of the proxy and the reason of the last failure that was told."""
        self.renewed = 0
        self.failed = 0

    @abstractmethod
    async def stores_of(self, owner: str) -> Sequence[Server]:
        """Which to ask, one after the other; none: the proxy is left to end."""

    @abstractmethod
    async def tell(self, owner: str, text: str, *, renewed: bool) -> None:
        """What became of it. A failure that repeats is told once."""

    def known(self, text: str) -> Server | None:
        """The store of this address; without a port, the first at that host."""
        found = _ADDRESS.match(text)
        for server in self.servers:
            if found and found["host"] == server.host and int(found["port"] or server.port) == server.port:
                return server
        return None

    def look(self, owner: str, delegation_id: str, credential: Credential) -> None:
        """Called every few seconds for each owner with work to do; never waits. `delegation_id`: of the proxy."""
        ends = ends_at(credential)
        left = ends - self._context.clock.now()
        half = (ends - credential.certificate.not_valid_before_utc) / 2
        now = self._context.clock.monotonic()
        if (
            left > min(timedelta(seconds=self._options.renew_before_s), half)
            or owner in self._running
            or now < self._again_at.get(owner, 0.0)
        ):
            return
        self._running.add(owner)
        self._again_at[owner] = now + self._options.renew_retry_s
        self._context.spawn(self._renew(owner, delegation_id, credential), f"renew proxy of {owner}")

    async def _renew(self, owner: str, delegation_id: str, credential: Credential) -> None:
        try:
            servers = await self.stores_of(owner)
            if not servers:
                return
            server, renewed = await self._from_first(servers, owner, credential)
            self._context.delegations.renew(owner, delegation_id, renewed, credential)
        except GridError as error:
            if error.reason == "DELEGATION_CHANGED":
                return
            self.failed += 1
            ends = f"{ends_at(credential):%Y-%m-%d %H:%M:%S} UTC"
            text = f"RENEWAL_FAILED: the delegated proxy, which ends at {ends}, was not renewed: {error.sentence}"
            self._context.log.warning("proxy.not_renewed", owner=owner, reason=error.reason, sentence=error.sentence)
            told = (ends_at(credential), error.sentence)
            if self._told.get(owner) != told:  # tried again and again, told once
                self._told[owner] = told
                await self.tell(owner, text, renewed=False)
        else:
            self.renewed += 1
            self._again_at.pop(owner, None)
            self._told.pop(owner, None)
            ends = f"{ends_at(renewed):%Y-%m-%d %H:%M:%S} UTC"
            self._context.log.audit("proxy.renewed", owner=owner, server=str(server), until=ends)
            text = f"the delegated proxy was renewed by {server} and ends at {ends}"
            await self.tell(owner, text, renewed=True)
        finally:
            self._running.discard(owner)

    async def _from_first(
        self, servers: Sequence[Server], owner: str, credential: Credential
    ) -> tuple[Server, Credential]:
        """Of the first store that gives one. Raises what the last one said."""
        for server in servers[:-1]:
            try:
                return server, await self._from(server, owner, credential)
            except GridError as error:
                self._context.log.warning(
                    "proxy.not_renewed_there", owner=owner, server=str(server), sentence=error.sentence
                )
        return servers[-1], await self._from(servers[-1], owner, credential)

    async def _from(self, server: Server, owner: str, credential: Credential) -> Credential:
        context = self._context
        client = MyProxyClient(
            server.host, server.port, context.trust, context.policy, context.clock, context.credential
        )
        lifetime = timedelta(seconds=self._options.renewed_lifetime_s)
        renewed = await client.get(owner, lifetime=lifetime, proof=credential)
        renewed = await self._with_attributes(owner, credential, renewed)
        if ends_at(renewed) < ends_at(credential) + LEAST_GAIN:
            raise InvalidRequest(
                "RENEWAL_TOO_SHORT",
                f"what {server} gives ends at {ends_at(renewed):%Y-%m-%d %H:%M:%S} UTC; store another credential "
                f"with: myproxy-init -s {server.host} -p {server.port} -d -n",
            )
        return renewed

    async def _with_attributes(self, owner: str, credential: Credential, renewed: Credential) -> Credential:
        """The renewed proxy with the VO attributes of the one before, asked for anew; the VO may refuse its member."""
        fqans: dict[str, list[str]] = {}
        for attributes in self._attributes(credential):
            fqans.setdefault(attributes.vo, []).extend(attributes.fqans)
        for attributes in self._attributes(renewed):  # a stored credential may have its own, still good
            fqans.pop(attributes.vo, None)
        if not fqans:
            return renewed
        context = self._context
        lifetime = renewed.not_after - context.clock.now()
        encoded: list[bytes] = []
        for vo, wanted in fqans.items():
            servers = context.vos.servers_of(vo)
            if not servers:
                raise InvalidRequest(
                    "VO_UNKNOWN",
                    f"the proxy of {owner} has attributes of {vo}, whose server is not known here",
                )
            channel = await context.channels.get(servers[0].host, servers[0].rpc, credential=renewed)
            answer = await VoClient(channel, vo).issue_attributes(wanted, lifetime.total_seconds(), wanted)
            encoded.append(answer.attribute_certificate)
        try:
            return proxies.create_proxy(
                renewed, lifetime=lifetime, now=context.clock.now(), extensions=[proxy_extension(encoded)]
            )
        except SecurityError as error:
            raise from_security(error) from error

    def _attributes(self, credential: Credential) -> tuple[VomsAttributes, ...]:
        context = self._context
        trust, now = context.trust.snapshot(), context.clock.now()
        try:
            identity = validate_client_chain(credential.certificates, trust, context.policy, now)
            return context.voms.attributes_of(identity, trust, context.policy, now)
        except SecurityError as error:
            raise from_security(error) from error


def ends_at(credential: Credential) -> datetime:
    """When a proxy stops being accepted: with its chain, or with the first of its attribute certificates."""
    ends = [end for certificate in credential.certificates for end in _attribute_ends(certificate)]
    return min([credential.not_after, *ends])


@functools.lru_cache(4096)
def _attribute_ends(certificate: x509.Certificate) -> tuple[datetime, ...]:
    try:
        return tuple(found.not_after for found in attribute_certificates(certificate))
    except SecurityError:
        return ()  # not accepted anyway


def _parsed(text: str, kind: str) -> Server:
    found = _ADDRESS.match(text)
    if found is None:
        raise InvalidRequest("SETTINGS_INVALID", f"options of the {kind}: myproxy_servers has {text!r}, not host:port")
    return Server(found["host"], int(found["port"] or DEFAULT_PORT))
