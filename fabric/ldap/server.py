"""An LDAPv3 server (RFC 4511) over asyncio for any source of entries. It knows nothing of grids.

Reads are for everyone who connects (bind: anonymous; a password over TLS if a ``bind`` function is given; SASL
EXTERNAL over TLS if an ``external`` one is); changes by LDAP are refused with unwillingToPerform. Whatever
a client sends or fails to read costs a bounded amount of memory and time and is answered with a result code or a notice
of disconnection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from fabric.errors import Unavailable, port_in_use
from fabric.ldap.connection import Connection
from fabric.ldap.dn import Dn, parse_dn
from fabric.ldap.entry import Entry, make_entry
from fabric.ldap.external import ExternalFunction
from fabric.ldap.filters import Filter, matches
from fabric.ldap.protocol import OID_MANAGE_DSA_IT, OID_PAGED_RESULTS, OID_START_TLS, OID_WHO_AM_I, ResultCode
from fabric.ldap.results import Selection
from fabric.ldap.schema import MATCHING_RULES, OPEN_SCHEMA, TOP, ObjectClass, Schema
from fabric.ldap.tree import NoSuchEntryError, Scope, SearchSource

EventFunction = Callable[[str, dict[str, object]], None]
"""Called with an event name (``ldap.disconnected``...) and its fields."""

ReferFunction = Callable[[Dn], Sequence[str]]
"""Which servers, as `ldap://host:port`, may have a name that is missing here; none for a name that nobody else has."""

_URL_SCOPES = {Scope.BASE: "base", Scope.ONE: "one", Scope.SUBTREE: "sub", Scope.CHILDREN: "subordinate"}

BindFunction = Callable[[str, bytes], Awaitable[bool]]
"""Says whether a name and password are accepted; called over TLS only."""

ROUND_S = 0.01
"""While a round of the event loop takes no longer, more long searches go on in one: a short request waits a round."""

MAX_KEPT_SELECTIONS = 64
"""Attribute lists remembered; clients of one kind ask for the same ones."""

MAX_KEPT_NAMES = 64
"""Longest attribute list that is remembered."""

SUBSCHEMA = parse_dn("cn=Subschema")


@dataclass(frozen=True, slots=True)
class LdapLimits:
    """What one client, and all together, may take."""

    connections: int = 2000
    """All clients; one costs a file descriptor and a few KiB."""
    connections_per_address: int = 500
    """One client address: a flood from one host leaves room for others."""
    operations_per_connection: int = 64
    """Long operations under way at once; further requests get busy."""
    message_bytes: int = 1024 * 1024
    """Largest request."""
    size_limit: int = 500_000
    """Most entries of one search; 0 is no limit."""
    time_limit_s: float = 60.0
    """Longest search, pages each for themselves."""
    paged_searches: int = 8
    """Paged searches one connection may have open; the oldest is dropped."""
    write_buffer_bytes: int = 1024 * 1024
    """Answers waiting for one client before its searches pause."""
    write_s: float = 30.0
    """How long a client may leave a full buffer unread before it is cut off."""
    message_s: float = 30.0
    """How long a request may take to arrive whole."""
    idle_s: float = 900.0
    """How long a connection may do nothing."""
    handshake_s: float = 10.0
    """How long a TLS handshake may take."""


@dataclass(slots=True)
class LdapStats:
    """Counters since start."""

    connections: int = 0
    refused: int = 0
    requests: int = 0
    searches: int = 0
    entries_sent: int = 0
    bytes_sent: int = 0
    defects: int = 0


def _ignore(_name: str, _fields: dict[str, object]) -> None:
    return


class LdapServer:
    """Serves ``source``. ``start`` may be called once; ``close`` any number of times.

    ``tls`` makes StartTLS available on ``port`` and, where ``ldaps_port`` is given, speaks from the first byte there.
    """

    def __init__(
        self,
        source: SearchSource,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: LdapLimits | None = None,
        schema: Schema = OPEN_SCHEMA,
        on_event: EventFunction = _ignore,
        bind: BindFunction | None = None,
        external: ExternalFunction | None = None,
        refer: ReferFunction = lambda _: (),
        tls: ssl.SSLContext | None = None,
        ldaps_port: int | None = None,
        vendor_name: str = "gridfabric",
        vendor_version: str = "",
    ) -> None:
        if ldaps_port is not None and tls is None:
            raise ValueError("ldaps needs a TLS context")
        self.source = source
        self.limits = limits or LdapLimits()
        self.schema = schema
        self.bind = bind
        self.external = external
        self._refer = refer
        self.tls = tls
        self.stats = LdapStats()
        self._host = host
        self._port = port
        self._ldaps_port = ldaps_port
        self._on_event = on_event
        self._vendor = (vendor_name, vendor_version)
        self._listening: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._connections: set[Connection] = set()
        self._by_address: dict[str, int] = {}
        self._selections: dict[tuple[tuple[str, ...], bool], Selection] = {}
        self._all_gone = asyncio.Event()
        self._long: deque[Callable[[], object]] = deque()
        """What waits for its turn: the next part of a long search, the next request of a client that has one."""
        self._together = 1
        """How many of them have it in one round."""
        self._round_at = 0.0

    @property
    def port(self) -> int:
        """The port that is open (also when 0 was asked for)."""
        return self._port

    @property
    def ldaps_port(self) -> int | None:
        """The port for TLS from the first byte, if there is one."""
        return self._ldaps_port

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    async def start(self) -> None:
        """Open the ports, both or none. Raises Unavailable PORT_IN_USE."""
        if self._listening:
            raise RuntimeError("an LdapServer is started once")
        self._port = await self._listen(self._port, tls=None)
        if self._ldaps_port is not None:
            try:
                self._ldaps_port = await self._listen(self._ldaps_port, tls=self.tls)
            except Unavailable:
                self._listening.pop().close()
                raise
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def _listen(self, port: int, tls: ssl.SSLContext | None) -> int:
        """Connections are counted before their handshake, so that unfinished ones are bounded, too."""
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(lambda: Connection(self, tls), self._host, port, backlog=512)
        except OSError as error:
            raise port_in_use(self._host, port, error) from error
        self._listening.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def close(self, grace_s: float = 1.0) -> None:
        """Stop listening, tell every client, and be gone after ``grace_s`` at the latest."""
        for server in self._listening:
            server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in tuple(self._connections):
            connection.disconnect(ResultCode.UNAVAILABLE, "this server is stopping")
        if self._connections:
            self._all_gone.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_gone.wait(), grace_s)
        for connection in tuple(self._connections):
            connection.abort()

    # -- for connections

    def admit(self, connection: Connection) -> str | None:
        """Count a new connection; the reason if it is one too many."""
        self.stats.connections += 1
        count = self._by_address.get(connection.peer, 0)
        self._connections.add(connection)
        self._by_address[connection.peer] = count + 1
        reason = None
        if len(self._connections) > self.limits.connections:
            reason = f"{self.limits.connections} clients are connected; try again later"
        elif count >= self.limits.connections_per_address:
            reason = f"{count} connections from your address; close some"
        if reason is not None:
            self.stats.refused += 1
        return reason

    def in_turn(self, work: Callable[[], object]) -> None:
        """Do this when it is the turn of those with long searches, in rotation: a thousand of them must not stand
        before one short request."""
        self._long.append(work)
        if len(self._long) == 1:
            asyncio.get_running_loop().call_soon(self._round)

    async def turn(self) -> None:
        """Wait for such a turn."""
        mine = asyncio.Event()
        self.in_turn(mine.set)
        await mine.wait()

    def _round(self) -> None:
        loop = asyncio.get_running_loop()
        before, self._round_at = self._round_at, loop.time()
        is_slow = self._round_at - before > ROUND_S
        self._together = max(1, self._together // 2) if is_slow else self._together + 1
        for _ in range(min(self._together, len(self._long))):
            loop.call_soon(self._long.popleft())
        if self._long:
            loop.call_soon(self._round)

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        if not self._connections:
            self._all_gone.set()
        count = self._by_address.get(connection.peer, 0) - 1
        if count > 0:
            self._by_address[connection.peer] = count
        else:
            self._by_address.pop(connection.peer, None)

    def event(self, name: str, **fields: object) -> None:
        """Report something to whoever runs the server."""
        self._on_event(name, fields)

    def defect(self, peer: str, error: Exception) -> None:
        """Report an error nobody expected; the client gets a result code, not the details."""
        self.stats.defects += 1
        self._on_event("ldap.defect", {"peer": peer, "error": error})

    def find(
        self, base: Dn, scope: Scope, filter: Filter, limit: int | None
    ) -> Iterator[Entry | None] | AsyncIterator[Entry | None]:
        """Search the source; the root DSE and the subschema entry are the server's own."""
        if scope is Scope.BASE and not base.key:
            return self._own(self.root_dse(), filter)
        if base == SUBSCHEMA:
            if scope is not Scope.BASE and scope is not Scope.SUBTREE:
                return iter(())
            return self._own(self.subschema(), filter)
        return self.source.search(base, scope, filter, limit)

    def referrals(self, dn: Dn, scope: Scope | None) -> tuple[str, ...]:
        """Where to ask for a name that is missing here (RFC 4511 section 4.1.10; the form is that of slapd)."""
        rest = quote(str(dn), safe="=,") + (f"??{_URL_SCOPES[scope]}" if scope is not None else "")
        return tuple(f"{server}/{rest}" for server in self._refer(dn))

    def _own(self, entry: Entry, filter: Filter) -> Iterator[Entry]:
        return iter((entry,)) if matches(filter, entry, self.schema) else iter(())

    def selection(self, names: tuple[str, ...], types_only: bool) -> Selection:
        """Which attributes a request wants; the ones asked for often are kept."""
        kept = self._selections.get((names, types_only))
        if kept is None:
            kept = Selection(names, self.schema, types_only=types_only)
            if len(names) > MAX_KEPT_NAMES or sum(map(len, names)) > 64 * MAX_KEPT_NAMES:
                kept.is_kept = False  # an odd list is served, but neither it nor its answers are kept
                return kept
            if len(self._selections) >= MAX_KEPT_SELECTIONS:
                self._selections.clear()
            self._selections[(names, types_only)] = kept
        return kept

    def root_dse(self) -> Entry:
        """What this server is and can (RFC 4512 section 5.1)."""
        extensions = [OID_WHO_AM_I]
        if self.tls is not None:
            extensions.append(OID_START_TLS)
        operational = {
            "namingContexts": tuple(str(context) for context in self.source.naming_contexts),
            "subschemaSubentry": (str(SUBSCHEMA),),
            "supportedControl": (OID_PAGED_RESULTS, OID_MANAGE_DSA_IT),
            "supportedExtension": tuple(extensions),
            "supportedFeatures": ("1.3.6.1.4.1.4203.1.5.1", "1.3.6.1.4.1.4203.1.5.3"),
            "supportedLDAPVersion": ("3",),
            "vendorName": (self._vendor[0],),
        }
        if self.external is not None and self.tls is not None:
            operational["supportedSASLMechanisms"] = ("EXTERNAL",)
        if self._vendor[1]:
            operational["vendorVersion"] = (self._vendor[1],)
        return make_entry("", {"objectClass": ("top", "extensibleObject")}, operational)

    def subschema(self) -> Entry:
        """The attribute types and matching rules known here (RFC 4512 section 4.2)."""
        rules = {rule.oid: rule for rule in MATCHING_RULES.values()}
        listed = {attribute.name.lower(): attribute for attribute in self.schema.attributes}
        for name in getattr(self.source, "attribute_names", ()):
            found = self.schema.lookup(name)
            if found is not None:
                listed.setdefault(found.name.lower(), found)
        classes = {one.name.lower(): one for one in (TOP, *self.schema.object_classes)}
        for name in getattr(self.source, "class_names", ()):
            classes.setdefault(name.lower(), ObjectClass(name))
        attributes = tuple(listed.values())
        return make_entry(
            SUBSCHEMA,
            {"objectClass": ("top", "subentry", "subschema", "extensibleObject"), "cn": "Subschema"},
            {
                "attributeTypes": tuple(attribute.describe() for attribute in attributes),
                "matchingRules": tuple(
                    f"( {rule.oid} NAME '{rule.name}' SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )" for rule in rules.values()
                ),
                "objectClasses": tuple(one.describe() for one in classes.values()),
                "ldapSyntaxes": tuple(f"( {oid} )" for oid in sorted({attribute.syntax for attribute in attributes})),
            },
        )

    async def _sweep(self) -> None:
        """Cut off connections that are idle or never finish a message."""
        limits = self.limits
        pause_s = max(0.02, min(limits.idle_s, limits.message_s, 20.0) / 4)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(pause_s)
            now = loop.time()
            for connection in tuple(self._connections):
                quiet_s = now - connection.last_used
                if connection.is_working:
                    continue
                if connection.mid_message and quiet_s > limits.message_s:
                    connection.disconnect(ResultCode.PROTOCOL_ERROR, "a message did not arrive whole in time")
                elif quiet_s > limits.idle_s:
                    connection.disconnect(ResultCode.UNAVAILABLE, f"idle for {quiet_s:.0f} s")


__all__ = ["BindFunction", "EventFunction", "LdapLimits", "LdapServer", "LdapStats", "NoSuchEntryError"]
