"""A small LDAP client: anonymous searches over one connection, paged, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType

from fabric.ldap import protocol as p
from fabric.ldap.ber import BerError, frame_length
from fabric.ldap.dn import parse_dn
from fabric.ldap.entry import Entry
from fabric.ldap.filter_text import parse_filter
from fabric.ldap.filters import ANY_ENTRY, Filter
from fabric.ldap.tree import Scope
from security.errors import os_error_text

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Largest single message taken from a server: one entry."""


class LdapError(Exception):
    """The server answered with a code other than success, or not at all (``code`` 52, unavailable)."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code = code
        self.sentence = sentence

    def __str__(self) -> str:
        return f"{self.sentence} (LDAP result {self.code})"


class LdapClient:
    """One connection; one operation at a time. Use as ``async with await LdapClient.connect(host, port) as client``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout_s: float) -> None:
        self._reader = reader
        self._writer = writer
        self._timeout_s = timeout_s
        self._buffer = bytearray()
        self._last_id = 0

    @classmethod
    async def connect(cls, host: str, port: int, *, timeout_s: float = 10.0) -> LdapClient:
        """Open the connection. ``timeout_s`` bounds this and later each single answer. Raises LdapError."""
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            why = f"no answer within {timeout_s:g} s" if isinstance(error, TimeoutError) else os_error_text(error)
            raise LdapError(p.ResultCode.UNAVAILABLE, f"no LDAP server answers at {host}:{port} ({why})") from None
        return cls(reader, writer, timeout_s)

    async def __aenter__(self) -> LdapClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Say goodbye and close."""
        self._writer.write(p.encode_message(p.Message(self._last_id + 1, p.UnbindRequest())))
        self._writer.close()
        try:
            await asyncio.wait_for(self._writer.wait_closed(), 1.0)
        except (OSError, TimeoutError):
            pass

    def send(self, operation: p.Operation, controls: tuple[p.Control, ...] = ()) -> int:
        """Send a request without waiting; returns its message id."""
        self._last_id += 1
        self._writer.write(p.encode_message(p.Message(self._last_id, operation, controls)))
        return self._last_id

    async def receive(self) -> p.Message:
        """The next message from the server. Raises LdapError on a notice of disconnection, silence or nonsense."""
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    length = frame_length(self._buffer, MAX_ANSWER_BYTES)
                    if length is not None and len(self._buffer) >= length:
                        break
                    data = await self._reader.read(256 * 1024)
                    if not data:
                        raise LdapError(p.ResultCode.UNAVAILABLE, "the LDAP server closed the connection")
                    self._buffer += data
            raw = bytes(self._buffer[:length])
            del self._buffer[:length]
            message = p.decode_message(raw)
        except TimeoutError:
            raise LdapError(p.ResultCode.UNAVAILABLE, f"no answer within {self._timeout_s:g} s") from None
        except OSError as error:
            raise LdapError(p.ResultCode.UNAVAILABLE, f"the connection broke ({os_error_text(error)})") from None
        except BerError as error:
            raise LdapError(p.ResultCode.PROTOCOL_ERROR, f"the answer is not LDAP: {error}") from None
        operation = message.operation
        if message.message_id == 0 and isinstance(operation, p.Result):
            raise LdapError(operation.code, operation.message or "the server ended the connection")
        return message

    async def search(
        self,
        base: str,
        filter: str | Filter = ANY_ENTRY,
        *,
        scope: Scope = Scope.SUBTREE,
        attributes: Sequence[str] = (),
        page_size: int = 1000,
    ) -> list[Entry]:
        """Every matching entry, fetched in pages. Raises LdapError, FilterSyntaxError."""
        node = parse_filter(filter) if isinstance(filter, str) else filter
        request = p.SearchRequest(base, scope, node, tuple(attributes))
        entries: list[Entry] = []
        if scope is Scope.BASE:  # one entry at most
            await self._page(self.send(request), entries)
            return entries
        cookie = b""
        while True:
            control = p.Control(p.OID_PAGED_RESULTS, False, p.encode_paged(page_size, cookie))
            message_id = self.send(request, (control,))
            cookie = await self._page(message_id, entries)
            if not cookie:
                return entries

    async def _page(self, message_id: int, entries: list[Entry]) -> bytes:
        while True:
            message = await self.receive()
            if message.message_id != message_id:
                continue
            operation = message.operation
            if isinstance(operation, p.SearchResultEntry):
                plain = {
                    name: tuple(value.decode("utf-8", "replace") for value in values)
                    for name, values in operation.attributes
                }
                entries.append(Entry(parse_dn(operation.dn), plain))
            elif isinstance(operation, p.Result):
                if operation.code != p.ResultCode.SUCCESS:
                    elsewhere = "".join(f"; ask {url}" for url in operation.referrals)
                    raise LdapError(operation.code, (operation.message or "the search was refused") + elsewhere)
                for control in message.controls:
                    if control.oid == p.OID_PAGED_RESULTS:
                        return p.decode_paged(control.value)[1]
                return b""
