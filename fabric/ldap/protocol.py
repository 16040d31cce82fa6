"""LDAP messages (RFC 4511 section 4) as frozen dataclasses, and to and from BER."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from fabric.ldap import ber
from fabric.ldap.ber import BerError, BerTooDeepError, Reader
from fabric.ldap.filters import (
    And,
    Approx,
    Equality,
    Extensible,
    Filter,
    GreaterOrEqual,
    LessOrEqual,
    Not,
    Or,
    Present,
    Substrings,
)

MAX_FILTER_DEPTH = 32
"""Levels of a filter taken from a peer; real ones have three or four."""

MAX_FILTER_ITEMS = 1024
"""Items of a filter taken from a peer: each is evaluated on every entry."""

MAX_ATTRIBUTES = 1024
"""Attribute names in one search request."""

MAX_KNOWN_BYTES = 1024
"""Longer lists of attribute names, and longer names of a base, are read each time."""

MAX_CONTROLS = 32
"""Controls on one request."""

MAX_MESSAGE_ID = 2**31 - 1


class ResultCode(enum.IntEnum):
    """The result codes of RFC 4511 section 4.1.9 that are sent or understood here."""

    SUCCESS = 0
    OPERATIONS_ERROR = 1
    PROTOCOL_ERROR = 2
    TIME_LIMIT_EXCEEDED = 3
    SIZE_LIMIT_EXCEEDED = 4
    COMPARE_FALSE = 5
    COMPARE_TRUE = 6
    AUTH_METHOD_NOT_SUPPORTED = 7
    REFERRAL = 10
    ADMIN_LIMIT_EXCEEDED = 11
    UNAVAILABLE_CRITICAL_EXTENSION = 12
    CONFIDENTIALITY_REQUIRED = 13
    NO_SUCH_ATTRIBUTE = 16
    UNDEFINED_ATTRIBUTE_TYPE = 17
    INAPPROPRIATE_MATCHING = 18
    NO_SUCH_OBJECT = 32
    INVALID_DN_SYNTAX = 34
    INAPPROPRIATE_AUTHENTICATION = 48
    INVALID_CREDENTIALS = 49
    INSUFFICIENT_ACCESS_RIGHTS = 50
    BUSY = 51
    UNAVAILABLE = 52
    UNWILLING_TO_PERFORM = 53
    OTHER = 80


OID_NOTICE_OF_DISCONNECTION = "1.3.6.1.4.1.1466.20036"
OID_START_TLS = "1.3.6.1.4.1.1466.20037"
OID_WHO_AM_I = "1.3.6.1.4.1.4203.1.11.3"
OID_PAGED_RESULTS = "1.2.840.113556.1.4.319"
OID_MANAGE_DSA_IT = "2.16.840.1.113730.3.4.2"

TAG_BIND_REQUEST = 0x60
TAG_BIND_RESPONSE = 0x61
TAG_UNBIND_REQUEST = 0x42
TAG_SEARCH_REQUEST = 0x63
TAG_SEARCH_ENTRY = 0x64
TAG_SEARCH_DONE = 0x65
TAG_SEARCH_REFERENCE = 0x73
TAG_MODIFY_REQUEST = 0x66
TAG_MODIFY_RESPONSE = 0x67
TAG_ADD_REQUEST = 0x68
TAG_ADD_RESPONSE = 0x69
TAG_DELETE_REQUEST = 0x4A
TAG_DELETE_RESPONSE = 0x6B
TAG_MODIFY_DN_REQUEST = 0x6C
TAG_MODIFY_DN_RESPONSE = 0x6D
TAG_COMPARE_REQUEST = 0x6E
TAG_COMPARE_RESPONSE = 0x6F
TAG_ABANDON_REQUEST = 0x50
TAG_EXTENDED_REQUEST = 0x77
TAG_EXTENDED_RESPONSE = 0x78

RESPONSE_TAG: Mapping[int, int] = {
    TAG_BIND_REQUEST: TAG_BIND_RESPONSE,
    TAG_SEARCH_REQUEST: TAG_SEARCH_DONE,
    TAG_MODIFY_REQUEST: TAG_MODIFY_RESPONSE,
    TAG_ADD_REQUEST: TAG_ADD_RESPONSE,
    TAG_DELETE_REQUEST: TAG_DELETE_RESPONSE,
    TAG_MODIFY_DN_REQUEST: TAG_MODIFY_DN_RESPONSE,
    TAG_COMPARE_REQUEST: TAG_COMPARE_RESPONSE,
    TAG_EXTENDED_REQUEST: TAG_EXTENDED_RESPONSE,
}
"""The tag that ends the answer to each request."""


class TooComplexError(BerError):
    """A well-formed request with more filter levels, filter items, names or controls than are taken."""


@dataclass(frozen=True, slots=True)
class Control:
    """A control on a message."""

    oid: str
    critical: bool = False
    value: bytes | None = None


@dataclass(frozen=True, slots=True)
class BindRequest:
    """Who the client is. ``mechanism`` None is a simple bind with ``credentials`` as the password."""

    name: str
    version: int = 3
    credentials: bytes = b""
    mechanism: str | None = None


@dataclass(frozen=True, slots=True)
class UnbindRequest:
    """The client says goodbye."""


class SearchRequest(NamedTuple):
    """A search."""

    base: str
    scope: int
    filter: Filter
    attributes: tuple[str, ...] = ()
    types_only: bool = False
    size_limit: int = 0
    time_limit_s: int = 0
    dereference: int = 0


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """Does this entry have this value?"""

    dn: str
    attribute: str
    value: str


@dataclass(frozen=True, slots=True)
class AbandonRequest:
    """Stop working on an earlier message."""

    message_id: int


@dataclass(frozen=True, slots=True)
class ExtendedRequest:
    """An extended operation."""

    oid: str
    value: bytes | None = None


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """A modify, add, delete or modify-DN request: only its kind and target are read, for the refusal."""

    tag: int
    dn: str


@dataclass(frozen=True, slots=True)
class SearchResultEntry:
    """One entry of an answer."""

    dn: str
    attributes: tuple[tuple[str, tuple[bytes, ...]], ...]


@dataclass(frozen=True, slots=True)
class SearchResultReference:
    """URLs where the search may be continued."""

    urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """The end of an answer; ``tag`` says to which kind of request."""

    tag: int
    code: int = ResultCode.SUCCESS
    message: str = ""
    matched: str = ""
    oid: str | None = None
    value: bytes | None = None
    referrals: tuple[str, ...] = ()
    """URLs of servers to ask instead (RFC 4511 section 4.1.10)."""


Operation = (
    BindRequest
    | UnbindRequest
    | SearchRequest
    | CompareRequest
    | AbandonRequest
    | ExtendedRequest
    | UpdateRequest
    | SearchResultEntry
    | SearchResultReference
    | Result
)


class Message(NamedTuple):
    """One LDAP message."""

    message_id: int
    operation: Operation
    controls: tuple[Control, ...] = ()


class Envelope(NamedTuple):
    """The outside of a message, so that a fault inside can be answered to the right request."""

    message_id: int
    tag: int
    body: Reader
    """Stands before the operation."""


def open_message(data: bytes) -> Envelope:
    """Read the outside of one whole message. Raises BerError."""
    outer = Reader(data)
    body = outer.enter(ber.SEQUENCE)
    outer.end()
    message_id = body.integer()
    if not 0 <= message_id <= MAX_MESSAGE_ID:
        raise BerError("the message id is out of range")
    tag = body.peek_tag()
    if tag is None:
        raise BerError("a message without an operation")
    return Envelope(message_id, tag, body)


def read_message(envelope: Envelope) -> Message:
    """Read the inside. Raises BerError, TooComplexError. Unknown operations are a BerError."""
    decode = _DECODERS.get(envelope.tag)
    if decode is None:
        raise BerError(f"no operation has tag 0x{envelope.tag:02x}")
    body = envelope.body
    try:
        operation = decode(body, envelope.tag)
        controls: tuple[Control, ...] = ()
        if not body.at_end():
            controls = _read_controls(body)
            body.end()
    except BerTooDeepError as error:
        raise TooComplexError(str(error)) from None
    return Message(envelope.message_id, operation, controls)


def decode_message(data: bytes) -> Message:
    """Both steps at once."""
    return read_message(open_message(data))


def _read_controls(body: Reader) -> tuple[Control, ...]:
    controls: list[Control] = []
    listing = body.enter(0xA0)
    while not listing.at_end():
        if len(controls) >= MAX_CONTROLS:
            raise TooComplexError(f"more than {MAX_CONTROLS} controls")
        item = listing.enter(ber.SEQUENCE)
        oid = item.text()
        critical = item.boolean() if item.peek_tag() == ber.BOOLEAN else False
        value = item.octets() if item.peek_tag() == ber.OCTET_STRING else None
        item.end()
        controls.append(Control(oid, critical, value))
    return tuple(controls)


def _read_bind(body: Reader, tag: int) -> BindRequest:
    reader = body.enter(tag)
    version = reader.integer()
    name = reader.text()
    if reader.peek_tag() == 0x80:
        credentials = reader.octets(0x80)
        reader.end()
        return BindRequest(name, version, credentials)
    sasl = reader.enter(0xA3)
    mechanism = sasl.text()
    credentials = b"" if sasl.at_end() else sasl.octets()
    sasl.end()
    reader.end()
    return BindRequest(name, version, credentials, mechanism)


def _read_unbind(body: Reader, tag: int) -> UnbindRequest:
    body.octets(tag)
    return UnbindRequest()


def _read_search(body: Reader, tag: int) -> SearchRequest:
    reader = body.enter(tag)
    head = reader.raw(6)
    known = _known_head(head) if len(head) <= MAX_KNOWN_BYTES else _read_head(head)
    node = _FilterReader().read(reader, MAX_FILTER_DEPTH)
    listing = reader.octets(ber.SEQUENCE)
    names = _known_names(listing) if len(listing) <= MAX_KNOWN_BYTES else _read_names(listing)
    reader.end()
    return SearchRequest(known.base, known.scope, node, names, known.types_only, *known[3:])


class _Head(NamedTuple):
    """What comes before the filter."""

    base: str
    scope: int
    types_only: bool
    size_limit: int
    time_limit_s: int
    dereference: int


def _read_head(head: bytes) -> _Head:
    reader = Reader(head)
    base = reader.text()
    scope = reader.integer(ber.ENUMERATED)
    dereference = reader.integer(ber.ENUMERATED)
    size_limit = reader.integer()
    time_limit = reader.integer()
    types_only = reader.boolean()
    if size_limit < 0 or time_limit < 0:
        raise BerError("a limit below zero")
    return _Head(base, scope, types_only, size_limit, time_limit, dereference)


def _read_names(listing: bytes) -> tuple[str, ...]:
    names: list[str] = []
    reader = Reader(listing)
    while not reader.at_end():
        if len(names) >= MAX_ATTRIBUTES:
            raise TooComplexError(f"more than {MAX_ATTRIBUTES} attribute names")
        names.append(reader.text())
    return tuple(names)


_known_head = lru_cache(maxsize=1024)(_read_head)
_known_names = lru_cache(maxsize=256)(_read_names)
"""Clients of one kind ask for the same attributes again and again."""


class _FilterReader:
    """Reads one filter, counting its items."""

    def __init__(self) -> None:
        self._items = 0

    def read(self, reader: Reader, depth: int) -> Filter:
        self._items += 1
        if self._items > MAX_FILTER_ITEMS:
            raise TooComplexError(f"a filter of more than {MAX_FILTER_ITEMS} items")
        if depth <= 0:
            raise TooComplexError(f"a filter of more than {MAX_FILTER_DEPTH} levels")
        tag = reader.peek_tag()
        if tag == 0xA3:
            return Equality(*reader.pair(tag))
        if tag == 0x87:
            return Present(reader.text(0x87))
        if tag in (0xA0, 0xA1):
            parts: list[Filter] = []
            inside = reader.enter(tag)
            while not inside.at_end():
                parts.append(self.read(inside, depth - 1))
            return And(tuple(parts)) if tag == 0xA0 else Or(tuple(parts))
        if tag == 0xA2:
            inside = reader.enter(tag)
            part = self.read(inside, depth - 1)
            inside.end()
            return Not(part)
        if tag == 0xA4:
            return self._substrings(reader.enter(tag))
        if tag == 0xA5:
            return GreaterOrEqual(*reader.pair(tag))
        if tag == 0xA6:
            return LessOrEqual(*reader.pair(tag))
        if tag == 0xA8:
            return Approx(*reader.pair(tag))
        if tag == 0xA9:
            return self._extensible(reader.enter(tag))
        raise BerError("an unknown kind of filter")

    @staticmethod
    def _substrings(inside: Reader) -> Substrings:
        attribute = inside.text()
        pieces = inside.enter(ber.SEQUENCE)
        inside.end()
        initial: str | None = None
        middle: list[str] = []
        final: str | None = None
        if pieces.at_end():
            raise BerError("a substring filter without substrings")
        while not pieces.at_end():
            kind = pieces.peek_tag()
            if final is not None:
                raise BerError("a substring after the final one")
            if kind == 0x80 and initial is None and not middle:
                initial = pieces.text(0x80)
            elif kind == 0x81:
                middle.append(pieces.text(0x81))
                if len(middle) > MAX_FILTER_ITEMS:
                    raise TooComplexError(f"more than {MAX_FILTER_ITEMS} substrings")
            elif kind == 0x82:
                final = pieces.text(0x82)
            else:
                raise BerError("substrings out of order")
        return Substrings(attribute, initial, tuple(middle), final)

    @staticmethod
    def _extensible(inside: Reader) -> Extensible:
        rule = inside.text(0x81) if inside.peek_tag() == 0x81 else None
        attribute = inside.text(0x82) if inside.peek_tag() == 0x82 else None
        value = inside.text(0x83)
        dn_attributes = inside.boolean(0x84) if inside.peek_tag() == 0x84 else False
        inside.end()
        return Extensible(rule, attribute, value, dn_attributes)


def _read_compare(body: Reader, tag: int) -> CompareRequest:
    reader = body.enter(tag)
    dn = reader.text()
    pair = reader.enter(ber.SEQUENCE)
    attribute, value = pair.text(), pair.text()
    pair.end()
    reader.end()
    return CompareRequest(dn, attribute, value)


def _read_abandon(body: Reader, tag: int) -> AbandonRequest:
    return AbandonRequest(body.integer(tag))


def _read_extended(body: Reader, tag: int) -> ExtendedRequest:
    reader = body.enter(tag)
    oid = reader.text(0x80)
    value = reader.octets(0x81) if reader.peek_tag() == 0x81 else None
    reader.end()
    return ExtendedRequest(oid, value)


def _read_update(body: Reader, tag: int) -> UpdateRequest:
    if tag == TAG_DELETE_REQUEST:
        return UpdateRequest(tag, body.text(tag))
    return UpdateRequest(tag, body.enter(tag).text())


def _read_entry(body: Reader, tag: int) -> SearchResultEntry:
    reader = body.enter(tag)
    dn = reader.text()
    attributes: list[tuple[str, tuple[bytes, ...]]] = []
    listing = reader.enter(ber.SEQUENCE)
    reader.end()
    while not listing.at_end():
        item = listing.enter(ber.SEQUENCE)
        name = item.text()
        inside = item.enter(ber.SET)
        item.end()
        values: list[bytes] = []
        while not inside.at_end():
            values.append(inside.octets())
        attributes.append((name, tuple(values)))
    return SearchResultEntry(dn, tuple(attributes))


def _read_reference(body: Reader, tag: int) -> SearchResultReference:
    reader = body.enter(tag)
    urls: list[str] = []
    while not reader.at_end():
        urls.append(reader.text())
    return SearchResultReference(tuple(urls))


def _read_result(body: Reader, tag: int) -> Result:
    reader = body.enter(tag)
    code = reader.integer(ber.ENUMERATED)
    matched = reader.text()
    message = reader.text()
    urls: list[str] = []
    if reader.peek_tag() == 0xA3:
        listing = reader.enter(0xA3)
        while not listing.at_end():
            urls.append(listing.text())
    oid: str | None = None
    value: bytes | None = None
    if tag == TAG_EXTENDED_RESPONSE:
        oid = reader.text(0x8A) if reader.peek_tag() == 0x8A else None
        value = reader.octets(0x8B) if reader.peek_tag() == 0x8B else None
    elif tag == TAG_BIND_RESPONSE and reader.peek_tag() == 0x87:
        value = reader.octets(0x87)
    reader.end()
    return Result(tag, code, message, matched, oid, value, tuple(urls))


_DECODERS: Mapping[int, Callable[[Reader, int], Operation]] = {
    TAG_BIND_REQUEST: _read_bind,
    TAG_UNBIND_REQUEST: _read_unbind,
    TAG_SEARCH_REQUEST: _read_search,
    TAG_COMPARE_REQUEST: _read_compare,
    TAG_ABANDON_REQUEST: _read_abandon,
    TAG_EXTENDED_REQUEST: _read_extended,
    TAG_MODIFY_REQUEST: _read_update,
    TAG_ADD_REQUEST: _read_update,
    TAG_DELETE_REQUEST: _read_update,
    TAG_MODIFY_DN_REQUEST: _read_update,
    TAG_SEARCH_ENTRY: _read_entry,
    TAG_SEARCH_REFERENCE: _read_reference,
    **{tag: _read_result for tag in RESPONSE_TAG.values()},
}


def encode_message(message: Message) -> bytes:
    """The bytes of a message."""
    controls = b""
    if message.controls:
        controls = ber.encode_sequence(*map(_encode_control, message.controls), tag=0xA0)
    return frame(ber.encode_integer(message.message_id), encode_operation(message.operation) + controls)


def frame(message_id: bytes, rest: bytes) -> bytes:
    """Put the outside around an encoded number, operation and controls."""
    return b"\x30" + ber.encode_length(len(message_id) + len(rest)) + message_id + rest


def encode_operation(operation: Operation) -> bytes:
    """The bytes of an operation without the message around it."""
    text, integer, sequence = ber.encode_text, ber.encode_integer, ber.encode_sequence
    match operation:
        case Result():
            return _encode_result(operation)
        case SearchResultEntry(dn, attributes):
            return sequence(
                text(dn),
                sequence(
                    *(
                        sequence(text(name), sequence(*map(ber.encode_octets, values), tag=ber.SET))
                        for name, values in attributes
                    )
                ),
                tag=TAG_SEARCH_ENTRY,
            )
        case SearchResultReference(urls):
            return sequence(*map(text, urls), tag=TAG_SEARCH_REFERENCE)
        case BindRequest(name, version, credentials, mechanism):
            if mechanism is None:
                choice = ber.encode_octets(credentials, 0x80)
            else:
                choice = sequence(text(mechanism), ber.encode_octets(credentials), tag=0xA3)
            return sequence(integer(version), text(name), choice, tag=TAG_BIND_REQUEST)
        case UnbindRequest():
            return bytes((TAG_UNBIND_REQUEST, 0))
        case SearchRequest():
            return sequence(
                text(operation.base),
                integer(operation.scope, ber.ENUMERATED),
                integer(operation.dereference, ber.ENUMERATED),
                integer(operation.size_limit),
                integer(operation.time_limit_s),
                ber.encode_boolean(operation.types_only),
                encode_filter(operation.filter),
                sequence(*map(text, operation.attributes)),
                tag=TAG_SEARCH_REQUEST,
            )
        case CompareRequest(dn, attribute, value):
            return sequence(text(dn), sequence(text(attribute), text(value)), tag=TAG_COMPARE_REQUEST)
        case AbandonRequest(message_id):
            return integer(message_id, TAG_ABANDON_REQUEST)
        case ExtendedRequest(oid, value):
            tail = b"" if value is None else ber.encode_octets(value, 0x81)
            return sequence(text(oid, 0x80), tail, tag=TAG_EXTENDED_REQUEST)
        case UpdateRequest(tag, dn):
            return text(dn, tag) if tag == TAG_DELETE_REQUEST else sequence(text(dn), tag=tag)


def _encode_result(result: Result) -> bytes:
    parts = [
        ber.encode_integer(result.code, ber.ENUMERATED),
        ber.encode_text(result.matched),
        ber.encode_text(result.message),
    ]
    if result.referrals:
        parts.append(ber.encode_sequence(*map(ber.encode_text, result.referrals), tag=0xA3))
    if result.tag == TAG_EXTENDED_RESPONSE:
        if result.oid is not None:
            parts.append(ber.encode_text(result.oid, 0x8A))
        if result.value is not None:
            parts.append(ber.encode_octets(result.value, 0x8B))
    return ber.encode_sequence(*parts, tag=result.tag)


SEARCH_DONE = _encode_result(Result(TAG_SEARCH_DONE))
"""The end of nearly every answer, encoded."""


def _encode_control(control: Control) -> bytes:
    parts = [ber.encode_text(control.oid)]
    if control.critical:
        parts.append(ber.encode_boolean(True))
    if control.value is not None:
        parts.append(ber.encode_octets(control.value))
    return ber.encode_sequence(*parts)


def encode_filter(node: Filter) -> bytes:
    """The bytes of a filter."""
    text, sequence = ber.encode_text, ber.encode_sequence
    match node:
        case And(parts):
            return sequence(*map(encode_filter, parts), tag=0xA0)
        case Or(parts):
            return sequence(*map(encode_filter, parts), tag=0xA1)
        case Not(part):
            return sequence(encode_filter(part), tag=0xA2)
        case Equality(attribute, value):
            return sequence(text(attribute), text(value), tag=0xA3)
        case Substrings(attribute, initial, middle, final):
            pieces = [] if initial is None else [text(initial, 0x80)]
            pieces.extend(text(piece, 0x81) for piece in middle)
            if final is not None:
                pieces.append(text(final, 0x82))
            return sequence(text(attribute), sequence(*pieces), tag=0xA4)
        case GreaterOrEqual(attribute, value):
            return sequence(text(attribute), text(value), tag=0xA5)
        case LessOrEqual(attribute, value):
            return sequence(text(attribute), text(value), tag=0xA6)
        case Present(attribute):
            return text(attribute, 0x87)
        case Approx(attribute, value):
            return sequence(text(attribute), text(value), tag=0xA8)
        case Extensible(rule, attribute, value, dn_attributes):
            parts = [] if rule is None else [text(rule, 0x81)]
            if attribute is not None:
                parts.append(text(attribute, 0x82))
            parts.append(text(value, 0x83))
            if dn_attributes:
                parts.append(ber.encode_boolean(True, 0x84))
            return sequence(*parts, tag=0xA9)


def encode_paged(size: int, cookie: bytes) -> bytes:
    """The value of a paged results control (RFC 2696)."""
    return ber.encode_sequence(ber.encode_integer(size), ber.encode_octets(cookie))


def decode_paged(value: bytes | None) -> tuple[int, bytes]:
    """Page size and cookie out of a paged results control. Raises BerError."""
    if value is None:
        raise BerError("a paged results control without a value")
    outer = Reader(value)
    inside = outer.enter(ber.SEQUENCE)
    outer.end()
    size, cookie = inside.integer(), inside.octets()
    inside.end()
    if size < 0:
        raise BerError("a page size below zero")
    return size, cookie
