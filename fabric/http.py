"""The smallest HTTP/1.1 that serves and fetches public files (revocation lists, certificates): GET only, bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from fabric.errors import NotFound, Unavailable
from fabric.listener import Listener
from fabric.logs import Logger

MAX_REQUEST_BYTES = 8 * 1024
"""Request line and headers."""
MAX_RESPONSE_BYTES = 64 * 1024 * 1024
"""Of a fetched body, where the caller does not say."""
REQUEST_TIMEOUT_S = 10.0
"""From the first byte of a request to its last, and as long for the answer."""
IDLE_TIMEOUT_S = 30.0
MAX_CONNECTIONS = 256

_REASONS = {
    200: "OK",
    304: "Not Modified",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True)
class Content:
    """An answer. `etag` lets clients ask whether it changed."""

    body: bytes
    content_type: str = "application/octet-stream"
    etag: str = ""


Route = Callable[[str], Content | None]
"""From a decoded path (with its leading slash, no query) to the content, None if there is none. Must not wait."""


class HttpServer(Listener):
    """Serves what `route` gives. Everybody may read: nothing secret belongs here."""

    def __init__(self, route: Route, log: Logger) -> None:
        super().__init__(MAX_REQUEST_BYTES)
        self._route, self._log = route, log

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
        try:
            if len(self._connections) > MAX_CONNECTIONS:
                await self._answer(writer, 503, Content(b"too many connections\n", "text/plain"), close=True, body=True)
                return
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.CancelledError, TimeoutError):
            pass  # the client is gone, or we stop
        finally:
            if task is not None:
                self._connections.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; True if the connection stays open."""
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return await self._refuse(writer, 431)
        except asyncio.IncompleteReadError as error:
            return await self._refuse(writer, 400) if error.partial else False
        except TimeoutError:
            return await self._refuse(writer, 408)
        lines = head.decode("latin-1").split("\r\n")
        parts = lines[0].split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1.") or not parts[1].startswith("/"):
            return await self._refuse(writer, 400)
        method, target, version = parts
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        if method not in ("GET", "HEAD"):
            return await self._refuse(writer, 405)
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            return await self._refuse(writer, 400)
        close = headers.get("connection", "").lower() == "close" or version == "HTTP/1.0"
        try:
            content = self._route(unquote(target.partition("?")[0]))
        except Exception as error:
            self._log.exception("http.defect", error, path=target[:200])
            return await self._refuse(writer, 500)
        if content is None:
            await self._answer(writer, 404, Content(b"not here\n", "text/plain"), close=close, body=method == "GET")
        elif content.etag and headers.get("if-none-match") == f'"{content.etag}"':
            await self._answer(writer, 304, content, close=close, body=False)
        else:
            await self._answer(writer, 200, content, close=close, body=method == "GET")
        return not close

    async def _refuse(self, writer: asyncio.StreamWriter, status: int) -> bool:
        text = f"{_REASONS[status]}\n".encode()
        await self._answer(writer, status, Content(text, "text/plain"), close=True, body=True)
        return False

    async def _answer(
        self, writer: asyncio.StreamWriter, status: int, content: Content, *, close: bool, body: bool
    ) -> None:
        lines = [
            f"HTTP/1.1 {status} {_REASONS[status]}",
            f"Content-Length: {len(content.body) if status != 304 else 0}",
            f"Content-Type: {content.content_type}",
            "X-Content-Type-Options: nosniff",
        ]
        if content.etag:
            lines.append(f'ETag: "{content.etag}"')
        if close:
            lines.append("Connection: close")
        writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (content.body if body else b""))
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            await writer.drain()


@dataclass(frozen=True)
class Fetched:
    """What a server answered: `body` is None if it has not changed."""

    body: bytes | None
    etag: str


async def http_get(
    host: str,
    port: int,
    path: str,
    *,
    timeout_s: float = REQUEST_TIMEOUT_S,
    max_bytes: int = MAX_RESPONSE_BYTES,
    etag: str = "",
) -> Fetched:
    """GET a file; with `etag`, only if it has changed. Follows no redirects.

    Raises Unavailable HTTP_FAILED (no answer, not HTTP, a status other than 200, too large) and NotFound
    HTTP_NOT_FOUND.
    """
    url = f"http://{host}:{port}{path}"
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port, limit=MAX_REQUEST_BYTES)
            # HTTP/1.0: nobody answers in chunks
            lines = [f"GET {path} HTTP/1.0", f"Host: {host}:{port}", "Connection: close"]
            if etag:
                lines.append(f'If-None-Match: "{etag}"')
            writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.strip().lower(): value.strip() for name, _, value in (h.partition(":") for h in head[1:])}
            status = int(head[0].split(" ")[1])
            if status == 304:
                return Fetched(None, etag)
            if status == 404:
                raise NotFound("HTTP_NOT_FOUND", f"{url} does not exist", url=url)
            if status != 200:
                raise ValueError(f"status {status}")
            etag = headers.get("etag", "").strip('"')
            if "content-length" not in headers:
                return Fetched(await _until_end(reader, max_bytes), etag)
            length = int(headers["content-length"])
            if not 0 <= length <= max_bytes:
                raise ValueError(f"{length} bytes where {max_bytes} are accepted")
            return Fetched(await reader.readexactly(length), etag)
    except (OSError, TimeoutError, ValueError, KeyError, IndexError, EOFError, asyncio.LimitOverrunError) as error:
        what = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        raise Unavailable("HTTP_FAILED", f"{url} cannot be fetched ({what}); try again later", url=url) from error
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                writer.transport.abort()


async def _until_end(reader: asyncio.StreamReader, max_bytes: int) -> bytes:
    """What comes until the server closes. Raises ValueError if it is too much."""
    pieces: list[bytes] = []
    size = 0
    while piece := await reader.read(1 << 16):
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise ValueError(f"more than the {max_bytes} bytes accepted")
    return b"".join(pieces)
