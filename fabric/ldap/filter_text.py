"""Filters as text (RFC 4515): ``(&(objectClass=GlueCE)(GlueCEStateFreeJobSlots>=1))``."""

from __future__ import annotations

import re

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

MAX_FILTER_CHARACTERS = 64 * 1024
MAX_FILTER_DEPTH = 32

_DESCRIPTION = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9.;-]*\Z")
_EXTENSIBLE = re.compile(r"\A(?P<attribute>[A-Za-z0-9.;-]*)(?P<dn>:[dD][nN])?(?::(?P<rule>[A-Za-z0-9.-]+))?:\Z")
_ESCAPE = re.compile(rb"\\([0-9A-Fa-f]{2})?")


class FilterSyntaxError(ValueError):
    """The text is not a filter of RFC 4515; ``position`` counts characters from 0."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(f"{reason} at character {position}")
        self.reason = reason
        self.position = position

    def __reduce__(self) -> tuple[type[FilterSyntaxError], tuple[str, int]]:
        return type(self), (self.reason, self.position)


def parse_filter(text: str) -> Filter:
    """Read a filter. The outer parentheses may be left out around a single item, as ldapsearch allows."""
    if len(text) > MAX_FILTER_CHARACTERS:
        raise FilterSyntaxError(f"a filter of over {MAX_FILTER_CHARACTERS} characters", MAX_FILTER_CHARACTERS)
    stripped = text.strip()
    if not stripped.startswith("("):
        return _item(stripped, 0)
    node, position = _filter(stripped, 0, MAX_FILTER_DEPTH)
    if position != len(stripped):
        raise FilterSyntaxError("text after the filter", position)
    return node


def _filter(text: str, position: int, depth: int) -> tuple[Filter, int]:
    if depth <= 0:
        raise FilterSyntaxError(f"more than {MAX_FILTER_DEPTH} levels", position)
    if text[position : position + 1] != "(":
        raise FilterSyntaxError("expected '('", position)
    position += 1
    operator = text[position : position + 1]
    if operator in ("&", "|"):
        parts: list[Filter] = []
        position = _skip(text, position + 1)
        while text[position : position + 1] == "(":
            part, position = _filter(text, position, depth - 1)
            parts.append(part)
            position = _skip(text, position)
        node: Filter = And(tuple(parts)) if operator == "&" else Or(tuple(parts))
    elif operator == "!":
        part, position = _filter(text, _skip(text, position + 1), depth - 1)
        position = _skip(text, position)
        node = Not(part)
    else:
        end = text.find(")", position)
        if end < 0:
            raise FilterSyntaxError("expected ')'", len(text))
        node, position = _item(text[position:end], position), end
    if text[position : position + 1] != ")":
        raise FilterSyntaxError("expected ')'", position)
    return node, position + 1


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _item(text: str, position: int) -> Filter:
    equals = text.find("=")
    if equals <= 0:
        raise FilterSyntaxError("expected an attribute, an operator and a value", position)
    left, value = text[:equals].strip(), text[equals + 1 :]
    start = position + equals + 1
    if "(" in value:
        raise FilterSyntaxError("an unescaped '('", start + value.index("("))
    kind = left[-1:]
    if kind == ":":
        found = _EXTENSIBLE.match(left)
        if found is None or not (found["attribute"] or found["rule"]):
            raise FilterSyntaxError("a bad extensible match", position)
        return Extensible(found["rule"], found["attribute"] or None, _value(value, start), found["dn"] is not None)
    attribute = left[:-1].strip() if kind in ("<", ">", "~") else left
    if not _DESCRIPTION.match(attribute):
        raise FilterSyntaxError(f"not an attribute: {attribute!r}", position)
    if kind == ">":
        return GreaterOrEqual(attribute, _value(value, start))
    if kind == "<":
        return LessOrEqual(attribute, _value(value, start))
    if kind == "~":
        return Approx(attribute, _value(value, start))
    if value == "*":
        return Present(attribute)
    if "*" not in value:
        return Equality(attribute, _value(value, start))
    first, *middle, last = (_value(piece, start) for piece in value.split("*"))
    return Substrings(attribute, first or None, tuple(piece for piece in middle if piece), last or None)


def _value(text: str, position: int) -> str:
    if "\\" not in text:
        return text

    def octet(found: re.Match[bytes]) -> bytes:
        digits = found.group(1)
        if digits is None:
            raise FilterSyntaxError("'\\' is not followed by two hexadecimal digits", position)
        return bytes.fromhex(digits.decode())

    octets = _ESCAPE.sub(octet, text.encode("utf-8", "surrogateescape"))
    return octets.decode("utf-8", "surrogateescape")


def escape_filter_value(value: str) -> str:
    """A value made safe to put into a filter's text."""
    pieces: list[str] = []
    for octet in value.encode("utf-8", "surrogateescape"):
        if octet < 0x20 or octet > 0x7E or octet in b"*()\\":
            pieces.append(f"\\{octet:02x}")
        else:
            pieces.append(chr(octet))
    return "".join(pieces)


def format_filter(node: Filter) -> str:
    """The filter as text that ``parse_filter`` reads back."""
    match node:
        case And(parts):
            return "(&" + "".join(map(format_filter, parts)) + ")"
        case Or(parts):
            return "(|" + "".join(map(format_filter, parts)) + ")"
        case Not(part):
            return "(!" + format_filter(part) + ")"
        case Present(attribute):
            return f"({attribute}=*)"
        case Equality(attribute, value):
            return f"({attribute}={escape_filter_value(value)})"
        case GreaterOrEqual(attribute, value):
            return f"({attribute}>={escape_filter_value(value)})"
        case LessOrEqual(attribute, value):
            return f"({attribute}<={escape_filter_value(value)})"
        case Approx(attribute, value):
            return f"({attribute}~={escape_filter_value(value)})"
        case Substrings(attribute, initial, middle, final):
            pieces = [initial or "", *middle, final or ""]
            return f"({attribute}={'*'.join(map(escape_filter_value, pieces))})"
        case Extensible(rule, attribute, value, dn_attributes):
            name = f"{attribute or ''}{':dn' if dn_attributes else ''}{':' + rule if rule else ''}"
            return f"({name}:={escape_filter_value(value)})"
