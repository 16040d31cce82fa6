"""Many small files by one call: each kept or refused by itself, all synced at once."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from typing import Any

import pytest

from agents.storage.element import PLACE_DIGITS
from agents.storage.failpoints import NAMES
from agents.storage.model import StoredFile
from fabric import failpoints
from fabric.errors import Conflict, DataCorrupted, Exhausted, GridError

from .conftest import Bench, announced, sums

ANN = "/O=EDG/CN=ann"


def small(data: bytes, put_id: str, **more: Any) -> tuple[Any, bytes]:
    return announced(data, put_id, checksums=sums(data), **more), data


async def test_each_file_is_kept_or_refused_by_itself(bench: Bench) -> None:
    element = await bench.start(vo_quota_bytes={"cms": 1000})
    wrong = replace(announced(b"abc", "wrong"), checksums=sums(b"abd"))
    files = [
        small(b"one", "1"),
        (wrong, b"abc"),
        (announced(b"none", "none"), b"none"),
        (replace(announced(b"cut", "cut", checksums=sums(b"cut")), size_bytes=4), b"cut"),
        small(b"x" * 2000, "big"),
        small(b"", "empty"),
        small(b"one", ""),
    ]
    outcomes = await element.put_many(ANN, files)
    assert [getattr(outcome, "reason", "kept") for outcome in outcomes] == [
        "kept", "CHECKSUM_MISMATCH", "CHECKSUM_MISSING", "SIZE_MISMATCH", "QUOTA_EXCEEDED", "kept", "PUT_ID_INVALID",
    ]  # fmt: skip
    kept = [outcome for outcome in outcomes if isinstance(outcome, StoredFile)]
    assert [bench.bytes_of(file).read_bytes() for file in kept] == [b"one", b""]
    assert len({file.file_id[:PLACE_DIGITS] for file in kept}) == 1
    await bench.stop()
    assert len(bench.on_disk()) == 2
    element = await bench.start()
    assert [(use.used_bytes, use.reserved_bytes, use.files) for use, _ in (await element.space()).vos] == [(3, 0, 2)]


async def test_a_repeat_is_the_same_file_and_another_content_a_conflict(bench: Bench) -> None:
    element = await bench.start()
    (first,) = await element.put_many(ANN, [small(b"one", "1")])
    again = await element.put_many(ANN, [small(b"one", "1"), small(b"two", "1"), small(b"three", "3")])
    assert again[0] == first
    assert isinstance(again[1], Conflict)
    assert isinstance(again[2], StoredFile)
    assert len(bench.on_disk("pool/data")) == 2


async def test_one_id_twice_in_a_call_or_in_two_at_once_is_one_file(bench: Bench) -> None:
    element = await bench.start()
    twice = await element.put_many(ANN, [small(b"one", "1"), small(b"one", "1"), small(b"two", "1")])
    assert twice[0] == twice[1]
    assert isinstance(twice[2], Conflict)
    both = await asyncio.gather(*(element.put_many(ANN, [small(b"x", "2"), small(b"y", "3")]) for _ in range(4)))
    assert all(outcome == both[0] for outcome in both)
    assert len(bench.on_disk("pool/data")) == 3
    assert [(use.used_bytes, use.files) for use, _ in (await element.space()).vos] == [(5, 3)]


async def test_a_repeat_of_what_is_damaged_now_is_refused(bench: Bench) -> None:
    element = await bench.start()
    (file,) = await element.put_many(ANN, [small(b"one", "1")])
    assert isinstance(file, StoredFile)
    await element.mark(file, "FILE_DAMAGED")
    (again,) = await element.put_many(ANN, [small(b"one", "1")])
    assert isinstance(again, DataCorrupted)


async def test_a_caller_that_goes_away_neither_tears_nor_loses_anything(bench: Bench) -> None:
    element = await bench.start()
    files = [small(bytes([number]), str(number)) for number in range(20)]
    putting = asyncio.create_task(element.put_many(ANN, files))
    await asyncio.sleep(0)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    await element.stop()
    held = await bench.files.page("cms", "", 100)
    assert len(held) in (0, 20)
    assert len(bench.on_disk("pool/data")) == len(held)


async def test_a_database_that_is_full_keeps_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    element = await bench.start()

    async def full(files: Any, copies: Any) -> Any:
        raise Exhausted("STORE_FULL", "the disk of the database is full; make room")

    monkeypatch.setattr(bench.files, "add_many", full)
    with pytest.raises(Exhausted):
        await element.put_many(ANN, [small(b"one", "1"), small(b"two", "2")])
    assert bench.on_disk() == []
    assert [(use.used_bytes, use.reserved_bytes) for use, _ in (await element.space()).vos] == [(0, 0)]


async def test_a_disk_that_does_not_sync_keeps_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    element = await bench.start()
    failing = Exhausted("DISK_FULL", "the disk filled up; try later")
    monkeypatch.setattr("agents.storage.pool.Pool.sync", lambda pool: failing)
    outcomes = await element.put_many(ANN, [small(b"one", "1"), small(b"two", "2")])
    assert outcomes == [failing, failing]
    assert bench.on_disk() == []


async def test_read_together_finds_moved_and_damaged_ones_as_a_single_read_does(bench: Bench) -> None:
    (bench.root / "second").mkdir()
    element = await bench.start(pools=["first", "second"])
    kept = await element.put_many(ANN, [small(b"one", "1"), small(b"two", "2"), small(b"three", "3")])
    files = [file for file in kept if isinstance(file, StoredFile)]
    assert await element.move(files[0])
    bench.bytes_of(files[1]).write_bytes(b"shorter"[:2])
    found = await element.get_many(files)
    assert found[0] == b"one"
    assert isinstance(found[1], GridError)
    assert found[1].reason == "FILE_DAMAGED"
    assert found[2] == b"three"
    assert (await element.get(files[1].file_id, "cms")).damage == "FILE_DAMAGED"


@pytest.mark.parametrize("step", [name for name in NAMES if ".together." in name])
async def test_killed_at_any_step_all_are_there_or_none_and_the_repeat_finds_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    files = [small(bytes([number]) * 100, str(number)) for number in range(20)]
    image = bench.root.with_name(f"{bench.root.name}-killed")

    def camera(name: str) -> None:
        if name == step:  # what a kill would leave behind
            shutil.copytree(bench.root, image)

    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "reached", camera)
        await (await bench.start()).put_many(ANN, files)
    await bench.stop()
    shutil.rmtree(bench.root)
    image.rename(bench.root)
    element = await bench.start()
    kept = step == "storage.together.committed"
    assert len(bench.on_disk()) == len(await bench.files.page("cms", "", 100)) == 20 * kept
    again = await element.put_many(ANN, files)
    assert await element.get_many([file for file in again if isinstance(file, StoredFile)]) == [d for _, d in files]
    assert len(bench.on_disk("pool/data")) == 20
