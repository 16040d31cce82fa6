"""Second names for parts of a directory, such as a site's name directly below the base."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence

from fabric.ldap.dn import Dn
from fabric.ldap.entry import Entry
from fabric.ldap.filters import Filter
from fabric.ldap.tree import NoSuchEntryError, Scope, SearchSource

MAX_KEPT_ENTRIES = 20_000
"""Renamed entries kept, so that their encoded form is made once."""

Found = Iterator[Entry | None] | AsyncIterator[Entry | None]


class AliasedSource:
    """A source that answers below an alias what it has below the alias's target, named below the alias.

    A search from above the aliases does not see them, so that nobody gets an entry twice.
    """

    def __init__(self, source: SearchSource, aliases: Mapping[Dn, Dn]) -> None:
        self._source = source
        self._aliases = tuple(aliases.items())
        self._renamed: dict[tuple[str, ...], tuple[Entry, Entry]] = {}

    @property
    def naming_contexts(self) -> Sequence[Dn]:
        """Those of the source."""
        return self._source.naming_contexts

    @property
    def attribute_names(self) -> Collection[str]:
        """Those of the source, for the subschema."""
        return getattr(self._source, "attribute_names", ())

    @property
    def class_names(self) -> Collection[str]:
        """Those of the source, for the subschema."""
        return getattr(self._source, "class_names", ())

    def search(self, base: Dn, scope: Scope, filter: Filter, limit: int | None = None) -> Found:
        """See `SearchSource`."""
        for alias, target in self._aliases:
            if base.is_within(alias):
                return self._search_alias(base, scope, filter, limit, alias, target)
        return self._source.search(base, scope, filter, limit)

    def _search_alias(self, base: Dn, scope: Scope, filter: Filter, limit: int | None, alias: Dn, target: Dn) -> Found:
        def renamed(entry: Entry) -> Entry:
            return self._rename(entry, alias, target)

        try:
            found = self._source.search(_moved(base, alias, target), scope, filter, limit)
        except NoSuchEntryError as error:
            raise NoSuchEntryError(base, _known(error.matched, alias, target)) from None
        if isinstance(found, AsyncIterator):
            return _each_later(found, renamed)
        return (renamed(entry) if entry is not None else None for entry in found)

    def _rename(self, entry: Entry, alias: Dn, target: Dn) -> Entry:
        dn = _moved(entry.dn, target, alias)
        kept = self._renamed.get(dn.key)
        if kept is not None and kept[0] is entry:
            return kept[1]
        if len(self._renamed) >= MAX_KEPT_ENTRIES:
            self._renamed.clear()
        made = Entry(dn, entry.attributes, entry.operational)
        self._renamed[dn.key] = (entry, made)
        return made


async def _each_later(
    found: AsyncIterator[Entry | None], change: Callable[[Entry], Entry]
) -> AsyncIterator[Entry | None]:
    async for entry in found:
        yield change(entry) if entry is not None else None


def _moved(dn: Dn, source: Dn, target: Dn) -> Dn:
    """A name below `source` as the same name below `target`."""
    return dn.relative_to(len(source)).below(target)


def _known(matched: Dn, alias: Dn, target: Dn) -> Dn:
    """The lowest known ancestor, as whoever asked by the alias knows it."""
    return _moved(matched, target, alias) if matched.is_within(target) else alias.parent
