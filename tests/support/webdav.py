"""A client of the storage element's HTTPS door that may be as rude as a test needs it."""

from __future__ import annotations

import asyncio

from support.grid import LabGrid

from agents.storage.http_stream import HttpStream
from fabric.tls_door import TlsClosed, TlsStream, connect
from security.credentials import Credential


class Door:
    """One connection to the door, byte by byte."""

    def __init__(self, stream: TlsStream) -> None:
        self.stream = stream
        self.http = HttpStream(stream)

    @classmethod
    async def open(cls, lab: LabGrid, credential: Credential | None, name: str = "storage.CERN") -> Door:
        async with asyncio.timeout(60):
            return cls(await connect(credential, "127.0.0.1", lab.port(name, "http")))

    async def say(self, head: str, body: bytes = b"") -> None:
        await self.stream.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)

    async def answer(self, *, body: bool = True) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(60):
            head = await self.http.head()
            assert head is not None, "the door hung up"
            headers = dict(head[1])
            size = int(headers.get("content-length", 0)) if body else 0
            got = b"".join([bytes(piece) async for piece in self.http.take(size)])
        return int(head[0].split()[1]), headers, got

    async def ask(self, head: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        await self.say(head, body)
        return await self.answer(body=not head.startswith("HEAD"))

    async def copy(self, head: str) -> str:
        """The last line of the report of a third-party copy that has begun."""
        await self.say(head)
        text = b""
        async with asyncio.timeout(60):
            first = await self.http.head()
            assert first is not None and first[0].split()[1] == "202", first
            async for piece in self.http.take_chunks():
                text += piece if isinstance(piece, memoryview) else b""
        return text.decode().splitlines()[-1]

    async def hangs_up(self) -> bool:
        async with asyncio.timeout(60):
            try:
                while await self.stream.read():
                    pass
            except TlsClosed:
                pass
        return True
