"""The store: what was acknowledged is there, one failure harms no other, damage is said in one sentence."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from fabric import store as module
from fabric.database_sqlite import KEPT_ASIDE, give_up, is_given_up, set_aside
from fabric.errors import DataCorrupted, Defect, Exhausted, GridError, NotFound, Unavailable
from fabric.store import Store

METADATA = sa.MetaData()
ITEMS = sa.Table(
    "items", METADATA, sa.Column("name", sa.Text, primary_key=True), sa.Column("size", sa.Integer, nullable=False)
)


def insert(name: str, size: int = 0):
    def function(connection: sa.Connection) -> str:
        connection.execute(ITEMS.insert().values(name=name, size=size))
        return name

    return function


def names(connection: sa.Connection) -> list[str]:
    return list(connection.execute(sa.select(ITEMS.c.name).order_by(ITEMS.c.name)).scalars())


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(tmp_path / "a.db", METADATA)
    yield opened
    await opened.close()


async def test_a_write_is_read_back_and_the_file_is_private(store: Store) -> None:
    assert await store.write(insert("a")) == "a"
    assert await store.read(names) == ["a"]
    assert store.read_sync(names) == ["a"]
    assert store.write_sync(insert("b")) == "b"
    assert Path(store.name).stat().st_mode & 0o777 == 0o600


async def test_it_is_really_wal_full_and_foreign_keys(store: Store) -> None:
    def look(connection: sa.Connection) -> list[object]:
        return [
            connection.exec_driver_sql(f"PRAGMA {p}").scalar() for p in ("journal_mode", "synchronous", "foreign_keys")
        ]

    assert await store.write(look) == ["wal", 2, 1]
    assert await store.read(look) == ["wal", 2, 1]


async def test_writers_share_transactions(store: Store) -> None:
    before = store.transactions
    await asyncio.gather(*(store.write(insert(f"{n:04d}")) for n in range(500)))
    assert len(await store.read(names)) == 500
    assert store.transactions - before < 100


async def test_one_that_raises_harms_no_other(store: Store) -> None:
    def bad(connection: sa.Connection) -> None:
        insert("half")(connection)
        raise NotFound("MISSING", "not there")

    results = await asyncio.gather(
        store.write(insert("a")),
        store.write(bad),
        store.write(insert("a")),
        store.write(insert("b")),
        return_exceptions=True,
    )
    assert results[0] == "a" and results[3] == "b"
    assert isinstance(results[1], NotFound) and isinstance(results[2], sa.exc.IntegrityError)
    assert await store.read(names) == ["a", "b"]


async def test_later_functions_see_earlier_ones(store: Store) -> None:
    async def see() -> list[str]:
        return await store.write(names)

    results = await asyncio.gather(store.write(insert("a")), see(), store.write(insert("b")), see())
    assert results[1] == ["a"] and results[3] == ["a", "b"]


async def test_a_function_that_ends_the_transaction_is_a_defect(store: Store) -> None:
    def rude(connection: sa.Connection) -> None:
        connection.exec_driver_sql("COMMIT")

    with pytest.raises(Defect):
        await store.write(rude)
    await store.write(insert("a"))
    assert await store.read(names) == ["a"]


async def test_stop_iteration_does_not_hang_the_caller(store: Store) -> None:
    with pytest.raises(Defect):
        await store.write(lambda connection: next(iter(())))


async def test_readers_cannot_write(store: Store) -> None:
    with pytest.raises(Exception, match=r"readonly|cannot be used"):
        await store.read(insert("a"))
    assert await store.read(names) == []


async def test_a_reader_sees_one_moment(store: Store) -> None:
    await store.write(insert("a"))
    looked, go_on = threading.Event(), threading.Event()

    def slow(connection: sa.Connection) -> tuple[list[str], list[str]]:
        first = names(connection)
        looked.set()
        assert go_on.wait(60)
        return first, names(connection)

    reading = asyncio.create_task(store.read(slow))
    assert await asyncio.to_thread(looked.wait, 10)
    await store.write(insert("b"))
    go_on.set()
    assert await reading == (["a"], ["a"])
    assert await store.read(names) == ["a", "b"]


async def test_a_cancelled_writer_disturbs_nobody(store: Store) -> None:
    tasks = [asyncio.create_task(store.write(insert(f"{n}"))) for n in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert {f"{n}" for n in range(1, 20, 2)} <= set(await store.read(names))


async def test_after_commit_is_after_the_commit(store: Store) -> None:
    seen: list[list[str]] = []

    def function(connection: sa.Connection) -> None:
        insert("a")(connection)
        store.after_commit(lambda: seen.append(store.read_sync(names)))

    await store.write(function)
    assert seen == [["a"]]


async def test_more_waiting_than_the_disk_takes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    store = Store(tmp_path / "a.db", METADATA)
    started, go_on = threading.Event(), threading.Event()

    def block(connection: sa.Connection) -> None:
        started.set()
        assert go_on.wait(60)

    blocker = asyncio.create_task(store.write(block))
    assert await asyncio.to_thread(started.wait, 10)
    waiting = [asyncio.create_task(store.write(insert(f"{n}"))) for n in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Exhausted) as found:
        await store.write(insert("over"))
    assert found.value.retry_after_s == 1
    go_on.set()
    await asyncio.gather(blocker, *waiting)
    await store.close()


async def test_closing_commits_what_waits_and_refuses_what_comes(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db", METADATA)
    tasks = [asyncio.create_task(store.write(insert(f"{n}"))) for n in range(10)]
    await asyncio.sleep(0)
    await store.close()
    assert [task.exception() for task in tasks] == [None] * 10
    for call in (store.write(insert("x")), store.read(names)):
        with pytest.raises(Unavailable) as found:
            await call
        assert found.value.reason == "STORE_CLOSED"
    await store.close()
    again = Store(tmp_path / "a.db", METADATA)
    assert len(await again.read(names)) == 10
    await again.close()


CRASHER = """
import sys, sqlalchemy as sa
from pathlib import Path
from fabric.store import Store
metadata = sa.MetaData()
sa.Table("items", metadata, sa.Column("name", sa.Text, primary_key=True), sa.Column("size", sa.Integer, nullable=False))
store = Store(Path(sys.argv[1]), metadata)
for number in range(100000):
    store.write_sync(lambda c: c.exec_driver_sql("INSERT INTO items VALUES (?, 0)", (f"{number:06d}",)) and None)
    sys.stdout.write(f"{number:06d}\\n")
    sys.stdout.flush()
"""


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", CRASHER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += [line.strip() for line in process.stdout.read().splitlines() if len(line.strip()) == 6]
    process.wait(10)
    store = Store(path, METADATA)
    found = await store.read(names)
    await store.close()
    assert set(acknowledged) <= set(found)
    assert len(found) <= len(acknowledged) + 1


async def test_migrations_run_once_in_order(tmp_path: Path) -> None:
    first = Store(tmp_path / "a.db", METADATA)
    await first.write(insert("a", 3))
    await first.close()
    wider = sa.MetaData()
    sa.Table("items", wider, *(column._copy() for column in ITEMS.columns), sa.Column("colour", sa.Text))  # pyright: ignore
    sa.Table("more", wider, sa.Column("x", sa.Integer))
    ran: list[int] = []

    def add_column(connection: sa.Connection) -> None:
        ran.append(1)
        connection.exec_driver_sql("ALTER TABLE items ADD COLUMN colour TEXT")

    def fill(connection: sa.Connection) -> None:
        ran.append(2)
        connection.exec_driver_sql("UPDATE items SET colour = 'blue'")

    for _ in range(2):
        store = Store(tmp_path / "a.db", wider, (add_column, fill))
        assert await store.read(lambda c: c.exec_driver_sql("SELECT name, size, colour FROM items").fetchall()) == [
            ("a", 3, "blue")
        ]
        assert await store.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM more").scalar()) == 0
        await store.close()
    assert ran == [1, 2]
    with pytest.raises(DataCorrupted) as found:
        Store(tmp_path / "a.db", METADATA)
    assert found.value.reason == "STORE_NEWER"


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    first = Store(tmp_path / "a.db", METADATA)
    await first.write(insert("a"))
    await first.close()

    def bad(connection: sa.Connection) -> None:
        connection.exec_driver_sql("DELETE FROM items")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        Store(tmp_path / "a.db", METADATA, (bad,))
    again = Store(tmp_path / "a.db", METADATA)
    assert await again.read(names) == ["a"]
    await again.close()


def reason_of_opening(path: Path) -> GridError:
    with pytest.raises(GridError) as found:
        Store(path, METADATA)
    assert str(path) in found.value.sentence
    return found.value


async def test_damage_is_said_when_opening(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"this is not a database at all, not at all" * 100)
    assert reason_of_opening(path).reason == "STORE_CORRUPT"
    path.unlink()
    store = Store(path, METADATA)
    for start in range(0, 3000, 500):
        await asyncio.gather(*(store.write(insert(f"{n:05d}" + "x" * 200)) for n in range(start, start + 500)))
    await store.close()
    data = bytearray(path.read_bytes())
    for page in range(2, len(data) // 4096 - 1, 3):
        data[page * 4096 : page * 4096 + 512] = os.urandom(512)
    path.write_bytes(data)
    error = reason_of_opening(path)
    assert isinstance(error, DataCorrupted) and error.reason == "STORE_CORRUPT" and "backup" in error.sentence


async def test_damage_that_is_met_later_is_told_and_the_file_is_set_aside(tmp_path: Path) -> None:
    path, met = tmp_path / "a.db", list[GridError]()
    store = Store(path, METADATA, on_damage=met.append)
    for start in range(0, 3000, 500):
        await asyncio.gather(*(store.write(insert(f"{n:05d}" + "x" * 200)) for n in range(start, start + 500)))
    await store.close()
    store = Store(path, METADATA, on_damage=met.append)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096 * 2)
        file.write(os.urandom(size - 4096 * 2))
    with pytest.raises(DataCorrupted):
        await store.read(lambda connection: connection.exec_driver_sql("SELECT sum(size) FROM items").all())
    await store.close()
    assert [error.reason for error in met] == ["STORE_CORRUPT"]
    moments = [datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 6)]
    for moment in moments:
        give_up(path, "met while it was used")
        assert is_given_up(path)
        path.touch()
        path.with_name("a.db-wal").touch()
        kept = set_aside(path, "met while it was used", moment)
        assert kept.name == f"a.db.damaged-{moment:%Y%m%dT%H%M%SZ}"
        assert not is_given_up(path) and not path.exists() and not path.with_name("a.db-wal").exists()
    assert len(list(tmp_path.glob("a.db.damaged-*Z"))) == KEPT_ASIDE
    assert len(list(tmp_path.glob("a.db.damaged-*Z-wal"))) == KEPT_ASIDE


async def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    assert reason_of_opening(tmp_path / "no" / "such" / "a.db").reason == "STORE_UNAVAILABLE"


async def test_a_full_disk_is_exhaustion_and_ends_when_there_is_room(store: Store) -> None:
    def limit(connection: sa.Connection, pages: int) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    await store.write(lambda connection: limit(connection, 8))
    results = await asyncio.gather(
        *(store.write(insert(f"{n}" + "x" * 1000)) for n in range(100)), return_exceptions=True
    )
    failed = [result for result in results if isinstance(result, BaseException)]
    assert failed and all(isinstance(error, Exhausted) and error.reason == "STORE_FULL" for error in failed)
    kept = await store.read(names)
    assert set(kept) == {result for result in results if isinstance(result, str)}
    await store.write(lambda connection: limit(connection, 100_000))
    await store.write(insert("room"))


async def test_held_by_another_process(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.write(lambda connection: connection.exec_driver_sql("PRAGMA busy_timeout = 50") and None)
    other = sqlite3.connect(store.name, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable) as found:
        await store.write(insert("a"))
    assert found.value.reason == "STORE_LOCKED"
    other.execute("ROLLBACK")
    other.close()
    await store.write(insert("a"))
