"""Usage records: one for each run, never two, and sums that agree with them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as pb

from agents.bookkeeping import accounting, tables, wire
from agents.bookkeeping import store as rows
from agents.bookkeeping.accounting import GROUPS, UsageQuery
from agents.bookkeeping.model import Event, EventType, Reader
from agents.user_interface.accounting import APEL_HEADER, apel_message
from fabric.clock import to_us
from fabric.errors import InvalidRequest
from fabric.store import Store

SERVICE = Reader("broker", is_service=True)
ALICE, BOB = "/O=EDG/CN=alice", "/O=EDG/CN=bob"
OCTOBER = to_us(datetime(2026, 10, 31, 23, 59, tzinfo=UTC))
EVER = UsageQuery(1, 1 << 61)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "bookkeeping.db", tables.metadata, tables.MIGRATIONS)
    yield opened
    opened.close_sync()


def put(store: Store, *events: Event) -> None:
    store.write_sync(lambda connection: rows.record(connection, events))


def life(
    job_id: str, number: int, *, owner: str = ALICE, vo: str = "cms", site: str = "CERN", wall_s: float = 10.0,
    at_us: int = OCTOBER, exit_code: str = "0", kind: EventType = EventType.DONE,
) -> list[Event]:  # fmt: skip
    used = {
        "owner": owner, "vo": vo, "fqan": f"/{vo}", "site": site, "ce": f"ce.{site}", "worker": "w",
        "account": "cms001", "wall_s": str(wall_s), "user_s": "6", "system_s": "2",
        "memory_bytes": "2048", "exit_code": exit_code,
    }  # fmt: skip
    gatekeeper = f"gatekeeper.{site}"
    return [
        Event(job_id, "broker.CERN", number, at_us - 60_000_000, EventType.REGISTERED, 1, {"owner": owner, "vo": vo}),
        Event(job_id, gatekeeper, 2 * number, at_us - 10_000_000, EventType.RUNNING, 1, {"ce": f"ce.{site}"}),
        Event(job_id, gatekeeper, 2 * number + 1, at_us, kind, 1, used),
    ]


def sums(store: Store, *by: str, wanted: UsageQuery = EVER, reader: Reader = SERVICE) -> list[accounting.UsageSum]:
    asked = UsageQuery(wanted.since_us, wanted.until_us, by)
    return store.read_sync(lambda connection: accounting.sums(connection, asked, reader))


def records(store: Store, reader: Reader = SERVICE, token: str = "") -> tuple[list[accounting.UsageRecord], str]:
    return store.read_sync(lambda connection: accounting.records(connection, EVER, reader, token))


def reconciled(store: Store) -> accounting.Reconciliation:
    return store.read_sync(lambda connection: accounting.reconcile(connection, EVER))


def test_a_run_has_one_record_however_often_it_is_told_and_in_whatever_order(store: Store) -> None:
    events = [event for n in range(20) for event in life(f"j{n}", n + 1)]
    told = events * 3
    random.Random(1).shuffle(told)
    for start in range(0, len(told), 7):
        put(store, *told[start : start + 7])
    found, token = records(store)
    assert sorted(record.job_id for record in found) == sorted(f"j{n}" for n in range(20)) and not token
    one = found[0]
    assert (one.owner, one.account, one.outcome, one.exit_code, one.processors) == (ALICE, "cms001", "DONE", "0", 1)
    assert (one.wall_s, one.user_s, one.system_s, one.memory_bytes) == (10.0, 6.0, 2.0, 2048)
    assert one.ended_at_us - one.started_at_us == 10_000_000
    result = reconciled(store)
    assert (result.runs, result.done_jobs, result.missing, result.doubled, result.unregistered) == (20, 20, (), (), ())
    assert result.wall_s == result.done_wall_s == 200.0


def test_runs_that_failed_or_were_cancelled_used_something_too(store: Store) -> None:
    put(store, *life("failed", 1, kind=EventType.NOTE), *life("cancelled", 2, kind=EventType.CANCELLED))
    put(store, Event("cancelled", "gatekeeper.CERN", 99, OCTOBER, EventType.NOTE, 1, {"text": "no run ended here"}))
    assert sorted(record.outcome for record in records(store)[0]) == ["CANCELLED", "FAILED"]
    (one,) = sums(store)
    assert (one.runs, one.succeeded, one.cpu_s) == (2, 0, 16.0)


def test_sums_by_every_group(store: Store) -> None:
    november = OCTOBER + 3_600_000_000
    put(store, *life("a", 1), *life("b", 2, site="RAL", wall_s=30), *life("c", 3, at_us=november, exit_code="1"))
    put(store, *life("d", 4, owner=BOB, vo="atlas", site="RAL", at_us=november))
    assert [(one.group, one.runs, one.wall_s) for one in sums(store, "vo", "month")] == [
        (("atlas", "2026-11"), 1, 10.0), (("cms", "2026-10"), 2, 40.0), (("cms", "2026-11"), 1, 10.0),
    ]  # fmt: skip
    assert [(one.group, one.succeeded, one.core_s) for one in sums(store, "site")] == [
        (("CERN",), 1, 20.0), (("RAL",), 2, 40.0),
    ]  # fmt: skip
    for by in GROUPS:
        assert sum(one.runs for one in sums(store, by)) == 4
    assert [one.runs for one in sums(store, wanted=UsageQuery(november, november + 1))] == [2]
    assert sums(store, "vo", wanted=UsageQuery(1, 2)) == []


def test_everybody_sees_his_own_and_his_vo(store: Store) -> None:
    put(store, *life("a", 1), *life("d", 2, owner=BOB, vo="atlas"))
    assert [one.group for one in sums(store, "owner", reader=Reader(ALICE, ("cms",)))] == [(ALICE,)]
    assert [record.job_id for record in records(store, Reader(BOB))[0]] == ["d"]
    assert sums(store, reader=Reader("/CN=nobody", ("lhcb",))) == records(store, Reader("/CN=nobody"))[0] == []


def test_pages_hold_everything_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MAX_RECORDS", 3)
    put(store, *(event for n in range(8) for event in life(f"j{n}", n + 1, site="AB"[n % 2])))
    seen: list[str] = []
    token, pages = "", 0
    while pages == 0 or token:
        page, token = records(store, token=token)
        seen += [record.job_id for record in page]
        pages += 1
    assert sorted(seen) == [f"j{n}" for n in range(8)] and pages == 3
    for bad in ("x", "????", "MSAyIDM0NTY", "a" * 5000, "MSAy"):
        with pytest.raises(InvalidRequest, match="page token"):
            records(store, token=bad)


def test_what_does_not_agree_is_named(store: Store) -> None:
    put(store, *life("good", 1), *life("twice", 2)[:2])
    put(store, life("twice", 3)[2], life("twice", 4, site="RAL")[2])
    put(store, life("stranger", 5)[2])
    bare = life("bare", 6)
    put(store, *bare[:2], Event("bare", "gatekeeper.CERN", 77, OCTOBER, EventType.DONE, 1, {"exit_code": "0"}))
    found = reconciled(store)
    assert (found.missing, found.doubled, found.unregistered) == (("bare",), ("twice",), ("stranger",))


@pytest.mark.parametrize("number", ["nan", "inf", "-5", "x" * 100, "1e300", ""])
def test_absurd_numbers_count_as_nothing(store: Store, number: str) -> None:
    event = life("j", 1)[2]
    fields = dict(event.fields) | {"wall_s": number, "memory_bytes": number, "processors": number}
    put(store, Event(event.job_id, event.source, 9, event.at_us, event.type, 1, fields))
    (one,) = records(store)[0]
    assert (one.wall_s, one.memory_bytes, one.processors) == (0.0, 0, 1)


@pytest.mark.parametrize(
    "request_", [pb.UsageRequest(since_us=1, until_us=2, by=["colour"]), pb.UsageRequest(since_us=2, until_us=1)]
)
def test_questions_that_make_no_sense(request_: pb.UsageRequest) -> None:
    with pytest.raises(InvalidRequest):
        wire.usage_query(request_)


def test_apel_messages() -> None:
    record = pb.UsageRecord(
        job_id="https://lb:9000/abc", attempt=2, owner=ALICE, vo="cms", fqan="/cms/higgs/Role=pilot", site="CERN",
        ce="ce.cern.ch:2119/jobmanager-fabric-long", account="cms001", wall_s=3600.4, user_s=3000, system_s=45.5,
        processors=2, memory_bytes=10 << 20, started_at_us=1_793_000_000_000_000, ended_at_us=1_793_003_600_000_000,
    )  # fmt: skip
    hostile = pb.UsageRecord(owner="/CN=x\n%%\nSite: ELSEWHERE", site="CERN")
    first, second, rest = apel_message([record, hostile]).split("%%\n")
    header, *lines = first.splitlines()
    assert header == APEL_HEADER and rest == ""
    fields = dict(line.split(": ", 1) for line in lines)
    assert fields["VOGroup"] == "/cms/higgs" and fields["VORole"] == "Role=pilot" and fields["Queue"] == "long"
    assert (fields["WallDuration"], fields["CpuDuration"], fields["Processors"]) == ("3600", "3046", "2")
    assert (fields["LocalJobId"], fields["MemoryReal"], fields["StartTime"]) == ("abc.2", "10240", "1793000000")
    assert fields["SubmitHost"].startswith("ce.cern.ch:2119/") and fields["MachineName"] == "ce.cern.ch:2119"
    assert (
        "GlobalUserName: /CN=x %% Site: ELSEWHERE\n" in second
        and second.count("\nSite: ") + second.startswith("Site: ") == 1
    )
