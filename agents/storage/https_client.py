"""Large files by the HTTPS door of a storage element, for its client: the same values and errors as over gRPC."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from agents.storage import http_wire as http
from agents.storage.http_stream import CHUNK_END, Headers, HttpStream, last_chunk
from agents.storage.model import Checksums
from fabric.errors import DataCorrupted, Unavailable
from fabric.tls_door import TlsClosed, TlsStream

_TURL = re.compile(
    r"https://(?P<address>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})(?P<path>/[a-z0-9._/-]*)\Z"
)


@asynccontextmanager
async def connected(channel: Any, turl: str) -> AsyncGenerator[tuple[HttpStream, str, str]]:
    """A connection to the door that the storage element behind `channel` has named: (stream, Host, path). Raises
    Unavailable where the connection cannot be made, or breaks inside the block."""
    match = _TURL.match(turl)
    if match is None:
        raise DataCorrupted("TURL_INVALID", f"{turl[:200]!r} is not a TURL; the storage element has a defect")
    async with talking(await channel.tls(int(match["port"])), turl) as stream:
        yield stream, f"{match['address']}:{match['port']}", match["path"]


@asynccontextmanager
async def talking(tls: TlsStream, url: str) -> AsyncGenerator[HttpStream]:
    """HTTP over a connection, closed after the block. Raises Unavailable where it breaks inside the block."""
    stream = HttpStream(tls)
    try:
        yield stream
    except TlsClosed as error:
        raise Unavailable("SERVER_UNREACHABLE", f"{url} hung up ({error}); try again") from error
    finally:
        stream.close()


async def answer(stream: HttpStream, where: str) -> tuple[int, Headers]:
    """The head of an answer that is not a refusal. Raises the GridError of one that is; DataCorrupted(STREAM_CUT)."""
    head = await stream.head()
    if head is None:
        raise TlsClosed("no answer")
    match = re.match(r"HTTP/1\.[01] ([0-9]{3})\b", head[0])
    if match is None:
        raise DataCorrupted("STREAM_CUT", f"{where} did not answer in HTTP; read it elsewhere")
    status = int(match[1])
    if status >= 400:
        raise http.error_of(status, head[1], where)
    return status, head[1]


async def ask(stream: HttpStream, method: str, path: str, host: str, headers: dict[str, str]) -> None:
    """The head of a request."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    await stream.write(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode("latin-1"))


async def read(channel: Any, turl: str, offset: int, size_bytes: int) -> AsyncGenerator[memoryview, None]:
    """The bytes of a range, in order. Raises GridError as the storage element did, DataCorrupted(STREAM_CUT)."""
    async with connected(channel, turl) as (stream, host, path):
        await ask(stream, "GET", path, host, {"Range": f"bytes={offset}-{offset + size_bytes - 1}"})
        _, headers = await answer(stream, turl)
        if headers.get("content-length") != str(size_bytes):
            raise DataCorrupted(
                "STREAM_CUT",
                f"{turl} would give {headers.get('content-length')} bytes where {size_bytes} were due; read it again "
                "or elsewhere",
            )
        async for piece in stream.take(size_bytes):
            yield piece


def put_headers(size_bytes: int, put_id: str, name_hint: str, reservation: str) -> dict[str, str]:
    """Of a POST whose checksums follow the body."""
    hint = "".join(c for c in name_hint if c.isascii() and c.isprintable())
    return {
        "Transfer-Encoding": "chunked",
        "X-Expected-Entity-Length": str(size_bytes),
        "Idempotency-Key": put_id,
        "Trailer": "Digest",
        **({"Slug": hint} if hint else {}),
        **({"Space-Token": reservation} if reservation else {}),
    }


def end_of_put(checksums: Checksums) -> bytes:
    """What follows the bytes: the last chunk, with the checksums."""
    return CHUNK_END + last_chunk({"Digest": http.digest_text(http.BOTH_DIGESTS, checksums)})


async def put_answer(stream: HttpStream, turl: str) -> tuple[str, Checksums]:
    """(id of the file, checksums there). Raises the GridError of a refusal."""
    _, headers = await answer(stream, turl)
    file_id = headers.get("location", "").rpartition("/")[2]
    return file_id, http.parse_digests(headers).checksums
