"""Channels to other services: the host judged and pinned, a session established, errors typed.

A `Link` is one connection to `host:port` with its pinned leaf; a `SecureChannel` is a credential's session over it
and what generated stubs are built on. Links are shared by credentials. Everything is lazy: getting a channel never
waits for the peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from gridfabric.security.v1 import security_pb2 as pb

from fabric import logs
from fabric.clock import Clock, from_us
from fabric.errors import Exhausted, GridError, Unauthenticated, Unavailable, from_rpc_error, from_security
from fabric.ids import unique_id
from fabric.logs import Logger
from fabric.rpc.agreed import FRAME_BYTES, HARD_MESSAGE_BYTES, SESSION_KEY, STREAM_WINDOW_BYTES, TRACE_KEY
from fabric.rpc.calls import (
    RECONNECT_WAIT_S,
    Metadata,
    Opened,
    StreamCallable,
    UnaryCallable,
    not_connected,
    refused_session,
)
from fabric.rpc.probe import fetch_server_chain
from fabric.rpc.sessions import RETRY_REASONS
from fabric.tls_door import TlsStream, connect
from security import certificates
from security.credentials import Credential
from security.errors import SecurityError
from security.names import DistinguishedName
from security.session import prove
from security.trust import TrustStore
from security.validation import ValidationPolicy, validate_host_chain

ESTABLISH_DEADLINE_S = 10.0
"""For Begin and for Establish, each."""
RENEW_BEFORE_S = 30.0
"""A session this near its end (or its last tenth) is established again, if that would give a later end."""
PROBE_PAUSE_S = 0.2
"""A failed look at a server is not repeated sooner: callers in between get the same answer."""
MAX_LINKS = 1024
"""Connections of one process; the least recently used idle one is closed first."""
MAX_CHANNELS = 8192
"""Sessions of one process."""
OLD_LINK_GRACE_S = 5.0
LEAVING_S = 7 * 86400.0
"""Calls that run on a connection to a server that has renewed its certificate go on until they end, or their session
does, or the old certificate is not good any more; but not longer."""

KEEPALIVE_S = 2.5
"""A quiet connection is tested this often: with the timeout below, a cut link is noticed within about 5 s."""
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", HARD_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),  # the server refuses with a sentence; grpc would only give a number
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),  # without it a silent peer is noticed after a minute, whatever the above say
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
    ("grpc.http2.max_frame_size", FRAME_BYTES),
)


class Link:
    """The connection to one `host:port`: looks at the server when needed, pins its leaf, reconnects after a change."""

    def __init__(self, owner: Channels, host: str, port: int) -> None:
        self._owner, self.host, self.port = owner, host, port
        self.peer = f"{host}:{port}"
        self.opened: Opened | None = None
        """The pinned connection, if there is one."""
        self._looking: asyncio.Task[Opened] | None = None
        self._failed_until = 0.0
        self._failure: GridError | None = None

    async def ensure(self) -> Opened:
        """The pinned connection. Raises Unavailable, or Unauthenticated with why the host is not trusted."""
        with contextlib.suppress(GridError):
            self.recheck()  # the server may have another certificate by now
        return self.opened or await self._look()

    def recheck(self) -> None:
        """Judge the host again if trust has changed: it may have been revoked. Raises Unauthenticated; then it is
        dropped."""
        current, snapshot = self.opened, self._owner.trust.snapshot()
        if current is None or current.generation == snapshot.generation:
            return
        if snapshot.still_accepts(current.chain, current.generation, self._owner.clock.now()):
            current.generation = snapshot.generation
            return
        try:
            current.generation = self._judge(current.chain)
        except SecurityError as error:
            self.drop(grace_s=0)
            raise from_security(error, peer=self.peer) from error

    async def look_again(self, used: Opened) -> Opened:
        """After `used` could not connect: the server as it is now, a new connection if it shows another certificate."""
        if self.opened is not None and self.opened is not used:
            return self.opened
        return await self._look()

    async def _look(self) -> Opened:
        if self._looking is None:
            if self._failure is not None and self._owner.clock.monotonic() < self._failed_until:
                raise self._failure
            self._looking = asyncio.create_task(self._connect(), name=f"look {self.peer}")
            self._looking.add_done_callback(self._looked)
        return await asyncio.shield(self._looking)

    def _looked(self, task: asyncio.Task[Opened]) -> None:
        self._looking = None
        if not task.cancelled():
            failure = task.exception()
            self._failure = failure if isinstance(failure, GridError) else None
            self._failed_until = self._owner.clock.monotonic() + PROBE_PAUSE_S

    async def _connect(self) -> Opened:
        encoded = await fetch_server_chain(self.host, self.port)
        current = self.opened
        if current is not None and current.leaf_der == encoded[0]:
            return current
        try:
            chain = certificates.load_chain("".join(map(ssl.DER_cert_to_PEM_cert, encoded)).encode())
            generation = self._judge(chain)
        except SecurityError as error:
            self._owner.log.audit(
                "server.refused",
                server=self.peer,
                reason=error.reason.value,
                sentence=error.sentence,
                facts=dict(error.facts),
            )
            raise from_security(error, peer=self.peer) from error
        self._leave()
        opened = Opened(self._channel_to(chain[0]), chain, encoded[0], generation)
        self.opened = opened
        return opened

    def _judge(self, chain: tuple[x509.Certificate, ...]) -> int:
        owner = self._owner
        snapshot = owner.trust.snapshot()
        validate_host_chain(chain, self.host, snapshot, owner.policy, now=owner.clock.now())
        return snapshot.generation

    def _channel_to(self, leaf: x509.Certificate) -> grpc.aio.Channel:
        pinned = grpc.ssl_channel_credentials(root_certificates=certificates.pem([leaf]))
        # The name was checked by our rules; grpc only has to find the pinned leaf acceptable for itself.
        options = [
            *CHANNEL_OPTIONS,
            ("grpc.keepalive_time_ms", int(1000 * self._owner.keepalive_s)),
            ("grpc.ssl_target_name_override", _any_name(leaf, self.host)),
        ]
        host = f"[{self.host}]" if ":" in self.host else self.host
        return grpc.aio.secure_channel(f"{host}:{self.port}", pinned, options=options)

    def drop(self, grace_s: float = OLD_LINK_GRACE_S) -> None:
        """Forget the connection; calls on it have a moment to end, then they fail with Unavailable."""
        current, self.opened = self.opened, None
        if current is not None:
            self._owner.close_later(current.channel, grace_s)

    async def move(self) -> None:
        """Look whether the server shows another certificate now; new calls then use a new connection. Never raises."""
        if self.opened is not None:
            with contextlib.suppress(GridError):
                await self._look()

    def _leave(self) -> None:
        """The server shows another certificate. Calls on the connection go on as long as the old one is good."""
        current, self.opened = self.opened, None
        if current is not None:
            self._owner.leave(self, current)

    def refuses(self, opened: Opened) -> SecurityError | None:
        """Why a connection that was left is not good any more."""
        try:
            self._judge(opened.chain)
        except SecurityError as error:
            return error
        return None

    async def close(self) -> None:
        """Close now; running calls are cancelled."""
        if self._looking is not None:
            self._looking.cancel()
        current, self.opened = self.opened, None
        if current is not None:
            await current.channel.close()


def _any_name(leaf: x509.Certificate, host: str) -> str:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return certificates.subject_of(leaf).common_name or host
    dns = names.get_values_for_type(x509.DNSName)
    addresses = names.get_values_for_type(x509.IPAddress)
    plain = [name for name in dns if "*" not in name]
    return plain[0] if plain else str(addresses[0]) if addresses else host


@dataclass(frozen=True)
class _Session:
    opened: Opened
    credential: Credential
    token: str
    expires_at: float
    """On our monotonic clock, as all that decides here: the server's clock may differ from ours."""
    renew_at: float


class Channels:
    """The channels of one process, on one event loop."""

    def __init__(
        self,
        *,
        trust: TrustStore,
        policy: ValidationPolicy,
        clock: Clock,
        log: Logger,
        credential: Credential | None = None,
        keepalive_s: float = KEEPALIVE_S,
    ) -> None:
        """`credential` is whose name calls are made in unless `get` is given another; None: without sessions. Quiet
        connections are tested every `keepalive_s`."""
        self.keepalive_s = keepalive_s
        self.trust, self.policy, self.clock, self.log = trust, policy, clock, log
        self.credential = credential
        """May be replaced by another one of the same name: sessions move to it with the next call."""
        self._links: OrderedDict[tuple[str, int], Link] = OrderedDict()
        self._channels: OrderedDict[tuple[str, int, bytes], SecureChannel] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()
        self._leaving: dict[asyncio.Task[None], tuple[Link, Opened]] = {}
        self._closed = False

    async def get(self, host: str, port: int, credential: Credential | None = None) -> SecureChannel:
        """The channel to a service in the name of `credential` (default: our own). Does not wait for the peer.

        The same channel is given to everybody with the same credential; never close it. Raises Unavailable after
        `close`.
        """
        if self._closed:
            raise Unavailable(
                "CHANNELS_CLOSED", "this service is stopping and makes no more calls; try again when it is up"
            )
        key = (host, port, b"" if credential is None else credential.certificate.fingerprint(_SHA256))
        channel = self._channels.get(key)
        if channel is None:
            while len(self._channels) >= MAX_CHANNELS:
                self._channels.popitem(last=False)
            channel = self._channels[key] = SecureChannel(self, self._link(host, port), credential)
        self._channels.move_to_end(key)
        return channel

    async def tls(
        self, host: str, port: int, credential: Credential | None, subject: DistinguishedName | None = None
    ) -> TlsStream:
        """A TLS connection to a door that is not gRPC, in the name of `credential`, its host judged by our rules (and
        of this `subject`, if given). Close it. Raises Unavailable, Unauthenticated."""
        where = f"{host}:{port}"
        stream: TlsStream | None = None
        try:
            async with asyncio.timeout(ESTABLISH_DEADLINE_S):
                stream = await connect(credential, host, port)
            identity = validate_host_chain(stream.chain, host, self.trust.snapshot(), self.policy, now=self.clock.now())
            if subject is not None and identity.subject != subject:
                raise Unauthenticated(
                    "HOST_NAME_MISMATCH", f"{where} is {identity.subject} and not {subject}; ask its operators"
                )
            good, stream = stream, None
            return good
        except SecurityError as error:
            raise from_security(error, peer=where) from error
        except (OSError, TimeoutError) as error:
            words = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            raise Unavailable(
                "SERVER_UNREACHABLE", f"{where} cannot be reached ({words}); try again when it is up", peer=where
            ) from error
        finally:
            if stream is not None:
                stream.close()

    def _link(self, host: str, port: int) -> Link:
        link = self._links.get((host, port))
        if link is None:
            while len(self._links) >= MAX_LINKS:
                _, oldest = self._links.popitem(last=False)
                oldest.drop()
            link = self._links[(host, port)] = Link(self, host, port)
        self._links.move_to_end((host, port))
        return link

    async def trust_changed(self) -> None:
        """Judge the servers of all open links again; calls to one that is revoked are ended."""
        for link in list(self._links.values()):
            try:
                link.recheck()
            except GridError as error:
                self.log.audit("server.refused", server=link.peer, reason=error.reason, sentence=error.sentence)
        for task, (link, opened) in list(self._leaving.items()):
            error = link.refuses(opened)
            if error is not None:
                self.log.audit("server.refused", server=link.peer, reason=error.reason.value, sentence=error.sentence)
                task.cancel()

    async def move_from(self, authorities: Sequence[x509.Certificate]) -> None:
        """Look again at servers whose certificates these keys signed: they renew them."""
        moving = [
            link
            for link in self._links.values()
            if link.opened is not None and certificates.issuer_among(link.opened.chain[0], authorities) is not None
        ]
        await asyncio.gather(*(link.move() for link in moving))

    def leave(self, link: Link, opened: Opened) -> None:
        """Close a connection once its calls have ended, or at once when its server is not trusted any more."""

        async def leave() -> None:
            try:
                await asyncio.sleep(OLD_LINK_GRACE_S)  # for calls that were about to begin on it
                await opened.idle(LEAVING_S)
            finally:
                await opened.channel.close()

        task = asyncio.create_task(leave(), name="leave old connection")
        self._leaving[task] = link, opened
        task.add_done_callback(lambda ended: self._leaving.pop(ended, None))

    def close_later(self, channel: grpc.aio.Channel, grace_s: float) -> None:
        """Close a channel that was replaced, after a grace for its calls."""
        task = asyncio.create_task(channel.close(grace_s), name="close old channel")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close everything; running calls are cancelled. May be called twice."""
        self._closed = True
        leaving = list(self._leaving)
        for task in [*self._closing, *leaving]:
            task.cancel()
        links = list(self._links.values())
        self._links.clear()
        self._channels.clear()
        for link in links:
            await link.close()
        await asyncio.gather(*self._closing, *leaving, return_exceptions=True)


class SecureChannel(grpc.aio.Channel):
    """What stubs are built on: `BrokerStub(channel)`. Unary calls are awaited; streams are `StreamCall`s.

    Every call raises only GridError subclasses. A call is repeated, once, only if the server certainly did not begin
    it: its session was unknown or expired there, or no connection was made.
    """

    def __init__(self, owner: Channels, link: Link, credential: Credential | None) -> None:
        self._owner, self._link, self._given = owner, link, credential
        self._session: _Session | None = None
        self._establishing: asyncio.Task[_Session] | None = None
        self.subject = ""
        """Who we are for the server, once a session was established."""
        self.account = ""
        """Our local account there, for users."""

    @property
    def peer(self) -> str:
        """`host:port`."""
        return self._link.peer

    @property
    def shown(self) -> x509.Certificate | None:
        """The certificate that the server showed and we judged; None without a connection."""
        opened = self._link.opened
        return None if opened is None else opened.chain[0]

    @property
    def server(self) -> DistinguishedName | None:
        """Whose certificate that is."""
        return None if self.shown is None else certificates.subject_of(self.shown)

    @property
    def _credential(self) -> Credential | None:
        """Who calls: whom `get` was given, or the owner of the channels, as it is now."""
        return self._given or self._owner.credential

    # -- what generated stubs call -----------------------------------------------------------------------------------

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: Any = False,
    ) -> Any:
        """A method with one request and one response."""
        return UnaryCallable(self, ("unary_unary", method), request_serializer, response_deserializer)

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: Any = False,
    ) -> Any:
        """A method with one request and a stream of responses."""
        return StreamCallable(self, ("unary_stream", method), request_serializer, response_deserializer)

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: Any = False,
    ) -> Any:
        """A method with a stream of requests and one response."""
        return StreamCallable(self, ("stream_unary", method), request_serializer, response_deserializer)

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: Any = False,
    ) -> Any:
        """A method with two streams."""
        return StreamCallable(self, ("stream_stream", method), request_serializer, response_deserializer)

    async def close(self, grace: float | None = None) -> None:
        """Nothing: channels are shared and belong to `Channels`."""

    async def __aenter__(self) -> SecureChannel:
        return self

    async def __aexit__(self, exc_type: object, exc_val: object, exc_tb: object) -> None:
        return None

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """IDLE until a session is there, READY then; says nothing about the network."""
        return grpc.ChannelConnectivity.IDLE if self._session is None else grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Not supported: a call says more."""
        raise NotImplementedError("make a call instead")

    async def tls(self, port: int) -> TlsStream:
        """A TLS connection to another door of this very service, in the same name. Raises GridError."""
        await self._link.ensure()
        return await self._owner.tls(self._link.host, port, self._credential, self.server)

    async def channel_ready(self) -> None:
        """Connect and establish the session now. Raises GridError with why it cannot."""
        await self.ready()

    # -- for the calls -----------------------------------------------------------------------------------------------

    @property
    def clock(self) -> Clock:
        """The owner's clock."""
        return self._owner.clock

    def ready_now(self) -> tuple[Opened, Metadata] | None:
        """As `ready` where nothing has to be waited for: the common case, without a switch of tasks."""
        session = self._session
        if (
            session is None
            or session.opened is not self._link.opened
            or session.credential is not self._credential
            or session.renew_at <= self._owner.clock.monotonic()
        ):
            return None
        if session.opened.generation != self._owner.trust.snapshot().generation:
            return None
        return session.opened, ((SESSION_KEY, session.token), (TRACE_KEY, logs.trace_id.get() or unique_id()))

    async def ready(self) -> tuple[Opened, Metadata]:
        """The connection and the metadata of one call; establishes the session if there is none. Raises GridError."""
        opened = await self._link.ensure()
        trace = logs.trace_id.get() or unique_id()
        if self._credential is None:
            return opened, ((TRACE_KEY, trace),)
        session = self._session
        current = session is not None and session.opened is opened and session.credential is self._credential
        if session is None or not current or session.renew_at <= self._owner.clock.monotonic():
            session = await self._renewed(session, opened)
        return session.opened, ((SESSION_KEY, session.token), (TRACE_KEY, trace))

    async def _renewed(self, session: _Session | None, opened: Opened) -> _Session:
        try:
            return await self._establish_shared()
        except GridError as error:
            good = session is not None and session.opened is opened
            # A server that does not know the new key of our authority yet still knows the session that we have.
            moving = session is not None and session.credential is not self._credential
            later = moving or isinstance(error, Unavailable | Exhausted)
            if session is not None and good and later and self._owner.clock.monotonic() < session.expires_at:
                return session  # good for a while: the next call tries again
            raise

    async def _establish_shared(self) -> _Session:
        if self._establishing is None:
            self._establishing = asyncio.create_task(self._establish(), name=f"session {self.peer}")
            self._establishing.add_done_callback(self._established)
        return await asyncio.shield(self._establishing)

    def _established(self, task: asyncio.Task[_Session]) -> None:
        self._establishing = None
        if not task.cancelled() and task.exception() is None:
            self._session = task.result()

    async def _establish(self) -> _Session:
        opened = await self._link.ensure()
        try:
            return await self._handshake(opened)
        except grpc.aio.AioRpcError as error:
            if not not_connected(error):
                raise from_rpc_error(error, self.peer) from None
        opened = await self._link.look_again(opened)
        try:
            return await self._handshake(opened, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.peer) from None

    async def _handshake(self, opened: Opened, wait_for_ready: bool = False) -> _Session:
        credential = cast("Credential", self._credential)
        begin = opened.callable_of(
            ("unary_unary", _BEGIN), pb.BeginRequest.SerializeToString, pb.BeginResponse.FromString
        )
        establish = opened.callable_of(
            ("unary_unary", _ESTABLISH), pb.EstablishRequest.SerializeToString, pb.EstablishResponse.FromString
        )
        trace: Metadata = ((TRACE_KEY, logs.trace_id.get() or unique_id()),)
        timeout_s = RECONNECT_WAIT_S if wait_for_ready else ESTABLISH_DEADLINE_S
        nonce = (await begin(pb.BeginRequest(), timeout=timeout_s, metadata=trace, wait_for_ready=wait_for_ready)).nonce
        if len(nonce) != 32:
            raise Unavailable(
                "SERVER_MISBEHAVES", f"{self.peer} gave a nonce of {len(nonce)} bytes; it is not a grid service"
            )
        request = pb.EstablishRequest(
            nonce=nonce, chain_pem=credential.pem_chain(), proof=prove(credential, nonce, opened.leaf_der)
        )
        answer = await establish(request, timeout=ESTABLISH_DEADLINE_S, metadata=trace)
        left = from_us(answer.expires_at_us) - self._owner.clock.now()
        # With clocks far apart this is nonsense; then the server says SESSION_EXPIRED when it is time.
        left_s = max(left.total_seconds(), 1.0)
        self.subject, self.account = answer.subject, answer.account
        # A session that ends with its credential cannot be had for longer: use it to its end.
        last = from_us(answer.expires_at_us) >= credential.not_after - timedelta(seconds=RENEW_BEFORE_S)
        early_s = 0.0 if last else min(RENEW_BEFORE_S, left_s / 10)
        began = self._owner.clock.monotonic()
        return _Session(opened, credential, answer.session, began + left_s, began + left_s - early_s)

    async def prepare_retry(self, error: grpc.aio.AioRpcError, used: Opened, metadata: Metadata) -> GridError | None:
        """None if the failed call may be made once more; else what to raise."""
        typed = from_rpc_error(error, self.peer)
        if refused_session(error):
            session = self._session
            if session is not None and metadata[0][1] == session.token:
                self._session = None
            return None if typed.reason in RETRY_REASONS else typed
        if not_connected(error):
            opened = await self._link.look_again(used)  # raises if the server is not there
            return None if await opened.connected(RECONNECT_WAIT_S) else typed
        return typed


_SHA256 = hashes.SHA256()
_BEGIN = "/gridfabric.security.v1.SecurityContext/Begin"
_ESTABLISH = "/gridfabric.security.v1.SecurityContext/Establish"
