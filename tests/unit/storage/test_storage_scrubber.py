"""Damage at rest: found, marked, never served, and found again after a restart."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from agents.storage import scrubber as scrubber_module
from agents.storage.scrubber import Scrubber, pause_s
from agents.storage.store import MIGRATIONS, metadata
from fabric.clock import ManualClock
from fabric.errors import DataCorrupted, Unavailable
from fabric.logs import null_logger
from fabric.store import Store

from .conftest import Bench, sums

DATA = bytes(range(256)) * 40


async def at_once(_: float) -> None:
    """Instead of a rest."""


def scrub(bench: Bench, element: Any, pause: Callable[[float], Any] = at_once) -> Scrubber:
    return Scrubber(
        element, bench.files, log=null_logger(), clock=ManualClock(datetime(2026, 2, 1, tzinfo=UTC)), pause=pause
    )


async def refused(element: Any, file: Any) -> DataCorrupted:
    with pytest.raises(DataCorrupted) as caught:
        async for _ in element.read(file, 0, file.size_bytes):
            pass
    return caught.value


async def test_what_rotted_on_disk_is_marked_and_not_served(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    kept, flipped, cut, gone = [await upload(element, DATA + bytes([i]), f"p{i}") for i in range(4)]
    path = bench.bytes_of(flipped)
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    bench.bytes_of(cut).write_bytes(DATA)
    bench.bytes_of(gone).unlink()
    scrubber = scrub(bench, element)
    assert await scrubber.round()
    found = {file.file_id: file.damage for file in await bench.files.damaged("", 10)}
    assert found == {flipped.file_id: "FILE_DAMAGED", cut.file_id: "FILE_DAMAGED", gone.file_id: "FILE_LOST"}
    assert await scrubber.damaged() == 3
    for file in (flipped, cut, gone):
        error = await refused(element, await element.get(file.file_id, "cms"))
        assert error.reason == found[file.file_id] and "grid data repair" in error.sentence
    assert b"".join([bytes(piece) async for piece in element.read(kept, 0, kept.size_bytes)]) == DATA + b"\0"
    path.write_bytes(DATA + bytes([1]))  # the disk was only away
    await scrubber.round()
    assert await scrubber.damaged() == 2
    assert (await element.get(flipped.file_id, "cms")).damage == ""


async def test_a_reader_that_meets_damage_marks_it(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    file = await upload(element, DATA)
    bench.bytes_of(file).write_bytes(DATA[:-1])
    assert (await refused(element, file)).reason == "FILE_DAMAGED"
    assert (await element.get(file.file_id, "cms")).damage == "FILE_DAMAGED"


async def test_a_disk_that_is_away_has_lost_nothing(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    file = await upload(element, DATA)
    (bench.root / "pool").rename(bench.root / "unmounted")
    scrubber = scrub(bench, element)
    assert await scrubber.round()
    assert await scrubber.damaged() == 0
    with pytest.raises(Unavailable) as caught:
        async for _ in element.read(file, 0, file.size_bytes):
            pass
    assert caught.value.reason == "POOL_UNUSABLE" and await scrubber.damaged() == 0


async def test_a_file_that_goes_meanwhile_is_no_damage(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    file = await upload(element, DATA)
    await element.remove(file.file_id, "cms", lambda file: None)
    await element.mark(file, "FILE_LOST")
    assert await scrub(bench, element).damaged() == 0


async def test_a_round_goes_on_where_it_was(bench: Bench, upload: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubber_module, "PAGE", 2)
    element = await bench.start(scrub_mb_per_s=0.001)
    for number in range(6):
        await upload(element, DATA, f"p{number}")
    rests = 0

    async def killed(_: float) -> None:
        nonlocal rests
        rests += 1
        if rests == 4:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await scrub(bench, element, killed).round()
    await bench.stop()
    element = await bench.start()
    scrubber = scrub(bench, element)
    assert (await scrubber.state()).files == 2
    assert await scrubber.round()
    state = await scrubber.state()
    assert (state.files, state.size_bytes, scrubber.read_bytes) == (6, 6 * len(DATA), 4 * len(DATA))
    assert state.ended_at_us
    assert await scrubber.round()
    assert scrubber.read_bytes == 10 * len(DATA)


async def test_too_much_damage_is_a_lost_disk(bench: Bench, upload: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubber_module, "PAGE", 1)
    monkeypatch.setattr(scrubber_module, "MAX_DAMAGED", 2)
    element = await bench.start()
    for number in range(4):
        bench.bytes_of(await upload(element, DATA, f"p{number}")).unlink()
    scrubber = scrub(bench, element)
    assert not await scrubber.round()
    assert await scrubber.damaged() == 2


async def test_the_task_begins_a_round_when_one_is_wanted(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    scrubber = scrub(bench, element)
    await scrubber.round()
    file = await upload(element, DATA)
    bench.bytes_of(file).unlink()
    await element.wait_for_change(30, 0)  # the upload
    task = asyncio.create_task(scrubber.run())
    scrubber.now()
    await element.wait_for_change(30, 0)
    assert await scrubber.damaged() == 1
    task.cancel()
    await asyncio.wait([task])


def test_both_bounds_hold() -> None:
    assert pause_s(20_000_000, 0.1, 20, 0.5) == pytest.approx(0.9)
    assert pause_s(20_000_000, 0.1, 20, 0.05) == pytest.approx(1.9)
    assert pause_s(0, 0.0, 20, 0.1) == 0


async def test_a_store_of_before_is_brought_up_to_date(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    file = await upload(element, DATA)
    await bench.stop()
    path = bench.root / "files.db"
    with sqlite3.connect(path) as old:
        for index in ("ix_files_moved", "ix_files_damaged"):
            old.execute(f"DROP INDEX {index}")
        for column in ("disk_id", "damage", "damaged_at_us"):
            old.execute(f"ALTER TABLE files DROP COLUMN {column}")
        old.execute("DROP TABLE scrub")
        old.execute("PRAGMA user_version = 1")
    old.close()
    element = await bench.start()
    assert await element.get(file.file_id, "cms") == file
    assert await bench.files.known([file.file_id, "0" * 32]) == {file.file_id}
    fresh = Store(bench.root / "fresh.db", metadata, MIGRATIONS)
    schema = "SELECT name FROM sqlite_master ORDER BY name"

    def names(connection: sa.Connection) -> list[str]:
        return [str(row[0]) for row in connection.exec_driver_sql(schema)]

    assert await fresh.read(names) == await bench.files._store.read(names)
    await fresh.close()
    assert sums(DATA) == file.checksums
