"""One entry of a directory: a name and its attributes, immutable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from fabric.ldap.dn import Dn, canonical_attribute, parse_dn
from fabric.ldap.schema import AttributeType, Key

NO_ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class EntryCache:
    """What is worked out from an entry once and kept with it: encoded bytes and normalised values."""

    __slots__ = ("encoded", "normalised", "selected")

    def __init__(self) -> None:
        self.encoded: bytes | None = None
        self.selected: dict[object, bytes] = {}
        self.normalised: dict[str, tuple[AttributeType, tuple[Key, ...]]] = {}


@dataclass(frozen=True, slots=True)
class Entry:
    """A name with its attributes.

    ``attributes`` are the user attributes and must not change afterwards. ``operational`` ones are sent
    only when asked for (``+`` or by name); that mapping may be live, so that many entries share one
    "valid until" which moves without touching them.
    """

    dn: Dn
    attributes: Mapping[str, tuple[str, ...]]
    operational: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: NO_ATTRIBUTES, compare=False)
    names: Mapping[str, str] = field(init=False, compare=False, repr=False)
    """Canonical (lower-case) attribute name to the name as written here."""
    cache: EntryCache = field(init=False, compare=False, repr=False, default_factory=EntryCache)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", _canonical_names(tuple(self.attributes)))

    def get(self, canonical_name: str) -> tuple[str, ...] | None:
        """The values of an attribute given by its canonical name, None if the entry has none."""
        name = self.names.get(canonical_name)
        if name is not None:
            return self.attributes[name]
        if self.operational:
            for name in self.operational:
                if name.lower() == canonical_name:
                    return self.operational[name]
        return None

    def first(self, name: str, default: str = "") -> str:
        """The first value of an attribute, ``default`` if there is none."""
        values = self.get(canonical_attribute(name))
        return values[0] if values else default

    def normalised(self, canonical_name: str, attribute: AttributeType) -> tuple[Key, ...] | None:
        """The values as the attribute's equality rule compares them; None if the entry has none.

        Values of the wrong syntax are left out.
        """
        kept = self.cache.normalised.get(canonical_name)
        if kept is not None and kept[0] is attribute:
            return kept[1]
        values = self.get(canonical_name)
        if values is None:
            return None
        normalise = attribute.equality.normalise
        keys = tuple(key for key in map(normalise, values) if key is not None)
        if canonical_name in self.names:
            self.cache.normalised[canonical_name] = (attribute, keys)
        return keys


@lru_cache(maxsize=256)
def _canonical_names(names: tuple[str, ...]) -> Mapping[str, str]:
    """Entries of one kind have the same attributes and share this."""
    return MappingProxyType({canonical_attribute(name): name for name in names})


def make_entry(
    dn: str | Dn,
    attributes: Mapping[str, str | int | tuple[str, ...] | list[str]],
    operational: Mapping[str, tuple[str, ...]] = NO_ATTRIBUTES,
) -> Entry:
    """An entry from convenient Python values: single values become tuples, numbers text, empty lists vanish."""
    plain: dict[str, tuple[str, ...]] = {}
    for name, value in attributes.items():
        values = tuple(value) if isinstance(value, (tuple, list)) else (str(value),)
        if values:
            plain[name] = values
    return Entry(parse_dn(dn) if isinstance(dn, str) else dn, plain, operational)
