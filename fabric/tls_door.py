"""A TLS port whose clients show an X.509 chain that *we* judge, after the handshake, with a sentence.

OpenSSL proves that the client holds the key of the certificate it shows; which chains are good is left to the handler
(`security.validation`), since a refusal inside the handshake reaches the user as an alert without a reason. No session
is ever resumed: a resumed one would bring no chain, and nobody would have judged it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from cryptography import x509
from OpenSSL import SSL

from fabric.listener import Listener
from fabric.logs import Logger
from security.credentials import Credential

HANDSHAKE_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
MAX_CONNECTIONS = 256
"""More at one moment are closed at once."""
PIECE_BYTES = 64 * 1024


class TlsClosed(ConnectionError):
    """The peer broke the connection, or what it sent is not TLS."""


class TlsStream:
    """One connection whose handshake is done. Not safe for two tasks at once."""

    def __init__(
        self, connection: SSL.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str
    ) -> None:
        self._connection, self._reader, self._writer = connection, reader, writer
        connection.set_accept_state()
        self.peer = peer
        """Address of the client, for logs."""

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What the client showed, leaf first, in its order; empty if nothing. The leaf's key is proved, no more."""
        leaf = self._connection.get_peer_certificate(as_cryptography=True)
        if leaf is None:
            return ()
        rest = self._connection.get_peer_cert_chain(as_cryptography=True) or []
        return (leaf, *(certificate for certificate in rest if certificate != leaf))

    async def handshake(self) -> None:
        """Used by the door. Raises TlsClosed."""
        while True:
            try:
                self._connection.do_handshake()
                break
            except SSL.WantReadError:
                await self._flush()
                if not await self._fill():
                    raise TlsClosed("the client left during the handshake") from None
            except SSL.Error as error:
                await self._flush()  # the alert
                raise TlsClosed(f"the handshake failed ({_words(error)})") from error
        await self._flush()

    async def read(self) -> bytes:
        """Some bytes; none at the end of the stream. Raises TlsClosed."""
        while True:
            try:
                return self._connection.recv(PIECE_BYTES)
            except SSL.WantReadError:
                await self._flush()
                if not await self._fill():
                    return b""
            except SSL.ZeroReturnError:
                return b""
            except SSL.Error as error:
                raise TlsClosed(f"the connection broke ({_words(error)})") from error

    async def write(self, data: bytes) -> None:
        """All of it. Raises TlsClosed, OSError."""
        view = memoryview(data)
        while view:
            try:
                sent = self._connection.send(bytes(view[:PIECE_BYTES]))
            except SSL.Error as error:
                raise TlsClosed(f"the connection broke ({_words(error)})") from error
            view = view[sent:]
            await self._flush()

    async def finish(self) -> None:
        """Say that there is no more: clients that read to the end need the close notice."""
        with contextlib.suppress(SSL.Error, OSError):
            self._connection.shutdown()
            await self._flush()

    async def _fill(self) -> bool:
        data = await self._reader.read(PIECE_BYTES)
        if data:
            self._connection.bio_write(data)
        return bool(data)

    async def _flush(self) -> None:
        with contextlib.suppress(SSL.WantReadError):
            while True:
                self._writer.write(self._connection.bio_read(PIECE_BYTES))
        await self._writer.drain()


Handler = Callable[[TlsStream], Awaitable[None]]


class TlsDoor(Listener):
    """Accepts connections and hands each, once its handshake is done, to `handler`, which may take its time."""

    def __init__(
        self,
        credential: Callable[[], Credential],
        handler: Handler,
        log: Logger,
        *,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        max_per_address: int = MAX_CONNECTIONS,
        newest: int = SSL.TLS1_3_VERSION,
    ) -> None:
        """`credential`: what new connections are shown, which may be renewed meanwhile.
        `handshake_timeout_s`: from the connection on; some clients connect before they ask their user.
        `newest`: TLS 1.2 for clients that take the session ticket of TLS 1.3 for an empty message (MyProxy's)."""
        super().__init__(PIECE_BYTES)
        self._credential, self._newest = credential, newest
        self._shown, self._context = self._prepare(credential())
        self._handler, self._log = handler, log
        self._handshake_timeout_s, self._max_per_address = handshake_timeout_s, max_per_address
        self._by_address: dict[str, int] = {}

    def _prepare(self, credential: Credential) -> tuple[Credential, SSL.Context]:
        context = _server_context(credential)
        context.set_max_proto_version(self._newest)
        return credential, context

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        address = writer.get_extra_info("peername")
        host = str(address[0]) if address else "?"
        self._by_address[host] = self._by_address.get(host, 0) + 1
        if self._credential() is not self._shown:
            self._shown, self._context = self._prepare(self._credential())
        stream = TlsStream(
            SSL.Connection(self._context, None), reader, writer, ":".join(map(str, address[:2])) if address else "?"
        )
        try:
            if len(self._connections) > MAX_CONNECTIONS or self._by_address[host] > self._max_per_address:
                self._log.warning("tls.too_many_connections", peer=stream.peer)
                return
            async with asyncio.timeout(self._handshake_timeout_s):
                await stream.handshake()
            await self._handler(stream)
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await stream.finish()
        except TlsClosed as error:
            self._log.info("tls.closed", peer=stream.peer, why=str(error))
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the client is gone or too slow, or we stop
        except Exception as error:
            self._log.exception("tls.defect", error, peer=stream.peer)
        finally:
            self._connections.discard(task)
            self._by_address[host] -= 1
            if not self._by_address[host]:
                del self._by_address[host]
            writer.close()


def client_stream(
    credential: Credential | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str
) -> TlsStream:
    """The client's side of such a connection; `handshake` it, then judge the server's `chain` before anything else."""
    context = _context(SSL.TLS_CLIENT_METHOD, credential)
    connection = SSL.Connection(context, None)
    stream = TlsStream(connection, reader, writer, host)
    connection.set_connect_state()
    with contextlib.suppress(UnicodeError):
        connection.set_tlsext_host_name(host.encode("idna"))
    return stream


def _server_context(credential: Credential) -> SSL.Context:
    context = _context(SSL.TLS_SERVER_METHOD, credential)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


def _context(method: int, credential: Credential | None) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    if credential is not None:
        context.use_certificate(credential.certificate)
        for certificate in credential.certificates[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(credential.key)
    # Every chain passes here; without a certificate at all the handler has the sentence.
    context.set_verify(SSL.VERIFY_PEER, _judged_later)
    return context


def _judged_later(connection: SSL.Connection, certificate: object, error: int, depth: int, good: int) -> bool:
    return True


def _words(error: SSL.Error) -> str:
    """OpenSSL's own words, the last of its list of (library, function, reason)."""
    listed = cast("Sequence[Sequence[Sequence[str]]]", error.args)
    try:
        return listed[0][-1][-1]
    except IndexError:
        return type(error).__name__
