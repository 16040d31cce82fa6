"""Turning entries into SearchResultEntry bytes, with what was asked for (RFC 4511 section 4.5.1.8)."""

from __future__ import annotations

from fabric.ldap import ber
from fabric.ldap.entry import Entry
from fabric.ldap.protocol import TAG_SEARCH_ENTRY
from fabric.ldap.schema import Schema

_EMPTY_SET = ber.encode_element(ber.SET, b"")


class Selection:
    """Which attributes a client wants: ``*``, ``+``, ``1.1``, names in any case; nothing means ``*``."""

    __slots__ = ("all_operational", "all_user", "is_plain", "names", "types_only")

    def __init__(self, names: tuple[str, ...], schema: Schema, *, types_only: bool = False) -> None:
        self.all_user = not names or "*" in names
        self.all_operational = "+" in names
        wanted = (schema.canonical(name) for name in names if name not in ("*", "+", "1.1"))
        self.names = tuple(dict.fromkeys(wanted))
        self.types_only = types_only
        self.is_plain = self.all_user and not self.all_operational and not self.names and not types_only
        """True for the common case, whose bytes are kept with the entry."""


def _encode_attribute(name: str, values: tuple[str, ...]) -> bytes:
    return ber.encode_sequence(ber.encode_text(name), ber.encode_sequence(*map(ber.encode_text, values), tag=ber.SET))


def _part(entry: Entry, canonical_name: str) -> bytes:
    """One user attribute, encoded once per entry."""
    parts = entry.cache.parts
    part = parts.get(canonical_name)
    if part is None:
        name = entry.names[canonical_name]
        part = parts[canonical_name] = _encode_attribute(name, entry.attributes[name])
    return part


def encode_entry(entry: Entry, selection: Selection) -> bytes:
    """The operation that carries this entry, without the message around it."""
    if selection.is_plain:
        encoded = entry.cache.encoded
        if encoded is None:
            pieces = b"".join(_encode_attribute(name, values) for name, values in entry.attributes.items())
            encoded = entry.cache.encoded = _entry(entry, pieces)
        return encoded
    names = entry.names
    wanted = list(names) if selection.all_user else [name for name in selection.names if name in names]
    if selection.types_only:
        pieces = [ber.encode_sequence(ber.encode_text(names[name]), _EMPTY_SET) for name in wanted]
    else:
        pieces = [_part(entry, name) for name in wanted]
    if entry.operational and (selection.all_operational or selection.names):
        for name in entry.operational:
            lowered = name.lower()
            if lowered not in names and (selection.all_operational or lowered in selection.names):
                if selection.types_only:
                    pieces.append(ber.encode_sequence(ber.encode_text(name), _EMPTY_SET))
                else:
                    pieces.append(_encode_attribute(name, entry.operational[name]))
    return _entry(entry, b"".join(pieces))


def _entry(entry: Entry, attributes: bytes) -> bytes:
    return ber.encode_sequence(
        ber.encode_text(str(entry.dn)), ber.encode_element(ber.SEQUENCE, attributes), tag=TAG_SEARCH_ENTRY
    )
