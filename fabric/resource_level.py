"""The resource level of the information system (GRIS): an agent answers for its own entries by LDAP.

    ldapsearch -x -H ldap://HOST:2135 -b mds-vo-name=resource,o=grid
    ldapsearch -x -H ldap://HOST:2135 -b GLUE2GroupID=resource,o=glue

The names below the first base, the attributes and the operational attributes are those that the agent publishes at its
site's information server. An agent that cannot reach its site can still be asked here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta

from fabric.clock import Clock, from_us
from fabric.context import AgentContext
from fabric.errors import Unavailable
from fabric.glue2_tree import GlueDirectory
from fabric.glue13 import INDEXED_ATTRIBUTES
from fabric.glue_schema import GLUE_SCHEMA
from fabric.information import Publisher
from fabric.information_tree import (
    ATTRIBUTE_PRODUCED_AT,
    ATTRIBUTE_PRODUCER,
    ATTRIBUTE_STATE,
    ATTRIBUTE_VALID_UNTIL,
    GRID,
    OPERATIONAL_ATTRIBUTES,
    RESOURCE,
    ldap_time,
)
from fabric.ldap import Dn, Entry, EntryTree, LdapServer, Scope, TreeError, make_entry
from fabric.ldap.filters import ANY_ENTRY, Filter
from fabric.ldap_tls import name_behind, server_tls

RETRY_S = 1.0
"""Between attempts to open a port that is taken: the agent's last life may be about to end."""


class LiveProvenance(Mapping[str, tuple[str, ...]]):
    """The operational attributes of an entry that is asked for where it is made: true at this moment."""

    __slots__ = ("_clock", "_made_at_us", "_made_by", "_valid_for_s")

    def __init__(self, made_by: str, made_at_us: int, clock: Clock, valid_for_s: float) -> None:
        self._made_by, self._made_at_us, self._clock, self._valid_for_s = made_by, made_at_us, clock, valid_for_s

    def __getitem__(self, name: str) -> tuple[str, ...]:
        if name == ATTRIBUTE_PRODUCER:
            return (self._made_by,)
        if name == ATTRIBUTE_PRODUCED_AT:
            return (ldap_time(from_us(self._made_at_us)),)
        if name == ATTRIBUTE_VALID_UNTIL:
            return (ldap_time(self._clock.now() + timedelta(seconds=self._valid_for_s)),)
        if name == ATTRIBUTE_STATE:
            return ("current",)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(OPERATIONAL_ATTRIBUTES)

    def __len__(self) -> int:
        return len(OPERATIONAL_ATTRIBUTES)


class ResourceTree(EntryTree):
    """What a publisher publishes, below `mds-vo-name=resource,o=grid`. Brought up to date when it is asked."""

    def __init__(self, publisher: Publisher) -> None:
        super().__init__([GRID], schema=GLUE_SCHEMA, indexed=INDEXED_ATTRIBUTES)
        self._publisher = publisher
        self._seen = -1
        self.add(make_entry(GRID, {"objectClass": ("top", "organization"), "o": "grid"}))
        self.add(make_entry(RESOURCE, {"objectClass": ("top", "MDS"), "mds-vo-name": "resource"}))

    def search(self, base: Dn, scope: Scope, filter: Filter, limit: int | None = None) -> Iterator[Entry | None]:
        self.bring_up_to_date()
        return super().search(base, scope, filter, limit)

    @property
    def attribute_names(self) -> Collection[str]:
        self.bring_up_to_date()
        return super().attribute_names

    @property
    def class_names(self) -> Collection[str]:
        self.bring_up_to_date()
        return super().class_names

    def bring_up_to_date(self) -> None:
        """Show what is published now."""
        publisher = self._publisher
        if publisher.changes == self._seen:
            return
        self._seen = publisher.changes
        published = publisher.entries
        depth = len(RESOURCE)
        shown = list(super().search(RESOURCE, Scope.CHILDREN, ANY_ENTRY))
        for entry in shown:
            if entry is not None and entry.dn.key[:-depth] not in published:
                self.remove(entry.dn, below=True)
        for entry, made_by, made_at_us in sorted(published.values(), key=lambda made: len(made[0].dn)):
            dn = entry.dn.below(RESOURCE)
            known = self.get(dn)
            if known is not None and known.attributes is entry.attributes:
                continue
            provenance = LiveProvenance(made_by, made_at_us, publisher.clock, publisher.valid_for_s)
            try:
                self.replace(Entry(dn, entry.attributes, provenance))
            except TreeError:
                continue  # its parent is not published: the site's server does not show it either


class ResourceLevel:
    """Serves a publisher's entries on the agent's `ldap` port, as soon as it can be had."""

    def __init__(self, context: AgentContext, publisher: Publisher) -> None:
        self._context = context
        settings = context.settings
        tree = ResourceTree(publisher)
        source = GlueDirectory(
            tree, context.clock, agent_base=RESOURCE, domain=settings.site, refresh=tree.bring_up_to_date
        )
        self.server = LdapServer(
            source,
            host=settings.listen,
            port=settings.ports["ldap"],
            schema=GLUE_SCHEMA,
            tls=server_tls(context),
            external=name_behind(context),
            on_event=self._event,
        )

    async def run(self) -> None:
        """Open the port; ends when it is open. A port that is taken degrades the agent and is tried again."""
        context = self._context
        while True:
            try:
                await self.server.start()
                break
            except Unavailable as error:
                context.problem("ldap", f"its entries cannot be read by LDAP: {error.sentence}")
                await asyncio.sleep(RETRY_S)
        context.solved("ldap")
        context.close_at_end(self.server)
        context.log.info("resource_level.open", port=self.server.port)

    def _event(self, name: str, fields: dict[str, object]) -> None:
        error = fields.pop("error", None)
        if isinstance(error, BaseException):
            self._context.log.exception(name, error, **fields)
        else:
            self._context.log.info(name, **fields)
