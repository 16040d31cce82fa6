"""Power lost at any moment: the stores of broker, gatekeeper and bookkeeping open again without damage, as they were
after one of their transactions, and not before the last one that was acknowledged."""

from __future__ import annotations

import hashlib
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.power import Recorder
from support.proof import TIMES

from agents.bookkeeping import store as bookkeeping_rows
from agents.bookkeeping import tables as bookkeeping_tables
from agents.bookkeeping.model import Event, EventType
from agents.broker import machine
from agents.broker import store as broker_rows
from agents.broker import tables as broker_tables
from agents.broker.jdl import normalise
from agents.gatekeeper import store as gatekeeper_rows
from agents.gatekeeper.model import Job, State
from fabric.outbox import Outbox
from fabric.store import Store

LOSSES = 30 * TIMES
"""How often the power goes in each store's life."""
STEPS = 7
Step = Callable[[Store, Outbox, int], None]


def broker_step(store: Store, outbox: Outbox, number: int) -> None:
    """A submission; then its jobs are given to a CE, accepted, and end."""

    def sink(connection, lines) -> None:
        outbox.add(connection, [repr(line).encode() for line in lines])

    ids = tuple(f"https://lb/{number}-{job}" for job in range(5))
    template = normalise('Executable = "/bin/true"; Parameters = 5; Arguments = "_PARAM_";')
    new = broker_rows.Submission("/CN=a", str(number), "jdl", "cms", template, (), f"https://lb/{number}", ids, number)
    store.write_sync(lambda c: broker_rows.submit(c, new, sink))
    (cluster,) = store.read_sync(broker_rows.counts).waiting
    given = {cluster: [(machine.Matched("ce", "h:1"), 5)]}
    store.write_sync(lambda c: broker_rows.assign(c, given, number, sink))
    for event in (machine.Accepted(1), machine.Started(1, "w"), machine.Ended(1, 0)):
        store.write_sync(lambda c, event=event: broker_rows.step_ids(c, [(i, event) for i in ids], number, sink))


def gatekeeper_step(store: Store, outbox: Outbox, number: int) -> None:
    """Jobs are taken on, run and end with output; those of some steps before are purged."""
    jobs = [Job(f"j{number}-{job}", 1, "/CN=a", "cms", "cms001", 1, 1, number) for job in range(5)]

    def keep(connection, change: Callable[[], None]) -> None:
        change()
        gatekeeper_rows.set_sequence(connection, number)
        outbox.add(connection, [job.job_id.encode() for job in jobs])

    store.write_sync(
        lambda c: keep(c, lambda: gatekeeper_rows.insert_jobs(c, [(job, b"description" * 50, ()) for job in jobs]))
    )
    for state in (State.ASSIGNED, State.RUNNING, State.DONE):
        for job in jobs:
            job.state = state
        store.write_sync(lambda c: keep(c, lambda: gatekeeper_rows.update_jobs(c, jobs)))
    files = [(job.job_id, "out", 5000, "0" * 64, bytes(5000)) for job in jobs]
    store.write_sync(lambda c: gatekeeper_rows.put_outputs(c, files))
    store.write_sync(lambda c: gatekeeper_rows.purge(c, [f"j{number - 3}-{job}" for job in range(5)], number))


def bookkeeping_step(store: Store, outbox: Outbox, number: int) -> None:
    """Events of some jobs."""
    kinds = (EventType.REGISTERED, EventType.MATCHED, EventType.RUNNING, EventType.DONE)
    for sequence, kind in enumerate(kinds):
        batch = [
            Event(
                f"j{number}-{job}", "broker", 1000 * number + 10 * sequence + job, number, kind, 1,
                {"owner": "/CN=a", "vo": "cms", "wall_s": "1"},
            )
            for job in range(5)
        ]  # fmt: skip
        store.write_sync(lambda c, batch=batch: bookkeeping_rows.record(c, batch))


STORES = {
    "broker": (broker_tables.metadata, broker_tables.MIGRATIONS, broker_step),
    "gatekeeper": (gatekeeper_rows.metadata, gatekeeper_rows.MIGRATIONS, gatekeeper_step),
    "bookkeeping": (bookkeeping_tables.metadata, bookkeeping_tables.MIGRATIONS, bookkeeping_step),
}


def contents(path: Path) -> str:
    """Of every table, as one number."""
    digest = hashlib.sha256()
    with sqlite3.connect(path) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        for name in names:
            digest.update(name.encode())
            for row in connection.execute(f"SELECT * FROM {name}"):
                digest.update(repr(row).encode())
    connection.close()
    return digest.hexdigest()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "after"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.timeout(120 + TIMES)
@pytest.mark.parametrize("kind", STORES)
def test_every_acknowledged_transaction_is_there_whole(kind: str, tmp_path: Path, target: Path) -> None:
    metadata, migrations, step = STORES[kind]
    path = tmp_path / "before" / f"{kind}.db"
    path.parent.mkdir()
    seen: list[str] = []
    with Recorder(path.parent) as disk:
        store = Store(path, metadata, migrations)
        store_write = store.write_sync

        def write_sync(function, timeout_s: float = 30.0):
            answer = store_write(function, timeout_s)
            seen.append(contents(path))
            disk.mark(len(seen) - 1)
            return answer

        for number in range(STEPS):
            store.write_sync = write_sync
            step(store, Outbox(store, kind), number)
            if number % 5 == 4:  # the log is taken into the file
                store.close_sync()
                store = Store(path, metadata, migrations)
                store_write = store.write_sync
        store.close_sync()
    assert len(set(seen)) > len(seen) // 2
    chance = random.Random(kind)
    for _ in range(LOSSES):
        at = chance.randint(0, len(disk.log))
        promised = disk.lose_power(at, chance, target)
        recovered = target / path.name
        if promised or recovered.exists():
            again = Store(recovered, metadata, migrations)  # looks for damage
            Outbox(again, kind)
            again.close_sync()
            state = contents(recovered)
            assert not promised or state in seen[promised[-1] :], (
                f"power lost after entry {at}: {len(promised)} promised"
            )
        for left in target.iterdir():
            left.unlink()
    print(f"{kind}: {LOSSES} power losses in {len(disk.log)} writes and syncs, {len(seen)} transactions")


def test_a_store_that_did_not_sync_would_be_found_out(tmp_path: Path, target: Path) -> None:
    """The proof of the proof."""
    path = tmp_path / "before" / "careless.db"
    path.parent.mkdir()
    with Recorder(path.parent) as disk:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("CREATE TABLE t (n INTEGER)")
        for number in range(20):
            connection.execute("INSERT INTO t VALUES (?)", (number,))
            disk.mark(number)
        connection.close()
    chance = random.Random(1)
    lost = 0
    for _ in range(30):
        promised = disk.lose_power(chance.randint(0, len(disk.log)), chance, target)
        if promised:
            with sqlite3.connect(target / path.name) as again:
                try:
                    found = {row[0] for row in again.execute("SELECT n FROM t")}
                except sqlite3.Error:
                    found = set()
            again.close()
            lost += promised[-1] not in found
        for left in target.iterdir():
            left.unlink()
    assert lost
