"""HTTP/1.1 over a TLS connection, for both ends: heads by lines, bodies by pieces of a MiB that threads move.

Bounded everywhere: what is not read yet waits in the socket. Chunks are read with their trailers (RFC 9112, 7.1).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Executor
from types import MappingProxyType

from agents.storage.model import PIECE_BYTES
from agents.storage.overlap import AHEAD_PIECES
from fabric.errors import InvalidRequest
from fabric.tls_door import TlsClosed, TlsStream

MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
_MAX_LINE_BYTES = 1024
_BATCH_BYTES = AHEAD_PIECES * PIECE_BYTES
"""What a thread receives at once, if it is there."""
CHUNK_END = b"\r\n"
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")

Headers = Mapping[str, str]
"""By lower-case name; values of equal names are joined with commas."""


class HttpStream:
    """One connection. Use from one task."""

    def __init__(self, tls: TlsStream, threads: Executor | None = None) -> None:
        """`threads` move the bodies; None: those of the event loop."""
        self._tls, self._threads = tls, threads
        self._held = b""
        self._rooms: deque[tuple[bytearray, int]] = deque()
        """Memory for pieces, each with the number of the last piece in it."""
        self._given = 0

    async def head(self) -> tuple[str, Headers] | None:
        """The first line and the headers of a message; None if the other end has no more to say. Raises
        InvalidRequest(HTTP_MALFORMED | HTTP_HEAD_TOO_LARGE), TlsClosed."""
        while (end := self._held.find(b"\r\n\r\n")) < 0:
            if len(self._held) > MAX_HEAD_BYTES:
                raise InvalidRequest(
                    "HTTP_HEAD_TOO_LARGE", f"the head of an HTTP message has at most {MAX_HEAD_BYTES} bytes here"
                )
            if not await self._more():
                if self._held.strip():
                    raise TlsClosed("the connection ended in the middle of a head")
                return None
        head, self._held = self._held[:end], self._held[end + 4 :]
        lines = head.lstrip(b"\r\n").decode("latin-1").split("\r\n")
        return lines[0], _headers(lines[1:])

    async def line(self) -> str:
        """One line, without its end. Raises InvalidRequest(HTTP_MALFORMED), TlsClosed."""
        while (end := self._held.find(b"\r\n")) < 0:
            if len(self._held) > _MAX_LINE_BYTES:
                raise malformed("a line of a chunked body is too long")
            if not await self._more():
                raise TlsClosed("the connection ended in the middle of a body")
        line, self._held = self._held[:end], self._held[end + 2 :]
        return line.decode("latin-1")

    async def take(self, size_bytes: int) -> AsyncIterator[memoryview]:
        """The next bytes, in pieces. A piece is overwritten after `2 * AHEAD_PIECES` more. Raises TlsClosed if the
        connection ends before."""
        while size_bytes:
            room = self._room(min(size_bytes, _BATCH_BYTES))
            at_least = min(len(room), PIECE_BYTES)
            held, self._held = self._held[: len(room)], self._held[len(room) :]
            room[: len(held)] = held
            came = len(held)
            if came < at_least:
                came += await self._tls.receive_into(room[came:], at_least - came, self._threads)
            if came < at_least:
                raise TlsClosed("the connection ended in the middle of a body")
            size_bytes -= came
            for start in range(0, came, PIECE_BYTES):
                self._given += 1
                self._rooms[-1] = (room.obj, self._given)
                yield room[start : min(start + PIECE_BYTES, came)]

    async def take_chunks(self) -> AsyncIterator[memoryview | Headers]:
        """A chunked body: its bytes in pieces, then its trailers. Raises InvalidRequest(HTTP_MALFORMED), TlsClosed."""
        while size_bytes := _chunk_size(await self.line()):
            async for piece in self.take(size_bytes):
                yield piece
            if await self.line():
                raise malformed("a chunk is longer than it says")
        lines: list[str] = []
        while line := await self.line():
            lines.append(line)
            if len(lines) > MAX_HEADERS:
                raise malformed(f"there are more than {MAX_HEADERS} trailers")
        yield _headers(lines)

    async def discard(self, size_bytes: int) -> bool:
        """Read and forget at most so much; True if the other end said no more than that."""
        while size_bytes > 0:
            size_bytes -= len(self._held)
            self._held = b""
            if not await self._more():
                return True
        return False

    async def write(self, data: bytes) -> None:
        """A head, or another small thing. Raises TlsClosed."""
        await self._tls.write(data)

    async def send(self, data: memoryview) -> int:
        """A part of a body: a piece of it at least; returns how much. Raises TlsClosed."""
        return await self._tls.send(data, PIECE_BYTES, self._threads)

    async def finish(self) -> None:
        """Say that there is no more."""
        await self._tls.finish()

    def close(self) -> None:
        """Drop the connection."""
        self._tls.close()

    async def _more(self) -> bool:
        data = await self._tls.read()
        self._held += data
        return bool(data)

    def _room(self, size_bytes: int) -> memoryview:
        """Memory whose last piece is `2 * AHEAD_PIECES` pieces ago."""
        if self._rooms and self._rooms[0][1] <= self._given - 2 * AHEAD_PIECES:
            buffer, _ = self._rooms.popleft()
            if len(buffer) < size_bytes:
                buffer = bytearray(size_bytes)
        else:
            buffer = bytearray(size_bytes)
        self._rooms.append((buffer, self._given))
        return memoryview(buffer)[:size_bytes]


def malformed(what: str) -> InvalidRequest:
    """The message breaks the rules of HTTP."""
    return InvalidRequest("HTTP_MALFORMED", f"this is not HTTP as RFC 9112 has it: {what}")


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return chunk_head(len(data)) + data + CHUNK_END


def chunk_head(size_bytes: int) -> bytes:
    """What goes before the bytes of a chunk; `CHUNK_END` after them."""
    return b"%x\r\n" % size_bytes


def last_chunk(trailers: Headers = MappingProxyType({})) -> bytes:
    """The end of a chunked body."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in trailers.items())
    return f"0\r\n{lines}\r\n".encode("latin-1")


def _headers(lines: list[str]) -> Headers:
    if len(lines) > MAX_HEADERS:
        raise InvalidRequest("HTTP_HEAD_TOO_LARGE", f"an HTTP message has at most {MAX_HEADERS} headers here")
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        value = value.strip(" \t")
        if not colon or not _TOKEN.match(name) or any((ord(c) < 0x20 and c != "\t") or ord(c) == 0x7F for c in value):
            raise malformed(f"the header line {line[:80]!r}")
        name = name.lower()
        if name in found and name in ("content-length", "host", "transfer-encoding", "expect"):
            raise malformed(f"{name} comes twice")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return MappingProxyType(found)


def _chunk_size(line: str) -> int:
    digits = line.partition(";")[0].strip(" \t")
    if not re.fullmatch(r"[0-9A-Fa-f]{1,15}", digits):
        raise malformed(f"{line[:40]!r} is not the size of a chunk")
    return int(digits, 16)
