"""A TLS port whose clients show an X.509 chain that *we* judge, after the handshake, with a sentence.

OpenSSL proves that the client holds the key of the certificate it shows; which chains are good is left to the handler
(`security.validation`), since a refusal inside the handshake reaches the user as an alert without a reason. No session
is ever resumed: a resumed one would bring no chain, and nobody would have judged it.

Small messages are read and written on the event loop. Bulk (`receive_into`, `send`) is moved by a thread that calls
OpenSSL on the socket itself, without the interpreter lock and without a copy; where the peer keeps it waiting it comes
back after `LINGER_S`, and the event loop waits for the socket. So a slow peer holds no thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar, cast

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

from fabric.errors import Unauthenticated, port_in_use
from fabric.logs import Logger
from security.credentials import Credential
from security.errors import one_line

T = TypeVar("T")

HANDSHAKE_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
MAX_CONNECTIONS = 256
"""More at one moment are closed at once."""
PIECE_BYTES = 64 * 1024
LINGER_S = 0.02
"""How long a thread waits for a peer that has just given or taken something."""
TURN_S = 0.5
"""After this long a thread comes back in any case: who cancels a transfer waits no longer."""
_RECORD_BYTES = 16 * 1024
_WAKE_BYTES = 256 * 1024
_SENT_BYTES = 1024 * 1024
"""Handed to OpenSSL at once: it says how much is gone only when all is."""
_ENABLE_PARTIAL_WRITE = 1
"""OpenSSL's SSL_MODE of that name, which pyOpenSSL sets and does not name."""
ACCEPT_AGAIN_S = 1.0
"""Where there are no descriptors for a connection, the next is taken after this time."""
_ENDED = -1
_UNREAD_PIECES = 16
_BACKLOG = 128


class TlsClosed(ConnectionError):
    """The peer broke the connection, or what it sent is not TLS."""


class _Connection(SSL.Connection):
    """With a way to receive that costs one call of OpenSSL a record and no copy; pyOpenSSL's own was a quarter of the
    processor time of a transfer."""

    def fill(self, buffer: memoryview) -> int:
        """What is there, record by record, as far as the buffer reaches; at least a byte. Raises SSL.Error."""
        ssl, read = self._ssl, _openssl.lib.SSL_read
        start, size_bytes, done = _openssl.ffi.from_buffer(buffer), len(buffer), 0
        while done < size_bytes:
            received = read(ssl, start + done, size_bytes - done)
            if received <= 0:
                if not done:
                    self._raise_ssl_error(ssl, received)
                break  # the next call says why
            done += received
        return int(done)


_openssl: Any = Binding()


class TlsStream:
    """One connection whose handshake is done. Not safe for two tasks at once. Close it."""

    def __init__(self, connection: _Connection, link: socket.socket, peer: str) -> None:
        self._connection, self._socket = connection, link
        self._busy: asyncio.Future[tuple[int, int]] | None = None
        self._woken_for = 1
        self.peer = peer
        """Address of the other end, for logs."""

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What the other end showed, leaf first, in its order; empty if nothing. The leaf's key is proved, no more.
        Raises Unauthenticated(CHAIN_MALFORMED)."""
        try:
            leaf = self._connection.get_peer_certificate(as_cryptography=True)
            if leaf is None:
                return ()
            rest = self._connection.get_peer_cert_chain(as_cryptography=True) or []
        except ValueError as error:  # OpenSSL reads some certificates that break the rules of X.509
            raise Unauthenticated(
                "CHAIN_MALFORMED", f"the certificate of {self.peer} cannot be read ({one_line(str(error), 100)})"
            ) from error
        return (leaf, *(certificate for certificate in rest if certificate != leaf))

    def require_chain(self, missing: str) -> tuple[x509.Certificate, ...]:
        """As `chain`; where it is empty, `missing` says whose it should be. Raises also
        Unauthenticated(CERTIFICATE_MISSING)."""
        chain = self.chain
        if not chain:
            raise Unauthenticated("CERTIFICATE_MISSING", missing)
        return chain

    async def handshake(self) -> None:
        """Before anything else. Raises TlsClosed."""
        await self._patiently(self._connection.do_handshake, "the handshake failed")

    async def read(self) -> bytes:
        """Some bytes; none at the end of the stream, said or not. Raises TlsClosed."""

        def step() -> bytes:
            try:
                return self._connection.recv(PIECE_BYTES)
            except SSL.Error as error:
                if _is_end(error):
                    return b""
                raise

        return await self._patiently(step, "the connection broke")

    async def write(self, data: bytes) -> None:
        """All of it. Raises TlsClosed."""
        view = memoryview(data)
        while view:
            piece = view[:PIECE_BYTES]
            sent = await self._patiently(lambda piece=piece: self._connection.send(piece), "the connection broke")
            view = view[sent:]

    async def receive_into(self, buffer: memoryview, at_least: int, threads: Executor | None) -> int:
        """Fill the buffer, with the help of a thread (None: one of the event loop's). Returns how much came: less than
        the buffer holds where the peer keeps us waiting, less than `at_least` only at the end of the stream. A wait for
        the peer has no end of its own. Raises TlsClosed."""
        try:
            return await self._in_turns(buffer, at_least, threads, self._receive_turn)
        finally:
            self._wake_for(0)

    async def send(self, data: memoryview, at_least: int, threads: Executor | None) -> int:
        """With the help of a thread; returns how much the peer took, `at_least` or all. Raises TlsClosed."""
        return await self._in_turns(data, min(at_least, len(data)), threads, self._send_turn)

    async def finish(self) -> None:
        """Say that there is no more: clients that read to the end need the close notice."""
        with contextlib.suppress(OSError):
            await self._patiently(self._connection.shutdown, "the connection broke")

    def close(self) -> None:
        """Drop the connection; if a thread works with it, as soon as that is back."""
        if self._busy is not None and not self._busy.done():
            self._busy.add_done_callback(lambda _: self._drop())
        else:
            self._drop()

    def _drop(self) -> None:
        """What has come and nobody read is taken out first: else the system sends a reset, and that overtakes our last
        words."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            for _ in range(_UNREAD_PIECES):
                if not self._socket.recv(PIECE_BYTES):
                    break
        self._socket.close()

    # -- on the event loop -------------------------------------------------------------------------------------------

    async def _patiently(self, step: Callable[[], T], what: str) -> T:
        while True:
            try:
                return step()
            except SSL.WantReadError:
                await self._ready(reading=True)
            except SSL.WantWriteError:
                await self._ready(reading=False)
            except SSL.Error as error:
                raise TlsClosed(f"{what} ({_words(error)})") from error

    async def _ready(self, *, reading: bool) -> None:
        loop, number = asyncio.get_running_loop(), self._socket.fileno()
        ready = loop.create_future()
        if reading:
            loop.add_reader(number, _resolve, ready)
        else:
            loop.add_writer(number, _resolve, ready)
        try:
            await ready
        finally:
            if reading:
                loop.remove_reader(number)
            else:
                loop.remove_writer(number)

    async def _in_turns(
        self, data: memoryview, at_least: int, threads: Executor | None, turn: Callable[[memoryview], tuple[int, int]]
    ) -> int:
        done = 0
        while done < at_least:
            self._busy = asyncio.get_running_loop().run_in_executor(threads, turn, data[done:])
            try:
                moved, wanted = await asyncio.shield(self._busy)
            except asyncio.CancelledError:
                await asyncio.wait([self._busy])  # the buffer is the thread's until then; TURN_S at most
                raise
            done += moved
            if done >= at_least or wanted == _ENDED:
                break
            if wanted:
                await self._ready(reading=wanted == select.POLLIN)
        return done

    # -- in a thread -------------------------------------------------------------------------------------------------

    def _receive_turn(self, buffer: memoryview) -> tuple[int, int]:
        def step(done: int) -> int:
            try:
                return self._connection.fill(buffer[done:])
            except SSL.Error as error:
                if _is_end(error):
                    return 0
                raise

        return self._turn(len(buffer), step)

    def _send_turn(self, data: memoryview) -> tuple[int, int]:
        return self._turn(len(data), lambda done: self._connection.send(data[done : done + _SENT_BYTES]))

    def _wake_for(self, due_bytes: int) -> None:
        """Be woken for several records and not for each. Never for more than will come: of the record that has begun a
        part may be with OpenSSL already."""
        at_least = max(1, min(_WAKE_BYTES, due_bytes - 2 * _RECORD_BYTES))
        if at_least != self._woken_for:
            self._woken_for = at_least
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, at_least)

    def _turn(self, size_bytes: int, step: Callable[[int], int]) -> tuple[int, int]:
        """(bytes moved, what to wait for: POLLIN, POLLOUT, 0 for nothing, or _ENDED)."""
        done, wanted, until = 0, 0, time.monotonic() + TURN_S
        while done < size_bytes:
            try:
                moved = step(done)
                done += moved
                if not moved:
                    return done, _ENDED
                if time.monotonic() > until:
                    break
                continue
            except SSL.WantReadError:
                wanted = select.POLLIN
            except SSL.WantWriteError:
                wanted = select.POLLOUT
            except SSL.Error as error:
                raise TlsClosed(f"the connection broke ({_words(error)})") from error
            if wanted == select.POLLIN:
                self._wake_for(size_bytes - done)
            poll = select.poll()
            poll.register(self._socket, wanted)
            if not poll.poll(LINGER_S * 1000) or time.monotonic() > until:
                return done, wanted
        return done, 0


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


Handler = Callable[[TlsStream], Awaitable[None]]


class TlsDoor:
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
        self._credential, self._newest = credential, newest
        self._shown, self._context = self._prepare(credential())
        self._handler, self._log = handler, log
        self._handshake_timeout_s, self._max_per_address = handshake_timeout_s, max_per_address
        self._by_address: dict[str, int] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._listening: list[socket.socket] = []
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Open the port. Raises Unavailable PORT_IN_USE."""
        loop = asyncio.get_running_loop()
        try:
            for family, kind, protocol, _, address in await loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                listening = socket.socket(family, kind, protocol)
                self._listening.append(listening)
                listening.setblocking(False)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.bind((address[0], self.port or port, *address[2:]))
                listening.listen(_BACKLOG)
                self.port = listening.getsockname()[1]
        except OSError as error:
            self._stop_listening()
            raise port_in_use(host, port, error) from error
        for listening in self._listening:
            self._listen(listening)

    def _listen(self, listening: socket.socket) -> None:
        if listening in self._listening:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._take, listening)

    def _stop_listening(self) -> None:
        for listening in self._listening:
            asyncio.get_running_loop().remove_reader(listening.fileno())
            listening.close()
        self._listening.clear()
        self.port = 0

    async def close(self) -> None:
        """Stop listening and end what is open."""
        self._stop_listening()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _prepare(self, credential: Credential) -> tuple[Credential, SSL.Context]:
        context = _server_context(credential)
        context.set_max_proto_version(self._newest)
        return credential, context

    def _take(self, listening: socket.socket) -> None:
        try:
            link, address = listening.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                loop = asyncio.get_running_loop()
                loop.remove_reader(listening.fileno())
                loop.call_later(ACCEPT_AGAIN_S, self._listen, listening)
            return  # or it left already
        host, peer = str(address[0]), ":".join(map(str, address[:2]))
        if len(self._connections) >= MAX_CONNECTIONS or self._by_address.get(host, 0) >= self._max_per_address:
            self._log.warning("tls.too_many_connections", peer=peer)
            link.close()
            return
        link.setblocking(False)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.get_running_loop().create_task(self._serve(link, host, peer), name=f"tls {peer}")
        self._connections.add(task)
        self._by_address[host] = self._by_address.get(host, 0) + 1
        task.add_done_callback(lambda done: self._left(done, host))

    def _left(self, task: asyncio.Task[None], host: str) -> None:
        self._connections.discard(task)
        self._by_address[host] -= 1
        if not self._by_address[host]:
            del self._by_address[host]

    async def _serve(self, link: socket.socket, host: str, peer: str) -> None:
        if self._credential() is not self._shown:
            self._shown, self._context = self._prepare(self._credential())
        connection = _Connection(self._context, link)
        connection.set_accept_state()
        stream = TlsStream(connection, link, peer)
        try:
            async with asyncio.timeout(self._handshake_timeout_s):
                await stream.handshake()
            await self._handler(stream)
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await stream.finish()
        except TlsClosed as error:
            self._log.info("tls.closed", peer=peer, why=str(error))
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the client is gone or too slow, or we stop
        except Exception as error:
            self._log.exception("tls.defect", error, peer=peer)
        finally:
            stream.close()


async def connect(credential: Credential | None, host: str, port: int) -> TlsStream:
    """The client's side of such a connection, its handshake done: judge the server's `chain` before anything else, and
    close it in the end. Raises OSError, TlsClosed; the caller has the deadline."""
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        link = socket.socket(family, kind, protocol)
        try:
            link.setblocking(False)
            await loop.sock_connect(link, address)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(_context(SSL.TLS_CLIENT_METHOD, credential), link)
            connection.set_connect_state()
            with contextlib.suppress(UnicodeError):
                connection.set_tlsext_host_name(host.encode("idna"))
            stream = TlsStream(connection, link, host)
            await stream.handshake()
            return stream
        except TlsClosed:
            link.close()
            raise
        except OSError as error:
            link.close()
            failure = error
        except BaseException:
            link.close()
            raise
    raise failure or OSError(f"no address of {host}")


def _server_context(credential: Credential) -> SSL.Context:
    context = _context(SSL.TLS_SERVER_METHOD, credential)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


def _context(method: int, credential: Credential | None) -> SSL.Context:
    context = SSL.Context(method)
    context.clear_mode(_ENABLE_PARTIAL_WRITE)  # a MiB is one call of OpenSSL, and not one for each record
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


def _is_end(error: SSL.Error) -> bool:
    """The other end has closed the connection, with or without the close notice."""
    return isinstance(error, SSL.ZeroReturnError) or "unexpected eof" in str(error).lower()


def _words(error: SSL.Error) -> str:
    """OpenSSL's own words, the last of its list of (library, function, reason), or the system's."""
    if isinstance(error, SSL.SysCallError):
        return str(error.args[-1])
    listed = cast("Sequence[Sequence[Sequence[str]]]", error.args)
    try:
        return listed[0][-1][-1]
    except IndexError:
        return type(error).__name__
