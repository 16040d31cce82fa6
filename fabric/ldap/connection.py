"""One client's connection: frames in, answers out, everything bounded.

Short searches are answered where the request is read, without a task; a long one goes on in a task
that gives way after every few hundred entries and waits while the client does not read.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from fabric.ldap import protocol as p
from fabric.ldap.ber import BerError, encode_integer, encode_length, frame_length
from fabric.ldap.dn import Dn, DnError, parse_dn
from fabric.ldap.entry import Entry
from fabric.ldap.external import ExternalFunction, ExternalRefusedError
from fabric.ldap.filters import ANY_ENTRY, Equality, compile_filter
from fabric.ldap.protocol import Control, ResultCode
from fabric.ldap.results import Selection, encode_entry
from fabric.ldap.tree import NoSuchEntryError, Scope

if TYPE_CHECKING:
    from fabric.ldap.server import LdapServer

FRAMES_PER_TURN = 32
"""Requests of one client answered before others have a turn."""

NO_LIMIT = sys.maxsize

FIRST_BYTES = 8 * 1024
"""What a search answers at once; with more it is a long one and takes turns with other long ones."""

SLICE_BYTES = 64 * 1024
"""Answers are handed to the socket in pieces of about this size."""


class Search:
    """One search under way; a paged one lives on between the client's requests for pages."""

    def __init__(
        self,
        items: Iterator[Entry | None] | AsyncIterator[Entry | None],
        selection: Selection,
        size_limit: int,
    ) -> None:
        self.items = items
        self.selection = selection
        self.size_limit = size_limit
        self.sent = 0
        self.ahead: Entry | None = None
        """Already taken from ``items``, belongs to the next page."""
        self.message_id = 0
        self.head = b""
        """The message id, encoded."""
        self.heads: dict[int, bytes] = {}
        """By the length of an entry: what comes before it."""
        self.page_size = 0
        self.in_page: int = 0
        self.deadline = 0.0
        self.code: ResultCode | None = None
        """Set when this request's part is over."""
        self.has_more = False

    def begin(self, message_id: int, page_size: int, deadline: float) -> None:
        """Start answering one request."""
        self.message_id, self.page_size, self.deadline = message_id, page_size, deadline
        self.head = encode_integer(message_id)
        self.heads = {}
        self.in_page = 0
        self.code = None
        self.has_more = False

    def take(self, items: Iterator[Entry | None], pieces: list[bytes], most_bytes: int = SLICE_BYTES) -> bool:
        """Append the messages for entries, about `most_bytes` of them; False if there may be more to take.

        Sets `code` when the limit or the end of the page comes first.
        """
        in_all = self.size_limit - self.sent if self.size_limit else NO_LIMIT
        room = min(in_all, self.page_size - self.in_page if self.page_size else NO_LIMIT)
        heads, selection = self.heads, self.selection
        taken = size = 0
        is_over = False
        if self.ahead is not None:
            items, self.ahead = itertools.chain((self.ahead,), items), None
        for entry in items:
            if entry is None:
                break
            if taken == room:
                is_over = True
                if taken == in_all:
                    self.code = ResultCode.SIZE_LIMIT_EXCEEDED
                else:
                    self.code, self.ahead, self.has_more = ResultCode.SUCCESS, entry, True
                break
            operation = encode_entry(entry, selection)
            length = len(operation)
            head = heads.get(length)
            if head is None:
                head = heads[length] = b"\x30" + encode_length(len(self.head) + length) + self.head
            pieces += (head, operation)
            taken += 1
            size += length
            if size >= most_bytes:
                break
        else:
            is_over = True
        self.sent += taken
        self.in_page += taken
        return is_over


class Connection(asyncio.Protocol):
    """See the module."""

    def __init__(self, server: LdapServer, tls: ssl.SSLContext | None = None) -> None:
        """With `tls` the handshake comes first (LDAPS)."""
        self._server = server
        self._tls_first = tls
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._held = False
        """True while a bind or StartTLS is under way: no request is read until it is done."""
        self._write_paused = False
        self._together: list[bytes] | None = None
        """Answers to requests that were read in one go leave in one go."""
        self._turn_scheduled = False
        self._reading_paused = False
        self._closing = False
        self._drained: asyncio.Event = asyncio.Event()
        self._drained.set()
        self._write_timer: asyncio.TimerHandle | None = None
        self._operations: dict[int, asyncio.Task[None]] = {}
        self._paged: dict[bytes, tuple[Search, p.SearchRequest]] = {}
        self._next_cookie = 0
        self.peer = "?"
        self.user = ""
        """The name bound as; empty is anonymous."""
        self.encrypted = False
        self.last_used = self._loop.time()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        address: tuple[str, int] | str | None = transport.get_extra_info("peername")
        self.peer = address[0] if address else "local"
        transport.set_write_buffer_limits(high=self._limits.write_buffer_bytes)
        refusal = self._server.admit(self)
        if refusal is not None:
            self.disconnect(ResultCode.BUSY, refusal)
        elif self._tls_first is not None:
            self._held = True
            self._start(0, p.TAG_EXTENDED_RESPONSE, self._start_tls(0, self._tls_first))

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._cancel_write_timer()
        for task in self._operations.values():
            task.cancel()
        self._operations.clear()
        self._paged.clear()
        self._drained.set()
        self._server.forget(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._buffer += data
        self._read_frames()

    def pause_writing(self) -> None:
        self._write_paused = True
        self._drained.clear()
        self._write_timer = self._loop.call_later(self._limits.write_s, self._give_up_slow_reader)
        self._adjust_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._cancel_write_timer()
        self._drained.set()
        self._schedule_turn()

    # -- reading

    def _read_frames(self) -> None:
        self._turn_scheduled = False
        buffer = self._buffer
        self._together = []
        for _ in range(FRAMES_PER_TURN):
            if self._closing or self._held or self._write_paused:
                break
            try:
                length = frame_length(buffer, self._limits.message_bytes)
            except BerError as error:
                self.disconnect(ResultCode.PROTOCOL_ERROR, str(error))
                break
            if length is None or len(buffer) < length:
                break
            data = bytes(buffer[:length])
            del buffer[:length]
            self.last_used = self._loop.time()
            under_way = len(self._operations)
            self._handle(data)
            if len(self._operations) > under_way:  # a long one, and more may follow: others first
                if buffer:
                    self._schedule_turn()
                break
        else:
            if buffer:
                self._schedule_turn()
        self._flush()
        self._adjust_reading()

    def _schedule_turn(self) -> None:
        if not self._turn_scheduled and not self._closing:
            self._turn_scheduled = True
            if self._operations:
                self._server.in_turn(self._read_frames)
            else:
                self._loop.call_soon(self._read_frames)

    def _adjust_reading(self) -> None:
        """Take no more bytes from the socket while requests wait."""
        pause = self._held or self._write_paused or self._turn_scheduled
        if self._transport is None or self._closing or pause == self._reading_paused:
            return
        self._reading_paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    @property
    def mid_message(self) -> bool:
        """True if a message has begun to arrive and is not whole."""
        return bool(self._buffer) and not (self._held or self._write_paused or self._turn_scheduled)

    @property
    def is_working(self) -> bool:
        """True while an operation is under way."""
        return bool(self._operations) or self._held

    # -- writing

    def _write(self, data: bytes) -> None:
        if self._transport is None or self._closing:
            return
        self._server.stats.bytes_sent += len(data)
        if self._together is None:
            self._transport.write(data)
            return
        self._together.append(data)
        if len(data) >= SLICE_BYTES:
            self._flush()
            self._together = []

    def _flush(self) -> None:
        together, self._together = self._together, None
        if together and self._transport is not None:
            self._transport.write(b"".join(together))

    def _answer(self, message_id: int, result: p.Result, controls: tuple[Control, ...] = ()) -> None:
        self._write(p.encode_message(p.Message(message_id, result, controls)))

    def disconnect(self, code: ResultCode, reason: str) -> None:
        """Send a notice of disconnection (RFC 4511 section 4.4.1) and close."""
        if self._closing:
            return
        self._server.event("ldap.disconnected", peer=self.peer, code=int(code), reason=reason)
        result = p.Result(p.TAG_EXTENDED_RESPONSE, code, reason, oid=p.OID_NOTICE_OF_DISCONNECTION)
        self._answer(0, result)
        self.close()

    def close(self) -> None:
        """Close after what is written has gone out, or at the write deadline."""
        if self._closing:
            return
        self._flush()
        self._closing = True
        for task in self._operations.values():
            task.cancel()
        if self._transport is not None:
            self._transport.close()
            if self._write_timer is None:
                self._write_timer = self._loop.call_later(self._limits.write_s, self.abort)

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def _give_up_slow_reader(self) -> None:
        self._server.event("ldap.slow_reader", peer=self.peer, after_s=self._limits.write_s)
        self.abort()

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # -- requests

    def _handle(self, data: bytes) -> None:
        try:
            envelope = p.open_message(data)
        except BerError as error:
            self.disconnect(ResultCode.PROTOCOL_ERROR, str(error))
            return
        response_tag = p.RESPONSE_TAG.get(envelope.tag)
        try:
            message = p.read_message(envelope)
        except p.TooComplexError as error:
            if response_tag is None:
                self.disconnect(ResultCode.ADMIN_LIMIT_EXCEEDED, str(error))
            else:
                result = p.Result(response_tag, ResultCode.ADMIN_LIMIT_EXCEEDED, str(error))
                self._answer(envelope.message_id, result)
            return
        except BerError as error:
            self.disconnect(ResultCode.PROTOCOL_ERROR, str(error))
            return
        self._server.stats.requests += 1
        try:
            self._dispatch(message, response_tag)
        except Exception as error:
            self._defect(message.message_id, response_tag, error)

    def _defect(self, message_id: int, response_tag: int | None, error: Exception) -> None:
        self._server.defect(self.peer, error)
        if response_tag is not None:
            self._answer(message_id, p.Result(response_tag, ResultCode.OTHER, "a defect of this server; it is logged"))

    def _dispatch(self, message: p.Message, response_tag: int | None) -> None:
        operation, message_id = message.operation, message.message_id
        if isinstance(operation, p.UnbindRequest):
            self.close()
            return
        if isinstance(operation, p.AbandonRequest):
            task = self._operations.pop(operation.message_id, None)
            if task is not None:
                task.cancel()
            return
        if response_tag is None:
            self.disconnect(ResultCode.PROTOCOL_ERROR, "a response where a request was expected")
            return
        if message_id == 0 or message_id in self._operations:
            self.disconnect(ResultCode.PROTOCOL_ERROR, f"message id {message_id} cannot be used now")
            return
        refused = self._unknown_critical(message.controls)
        if refused is not None:
            text = f"control {refused} is critical and not known here"
            self._answer(message_id, p.Result(response_tag, ResultCode.UNAVAILABLE_CRITICAL_EXTENSION, text))
            return
        if len(self._operations) >= self._limits.operations_per_connection:
            text = f"{len(self._operations)} operations are under way on this connection; wait for some to end"
            self._answer(message_id, p.Result(response_tag, ResultCode.BUSY, text))
            return
        match operation:
            case p.SearchRequest():
                self._search(message_id, operation, message.controls)
            case p.BindRequest():
                self._bind(message_id, operation)
            case p.CompareRequest():
                self._start(message_id, p.TAG_COMPARE_RESPONSE, self._compare(message_id, operation))
            case p.ExtendedRequest():
                self._extended(message_id, operation)
            case _:
                text = "this directory is read by LDAP and written by the grid's agents only"
                self._answer(message_id, p.Result(response_tag, ResultCode.UNWILLING_TO_PERFORM, text))

    @staticmethod
    def _unknown_critical(controls: tuple[Control, ...]) -> str | None:
        for control in controls:
            if control.critical and control.oid not in (p.OID_PAGED_RESULTS, p.OID_MANAGE_DSA_IT):
                return control.oid
        return None

    def _start(self, message_id: int, response_tag: int, work: Coroutine[Any, Any, None]) -> None:
        """Run an operation as a task under its message id. It may be given up before its first step."""

        def ended(task: asyncio.Task[None]) -> None:
            if self._operations.get(message_id) is task:
                del self._operations[message_id]
            error = None if task.cancelled() else task.exception()
            if isinstance(error, Exception):
                self._defect(message_id, response_tag, error)

        task = self._operations[message_id] = self._loop.create_task(work)
        task.add_done_callback(ended)

    # -- bind and extended operations

    def _bind(self, message_id: int, request: p.BindRequest) -> None:
        for task in self._operations.values():
            task.cancel()
        self._operations.clear()
        self.user = ""
        check = self._server.bind
        code, text = ResultCode.SUCCESS, ""
        if request.version != 3:
            code, text = ResultCode.PROTOCOL_ERROR, f"LDAP version {request.version} is not spoken here, only 3"
        elif request.mechanism is not None and (request.mechanism != "EXTERNAL" or self._server.external is None):
            code, text = ResultCode.AUTH_METHOD_NOT_SUPPORTED, f"SASL {request.mechanism[:64]!r} is not offered"
        elif request.mechanism is not None and not self.encrypted:
            code, text = ResultCode.CONFIDENTIALITY_REQUIRED, "EXTERNAL is who your certificate says; use StartTLS"
        elif request.mechanism is not None and self._server.external is not None:
            self._held = True
            self._start(
                message_id, p.TAG_BIND_RESPONSE, self._check_external(message_id, request, self._server.external)
            )
            return
        elif not request.name and not request.credentials:
            pass
        elif not request.credentials:
            code, text = ResultCode.UNWILLING_TO_PERFORM, "a name without a password is refused; bind anonymously"
        elif check is None:
            code, text = ResultCode.AUTH_METHOD_NOT_SUPPORTED, "passwords are not taken here; bind anonymously"
        elif not self.encrypted:
            code, text = ResultCode.CONFIDENTIALITY_REQUIRED, "passwords are taken over TLS only; use StartTLS"
        else:
            self._held = True
            self._start(message_id, p.TAG_BIND_RESPONSE, self._check_password(message_id, request, check))
            return
        self._answer(message_id, p.Result(p.TAG_BIND_RESPONSE, code, text))

    async def _check_password(
        self, message_id: int, request: p.BindRequest, check: Callable[[str, bytes], Awaitable[bool]]
    ) -> None:
        try:
            accepted = await check(request.name, request.credentials)
            self.user = request.name if accepted else ""
            code = ResultCode.SUCCESS if accepted else ResultCode.INVALID_CREDENTIALS
            self._answer(message_id, p.Result(p.TAG_BIND_RESPONSE, code, "" if accepted else "wrong name or password"))
        finally:
            self._release(message_id)

    async def _check_external(self, message_id: int, request: p.BindRequest, name_behind: ExternalFunction) -> None:
        assert self._transport is not None
        code, text = ResultCode.SUCCESS, ""
        try:
            name = await name_behind(self._transport.get_extra_info("ssl_object"))
            wanted = request.credentials.decode("utf-8", "replace")
            if wanted and (not wanted.startswith("dn:") or parse_dn(wanted[3:]) != parse_dn(name)):
                code, text = ResultCode.INVALID_CREDENTIALS, f"you are {name} and nobody else"
            else:
                self.user = name
        except DnError as error:
            code, text = ResultCode.INVALID_CREDENTIALS, str(error)
        except ExternalRefusedError as error:
            is_missing = error.missing
            code = ResultCode.INAPPROPRIATE_AUTHENTICATION if is_missing else ResultCode.INVALID_CREDENTIALS
            text = error.sentence
        finally:
            self._release(message_id)
        self._answer(message_id, p.Result(p.TAG_BIND_RESPONSE, code, text))

    def _release(self, message_id: int) -> None:
        """Read on. The id is free before the task is seen to have ended: the client may use it for its next request."""
        self._operations.pop(message_id, None)
        self._held = False
        self._schedule_turn()

    def _extended(self, message_id: int, request: p.ExtendedRequest) -> None:
        code, text, value = ResultCode.SUCCESS, "", None
        if request.oid == p.OID_WHO_AM_I:
            value = f"dn:{self.user}".encode() if self.user else b""
        elif request.oid != p.OID_START_TLS:
            code, text = ResultCode.PROTOCOL_ERROR, f"no extended operation {request.oid[:128]!r}"
        elif self.encrypted or self._operations:
            code, text = ResultCode.OPERATIONS_ERROR, "TLS is in place already, or an operation is under way"
        elif self._server.tls is None:
            code, text = ResultCode.UNAVAILABLE, "this server has no certificate for TLS"
        elif self._buffer:
            # Bytes sent before the handshake would be read as if TLS had protected them.
            self.disconnect(ResultCode.PROTOCOL_ERROR, "bytes after StartTLS before its answer")
            return
        else:
            self._answer(message_id, p.Result(p.TAG_EXTENDED_RESPONSE, oid=p.OID_START_TLS))
            self._held = True
            self._start(message_id, p.TAG_EXTENDED_RESPONSE, self._start_tls(message_id, self._server.tls))
            return
        self._answer(message_id, p.Result(p.TAG_EXTENDED_RESPONSE, code, text, value=value))

    async def _start_tls(self, message_id: int, context: ssl.SSLContext) -> None:
        assert self._transport is not None
        below = self._transport
        try:
            transport = await self._loop.start_tls(
                below, self, context, server_side=True, ssl_handshake_timeout=self._limits.handshake_s
            )
        except (OSError, ssl.SSLError) as error:
            self._server.event("ldap.tls_failed", peer=self.peer, reason=str(error))
            self._give_up_handshake()
            return
        except asyncio.CancelledError:
            self._give_up_handshake()
            raise
        if transport is None:
            self._give_up_handshake()
            return
        self._transport = transport
        transport.set_write_buffer_limits(high=self._limits.write_buffer_bytes)
        self.encrypted = True
        below.resume_reading()  # a request that came with the end of the handshake has paused it
        self._reading_paused = False
        self._release(message_id)

    def _give_up_handshake(self) -> None:
        """asyncio says `connection_lost` to nobody before a handshake has ended."""
        self.abort()
        self._cancel_write_timer()
        self._server.forget(self)

    # -- compare

    async def _compare(self, message_id: int, request: p.CompareRequest) -> None:
        code, text, matched = ResultCode.COMPARE_FALSE, "", ""
        try:
            base = parse_dn(request.dn)
            entry = await _first(self._server.find(base, Scope.BASE, ANY_ENTRY, 1))
            if entry is None:
                raise NoSuchEntryError(base, parse_dn(""))
            schema = self._server.schema
            if schema.lookup(request.attribute) is None:
                code = ResultCode.UNDEFINED_ATTRIBUTE_TYPE
            elif entry.get(schema.canonical(request.attribute)) is None:
                code = ResultCode.NO_SUCH_ATTRIBUTE
            elif compile_filter(Equality(request.attribute, request.value), schema)(entry) is True:
                code = ResultCode.COMPARE_TRUE
        except DnError as error:
            code, text = ResultCode.INVALID_DN_SYNTAX, str(error)
        except NoSuchEntryError as error:
            self._missing(message_id, p.TAG_COMPARE_RESPONSE, error)
            return
        self._answer(message_id, p.Result(p.TAG_COMPARE_RESPONSE, code, text, matched))

    def _missing(self, message_id: int, tag: int, error: NoSuchEntryError, scope: Scope | None = None) -> None:
        """There is no such entry here; somebody else may have it. As slapd does, also with ManageDsaIT: that control
        is about entries that are referrals, and there are none."""
        urls = self._server.referrals(error.dn, scope)
        code = ResultCode.REFERRAL if urls else ResultCode.NO_SUCH_OBJECT
        self._answer(message_id, p.Result(tag, code, str(error), str(error.matched), referrals=urls))

    # -- search

    def _search(self, message_id: int, request: p.SearchRequest, controls: tuple[Control, ...]) -> None:
        self._server.stats.searches += 1
        page_size, cookie = 0, b""
        for control in controls:
            if control.oid == p.OID_PAGED_RESULTS:
                try:
                    page_size, cookie = p.decode_paged(control.value)
                except BerError as error:
                    self._search_done(message_id, ResultCode.PROTOCOL_ERROR, str(error))
                    return
                if page_size == 0:
                    self._paged.pop(cookie, None)
                    self._search_done(message_id, ResultCode.SUCCESS, "", paged=True)
                    return
        try:
            search = self._resume(request, cookie) if cookie else self._open(request)
        except DnError as error:
            self._search_done(message_id, ResultCode.INVALID_DN_SYNTAX, str(error))
            return
        except NoSuchEntryError as error:
            self._missing(message_id, p.TAG_SEARCH_DONE, error, Scope(request.scope))
            return
        except ValueError as error:
            self._search_done(message_id, ResultCode.PROTOCOL_ERROR, str(error))
            return
        if search is None:
            text = "this cookie is not known (any more); start the paged search again"
            self._search_done(message_id, ResultCode.UNWILLING_TO_PERFORM, text, paged=True)
            return
        seconds = min(request.time_limit_s or self._limits.time_limit_s, self._limits.time_limit_s)
        search.begin(message_id, page_size, self._loop.time() + seconds)
        if isinstance(search.items, AsyncIterator):
            self._start(message_id, p.TAG_SEARCH_DONE, self._search_async(search, search.items, request))
        elif self._step(search, search.items, request, FIRST_BYTES):
            self._finish(search, request)
        else:
            self._start(message_id, p.TAG_SEARCH_DONE, self._search_on(search, search.items, request))

    def _open(self, request: p.SearchRequest) -> Search:
        base = parse_dn(request.base)
        scope = Scope(request.scope)
        server_limit = self._limits.size_limit
        limit = min(request.size_limit or server_limit, server_limit) if server_limit else request.size_limit
        items = self._server.find(base, scope, request.filter, limit + 1 if limit else None)
        selection = self._server.selection(request.attributes, request.types_only)
        return Search(items, selection, limit)

    def _resume(self, request: p.SearchRequest, cookie: bytes) -> Search | None:
        search, first = self._paged.pop(cookie, (None, None))
        if (
            search is None
            or first is None
            or (first.base, first.scope, first.filter, first.attributes)
            != (
                request.base,
                request.scope,
                request.filter,
                request.attributes,
            )
        ):
            return None
        return search

    def _step(
        self, search: Search, items: Iterator[Entry | None], request: p.SearchRequest, most_bytes: int = SLICE_BYTES
    ) -> bool:
        """Send one slice; True when this request's part is over."""
        pieces: list[bytes] = []
        try:
            if not search.take(items, pieces, most_bytes):
                return False
            if search.code is None:
                search.code = ResultCode.SUCCESS
            return True
        except NoSuchEntryError as error:
            search.code = ResultCode.NO_SUCH_OBJECT
            self._missing(search.message_id, p.TAG_SEARCH_DONE, error, Scope(request.scope))
            return True
        finally:
            if pieces:
                self._server.stats.entries_sent += len(pieces) // 2
                self._write(b"".join(pieces))

    async def _search_on(self, search: Search, items: Iterator[Entry | None], request: p.SearchRequest) -> None:
        while True:
            await self._drained.wait()
            await self._server.turn()
            if self._closing:
                return
            if self._loop.time() > search.deadline:
                search.code = ResultCode.TIME_LIMIT_EXCEEDED
                break
            if self._step(search, items, request):
                break
        self._finish(search, request)

    async def _search_async(self, search: Search, items: AsyncIterator[Entry | None], request: p.SearchRequest) -> None:
        entry, search.ahead = search.ahead, None
        try:
            async with asyncio.timeout_at(search.deadline):
                while search.code is None:
                    if entry is not None:
                        pieces: list[bytes] = []
                        search.take(iter((entry,)), pieces)
                        if search.code is not None:
                            break
                        self._server.stats.entries_sent += 1
                        self._write(b"".join(pieces))
                        await self._drained.wait()
                    entry = await anext(items, _END)
                    if entry is _END:
                        search.code = ResultCode.SUCCESS
        except TimeoutError:
            search.code = ResultCode.TIME_LIMIT_EXCEEDED
        except NoSuchEntryError as error:
            search.code = ResultCode.NO_SUCH_OBJECT
            self._missing(search.message_id, p.TAG_SEARCH_DONE, error, Scope(request.scope))
        self._finish(search, request)

    def _finish(self, search: Search, request: p.SearchRequest) -> None:
        code = search.code
        if code is None or code is ResultCode.NO_SUCH_OBJECT:
            return
        if code is ResultCode.SUCCESS and not search.page_size:
            self._write(p.frame(search.head, p.SEARCH_DONE))
            return
        cookie = b""
        if search.has_more:
            self._next_cookie += 1
            cookie = self._next_cookie.to_bytes(8, "big")
            while len(self._paged) >= self._limits.paged_searches:
                del self._paged[next(iter(self._paged))]
            self._paged[cookie] = (search, request)
        text = {
            ResultCode.SIZE_LIMIT_EXCEEDED: f"there is more than the {search.size_limit} entries asked for or allowed",
            ResultCode.TIME_LIMIT_EXCEEDED: "the time for this search is over",
        }.get(code, "")
        self._search_done(search.message_id, code, text, paged=search.page_size > 0, cookie=cookie)

    def _search_done(
        self, message_id: int, code: ResultCode, text: str, *, paged: bool = False, cookie: bytes = b""
    ) -> None:
        controls = (Control(p.OID_PAGED_RESULTS, False, p.encode_paged(0, cookie)),) if paged else ()
        self._answer(message_id, p.Result(p.TAG_SEARCH_DONE, code, text), controls)


_END = Entry(Dn(()), {})
"""Stands for the end of an iterator."""


async def _first(items: Iterator[Entry | None] | AsyncIterator[Entry | None]) -> Entry | None:
    if isinstance(items, AsyncIterator):
        async for item in items:
            if item is not None:
                return item
        return None
    for item in items:
        if item is not None:
            return item
    return None
