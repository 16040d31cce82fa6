"""The HTTPS/WebDAV door: what `curl`, davix, gfal and our own clients say, turned into what the manager does.

A connection is a session: its client's chain is judged once, after the handshake, and again whenever trust, bans or
members change, as every session of this agent; a session that ends takes the connection with it. The first refusal of
a connection is an answer with the sentence, whatever was asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agents.storage import http_wire as http
from agents.storage.element import Pieces
from agents.storage.http_stream import HttpStream, chunk, last_chunk
from agents.storage.http_wire import Request, Target
from agents.storage.manager import StorageManager
from agents.storage.model import Announced, Checksums, Entry, StoredFile
from agents.storage.third_party import RemoteFile, ThirdParty
from fabric.errors import (
    DataCorrupted,
    Defect,
    GridError,
    InvalidRequest,
    Unauthenticated,
    from_security,
)
from fabric.ids import unique_id
from fabric.logs import Logger
from fabric.rpc.peer import Peer
from fabric.rpc.rules import administrator, any_of, user
from fabric.rpc.sessions import Session, SessionTable, streaming
from fabric.tls_door import TlsClosed, TlsStream
from security.errors import SecurityError
from security.validation import ChainInput

DOOR = "https"
THREADS = 16
"""They move bodies between sockets and memory, and come back when a peer keeps them waiting."""
HEAD_TIMEOUT_S = 10.0
"""For the first head of a connection, and for an answer's."""
IDLE_TIMEOUT_S = 60.0
"""Between two requests of one connection."""
MAX_UNREAD_BYTES = 1 << 20
"""Of a body that nobody wants: more is not read, and the client may see a broken connection instead of the answer."""
MAX_XML_BYTES = 64 * 1024
LIST_PAGE = 500
MARK_S = 5.0
"""Between two signs of life of a third-party copy."""
READ = any_of(user, administrator)
METHODS = ("OPTIONS", "GET", "HEAD", "PUT", "POST", "DELETE", "PROPFIND", "MKCOL", "MOVE", "COPY")

OpenSession = Callable[[ChainInput, str], Awaitable[Session]]


class Body:
    """The body of a request. What the client waits for (`100 Continue`) is said when the first byte is wanted."""

    def __init__(self, stream: HttpStream, request: Request) -> None:
        self._stream = stream
        self.length = http.body_length(request.headers)
        expect = request.get("expect").lower()
        if expect not in ("", "100-continue"):
            raise InvalidRequest("EXPECTATION_UNKNOWN", f"this door knows no expectation {expect[:40]!r}")
        self.awaited = bool(expect)
        self.read = self.length == 0
        """True once all of it has been read."""
        self.claimed = http.parse_digests(request.headers)

    async def pieces(self) -> Pieces:
        """As an upload: the bytes, then what the sender says of them in headers or trailers."""
        if self.awaited:
            self.awaited = False
            await self._stream.write(http.response_head(100, {}))
        md5 = Md5(self.claimed.md5)
        if self.length is None:
            async for piece in self._stream.take_chunks():
                if isinstance(piece, memoryview):
                    await md5.update(piece)
                    yield piece
                else:
                    self.claimed = http.parse_digests(piece) if "digest" in piece else self.claimed
        else:
            async for piece in self._stream.take(self.length):
                await md5.update(piece)
                yield piece
        self.read = True
        md5.verify()
        yield self.claimed.checksums


class Md5:
    """The checksum of senders that know no better one; computed only where one was announced."""

    def __init__(self, announced: bytes) -> None:
        self._announced = announced
        self._found = hashlib.md5(usedforsecurity=False) if announced else None

    async def update(self, piece: memoryview) -> None:
        """The next bytes."""
        if self._found is not None:
            await asyncio.to_thread(self._found.update, piece)

    def verify(self) -> None:
        """Raises DataCorrupted(CHECKSUM_MISMATCH)."""
        if self._found is not None and self._found.digest() != self._announced:
            raise DataCorrupted(
                "CHECKSUM_MISMATCH",
                "the body does not have the md5 that was announced; nothing was kept, send it again",
            )


class Call:
    """One request and its answer."""

    def __init__(self, stream: HttpStream, request: Request, peer: Peer) -> None:
        self.stream, self.request, self.peer = stream, request, peer
        self.body = Body(stream, request)
        self.begun = False
        """True once the head of the answer is out."""
        self.keep_alive = request.keep_alive

    async def begin(self, status: int, headers: dict[str, str]) -> None:
        """The head of the answer."""
        self.begun = True
        if not self.body.read:
            self.keep_alive = False  # what of the body is still to come would be taken for the next request
        if not self.keep_alive:
            headers = {**headers, "Connection": "close"}
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            await self.stream.write(http.response_head(status, headers))

    async def answer(self, status: int, headers: dict[str, str] | None = None, text: str = "") -> None:
        """The whole answer."""
        body = text.encode()
        headers = {"Content-Length": str(len(body)), **(headers or {})} if status != 204 else headers or {}
        await self.begin(status, headers)
        if body:
            async with asyncio.timeout(HEAD_TIMEOUT_S):
                await self.stream.write(body)

    async def forget_body(self) -> None:
        """A body that says nothing here, such as which properties are wanted: all are given."""
        size = 0
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            async for piece in self.body.pieces():
                size += len(piece) if isinstance(piece, memoryview) else 0
                if size > MAX_XML_BYTES:
                    raise InvalidRequest(
                        "BODY_NOT_UNDERSTOOD", f"{self.request.method} has no body of more than {MAX_XML_BYTES} bytes"
                    )


class WebDavDoor:
    """Serves one connection after another."""

    def __init__(
        self,
        manager: StorageManager,
        open_session: OpenSession,
        sessions: SessionTable,
        third_party: ThirdParty,
        *,
        site: str,
        log: Logger,
    ) -> None:
        self._manager, self._open_session, self._sessions = manager, open_session, sessions
        self._third_party, self._site, self._log = third_party, site, log
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="storage-door")

    async def close(self) -> None:
        """Wait for the threads."""
        await asyncio.to_thread(self._threads.shutdown)

    async def serve(self, tls: TlsStream) -> None:
        """One connection. Raises TlsClosed, OSError, TimeoutError."""
        stream = HttpStream(tls, self._threads)
        session: Session | None = None
        refused: GridError | None = None
        try:
            session = await self._session_of(tls)
        except GridError as error:
            refused = error
        try:
            with streaming(session) as opened:
                try:
                    timeout_s = HEAD_TIMEOUT_S
                    while await self._one(stream, session, refused, tls.peer, timeout_s):
                        timeout_s = IDLE_TIMEOUT_S
                except asyncio.CancelledError:
                    if opened.closed_because is None:
                        raise
                    # the session ended, and with it the connection: `_one` has said why, where it still could
        finally:
            if session is not None:
                self._sessions.close(session, Unauthenticated("SESSION_EXPIRED", "its connection was closed"))

    async def _session_of(self, tls: TlsStream) -> Session:
        chain = tls.require_chain("this storage element was asked without a certificate; use a grid proxy")
        return await self._open_session(chain, tls.peer.rpartition(":")[0])

    async def _one(
        self, stream: HttpStream, session: Session | None, refused: GridError | None, address: str, timeout_s: float
    ) -> bool:
        """One request; True if another may come."""
        call: Call | None = None
        method = ""
        peer = session.peer if session is not None else None
        try:
            try:
                async with asyncio.timeout(timeout_s):
                    head = await stream.head()
            except TimeoutError:
                return False
            if head is None:
                return False
            request = http.parse_request(*head)
            method = request.method
            if refused is not None or peer is None:
                raise refused or Unauthenticated("SESSION_MISSING", "no session")
            call = Call(stream, request, peer)
            await self._dispatch(call)
            return call.keep_alive
        except GridError as error:
            failure = error
        except SecurityError as error:
            failure = from_security(error)
        except asyncio.CancelledError:
            closed = session.closed_because if session is not None else None
            current = asyncio.current_task()
            if closed is None or current is None or call is None or call.begun:
                raise
            current.uncancel()
            failure = closed
        except (TlsClosed, OSError, TimeoutError):
            raise
        except Exception as error:
            incident = unique_id()
            self._log.exception("https.defect", error, method=method, incident=incident)
            failure = Defect(
                "DEFECT", f"{method} failed because of a defect; give the operators the incident id {incident}"
            )
        self._refused(peer, method, address, failure)
        if call is not None and call.begun:
            raise TlsClosed("the answer broke off")  # the client sees that it is not whole
        return await self._refuse(stream, call, method, failure)

    def _refused(self, peer: Peer | None, method: str, address: str, failure: GridError) -> None:
        self._log.audit(
            "call.refused",
            method=f"https {method}".strip(),
            peer=peer.subject if peer is not None else failure.facts.get("subject", ""),
            remote=address,
            session_id=peer.session_id if peer is not None else None,
            status=type(failure).status_name,
            reason=failure.reason,
            sentence=failure.sentence,
        )

    async def _refuse(self, stream: HttpStream, call: Call | None, method: str, failure: GridError) -> bool:
        status, headers, body = http.refusal(failure)
        again = call is not None and call.keep_alive and (call.body.read or call.body.awaited)
        headers["Content-Length"] = str(len(body))
        if status == 405:
            headers["Allow"] = ", ".join(METHODS)
        if not again:
            headers["Connection"] = "close"
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            await stream.write(http.response_head(status, headers) + (b"" if method == "HEAD" else body))
            if not again:
                await stream.finish()
                await stream.discard(MAX_UNREAD_BYTES)
        return again

    # -- methods -----------------------------------------------------------------------------------------------------

    async def _dispatch(self, call: Call) -> None:
        request = call.request
        refusal = READ.refusal(call.peer, self._site, request.method)
        if refusal is not None:
            raise refusal
        if request.method not in METHODS:
            raise InvalidRequest("METHOD_UNKNOWN", f"this door knows {', '.join(METHODS)}, and not {request.method}")
        if request.method == "OPTIONS":
            await call.forget_body()
            await call.answer(200, {"DAV": "1", "Allow": ", ".join(METHODS), "MS-Author-Via": "DAV"})
            return
        target = http.parse_target(request.target)
        if not target.vo and request.method != "PROPFIND":
            raise InvalidRequest("NAME_INVALID", "a path begins with the name of a VO: /<vo>/...")
        await getattr(self, f"_{request.method.lower()}")(call, target)

    async def _get(self, call: Call, target: Target) -> None:
        await call.forget_body()
        file = await self._file(call, target)
        headers = http.file_headers(file, call.request.get("want-digest"))
        offset, size_bytes, status = 0, file.size_bytes, 200
        asked = call.request.get("range")
        if asked and call.request.get("if-range") in ("", headers["ETag"]):
            part = http.parse_range(asked, file.size_bytes)
            if part is not None:
                offset, size_bytes, status = *part, 206
                headers["Content-Range"] = f"bytes {offset}-{offset + size_bytes - 1}/{file.size_bytes}"
        headers["Content-Length"] = str(size_bytes)
        await self._manager.send(
            call.peer, file, offset, size_bytes, call.stream.send, begin=lambda: call.begin(status, headers), door=DOOR
        )

    async def _head(self, call: Call, target: Target) -> None:
        await call.forget_body()
        entry = await self._manager.find(call.peer, target)
        if entry.file is None:
            await call.begin(200, {"Content-Type": "httpd/unix-directory", "Content-Length": "0"})
            return
        headers = http.file_headers(entry.file, call.request.get("want-digest"))
        await call.begin(200, {**headers, "Content-Length": str(entry.file.size_bytes)})

    async def _file(self, call: Call, target: Target) -> StoredFile:
        entry = await self._manager.find(call.peer, target)
        if entry.file is None:
            raise http.not_a_file(target)
        return entry.file

    async def _put(self, call: Call, target: Target) -> None:
        replaces = await self._manager.find_free(call.peer, target, never=call.request.get("if-none-match") == "*")
        file = await self._keep(call, target, replaces)
        await self._made(call, file, 204 if replaces else 201, target)

    async def _post(self, call: Call, target: Target) -> None:
        if target.path:
            raise InvalidRequest("METHOD_UNKNOWN", f"a file without a name is sent to /{target.vo}/ itself")
        file = await self._keep(call, target, "")
        await self._made(call, file, 201, Target(file.vo, (file.file_id,)))

    async def _keep(self, call: Call, target: Target, replaces: str) -> StoredFile:
        headers = call.request
        size_bytes = call.body.length if call.body.length is not None else http.announced_size(headers.headers)
        if size_bytes is None or (call.body.length is not None and "content-length" not in headers.headers):
            raise InvalidRequest(
                "LENGTH_REQUIRED",
                "space is reserved before the first byte: send Content-Length, or chunks and X-Expected-Entity-Length",
            )
        if headers.get("content-range"):
            raise InvalidRequest("BODY_NOT_UNDERSTOOD", "a file is sent as a whole; there is no Content-Range in a PUT")
        claimed = call.body.claimed.checksums
        announced = Announced(
            target.vo,
            size_bytes,
            headers.get("idempotency-key") or uuid.uuid4().hex,
            call.peer.subject,
            headers.get("slug") or http.href(target, directory=False),
            claimed if claimed != Checksums("", "") else None,
            target.path,
            replaces,
            headers.get("space-token"),
        )
        return await self._manager.put(call.peer, announced, call.body.pieces(), door=DOOR)

    async def _made(self, call: Call, file: StoredFile, status: int, target: Target) -> None:
        by_id = http.href(Target(file.vo, (file.file_id,)), directory=False)
        headers = {
            "ETag": f'"{file.file_id}"',
            "Digest": http.digest_text(http.BOTH_DIGESTS, file.checksums),
            "Content-Location": by_id,
        }
        if status == 201:
            headers["Location"] = http.href(target, directory=False)
        await call.answer(status, headers)

    async def _delete(self, call: Call, target: Target) -> None:
        await call.forget_body()
        entry = await self._manager.find(call.peer, target)
        if entry.file is None:
            await self._manager.remove_directory(call.peer, target)
        else:
            await self._manager.remove(call.peer, target.vo, entry.file.file_id)
        await call.answer(204)

    async def _mkcol(self, call: Call, target: Target) -> None:
        if not call.body.read:
            raise InvalidRequest("BODY_NOT_UNDERSTOOD", "MKCOL has no body here")
        await self._manager.make_directory(call.peer, target)
        await call.answer(201, {"Location": http.href(target, directory=True)})

    async def _move(self, call: Call, target: Target) -> None:
        await call.forget_body()
        to = http.parse_destination(call.request.get("destination"))
        replaces = await self._manager.find_free(call.peer, to, never=call.request.get("overwrite").upper() == "F")
        await self._manager.rename(call.peer, target, to, replaces)
        await call.answer(204 if replaces else 201, {"Location": http.href(to, directory=False)})

    async def _copy(self, call: Call, target: Target) -> None:
        """Third-party copy: `Source` pulls a file to this name, `Destination` pushes it from here. The answer begins at
        once and ends with `success` or `failure`, as the field's transfer services expect."""
        await call.forget_body()
        source, destination = call.request.get("source"), call.request.get("destination")
        if bool(source) == bool(destination):
            raise InvalidRequest(
                "COPY_UNKNOWN", "COPY has either a Source, to be copied here, or a Destination, to be copied to"
            )
        if source:
            replaces = await self._manager.find_free(
                call.peer, target, never=call.request.get("overwrite").upper() == "F"
            )
            async with self._third_party.reading(call.peer.subject, source) as remote:
                pulled = self._pull(call, target, replaces, source, remote)
                await self._report(call, pulled)
            return
        file = await self._file(call, target)
        await self._report(call, self._push(call, file, destination))

    async def _pull(self, call: Call, target: Target, replaces: str, source: str, remote: RemoteFile) -> None:
        async def pieces() -> Pieces:
            md5 = Md5(remote.claimed.md5)
            async for piece in remote.arriving:
                await md5.update(piece)
                yield piece
            md5.verify()
            yield remote.claimed.checksums

        announced = Announced(
            target.vo,
            remote.size_bytes,
            uuid.uuid4().hex,
            call.peer.subject,
            http.href(target, directory=False),
            path=target.path,
            replaces=replaces,
        )
        await self._manager.put(call.peer, announced, pieces(), door=DOOR, source=source)

    async def _push(self, call: Call, file: StoredFile, destination: str) -> None:
        async with self._third_party.writing(call.peer.subject, destination, file) as remote:
            await self._manager.send(call.peer, file, 0, file.size_bytes, remote.send, door=DOOR, target=destination)

    async def _report(self, call: Call, copying: Coroutine[Any, Any, None]) -> None:
        """A mark every few seconds, then how it ended."""
        copied = asyncio.create_task(copying)
        try:
            await call.begin(202, {"Content-Type": "text/perf-marker-stream", "Transfer-Encoding": "chunked"})
            while not (await asyncio.wait([copied], timeout=MARK_S))[0]:
                await self._write(call, f"Perf Marker\n    Timestamp: {int(time.time())}\nEnd\n")
            failure = await _failure_of(copied)
            if failure is not None:
                self._refused(call.peer, call.request.method, call.peer.address, failure)
            text = "success: Created\n" if failure is None else f"failure: {failure.sentence}\n"
            await self._write(call, text)
            await call.stream.write(last_chunk())
        finally:
            copied.cancel()
            await asyncio.wait([copied])

    async def _propfind(self, call: Call, target: Target) -> None:
        await call.forget_body()
        depth = call.request.get("depth") or "infinity"
        if depth not in ("0", "1"):
            raise InvalidRequest("DEPTH_INFINITE", "a listing has depth 0 or 1; ask for each directory by itself")
        if not target.vo:
            entries = [Entry(call.peer.vo, 0, None)] if call.peer.vo else []
            await self._multistatus(call, Entry("", 0, None), target, _as_page(entries if depth == "1" else []))
            return
        entry = await self._manager.find(call.peer, target)
        pages = self._pages(target) if depth == "1" and entry.file is None else _as_page([])
        await self._multistatus(call, entry, target, pages)

    async def _pages(self, target: Target) -> AsyncIterator[list[Entry]]:
        after = ""
        while page := await self._manager.element.entries(target.vo, target.path, after, LIST_PAGE):
            yield page
            after = page[-1].name

    async def _multistatus(self, call: Call, entry: Entry, target: Target, pages: AsyncIterator[list[Entry]]) -> None:
        own = http.href(target, directory=entry.file is None)
        head = http.MULTISTATUS_BEGIN + http.properties(own, entry.name, entry.created_at_us, entry.file)
        await call.begin(207, {"Content-Type": 'application/xml; charset="utf-8"', "Transfer-Encoding": "chunked"})
        await self._write(call, head)
        async for page in pages:
            await self._write(call, http.listing(target, page))
        await self._write(call, http.MULTISTATUS_END)
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            await call.stream.write(last_chunk())

    async def _write(self, call: Call, text: str) -> None:
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            await call.stream.write(chunk(text.encode()))


async def _failure_of(copied: asyncio.Task[None]) -> GridError | None:
    try:
        await copied
    except GridError as error:
        return error
    return None


async def _as_page(entries: list[Entry]) -> AsyncIterator[list[Entry]]:
    if entries:
        yield entries
