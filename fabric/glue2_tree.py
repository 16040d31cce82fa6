"""`o=glue` beside `o=grid`: GLUE 2.0 made of the GLUE 1.3 entries of the same server, when somebody asks.

Each change of `o=grid` marks its site. A search of `o=glue` first renders again what changed below its base, service by
service, and gives way to others in between. One search renders at a time; others wait for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime, timedelta

from fabric import glue2
from fabric.clock import Clock
from fabric.glue_reader import Unit, units
from fabric.glue_schema import GLUE_SCHEMA
from fabric.information_tree import (
    ATTRIBUTE_STATE,
    ATTRIBUTE_VALID_UNTIL,
    DOMAINS,
    GLUE,
    GLUE_RESOURCE,
    LOCAL,
    from_ldap_time,
)
from fabric.ldap import Dn, Entry, EntryTree, NoSuchEntryError, Scope, make_entry
from fabric.ldap.filters import ANY_ENTRY, Filter

RENEW_S = glue2.VALIDITY_S / 2
"""What is older is rendered again by the next search: nobody sees an entity close to the end of its validity."""

Key = tuple[str, ...]


class _Part:
    """What is rendered of one site, or of one agent at the resource level."""

    def __init__(self, grid_base: Dn, domain: str, place: Dn, services: Dn) -> None:
        self.grid_base = grid_base
        self.domain = domain
        """GLUE2DomainID of the site."""
        self.place = place
        """The AdminDomain's name; at an agent, `o=glue`."""
        self.services = services
        self.made_at: datetime | None = None
        self.kept: dict[tuple[str, str], tuple[tuple[Entry, ...], str, list[Dn]]] = {}
        """By kind and name of a unit: of which entries and in which state of its producer, and the names it has."""


class GlueDirectory:
    """A source of both trees. `grid` is kept by others; its `on_change` is used.

    With `agent_base` it is an agent's: everything below that name is of the one site `domain`. `refresh` is called
    before `grid` is read.
    """

    def __init__(
        self,
        grid: EntryTree,
        clock: Clock,
        *,
        agent_base: Dn | None = None,
        domain: str = "",
        refresh: Callable[[], None] = lambda: None,
    ) -> None:
        self._grid = grid
        self._clock = clock
        self._refresh = refresh
        self._depth = len(agent_base) if agent_base is not None else len(LOCAL) + 1
        self._above = agent_base if agent_base is not None else LOCAL
        self._agent_domain = domain
        self._glue = EntryTree([GLUE], schema=GLUE_SCHEMA, indexed=glue2.INDEXED_ATTRIBUTES)
        self._parts: dict[Key, _Part] = {}
        self._dirty: dict[Key, None] = {}
        self._is_rendering = False
        self._glue.add(make_entry(GLUE, {"objectClass": "organization", "o": "glue"}))
        if agent_base is None:
            self._glue.add(glue2.group_entry(DOMAINS))
        for entry in grid.search(self._above, Scope.SUBTREE, ANY_ENTRY) if self._above in grid else ():
            if entry is not None:
                self._note(entry.dn)
        grid.on_change = self._note

    @property
    def naming_contexts(self) -> Sequence[Dn]:
        """`o=grid` and `o=glue`."""
        return (*self._grid.naming_contexts, GLUE)

    @property
    def attribute_names(self) -> Collection[str]:
        """Those of `o=grid`, for the subschema; GLUE 2.0's are in the schema."""
        return self._grid.attribute_names

    @property
    def class_names(self) -> Collection[str]:
        """Those of `o=grid`, for the subschema."""
        return self._grid.class_names

    def search(self, base: Dn, scope: Scope, filter: Filter, limit: int | None = None) -> Iterator[Entry | None]:
        """See `SearchSource`."""
        if base.is_within(GLUE):
            return self._search_glue(base, scope, filter, limit)
        found = self._grid.search(base, scope, filter, limit)
        if base.key or scope is Scope.BASE:
            return found
        return itertools.chain(found, self._search_glue(base, scope, filter, limit))

    def _search_glue(self, base: Dn, scope: Scope, filter: Filter, limit: int | None) -> Iterator[Entry | None]:
        yield from self._bring_up_to_date(base)
        yield from self._glue.search(base, scope, filter, limit)

    def _note(self, dn: Dn) -> None:
        if len(dn) >= self._depth and dn.is_within(self._above):
            key = dn.key[len(dn) - self._depth :]
            if key not in self._parts:
                self._parts[key] = self._part(Dn(dn.rdns[len(dn) - self._depth :]))
            self._dirty[key] = None

    def _part(self, grid_base: Dn) -> _Part:
        if self._agent_domain:
            return _Part(grid_base, self._agent_domain, GLUE, GLUE.child("GLUE2GroupID", GLUE_RESOURCE))
        domain = grid_base.rdns[0][0][1]
        place = DOMAINS.child("GLUE2DomainID", domain)
        return _Part(grid_base, domain, place, place.child("GLUE2GroupID", GLUE_RESOURCE))

    def _bring_up_to_date(self, base: Dn) -> Iterator[None]:
        while self._is_rendering:
            yield None
        self._refresh()
        due = self._clock.now() - timedelta(seconds=RENEW_S)
        wanted = [
            (key, part)
            for key, part in self._parts.items()
            if (key in self._dirty or part.made_at is None or part.made_at <= due)
            and (base.is_within(part.place) or part.place.is_within(base))
        ]
        if not wanted:
            return
        self._is_rendering = True
        try:
            for key, part in wanted:
                self._dirty.pop(key, None)
                is_whole = False
                try:
                    yield from self._render(part)
                    is_whole = True
                finally:
                    if not is_whole:
                        self._dirty[key] = None
        finally:
            self._is_rendering = False

    def _render(self, part: _Part) -> Iterator[None]:
        now = self._clock.now()
        must_renew = part.made_at is None or part.made_at <= now - timedelta(seconds=RENEW_S)
        try:
            found = self._grid.search(part.grid_base, Scope.SUBTREE, ANY_ENTRY)
            entries = [entry for entry in found if entry is not None]
        except NoSuchEntryError:
            entries = []
        together = {(unit.kind, unit.name): unit for unit in units(entries, self._depth)}
        about = self._places(part, entries, together, now)
        for entry in about:
            self._glue.replace(entry)
        part.kept[("site", "")] = ((), "", self._without(part.kept.get(("site", "")), about))
        together = {key: unit for key, unit in together.items() if unit.kind != "site"}
        for key in [key for key in part.kept if key not in together and key[0] != "site"]:
            self._remove(part.kept.pop(key)[2])
        for key, unit in together.items():
            state = unit.entries[0].operational.get(ATTRIBUTE_STATE, ("current",))[0]
            made_of = tuple(unit.entries)
            known = part.kept.get(key)
            if known is not None and not must_renew and known[1] == state and known[0] == made_of:
                continue
            made = list(self._services(part, unit, _stamp(unit.entries[0], state, now)))
            for entry in made:
                self._glue.replace(entry)
            part.kept[key] = (made_of, state, self._without(known, made))
            yield None
        if must_renew:
            part.made_at = now

    def _without(self, known: tuple[tuple[Entry, ...], str, list[Dn]] | None, made: list[Entry]) -> list[Dn]:
        """Take away what was there and is not made any more; returns the names of now."""
        names = {entry.dn.key for entry in made}
        if known is not None:
            self._remove([dn for dn in known[2] if dn.key not in names])
        return [entry.dn for entry in made]

    def _remove(self, names: list[Dn]) -> None:
        for dn in names:
            self._glue.remove(dn, below=True)

    def _places(
        self, part: _Part, entries: list[Entry], together: dict[tuple[str, str], Unit], now: datetime
    ) -> list[Entry]:
        """The AdminDomain with what is said of the site itself, and the group of its services."""
        made: list[Entry] = []
        if part.place != GLUE and entries:
            state = entries[0].first("GridFabricSiteState", "current")
            about = next((unit for unit in together.values() if unit.kind == "site"), None)
            source = about.entries[0] if about is not None else entries[0]
            site = about.site if about is not None else None
            stamp = _stamp(source, state, now)
            found = glue2.domain_entries(part.place, site, state, stamp)
            made = [Entry(entry.dn, entry.attributes, source.operational) for entry in found]
        if entries:
            made.append(glue2.group_entry(part.services))
        return made

    def _services(self, part: _Part, unit: Unit, stamp: glue2.Stamp) -> Iterator[Entry]:
        made: Iterator[Entry] = iter(())
        service = unit.service
        if unit.kind == "computing":
            made = glue2.computing_entries(
                unit.name, unit.clusters, unit.computing_elements, service, part.domain, stamp
            )
        elif unit.kind == "storage":
            made = itertools.chain.from_iterable(
                glue2.storage_entries(se, service, part.domain, stamp) for se in unit.storage_elements
            )
        elif service is not None:
            made = glue2.service_entries(service, part.domain, stamp)
        for entry in made:
            dn = entry.dn.below(part.services)
            yield Entry(dn, entry.attributes, unit.entries[0].operational)


def _stamp(source: Entry, state: str, now: datetime) -> glue2.Stamp:
    """Confirmed now, if its producer is heard; else when it was last to be trusted."""
    until = source.operational.get(ATTRIBUTE_VALID_UNTIL)
    if state == "current" or not until:
        return glue2.Stamp(now)
    return glue2.Stamp(min(now, from_ldap_time(until[0])))
