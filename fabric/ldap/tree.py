"""A tree of entries in memory, with indices, and what a server needs from any source of entries.

Everything happens on one event loop, so a change is whole before anyone reads. A search takes its list
of candidates when it starts: entries are immutable, so it sees the tree as it was at that moment.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, KeysView, Sequence
from typing import NamedTuple, Protocol

from fabric.ldap.dn import Dn, parse_dn
from fabric.ldap.entry import Entry
from fabric.ldap.filters import And, Approx, Equality, Filter, Or, Present, compile_filter, equality_keys, items_in
from fabric.ldap.schema import OPEN_SCHEMA, AttributeType, Key, Schema

Names = KeysView[tuple[str, ...]]
_NO_NAMES: dict[tuple[str, ...], None] = {}

ENTRIES_PER_TURN = 256
"""How many entries a search of one condition looks at before it lets others run: well under a millisecond."""

WORTH_KEEPING = 64
"""Names looked at for an answer: the names in such an answer are kept until one comes or goes or an index changes."""

MAX_KEPT_ANSWERS = 512
MAX_KEPT_NAMES = 500_000
"""Of all kept answers: 4 MB."""

MAX_LEARNED_NAMES = 10_000
"""Attribute and class names remembered for the subschema entry."""


class Scope(enum.IntEnum):
    """Which entries below the base a search takes (RFC 4511 section 4.5.1.2)."""

    BASE = 0
    """The base only."""
    ONE = 1
    """The children of the base."""
    SUBTREE = 2
    """The base and everything below."""
    CHILDREN = 3
    """Everything below the base, without it (draft-sermersheim-ldap-subordinate-scope)."""


class NoSuchEntryError(LookupError):
    """The name is not in the tree; ``matched`` is its lowest ancestor that is."""

    def __init__(self, dn: Dn, matched: Dn) -> None:
        super().__init__(f"no entry {str(dn)!r}; the tree ends at {str(matched)!r}")
        self.dn = dn
        self.matched = matched

    def __reduce__(self) -> tuple[type[NoSuchEntryError], tuple[Dn, Dn]]:
        return type(self), (self.dn, self.matched)


class _Found(NamedTuple):
    """Names below a base that an index or the tree gives, parents before children."""

    names: list[tuple[str, ...]]
    is_exact: bool
    looked_at: int


_Question = tuple[tuple[str, ...], Scope, Filter]


class TreeError(ValueError):
    """A change that would leave the tree without a parent somewhere, or with a name twice."""


class SearchSource(Protocol):
    """Anything the server can search: the tree below, or a catalogue in a database."""

    @property
    def naming_contexts(self) -> Sequence[Dn]:
        """The names at the top of what is served."""
        ...

    def search(
        self, base: Dn, scope: Scope, filter: Filter, limit: int | None = None
    ) -> Iterator[Entry | None] | AsyncIterator[Entry | None]:
        """The matching entries, parents before children. None means "still looking": the server lets others run.

        Raises NoSuchEntryError (when called or at the first step) if ``base`` does not exist. ``limit`` is
        a hint: no more entries than this will be taken.
        """
        ...


class EntryTree:
    """Entries by name, with an index over children and equality indices over chosen attributes."""

    def __init__(
        self,
        suffixes: Iterable[str | Dn],
        *,
        schema: Schema = OPEN_SCHEMA,
        indexed: Iterable[str] = (),
    ) -> None:
        self.schema = schema
        self._suffixes = tuple(parse_dn(suffix) if isinstance(suffix, str) else suffix for suffix in suffixes)
        self._entries: dict[tuple[str, ...], Entry] = {}
        self._serials: dict[tuple[str, ...], int] = {}
        """When each name came into the tree: a parent always before its children."""
        self._children: dict[tuple[str, ...], dict[tuple[str, ...], None]] = {}
        names = {schema.canonical(name): schema.lookup(name) for name in ("objectClass", *indexed)}
        self._indices: dict[str, tuple[AttributeType, dict[Key, dict[tuple[str, ...], None]]]] = {
            name: (attribute, {}) for name, attribute in names.items() if attribute is not None
        }
        self._kept: dict[_Question, tuple[list[tuple[str, ...]], bool]] = {}
        """Answers that cost something, for those who ask again; see `WORTH_KEEPING`."""
        self._kept_names = 0
        self._next_serial = 0
        self._attribute_names: dict[str, str] = {}
        self._class_names: dict[str, str] = {}
        self.version = 0
        """Counts changes."""
        self.on_change: Callable[[Dn], None] | None = None
        """Called with the name of each entry that came, went or is another one now."""

    @property
    def naming_contexts(self) -> Sequence[Dn]:
        """The suffixes."""
        return self._suffixes

    def open(self, suffix: Dn) -> None:
        """Allow entries at and below one more name, which is in the tree no longer once it was removed with `close`."""
        if suffix not in self._suffixes:
            self._suffixes = (*self._suffixes, suffix)

    def close(self, suffix: Dn) -> None:
        """Take a suffix out with everything below it. Idempotent."""
        self.remove(suffix, below=True)
        self._suffixes = tuple(known for known in self._suffixes if known != suffix)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, dn: object) -> bool:
        return isinstance(dn, Dn) and dn.key in self._entries

    @property
    def attribute_names(self) -> Collection[str]:
        """The attributes seen so far, as first written. ldap3 refuses what the subschema does not list."""
        return self._attribute_names.values()

    @property
    def class_names(self) -> Collection[str]:
        """The object classes seen so far, as first written."""
        return self._class_names.values()

    def _learn(self, entry: Entry) -> None:
        if len(self._attribute_names) < MAX_LEARNED_NAMES and not entry.names.keys() <= self._attribute_names.keys():
            for key, name in entry.names.items():
                self._attribute_names.setdefault(key, name)
        for name in entry.get("objectclass") or ():
            if len(self._class_names) < MAX_LEARNED_NAMES:
                self._class_names.setdefault(name.lower(), name)

    def get(self, dn: Dn) -> Entry | None:
        """The entry of that name, if any."""
        return self._entries.get(dn.key)

    def children(self, dn: Dn) -> list[Entry]:
        """The entries directly below, oldest first."""
        return [self._entries[key] for key in self._children.get(dn.key, ())]

    def add(self, entry: Entry) -> None:
        """Put a new entry in. Raises TreeError if it is there, or its parent is not."""
        key = entry.dn.key
        if key in self._entries:
            raise TreeError(f"{str(entry.dn)!r} is there already")
        if key[1:] not in self._entries and all(key != suffix.key for suffix in self._suffixes):
            raise TreeError(f"{str(entry.dn)!r} has no parent in the tree")
        self._entries[key] = entry
        self._serials[key] = self._next_serial
        self._next_serial += 1
        self._reshaped()
        if key[1:] in self._entries:
            self._children.setdefault(key[1:], {})[key] = None
        self._index_entry(entry, None)
        self._learn(entry)
        self._changed(entry.dn)

    def replace(self, entry: Entry) -> None:
        """Put in an entry that may be there already."""
        old = self._entries.get(entry.dn.key)
        if old is None:
            self.add(entry)
            return
        self._entries[entry.dn.key] = entry
        self._index_entry(entry, old)
        if entry.names is not old.names or entry.get("objectclass") != old.get("objectclass"):
            self._learn(entry)
        self._changed(entry.dn)

    def _changed(self, dn: Dn) -> None:
        self.version += 1
        if self.on_change is not None:
            self.on_change(dn)

    def remove(self, dn: Dn, *, below: bool = False) -> list[Entry]:
        """Take an entry out, with everything below it if ``below``; returns what went, children first.

        A name that is not there is no error. Raises TreeError if it has children and ``below`` is not set.
        """
        if dn.key not in self._entries:
            return []
        doomed = [self._entries[key] for key in self._subtree(dn.key) or ()]
        if len(doomed) > 1 and not below:
            raise TreeError(f"{str(dn)!r} has entries below it")
        doomed.reverse()
        self._reshaped()
        for entry in doomed:
            key = entry.dn.key
            del self._entries[key], self._serials[key]
            self._children.pop(key, None)
            siblings = self._children.get(key[1:])
            if siblings is not None:
                siblings.pop(key, None)
                if not siblings:
                    del self._children[key[1:]]
            self._index_entry(None, entry)
            self._changed(entry.dn)
        return doomed

    def search(self, base: Dn, scope: Scope, filter: Filter, limit: int | None = None) -> Iterator[Entry | None]:
        """The matching entries, parents before children; see ``SearchSource``. The empty name is above all suffixes."""
        if base.key and base.key not in self._entries:
            raise NoSuchEntryError(base, self._deepest_ancestor(base))
        candidates, is_exact = self._candidates(base.key, scope, filter)
        if is_exact:
            return iter(candidates)
        return self._matching(candidates, filter, limit)

    def _matching(self, candidates: list[Entry], filter: Filter, limit: int | None) -> Iterator[Entry | None]:
        predicate = compile_filter(filter, self.schema)
        found = 0
        per_turn = max(1, ENTRIES_PER_TURN // max(1, items_in(filter)))
        for looked, entry in enumerate(candidates, 1):
            if looked % per_turn == 0:
                yield None
            if predicate(entry) is True:
                yield entry
                found += 1
                if limit is not None and found >= limit:
                    return

    def _deepest_ancestor(self, dn: Dn) -> Dn:
        while dn.key:
            dn = dn.parent
            found = self._entries.get(dn.key)
            if found is not None:
                return found.dn
        return dn

    def _candidates(self, base: tuple[str, ...], scope: Scope, filter: Filter) -> tuple[list[Entry], bool]:
        """The entries to look at, and True if all of them match."""
        entries = self._entries
        if scope is Scope.BASE:
            return ([entries[base]] if base else []), False
        if scope is Scope.ONE:
            below = self._children.get(base, ()) if base else [s.key for s in self._suffixes if s.key in entries]
            return [entries[key] for key in below], False
        question = (base, scope, filter)
        kept = self._kept.get(question)
        if kept is None:
            found = self._found(base, filter)
            names = found.names
            if scope is Scope.CHILDREN and names and names[0] == base:
                names = names[1:]
            kept = (names, found.is_exact)
            if found.looked_at > WORTH_KEEPING:
                self._keep(question, kept)
        return [entries[name] for name in kept[0]], kept[1]

    def _found(self, base: tuple[str, ...], filter: Filter) -> _Found:
        depth = len(base)
        indexed, is_exact = self._indexed(filter)
        if indexed is None:
            names = self._subtree(base) or []
            is_any = isinstance(filter, Present) and self.schema.canonical(filter.attribute) == "objectclass"
            return _Found(names, is_any, len(names))
        near = self._subtree(base, len(indexed) // 4) if depth > 1 else None
        if near is not None:
            return _Found([name for name in near if name in indexed], is_exact, len(near))
        names = [name for name in indexed if name[-depth:] == base] if depth else list(indexed)
        names.sort(key=self._serials.__getitem__)
        return _Found(names, is_exact, len(indexed))

    def _keep(self, question: _Question, answer: tuple[list[tuple[str, ...]], bool]) -> None:
        kept = self._kept
        while kept and (len(kept) >= MAX_KEPT_ANSWERS or self._kept_names + len(answer[0]) > MAX_KEPT_NAMES):
            self._kept_names -= len(kept.pop(next(iter(kept)))[0])
        if len(answer[0]) <= MAX_KEPT_NAMES:
            kept[question] = answer
            self._kept_names += len(answer[0])

    def _reshaped(self) -> None:
        """A name came or went, or an index has changed."""
        if self._kept:
            self._kept.clear()
            self._kept_names = 0

    def _subtree(self, base: tuple[str, ...], at_most: int | None = None) -> list[tuple[str, ...]] | None:
        """The names of the base and all below in preorder; None if that would be more than ``at_most``."""
        children = self._children
        found: list[tuple[str, ...]] = []
        tops = [base] if base else [suffix.key for suffix in self._suffixes if suffix.key in self._entries]
        stack = tops[::-1]
        while stack:
            key = stack.pop()
            found.append(key)
            if at_most is not None and len(found) > at_most:
                return None
            below = children.get(key)
            if below:
                stack.extend(reversed(below))
        return found

    def _indexed(self, node: Filter) -> tuple[Names | None, bool]:
        """The names an index gives for a filter, None if no index helps; False if some of them may not match."""
        match node:
            case Equality(description, value) | Approx(description, value):
                known = self._indices.get(self.schema.canonical(description))
                if known is None:
                    return None, False
                attribute, index = known
                keys = equality_keys(self.schema, attribute, value)
                is_exact = self.schema.recognises(attribute, value)
                if len(keys) == 1:
                    return index.get(keys[0], _NO_NAMES).keys(), is_exact
                return {name: None for key in keys for name in index.get(key, ())}.keys(), is_exact
            case And(parts):
                return self._intersection(parts)
            case Or(parts):
                union: dict[tuple[str, ...], None] = {}
                are_exact = True
                for part in parts:
                    found, is_exact = self._indexed(part)
                    if found is None:
                        return None, False
                    union.update(dict.fromkeys(found))
                    are_exact = are_exact and is_exact
                return union.keys(), are_exact
            case _:
                return None, False

    def _intersection(self, parts: tuple[Filter, ...]) -> tuple[Names | None, bool]:
        """Of what is known of the parts."""
        known = [self._indexed(part) for part in parts]
        indexed = sorted((names for names, _ in known if names is not None), key=len)
        if not indexed:
            return None, False
        common = indexed[0]
        for names in indexed[1:]:
            common = {name: None for name in common if name in names}.keys()
        return common, len(indexed) == len(parts) and all(is_exact for _, is_exact in known)

    def _index_entry(self, new: Entry | None, old: Entry | None) -> None:
        present: set[str] = set()
        for entry in (new, old):
            if entry is not None:
                present |= self._indices.keys() & entry.names.keys()
        for name in present:
            if new is not None and old is not None and new.get(name) == old.get(name):
                continue
            attribute, index = self._indices[name]
            self._reshaped()
            before = set(old.normalised(name, attribute) or ()) if old is not None else set[Key]()
            after = set(new.normalised(name, attribute) or ()) if new is not None else set[Key]()
            if old is not None:
                for value in before - after:
                    names = index[value]
                    names.pop(old.dn.key, None)
                    if not names:
                        del index[value]
            if new is not None:
                for value in after - before:
                    index.setdefault(value, {})[new.dn.key] = None
