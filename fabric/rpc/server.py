"""The gRPC server of an agent: TLS with the host credential, a session and a rule before each call, typed errors
after it.

The check runs when a call's headers arrive and before its message is read: who may not call cannot make us parse
anything.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import grpc
import grpc.aio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from gridfabric.security.v1 import security_pb2_grpc

from fabric import logs
from fabric.clock import Clock
from fabric.errors import Defect, GridError, InvalidRequest, Unavailable, from_security, to_status
from fabric.ids import unique_id
from fabric.logs import Logger
from fabric.rpc import rules
from fabric.rpc.agreed import (
    FRAME_BYTES,
    HARD_MESSAGE_BYTES,
    MAX_MESSAGE_BYTES,
    SESSION_KEY,
    STREAM_WINDOW_BYTES,
    TRACE_KEY,
)
from fabric.rpc.calls import ACCEPTED_KEY, SESSION_REFUSED_KEY
from fabric.rpc.peer import ANONYMOUS, Authoriser, Peer, current_peer, set_current_peer
from fabric.rpc.rules import Rule
from fabric.rpc.security_context import SecurityContext
from fabric.rpc.sessions import Session, SessionTable, streaming
from fabric.voms_servers import VomsServers
from security.credentials import Credential
from security.errors import SecurityError
from security.trust import TrustStore
from security.validation import ValidationPolicy

MAX_METADATA_BYTES = 16 * 1024
MAX_CONCURRENT_CALLS = 10_000
"""Calls of one server at a time, streams included."""

_TRACE = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
# Pings of idle clients are welcome: they find cut links.
SERVER_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", HARD_MESSAGE_BYTES),
    ("grpc.max_send_message_length", HARD_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
    ("grpc.http2.max_frame_size", FRAME_BYTES),
)

Behaviour = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class RpcService:
    """A servicer with the function that registers it (from the generated code) and a rule for each of its methods.

    Servicer methods are `async def`, or async generators for streamed responses; a streamed request is an async
    iterator.
    """

    servicer: Any
    add_to_server: Callable[[Any, Any], None]
    rules: Mapping[str, Rule]


@dataclass(frozen=True, slots=True)
class _Method:
    name: str
    """`gridfabric.broker.v1.Broker/Submit`, without the leading slash."""
    rule: Rule
    behaviour: Behaviour
    request_streaming: bool
    response_streaming: bool
    is_generator: bool
    parse: Callable[[bytes], Any]
    serialize: Callable[[Any], bytes]

    @property
    def is_stream(self) -> bool:
        return self.request_streaming or self.response_streaming


class _Registrar:
    """Stands in for the server while generated code registers a servicer, to get at its methods."""

    def __init__(self) -> None:
        self.handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._service = ""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        for name, handler in handlers.items():
            self.handlers[f"{service}/{name}"] = handler

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Registered above already."""


def _methods_of(service: RpcService) -> dict[str, _Method]:
    registrar = _Registrar()
    service.add_to_server(service.servicer, registrar)
    names = {full.rpartition("/")[2] for full in registrar.handlers}
    kind = type(service.servicer).__name__
    if missing := sorted(names - set(service.rules)):
        raise ValueError(f"{kind} has no rule for {', '.join(missing)}; every method needs one")
    if unknown := sorted(set(service.rules) - names):
        raise ValueError(f"{kind} has rules for {', '.join(unknown)}, which its service does not have")
    methods: dict[str, _Method] = {}
    for full, handler in registrar.handlers.items():
        known: Any = handler
        behaviour = (
            (known.stream_stream if known.response_streaming else known.stream_unary)
            if known.request_streaming
            else (known.unary_stream if known.response_streaming else known.unary_unary)
        )
        generator = inspect.isasyncgenfunction(behaviour)
        if not generator and behaviour.__module__.endswith("_pb2_grpc"):
            continue  # not implemented: only what the generated base class has; grpc answers UNIMPLEMENTED
        if not generator and not inspect.iscoroutinefunction(behaviour):
            raise ValueError(f"{kind}: {full} must be an async method")
        methods["/" + full] = _Method(
            full,
            service.rules[full.rpartition("/")[2]],
            behaviour,
            known.request_streaming,
            known.response_streaming,
            generator,
            known.request_deserializer,
            known.response_serializer,
        )
    return methods


@dataclass
class ServerConfig:
    """What a server is made of."""

    name: str
    site: str
    listen: str
    port: int
    credential: Credential
    trust: TrustStore
    policy: ValidationPolicy
    authoriser: Authoriser
    clock: Clock
    log: Logger
    voms: VomsServers | None = None
    session_lifetime_s: float = 12 * 3600.0
    max_sessions: int = 4096
    max_sessions_per_owner: int = 64
    keepalive_s: float = 5.0
    """How often a quiet connection is tested."""
    options: tuple[tuple[str, Any], ...] = field(default=())


class RpcServer:
    """One gRPC port. Construct, `start`, and later `stop`. `watch` must be called every few seconds."""

    def __init__(self, config: ServerConfig, services: Sequence[RpcService]) -> None:
        """Raises ValueError when a method has no rule or is not async."""
        self._config = config
        self._log, self._clock = config.log, config.clock
        self._methods: dict[str, _Method] = {}
        self._unary: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self.sessions = SessionTable(
            config.clock,
            max_sessions=config.max_sessions,
            max_per_owner=config.max_sessions_per_owner,
            closed=self._session_closed,
        )
        for service in services:
            self._add(service)
        self.security_context = SecurityContext(
            credential=config.credential,
            sessions=self.sessions,
            trust=config.trust,
            policy=config.policy,
            authoriser=config.authoriser,
            clock=config.clock,
            log=config.log,
            session_lifetime_s=config.session_lifetime_s,
            admits_unmapped=any(method.rule.admits_unmapped for method in self._methods.values()),
            voms=config.voms,
        )
        self._add(
            RpcService(
                self.security_context,
                cast("Any", security_pb2_grpc).add_SecurityContextServicer_to_server,
                {"Begin": rules.anyone, "Establish": rules.anyone},
            )
        )
        self._add_standard_services()
        self._server: grpc.aio.Server | None = None
        self._credential = self._shown = config.credential
        self._tls: grpc.ServerCredentials | None = None
        self.port = config.port
        """The bound port once started."""

    def _add(self, service: RpcService) -> None:
        for name, method in _methods_of(service).items():
            if name in self._methods:
                raise ValueError(f"{name} is registered twice")
            self._methods[name] = method
            if not method.is_stream:
                self._unary[name] = self._unary_handler(method)

    def _add_standard_services(self) -> None:
        from grpc_health.v1 import health, health_pb2_grpc
        from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

        # Neither package says what types it has.
        registration: Any = health_pb2_grpc
        self._health: Any = cast("Any", health).aio.HealthServicer()
        checks = {
            name: rules.anyone for name in ("Check", "Watch", "List") if hasattr(registration.HealthServicer, name)
        }
        self._add(RpcService(self._health, registration.add_HealthServicer_to_server, checks))
        names = sorted({method.name.rpartition("/")[0] for method in self._methods.values()})
        listed = [*names, "grpc.reflection.v1alpha.ServerReflection"]
        self._add(
            RpcService(
                cast("Any", reflection).aio.ReflectionServicer(listed),
                cast("Any", reflection_pb2_grpc).add_ServerReflectionServicer_to_server,
                {"ServerReflectionInfo": rules.anyone},
            )
        )

    async def start(self) -> int:
        """Open the port and return its number. Raises Unavailable PORT_IN_USE."""
        config = self._config
        server = grpc.aio.server(
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
            options=[*SERVER_OPTIONS, ("grpc.keepalive_time_ms", int(1000 * config.keepalive_s)), *config.options],
        )
        server.add_generic_rpc_handlers((cast("Any", _Dispatcher(self)),))
        self._tls = grpc.dynamic_ssl_server_credentials(
            _certificate_configuration(self._shown), cast("Any", self._renewed)
        )
        host = f"[{config.listen}]" if ":" in config.listen else config.listen
        try:
            self.port = server.add_secure_port(f"{host}:{config.port}", self._tls)
        except RuntimeError as error:
            raise Unavailable(
                "PORT_IN_USE",
                f"{config.name} cannot listen on {host}:{config.port} ({error}); stop who uses it or choose "
                f"another port",
            ) from error
        await server.start()
        self._server = server
        return self.port

    def use(self, credential: Credential) -> None:
        """Show this certificate to new connections; those that are open go on with the one that they saw."""
        self._credential = credential
        self.security_context.use(credential)

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked by grpc, on a thread of its own, before each handshake; None: as before."""
        credential = self._credential
        if credential is self._shown:
            return None
        self._shown = credential
        return _certificate_configuration(credential)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let running ones end for `grace_s`, then cancel them. May be called twice."""
        server, self._server = self._server, None
        if server is None:
            return
        await self.set_serving(False)
        self.sessions.close_all(
            Unavailable("SERVER_STOPPING", f"{self._config.name} is stopping; try again when it is up", retry_after_s=1)
        )
        await server.stop(grace_s)

    async def set_serving(self, serving: bool) -> None:
        """What grpc.health.v1 answers for the whole server."""
        from grpc_health.v1 import health_pb2

        statuses: Any = health_pb2.HealthCheckResponse
        await self._health.set("", statuses.SERVING if serving else statuses.NOT_SERVING)

    async def watch(self, *, changed: bool, chains: bool = True) -> float:
        """Every few seconds: end what has expired; when trust, bans or maps changed, judge every session again; without
        their `chains` when it was not trust that changed. Seconds until the next session expires."""
        left_s = self.sessions.sweep()
        if changed:
            await self.security_context.judge_again(chains=chains)
        return left_s

    def _session_closed(self, session: Session, reason: GridError) -> None:
        self._log.audit(
            "session.closed",
            peer=session.peer.subject,
            session_id=session.peer.session_id,
            reason=reason.reason,
            sentence=reason.sentence,
            streams=len(session.streams) or None,
        )

    # -- one call ----------------------------------------------------------------------------------------------------

    def handler_of(self, details: Any) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Who calls, may they, and what then runs. None for a method that does not exist (grpc answers
        UNIMPLEMENTED)."""
        method = self._methods.get(details.method)
        if method is None:
            return None
        token = trace = ""
        for key, value in details.invocation_metadata:
            if key == SESSION_KEY:
                token = value
            elif key == TRACE_KEY:
                trace = value
        logs.trace_id.set(trace if _TRACE.match(trace) else unique_id())
        session: Session | None = None
        peer: Peer = ANONYMOUS
        try:
            if token and method.rule.needs_session:
                session = self.sessions.find(token)
                peer = session.peer
            elif method.rule.needs_session:
                raise rules.session_missing(method.name)
        except GridError as error:
            return self._refuse(method, peer, error, about_session=True)
        refusal = method.rule.refusal(peer, self._config.site, method.name)
        if refusal is not None:
            return self._refuse(method, peer, refusal, about_session=False)
        set_current_peer(peer)
        if method.is_stream:
            return self._stream_handler(method, session, peer)
        return self._unary[details.method]

    def _refuse(
        self, method: _Method, peer: Peer, error: GridError, *, about_session: bool
    ) -> grpc.RpcMethodHandler[Any, Any]:
        async def refuse(_request: Any, context: Any) -> None:
            await self._abort(method, peer, context, error, about_session=about_session)

        # As a stream: then the request is never read.
        return cast("Any", grpc.stream_stream_rpc_method_handler(cast("Any", refuse)))

    def _unary_handler(self, method: _Method) -> grpc.RpcMethodHandler[Any, Any]:
        """The same for all calls: who calls is the current peer of the call's task."""
        behaviour, parse = method.behaviour, method.parse

        async def call(raw: bytes, context: Any) -> Any:
            try:
                return await behaviour(_parsed(raw, parse, method.name), context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                peer = current_peer()
                await self._abort(method, peer, context, self._as_grid_error(method, peer, error))

        return cast(
            "Any",
            grpc.unary_unary_rpc_method_handler(cast("Any", call), response_serializer=method.serialize),
        )

    def _stream_handler(self, method: _Method, session: Session | None, peer: Peer) -> grpc.RpcMethodHandler[Any, Any]:
        """Streams announce themselves by initial metadata at once, so that a client knows its session was accepted."""

        async def guarded(request: Any, context: Any, body: Callable[[Any], Awaitable[Any]]) -> Any:
            stream = None
            try:
                with streaming(session) as stream:
                    await context.send_initial_metadata(((ACCEPTED_KEY, "1"),))
                    if method.request_streaming:
                        return await body(_parsed_stream(request, method))
                    return await body(_parsed(request, method.parse, method.name))
            except grpc.aio.AbortError:
                raise
            except asyncio.CancelledError:
                if stream is None or stream.closed_because is None:
                    raise
                cast("asyncio.Task[object]", asyncio.current_task()).uncancel()
                await self._abort(method, peer, context, stream.closed_because, about_session=True)
            except Exception as error:
                await self._abort(method, peer, context, self._as_grid_error(method, peer, error))

        behaviour = method.behaviour

        async def one(request: Any, context: Any) -> Any:
            return await guarded(request, context, lambda parsed: behaviour(parsed, context))

        async def many(request: Any, context: Any) -> None:
            async def body(parsed: Any) -> None:
                if not method.is_generator:
                    await behaviour(parsed, context)
                    return
                responses = behaviour(parsed, context)
                try:
                    async for response in responses:
                        await context.write(response)
                finally:
                    await responses.aclose()

            await guarded(request, context, body)

        make: Any = (
            (
                grpc.stream_stream_rpc_method_handler
                if method.response_streaming
                else grpc.stream_unary_rpc_method_handler
            )
            if method.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return make(many if method.response_streaming else one, response_serializer=method.serialize)

    def _as_grid_error(self, method: _Method, peer: Peer, error: Exception) -> GridError:
        if isinstance(error, GridError):
            return error
        if isinstance(error, SecurityError):
            return from_security(error)
        incident = unique_id()
        self._log.exception("rpc.defect", error, method=method.name, peer=peer.subject, incident=incident)
        return Defect(
            "DEFECT",
            f"{method.name} failed at {self._config.name} because of a defect; give its operators the incident "
            f"id {incident}",
            incident=incident,
            method=method.name,
        )

    async def _abort(
        self, method: _Method, peer: Peer, context: Any, error: GridError, *, about_session: bool = False
    ) -> None:
        self._log.audit(
            "call.refused",
            method=method.name,
            peer=peer.subject,
            remote=context.peer(),
            session_id=peer.session_id or None,
            status=type(error).status_name,
            reason=error.reason,
            sentence=error.sentence,
            facts=dict(error.facts) or None,
        )
        status = to_status(error)
        trailing: list[tuple[str, str | bytes]] = [*status.trailing_metadata]
        if about_session:
            trailing.append((SESSION_REFUSED_KEY, "1"))
        await context.abort(status.code, status.message, tuple(trailing))


class _Dispatcher(grpc.GenericRpcHandler):
    """One handler for all services: the decision is made here, once per call and before its message is read."""

    def __init__(self, server: RpcServer) -> None:
        self._server = server

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._server.handler_of(handler_call_details)


def _certificate_configuration(credential: Credential) -> grpc.ServerCertificateConfiguration:
    key = credential.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return grpc.ssl_server_certificate_configuration([(key, credential.pem_chain())])


def _parsed(raw: bytes, parse: Callable[[bytes], Any], method: str) -> Any:
    if len(raw) > MAX_MESSAGE_BYTES:
        raise InvalidRequest(
            "MESSAGE_TOO_LARGE",
            f"a message of {len(raw)} bytes to {method} is over the limit of {MAX_MESSAGE_BYTES}; send it in "
            f"smaller parts",
            method=method,
            limit_bytes=MAX_MESSAGE_BYTES,
        )
    try:
        return parse(raw)
    except Exception as error:  # DecodeError; its class depends on the protobuf implementation
        raise InvalidRequest(
            "MESSAGE_MALFORMED",
            f"a message to {method} is not of its type; client and server do not fit",
            method=method,
        ) from error


async def _parsed_stream(requests: AsyncIterator[bytes], method: _Method) -> AsyncIterator[Any]:
    async for raw in requests:
        yield _parsed(raw, method.parse, method.name)


def default_policy(crl_policy: str, expired_crl_policy: str = "same") -> ValidationPolicy:
    """The validation policy of a site by its options: require, warn or ignore missing and expired lists."""
    missing: Any = crl_policy
    expired: Any = crl_policy if expired_crl_policy == "same" else expired_crl_policy
    return ValidationPolicy(missing_crl=missing, expired_crl=expired, clock_skew=timedelta(minutes=5))
