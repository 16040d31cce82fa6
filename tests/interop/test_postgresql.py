"""A store at a real PostgreSQL server keeps the promises of one in a file, also when the server goes away."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import uuid
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as pb
from support import postgresql
from support.grid import LabGrid
from support.postgresql import Server
from support.waiting import until

from agents.bookkeeping import accounting, tables
from agents.bookkeeping import store as rows
from agents.bookkeeping.accounting import UsageQuery
from agents.bookkeeping.client import BookkeepingClient
from agents.bookkeeping.model import Event, EventType, JobQuery, JobState, Reader, StatisticsQuery
from agents.catalog import client as catalogue_client
from agents.catalog.access import Caller, Grant
from agents.catalog.attributes import Attribute, Comparison, Condition, Kind
from agents.catalog.model import Content, NewFile, Replica
from agents.catalog.names import Lfn
from agents.catalog.store import CatalogStore, metadata
from agents.information import client, history
from agents.information.agent import build as build_information
from agents.information.history import Recorder
from agents.information.model import Change
from agents.information.queries import MAX_ROWS, HistoryQueries
from fabric import database_postgresql as module
from fabric.database_postgresql import PostgresqlDatabase
from fabric.database_reader import address, lend
from fabric.errors import (
    DataCorrupted,
    DeadlineExceeded,
    Defect,
    Exhausted,
    GridError,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from fabric.information_tree import LOCAL
from fabric.ldap import Entry, make_entry
from fabric.store import Store, run

pytestmark = pytest.mark.skipif(postgresql.BIN is None, reason="needs the Debian package postgresql")

METADATA = sa.MetaData()
ITEMS = sa.Table(
    "items", METADATA, sa.Column("name", sa.Text, primary_key=True), sa.Column("size", sa.Integer, nullable=False)
)


def insert(name: str, size: int = 0):
    def function(connection: sa.Connection) -> str:
        run(connection, "INSERT INTO items (name, size) VALUES (?, ?)", (name, size))
        return name

    return function


def names(connection: sa.Connection) -> list[str]:
    return [str(row[0]) for row in run(connection, "SELECT name FROM items WHERE name NOT LIKE '%?' ORDER BY name")]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql.running_postgresql() as found:
        yield found


@pytest.fixture
def schema(request: pytest.FixtureRequest) -> str:
    return request.node.name[:60]


@pytest.fixture
def store(server: Server, schema: str) -> Iterator[Store]:
    opened = Store(PostgresqlDatabase(server.url, schema), METADATA)
    yield opened
    opened.close_sync()


async def test_writers_share_transactions_and_readers_see_them(store: Store) -> None:
    before = store.transactions
    await asyncio.gather(*(store.write(insert(f"{n:04d}")) for n in range(300)))
    assert len(await store.read(names)) == 300
    assert store.transactions - before < 100
    with pytest.raises(Unavailable, match="read-only"):
        await store.read(insert("reader"))
    assert len(await store.read(names)) == 300


async def test_one_that_raises_harms_no_other(store: Store) -> None:
    def bad(connection: sa.Connection) -> None:
        insert("half")(connection)
        raise NotFound("MISSING", "not there")

    results = await asyncio.gather(
        *(store.write(function) for function in (insert("a"), bad, insert("a"), insert("b"))), return_exceptions=True
    )
    assert results[0] == "a" and results[3] == "b"
    assert isinstance(results[1], NotFound) and isinstance(results[2], sa.exc.IntegrityError)
    assert await store.read(names) == ["a", "b"]


async def test_a_function_that_ends_the_transaction_is_a_defect(store: Store) -> None:
    with pytest.raises(Defect):
        await store.write(lambda connection: run(connection, "COMMIT") and None)
    await store.write(insert("a"))
    assert await store.read(names) == ["a"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
async def test_it_is_opened_again_when_the_server_is_back(server: Server, store: Store, how: signal.Signals) -> None:
    await store.write(insert("before"))
    assert await store.read(names) == ["before"]  # this reader's connection will have ended
    await asyncio.to_thread(server.stop, how)
    try:
        for attempt in (store.write(insert("lost")), store.read(names), store.write(insert("lost too"))):
            with pytest.raises(Unavailable) as found:
                await attempt
            assert found.value.reason == "STORE_UNAVAILABLE" and "tried again" in found.value.sentence
    finally:
        await asyncio.to_thread(server.start)
    assert await store.read(names) == ["before"]
    await store.write(insert("after"))
    assert await store.read(names) == ["after", "before"]


async def test_a_connection_that_is_cut_in_a_transaction_loses_the_whole_of_it(server: Server, store: Store) -> None:
    def cut(connection: sa.Connection) -> None:
        insert("half")(connection)
        run(connection, "SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(Unavailable):
        await store.write(cut)
    with pytest.raises(Unavailable):
        await store.read(lambda connection: run(connection, "SELECT pg_terminate_backend(pg_backend_pid())") and None)
    await store.write(insert("a"))
    assert await store.read(names) == ["a"]


def test_a_schema_belongs_to_one_agent(
    server: Server, store: Store, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_PATIENCE_S", 0.1)
    with pytest.raises(Unavailable) as found:
        Store(PostgresqlDatabase(server.url, schema), METADATA)
    assert found.value.reason == "STORE_LOCKED" and "database of its own" in found.value.sentence
    store.close_sync()
    Store(PostgresqlDatabase(server.url, schema), METADATA).close_sync()


def test_versions_go_up_and_never_down(server: Server, schema: str) -> None:
    def grow(connection: sa.Connection) -> None:
        run(connection, "ALTER TABLE items ADD COLUMN colour TEXT")

    def opened(*migrations):
        store = Store(PostgresqlDatabase(server.url, schema), METADATA, migrations)
        try:
            return store.read_sync(names)
        finally:
            store.close_sync()

    first = Store(PostgresqlDatabase(server.url, schema), METADATA)
    first.write_sync(insert("a"))
    first.close_sync()
    assert opened(grow) == ["a"] and opened(grow) == ["a"]
    with pytest.raises(DataCorrupted) as found:
        opened()
    assert found.value.reason == "STORE_NEWER"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "cannot be read"),
        ("nonsense", "cannot be read"),
        ("postgresql://", "no PostgreSQL database"),
        ("mysql://host/name", "no PostgreSQL database"),
        ("sqlite:////tmp/a.db", "no PostgreSQL database"),
        ("postgresql://me:sesame@host/name", "holds a password"),
        ("postgresql://me@host/name?password=sesame", "holds a password"),
    ],
)
def test_addresses_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as found:
        PostgresqlDatabase(url, "s")
    assert "sesame" not in found.value.sentence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("grid@", "nobody-here@"), 'role "nobody-here" does not exist'),
        (("/postgres?", "/nowhere?"), 'database "nowhere" does not exist'),
        (("host=", "host=/nowhere"), "No such file or directory"),
    ],
)
def test_a_server_that_refuses_is_told(server: Server, change: tuple[str, str], words: str) -> None:
    with pytest.raises(GridError, match=words):
        Store(PostgresqlDatabase(server.url.replace(*change), "s"), METADATA)


KINDS = [kind for kind in EventType if kind is not EventType.REGISTERED]


def life(seed: int) -> list[Event]:
    """Events of 30 jobs of three people, out of order and with duplicates."""
    pick = random.Random(seed)
    found: list[Event] = []
    for n in range(30):
        parent = "parent" if n % 3 else ""
        fields = {"owner": f"/CN={'abc'[n % 3]}", "vo": "cms", "name": f"é {n}", "parent": parent}
        found.append(Event(f"j{n}", "broker", n + 1, 10**15 + n, EventType.REGISTERED, 1, fields))
        for k in range(pick.randrange(6)):
            more = {"ce": f"ce{n % 4}", "worker": "w", "exit_code": "0", "reason": pick.choice(["", "OK", "ÄÖ\\u0000"])}
            more |= fields | {"wall_s": f"{k}.25", "user_s": "1", "site": "CERN", "memory_bytes": "5000000000"}
            at_us = 10**15 + 1000 * k + pick.randrange(100)
            found.append(Event(f"j{n}", f"gk{n % 2}", 10 * n + k + 1, at_us, pick.choice(KINDS), k % 3, more))
    found.append(
        Event("parent", "broker", 1000, 10**15, EventType.REGISTERED, 1, {"owner": "/CN=a", "type": "collection"})
    )
    mixed = [*found, *pick.sample(found, 20)]
    pick.shuffle(mixed)
    return mixed


def test_bookkeeping_answers_as_from_a_file(server: Server, schema: str, tmp_path: Path) -> None:
    stores = [
        Store(PostgresqlDatabase(server.url, schema), tables.metadata, tables.MIGRATIONS),
        Store(tmp_path / "bookkeeping.db", tables.metadata, tables.MIGRATIONS),
    ]
    events = life(1)
    queries = [
        JobQuery(), JobQuery(job_ids=("parent", "j0", "j1"), page_size=4), JobQuery(owner="/CN=b", page_size=3),
        JobQuery(state=JobState.DONE), JobQuery(ce="ce1"), JobQuery(since_us=10**15 + 5, until_us=10**15 + 9),
        JobQuery(include_parents=True, page_size=7), JobQuery(vo="cms", owner="/CN=c"), JobQuery(vo="atlas"),
    ]  # fmt: skip
    readers = [Reader("broker", is_service=True), Reader("/CN=a", ("cms",)), Reader("/CN=b"), Reader("/CN=x", ("cms",))]

    def everything(store: Store) -> list[object]:
        told: list[object] = []
        for start in range(0, len(events), 13):
            batch = events[start : start + 13]
            told.append(store.write_sync(lambda connection, batch=batch: rows.record(connection, batch)))
        for wanted, reader in itertools.product(queries, readers):
            after = -1
            while after:
                page = replace(wanted, after=max(0, after))
                found, after = store.read_sync(lambda c, page=page, reader=reader: rows.query(c, page, reader))
                told.append(found)
        for job in (*{event.job_id for event in events}, "nobody"):
            told.append((job, store.read_sync(lambda c, job=job: (rows.get(c, job), rows.history(c, job)))))
        told.append(store.read_sync(lambda connection: rows.children_counts(connection, ["parent", "j0"])))
        for by in ((), ("vo",), ("ce", "state"), ("owner", "vo", "ce", "state")):
            wanted = StatisticsQuery(10**15, 10**16, by)
            groups = [store.read_sync(lambda c, w=wanted, r=reader: rows.statistics(c, w, r)) for reader in readers]
            told.append([sorted(found, key=lambda one: one.group) for found in groups])
        for by in ((), ("month",), accounting.GROUPS, ("vo", "site")):
            usage = UsageQuery(1, 10**16, by)
            told += [store.read_sync(lambda c, u=usage, r=reader: accounting.sums(c, u, r)) for reader in readers]
        told += [
            store.read_sync(lambda c, r=reader: accounting.records(c, UsageQuery(1, 10**16), r)) for reader in readers
        ]
        told.append(store.read_sync(lambda connection: accounting.reconcile(connection, UsageQuery(1, 10**16))))
        old = store.read_sync(lambda connection: rows.finished(connection, 10**16, 1000))
        told += [old, store.write_sync(lambda connection: rows.forget(connection, old))]
        told.append(
            store.read_sync(lambda connection: rows.query(connection, JobQuery(include_parents=True), readers[0]))
        )
        return told

    try:
        ours, theirs = (everything(store) for store in stores)
        assert theirs == ours
    finally:
        for store in stores:
            store.close_sync()


async def test_the_bookkeeping_agent_lives_through_a_restart_of_its_server(server: Server, tmp_path: Path) -> None:
    async with LabGrid(tmp_path) as lab:
        lab.plan("bookkeeping")
        await lab.start("bookkeeping", options={"database": server.url})
        broker = BookkeepingClient(await lab.channel("bookkeeping", credential=lab.service("broker")))
        one = pb.Event(job_id="j1", source="broker.CERN", sequence=1, at_us=1, type=pb.EVENT_TYPE_REGISTERED, attempt=1)
        assert (await broker.record([one])).recorded == 1
        await asyncio.to_thread(server.stop)
        try:
            with pytest.raises(Unavailable, match="tried again when asked"):
                await broker.record([one])
        finally:
            await asyncio.to_thread(server.start)
        assert (await broker.record([one])).duplicates == 1
        assert [job.job_id for job in await broker.query()] == ["j1"]
        await lab.stop("bookkeeping.CERN")
        await lab.start("bookkeeping", options={"database": server.url})
        assert (await broker.history("j1")).job.job_id == "j1"


# -- the catalogue


async def test_the_catalogue_answers_as_from_a_file(server: Server, schema: str, tmp_path: Path) -> None:
    ann, bob = (Caller(f"/O=EDG/OU=Users/CN={name}", "cms", ()) for name in ("ann", "bob"))
    content = Content(10, "0a0b0c0d", "ab" * 32)

    def new(path: str, number: int) -> NewFile:
        replica = Replica(f"srm://h:1/cms/{number:032x}", "h:1", 5)
        return NewFile(Lfn(path), str(uuid.UUID(int=number)), content, replica, ann, True, 5)

    async def everything(store: Store) -> list[object]:
        catalogue = CatalogStore(store)
        told: list[object] = []

        async def tell(asked: Awaitable[object]) -> None:
            try:
                told.append(await asked)
            except GridError as error:
                told.append((error.reason, error.sentence))

        names = ["a", "B", "b", "_", "Z", "é", "e", "\U0001f600", "a b", "a%?", "'", "\\", "x" * 255]
        files = [new(f"/grid/cms/ä/{name}", number) for number, name in enumerate(names)]
        told.append(await catalogue.register_many(files))
        for again in (files[0], new("/grid/cms/ä/a", 99), new("/grid/cms/ä/c", 0), new("/grid/cms/ä/a/b", 98)):
            await tell(catalogue.register(again))
        after = ""
        while page := await catalogue.page(Lfn("/grid/cms/ä"), ann, after, 4):
            told.append(page)
            after = page[-1].lfn.rpartition("/")[2]
        alias, own = Lfn("/grid/cms/ä/alias"), files[6].lfn
        for target in (own, alias, files[1].lfn):
            await tell(catalogue.add_alias(target, alias, ann, False, 6))
        await tell(catalogue.lookup([alias], [], ann))
        values = [Attribute.of("t", Kind.TEXT, "é"), Attribute.of("n", Kind.INT, 1 << 53)]
        for lfn in (alias, files[1].lfn):
            await tell(catalogue.set_attributes(lfn, ann, values, ["none"]))
        conditions = [Condition(values[0], Comparison.GREATER), Condition(values[1], Comparison.AT_LEAST)]
        for some in (conditions, [Condition(values[0], Comparison.AT_MOST), conditions[1]]):
            await tell(catalogue.find(Lfn("/grid/cms"), ann, some, 0, 1))
        await tell(catalogue.names_of(files[6].guid, ann))
        await tell(catalogue.remove(own, ann, True, False))
        await tell(catalogue.names_of(alias, ann))
        for number in (1, 2, 3):
            await tell(
                catalogue.add_replica(
                    files[number].guid, ann, content, Replica(f"srm://o:1/cms/{9 - number}", "o:1", 7)
                )
            )
        await tell(catalogue.add_replica(files[4].guid, ann, content, Replica("srm://o:1/cms/8", "o:1", 7)))
        everybody = [file.lfn for file in files] + [Lfn("/grid/cms/ä"), Lfn("/grid/cms/none")]
        await tell(
            catalogue.lookup(everybody, [file.guid for file in files], ann, ["srm://o:1/cms/8", "srm://o:1/none"])
        )
        await tell(catalogue.replicas_below("srm://h:1/cms/", "", 5))
        await tell(catalogue.set_access(Lfn("/grid/cms/ä"), ann, [Grant.of(ann.subject, ["list"], "cms")]))
        for caller in (ann, bob):
            await tell(catalogue.access(files[0].lfn, caller))
            await tell(catalogue.lookup([files[0].lfn], [], caller))
            await tell(catalogue.lookup([], [files[0].guid], caller))
            await tell(catalogue.page(Lfn("/grid/cms/none"), caller, "", 10))
            await tell(catalogue.remove(files[0].lfn, caller, True, True))
            await tell(catalogue.remove(Lfn("/grid/cms/ä"), caller, True, True))
            await tell(catalogue.remove_replica(files[1].lfn, caller, "srm://o:1/cms/8", True))
        return told

    stores = [Store(PostgresqlDatabase(server.url, schema), metadata), Store(tmp_path / "catalog.db", metadata)]
    try:
        ours, theirs = [await everything(store) for store in stores]
        assert ours == theirs
        with pytest.raises(InvalidRequest, match="use a shorter name"):
            deep = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz/", k=4000)).replace("//", "/x")
            await CatalogStore(stores[0]).register(new(f"/grid/cms/{deep}/x", 100))
    finally:
        for store in stores:
            await store.close()


async def test_the_catalogue_keeps_its_names_at_a_server(server: Server, tmp_path: Path) -> None:
    async with LabGrid(tmp_path) as lab:
        alice = lab.user("alice")
        await lab.start("catalog", options={"database": server.url})
        channel = await lab.channel("catalog", credential=alice)
        made = await catalogue_client.register(
            channel, "/grid/cms/x", catalogue_client.new_guid(), Content(1, "0" * 8, "0" * 64)
        )
        await lab.stop("catalog.CERN")
        await lab.start("catalog", options={"database": server.url})
        assert await catalogue_client.replicas(channel, "/grid/cms/x") == made
        assert not list(tmp_path.rglob("catalog.db"))


# -- the history of the information tree


TOO_MUCH = (DeadlineExceeded, Exhausted)


class Still(Recorder):
    """A recorder that keeps nothing."""

    def __init__(self) -> None:
        self.tuples = 0
        self._kept = asyncio.Event()


def ce(free: int, site: str) -> Entry:
    dn = LOCAL.child("mds-vo-name", site).child("GlueCEUniqueID", f"ce.{site}")
    values = {"GlueCEUniqueID": f"ce.{site}", "GlueCEStateFreeJobSlots": free, "GlueCEStateStatus": "Prödu\\ction"}
    return make_entry(dn, {"objectClass": ("GlueTop", "GlueCE"), **values})


def fill(connection: sa.Connection) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    for second in range(60):
        change = Change(tuple(ce(second, f"S{number}") for number in range(20)))
        history.keep(connection, change, at + timedelta(seconds=second))
    history.keep(connection, Change((), (ce(0, "S3").dn, ce(0, "NOWHERE").dn)), at + timedelta(seconds=60))
    history.trim(connection, at + timedelta(seconds=2), 1000)


async def ask(queries: HistoryQueries, sql: str) -> list[tuple[object, ...]]:
    return [client._row(row) async for message in queries.answer(sql, "me", continuous=False) for row in message.rows]


@pytest.fixture(scope="module")
def readers(server: Server) -> None:
    with psycopg.connect(server.url, autocommit=True) as connection:
        for sql in (
            "CREATE DATABASE tops",
            "CREATE ROLE reader LOGIN", "CREATE ROLE nologin", "CREATE ROLE root LOGIN SUPERUSER",
            "CREATE ROLE maker LOGIN CREATEROLE", "CREATE ROLE member LOGIN IN ROLE pg_read_all_data",
            "CREATE ROLE other LOGIN", "CREATE SCHEMA theirs", "CREATE TABLE theirs.secret (a int)",
            "GRANT SELECT (a) ON theirs.secret TO other", 'CREATE ROLE "we""ird" LOGIN',
        ):  # fmt: skip
            connection.execute(sql.encode())


@pytest.fixture(scope="module")
def kept(server: Server, readers: None) -> Iterator[Store]:
    store = Store(PostgresqlDatabase(server.url, "history"), history.metadata)
    store.write_sync(fill)
    store.write_sync(lambda connection: lend(connection, "history", "reader", tuple(history.metadata.tables)))
    yield store
    store.close_sync()


@pytest.fixture
def queries(server: Server, kept: Store) -> HistoryQueries:
    return HistoryQueries(address(server.url, "history", "reader"), Still(), deadline_s=60.0)


@pytest.fixture
def hasty(server: Server, kept: Store) -> HistoryQueries:
    return HistoryQueries(address(server.url, "history", "reader"), Still(), deadline_s=1.0)


async def test_the_history_answers_as_from_a_file(queries: HistoryQueries, tmp_path: Path) -> None:
    file = Store(tmp_path / "history.db", history.metadata)
    file.write_sync(fill)
    theirs = HistoryQueries(tmp_path / "history.db", Still())
    try:
        for sql in (
            "select count(*), max(Id), min(Id) from GlueCEHistory",
            "SELECT Site FROM gluece WHERE Site LIKE 'S1_' ORDER BY Site LIMIT 2;",
            "with last(m) as (select max(At) from GlueCE) select m from last",
            "select * from GlueCEHistory order by Id desc limit 30",
            "select sum(GlueCEStateFreeJobSlots), avg(GlueCEStateFreeJobSlots), null, 1.5 from GlueCE",
            "select a.Site, b.Gone from GlueCE a join GlueCEHistory b using (Dn) where b.Id > 1190 order by b.Id",
        ):  # fmt: skip
            assert await ask(queries, sql) == await ask(theirs, sql)
        columns = [
            list(message.columns)
            async for message in queries.answer("select *, 1 as Ab from GlueCE", "me", continuous=False)
        ]
        assert columns[0][:3] == ["Dn", "Site", "GlueCEUniqueID"] and columns[0][-1] == "ab"
        assert await ask(queries, "select current_user::text where 1 = 1") == [("reader",)]
    finally:
        file.close_sync()


@pytest.mark.parametrize(
    ("sql", "error", "words"),
    [
        ("select * from nothing", InvalidRequest, "does not exist; there are: GlueSite"),
        ("select 1; delete from GlueCE", InvalidRequest, "multiple commands"),
        ("with x as (delete from GlueCE returning 1) select 1", InvalidRequest, "data-modifying"),
        ("select * into mine from GlueCE", InvalidRequest, "cannot be answered"),
        ("select * from GlueCE for update", InvalidRequest, "denied"),
        ("select * from theirs.secret", InvalidRequest, "permission denied"),
        ("select 1/0", InvalidRequest, "division by zero"),
        ("select from from", InvalidRequest, "syntax error"),
        ("with recursive c(x) as (select 1 union all select (x + 1) % 7 from c) select max(x) from c", TOO_MUCH, None),
        ("with recursive c(x) as (select 'x' union all select x || x from c) select max(x) from c", TOO_MUCH, None),
        ("select count(*) from GlueCEHistory a, GlueCEHistory b, GlueCEHistory c", TOO_MUCH, None),
    ],
)  # fmt: skip
async def test_the_server_refuses_what_is_no_reading(
    queries: HistoryQueries, hasty: HistoryQueries, sql: str, error: type[GridError], words: str | None
) -> None:
    with pytest.raises(error, match=words):
        await ask(hasty if error is TOO_MUCH else queries, sql)


@pytest.mark.parametrize(
    "sql",
    [
        "copy (select 1) to '/tmp/gridfabric-stolen'", "reset role", "select set_config('role', 'grid', false)",
        "create temp table mine (a int)", "select pg_read_file('/etc/passwd')", "select * from pg_shadow",
    ],
)  # fmt: skip
async def test_the_role_may_not_either(queries: HistoryQueries, sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the query had not been read before."""
    monkeypatch.setattr("agents.information.queries.require_harmless", lambda sql: None)
    with pytest.raises(InvalidRequest, match=r"denied|read-only|cannot be answered"):
        await ask(queries, sql)


async def test_an_answer_from_the_server_is_bounded(queries: HistoryQueries, hasty: HistoryQueries) -> None:
    found = [m async for m in queries.answer("select 1 from GlueCEHistory, GlueCE", "me", continuous=False)]
    assert sum(len(message.rows) for message in found) == MAX_ROWS and found[-1].truncated
    wide = "select " + " || ".join(["string_agg(a.Dn, b.Dn)"] * 20) + " from GlueCEHistory a, GlueCEHistory b"
    with pytest.raises(TOO_MUCH):
        await ask(hasty, wide)


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("nobody", "cannot log in"), ("nologin", "cannot log in"), ("root", "rolsuper"), ("maker", "rolcreaterole"),
        ("member", "member of another"), ("other", "rights on theirs.secret"), ("grid", "rolsuper"),
        ('x" TO reader; --', "cannot log in"),
    ],
)  # fmt: skip
def test_a_role_that_may_do_more_is_refused(kept: Store, role: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        kept.write_sync(lambda connection: lend(connection, "history", role, tuple(history.metadata.tables)))
    assert caught.value.reason == "DATABASE_READER_UNSAFE" and "CREATE ROLE" in caught.value.sentence
    kept.write_sync(lambda connection: lend(connection, "history", 'we"ird', tuple(history.metadata.tables)))


async def test_a_top_server_keeps_its_history_there(server: Server, readers: None, tmp_path: Path) -> None:
    options = {"level": "top", "history_database": server.url.replace("/postgres?", "/tops?")}
    async with LabGrid(tmp_path) as lab:
        lab.plan("top")
        lab.plan("information", site="RAL")
        with pytest.raises(InvalidRequest, match="needs history_reader"):
            await lab.start("top", options=options, builder=build_information)
        options["history_reader"] = "reader"
        await lab.start("top", options=options, builder=build_information)
        top = await lab.channel("top", credential=lab.user())
        follower = client.follow(top, "select GridFabricSiteState from GridFabricSiteHistory where Site = 'RAL'")
        assert (await anext(follower)).columns == ("GridFabricSiteState",)
        await lab.start("information", site="RAL", builder=build_information)
        async with asyncio.timeout(60):
            assert ("current",) in (await anext(follower)).rows
        await follower.aclose()

        async def known() -> bool:
            answer = await client.query(top, "select GlueServiceType from GlueService where Site = 'RAL'")
            return answer.rows == (("bdii_site",),)

        await until(known, "the site's own service is in the history")
        await asyncio.to_thread(server.stop)
        try:
            with pytest.raises(Unavailable, match="cannot be read now"):
                await client.query(top, "select 1")
            await lab.stop("information.RAL")
        finally:
            await asyncio.to_thread(server.start)

        async def gone() -> bool:
            try:
                return not (await client.query(top, "select 1 from GlueService where Site = 'RAL'")).rows
            except Unavailable:
                return False

        await until(gone, "what went while the database was away is gone from the latest tables")
