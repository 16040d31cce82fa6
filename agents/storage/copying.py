"""A third-party copy under way at its destination: what has come, at what speed, and whose fault an end is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from agents.storage.framing import Piece
from agents.storage.model import Announced, Checksums
from agents.storage.partial import Continuable
from agents.storage.surl import Surl
from agents.storage.third_party import RemoteFile
from fabric.errors import DataCorrupted, GridError, InvalidRequest, Unavailable

T = TypeVar("T")

MARKER_S = 1.0
"""Between two messages about a copy under way."""
RESUME_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Before each attempt to read on where a connection broke; together less than the silence that ends a put."""
LEAST_BYTES_PER_S = 256 << 10
"""Of a speed limit: below it a piece takes longer than a silence that ends a transfer."""


class Opened(Protocol):
    """A file of another server, to be read once, with what is known of the whole of it."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def checksums(self) -> Checksums | None: ...
    def pieces(self) -> AsyncGenerator[Any]:
        """Its bytes."""
        ...


class Resuming:
    """A file of another storage element that is read on at the byte where a connection broke: `reopen(offset)`. What is
    verified at the end is the whole."""

    def __init__(
        self,
        opened: Opened,
        reopen: Callable[[int], AbstractAsyncContextManager[Opened]],
        pauses_s: Sequence[float] = RESUME_PAUSES_S,
    ) -> None:
        self.size_bytes, self.checksums = opened.size_bytes, opened.checksums
        self._opened, self._reopen, self._pauses_s = opened, reopen, pauses_s
        self._known_bytes = 0

    def known(self, size_bytes: int) -> None:
        """So many more bytes of its beginning are not wanted. Before `pieces`."""
        self._known_bytes += size_bytes

    async def pieces(self) -> AsyncGenerator[Piece]:
        """The other bytes, once and in order. Raises what broke it when nothing more came after all pauses, and at once
        what would happen again; DataCorrupted(SOURCE_DIFFERS) if it has become another file."""
        offset, pauses = self._known_bytes, iter(self._pauses_s)
        if offset == self.size_bytes:
            return
        async with AsyncExitStack() as stack:
            opened: Opened | None = None if offset else self._opened
            while True:
                try:
                    if opened is None:
                        opened = await stack.enter_async_context(self._reopen(offset))
                        if (opened.size_bytes, opened.checksums) != (self.size_bytes, self.checksums):
                            raise DataCorrupted(
                                "SOURCE_DIFFERS",
                                f"the file was exchanged for another after {offset} bytes; copy it anew",
                            )
                    async for piece in opened.pieces():
                        offset += len(piece)
                        pauses = iter(self._pauses_s)
                        yield piece
                    return
                except (Unavailable, DataCorrupted) as error:
                    pause_s = next(pauses, None)
                    broken = isinstance(error, Unavailable) or error.reason == "STREAM_CUT"
                    if not broken or pause_s is None or offset >= self.size_bytes:
                        raise
                opened = None
                await asyncio.sleep(pause_s)


class ForeignFile:
    """A file of a server of others, which is to have the `expected` checksums, or those that the server claims."""

    def __init__(self, remote: RemoteFile, expected: Checksums | None) -> None:
        self._remote, self.checksums = remote, expected
        self.size_bytes = remote.size_bytes

    async def pieces(self) -> AsyncGenerator[Piece | Checksums]:
        """Its bytes, and at the end what the server said of them."""
        async for piece in self._remote.arriving:
            yield piece
        yield self._remote.claimed.checksums


class Leaving:
    """The bytes of a file on their way to another server, not faster than `max_bytes_per_s` (0: as fast as they go)."""

    def __init__(self, max_bytes_per_s: int) -> None:
        self._rate = max_bytes_per_s
        self.moved_bytes = 0

    def to(self, send: Callable[[memoryview], Awaitable[int]]) -> Callable[[Any], Awaitable[int]]:
        """`send` in that time."""
        clock = asyncio.get_running_loop().time
        began = clock()

        async def paced(data: Any) -> int:
            sent = await send(data)
            self.moved_bytes += sent
            if self._rate and (early_s := began + self.moved_bytes / self._rate - clock()) > 0:
                await asyncio.sleep(early_s)
            return sent

        return paced


class Arriving:
    """The bytes of a file of another storage element, not faster than `max_bytes_per_s` (0: as fast as they come)."""

    def __init__(self, opened: Opened, max_bytes_per_s: int) -> None:
        self._opened, self._rate = opened, max_bytes_per_s
        self.moved_bytes = 0
        """Of the whole file, with what was here before."""

    def source(self) -> AsyncIterator[Piece | Checksums] | Continuable:
        """What a put takes: this, if the file can be had from any byte on, else its pieces."""
        return self if isinstance(self._opened, Resuming) else self.pieces()

    def known(self, size_bytes: int) -> None:
        """See Continuable."""
        assert isinstance(self._opened, Resuming)
        self._opened.known(size_bytes)
        self.moved_bytes += size_bytes

    async def pieces(self) -> AsyncGenerator[Piece | Checksums]:
        """As those of the file. An error says that it is the source's."""
        clock = asyncio.get_running_loop().time
        began, known_bytes = clock(), self.moved_bytes
        try:
            async for piece in self._opened.pieces():
                if isinstance(piece, Checksums):
                    yield piece
                    continue
                self.moved_bytes += len(piece)
                yield piece
                came_bytes = self.moved_bytes - known_bytes
                if self._rate and (early_s := began + came_bytes / self._rate - clock()) > 0:
                    await asyncio.sleep(early_s)
        except GridError as error:
            raise at_source(error) from error


async def telling(work: Coroutine[Any, Any, T], tell: Callable[[], Awaitable[object]]) -> T:
    """The result of `work`; `tell` is called every MARKER_S meanwhile. The work ends with its caller."""
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait([task], timeout=MARKER_S))[0]:
            await tell()
    finally:
        task.cancel()
        await asyncio.wait([task])
    return task.result()


async def arriving_together(
    announced: Sequence[Announced],
    sources: Sequence[Surl],
    found: AsyncIterator[list[tuple[bytes, Checksums] | GridError]],
    max_bytes_per_s: int,
) -> AsyncGenerator[list[tuple[Announced, bytes] | GridError]]:
    """Small files of another storage element (`sources`), in the batches in which they are `found`, not faster than
    `max_bytes_per_s`; or why one cannot be copied. Errors say that they are the source's."""
    clock = asyncio.get_running_loop().time
    began, moved_bytes, waiting = clock(), 0, iter(zip(announced, sources, strict=True))
    try:
        async for batch in found:
            yield [_as_announced(*next(waiting), file) for file in batch]
            moved_bytes += sum(len(file[0]) for file in batch if isinstance(file, tuple))
            if max_bytes_per_s and (early_s := began + moved_bytes / max_bytes_per_s - clock()) > 0:
                await asyncio.sleep(early_s)
    except GridError as error:
        raise at_source(error) from error


def _as_announced(
    wanted: Announced, source: Surl, file: tuple[bytes, Checksums] | GridError
) -> tuple[Announced, bytes] | GridError:
    if isinstance(file, GridError):
        return at_source(file)
    data, checksums = file
    assert wanted.checksums is not None
    try:
        require_source(source, checksums, wanted.checksums)
    except GridError as error:
        return at_source(error)
    return replace(wanted, size_bytes=len(data)), data


def require_source(surl: object, found: Checksums, expected: Checksums) -> None:
    """Raises DataCorrupted(SOURCE_DIFFERS)."""
    if found != expected:
        raise DataCorrupted(
            "SOURCE_DIFFERS",
            f"{surl} has sha256 {found.sha256} and adler32 {found.adler32} where sha256 {expected.sha256} and adler32 "
            f"{expected.adler32} were expected; nothing was copied, use another replica",
            surl=surl,
        )


def check_rate(max_bytes_per_s: int) -> int:
    """Raises InvalidRequest(RATE_INVALID)."""
    if max_bytes_per_s and max_bytes_per_s < LEAST_BYTES_PER_S:
        raise InvalidRequest(
            "RATE_INVALID", f"a copy is not slowed down below {LEAST_BYTES_PER_S} bytes a second; ask for more, or 0"
        )
    return max_bytes_per_s


def at_source(error: GridError) -> GridError:
    """The same error with the fact that the source, not the destination, raised it."""
    return type(error)(error.reason, error.sentence, **{**error.facts, "side": "source"})
