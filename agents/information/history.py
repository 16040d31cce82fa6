"""What the tree was: every change of it kept for a time as tuples in tables, the latest and the history of each.

The tables have the names and columns of GLUE, as R-GMA's had. `GlueCE` holds each computing element as it is now,
`GlueCEHistory` one tuple for each change, with `Id` (in the order of keeping), `At` (when it was kept, UTC) and `Gone`
(1: the entry went). Changes of an entry within `INTERVAL_S` are one tuple.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

import sqlalchemy
from sqlalchemy import BigInteger, Column, Float, Identity, Integer, MetaData, Text

from agents.information.model import Change
from agents.information.service import InformationService
from fabric.clock import utc_text
from fabric.context import AgentContext
from fabric.errors import GridError
from fabric.glue13 import site_of
from fabric.ldap import Dn, Entry, Scope, parse_dn
from fabric.ldap.filters import ANY_ENTRY
from fabric.store import Store, run

INTERVAL_S = 1.0
"""Between two transactions: what changes more often is kept once a second."""
TRIM_S = 60.0
"""How often old tuples are removed."""
MAX_TEXT = 1000
"""Letters of a value that are kept."""
MAX_DN_BYTES = 2000
"""An entry with a longer name is not kept: it would be too long for an index of PostgreSQL (2 704 bytes)."""

_COLUMNS: Mapping[str, str] = {
    "GlueSite": "GlueSiteUniqueID GlueSiteLocation GlueSiteLatitude:real GlueSiteLongitude:real GlueSiteOtherInfo",
    "GlueSubCluster": (
        "GlueSubClusterUniqueID GlueSubClusterPhysicalCPUs:int GlueSubClusterLogicalCPUs:int "
        "GlueHostOperatingSystemName GlueHostProcessorModel GlueHostMainMemoryRAMSize:int"
    ),
    "GlueCE": (
        "GlueCEUniqueID GlueCEStateStatus GlueCEInfoTotalCPUs:int GlueCEStateFreeJobSlots:int "
        "GlueCEStateRunningJobs:int GlueCEStateWaitingJobs:int GlueCEStateEstimatedResponseTime:int "
        "GlueCEAccessControlBaseRule"
    ),
    "GlueSE": ("GlueSEUniqueID GlueSEStatus GlueSETotalOnlineSize:int GlueSEUsedOnlineSize:int GlueSESizeFree:int"),
    "GlueSA": (
        "GlueSALocalID GlueChunkKey GlueSATotalOnlineSize:int GlueSAUsedOnlineSize:int GlueSAFreeOnlineSize:int "
        "GlueSAAccessControlBaseRule"
    ),
    "GlueService": ("GlueServiceUniqueID GlueServiceType GlueServiceEndpoint GlueServiceStatus GlueServiceStatusInfo"),
    "GridFabricSite": "GridFabricSiteState",
    "GridFabricRegion": "GridFabricRegionID GridFabricRegionState GridFabricRegionReason",
    "GridFabricProducer": "GridFabricProducerID GridFabricProducerState",
    "GridFabricTop": "GridFabricTopID GridFabricTopState GridFabricTopDiffering:int",
}
_TYPES = {"": Text, "int": BigInteger, "real": Float}

HISTORY = "History"


@dataclass(frozen=True)
class Table:
    """One object class."""

    name: str
    attributes: tuple[tuple[str, str], ...]
    """Column and type: "", "int" or "real"."""

    def values(self, entry: Entry) -> tuple[str | int | float | None, ...]:
        """The entry as a tuple; a value that is not of its column's type is NULL."""
        return tuple(_value(entry.get(name.lower()) or (), kind) for name, kind in self.attributes)


def _value(values: Iterable[str], kind: str) -> str | int | float | None:
    text = "; ".join(values)
    if not text:
        return None
    try:
        number = int(text) if kind == "int" else float(text) if kind == "real" else None
    except ValueError:
        return None
    if number is None:
        return text[:MAX_TEXT].replace("\0", "")
    return number if abs(number) < 2**63 else None


def _table(name: str, text: str) -> Table:
    pairs = (word.partition(":") for word in text.split())
    return Table(name, tuple((attribute, kind) for attribute, _, kind in pairs))


TABLES: Mapping[str, Table] = MappingProxyType({name: _table(name, text) for name, text in _COLUMNS.items()})
"""By object class."""


NAMES: tuple[str, ...] = tuple(name + kind for name in TABLES for kind in ("", HISTORY))
"""Every table that may be asked for."""
COLUMNS: tuple[str, ...] = tuple(
    dict.fromkeys(
        ("Id", "Dn", "Site", *(name for table in TABLES.values() for name, _ in table.attributes), "At", "Gone")
    )
)
"""Every column of them."""


def _metadata() -> MetaData:
    """No name is quoted, so a query may write them in any case of letters at every database."""
    made = MetaData()
    for table in TABLES.values():

        def columns(table: Table = table) -> list[Column[Any]]:
            named = (Column(name, _TYPES[kind], quote=False) for name, kind in table.attributes)
            return [Column("Site", Text, nullable=False, quote=False), *named,
                    Column("At", Text, nullable=False, quote=False)]  # fmt: skip

        sqlalchemy.Table(table.name.lower(), made, Column("Dn", Text, primary_key=True, quote=False), *columns())
        sqlalchemy.Table(
            (table.name + HISTORY).lower(), made,
            Column("Id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True, quote=False),
            Column("Dn", Text, nullable=False, quote=False), *columns(),
            Column("Gone", Integer, nullable=False, quote=False),
            sqlite_autoincrement=True,
        )  # fmt: skip
    return made


metadata = _metadata()


def _insert(table: Table, history: bool) -> str:
    names = ["Site", *(name for name, _ in table.attributes), "At"]
    if history:
        return f"INSERT INTO {table.name}{HISTORY} (Dn, {', '.join(names)}, Gone) VALUES ({_marks(len(names) + 2)})"
    return (
        f"INSERT INTO {table.name} (Dn, {', '.join(names)}) VALUES ({_marks(len(names) + 1)}) "
        f"ON CONFLICT (Dn) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in names)}"
    )


def _marks(count: int) -> str:
    return ", ".join("?" * count)


_KEEP = {name: (_insert(table, False), _insert(table, True)) for name, table in TABLES.items()}


def begin(connection: sqlalchemy.Connection) -> None:
    """Empty the latest tables: what they say was of another life of the server."""
    for name in TABLES:
        run(connection, f"DELETE FROM {name}")


def keep(connection: sqlalchemy.Connection, change: Change, at: datetime) -> int:
    """Keep a change; returns the number of tuples."""
    when = utc_text(at)
    rows: defaultdict[str, list[tuple[str | int | float | None, ...]]] = defaultdict(list)
    for entry in change.changed:
        for name in entry.attributes.get("objectClass", ()):
            if (table := TABLES.get(name)) is not None and len((dn := str(entry.dn)).encode()) <= MAX_DN_BYTES:
                rows[name].append((dn, site_of(entry.dn), *table.values(entry), when))
    count = 0
    for name, found in rows.items():
        latest, history = _KEEP[name]
        run(connection, latest, found)
        run(connection, history, [(*row, 0) for row in found])
        count += len(found)
    return count + sum(_gone(connection, dn, when) for dn in change.removed)


def _gone(connection: sqlalchemy.Connection, dn: Dn, when: str) -> int:
    text, first = str(dn), dn.rdns[0][0][0].lower()
    count = 0
    for name, table in TABLES.items():
        if table.attributes[0][0].lower() != first and name != "GridFabricSite":
            continue
        names = ", ".join(("Site", *(attribute for attribute, _ in table.attributes)))
        kept = run(
            connection,
            f"INSERT INTO {name}{HISTORY} (Dn, {names}, At, Gone) SELECT Dn, {names}, ?, 1 FROM {name} WHERE Dn = ?",
            (when, text),
        )
        if kept.rowcount:
            run(connection, f"DELETE FROM {name} WHERE Dn = ?", (text,))
            count += 1
    return count


def trim(connection: sqlalchemy.Connection, before: datetime, max_tuples: int) -> None:
    """Remove tuples older than a time, and the oldest of a table that has more than `max_tuples`."""
    for name in TABLES:
        table = name + HISTORY
        run(connection, f"DELETE FROM {table} WHERE Id <= (SELECT MAX(Id) FROM {table}) - ?", (max_tuples,))
        run(
            connection,
            f"DELETE FROM {table} WHERE Id <= (SELECT MAX(Id) FROM {table} WHERE At < ?)",
            (utc_text(before),),
        )


class Recorder:
    """Keeps the changes of a tree. What cannot be kept (a full disk) is lost; the agent is degraded until it can be."""

    def __init__(
        self, context: AgentContext, service: InformationService, store: Store, keep_s: float, max_tuples: int
    ) -> None:
        self.tuples = 0
        """Kept since the start."""
        self._context = context
        self._service = service
        self._store = store
        self._keep = timedelta(seconds=keep_s)
        self._max_tuples = max_tuples
        self._kept = asyncio.Event()

    async def run(self) -> None:
        """Keep until cancelled."""
        feed, tree = self._service.feed, self._service.machine.tree
        subscription = feed.open(())
        try:
            is_kept, change = False, Change()
            trimmed = self._context.clock.monotonic()
            while True:
                if not is_kept:  # at the start, or changes were lost
                    everything = tree.search(parse_dn(""), Scope.SUBTREE, ANY_ENTRY)
                    change = Change(tuple(entry for entry in everything if entry is not None))
                is_kept = await self._record(change, anew=not is_kept)
                if self._context.clock.monotonic() - trimmed > TRIM_S:
                    trimmed = self._context.clock.monotonic()
                    await self._trim()
                await asyncio.sleep(INTERVAL_S)
                change = await subscription.next(TRIM_S if is_kept else INTERVAL_S)
        finally:
            feed.close(subscription)

    async def more_than(self, tuples: int, timeout_s: float) -> bool:
        """Wait until more tuples than these are kept; False if none was within `timeout_s`."""
        if self.tuples == tuples:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._kept.wait()
            except TimeoutError:
                return False
        return True

    async def _record(self, change: Change, *, anew: bool) -> bool:
        """Whether it is kept. `anew`: it is everything that there is now."""
        if not change and not anew:
            return True
        now = self._context.clock.now()

        def write(connection: sqlalchemy.Connection) -> int:
            if anew:
                begin(connection)
            return keep(connection, change, now)

        try:
            count = await self._store.write(write)
        except GridError as error:
            self._context.problem("history", f"changes of the tree are not kept: {error.sentence}")
            return False
        self._context.solved("history")
        if count:
            self.tuples += count
            kept, self._kept = self._kept, asyncio.Event()
            kept.set()
        return True

    async def _trim(self) -> None:
        before = self._context.clock.now() - self._keep
        try:
            await self._store.write(lambda connection: trim(connection, before, self._max_tuples))
        except GridError as error:
            self._context.log.warning("history.not_trimmed", reason=error.sentence)
