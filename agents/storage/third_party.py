"""Copies between this storage element and another WebDAV server, in the name of a user who has delegated a proxy.

The other server may be of any make: HTTP/1.1 over TLS, its host certificate judged by our rules; or GridFTP.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

from agents.storage import http_wire as http
from agents.storage import https_client
from agents.storage.gridftp import GridFtp
from agents.storage.http_stream import Headers, HttpStream
from agents.storage.model import Checksums, StoredFile, require_equal
from agents.storage.pool import Hasher
from fabric.clock import Clock
from fabric.errors import DataCorrupted, InvalidRequest, NotFound, Unavailable

SCHEMES = ("https", "davs", "gsiftp")
"""Of files of servers of others."""
MAX_REDIRECTIONS = 5
_REDIRECTIONS = frozenset({301, 302, 303, 307, 308})
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
    """A file of another server, about to be read once. `claimed`: what that server says of the whole of it."""

    size_bytes: int
    claimed: http.Claimed
    arriving: AsyncIterator[memoryview]


class Sink(Protocol):
    """Where the bytes of a file go."""

    async def send(self, data: memoryview) -> int:
        """A part of them; how much it took."""
        ...


def is_foreign(url: str) -> bool:
    """It names a file of a server of others, not a SURL of ours."""
    return url.partition("://")[0] in SCHEMES


class ThirdParty:
    """The other end of COPY."""

    def __init__(self, connections: TlsSource, delegations: Delegations, certificates: Path, clock: Clock) -> None:
        self._connections, self._delegations = connections, delegations
        self._gridftp = GridFtp(certificates, clock)

    @asynccontextmanager
    async def reading(self, subject: str, url: str, size_bytes: int = 0) -> AsyncGenerator[RemoteFile]:
        """Read it. `size_bytes`: as the catalogue has it; GridFTP servers are not asked. Raises the GridError of the
        other server's refusal, InvalidRequest(LENGTH_REQUIRED), Unavailable."""
        if url.startswith("gsiftp:"):
            if not size_bytes:
                raise _length_required(url)
            credential = self._delegations.get(subject)
            async with self._gridftp.reading(url, 0, credential) as running:
                yield RemoteFile(size_bytes, http.parse_digests({}), running.pieces())
            return
        async with self._asked(subject, "GET", url, {"Want-Digest": http.BOTH_DIGESTS}) as (stream, _, headers):
            if "content-length" not in headers:
                raise _length_required(url)
            found_bytes = http.body_length(headers) or 0
            if size_bytes not in (0, found_bytes):
                raise DataCorrupted(
                    "SOURCE_DIFFERS",
                    f"{url} has {found_bytes} bytes where {size_bytes} were expected; nothing was copied, use another "
                    "replica",
                )
            yield RemoteFile(found_bytes, http.parse_digests(headers), stream.take(found_bytes))

    @asynccontextmanager
    async def writing(self, subject: str, url: str, file: StoredFile) -> AsyncGenerator[Sink]:
        """Write it: the block sends the file's bytes. After the block the other server has them: it says so by a
        checksum, or they are read again. Raises the GridError of its refusal, Unavailable, DataCorrupted."""
        if url.startswith("gsiftp:"):
            credential = self._delegations.get(subject)
            async with self._gridftp.writing(url, credential) as running:
                yield running
        else:
            digest = http.digest_text(http.BOTH_DIGESTS, file.checksums)
            headers = {"Content-Length": str(file.size_bytes), "Digest": digest, "Expect": "100-continue"}
            async with self._asked(subject, "PUT", url, headers) as (stream, status, _):
                if status == 100:
                    yield stream
                    status, _ = await https_client.answer(stream, url)
                if not 200 <= status < 300:
                    raise Unavailable("PEER_FAILED", f"{url} answered with status {status} and did not take the file")
        await self._verify(subject, url, file)

    async def _verify(self, subject: str, url: str, file: StoredFile) -> None:
        claimed = Checksums("", "")
        if not url.startswith("gsiftp:"):
            async with self._asked(subject, "HEAD", url, {"Want-Digest": http.BOTH_DIGESTS}) as (_, _, headers):
                claimed = http.parse_digests(headers).checksums
        if claimed == Checksums("", ""):
            hasher = Hasher()
            async with self.reading(subject, url, file.size_bytes) as remote:
                async for piece in remote.arriving:
                    await asyncio.to_thread(hasher.update, piece)
            claimed = hasher.checksums()
        require_equal(f"{url} after the copy", file.size_bytes, file.checksums, claimed)

    async def remove(self, subject: str, url: str) -> None:
        """Delete it. Again: succeeds. Raises InvalidRequest(REMOVE_UNSUPPORTED) for GridFTP."""
        if url.startswith("gsiftp:"):
            raise InvalidRequest("REMOVE_UNSUPPORTED", f"{url} is removed by its own server's tools, not from here")
        try:
            async with self._asked(subject, "DELETE", url, {}):
                pass
        except NotFound:
            pass

    @asynccontextmanager
    async def _asked(
        self, subject: str, method: str, url: str, headers: dict[str, str]
    ) -> AsyncGenerator[tuple[HttpStream, int, Headers]]:
        """The connection to the server that answers, wherever others send us."""
        credential = self._delegations.get(subject)
        for _ in range(MAX_REDIRECTIONS):
            host, port, path = _parts(url)
            async with https_client.talking(await self._connections.tls(host, port, credential), url) as stream:
                named = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                await https_client.ask(stream, method, path, named, headers)
                status, found = await https_client.answer(stream, url)
                if status not in _REDIRECTIONS:
                    yield stream, status, found
                    return
            url = urljoin(url, found.get("location", ""))
        raise Unavailable(
            "PEER_FAILED", f"{MAX_REDIRECTIONS} servers in turn sent us on to {url[:200]}; ask its operators"
        )


def _length_required(url: str) -> InvalidRequest:
    return InvalidRequest(
        "LENGTH_REQUIRED", f"nobody says how long {url} is, and space is reserved before the first byte"
    )


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
