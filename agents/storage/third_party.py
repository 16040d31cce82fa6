"""Copies between this storage element and another WebDAV server, in the name of a user who has delegated a proxy.

The other server may be of any make: HTTP/1.1 over TLS, its host certificate judged by our rules.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from agents.storage import http_wire as http
from agents.storage import https_client
from agents.storage.http_stream import HttpStream
from agents.storage.model import StoredFile
from fabric.errors import InvalidRequest, Unavailable

_PATH = re.compile(r"/[!-~]{0,4096}\Z")


class TlsSource(Protocol):
    """Where connections in a user's name come from (`fabric.rpc.channel.Channels`)."""

    async def tls(self, host: str, port: int, credential: Any) -> Any:
        """A TLS connection, its host judged."""
        ...


class Delegations(Protocol):
    """Proxies delegated to this storage element."""

    def get(self, subject: str, delegation_id: str = "default") -> Any:
        """The credential. Raises DELEGATION_MISSING, DELEGATION_EXPIRED."""
        ...


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of another server, about to be read once."""

    size_bytes: int
    claimed: http.Claimed
    arriving: AsyncIterator[memoryview]


class ThirdParty:
    """The other end of COPY."""

    def __init__(self, connections: TlsSource, delegations: Delegations) -> None:
        self._connections, self._delegations = connections, delegations

    @asynccontextmanager
    async def reading(self, subject: str, url: str) -> AsyncGenerator[RemoteFile]:
        """GET it. Raises the GridError of the other server's refusal, InvalidRequest(LENGTH_REQUIRED), Unavailable."""
        async with self._connected(subject, url) as (stream, host, path):
            await https_client.ask(stream, "GET", path, host, {"Want-Digest": http.BOTH_DIGESTS})
            _, headers = await https_client.answer(stream, url)
            if "content-length" not in headers:
                raise InvalidRequest(
                    "LENGTH_REQUIRED", f"{url} does not say how long it is, and space is reserved before the first byte"
                )
            size_bytes = http.body_length(headers) or 0
            yield RemoteFile(size_bytes, http.parse_digests(headers), stream.take(size_bytes))

    @asynccontextmanager
    async def writing(self, subject: str, url: str, file: StoredFile) -> AsyncGenerator[HttpStream]:
        """PUT it: the block sends the file's bytes; the answer is read after it. Raises the GridError of the other
        server's refusal, Unavailable."""
        async with self._connected(subject, url) as (stream, host, path):
            digest = http.digest_text(http.BOTH_DIGESTS, file.checksums)
            headers = {"Content-Length": str(file.size_bytes), "Digest": digest, "Expect": "100-continue"}
            await https_client.ask(stream, "PUT", path, host, headers)
            status, _ = await https_client.answer(stream, url)
            if status == 100:
                yield stream
                status, _ = await https_client.answer(stream, url)
            if not 200 <= status < 300:
                raise Unavailable("PEER_FAILED", f"{url} answered with status {status} and did not take the file")

    @asynccontextmanager
    async def _connected(self, subject: str, url: str) -> AsyncGenerator[tuple[HttpStream, str, str]]:
        host, port, path = _parts(url)
        tls = await self._connections.tls(host, port, self._delegations.get(subject))
        async with https_client.talking(tls, url) as stream:
            yield stream, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", path


def _parts(url: str) -> tuple[str, int, str]:
    try:
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError:
        parts, port = urlsplit(""), 0
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    if parts.scheme not in ("https", "davs") or not parts.hostname or parts.username or not _PATH.match(path):
        raise InvalidRequest("URL_INVALID", f"{url[:200]!r} is no URL to copy from or to; write https://host:port/path")
    return parts.hostname, port, path
