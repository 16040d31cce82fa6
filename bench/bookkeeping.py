"""Section `bookkeeping`: questions to a history of many jobs, each as a client may ask it. All in processor time: the
pages that they need are in memory."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import sqlalchemy as sa

from agents.bookkeeping import store as rows
from agents.bookkeeping import tables
from agents.bookkeeping.model import Event, EventType, JobQuery, JobState, Reader
from bench.measure import Bench, Table, show
from fabric.store import Store
from fabric.store import run as execute

BIG = "/O=Bench/OU=Users/CN=production"
"""Has half of all jobs."""
SMALL = "/O=Bench/OU=Users/CN=student"
"""Has three, of a small VO, and they are old."""
NOW_US = 1_800_000_000_000_000
EVENTS = (EventType.REGISTERED, EventType.ENQUEUED, EventType.MATCHED, EventType.TRANSFERRED, EventType.RUNNING)
TRIALS = 9

JOBS = 1_000_000
SIZES = (100_000, 1_000_000, 10_000_000)
"""At which it is asked, up to the wanted one."""
PART = 100_000
"""Jobs made in one transaction."""

_NUMBERS = "WITH RECURSIVE n(i) AS (VALUES (?) UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
_JOBS = f"""
{_NUMBERS}
INSERT INTO jobs SELECT i, 'https://bench:1/' || printf('%022d', i),
 CASE WHEN i IN (5, 6, 7) THEN '{SMALL}' WHEN i % 2 THEN '{BIG}' ELSE '/O=Bench/OU=Users/CN=user ' || (i % 200) END,
 CASE WHEN i IN (5, 6, 7) THEN 'small' ELSE 'cms' END, '', '', 0, CASE WHEN i % 9999 = 1 THEN 5 ELSE 6 END, 21,
 {NOW_US} + i * 1000, {NOW_US} + i * 1000, 1, 'ce' || (i % 192), 18, 'worker', 20, '0', 21, 1.0, 1.0, '', -1,
 {NOW_US} + i * 1000 FROM n
"""
_EVENTS = f"""
{_NUMBERS}
INSERT INTO events SELECT 1, i * 8 + t, i, {NOW_US} + i * 1000 + t, t, 1, '{{"ce":"ce1:2119/jobmanager-fabric-short"}}'
FROM n, (SELECT 1 AS t UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5 UNION SELECT 6)
"""


def job_id(number: int) -> str:
    """Of the job with this row."""
    return f"https://bench:1/{number:022d}"


def run(bench: Bench, jobs: int) -> None:
    """A store that is made for this, in SQLite, larger and larger; `jobs` 0: the usual number."""
    most = jobs or bench.size(JOBS, 50_000)
    path = bench.folder / "bookkeeping.db"
    store = Store(path, tables.metadata, tables.MIGRATIONS)
    asked: list[dict[str, float]] = []
    sizes = (*(size for size in SIZES if size < most), most)
    try:
        made = 0
        for size in sizes:
            began = time.monotonic()
            fill(store, made, size)
            took_s = time.monotonic() - began
            bench.say(f"  ({size} jobs, {6 * size} events: {path.stat().st_size >> 20} MiB; made in {took_s:.0f} s)")
            asked.append(_ask(bench, store, size))
            made = size
    finally:
        store.close_sync()
    rows_of = (tuple([title, *(show(figures[title]) for figures in asked)]) for title in asked[0])
    columns = ("question, ms of processor time", *(f"{size} jobs" for size in sizes))
    bench.tables.append(Table("Bookkeeping with more and more jobs", columns, tuple(rows_of)))


def fill(store: Store, made: int, count: int) -> None:
    """Jobs after the first `made` until there are so many: ended well, one in 9999 running; with six events each."""
    if not made:
        store.write_sync(lambda c: execute(c, "INSERT INTO sources (id, name) VALUES (1, 'broker.BENCH')"))
    for start in range(made, count, PART):
        numbers = (start + 1, min(start + PART, count))
        for table in (_JOBS, _EVENTS):
            store.write_sync(lambda c, table=table, numbers=numbers: execute(c, table, numbers) and None, 3600)


def _ask(bench: Bench, store: Store, count: int) -> dict[str, float]:
    """Medians of the questions, by title."""
    everywhere, chance = random.Random(1), random.Random(2)
    operator, big, small = Reader("", is_service=True), Reader(BIG, ("cms",)), Reader(SMALL, ("small",))
    alone = Reader(SMALL)
    half, oldest = count // 2, count // 10
    """The oldest tenth is where jobs are removed from."""

    def page(reader: Reader, **wanted: object) -> Callable[[sa.Connection], object]:
        return lambda connection: rows.query(connection, JobQuery(**wanted), reader)  # type: ignore[arg-type]

    questions: dict[str, Callable[[sa.Connection], object]] = {
        "the state of one job": lambda c: rows.get(c, job_id(everywhere.randrange(oldest, count))),
        "the history of one job": lambda c: rows.history(c, job_id(everywhere.randrange(oldest, count))),
        "the states of 100 jobs anywhere": lambda c: rows.query(
            c, JobQuery(job_ids=tuple(job_id(chance.randrange(oldest, count)) for _ in range(100))), big
        ),
        "100 newest jobs of a user": page(big, owner=BIG, page_size=100),
        "the same, half a history later": page(big, owner=BIG, page_size=100, after=half),
        "a user's running jobs": page(big, owner=BIG, state=int(JobState.RUNNING), page_size=100),
        "a user's aborted jobs (none)": page(big, owner=BIG, state=int(JobState.ABORTED), page_size=100),
        "a CE's 100 newest": page(operator, ce="ce7", page_size=100),
        "a CE's running jobs": page(operator, ce="ce7", state=int(JobState.RUNNING), page_size=100),
        "a user's 100 newest at a CE": page(big, owner=BIG, ce="ce7", page_size=100),
        "all running jobs": page(operator, state=int(JobState.RUNNING), page_size=100),
        "all that a user of a small VO may see": page(small, page_size=100),
        "the same, of no VO": page(alone, page_size=100),
        "a small VO's, for an operator": page(operator, vo="small", page_size=100),
        "which jobs are to be archived (none)": lambda c: rows.finished(c, NOW_US, 1000),
        "the 1000 oldest of them": lambda c: rows.finished(c, NOW_US * 2, 1000),
        "a user's of the first hours": page(
            big, owner=BIG, since_us=NOW_US, until_us=NOW_US + 10_000_000, page_size=100
        ),
    }
    found: dict[str, float] = {}

    def measure(title: str, work: Callable[[], object]) -> None:
        times: list[float] = []
        for _ in range(bench.size(TRIALS, 3)):
            began = time.process_time()
            work()
            times.append((time.process_time() - began) * 1000)
        figure = bench.add(f"bookkeeping {count}: {title}", f"{count} jobs: {title}", "ms of processor time", times)
        found[title] = figure.median

    for title, question in questions.items():
        measure(title, lambda question=question: store.read_sync(question))
    numbers = iter(range(1, 1 << 40))

    def batch() -> list[Event]:
        sequence = (1 << 50) + next(numbers) * 1000
        anywhere = (job_id(everywhere.randrange(oldest, count)) for _ in range(500))
        return [
            Event(one, "broker.BENCH", sequence + i, NOW_US, EventType.NOTE, 1, {}) for i, one in enumerate(anywhere)
        ]

    batches = iter([batch() for _ in range(TRIALS)])
    measure(
        "500 events of jobs anywhere recorded",
        lambda: store.write_sync(lambda connection: rows.record(connection, next(batches))),
    )

    def purge() -> None:
        gone = store.read_sync(lambda connection: rows.finished(connection, NOW_US * 2, 1000))
        store.write_sync(lambda connection: rows.forget(connection, gone))

    measure("1000 of the oldest read with their histories, and removed", purge)
    return found
