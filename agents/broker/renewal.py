"""Proxies of jobs that name a credential store (JDL `MyProxyServer`) are renewed there before they end.

What the broker holds of a user is one delegated proxy; all gatekeepers with jobs of that user get a new delegation of
it as soon as it changes, and hand it to their workers. So one renewal serves every job of the owner, queued or running.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509

from agents.broker import store as rows
from agents.broker.config import BrokerOptions
from agents.myproxy.client import MyProxyClient
from agents.vo.client import VoClient
from fabric.errors import GridError, InvalidRequest, from_security
from security import proxies
from security.errors import SecurityError
from security.validation import validate_client_chain
from security.voms import VomsAttributes, attribute_certificates, proxy_extension

if TYPE_CHECKING:
    import sqlalchemy as sa

    from agents.broker.tables import LogSink
    from fabric.context import AgentContext
    from fabric.store import Store
    from security.credentials import Credential

ATTRIBUTE = "myproxyserver"
DEFAULT_PORT = 7512
NOTED_JOBS = 1000
"""Jobs of an owner that are told of a renewal, or that there was none."""
LEAST_GAIN = timedelta(minutes=5)
"""A renewal that gains less is none: the stored credential is about to end as well."""

_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9._-]{1,253})(?::(?P<port>[0-9]{1,5}))?\Z")


@dataclass(frozen=True)
class Server:
    """A credential store that this broker uses."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Renewals:
    """Renews one owner after another when `due` says so; every outcome is an event of the owner's jobs."""

    def __init__(
        self,
        context: AgentContext,
        options: BrokerOptions,
        store: Store,
        sink: LogSink,
        on_renewed: Callable[[str], None],
    ) -> None:
        self._context, self._options, self._store, self._sink = context, options, store, sink
        self._on_renewed = on_renewed
        own = [Server(found.host, found.myproxy) for found in context.settings.endpoints("myproxy") if found.myproxy]
        self._servers = (*own, *(_parsed(text) for text in options.myproxy_servers))
        self._running: set[str] = set()
        self._again_at: dict[str, float] = {}
        """By owner: monotonic time before which nothing is tried again."""
        self._told: dict[str, tuple[datetime, str]] = {}
        """By owner: the end of the proxy and the reason of the last failure that its jobs were told."""
        self.renewed = 0
        self.failed = 0

    # -- which server --------------------------------------------------------------------------------------------------

    def server_of(self, extra: Sequence[tuple[str, str]]) -> Server | None:
        """The store that a job names; None if it names none. Raises InvalidRequest MYPROXY_SERVER_UNKNOWN."""
        for name, text in extra:
            if name.lower() == ATTRIBUTE:
                return self._known(text.strip().strip('"'))
        return None

    def _known(self, text: str) -> Server:
        found = _ADDRESS.match(text)
        for server in self._servers:
            if found and found["host"] == server.host and int(found["port"] or server.port) == server.port:
                return server
        known = ", ".join(map(str, self._servers))
        raise InvalidRequest(
            "MYPROXY_SERVER_UNKNOWN",
            f"MyProxyServer names {text[:80]!r}, which is no credential store that this broker uses; "
            + (f"it uses {known}" if known else "it uses none, so leave the attribute out"),
        )

    # -- when ----------------------------------------------------------------------------------------------------------

    def look(self, owner: str, delegation_id: str, credential: Credential) -> None:
        """Called every few seconds for each owner with unfinished jobs; never waits. `delegation_id`: of the proxy."""
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
            server = await self._store.read(lambda connection: self._wanted(connection, owner))
            if server is None:
                return
            renewed = await self._from(server, owner, credential)
            self._context.delegations.renew(owner, delegation_id, renewed, credential)
        except GridError as error:
            if error.reason == "DELEGATION_CHANGED":
                return
            self.failed += 1
            ends = f"{ends_at(credential):%Y-%m-%d %H:%M:%S} UTC"
            text = f"RENEWAL_FAILED: the proxy of this job, which ends at {ends}, was not renewed: {error.sentence}"
            self._context.log.warning("proxy.not_renewed", owner=owner, reason=error.reason, sentence=error.sentence)
            told = (ends_at(credential), error.sentence)
            if self._told.get(owner) != told:  # tried again and again, told once
                self._told[owner] = told
                await self._note(owner, text)
        else:
            self.renewed += 1
            self._on_renewed(owner)
            self._again_at.pop(owner, None)
            self._told.pop(owner, None)
            ends = f"{ends_at(renewed):%Y-%m-%d %H:%M:%S} UTC"
            self._context.log.audit("proxy.renewed", owner=owner, server=str(server), until=ends)
            await self._note(owner, f"the proxy of this job was renewed by {server} and ends at {ends}")
        finally:
            self._running.discard(owner)

    def _wanted(self, connection: sa.Connection, owner: str) -> Server | None:
        """The first store that an unfinished job of the owner names and that is known here."""
        for cluster in rows.load_clusters(connection, rows.clusters_unfinished(connection, owner)).values():
            server = self.server_of(cluster.extra)
            if server is not None:
                return server
        return None

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
                    "VO_UNKNOWN", f"the proxy of {owner} has attributes of {vo}, whose server this broker does not know"
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

    async def _note(self, owner: str, text: str) -> None:
        def note(connection: sa.Connection) -> None:
            found = rows.unfinished_of(connection, owner, NOTED_JOBS)
            clusters = rows.load_clusters(connection, {row.cluster for row in found})
            rows.note(
                connection, [row for row in found if _asks(clusters[row.cluster].extra)], text, now_us, self._sink
            )

        now_us = int(self._context.clock.now().timestamp() * 1e6)
        await self._store.write(note)


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


def _asks(extra: Iterable[tuple[str, str]]) -> bool:
    return any(name.lower() == ATTRIBUTE for name, _ in extra)


def _parsed(text: str) -> Server:
    found = _ADDRESS.match(text)
    if found is None:
        raise InvalidRequest("SETTINGS_INVALID", f"options of the broker: myproxy_servers has {text!r}, not host:port")
    return Server(found["host"], int(found["port"] or DEFAULT_PORT))
