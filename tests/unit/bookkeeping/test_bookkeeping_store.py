"""Events and records on disk."""

import random
import time

import pytest
import sqlalchemy as sa

from agents.bookkeeping import store as rows
from agents.bookkeeping import tables
from agents.bookkeeping.model import Event, EventType, JobQuery, JobState, Reader, StatisticsQuery
from fabric.errors import Exhausted
from fabric.store import Store

SERVICE = Reader("broker", is_service=True)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "bookkeeping.db", tables.metadata)
    yield opened
    opened.close_sync()


def record(store, events):
    return store.write_sync(lambda connection: rows.record(connection, events))


def query(store, reader=SERVICE, **wanted):
    return store.read_sync(lambda connection: rows.query(connection, JobQuery(**wanted), reader))


def registered(job_id, sequence, owner="/CN=a", vo="cms", parent="", kind=""):
    fields = {"owner": owner, "vo": vo, "parent": parent, "type": kind}
    return Event(job_id, "broker", sequence, 1000 + sequence, EventType.REGISTERED, 1, fields)


def event(job_id, sequence, kind, source="gk", attempt=1, **fields):
    return Event(job_id, source, sequence, 2000 + sequence, kind, attempt, fields)


def test_duplicates_are_ignored(store):
    batch = [registered("j1", 1), event("j1", 1, EventType.RUNNING)]
    assert record(store, batch).new == 2
    again = record(store, [*batch, event("j1", 2, EventType.DONE, exit_code="0")])
    assert (again.new, again.duplicates) == (1, 2)
    assert len(store.read_sync(lambda connection: rows.history(connection, "j1"))) == 3


def test_events_of_unknown_jobs_are_kept_until_registration(store):
    record(store, [event("j1", 1, EventType.RUNNING, ce="x"), event("j2", 2, EventType.NOTE, text="?")])
    user = Reader("/CN=a", ("cms",))
    assert query(store, user)[0] == []
    record(store, [registered("j1", 1), registered("j2", 2)])
    found, _ = query(store, user)
    assert [(job.job_id, job.state) for job in found] == [("j2", JobState.SUBMITTED), ("j1", JobState.RUNNING)]


@pytest.mark.parametrize("kind", ["parametric", "collection", "dag"])
def test_parent_counts_follow_the_children(store, kind):
    children = [f"c{n}" for n in range(4)]
    # The first child's events come before its registration.
    record(store, [event("c0", 1, EventType.DONE, exit_code="0")])
    record(
        store,
        [registered("p", 1, kind=kind), *(registered(c, n + 2, parent="p") for n, c in enumerate(children))],
    )
    record(store, [event("c1", 2, EventType.RUNNING), event("c1", 2, EventType.RUNNING)])

    def counts():
        return store.read_sync(lambda connection: rows.children_counts(connection, ["p"]))["p"]

    assert counts() == {JobState.DONE: 1, JobState.RUNNING: 1, JobState.SUBMITTED: 2}
    record(store, [event(c, 10 + n, EventType.DONE) for n, c in enumerate(children)])
    assert counts() == {JobState.DONE: 4}
    assert [job.job_id for job in query(store, include_parents=True)[0] if job.is_parent] == ["p"]


def test_query_by_parent_pages_and_filters(store):
    batch = [registered("p", 1, kind="parametric")]
    batch += [registered(f"c{n}", n + 2, parent="p") for n in range(10)]
    batch += [registered("other", 50, owner="/CN=b", vo="atlas")]
    record(store, batch)
    record(store, [event(f"c{n}", n + 1, EventType.TRANSFERRED, ce=f"ce{n % 2}") for n in range(10)])
    page, after = query(store, job_ids=("p",), page_size=4)
    assert [job.job_id for job in page] == ["c0", "c1", "c2", "c3"]
    rest, after = query(store, job_ids=("p",), page_size=40, after=after)
    assert [job.job_id for job in rest] == [f"c{n}" for n in range(4, 10)]
    assert after == 0
    assert len(query(store, ce="ce1")[0]) == 5
    assert [job.job_id for job in query(store, owner="/CN=b")[0]] == ["other"]
    assert len(query(store, state=JobState.SUBMITTED)[0]) == 1
    assert len(query(store, since_us=1005, until_us=1008)[0]) == 4
    assert len(query(store, include_parents=True)[0]) == 12
    newest, after = query(store, page_size=7)
    older, last = query(store, page_size=7, after=after)
    assert len({job.job_id for job in newest} | {job.job_id for job in older}) == 11
    assert last == 0


def test_users_see_their_own_and_their_vo(store):
    record(
        store,
        [registered("a", 1, "/CN=a", "cms"), registered("b", 2, "/CN=b", "cms"), registered("c", 3, "/CN=c", "atlas")],
    )
    assert {job.job_id for job in query(store, Reader("/CN=a", ("cms",)))[0]} == {"a", "b"}
    assert {job.job_id for job in query(store, Reader("/CN=c", ("cms",)))[0]} == {"a", "b", "c"}
    assert {job.job_id for job in query(store, Reader("/CN=c"))[0]} == {"c"}


OWNERS, VOS, CES = ("/CN=a", "/CN=b", "/CN=c"), ("cms", "atlas"), ("ce1", "ce2")
STATES = (EventType.TRANSFERRED, EventType.RUNNING, EventType.DONE, EventType.ABORTED)
READERS = (SERVICE, Reader("/CN=a", ("cms",)), Reader("/CN=b"), Reader("/CN=d", ("cms", "atlas")), Reader("/CN=d"))


def test_every_question_is_answered_as_if_every_job_was_looked_at(store):
    chance = random.Random(7)
    batch = []
    for number in range(1, 120):
        batch.append(registered(f"j{number}", number, chance.choice(OWNERS), chance.choice(VOS)))
        batch.append(event(f"j{number}", number, chance.choice(STATES), ce=chance.choice(CES)))
    batch.append(event("unregistered", 500, EventType.RUNNING, ce="ce1"))
    record(store, batch)
    everything = query(store, page_size=1000)[0]
    for reader in READERS:
        for _ in range(30):
            wanted = {
                "owner": chance.choice(("", "", *OWNERS)), "vo": chance.choice(("", "", *VOS)),
                "ce": chance.choice(("", "", *CES)), "since_us": chance.choice((0, 0, 1050)),
                "state": chance.choice((0, 0, JobState.RUNNING, JobState.DONE, JobState.ABORTED)),
                "until_us": chance.choice((0, 0, 1090)),
            }  # fmt: skip
            expected = [
                job.job_id
                for job in everything
                if reader.may_read(job.owner, job.vo)
                and all(getattr(job, name) == wanted[name] for name in ("owner", "vo", "ce", "state") if wanted[name])
                and job.submitted_at_us >= wanted["since_us"]
                and (not wanted["until_us"] or job.submitted_at_us <= wanted["until_us"])
            ]
            found, after = [], 0
            while True:
                page, after = query(store, reader, page_size=7, after=after, **wanted)
                found += [job.job_id for job in page]
                if not after:
                    break
            assert found == expected, (reader, wanted)


def test_no_question_is_answered_by_looking_at_every_job(store, monkeypatch):
    plans = []

    def explained(connection, sql, values=None):
        plans.extend((row[-1], sql) for row in real(connection, f"EXPLAIN QUERY PLAN {sql}", values))
        return real(connection, sql, values)

    real = rows.run
    monkeypatch.setattr(rows, "run", explained)
    for reader in READERS:
        for state in (0, JobState.RUNNING, JobState.DONE):
            for others in ({}, {"owner": "/CN=a"}, {"vo": "cms"}, {"ce": "ce1"}, {"owner": "/CN=a", "ce": "ce1"}):
                for within in ({}, {"since_us": 1, "until_us": 2}):
                    if reader is not SERVICE or state or others or within:  # else that is what is asked for
                        query(store, reader, state=state, **others, **within)
        query(store, reader, job_ids=("j1", "j2"))
    store.read_sync(lambda connection: rows.get(connection, "j1"))
    store.read_sync(lambda connection: rows.history(connection, "j1"))
    store.read_sync(lambda connection: rows.finished(connection, 1, 10))
    assert plans
    scans = [(plan, sql) for plan, sql in plans if plan.startswith(("SCAN jobs", "SCAN events"))]
    assert scans == []
    assert [(plan, sql) for plan, sql in plans if "TEMP B-TREE" in plan and "+id" not in sql] == []


def test_shuffled_delivery_gives_the_same_records(tmp_path):
    events = []
    for n in range(20):
        events.append(registered(f"j{n}", n + 1))
        events += [
            event(f"j{n}", 10 * n + k + 1, kind, ce="x", worker="w", exit_code="0")
            for k, kind in enumerate((EventType.MATCHED, EventType.TRANSFERRED, EventType.RUNNING, EventType.DONE))
        ]
    results = []
    for seed in range(3):
        mixed = [*events, *events[::3]]
        random.Random(seed).shuffle(mixed)
        store = Store(tmp_path / f"{seed}.db", tables.metadata)
        for start in range(0, len(mixed), 17):
            record(store, mixed[start : start + 17])
        found, _ = query(store)
        results.append({job.job_id: job for job in found})
        store.close_sync()
    assert results[0] == results[1] == results[2]


def test_rate(store):
    """A slow machine may be ten times slower than this bound's margin."""
    batches = [
        [event(f"j{n // 4}", n + 1, EventType(3 + n % 4), ce="x", worker="w") for n in range(start, start + 2000)]
        for start in range(0, 10_000, 2000)
    ]
    start = time.perf_counter()
    for batch in batches:
        record(store, batch)
    rate = 10_000 / (time.perf_counter() - start)
    print(f"{rate:.0f} events/s")
    assert rate > 2000


def statistics(store, *by, since_us=1, until_us=10**12, reader=SERVICE):
    wanted = StatisticsQuery(since_us, until_us, by)
    return store.read_sync(lambda connection: rows.statistics(connection, wanted, reader))


def ran(job_id, number, waited_us, vo="cms", exit_code="0", attempt=1):
    """A job submitted at 1000 + number that waited so long."""
    return [
        registered(job_id, number, vo=vo),
        Event(job_id, "gk", 2 * number, 1000 + number + waited_us, EventType.RUNNING, attempt, {"ce": "x"}),
        event(job_id, 2 * number + 1, EventType.DONE, attempt=attempt, exit_code=exit_code, wall_s="2", cpu_s="1.5"),
    ]


def test_statistics_of_a_time(store):
    waits = [5, 1, 4, 2, 3, 10, 9, 8, 7, 6]
    record(store, [item for n, wait in enumerate(waits) for item in ran(f"j{n}", n + 1, wait * 1_000_000)])
    record(store, ran("bad", 20, 1_000_000, exit_code="1"))
    record(store, [*ran("again", 21, 1_000_000, vo="atlas", attempt=2), registered("waits", 22, vo="atlas")])
    assert [one.group for one in statistics(store, "vo", "state")] == [
        ("atlas", JobState.SUBMITTED), ("atlas", JobState.DONE), ("cms", JobState.DONE),
    ]  # fmt: skip
    atlas, cms = statistics(store, "vo")
    assert (atlas.jobs, atlas.ended, atlas.succeeded, atlas.resubmitted, atlas.started) == (2, 1, 1, 1, 1)
    assert (cms.jobs, cms.ended, cms.succeeded, cms.resubmitted, cms.started) == (11, 11, 10, 0, 11)
    assert (cms.wait_median_s, cms.wait_p90_s, cms.wait_max_s) == (5.0, 9.0, 10.0)
    assert cms.wait_mean_s == pytest.approx(56 / 11) and (cms.wall_s, cms.cpu_s) == (22, 16.5)
    (everything,) = statistics(store)
    assert (everything.group, everything.jobs) == ((), 13)
    assert statistics(store, "vo", reader=Reader("/CN=nobody", ("lhcb",))) == []
    assert [one.jobs for one in statistics(store, "vo", since_us=1002, until_us=1003)] == [2]


def test_statistics_of_too_many_jobs_are_refused(store, monkeypatch):
    monkeypatch.setattr(rows, "MAX_STATISTICS_JOBS", 2)
    record(store, [registered(f"j{n}", n + 1) for n in range(3)])
    with pytest.raises(Exhausted, match="ask for less"):
        statistics(store)


def test_a_file_of_an_earlier_version_is_brought_up_to_date(tmp_path):
    old = sa.MetaData()
    earlier = tables.jobs.to_metadata(old)
    earlier._columns.remove(earlier.c.started_at_us)
    later = {"jobs_submitted", "jobs_owner_state", "jobs_vo"}
    earlier.indexes = {index for index in earlier.indexes if index.name not in later}
    for table in (tables.events, tables.sources, tables.parents):
        table.to_metadata(old)
    store = Store(tmp_path / "bookkeeping.db", old)
    names = ", ".join(column.name for column in earlier.columns)
    values = ", ".join("'j1'" if column.name == "job_id" else "7" for column in earlier.columns)
    store.write_sync(
        lambda connection: connection.exec_driver_sql(f"INSERT INTO jobs ({names}) VALUES ({values})").close()
    )
    store.close_sync()
    store = Store(tmp_path / "bookkeeping.db", tables.metadata, tables.MIGRATIONS)
    assert store.read_sync(lambda connection: rows.get(connection, "j1")).started_at_us == 0
    record(store, [event("j1", 1, EventType.RUNNING, attempt=3)])
    assert store.read_sync(lambda connection: rows.get(connection, "j1")).started_at_us == 2001
    store.close_sync()
