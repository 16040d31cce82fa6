"""Calls to a storage element, for the `grid` command, for workers, and for storage elements among each other.

`channel` is always a secure channel to the storage element that the SURL names (`parse_surl` says which), in the name
of the user. Everything may be repeated: a put by giving the same `put_id` again.
"""

from __future__ import annotations

import asyncio
import os
import stat as stat_module
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from gridfabric.storage.v1 import storage_pb2 as pb
from gridfabric.storage.v1 import storage_pb2_grpc

from agents.storage import https_client, wire
from agents.storage.comparison import SETTLE_S, Difference, differences
from agents.storage.config import STRESS_GRID
from agents.storage.framing import Piece, get_call, put_data
from agents.storage.http_stream import chunk_head
from agents.storage.memory import keep_buffers
from agents.storage.model import (
    LARGE_BYTES,
    MAX_TOGETHER,
    MAX_TOGETHER_BYTES,
    PIECE_BYTES,
    SMALL_BYTES,
    Checksums,
    Reconciliation,
    Stray,
    require_equal,
)
from agents.storage.overlap import AHEAD_PIECES, Overlap
from agents.storage.pool import BatchReader, Hasher, PieceReader
from agents.storage.surl import Surl, parse_surl
from fabric.errors import (
    DataCorrupted,
    DeadlineExceeded,
    Exhausted,
    GridError,
    InvalidRequest,
    NotFound,
    Unavailable,
    from_verdict,
)
from fabric.rpc.calls import each_within
from fabric.tls_door import TlsClosed
from security.errors import os_error_text

__all__ = [
    "MAX_TOGETHER",
    "MAX_TOGETHER_BYTES",
    "SETTLE_S",
    "SMALL_BYTES",
    "STRESS_GRID",
    "Checksums",
    "Difference",
    "FileInfo",
    "NameEntry",
    "OpenFile",
    "PoolInfo",
    "Reconciliation",
    "ScrubStatus",
    "SmallCopy",
    "SmallFile",
    "Staging",
    "Stored",
    "Stray",
    "Surl",
    "Usage",
    "VoUsage",
    "add_pool",
    "bring_online",
    "checksums_of",
    "checksums_of_file",
    "copy",
    "copy_small",
    "copy_to",
    "differences",
    "drain_pool",
    "exists",
    "get_file",
    "get_small",
    "list_directory",
    "list_files",
    "list_page",
    "make_directory",
    "new_put_id",
    "open_file",
    "parse_surl",
    "pools",
    "put_file",
    "put_open_file",
    "put_small",
    "read_range",
    "read_small",
    "reconcile",
    "release",
    "release_space",
    "remove",
    "remove_directory",
    "remove_pool",
    "rename",
    "repair",
    "reserve_space",
    "scrub",
    "small_file",
    "space",
    "stat",
    "take_back",
]

T = TypeVar("T")
Progress = Callable[[int], None]
"""Told the bytes moved since the last call, on the event loop."""

COPY_TIMEOUT_S = 6 * 3600.0
"""Of one third-party copy; a copy that stalls is ended by the storage element much sooner."""
PATIENCE_S = 60.0
"""How long a transfer goes on trying when the storage element is busy or restarting."""
COPY_PATIENCE_S = 15.0
"""The same for a third-party copy: shorter, because its source may be what is away, and another replica at hand."""
STALL_S = 120.0
"""How long a transfer waits for the storage element to take or give a piece, twice what that waits for us."""
ANSWER_S = 600.0
"""How long for the answer after the last byte of a put: the disk may have to write."""
_RETRY_FIRST_S = 0.2
_RETRY_MAX_S = 5.0
_BUSY = frozenset({"TOO_MANY_TRANSFERS", "STORE_BUSY"})


@dataclass(frozen=True, slots=True)
class Stored:
    """A file that a storage element has acknowledged."""

    surl: str
    size_bytes: int
    checksums: Checksums


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file as listed."""

    surl: str
    vo: str
    size_bytes: int
    checksums: Checksums
    created_at_us: int
    owner: str
    name_hint: str
    damage: str = ""
    """FILE_DAMAGED or FILE_LOST; empty: intact as far as is known."""
    named: bool = False
    """It has a name at the storage element itself."""
    locality: str = ""
    """ONLINE, NEARLINE (on tape), ONLINE_AND_NEARLINE, LOST."""
    pinned_until_us: int = 0
    """It does not leave the disk before, as `stat` knows; 0: nobody has pinned it."""


@dataclass(frozen=True, slots=True)
class NameEntry:
    """A name in a directory of the storage element; `file` is None for a directory."""

    name: str
    created_at_us: int
    file: FileInfo | None


@dataclass(frozen=True, slots=True)
class Staging:
    """How it stands with a file that somebody wants on disk."""

    surl: str
    locality: str
    retry_after_s: int
    """Ask again then; 0: nothing is to be waited for."""
    ahead: int
    sentence: str


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """A pool, for operators. `answers`: its disk does."""

    path: str
    state: str
    files: int
    used_bytes: int
    free_bytes: int
    total_bytes: int
    answers: bool
    obstacle: str


@dataclass(frozen=True, slots=True)
class ScrubStatus:
    """The round under way, else the last one; times 0 where there is none. `examples` are the first damaged files."""

    began_at_us: int
    ended_at_us: int
    files: int
    size_bytes: int
    damaged: int
    examples: tuple[FileInfo, ...]


@dataclass(frozen=True, slots=True)
class VoUsage:
    """A VO's space. `quota_bytes` 0: no quota."""

    vo: str
    quota_bytes: int
    used_bytes: int
    reserved_bytes: int
    available_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Usage:
    """A storage element's space."""

    total_bytes: int
    free_bytes: int
    vos: tuple[VoUsage, ...]


def checksums_of_file(path: str | os.PathLike[str]) -> Checksums:
    """Of a local file, computed. Raises InvalidRequest(FILE_UNREADABLE)."""
    hasher = Hasher()
    try:
        with open(path, "rb") as file:
            while piece := file.read(PIECE_BYTES):
                hasher.update(piece)
    except OSError as error:
        raise _unreadable(str(path), error) from error
    return hasher.checksums()


def checksums_of(data: bytes) -> Checksums:
    """Of bytes in memory, computed."""
    hasher = Hasher()
    hasher.update(data)
    return hasher.checksums()


def new_put_id() -> str:
    """An id for one put and all its repetitions."""
    return uuid.uuid4().hex


async def put_file(
    channel: Any,
    path: str | os.PathLike[str],
    vo: str,
    *,
    name_hint: str = "",
    put_id: str | None = None,
    reservation: str = "",
    progress: Progress | None = None,
    patience_s: float = PATIENCE_S,
) -> Stored:
    """Upload a file, checksums computed on the way and compared by the receiver. While the storage element is busy or
    cannot be reached, tries again for `patience_s` under the same id. `reservation`: the id of space that was reserved.

    Raises GridError as the storage element did; InvalidRequest(FILE_UNREADABLE | FILE_CHANGED) for the local file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a named pipe must not block us
    except OSError as error:
        raise _unreadable(str(path), error) from error
    try:
        return await put_open_file(
            channel, descriptor, str(path), vo,
            name_hint=name_hint, put_id=put_id, reservation=reservation, progress=progress, patience_s=patience_s,
        )  # fmt: skip
    finally:
        await asyncio.shield(asyncio.to_thread(os.close, descriptor))


async def put_open_file(
    channel: Any,
    descriptor: int,
    name: str,
    vo: str,
    *,
    name_hint: str = "",
    put_id: str | None = None,
    reservation: str = "",
    progress: Progress | None = None,
    patience_s: float = PATIENCE_S,
) -> Stored:
    """As `put_file` for a file that is open for reading; `name` is for sentences. The caller closes it."""
    put_id = put_id or new_put_id()
    return await _patiently(
        lambda note: _put_once(channel, descriptor, name, vo, name_hint, put_id, reservation, note),
        progress,
        patience_s,
    )


async def _patiently(attempt: Callable[[Progress], Awaitable[T]], progress: Progress | None, patience_s: float) -> T:
    """What `attempt` returns. While the storage element is busy or away it is called again, for `patience_s`; the
    progress of an attempt that failed is taken back."""
    keep_buffers()
    clock = asyncio.get_running_loop().time
    until, pause_s = clock() + patience_s, _RETRY_FIRST_S
    while True:
        moved = 0

        def note(size_bytes: int) -> None:
            nonlocal moved
            moved += size_bytes
            if progress is not None:
                progress(size_bytes)

        try:
            return await attempt(note)
        except (Exhausted, Unavailable) as error:
            if isinstance(error, Exhausted) and error.reason not in _BUSY:
                raise
            if clock() + pause_s > until:
                raise
        if moved and progress is not None:
            progress(-moved)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _RETRY_MAX_S)


async def _put_once(
    channel: Any, descriptor: int, name: str, vo: str, name_hint: str, put_id: str, reservation: str, progress: Progress
) -> Stored:
    found = os.fstat(descriptor)
    if not stat_module.S_ISREG(found.st_mode):
        raise InvalidRequest("FILE_UNREADABLE", f"{name} is not a regular file; give a file")
    size_bytes = found.st_size
    header = pb.PutHeader(vo=vo, size_bytes=size_bytes, name_hint=name_hint, put_id=put_id, reservation=reservation)
    stub = storage_pb2_grpc.StorageStub(channel)
    if size_bytes >= LARGE_BYTES and (turl := (await stub.PrepareToPut(header)).turl):
        return await _put_by_https(channel, turl, descriptor, name, header, progress)
    hasher = Hasher()
    call = stub.Put()
    async with call:
        going = await call.send(pb.PutRequest(header=header))

        def message(piece: memoryview) -> tuple[bytes, int]:
            hasher.update(piece)
            return put_data(piece), len(piece)

        reader = PieceReader(descriptor, message)
        async with aclosing(_read_ahead(reader.read, name, size_bytes)) as messages:
            async for message, piece_bytes in messages:
                async with _deadline(STALL_S, f"the storage element took nothing of {name}"):
                    going = going and await call.send(message)
                if not going:
                    break
                progress(piece_bytes)
        sums = hasher.checksums()
        trailer = pb.PutTrailer(checksums=wire.checksums_to_wire(sums))
        async with _deadline(ANSWER_S, f"the storage element did not say that it has {name}"):
            if going and await call.send(pb.PutRequest(trailer=trailer)):
                await call.done_writing()
            answer = await call
    stored = Stored(answer.surl, answer.size_bytes, wire.checksums_from_wire(answer.checksums))
    require_equal(f"{name} at {stored.surl}", size_bytes, stored.checksums, sums)
    return stored


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A file to be put together with others, whole in memory."""

    data: bytes
    checksums: Checksums
    put_id: str
    name_hint: str = ""


def small_file(path: str | os.PathLike[str], put_id: str, name_hint: str = "") -> SmallFile:
    """A local file, read now. Raises InvalidRequest(FILE_UNREADABLE | FILE_LARGE)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb", buffering=0) as file:
            if not stat_module.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidRequest("FILE_UNREADABLE", f"{path} is not a regular file; give a file")
            data = file.read(SMALL_BYTES + 1)
    except OSError as error:
        raise _unreadable(str(path), error) from error
    if len(data) > SMALL_BYTES:
        raise InvalidRequest("FILE_LARGE", f"{path} grew beyond {SMALL_BYTES} bytes; put it alone when it is complete")
    return SmallFile(data, checksums_of(data), put_id, name_hint)


async def put_small(
    channel: Any, files: Sequence[SmallFile], vo: str, *, patience_s: float = PATIENCE_S
) -> list[Stored | GridError]:
    """Put files by one call, at most MAX_TOGETHER with MAX_TOGETHER_BYTES in all: what became of each, in order. What
    is kept is on the disk. Tries again as `put_file`; raises GridError only if nobody knows about any of them."""
    request = pb.PutManyRequest(
        files=[
            pb.SmallFile(
                header=pb.PutHeader(
                    vo=vo,
                    size_bytes=len(file.data),
                    name_hint=file.name_hint,
                    put_id=file.put_id,
                    checksums=wire.checksums_to_wire(file.checksums),
                ),
                data=file.data,
            )
            for file in files
        ]
    )
    stub = storage_pb2_grpc.StorageStub(channel)
    answer = await _patiently(lambda note: stub.PutMany(request, timeout=ANSWER_S), None, patience_s)
    if len(answer.verdicts) != len(files):
        raise Unavailable(
            "ANSWER_INCOMPLETE", f"{len(answer.verdicts)} verdicts came for {len(files)} files; try again"
        )
    return [
        from_verdict(verdict.error) or Stored(verdict.surl, len(file.data), file.checksums)
        for file, verdict in zip(files, answer.verdicts, strict=True)
    ]


async def get_small(
    channel: Any, surls: Sequence[str], *, patience_s: float = PATIENCE_S
) -> list[tuple[bytes, Checksums] | GridError]:
    """Read small files by as few calls as may be, at most MAX_TOGETHER: the bytes of each with its checksums, which are
    verified, or why it cannot be read."""
    async with aclosing(read_small(channel, surls, patience_s=patience_s)) as batches:
        return [file async for batch in batches for file in batch]


async def read_small(
    channel: Any, surls: Sequence[str], *, patience_s: float = PATIENCE_S
) -> AsyncGenerator[list[tuple[bytes, Checksums] | GridError]]:
    """As `get_small`, call by call: the next files, in order."""
    stub, rest = storage_pb2_grpc.StorageStub(channel), surls
    while rest:
        request = pb.GetManyRequest(surls=rest)
        answer = await _patiently(lambda note, r=request: stub.GetMany(r, timeout=STALL_S), None, patience_s)
        if not 0 < len(answer.files) <= len(rest):
            raise DataCorrupted("STREAM_CUT", f"the storage element said nothing about {rest[0]}; read another replica")
        yield [_verified(surl, file) for surl, file in zip(rest, answer.files, strict=False)]
        rest = rest[len(answer.files) :]


def _verified(surl: str, file: pb.GotFile) -> tuple[bytes, Checksums] | GridError:
    error = from_verdict(file.error)
    if error is not None:
        return error
    try:
        checksums = wire.checksums_from_wire(file.checksums)
        require_equal(surl, len(file.data), checksums_of(file.data), checksums)
    except GridError as refused:
        return refused
    return file.data, checksums


async def _put_by_https(
    channel: Any, turl: str, descriptor: int, name: str, header: pb.PutHeader, progress: Progress
) -> Stored:
    size_bytes, hasher = header.size_bytes, Hasher()
    async with https_client.connected(channel, turl) as (stream, host, path):
        headers = https_client.put_headers(size_bytes, header.put_id, header.name_hint, header.reservation)
        await https_client.ask(stream, "POST", path, host, headers)
        broken: TlsClosed | None = None
        try:
            await stream.write(chunk_head(size_bytes))
            reader = BatchReader(descriptor, hasher.update)
            async with aclosing(_read_ahead(reader.read, name, size_bytes)) as batches:
                async for rest in batches:
                    while rest:
                        async with _deadline(STALL_S, f"the storage element took nothing of {name}"):
                            sent = await stream.send(rest)
                        progress(sent)
                        rest = rest[sent:]
            await stream.write(https_client.end_of_put(hasher.checksums()))
        except TlsClosed as error:
            broken = error  # it may have refused, and said why
        async with _deadline(ANSWER_S, f"the storage element did not say that it has {name}"):
            try:
                file_id, checksums = await https_client.put_answer(stream, turl)
            except TlsClosed as error:
                raise broken or error from None
    sums = hasher.checksums()
    surl = str(Surl(*_door_of(channel), header.vo, file_id))
    require_equal(f"{name} at {surl}", size_bytes, checksums, sums)
    return Stored(surl, size_bytes, sums)


@asynccontextmanager
async def _deadline(limit_s: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError:
        raise DeadlineExceeded(
            "TRANSFER_STALLED", f"{what} for {limit_s:g} s; try again, or another storage element"
        ) from None


async def _read_ahead(read: Callable[[int, int], list[T]], name: str, size_bytes: int) -> AsyncGenerator[T, None]:
    """What `read` makes of the file, batch by batch; a thread is one batch ahead of what is sent."""

    def batch(offset: int) -> list[T]:
        try:
            return read(offset, min(AHEAD_PIECES * PIECE_BYTES, size_bytes - offset))
        except DataCorrupted as error:
            raise InvalidRequest(
                "FILE_CHANGED",
                f"{name} became shorter or unreadable while it was sent; send it again when it is complete",
            ) from error

    ahead: asyncio.Task[list[T]] | None = None
    offset = 0
    try:
        while ahead is not None or offset < size_bytes:
            made = await asyncio.shield(ahead) if ahead is not None else []
            ahead = None
            if offset < size_bytes:
                ahead = asyncio.create_task(asyncio.to_thread(batch, offset))
                offset += AHEAD_PIECES * PIECE_BYTES
            for each in made:
                yield each
    finally:
        if ahead is not None:
            await asyncio.wait([ahead])  # the thread reads from a descriptor that is about to be closed
            ahead.cancelled() or ahead.exception()


class OpenFile:
    """A download under way. `size_bytes` and `checksums` are of the whole file, whatever the range."""

    def __init__(
        self, arriving: AsyncIterator[Piece], surl: str, size_bytes: int, checksums: Checksums, expected_bytes: int
    ) -> None:
        self.surl = surl
        self.size_bytes = size_bytes
        self.checksums = checksums
        self._arriving = arriving
        self._expected_bytes = expected_bytes

    async def pieces(self) -> AsyncIterator[Piece]:
        """The bytes of the range, in order, once; a piece may be overwritten after `2 * AHEAD_PIECES` more. Raises
        DataCorrupted(STREAM_CUT) if not all come. Not verified here."""
        received = 0
        while (piece := await self._next()) is not None:
            received += len(piece)
            if received > self._expected_bytes:
                break
            yield piece
        if received != self._expected_bytes:
            raise DataCorrupted(
                "STREAM_CUT",
                f"{received} bytes of {self.surl} came where {self._expected_bytes} were due; read it again or "
                "elsewhere",
            )

    async def _next(self) -> Piece | None:
        async with _deadline(STALL_S, f"the storage element sent nothing of {self.surl}"):
            return await anext(self._arriving, None)


@asynccontextmanager
async def open_file(
    channel: Any, surl: str, offset: int = 0, length: int = 0, *, repairs: str = "", expected: Checksums | None = None
) -> AsyncIterator[OpenFile]:
    """Begin to read a range (length 0: to the end). A storage element in its own name says which replica it `repairs`
    and what is `expected`. Raises GridError as the storage element did."""
    request = pb.GetRequest(surl=surl, offset=offset, length=length, accept_turl=not repairs, repairs=repairs)
    if expected is not None:
        request.expected.CopyFrom(wire.checksums_to_wire(expected))
    call = get_call(channel)(request)
    try:
        responses = aiter(call)
        async with _deadline(STALL_S, f"the storage element said nothing about {surl}"):
            first = await anext(responses, None)
        if not isinstance(first, pb.GetResponse) or not first.HasField("checksums"):
            raise DataCorrupted("STREAM_CUT", f"the storage element said nothing about {surl}; read another replica")
        rest = first.size_bytes - offset
        due = min(length, rest) if length else rest
        by_https = bool(first.turl)
        arriving = https_client.read(channel, first.turl, offset, due) if by_https else _data_of(responses)
        async with aclosing(arriving):
            yield OpenFile(arriving, surl, first.size_bytes, wire.checksums_from_wire(first.checksums), due)
    finally:
        call.cancel()


async def _data_of(responses: AsyncIterator[Any]) -> AsyncGenerator[Piece, None]:
    async for response in responses:
        yield response if isinstance(response, memoryview) else response.data


async def get_file(
    channel: Any,
    surl: str,
    path: str | os.PathLike[str],
    *,
    expected: Checksums | None = None,
    progress: Progress | None = None,
    patience_s: float = 0.0,
    mode: int = 0o644,
    owner: tuple[int, int] | None = None,
) -> Stored:
    """Download a whole file. `path` is replaced in one step when every byte is there and both checksums agree, else
    nothing is left. `expected`: checksums by the catalogue, compared too. The file is made with `mode` and, if given,
    the `owner` (uid, gid).

    Raises GridError as the storage element did, DataCorrupted(CHECKSUM_MISMATCH | STREAM_CUT), InvalidRequest(
    FILE_UNWRITABLE) for the local file. While the storage element is busy or away, tries again for `patience_s`; the
    default is not to wait, because another replica may be at hand.
    """
    return await _patiently(
        lambda note: _get_once(channel, surl, Path(path), expected, mode, owner, note), progress, patience_s
    )


async def _get_once(
    channel: Any,
    surl: str,
    target: Path,
    expected: Checksums | None,
    mode: int,
    owner: tuple[int, int] | None,
    progress: Progress,
) -> Stored:
    partial = target.with_name(f".{target.name[:200]}.{uuid.uuid4().hex[:8]}.part")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        raise _unwritable(target, error) from error
    hasher = Hasher()

    def write(pieces: list[Piece]) -> int:
        size_bytes = 0
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(descriptor, view) :]
            hasher.update(piece)
            size_bytes += len(piece)
        return size_bytes

    running: list[asyncio.Future[int]] = []

    def consume(pieces: list[Piece]) -> asyncio.Future[int]:
        running[:] = [asyncio.ensure_future(asyncio.to_thread(write, pieces))]
        return running[0]

    overlap = Overlap(consume, progress)
    try:
        async with open_file(channel, surl) as opened:
            if expected is not None:
                require_equal(surl, opened.size_bytes, opened.checksums, expected)
            async for piece in opened.pieces():
                await overlap.add(piece)
            await overlap.drain()
        require_equal(surl, hasher.size_bytes, hasher.checksums(), opened.checksums)
        if owner is not None:
            os.fchown(descriptor, *owner)
        os.replace(partial, target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        overlap.abandon()
        if running and not running[0].done():
            await asyncio.wait(running)
        os.close(descriptor)
        partial.unlink(missing_ok=True)
    return Stored(surl, opened.size_bytes, opened.checksums)


async def read_range(channel: Any, surl: str, offset: int = 0, length: int = 0) -> bytes:
    """A part of a file, in memory. A part cannot be checked against the file's checksums; the connection protects
    it."""
    async with open_file(channel, surl, offset, length) as opened:
        return b"".join([bytes(piece) async for piece in opened.pieces()])


async def copy(
    channel: Any,
    source_surl: str,
    vo: str,
    *,
    expected: Checksums | None = None,
    put_id: str | None = None,
    name_hint: str = "",
    size_bytes: int = 0,
    progress: Progress | None = None,
    max_bytes_per_s: int = 0,
    timeout_s: float = COPY_TIMEOUT_S,
    patience_s: float = COPY_PATIENCE_S,
) -> Stored:
    """Third-party copy: the storage element behind `channel` fetches the file itself, not faster than
    `max_bytes_per_s`. `source_surl` may be a URL of a server of others; of a GridFTP server with the `size_bytes`. The
    user must have delegated a proxy to it before (`fabric.rpc.delegation.delegate`). While one of the two is busy or
    away, tries again for `patience_s`. Repeat with the same `put_id` to be sure of one copy. What the source refused
    has the fact `side`. Told of the progress about once a second, also of none."""
    request = pb.CopyFromRequest(
        source_surl=source_surl, vo=vo, put_id=put_id or new_put_id(), max_bytes_per_s=max_bytes_per_s,
        name_hint=name_hint,
        size_bytes=size_bytes,
    )  # fmt: skip
    if expected is not None:
        request.expected.CopyFrom(wire.checksums_to_wire(expected))
    return await _patiently(
        lambda note: _copy_once(channel, "CopyFrom", request, source_surl, note, timeout_s), progress, patience_s
    )


async def copy_to(
    channel: Any,
    surl: str,
    url: str,
    *,
    progress: Progress | None = None,
    max_bytes_per_s: int = 0,
    timeout_s: float = COPY_TIMEOUT_S,
) -> Stored:
    """Third-party copy: the storage element behind `channel` sends its file to a server of others (https, davs,
    gsiftp), where it is verified. As `copy`; what it has left there when it failed, `remove` removes. Only what the
    element itself refused has the fact `side`."""
    request = pb.CopyToRequest(surl=surl, url=url, max_bytes_per_s=max_bytes_per_s)
    return await _copy_once(channel, "CopyTo", request, surl, progress or (lambda size_bytes: None), timeout_s)


async def _copy_once(
    channel: Any, method: str, request: Any, surl: str, progress: Progress, timeout_s: float
) -> Stored:
    moved_bytes = 0
    async with getattr(storage_pb2_grpc.StorageStub(channel), method)(request, timeout=timeout_s) as call:
        silence = f"{channel.peer} said nothing of the copy of {surl} for {STALL_S:g} s; try again"
        async for answer in each_within(call, STALL_S, "TRANSFER_STALLED", silence):
            if answer.surl:
                return Stored(answer.surl, answer.size_bytes, wire.checksums_from_wire(answer.checksums))
            progress(answer.moved_bytes - moved_bytes)
            moved_bytes = answer.moved_bytes
    raise DataCorrupted("STREAM_CUT", f"{channel.peer} ended the copy of {surl} without a word; try again")


@dataclass(frozen=True, slots=True)
class SmallCopy:
    """A small file that is to be copied, as the catalogue knows it."""

    source_surl: str
    size_bytes: int
    checksums: Checksums
    put_id: str
    name_hint: str = ""


async def copy_small(
    channel: Any,
    files: Sequence[SmallCopy],
    vo: str,
    *,
    tell: Callable[[Sequence[Stored | GridError]], None] | None = None,
    max_bytes_per_s: int = 0,
    patience_s: float = COPY_PATIENCE_S,
) -> list[Stored | GridError]:
    """Third-party copies of small files of one other storage element by one call, at most MAX_TOGETHER: what became of
    each, in order; as `copy`. What is kept is on the disk. Raises GridError only if nobody knows about any of them.
    `tell` is called with the next ones when they are kept, and about once a second with none."""
    found: list[Stored | GridError] = []
    request = pb.CopyManyRequest(vo=vo, max_bytes_per_s=max_bytes_per_s)

    async def copy_rest(note: Progress) -> None:
        del request.files[:]
        request.files.extend(
            pb.SmallCopy(
                source_surl=file.source_surl,
                expected=wire.checksums_to_wire(file.checksums),
                put_id=file.put_id,
                name_hint=file.name_hint,
            )
            for file in files[len(found) :]
        )
        silence = f"{channel.peer} said nothing of the copies of {files[len(found)].source_surl} for {STALL_S:g} s"
        async with storage_pb2_grpc.StorageStub(channel).CopyMany(request, timeout=COPY_TIMEOUT_S) as call:
            async for answer in each_within(call, STALL_S, "TRANSFER_STALLED", f"{silence}; try again"):
                told = [
                    from_verdict(verdict.error) or Stored(verdict.surl, file.size_bytes, file.checksums)
                    for verdict, file in zip(answer.verdicts, files[len(found) :], strict=False)
                ]
                found.extend(told)
                if tell is not None:
                    tell(told)
        if len(found) < len(files):
            raise DataCorrupted("STREAM_CUT", f"{channel.peer} ended the copies without a word; try again")

    try:
        await _patiently(copy_rest, None, patience_s)
    except GridError as error:
        if not found:
            raise
        found += [error] * (len(files) - len(found))
    return found


async def stat(channel: Any, surl: str = "", *, path: str = "") -> FileInfo:
    """What the storage element knows about a file, by its SURL or by its `path` at the HTTPS door. Raises NotFound."""
    answer = await storage_pb2_grpc.StorageStub(channel).Stat(pb.StatRequest(surl=surl, path=path))
    return replace(_info(answer.file), pinned_until_us=answer.pinned_until_us)


async def bring_online(channel: Any, surls: Sequence[str], pin_s: float = 0.0, holder: str = "") -> list[Staging]:
    """Have files on disk, for `pin_s` from when they are there; at most 1 000, in the order asked. Ask again to see how
    it stands. `holder` names one of several wishes of the caller for a file, each to be released by itself. Raises
    NotFound, Refused, Exhausted(STAGE_QUEUE_FULL), Conflict(NO_TAPES)."""
    request = pb.BringOnlineRequest(surls=surls, pin_s=pin_s, holder=holder)
    answer = await storage_pb2_grpc.StorageStub(channel).BringOnline(request)
    return [Staging(each.surl, each.locality, each.retry_after_s, each.ahead, each.sentence) for each in answer.files]


async def release(channel: Any, surls: Sequence[str], holder: str = "") -> None:
    """The caller neither waits for these files nor pins them any more. Again: succeeds. Raises as `bring_online`."""
    await storage_pb2_grpc.StorageStub(channel).ReleaseFiles(pb.ReleaseFilesRequest(surls=surls, holder=holder))


async def repair(channel: Any, surl: str, source_surl: str, *, timeout_s: float = COPY_TIMEOUT_S) -> bool:
    """Have the storage element behind `channel` give its file `surl` the verified bytes of another replica; a proxy
    must have been delegated to it, as for `copy`. False if the file got other bytes meanwhile. Raises DataCorrupted if
    the other one is not a replica."""
    request = pb.RepairRequest(surl=surl, source_surl=source_surl)
    return bool((await storage_pb2_grpc.StorageStub(channel).Repair(request, timeout=timeout_s)).repaired)


async def pools(channel: Any) -> list[PoolInfo]:
    """The pools, for operators."""
    answer = await storage_pb2_grpc.StorageStub(channel).ListPools(pb.ListPoolsRequest())
    return [
        PoolInfo(
            pool.path, pool.state, pool.files, pool.used_bytes, pool.free_bytes, pool.total_bytes, pool.answers,
            pool.obstacle,
        )
        for pool in answer.pools
    ]  # fmt: skip


async def add_pool(channel: Any, path: str) -> str:
    """Take an empty directory of the element's host into use; its path as it is known there."""
    return str((await storage_pb2_grpc.StorageStub(channel).AddPool(pb.PoolRequest(path=path))).path)


async def drain_pool(channel: Any, path: str) -> None:
    """Begin to move a pool's files to the others. Again: nothing changes."""
    await storage_pb2_grpc.StorageStub(channel).DrainPool(pb.PoolRequest(path=path))


async def remove_pool(channel: Any, path: str) -> None:
    """Take a drained pool out. Again: succeeds."""
    await storage_pb2_grpc.StorageStub(channel).RemovePool(pb.PoolRequest(path=path))


async def scrub(channel: Any, *, now: bool = False) -> ScrubStatus:
    """How far the scrubber is; with `now` it begins a round if none is under way."""
    found = await storage_pb2_grpc.StorageStub(channel).Scrub(pb.ScrubRequest(now=now))
    return ScrubStatus(
        found.began_at_us, found.ended_at_us, found.files, found.size_bytes, found.damaged,
        tuple(_info(file) for file in found.examples),
    )  # fmt: skip


async def reconcile(channel: Any, *, now: bool = False) -> Reconciliation:
    """What the element found when it compared itself with the catalogue; with `now` it begins a round."""
    found = await storage_pb2_grpc.StorageStub(channel).Reconcile(pb.ReconcileRequest(now=now))
    return Reconciliation(
        found.began_at_us, found.ended_at_us, found.dark, found.lost, found.removed, found.obstacle,
        tuple(Stray(stray.surl, stray.vo, stray.kind, stray.since_us) for stray in found.examples),
    )  # fmt: skip


async def exists(channel: Any, surl: str) -> bool:
    """False only if the storage element says so."""
    try:
        await stat(channel, surl)
    except NotFound as error:
        if error.reason != "FILE_NOT_FOUND":
            raise
        return False
    return True


async def remove(channel: Any, surl: str) -> None:
    """Delete a file for good; with a URL of a server of others, there. Again: succeeds."""
    await storage_pb2_grpc.StorageStub(channel).Remove(pb.RemoveRequest(surl=surl))


async def reserve_space(
    channel: Any, reservation_id: str, vo: str, size_bytes: int, lifetime_s: float
) -> tuple[int, int]:
    """Hold space for puts of the VO that name this id; (bytes that no put has taken, end in us). Again: says what is
    left. Raises Exhausted(QUOTA_EXCEEDED | DISK_FULL | TOO_MANY_RESERVATIONS), InvalidRequest(RESERVATION_INVALID),
    Conflict(RESERVATION_TAKEN), Refused."""
    request = pb.ReserveSpaceRequest(id=reservation_id, vo=vo, size_bytes=size_bytes, lifetime_s=lifetime_s)
    answer = await storage_pb2_grpc.StorageStub(channel).ReserveSpace(request)
    return answer.size_bytes, answer.until_us


async def release_space(channel: Any, reservation_id: str, vo: str) -> None:
    """Give back what no put has taken. Again: succeeds."""
    await storage_pb2_grpc.StorageStub(channel).ReleaseSpace(pb.ReleaseSpaceRequest(id=reservation_id, vo=vo))


async def list_directory(channel: Any, path: str, page_size: int = 0) -> AsyncIterator[NameEntry]:
    """What lies in a directory of the storage element's own name space, in order of name. Paths are those of the HTTPS
    door, /<vo>/<name>, percent-encoded. Raises NotFound, Refused."""
    request = pb.ListDirectoryRequest(path=path, page_size=page_size)
    while True:
        answer = await storage_pb2_grpc.StorageStub(channel).ListDirectory(request)
        for entry in answer.entries:
            yield NameEntry(entry.name, entry.created_at_us, _info(entry.file) if entry.HasField("file") else None)
        if not answer.next:
            return
        request.after = answer.next


async def make_directory(channel: Any, path: str) -> None:
    """Raises AlreadyExists(NAME_EXISTS), Conflict(PARENT_MISSING), InvalidRequest(NAME_INVALID), Refused."""
    await storage_pb2_grpc.StorageStub(channel).MakeDirectory(pb.PathRequest(path=path))


async def remove_directory(channel: Any, path: str) -> None:
    """An empty one. Raises NotFound, Conflict(DIRECTORY_NOT_EMPTY), Refused."""
    await storage_pb2_grpc.StorageStub(channel).RemoveDirectory(pb.PathRequest(path=path))


async def rename(channel: Any, source: str, target: str, *, overwrite: bool = False) -> None:
    """Give a file, named by its path or as /<vo>/<id>, or a directory another name; no byte moves. Raises NotFound,
    Conflict(PRECONDITION_FAILED | NAME_TAKEN | PARENT_MISSING | MOVE_INTO_ITSELF), AlreadyExists, Refused."""
    request = pb.RenameRequest(source=source, target=target, overwrite=overwrite)
    await storage_pb2_grpc.StorageStub(channel).Rename(request)


async def take_back(channel: Any, put_id: str, vo: str) -> None:
    """End a put or copy of the caller's, or delete what it made. Again: succeeds."""
    await storage_pb2_grpc.StorageStub(channel).Remove(pb.RemoveRequest(put_id=put_id, vo=vo))


async def list_files(channel: Any, vo: str, page_size: int = 0, *, damaged: bool = False) -> AsyncIterator[FileInfo]:
    """Every file of the VO, page by page; or only those that are known to be damaged or lost."""
    token = ""
    while True:
        files, token = await list_page(channel, vo, token, page_size, damaged=damaged)
        for file in files:
            yield file
        if not token:
            return


async def list_page(
    channel: Any, vo: str, token: str = "", page_size: int = 0, *, damaged: bool = False
) -> tuple[list[FileInfo], str]:
    """A page of the VO's files in order of SURL, and where the next one begins (empty: this was the last)."""
    request = pb.ListRequest(vo=vo, page_size=page_size, page_token=token, damaged=damaged)
    answer = await storage_pb2_grpc.StorageStub(channel).List(request)
    return [_info(file) for file in answer.files], answer.next_page_token


async def space(channel: Any) -> Usage:
    """Disks and VOs."""
    answer = await storage_pb2_grpc.StorageStub(channel).Space(pb.SpaceRequest())
    vos = tuple(
        VoUsage(v.vo, v.quota_bytes, v.used_bytes, v.reserved_bytes, v.available_bytes, v.files) for v in answer.vos
    )
    return Usage(answer.total_bytes, answer.free_bytes, vos)


def _door_of(channel: Any) -> tuple[str, int]:
    """Host and port as SURLs have them."""
    host, _, port = channel.peer.rpartition(":")
    return (f"[{host}]" if ":" in host else host), int(port)


def _info(file: pb.FileInfo) -> FileInfo:
    return FileInfo(
        surl=file.surl,
        vo=file.vo,
        size_bytes=file.size_bytes,
        checksums=wire.checksums_from_wire(file.checksums),
        created_at_us=file.created_at_us,
        owner=file.owner,
        name_hint=file.name_hint,
        damage=file.damage,
        named=file.named,
        locality=file.locality,
    )


def _unreadable(path: str, error: OSError) -> InvalidRequest:
    return InvalidRequest(
        "FILE_UNREADABLE", f"{path} cannot be read ({os_error_text(error)}); give a file that you may read"
    )


def _unwritable(path: Path, error: OSError) -> InvalidRequest:
    return InvalidRequest("FILE_UNWRITABLE", f"{path} cannot be written ({os_error_text(error)}); choose another place")
