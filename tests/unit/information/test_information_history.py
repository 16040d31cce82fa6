"""The history of the tree: what is kept for how long, and queries of it that can harm nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.grid import LabGrid
from support.waiting import until

from agents.information import client, harmless_sql, history, query_process
from agents.information.agent import InformationAgent
from agents.information.agent import build as build_information
from agents.information.history import Recorder
from agents.information.model import Change
from agents.information.queries import MAX_QUERIES_OF_ONE, MAX_ROWS, HistoryQueries
from agents.user_interface.information_history import is_query
from fabric.errors import DeadlineExceeded, Exhausted, GridError, InvalidRequest, NotFound, Refused, Unauthenticated
from fabric.information_tree import LOCAL
from fabric.ldap import Entry, make_entry
from fabric.store import Store

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def ce(free: int, site: str = "RAL") -> Entry:
    dn = LOCAL.child("mds-vo-name", site).child("GlueCEUniqueID", f"ce.{site}")
    values = {"GlueCEUniqueID": f"ce.{site}", "GlueCEStateFreeJobSlots": free, "GlueCEStateStatus": "Production"}
    return make_entry(dn, {"objectClass": ("GlueTop", "GlueCE"), **values})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "history.db", history.metadata)
    yield made
    made.close_sync()


def keep(store: Store, *entries: Entry, removed: tuple[Entry, ...] = (), at: datetime = NOW) -> int:
    change = Change(entries, tuple(entry.dn for entry in removed))
    return store.write_sync(lambda connection: history.keep(connection, change, at))


def rows(store: Store, sql: str) -> list[tuple[Any, ...]]:
    return store.read_sync(lambda connection: [tuple(row) for row in connection.exec_driver_sql(sql)])


def test_the_latest_and_the_history(store):
    assert keep(store, ce(4), ce(7, "CNAF")) == 2
    assert keep(store, ce(3), at=NOW + timedelta(seconds=1)) == 1
    assert rows(store, "SELECT Site, GlueCEStateFreeJobSlots FROM GlueCE ORDER BY Site") == [("CNAF", 7), ("RAL", 3)]
    assert rows(store, "SELECT Id, Site, GlueCEStateFreeJobSlots, Gone FROM GlueCEHistory") == [
        (1, "RAL", 4, 0), (2, "CNAF", 7, 0), (3, "RAL", 3, 0),
    ]  # fmt: skip
    assert rows(store, "SELECT At FROM GlueCE WHERE Site = 'RAL'") == [("2026-01-01T00:00:01.000000Z",)]


def test_what_went_is_a_tuple_too(store):
    keep(store, ce(4))
    assert keep(store, removed=(ce(4), ce(1, "NOWHERE"))) == 1
    assert rows(store, "SELECT COUNT(*) FROM GlueCE") == [(0,)]
    assert rows(store, "SELECT GlueCEStateFreeJobSlots, Gone FROM GlueCEHistory") == [(4, 0), (4, 1)]


def test_another_life_of_the_server_begins_with_an_empty_tree(store):
    keep(store, ce(4))
    store.write_sync(history.begin)
    assert rows(store, "SELECT (SELECT COUNT(*) FROM GlueCE), (SELECT COUNT(*) FROM GlueCEHistory)") == [(0, 1)]


@pytest.mark.parametrize("text", ["four", "", "9" * 30, "1e3", "-"])
def test_a_number_that_is_none_is_null(store, text):
    keep(store, Entry(ce(1).dn, {**ce(1).attributes, "GlueCEStateFreeJobSlots": (text,)}))
    assert rows(store, "SELECT GlueCEStateFreeJobSlots FROM GlueCE") == [(None,)]


def test_values_are_bounded(store):
    keep(store, Entry(ce(1).dn, {**ce(1).attributes, "GlueCEStateStatus": ("x" * 10**6,)}))
    assert rows(store, "SELECT LENGTH(GlueCEStateStatus) FROM GlueCE") == [(history.MAX_TEXT,)]


@pytest.mark.parametrize(
    ("before_s", "most", "left"), [(0, 10, [1, 2, 3, 4]), (2, 10, [3, 4]), (0, 1, [4]), (99, 9, [])]
)
def test_old_tuples_go_by_age_and_by_number(store, before_s, most, left):
    for second in range(4):
        keep(store, ce(second), at=NOW + timedelta(seconds=second))
    before = NOW + timedelta(seconds=before_s)
    store.write_sync(lambda connection: history.trim(connection, before, most))
    assert rows(store, "SELECT Id FROM GlueCEHistory") == [(number,) for number in left]
    keep(store, ce(9))
    assert rows(store, "SELECT MAX(Id) FROM GlueCEHistory") == [(5,)], "a number is never given twice"


# -- queries


class Still(Recorder):
    """A recorder that keeps nothing."""

    def __init__(self) -> None:
        self.tuples = 0
        self._kept = asyncio.Event()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("filled") / "history.db"
    store = Store(path, history.metadata)

    def fill(connection: Any) -> None:
        for second in range(60):
            change = Change(tuple(ce(second, f"S{number}") for number in range(20)))
            history.keep(connection, change, NOW + timedelta(seconds=second))

    store.write_sync(fill)
    yield path
    store.close_sync()


@pytest.fixture
def queries(filled: Path) -> HistoryQueries:
    return HistoryQueries(filled, Still(), deadline_s=1.0)


async def ask(queries: HistoryQueries, sql: str, who: str = "me") -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    async for message in queries.answer(sql, who, continuous=False):
        found += [client._row(row) for row in message.rows]
    return found


@pytest.mark.parametrize(
    ("sql", "answer"),
    [
        ("select count(*), max(Id) from GlueCEHistory", [(1200, 1200)]),
        ("SELECT Site FROM gluece WHERE Site LIKE 'S1_' ORDER BY Site LIMIT 2", [("S10",), ("S11",)]),
        ("with last(m) as (select max(At) from GlueCE) select m from last", [("2026-01-01T00:00:59.000000Z",)]),
        ("select count(*) from (select 1 from GlueCE)", [(20,)]),
        ("select null, 1, 1.5, 'ä', x'ff'", [(None, 1, 1.5, "ä", "ff")]),
        ("select a.Site from GlueCE a join GlueCEHistory b using (Dn) where b.Id = 3", [("S2",)]),
    ],
)
async def test_a_query_is_answered(queries, sql, answer):
    assert await ask(queries, sql) == answer


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("select * from sqlite_master", "QUERY_DENIED"),
        ("select * from temp.sqlite_master", "QUERY_DENIED"),
        ("select * from pragma_table_info('GlueCE')", "QUERY_DENIED"),
        ("select * from json_each('[1]')", "QUERY_DENIED"),
        ("select load_extension('/tmp/x')", "QUERY_DENIED"),
        ("select randomblob(1000000000)", "QUERY_DENIED"),
        ("select fts3_tokenizer('x')", "QUERY_DENIED"),
        ("pragma journal_mode = delete", "QUERY_DENIED"),
        ("attach 'other.db' as other", "QUERY_DENIED"),
        ("vacuum into 'copy.db'", "QUERY_DENIED"),
        ("delete from GlueCE", "QUERY_DENIED"),
        ("insert into GlueCEHistory(Dn) values ('x')", "QUERY_DENIED"),
        ("drop table GlueCE", "QUERY_DENIED"),
        ("create temp table mine(a)", "QUERY_DENIED"),
        ("begin immediate", "QUERY_DENIED"),
        ("with x as (select 1) delete from GlueCE", "QUERY_DENIED"),
        ("select 1; delete from GlueCE", "QUERY_INVALID"),
        ("select * from nothing", "QUERY_INVALID"),
        ("select ?1", "QUERY_INVALID"),
        ("selec 1", "QUERY_INVALID"),
        ("-- nothing", "QUERY_INVALID"),
        ("select " + "(" * 200 + "1" + ")" * 200, "QUERY_INVALID"),
        ("select 'a' like '" + "%a" * 60 + "'", "QUERY_INVALID"),
        (" ", "QUERY_INVALID"),
        ("select '\0'", "QUERY_INVALID"),
        ("select '" + "x" * 20_000 + "'", "QUERY_INVALID"),
    ],
)  # fmt: skip
async def test_what_is_no_reading_of_the_tables_is_refused(queries, filled, sql, reason):
    with pytest.raises(InvalidRequest) as caught:
        await ask(queries, sql)
    assert caught.value.reason == reason, caught.value
    files = {path.name for path in filled.parent.iterdir()}
    assert files <= {"history.db", "history.db-wal", "history.db-shm"}
    assert await ask(queries, "select (select count(*) from GlueCE), (select count(*) from GlueCEHistory)") == [
        (20, 1200)
    ]


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("with recursive c(x) as (select 1 union all select x + 1 from c) select max(x) from c", DeadlineExceeded),
        ("select count(*) from GlueCEHistory a, GlueCEHistory b, GlueCEHistory c", DeadlineExceeded),
        (
            "select a.Dn||b.Dn||c.Dn from GlueCEHistory a, GlueCEHistory b, GlueCEHistory c order by 1",
            (DeadlineExceeded, Exhausted),
        ),
    ],
)
async def test_a_query_without_an_end_is_ended(queries, sql, error):
    with pytest.raises(error) as caught:
        await ask(queries, sql)
    assert caught.value.reason in ("QUERY_TOO_SLOW", "QUERY_TOO_LARGE")
    assert await ask(queries, "select 1") == [(1,)]


async def test_an_answer_is_bounded_and_says_so(queries):
    messages = [m async for m in queries.answer("select 1 from GlueCEHistory, GlueCE", "me", continuous=False)]
    assert sum(len(message.rows) for message in messages) == MAX_ROWS
    assert [message.truncated for message in messages] == [False] * (len(messages) - 1) + [True]


async def test_few_queries_at_a_time_and_fewer_of_one_person(queries):
    slow = "select count(*) from GlueCEHistory a, GlueCEHistory b, GlueCEHistory c"
    mine = [asyncio.ensure_future(ask(queries, slow)) for _ in range(MAX_QUERIES_OF_ONE)]
    await asyncio.sleep(0)
    with pytest.raises(Exhausted, match="of yours"):
        await ask(queries, "select 1")
    others = [asyncio.ensure_future(ask(queries, slow, who)) for who in ("eve", "mallory")]
    await asyncio.sleep(0)
    with pytest.raises(Exhausted, match="of all users"):
        await ask(queries, "select 1", "bob")
    ended = await asyncio.gather(*mine, *others, return_exceptions=True)
    assert all(isinstance(error, DeadlineExceeded) for error in ended)
    assert await ask(queries, "select 1") == [(1,)]


async def test_a_cancelled_query_leaves_no_process_and_no_place_taken(queries, monkeypatch):
    started: list[asyncio.subprocess.Process] = []
    spawn, spawned = asyncio.create_subprocess_exec, asyncio.Event()

    async def noted(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        started.append(await spawn(*arguments, **options))
        spawned.set()
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
    task = asyncio.ensure_future(ask(queries, "select count(*) from GlueCEHistory a, GlueCEHistory b, GlueCEHistory c"))
    async with asyncio.timeout(60):
        await spawned.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [process.returncode for process in started] == [-9]
    assert not any(queries._running.values())


def test_functions_that_reach_outside_are_not_among_those_allowed():
    outside = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "randomblob", "zeroblob", "printf"}
    assert not query_process.FUNCTIONS & outside
    outside = {"set_config", "lo_create", "lo_import", "query_to_xml", "dblink", "format", "repeat", "lpad", "nextval"}
    assert not harmless_sql.FUNCTIONS & outside


# -- what is sent to PostgreSQL is read before


@pytest.mark.parametrize(
    "sql",
    [
        "select count(*), max(Id) from GlueCEHistory;",
        "SELECT Site FROM gluece WHERE Site LIKE 'it''s (%' ORDER BY Site -- pg_sleep(1)\n LIMIT 2",
        "with last(m, n) as (select max(At), 1 from GlueCE), b as materialized (select 1) select m from last, b",
        "select a.n from (values (1), (2)) as a(n) where n in (1, 2) and exists (select 1) or not (n = 3)",
        'select "Site" as "Where", sum(Id) over (partition by Site order by (Id)) from GlueCEHistory',
        "(select 1) union all (select extract(epoch from At::timestamptz)::numeric(10, 2) from GlueSite)",
        "select date_trunc('hour', cast(At as timestamptz)) as hour, 1.5/2*-3 % 4 from GlueCE group by hour",
        "select 'pg_sleep(1) /* $$ E\\'",
        "select row_number() over () from lateral (select Site || 'x' != 'y') z",
    ],
)
def test_harmless_queries_are_let_through(sql):
    harmless_sql.require_harmless(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "",
        ";",
        "()",
        "-- select 1",
        "delete from GlueCE",
        "table GlueCE",
        "show all",
        "set role grid",
        "copy GlueCE to stdout",
        "explain analyze select 1",
        "do 'x'",
        "select pg_sleep(10)",
        "select PG_SLEEP (10)",
        'select "pg_sleep"(10)',
        "select pg_catalog.pg_sleep(10)",
        "select pg_sleep -- x\n (10)",
        "select 1, lo_create(0)",
        "select lo_create\t\n(0)",
        "select set_config('role', 'grid', false)",
        "select query_to_xml('select 1', true, true, '')",
        "select usename from pg_stat_activity",
        'select * from "pg_shadow"',
        "select * from information_schema.tables",
        "select /* /* */ ' */ lo_create(0) --'",
        "select 1 /* x */",
        "select $$x$$",
        "select $1",
        "select e'\\' lo_create(0) --'",
        "select E'\\', lo_create(0), '\\''",
        "select u&'\\0061'",
        'select U&"lo\\005fcreate"(0)',
        "select N'x'",
        "select b'1'",
        "select 'open",
        'select "open',
        "select lo_create\xa0(0)",
        "select löschen(1)",
        "select '' where lo_create (0) = 1",
        "select 1e5lo_create(0)",
        "select 1lo_create(0)",
        "select x from lo_create(0) as (with_ int)",
        "select x from dblink(a) as (values text)",
        "select x from dblink(a, b) as (a text)",
        'select "in"(1)',
        'select "as"(1)',
        'with "f"(a) as (select 1) select 1',
        "select nextval ('x')",
        "select @ 1",
        "select 1 # 2",
        "select `a`",
        "select \\",
    ],
)
def test_what_is_not_understood_or_calls_more_is_denied(sql):
    with pytest.raises(InvalidRequest) as caught:
        harmless_sql.require_harmless(sql)
    assert caught.value.reason == "QUERY_DENIED" and caught.value.sentence.endswith("is denied")


def test_a_name_too_long_for_an_index_is_not_kept(store):
    long = Entry(LOCAL.child("GlueCEUniqueID", "x" * 1998), ce(1).attributes)
    assert keep(store, long, ce(1)) == 1
    assert keep(store, removed=(long,)) == 0


@pytest.mark.parametrize(
    ("text", "is_sql"),
    [("select 1", True), ("  SELECT\n1", True), ("with x as (select 1) select * from x", True), ("", False),
     ("(objectClass=GlueCE)", False), ("selected=1", False), ("(cn=select *)", False)],
)  # fmt: skip
def test_a_select_is_told_from_a_filter(text, is_sql):
    assert is_query(text) is is_sql


# -- with servers


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path) as lab:
        lab.plan("top")
        lab.plan("information", site="RAL")
        await lab.start("top", options={"level": "top"}, builder=build_information)
        yield lab


async def test_a_user_asks_and_follows(lab: LabGrid) -> None:
    top = await lab.channel("top", credential=lab.user())
    follower = client.follow(top, "select GridFabricSiteState from GridFabricSiteHistory where Site = 'RAL'")
    first = await anext(follower)
    assert (first.columns, first.rows) == (("GridFabricSiteState",), ())
    site = (await lab.start("information", site="RAL", builder=build_information)).agent
    assert isinstance(site, InformationAgent)
    async with asyncio.timeout(60):
        assert ("current",) in (await anext(follower)).rows
    await follower.aclose()

    async def kept() -> bool:
        answer = await client.query(top, "select GlueServiceType from GlueService where Site = 'RAL'")
        return answer.rows == (("bdii_site",),)

    await until(kept, "the site's own service is in the history")
    await lab.stop("information.RAL")

    async def gone() -> bool:
        said = await client.query(
            top, "select Gone from GlueServiceHistory where Site = 'RAL' order by Id desc limit 1"
        )
        return said.rows == ((1,),)

    await until(gone, "the tuple that says that the service is gone")
    with pytest.raises(InvalidRequest, match="there is no table nowhere"):
        await client.query(top, "select * from nowhere")


async def test_who_is_nobody_asks_nothing_and_a_site_keeps_nothing(lab: LabGrid) -> None:
    with pytest.raises((Unauthenticated, Refused)):
        await client.query(await lab.channel("top"), "select 1")
    with pytest.raises(GridError) as caught:
        await client.query(await lab.channel("top", credential=lab.user("eve", vo=None)), "select 1")
    assert isinstance(caught.value, Refused | Unauthenticated)
    await lab.start("information", site="RAL", builder=build_information)
    with pytest.raises(NotFound, match="keeps no history"):
        await client.query(await lab.channel("information", site="RAL", credential=lab.user()), "select 1")
