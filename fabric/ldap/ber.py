"""BER as LDAP uses it (RFC 4511 section 5.1): definite lengths, one-byte tags, bounded.

The decoder never recurses on its own: nesting happens only where a caller asks to enter an
element, and every entry is counted against ``max_depth``.
"""

from __future__ import annotations

MAX_MESSAGE_BYTES = 1024 * 1024
"""Largest LDAP message taken from a peer: a search request is a few hundred bytes, a bind fewer."""

MAX_DEPTH = 64
"""Deepest nesting of elements: message, operation, and then the levels of a filter."""

MAX_INTEGER_OCTETS = 8
"""LDAP's own integers stay below 2**31; eight octets leave room for clients that pad."""

BOOLEAN = 0x01
INTEGER = 0x02
OCTET_STRING = 0x04
NULL = 0x05
ENUMERATED = 0x0A
SEQUENCE = 0x30
SET = 0x31


_AS_TEXT = ("utf-8", "surrogateescape")


class BerError(ValueError):
    """The bytes are not BER as RFC 4511 restricts it."""


class BerTooLargeError(BerError):
    """An element announces more bytes than the limit of this decoder."""


class BerTooDeepError(BerError):
    """Elements are nested deeper than the limit of this decoder."""


def encode_length(length: int) -> bytes:
    """The length octets, in the shortest form."""
    if length < 0x80:
        return bytes((length,))
    if length < 0x100:
        return bytes((0x81, length))
    if length < 0x10000:
        return bytes((0x82, length >> 8, length & 0xFF))
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((0x80 | len(octets),)) + octets


def encode_element(tag: int, content: bytes) -> bytes:
    """One element: tag, length, content."""
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    return bytes((tag,)) + encode_length(length) + content


def encode_sequence(*parts: bytes, tag: int = SEQUENCE) -> bytes:
    """A constructed element out of already encoded parts."""
    return encode_element(tag, b"".join(parts))


def encode_octets(value: bytes, tag: int = OCTET_STRING) -> bytes:
    """An OCTET STRING."""
    return encode_element(tag, value)


def encode_text(value: str, tag: int = OCTET_STRING) -> bytes:
    """An LDAPString; bytes that were not UTF-8 when decoded come out as they came in."""
    return encode_element(tag, value.encode("utf-8", "surrogateescape"))


def encode_integer(value: int, tag: int = INTEGER) -> bytes:
    """An INTEGER or ENUMERATED in the shortest two's complement form."""
    if 0 <= value < 0x80:
        return bytes((tag, 1, value))
    octets = value.to_bytes((value + (value < 0)).bit_length() // 8 + 1, "big", signed=True)
    return encode_element(tag, octets)


def encode_boolean(value: bool, tag: int = BOOLEAN) -> bytes:
    """A BOOLEAN; TRUE is 0xFF as RFC 4511 demands."""
    return bytes((tag, 1, 0xFF if value else 0x00))


def frame_length(data: bytes | bytearray, max_bytes: int = MAX_MESSAGE_BYTES) -> int | None:
    """How many bytes the message at the start of ``data`` has in all; None while its header is incomplete.

    Raises BerError if it can never become an LDAP message, BerTooLargeError if it is over ``max_bytes``.
    """
    if not data:
        return None
    if data[0] != SEQUENCE:
        raise BerError(f"a message starts with tag 0x30, not 0x{data[0]:02x}")
    if len(data) < 2:
        return None
    first = data[1]
    if first < 0x80:
        return 2 + first
    count = first & 0x7F
    if count == 0 or count > 4:
        raise BerError("only definite lengths of at most four octets are accepted")
    if len(data) < 2 + count:
        return None
    total = 2 + count + int.from_bytes(data[2 : 2 + count], "big")
    if total > max_bytes:
        raise BerTooLargeError(f"a message of {total} bytes is over the limit of {max_bytes}")
    return total


class Reader:
    """Reads elements one after another from ``data[position:end]``."""

    __slots__ = ("_data", "_depth", "_end", "_position")

    def __init__(self, data: bytes, position: int = 0, end: int | None = None, depth: int = MAX_DEPTH) -> None:
        self._data = data
        self._position = position
        self._end = len(data) if end is None else end
        self._depth = depth

    def at_end(self) -> bool:
        """True when every element has been read."""
        return self._position >= self._end

    def peek_tag(self) -> int | None:
        """The tag of the next element, None at the end."""
        return self._data[self._position] if self._position < self._end else None

    def element(self) -> tuple[int, int, int]:
        """Step over the next element; returns its tag and where its content starts and ends."""
        data, position, end = self._data, self._position, self._end
        if position + 2 > end:
            raise BerError("an element is cut short")
        tag = data[position]
        if tag & 0x1F == 0x1F:
            raise BerError("tags of more than one octet are not used by LDAP")
        length = data[position + 1]
        position += 2
        if length >= 0x80:
            count = length & 0x7F
            if count == 0 or count > 4:
                raise BerError("only definite lengths of at most four octets are accepted")
            if position + count > end:
                raise BerError("a length is cut short")
            length = int.from_bytes(data[position : position + count], "big")
            position += count
        stop = position + length
        if stop > end:
            raise BerError("an element is longer than what contains it")
        self._position = stop
        return tag, position, stop

    def expect(self, tag: int) -> tuple[int, int]:
        """Step over the next element, which must have this tag; returns where its content starts and ends."""
        data, position, end = self._data, self._position, self._end
        if position + 2 <= end and data[position] == tag and (length := data[position + 1]) < 0x80:
            position += 2  # short, as nearly every element of a request
            if position + length <= end:
                self._position = position + length
                return position, position + length
        found, start, stop = self.element()
        if found != tag:
            raise BerError(f"expected tag 0x{tag:02x}, found 0x{found:02x}")
        return start, stop

    def raw(self, count: int) -> bytes:
        """The next `count` elements as they are, their contents not looked at."""
        data, start, end = self._data, self._position, self._end
        for _ in range(count):
            position = self._position
            if position + 2 <= end and data[position] & 0x1F != 0x1F and (length := data[position + 1]) < 0x80:
                position += 2 + length  # short, as nearly every element of a request
                if position <= end:
                    self._position = position
                    continue
            self.element()
        return data[start : self._position]

    def pair(self, tag: int) -> tuple[str, str]:
        """The two LDAPStrings that are all of the next element."""
        inside = self.enter(tag)
        data, start, stop = inside._data, inside._position, inside._end
        if start + 4 <= stop and data[start] == OCTET_STRING and (first := data[start + 1]) < 0x80:
            middle = start + 2 + first
            if middle + 2 <= stop and data[middle] == OCTET_STRING and stop - middle - 2 == data[middle + 1] < 0x80:
                return data[start + 2 : middle].decode(*_AS_TEXT), data[middle + 2 : stop].decode(*_AS_TEXT)
        found = inside.text(), inside.text()
        inside.end()
        return found

    def octets(self, tag: int = OCTET_STRING) -> bytes:
        """The content of a primitive element."""
        start, stop = self.expect(tag)
        return self._data[start:stop]

    def text(self, tag: int = OCTET_STRING) -> str:
        """An LDAPString. Octets that are not UTF-8 become surrogates: the caller decides what that means."""
        start, stop = self.expect(tag)
        return self._data[start:stop].decode(*_AS_TEXT)

    def integer(self, tag: int = INTEGER) -> int:
        """An INTEGER or ENUMERATED."""
        start, stop = self.expect(tag)
        if not 0 < stop - start <= MAX_INTEGER_OCTETS:
            raise BerError("an integer has no octets or too many")
        return int.from_bytes(self._data[start:stop], "big", signed=True)

    def boolean(self, tag: int = BOOLEAN) -> bool:
        """A BOOLEAN; any octet but zero is taken as TRUE."""
        start, stop = self.expect(tag)
        if stop - start != 1:
            raise BerError("a boolean has exactly one octet")
        return self._data[start] != 0

    def enter(self, tag: int) -> Reader:
        """A reader for what is inside the next element, one level deeper."""
        if self._depth <= 0:
            raise BerTooDeepError("elements are nested too deeply")
        start, stop = self.expect(tag)
        return Reader(self._data, start, stop, self._depth - 1)

    def end(self) -> None:
        """Raises BerError if anything is left."""
        if self._position < self._end:
            raise BerError("bytes are left over after the last element")
