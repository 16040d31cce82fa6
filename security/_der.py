"""The few lines of DER (X.690) that RFC 3820 and VOMS extensions need and `cryptography` does not read. Strict,
bounded."""

from __future__ import annotations

from dataclasses import dataclass

INTEGER = 0x02
OCTET_STRING = 0x04
OBJECT_IDENTIFIER = 0x06
SEQUENCE = 0x30

MAX_ELEMENTS = 4096
"""Elements of one sequence."""


class DerError(ValueError):
    """Not DER, or not what was expected."""


@dataclass(frozen=True)
class Element:
    """One tag-length-value. `encoded` is the whole of it, `content` the value."""

    tag: int
    content: bytes
    encoded: bytes


def read_element(data: bytes, position: int = 0) -> tuple[Element, int]:
    """The element at `position` and the position after it. Raises DerError."""
    if position + 2 > len(data):
        raise DerError("truncated element")
    tag = data[position]
    if tag & 0x1F == 0x1F:
        raise DerError("multi-byte tags are not used here")
    length = data[position + 1]
    start = position + 2
    if length >= 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4 or start + count > len(data):
            raise DerError("bad length")
        length = int.from_bytes(data[start : start + count], "big")
        if length < 0x80 or (count > 1 and data[start] == 0):
            raise DerError("length is not in its shortest form")
        start += count
    end = start + length
    if end > len(data):
        raise DerError("truncated element")
    return Element(tag, data[start:end], data[position:end]), end


def read_all(data: bytes) -> list[Element]:
    """Every element of `data` (the content of a sequence). Raises DerError."""
    elements: list[Element] = []
    position = 0
    while position < len(data):
        element, position = read_element(data, position)
        elements.append(element)
        if len(elements) > MAX_ELEMENTS:
            raise DerError("too many elements")
    return elements


def read_single(data: bytes, tag: int) -> Element:
    """The one element that `data` consists of. Raises DerError if it has another tag or something follows."""
    element, end = read_element(data)
    if element.tag != tag or end != len(data):
        raise DerError(f"expected one element of tag {tag:#x}")
    return element


def integer(content: bytes) -> int:
    """The value of an INTEGER. Raises DerError for an encoding that is not minimal."""
    if not content or len(content) > 64:
        raise DerError("bad integer length")
    if len(content) > 1 and (content[0], content[1] >> 7) in ((0, 0), (0xFF, 1)):
        raise DerError("integer is not in its shortest form")
    return int.from_bytes(content, "big", signed=True)


def object_identifier(content: bytes) -> str:
    """The dotted string of an OBJECT IDENTIFIER. Raises DerError."""
    if not content or len(content) > 128 or content[-1] & 0x80:
        raise DerError("bad object identifier")
    arcs: list[int] = []
    value = 0
    fresh = True
    for byte in content:
        if fresh and byte == 0x80:
            raise DerError("object identifier arc is not in its shortest form")
        value = value << 7 | byte & 0x7F
        fresh = not byte & 0x80
        if fresh:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(str(arc) for arc in (first, arcs[0] - 40 * first, *arcs[1:]))


def encode(tag: int, content: bytes) -> bytes:
    """One element."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    raw = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(raw))) + raw + content


def encode_integer(value: int) -> bytes:
    """A non-negative INTEGER."""
    return encode(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def encode_object_identifier(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER."""
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    content = bytearray()
    for arc in (40 * first + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        content += bytes(reversed(groups))
    return encode(OBJECT_IDENTIFIER, bytes(content))
