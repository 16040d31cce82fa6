"""Turning entries into SearchResultEntry bytes, with what was asked for (RFC 4511 section 4.5.1.8)."""

from __future__ import annotations

from functools import lru_cache

from fabric.ldap import ber
from fabric.ldap.entry import Entry
from fabric.ldap.protocol import TAG_SEARCH_ENTRY
from fabric.ldap.schema import Schema

_EMPTY_SET = ber.encode_element(ber.SET, b"")
_SHORT = tuple(bytes((ber.OCTET_STRING, length)) for length in range(0x80))
"""Tag and length of a short OCTET STRING: nearly every value is one, and this is the hottest place of all."""

MAX_KEPT_SELECTIONS = 2
"""Attribute selections whose bytes are kept with an entry: brokers and infosites ask the same again and again."""


class Selection:
    """Which attributes a client wants: ``*``, ``+``, ``1.1``, names in any case; nothing means ``*``."""

    __slots__ = ("all_operational", "all_user", "is_kept", "is_plain", "names", "types_only")

    def __init__(self, names: tuple[str, ...], schema: Schema, *, types_only: bool = False) -> None:
        self.all_user = not names or "*" in names
        self.all_operational = "+" in names
        wanted = (schema.canonical(name) for name in names if name not in ("*", "+", "1.1"))
        self.names = tuple(dict.fromkeys(wanted))
        self.types_only = types_only
        self.is_kept = not self.all_user and not self.all_operational
        """True if the bytes of an entry are kept for the next one who asks with this very object."""
        self.is_plain = self.all_user and not self.all_operational and not self.names and not types_only
        """True for the common case, whose bytes are kept with the entry."""


@lru_cache(maxsize=32768)
def _encode_attribute(name: str, values: tuple[str, ...]) -> bytes:
    """Remembered, for a changed entry has most of its attributes as before, and entries of one kind have many alike."""
    pieces: list[bytes] = []
    for value in values:
        octets = value.encode("utf-8", "surrogateescape")
        length = len(octets)
        pieces.append(_SHORT[length] if length < 0x80 else b"\x04" + ber.encode_length(length))
        pieces.append(octets)
    head = _encoded_name(name)
    content = b"".join(pieces)
    size = len(content)
    if size + len(head) < 0x7E:
        return bytes((0x30, len(head) + size + 2)) + head + bytes((0x31, size)) + content
    return ber.encode_sequence(head, ber.encode_element(ber.SET, content))


@lru_cache(maxsize=4096)
def _encoded_name(name: str) -> bytes:
    return ber.encode_text(name)


def encode_entry(entry: Entry, selection: Selection) -> bytes:
    """The operation that carries this entry, without the message around it."""
    if selection.is_plain:
        encoded = entry.cache.encoded
        if encoded is None:
            pieces = b"".join(_encode_attribute(name, values) for name, values in entry.attributes.items())
            encoded = entry.cache.encoded = _entry(entry, pieces)
        return encoded
    kept = entry.cache.selected.get(selection)
    if kept is not None:
        return kept
    names = entry.names
    wanted = list(names) if selection.all_user else [name for name in selection.names if name in names]
    if selection.types_only:
        pieces = [ber.encode_sequence(ber.encode_text(names[name]), _EMPTY_SET) for name in wanted]
    else:
        attributes = entry.attributes
        pieces = [_encode_attribute(names[name], attributes[names[name]]) for name in wanted]
    is_static = True
    if entry.operational and (selection.all_operational or selection.names):
        for name in entry.operational:
            lowered = name.lower()
            if lowered not in names and (selection.all_operational or lowered in selection.names):
                is_static = False
                if selection.types_only:
                    pieces.append(ber.encode_sequence(ber.encode_text(name), _EMPTY_SET))
                else:
                    pieces.append(_encode_attribute(name, entry.operational[name]))
    encoded = _entry(entry, b"".join(pieces))
    if selection.is_kept and is_static:
        selected = entry.cache.selected
        while len(selected) >= MAX_KEPT_SELECTIONS:
            del selected[next(iter(selected))]
        selected[selection] = encoded
    return encoded


def _entry(entry: Entry, attributes: bytes) -> bytes:
    return ber.encode_sequence(
        ber.encode_text(str(entry.dn)), ber.encode_element(ber.SEQUENCE, attributes), tag=TAG_SEARCH_ENTRY
    )
