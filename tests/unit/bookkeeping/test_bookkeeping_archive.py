"""Jobs that ended long ago are in a file before they leave the database, whatever happens in between."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agents.bookkeeping import archive as module
from agents.bookkeeping import store as rows
from agents.bookkeeping import tables
from agents.bookkeeping.archive import Archive
from agents.bookkeeping.config import BookkeepingOptions
from agents.bookkeeping.model import Event, EventType, JobQuery, Reader
from fabric.clock import ManualClock, to_us
from fabric.logs import open_logs
from fabric.store import Store

NOW = datetime(2026, 6, 1, tzinfo=UTC)
SERVICE = Reader("broker", is_service=True)


class Desk:
    """A store with jobs of which some ended 40 days ago, and its archive, which takes those of 30 days."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "archive"
        self.store = Store(folder / "bookkeeping.db", tables.metadata, tables.MIGRATIONS)
        clock = ManualClock(NOW)
        options = BookkeepingOptions(archive_after_days=30)
        self.archive = Archive(self.store, self.folder, options, clock, open_logs(folder, clock=clock, stderr=False))
        self._sequence = 0

    def record(self, job_id: str, days_ago: float, *kinds: EventType, **fields: str) -> None:
        at_us = to_us(NOW - timedelta(days=days_ago))
        for kind in kinds:
            self._sequence += 1
            event = Event(job_id, "broker", self._sequence, at_us + self._sequence, kind, 1, fields)
            self.store.write_sync(lambda connection, event=event: rows.record(connection, [event]))

    def left(self) -> set[str]:
        wanted = JobQuery(include_parents=True)
        return {job.job_id for job in self.store.read_sync(lambda c: rows.query(c, wanted, SERVICE))[0]}

    def files(self) -> list[list[dict[str, Any]]]:
        texts = [gzip.decompress(path.read_bytes()).decode() for path in sorted(self.folder.glob("*.gz"))]
        return [[json.loads(line) for line in text.splitlines()] for text in texts]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.store.close_sync()


REGISTERED, RUNNING, DONE, NOTE = EventType.REGISTERED, EventType.RUNNING, EventType.DONE, EventType.NOTE


async def test_only_what_ended_long_ago_goes_and_with_all_that_is_known(desk: Desk) -> None:
    desk.record("old", 40, REGISTERED, RUNNING, DONE, owner="/CN=é", vo="cms", exit_code="0")
    desk.record("aborted", 40, REGISTERED, EventType.ABORTED, owner="/CN=a")
    desk.record("runs", 40, REGISTERED, RUNNING, owner="/CN=a")
    desk.record("new", 2, REGISTERED, DONE, owner="/CN=a")
    desk.record("nobody's", 40, DONE)  # its registration is still on the way
    assert await desk.archive.move() == 2
    assert desk.left() == {"runs", "new", "nobody's"}
    ((old, aborted),) = desk.files()
    assert (old["job_id"], old["owner"], old["state"], old["exit_code"]) == ("old", "/CN=é", "DONE", "0")
    assert [event["type"] for event in old["events"]] == ["REGISTERED", "RUNNING", "DONE"]
    assert old["ended_at"].startswith("2026-04-22T00:00:00") and aborted["state"] == "ABORTED"
    (path,) = desk.folder.glob("*")
    assert path.stat().st_mode & 0o777 == 0o600 and desk.folder.stat().st_mode & 0o777 == 0o700
    assert await desk.archive.move() == 0 and desk.archive.moved == 2


async def test_a_parent_goes_after_its_jobs(desk: Desk) -> None:
    desk.record("p", 50, REGISTERED, owner="/CN=a", type="collection")
    desk.record("c1", 50, REGISTERED, DONE, owner="/CN=a", parent="p")
    desk.record("c2", 50, REGISTERED, owner="/CN=a", parent="p")
    assert await desk.archive.move() == 1 and desk.left() == {"p", "c2"}
    counts = desk.store.read_sync(lambda connection: rows.children_counts(connection, ["p"]))
    assert sum(counts["p"].values()) == 2  # the archived one is still counted
    desk.record("c2", 45, DONE)
    assert await desk.archive.move() == 1 and await desk.archive.move() == 1
    assert desk.left() == set()
    assert desk.store.read_sync(lambda connection: rows.children_counts(connection, ["p"])) == {}


async def test_killed_between_writing_and_forgetting(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.record("old", 40, REGISTERED, DONE, owner="/CN=a")

    def killed(*_arguments: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rows, "forget", killed)
        with pytest.raises(KeyboardInterrupt):
            await desk.archive.move()
    assert desk.left() == {"old"} and len(desk.files()) == 1
    assert await desk.archive.move() == 1
    assert desk.left() == set() and [[job["job_id"] for job in jobs] for jobs in desk.files()] == [["old"]]


async def test_an_event_that_comes_meanwhile_keeps_the_job(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.record("old", 40, REGISTERED, DONE, owner="/CN=a")
    write = desk.archive._write

    def late(found: Any) -> Path:
        desk.record("old", 1, EventType.CLEARED)
        return write(found)

    monkeypatch.setattr(desk.archive, "_write", late)
    assert await desk.archive.move() == 0
    assert desk.left() == {"old"}
    assert len(desk.store.read_sync(lambda connection: rows.history(connection, "old"))) == 3


async def test_a_full_disk_loses_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.record("old", 40, REGISTERED, DONE, owner="/CN=a")

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        await desk.archive.move()
    assert desk.left() == {"old"}


async def test_many_go_in_several_files(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    for n in range(10):
        desk.record(f"j{n}", 40, REGISTERED, DONE, owner="/CN=a")
    assert [await desk.archive.move() for _ in range(4)] == [4, 4, 2, 0]
    assert [len(jobs) for jobs in desk.files()] == [4, 4, 2]
