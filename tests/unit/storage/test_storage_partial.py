"""A large copy that broke off goes on where it was: after a restart of either end, and never with wrong bytes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agents.storage import partial
from agents.storage.model import Announced, Checksums
from agents.storage.overlap import AHEAD_PIECES
from fabric.errors import DataCorrupted, Exhausted, GridError, InvalidRequest, Unavailable

from .conftest import Bench, announced, sums

DATA = random.Random(6).randbytes(100_000)
IN_MEMORY = 2 * AHEAD_PIECES * 1000
"""What may be lost of what a source has sent."""
AWAY = Unavailable("SERVER_UNREACHABLE", "it hung up")


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "LARGE_BYTES", 50_000)


class Source:
    """A file of elsewhere that breaks off after `most` bytes, or hangs."""

    def __init__(self, most: int = len(DATA), error: BaseException | None = None, data: bytes = DATA) -> None:
        self.offset, self._most, self._error, self._data = 0, most, error, data
        self.sent = 0
        self.hangs = asyncio.Event()

    def known(self, size_bytes: int) -> None:
        self.offset += size_bytes

    async def pieces(self) -> AsyncIterator[bytes | Checksums]:
        while self.offset + self.sent < min(self._most, len(self._data)):
            start = self.offset + self.sent
            piece = self._data[start : min(start + 1000, self._most)]
            self.sent += len(piece)
            yield piece
        if self._error is not None:
            raise self._error
        if self._most < len(self._data):
            self.hangs.set()
            await asyncio.Event().wait()


def wanted(data: bytes = DATA, **more: Any) -> Announced:
    return announced(data, checksums=sums(data), **more)


async def broken(element: Any, source: Source, error: type[GridError] = Unavailable, **more: Any) -> None:
    with pytest.raises(error):
        await element.put(wanted(**more), source)


def beginnings(bench: Bench) -> list[str]:
    return [name for name in bench.on_disk() if name.startswith("partial/")]


async def test_it_goes_on_where_the_source_broke_and_after_a_restart(bench: Bench) -> None:
    element = await bench.start()
    await broken(element, Source(40_000, AWAY))
    (left,) = bench.on_disk()
    assert left.startswith("partial/")
    await bench.stop()
    element = await bench.start()
    await broken(element, second := Source(70_000, DataCorrupted("STREAM_CUT", "it was cut")), DataCorrupted)
    assert 40_000 - IN_MEMORY <= second.offset <= 40_000 and second.offset + second.sent == 70_000
    file = await element.put(wanted(), third := Source())
    assert 70_000 - IN_MEMORY <= third.offset <= 70_000 and third.offset + third.sent == len(DATA)
    assert bench.bytes_of(file).read_bytes() == DATA
    await bench.stop()  # the thread that settles has ended
    assert bench.on_disk() == [f"data/{file.disk_id[:2]}/{file.disk_id[2:4]}/{file.disk_id}"]
    use = (await (await bench.start()).space(("cms",))).vos[0][0]
    assert (use.used_bytes, use.reserved_bytes, use.files) == (len(DATA), 0, 1)


async def test_whoever_asked_may_go_away_and_a_whole_beginning_needs_no_more_bytes(bench: Bench) -> None:
    element = await bench.start()
    putting = asyncio.create_task(element.put(wanted(), source := Source(60_000)))
    await asyncio.wait_for(source.hangs.wait(), 60)
    putting.cancel()
    await asyncio.wait([putting])
    (name,) = bench.on_disk()
    assert 60_000 - IN_MEMORY <= (bench.root / "pool" / name).stat().st_size <= 60_000
    (bench.root / "pool" / name).write_bytes(DATA)  # killed before it was synced
    await element.put(wanted(), again := Source())
    assert (again.offset, again.sent) == (len(DATA), 0)


async def test_what_harmed_the_beginning_costs_one_attempt(bench: Bench) -> None:
    element = await bench.start()
    for harm in (lambda data: b"\0" + data[1:], lambda data: data + bytes(len(DATA))):
        await broken(element, Source(40_000, AWAY))
        (name,) = bench.on_disk()
        path = bench.root / "pool" / name
        path.write_bytes(harm(path.read_bytes()))
        await broken(element, Source(), DataCorrupted)
        assert bench.on_disk() == []
    await element.put(wanted(), source := Source())
    assert source.sent == len(DATA)


async def test_another_file_another_owner_and_a_fault_of_the_file_begin_anew(bench: Bench) -> None:
    element = await bench.start()
    await broken(element, Source(40_000, AWAY))
    for other in (wanted(DATA[::-1], put_id="p2"), wanted(owner="/O=EDG/CN=bob"), wanted(vo="atlas", put_id="p3")):
        await element.put(other, source := Source(data=DATA[::-1] if other.put_id == "p2" else DATA))
        assert source.offset == 0
    assert len(beginnings(bench)) == 1
    await broken(element, Source(80_000, InvalidRequest("SIZE_MISMATCH", "no")), InvalidRequest)
    assert beginnings(bench) == []
    await broken(element, source := Source(10_000, AWAY))
    assert source.offset == 0
    await element.abort("/O=EDG/CN=ann", "p1", "cms")
    assert beginnings(bench) == []


async def test_small_files_and_those_without_checksums_leave_nothing(bench: Bench) -> None:
    element = await bench.start()
    small = DATA[:1000]
    with pytest.raises(Unavailable):
        await element.put(announced(small, checksums=sums(small)), Source(500, AWAY, small))
    with pytest.raises(Unavailable):
        await element.put(announced(DATA), Source(60_000, AWAY))
    assert bench.on_disk() == []


async def test_beginnings_go_when_room_is_needed_or_nobody_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    element = await bench.start()
    await broken(element, Source(40_000, AWAY))
    await element._partials.forget_old()
    assert len(bench.on_disk()) == 1
    bench.clock.advance(10 * 365 * 86400)  # the file has the machine's time, the element its own
    await element._partials.forget_old()
    assert bench.on_disk() == []

    await broken(element, Source(40_000, AWAY))
    reserve, refusals = element._ledger.reserve, iter([Exhausted("DISK_FULL", "full")])

    def full(*arguments: Any) -> Any:
        for error in refusals:
            raise error
        return reserve(*arguments)

    monkeypatch.setattr(element._ledger, "reserve", full)
    putting = asyncio.create_task(element.put(wanted(put_id="p2"), source := Source(60_000)))
    await asyncio.wait_for(source.hangs.wait(), 60)
    assert len(bench.on_disk()) == 1  # the one that is being written
    assert not await element._partials.make_room()
    putting.cancel()
    await asyncio.wait([putting])
    assert len(beginnings(bench)) == 1
    refusals = iter([Exhausted("DISK_FULL", "full")] * 2)  # its own beginning has the room that it wants
    await element.put(wanted(put_id="p2"), source := Source())
    assert source.offset == 0 and beginnings(bench) == []


async def test_it_goes_on_in_the_pool_where_it_lies(bench: Bench, tmp_path: Path) -> None:
    pools = [str(tmp_path / "one"), str(tmp_path / "two")]
    element = await bench.start(pools=pools)
    await broken(element, Source(60_000, AWAY))
    other = next(pool for pool in ("one", "two") if not bench.on_disk(pool))
    for number in range(3):  # load would have it elsewhere
        element.pools.get(next(pool for pool in pools if not pool.endswith(other))).readers += number  # type: ignore[union-attr]
    file = await element.put(wanted(), source := Source())
    assert source.offset >= 60_000 - IN_MEMORY and not file.pool.endswith(other)
